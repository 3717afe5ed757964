"""Sweeps: what is asked for and refused, resuming, and that killing anything loses at most what was in flight."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
import tracemalloc
from collections import Counter, namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import RECORD
from test_batch import WRITE, make
from test_cli import call, start

from cookbook import batch, launching, recipes, results, sweep, sweepfile
from cookbook.recipes import RequestError
from cookbook.sweepfile import Sweep

posix = pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
COUNT = "import os\nopen('begun', 'a').write('x')\nprint('threads', os.environ.get('OMP_NUM_THREADS'))"
SLOW = COUNT + "\nimport time; time.sleep(2)"


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return make(tmp_path / "tiny.ipynb", COUNT, "if STEPS == 5: raise ValueError('five')", WRITE)


def finish(plan: sweep.Plan, **more: Any) -> dict[str, batch.RunStatus | None]:
    """Run a plan to its end: the status of each run by its name."""
    ended: dict[str, batch.RunStatus | None] = {}

    def tell(run: sweep.Run, event: dict[str, Any]) -> None:
        if event["kind"] in ("end", "elsewhere"):
            ended[run.name] = event.get("status")

    launching.run(plan, tell=tell, **more)
    return ended


def begun(plan: sweep.Plan) -> dict[str, int]:
    """How often the notebook of each run was begun."""
    files = {run.name: run.folder / "begun" for run in plan.runs}
    return {name: len(file.read_text()) if file.exists() else 0 for name, file in files.items()}


def record(run: sweep.Run, code: str, content: dict[str, Any] = RECORD) -> None:
    """What a finished run leaves, without the run."""
    run.folder.mkdir(parents=True)
    (run.folder / "results.json").write_text(json.dumps(content))
    status = {"status": "ok", "seconds": 2.0, "parameters": run.parameters, "code_sha256": code}
    (run.folder / "status.json").write_text(json.dumps(status))


def test_every_combination_once(notebook: Path, tmp_path: Path) -> None:
    asked = Sweep(
        recipe=str(notebook),
        fixed={"LEARNING_RATE": 1e-4},
        grid={"STEPS": [1, 2], "INTERACTIVE": [False, True]},
        runs=[{"RANKS": ["4"]}, {"RANKS": ["8"], "LEARNING_RATE": 2e-4}],
        seeds=3,
    )
    runs = sweep.plan(asked, tmp_path / "out").runs
    assert len(runs) == sweep.count(asked) == 24 == len({run.folder for run in runs})
    assert [run.parameters["SEED"] for run in runs[:4]] == [0, 1, 2, 0]
    rates = Counter((run.parameters["LEARNING_RATE"], *run.parameters["RANKS"]) for run in runs)
    assert rates == {(1e-4, "4"): 12, (2e-4, "8"): 12}
    assert set(runs[0].varied) == {"STEPS", "INTERACTIVE", "RANKS", "LEARNING_RATE", "SEED"}
    parts = [sweep.part(sweep.plan(asked, tmp_path / "out"), f"{k}/5").runs for k in range(1, 6)]
    assert sorted(run.folder for part in parts for run in part) == sorted(run.folder for run in runs)


def test_a_folder_belongs_to_the_parameters_alone(notebook: Path, tmp_path: Path) -> None:
    small = sweep.plan(Sweep(recipe=str(notebook), grid={"STEPS": [1]}, seeds=1), tmp_path).runs
    large = sweep.plan(Sweep(recipe=str(notebook), grid={"STEPS": [1, 2]}, seeds=2), tmp_path).runs
    assert {run.folder for run in small} < {run.folder for run in large}


def test_draws_follow_their_seed(notebook: Path, tmp_path: Path) -> None:
    draws = {
        "draws": 40,
        "seed": 7,
        "parameters": {
            "LEARNING_RATE": {"low": 1e-5, "high": 1e-2, "log": True},
            "STEPS": {"low": 1, "high": 4},
            "RANKS": [["4"], ["8"]],
        },
    }
    found = [sweep.plan(Sweep(recipe=str(notebook), random=draws), tmp_path).runs for _ in range(2)]
    assert [run.parameters for run in found[0]] == [run.parameters for run in found[1]]
    rates = sorted(run.parameters["LEARNING_RATE"] for run in found[0])
    assert 1e-5 < rates[0] and rates[-1] < 1e-2
    assert 8 <= sum(rate < 1e-4 for rate in rates) <= 19  # a third, evenly over the orders of magnitude
    assert {run.parameters["STEPS"] for run in found[0]} == {1, 2, 3, 4}
    draws["seed"] = 8
    other = sweep.plan(Sweep(recipe=str(notebook), random=draws), tmp_path).runs
    assert sorted(run.parameters["LEARNING_RATE"] for run in other) != rates


def test_words_of_a_command_line(notebook: Path) -> None:
    found = sweepfile.from_words(
        str(notebook), ["STEPS=1,3..5", "SEED=0..2", "LEARNING_RATE=1e-4", "RANKS=4,8", 'MODEL=["a,b", "c"]']
    )
    assert found.grid == {"STEPS": ["1", 3, 4, 5], "SEED": [0, 1, 2], "MODEL": ["a,b", "c"]}
    assert found.fixed == {"LEARNING_RATE": "1e-4", "RANKS": "4,8"}  # a list is one value
    base = Sweep(recipe=str(notebook), fixed={"STEPS": 2}, grid={"SEED": [0, 1]}, timeout=9)
    mixed = sweepfile.from_words(str(notebook), ["STEPS=1,2", "SEED=5"], base)
    assert (mixed.fixed, mixed.grid, mixed.timeout) == ({"SEED": "5"}, {"STEPS": ["1", "2"]}, 9)


FILE = "recipe: tiny.ipynb\nfixed: {LEARNING_RATE: 1e-4}\ngrid:\n  STEPS: [1, 2]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FILE + "sedes: 3\n", r"s.yaml:5: sedes: no such key; did you mean seeds\?"),
        (FILE + "  STEPZ: [1]\n", r"s.yaml:5: STEPZ: no such parameter; did you mean STEPS\?"),
        (FILE + "  LEARNING_RATE: [1, 2]\n", r"s.yaml:2: LEARNING_RATE is set by fixed and by grid"),
        (FILE + "  SEED: [zero]\n", r"s.yaml:5: SEED: 'zero' is not a valid int"),
        (FILE + "  SEED: []\n", r"s.yaml:5: SEED: no value to try"),
        (FILE + "  SEED: [1, 1]\n", r"asked for twice: two runs would write one folder"),
        (FILE + "  SEED: 3\n", r"s.yaml:5: grid.SEED: Input should be a valid list"),
        (FILE + "  STEPS: [3]\n", r"s.yaml:5: grid.STEPS stands here and in line 4; keep one"),
        (FILE + "seeds: 0\n", r"s.yaml:5: seeds: no seed to try"),
        (FILE + "seeds: 1000000\n", r"these are 2,000,000 runs; at most 10,000"),
        (FILE + "timeout: -1\n", r"s.yaml:5: timeout: Input should be greater than 0"),
        (FILE + "runs: [{OUTPUT_DIR: x}]\n", r"s.yaml:5: OUTPUT_DIR: each run has a folder of its own"),
        (FILE + "random: {draws: 3}\n", r"s.yaml:5: parameters is missing"),
        (FILE + "random:\n  draws: 2\n  parameters: {SEED: {low: 2, high: 1}}\n", r"s.yaml:7: .*low must be below"),
        (FILE + "resources: {cpu: 2}\n", r"s.yaml:5: resources.cpu: no such key; did you mean cpus\?"),
        ("recipe: tiny.ipynb\ngrid: [\n", r"s.yaml:3: not valid YAML"),
        ("grid: {STEPS: [1]}\n", r"s.yaml: recipe is missing"),
        ("recipe: none.ipynb\n", r"none.ipynb: no such notebook"),
        ("just words\n", r"s.yaml: write `recipe: 01`"),
    ],
)
def test_a_faulty_file_is_refused_with_its_line(
    notebook: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(notebook.parent)
    Path("s.yaml").write_text(text)
    with pytest.raises(RequestError, match=said):
        asked, lines = sweepfile.read(Path("s.yaml"))
        sweep.plan(asked, Path("out"), file="s.yaml", lines=lines)
    assert not Path("out").exists()


def test_other_refusals(notebook: Path, tmp_path: Path) -> None:
    asked = Sweep(recipe=str(notebook), seeds=2)
    plan = sweep.plan(asked, tmp_path / "out")
    for share in ("0/2", "3/2", "1", "x/y"):
        with pytest.raises(RequestError, match="write K/N"):
            sweep.part(plan, share)
    with pytest.raises(RequestError, match="choose local or ray"):
        finish(plan, engine="slurm")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.json").write_text('{"recipe": "02_other"}')
    with pytest.raises(RequestError, match="holds a sweep of 02_other"):
        sweep.plan(asked, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        finish(sweep.plan(asked, tmp_path / "file" / "out"))


def test_failures_are_recorded_and_the_rest_goes_on(notebook: Path, tmp_path: Path) -> None:
    asked = Sweep(recipe=str(notebook), grid={"STEPS": [3, 5]}, seeds=2)
    plan = sweep.plan(asked, tmp_path / "out")
    ended = finish(plan, workers=2)
    states = {name: status.status for name, status in ended.items() if status}
    assert states == {
        "STEPS=3 SEED=0": "ok",
        "STEPS=3 SEED=1": "ok",
        "STEPS=5 SEED=0": "cell_error",
        "STEPS=5 SEED=1": "cell_error",
    }
    said = json.loads((plan.runs[0].folder / "executed.ipynb").read_text())
    texts = [o["text"] for cell in said["cells"] for o in cell.get("outputs", []) if "text" in o]
    threads = max(1, results.cores() // 2)
    assert f"threads {threads}\n" in ["".join(text) for text in texts]  # two workers share the cores
    again = sweep.plan(asked, tmp_path / "out")
    assert [run.state for run in again.runs] == ["done", "done", "failed", "failed"]
    assert again.seconds_a_run and again.seconds_a_run > 0
    finish(again, workers=2)
    assert list(begun(again).values()) == [1, 1, 2, 2]
    wider = sweep.plan(asked.model_copy(update={"seeds": 3}), tmp_path / "out")
    assert [run.state for run in wider.runs] == ["done", "done", "missing", "failed", "failed", "missing"]


def test_a_changed_notebook_is_run_again_and_nothing_is_lost(notebook: Path, tmp_path: Path) -> None:
    asked = Sweep(recipe=str(notebook), models=False)
    first = sweep.plan(asked, tmp_path / "out")
    (first.runs[0].folder / "model").mkdir(parents=True)
    finish(first)
    assert not (first.runs[0].folder / "model").exists()  # `models: false`
    content = json.loads(notebook.read_text())
    content["cells"][0]["source"] = "# Another title"
    notebook.write_text(json.dumps(content))
    assert sweep.plan(asked, tmp_path / "out").runs[0].state == "done"  # prose changes nothing
    content["cells"][3]["source"] += "\nmore = 1"
    notebook.write_text(json.dumps(content))
    changed = sweep.plan(asked, tmp_path / "out")
    assert changed.runs[0].state == "outdated"
    finish(changed)
    assert sweep.plan(asked, tmp_path / "out").runs[0].state == "done"
    (old,) = (tmp_path / "out" / ".superseded").iterdir()
    assert results.read(old).recipe == "tiny"


def test_a_run_that_takes_too_long(tmp_path: Path) -> None:
    slow = make(tmp_path / "slow.ipynb", "import time; time.sleep(60)", WRITE)
    ended = finish(sweep.plan(Sweep(recipe=str(slow), timeout=6), tmp_path / "out"))
    assert [status.status for status in ended.values() if status] == ["timeout"]


@posix
def test_killed_launcher_worker_and_kernel(tmp_path: Path) -> None:
    """Whatever is killed, the same command ends the sweep, and only runs in flight were begun twice."""
    make(tmp_path / "slow.ipynb", SLOW, WRITE)
    words = ["sweep", "slow.ipynb", "-p", "SEED", "0..3", "--output-dir", "out"]
    plan = sweep.plan(sweepfile.from_words(str(tmp_path / "slow.ipynb"), ["SEED=0..3"]), tmp_path / "out")

    def wait_for(count: int) -> None:
        """Until notebooks have been begun so many times."""
        for _ in range(1200):
            if sum(begun(plan).values()) == count:
                return
            time.sleep(0.05)
        raise AssertionError(f"{begun(plan)}")

    def kill(word: str) -> None:
        for process in psutil.Process(second.pid).children(recursive=True):
            if word in " ".join(process.cmdline()):
                return process.kill()
        raise AssertionError(f"no {word} is running")

    first = start(tmp_path, *words)
    wait_for(2)
    first.kill()
    first.communicate(timeout=60)
    assert [r.state for r in sweep.plan(plan.sweep, plan.folder).runs].count("done") == 1
    second = start(tmp_path, *words)
    wait_for(3)
    kill("ipykernel")
    wait_for(4)
    kill("cookbook.execution")
    out, err = second.communicate(timeout=120)
    assert second.returncode == 1, out + err
    assert "1 ok, 1 done before, 2 failed" in out, out
    assert "kernel died" in out
    third = start(tmp_path, *words)
    out, err = third.communicate(timeout=120)
    assert third.returncode == 0, out + err
    assert "2 ok, 2 done before" in out
    assert list(begun(plan).values()) == [1, 3, 2, 1]  # one more for each time that it was in flight
    fourth = start(tmp_path, *words)
    out, _ = fourth.communicate(timeout=60)
    assert (fourth.returncode, "0 to do" in out) == (0, True)
    assert list(begun(plan).values()) == [1, 3, 2, 1]


def commands() -> list[list[str]]:
    return [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]


@posix
def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    make(tmp_path / "slow.ipynb", "open('begun', 'w')\nimport time; time.sleep(300)", WRITE)
    process = start(tmp_path, "sweep", "slow.ipynb", "-p", "SEED", "0,1", "--workers", "2", "--output-dir", "out")
    while len(list(tmp_path.glob("out/*/begun"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted; nothing is left running\n")
    assert not [c for c in commands() if str(tmp_path) in " ".join(c)]
    states = [json.loads(file.read_text())["status"] for file in tmp_path.glob("out/*/status.json")]
    assert states == ["interrupted"] * 2


def test_a_full_disk_stops_the_sweep_and_keeps_what_there_is(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Sweep(recipe=str(notebook), seeds=3)
    plan = sweep.plan(asked, tmp_path / "out")
    usage = namedtuple("usage", "total used free")
    free = iter([10**12, 10**12, 10**6])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, next(free)))
    with pytest.raises(launching.StoppedError, match="only 1 MB are free .* give the same command again"):
        finish(plan)
    assert [run.state for run in sweep.plan(asked, tmp_path / "out").runs] == ["done", "missing", "missing"]
    monkeypatch.undo()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(batch, "run_one", full)
    with pytest.raises(launching.StoppedError, match="No space left on device; finished runs are kept"):
        finish(sweep.plan(asked, tmp_path / "out"))
    assert [run.state for run in sweep.plan(asked, tmp_path / "out").runs] == ["done", "missing", "missing"]


def test_what_cannot_fit_on_the_disk_is_refused(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Sweep(recipe=str(notebook), seeds=11)
    code = recipes.code_hash(json.loads(notebook.read_text())["cells"])
    large = RECORD | {"resources": RECORD["resources"] | {"artifact_bytes": 2_000_000_000}}
    record(sweep.plan(asked, tmp_path / "out").runs[0], code, large)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 19_000_000_000))
    plan = sweep.plan(asked, tmp_path / "out")
    with pytest.raises(RequestError, match=r"10 runs leave models of about 20.0 GB, and 19.0 GB are free"):
        finish(plan)
    assert begun(plan) == {run.name: 0 for run in plan.runs}


def test_two_launchers_share_the_work(notebook: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    plan = sweep.plan(Sweep(recipe=str(notebook), seeds=2), tmp_path / "out")
    plan.runs[0].folder.mkdir(parents=True)
    with FileLock(plan.runs[0].folder / ".lock"):
        ended = finish(plan)
    assert ended["SEED=0"] is None
    assert ended["SEED=1"] is not None and ended["SEED=1"].status == "ok"


def test_plan_and_refusals_on_the_command_line(
    notebook: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(notebook.parent)
    Path("s.yaml").write_text(FILE + "fixed_typo: 1\n")
    code, out, err = call(capsys, "sweep", "s.yaml")
    assert (code, out, err) == (2, "", "cookbook: s.yaml:5: fixed_typo: no such key; did you mean fixed?\n")
    Path("s.yaml").write_text(FILE + "seeds: 2\n")
    code, out, err = call(capsys, "sweep", "s.yaml", "-p", "STEPS", "1..3", "--dry-run")
    assert (code, err) == (0, "")
    assert "6 runs; 6 to do, 1 at a time" in out and "STEPS: 1, 2, 3" in out and "not known yet" in out
    assert not Path("runs").exists()  # nothing was started
    for run in sweep.plan(Sweep(recipe="tiny.ipynb", seeds=2), Path("runs/s")).runs[:1]:
        record(run, recipes.code_hash(json.loads(notebook.read_text())["cells"]))
    words = ("sweep", "tiny.ipynb", "-p", "SEED", "0,1", "--output-dir", "runs/s", "--dry-run")
    code, out, _ = call(capsys, *words)
    assert "2 runs, 1 done before; 1 to do" in out and "about 0:00:02" in out
    code, _, err = call(capsys, "sweep", "tiny.ipynb", "-p", "SEED")
    assert (code, err) == (2, "cookbook: -p SEED: the value is missing; write -p NAME VALUE\n")
    code, _, err = call(capsys, "sweep", "none.yaml")
    assert (code, err) == (2, "cookbook: none.yaml: cannot be read (No such file or directory)\n")


def test_a_thousand_recorded_runs(notebook: Path, tmp_path: Path) -> None:
    asked = Sweep(recipe=str(notebook), seeds=1000)
    code = recipes.code_hash(json.loads(notebook.read_text())["cells"])
    for run in sweep.plan(asked, tmp_path / "out").runs:
        record(run, code)
    tracemalloc.start()
    plan = sweep.plan(asked, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not plan.to_do and len(plan.runs) == 1000
    assert plan.seconds_a_run == 2.0
    assert peak < 20e6  # bytes; the records themselves are not kept
