"""The command line: exit codes, what it prints, and that stopping it leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORD
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from test_batch import PIDS, WRITE, gone, make

import cookbook
from cookbook import batch, cli, console, doctor, project, recipes, results
from cookbook.batch import Cell, RunStatus

ROOT = Path(cookbook.__file__).parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")


def start(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m cookbook ARGUMENTS` in `cwd`, with Ctrl-C as a terminal would deliver it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("COOKBOOK_PROFILES", None)
    return subprocess.Popen(
        [sys.executable, "-m", "cookbook", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Background jobs of a shell ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """`cookbook ARGUMENTS` in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def test_exit_codes_of_real_runs(tmp_path: Path) -> None:
    make(tmp_path / "good.ipynb", "print(SEED)", WRITE)
    make(tmp_path / "bad.ipynb", "raise ValueError('no\\nluck')")
    good = start(tmp_path, "run", "good.ipynb", "-p", "SEED", "-1", "--output-dir", "out")
    bad = start(tmp_path, "run", "bad.ipynb")
    out, err = good.communicate(timeout=120)
    assert (good.returncode, err) == (0, "")
    assert "[ 2/3] Part 0" in out and "out/executed.ipynb" in out and str(tmp_path) not in out
    assert json.loads((tmp_path / "out" / "status.json").read_text())["parameters"] == {"SEED": -1}
    out, err = bad.communicate(timeout=120)
    assert bad.returncode == 1
    assert err == "cell error in cell 2 (part-0: raise ValueError('no\\nluck')): ValueError: no luck\n"
    assert json.loads((tmp_path / "runs" / "bad" / "status.json").read_text())["status"] == "cell_error"


def test_bad_request_starts_no_kernel(tmp_path: Path) -> None:
    make(tmp_path / "n.ipynb", "data.load(DATA)")
    (tmp_path / "d.csv").write_text("message,intent\nhello\n")
    given = ["-p", "SEED", "1.5", "-p", "SED", "1", "-p", "DATA", "d.csv"]
    run = start(tmp_path, "run", "n.ipynb", *given)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 2 and "Traceback" not in err and out == ""
    for said in (
        "SEED: '1.5' is not a valid int",
        "SED: no such parameter; did you mean SEED",
        "d.csv:2: 1 cell",
    ):
        assert said in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.csv", "n.ipynb"]  # no run, no folder for one


@posix
def test_stopping_leaves_nothing_running(tmp_path: Path) -> None:
    notebook = make(tmp_path / "n.ipynb", PIDS + "\ntime.sleep(300)", WRITE)
    stops = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    runs = {stop: start(tmp_path, "run", str(notebook), "--output-dir", stop.name) for stop in stops}
    for stop, run in runs.items():
        pids, deadline = tmp_path / stop.name / "pids", time.monotonic() + 60
        while not pids.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        run.send_signal(stop)
    for stop, run in runs.items():
        _, err = run.communicate(timeout=60)
        assert run.returncode == stops[stop], err
        pids, deadline = (tmp_path / stop.name / "pids").read_text(), time.monotonic() + 10
        while stop == signal.SIGKILL and not gone(pids) and time.monotonic() < deadline:
            time.sleep(0.1)  # here the run notices by itself
        assert gone(pids), stop
        status = tmp_path / stop.name / "status.json"
        assert status.exists() == (stop != signal.SIGKILL)
        if status.exists():
            assert "Traceback" not in err
            found = RunStatus.model_validate_json(status.read_text())
            assert (found.status, found.cell and found.cell.number) == ("interrupted", 2)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one recipe, in which no notebook can be run."""
    monkeypatch.setattr(recipes, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch, "run_one", lambda *_, **__: pytest.fail("a notebook was run"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    make(tmp_path / "notebooks" / "01_tiny_recipe.ipynb", "pass")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "07"], "there is no recipe '07'; known: 01_tiny_recipe"),
        (["run", "1", "-p", "SEED"], "-p SEED: the value is missing; write -p NAME VALUE"),
        (["run", "1", "-p", "SEED", "1", "-p", "SEED", "2"], "-p SEED is given twice"),
        (["run", "1", "-p", "PROFILE", "cpux"], "there is no profile 'cpux'; did you mean cpu"),
        (["run", "1", "--timeout", "0"], "Invalid value"),
        (["run"], "Missing argument"),
        (["fly"], "No such command"),
    ],
)
@pytest.mark.usefixtures("here")
def test_bad_requests(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2 and said in err and "Traceback" not in out + err


def finished(status: str, folder: Path, **more: Any) -> RunStatus:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(RECORD))
    known = {"notebook": "n", "code_sha256": "0", "parameters": {}, "started": results.now(), "error": ""}
    return RunStatus(**{**known, "status": status, "seconds": 1.0, "cell": None, **more})


def test_report_of_a_good_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def run(notebook: Path, folder: Path, values: dict[str, Any], **more: Any) -> RunStatus:
        asked.update(folder=folder, values=values, timeout=more["timeout"])
        for event in (
            {"kind": "cell", "number": 4, "total": 9, "id": "a", "line": "x = 1", "heading": "4. [Before]"},
            {"kind": "stage", "stage": "before", "event": "start"},
            {
                "kind": "stage",
                "stage": "before",
                "event": "end",
                "seconds": 35.1,
                "peak_bytes": 1_900_000_000,
            },
            {"kind": "stage", "time": 1.0, "loss": 0.25, "step": 3},
        ):
            more["progress"](event)
        (here / "my run" / "model").mkdir(parents=True)
        return finished("ok", here / "my run")

    monkeypatch.setattr(batch, "run_one", run)
    monkeypatch.setattr(console, "QUIET_SECONDS", 0)
    given = ["-p", "SEED", "1", "-p", "OUTPUT_DIR", "my run", "-p", "LEARNING_RATE=1e-3", "--timeout", "9"]
    code, out, err = call(capsys, "run", "01", *given)
    assert (code, err) == (0, "")
    values = {"SEED": 1, "LEARNING_RATE": 0.001}  # the folder goes by the environment, not the notebook
    assert asked == {"folder": here / "my run", "values": values, "timeout": 9.0}
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "01_tiny_recipe → 'my run'",
        "[ 4/9] 4. [Before]",
        "before 35 s 1.9 GB",
        "loss 0.25 step 3",
        "accuracy 0.100 0.200 0.900 +0.800 +0.700 to +0.900 96 improved",
        "forgetting: arithmetic 0.500 0.400 -0.100 -0.200 to +0.100 40 no measurable change",
        "time 512 s: training 300, evaluation 150",
        "memory 2.10 GB at its peak, 2.30 predicted",
        "notebook 'my run/executed.ipynb'",
        "model 'my run/model'",
        "cookbook run 01 -p DATA your.jsonl --output-dir 'my run'-data",
    ):
        assert line in lines, out


def test_last_line_of_a_failed_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = Cell(number=7, id="train", line="trainer.train()")
    failed = finished("kernel_died", here / "out", error="killed", cell=cell)
    monkeypatch.setattr(batch, "run_one", lambda *_, **__: failed)
    code, _, err = call(capsys, "run", "1")
    assert (code, err) == (1, "kernel died in cell 7 (train: trainer.train()): killed\n")
    failed = finished("kernel_died", here / "out2", error="x" * 500)
    code, _, err = call(capsys, "run", "1")
    assert err == f"kernel died before the first cell: {'x' * 400}...\n"


def test_interrupt(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*_: Any, **__: Any) -> RunStatus:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "run_one", run)
    assert call(capsys, "run", "1")[0] == 130


def test_list(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished("ok", here / "runs" / "01_tiny_recipe")
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert "01   01_tiny_recipe  A tiny recipe  accuracy 0.1 → 0.9 (cpu)" in " ".join(out.splitlines())


def test_list_is_quick(tmp_path: Path) -> None:
    code = "import sys; from cookbook import cli; print({'torch', 'pandas', 'papermill'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "set()\n", done.stderr


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_torch", lambda: [doctor.Finding("cuda", "none")])
    monkeypatch.setattr(doctor, "MEMORY_BYTES", 0)
    monkeypatch.setattr(project, "required", lambda: (SpecifierSet(">=3.11"), []))
    code, out, _ = call(capsys, "doctor")
    assert (code, out.splitlines()[-1]) == (0, "ready")
    wrong = [Requirement("pytest<1"), Requirement("no-such-package>=2")]
    monkeypatch.setattr(project, "required", lambda: (SpecifierSet(">=3.11"), wrong))
    code, out, _ = call(capsys, "doctor")
    assert code == 1 and out.splitlines()[-1].startswith("fix packages: pip install")
    assert "pytest<1 (there is" in out and "no-such-package>=2 (missing)" in out


def test_doctor_finds_a_kernel_of_another_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {
        "argv": ["/opt/other/bin/python", "-m", "ipykernel_launcher"],
        "display_name": "x",
        "language": "python",
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert "another Python" in doctor._kernel().fix
