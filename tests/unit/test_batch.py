"""One run: every way to end is told apart, nothing is left running, and bad requests start no kernel."""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from conftest import RECORD
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cookbook import batch, execution, recipes
from cookbook.batch import RequestError, RunStatus, check_parameters, find, run_one

PARAMETERS = """\
PROFILE: str = "auto"  # smoke, cpu, gpu, or auto
MODEL: str = ""  # Hub id or folder
DATA: str = ""  # your data
OUTPUT_DIR: str = ""  # where the run goes
SEED: int = 0  # every random choice follows from it
LEARNING_RATE: float = 2e-4
INTERACTIVE: bool = False
RANKS: list[str] = ["8", "16"]
STEPS = 3
"""
WRITE = f"""\
from cookbook import results
written = results.write(results.output_dir("tiny"), results.Results.model_validate({RECORD!r}))"""
# The kernel names itself and a child that a killed kernel would orphan, then goes on or not.
PIDS = """\
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
pathlib.Path("pids.part").write_text(f"{os.getpid()} {child.pid}")
os.rename("pids.part", "pids")"""


def make(path: Path, *code: str, kernel: str = "python3") -> Path:
    """A notebook with a title, a parameters cell and the given code cells, the second of them named."""
    cells = [new_markdown_cell("# A tiny recipe"), new_code_cell(PARAMETERS, id="parameters")]
    cells[1].metadata.tags = ["parameters"]
    for number, source in enumerate(code):
        cells += [new_markdown_cell(f"## Part {number}"), new_code_cell(source, id=f"part-{number}")]
    notebook = new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": kernel, "display_name": "Python", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def gone(pids: str) -> bool:
    """Whether none of these processes runs, zombies aside."""
    left = [psutil.Process(int(pid)) for pid in pids.split() if psutil.pid_exists(int(pid))]
    return all(p.status() == psutil.STATUS_ZOMBIE for p in left)


CASES: dict[str, tuple[str, ...]] = {
    "timeout": (PIDS + "\ntime.sleep(300)", WRITE),
    "ok": (
        "import os\nprint(os.path.basename(os.getcwd()), SEED, LEARNING_RATE, RANKS)\n"
        """print('{"stage": "train", "event": "end", "seconds": 1}', file=open('progress.jsonl', 'a'))""",
        WRITE,
    ),
    "cell_error": ("x = 1", "# a comment\nx / 0", WRITE),
    "kernel_died": (PIDS + "\nos.kill(os.getpid(), 9)", WRITE),
    "exit": ("import sys; sys.exit(0)", WRITE),
    "missing": ("print('no record')",),
    "no_kernel": ("pass",),
}


one_worker = pytest.mark.xdist_group("endings")  # for the tests of `runs`


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs {a}")  # a space and braces: Papermill fills braces in paths


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    return []


@pytest.fixture(scope="module")
def runs(root: Path, events: list[dict[str, Any]]) -> dict[str, RunStatus]:
    """All cases, two at a time: most of a small run is waiting."""

    def one(case: str) -> RunStatus:
        kernel = "no-such-kernel" if case == "no_kernel" else "python3"
        notebook = make(root / f"{case}.ipynb", *CASES[case], kernel=kernel)
        given = {"SEED": 7, "LEARNING_RATE": 0.5, "RANKS": ["a"]} if case == "ok" else {}
        more = {"progress": events.append} if case == "ok" else {}
        return run_one(notebook, root / case, given, timeout=30 if case == "timeout" else 120, **more)

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(CASES, pool.map(one, CASES), strict=True))


@one_worker
@pytest.mark.parametrize(
    ("case", "status", "number", "said"),
    [
        ("ok", "ok", None, ""),
        ("cell_error", "cell_error", 3, "ZeroDivisionError: division by zero"),
        ("kernel_died", "kernel_died", 2, "the kernel was killed; mostly that is a lack of memory"),
        ("timeout", "timeout", 2, "longer than 30 seconds"),
        ("exit", "no_results", 2, "a cell ended the notebook (SystemExit: 0)"),
        ("missing", "no_results", 2, "the notebook ran to its end, but it wrote no results.json"),
        ("no_kernel", "kernel_died", None, "the kernel did not start: NoSuchKernel"),
    ],
)
def test_endings(
    runs: dict[str, RunStatus], root: Path, case: str, status: str, number: int | None, said: str
) -> None:
    run = runs[case]
    assert (run.status, run.cell.number if run.cell else None) == (status, number), run
    assert said in run.error and bool(said) == bool(run.error)
    assert RunStatus.model_validate_json((root / case / "status.json").read_text()) == run
    assert (root / case / "results.json").exists() == (status == "ok")


@pytest.mark.parametrize(
    ("status", "exits", "record", "judged", "said"),
    [
        ("ok", True, RECORD, "ok", ""),  # sys.exit(0) after the record
        ("cell_error", True, RECORD, "cell_error", "SystemExit: 3"),
        ("cell_error", True, None, "no_results", "a cell ended the notebook (SystemExit: 3)"),
        ("cell_error", False, RECORD, "cell_error", "SystemExit: 3"),
        ("ok", False, RECORD | {"headline": "f1"}, "no_results", "not a valid record: headline 'f1' is none of"),
        ("ok", False, {}, "no_results", "results.json is not a valid record: recipe: Field required"),
    ],
)
def test_judgement(
    tmp_path: Path, status: str, exits: bool, record: dict[str, Any] | None, judged: str, said: str
) -> None:
    if record is not None:
        (tmp_path / "results.json").write_text(json.dumps(record))
    outcome = {"status": status, "error": "SystemExit: 3", "exit": exits}
    found, error = batch._judge(tmp_path, outcome, "")
    assert found == judged and said in error and bool(said) == bool(error)
    assert batch._judge(tmp_path, None, "Bus error")[0] == "kernel_died"


@one_worker
def test_failed_cell_is_named(runs: dict[str, RunStatus]) -> None:
    cell = runs["cell_error"].cell
    assert cell and (cell.id, cell.line) == ("part-1", "# a comment")


@one_worker
@pytest.mark.parametrize("case", ["kernel_died", "timeout"])
def test_nothing_is_left_running(runs: dict[str, RunStatus], root: Path, case: str) -> None:
    assert runs[case].status == case
    assert gone((root / case / "pids").read_text())


@one_worker
def test_executed_notebook(runs: dict[str, RunStatus], root: Path) -> None:
    assert runs["ok"].status == "ok"
    text = (root / "ok" / "executed.ipynb").read_text()
    assert "ok 7 0.5 ['a']" in text  # the working directory and the parameters
    assert not [place for place in (str(root), str(recipes.ROOT), sys.prefix) if place in text]
    assert runs["ok"].parameters == {"SEED": 7, "LEARNING_RATE": 0.5, "RANKS": ["a"]}
    assert len(runs["ok"].code_sha256) == 64


@one_worker
def test_progress(runs: dict[str, RunStatus], events: list[dict[str, Any]]) -> None:
    assert runs["ok"].status == "ok"
    cells = [e for e in events if e["kind"] == "cell"]
    assert [(e["number"], e["total"], e["heading"]) for e in cells] == [
        (1, 3, "A tiny recipe"),
        (2, 3, "Part 0"),
        (3, 3, "Part 1"),
    ]
    stages = [e for e in events if e["kind"] == "stage"]
    assert stages == [{"kind": "stage", "stage": "train", "event": "end", "seconds": 1}]


def test_one_run_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch.subprocess, "Popen", None)  # nothing may be started
    notebook = make(tmp_path / "n.ipynb", "pass")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("{}")
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(RequestError, match="another run is writing"):
        run_one(notebook, tmp_path / "out", {})
    assert (tmp_path / "out" / "results.json").exists()  # the other run's record is untouched
    with pytest.raises(RequestError, match="cannot be written"):
        run_one(notebook, notebook / "out", {})


def test_an_interrupt_is_recorded_and_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "_run_child", stop)
    with pytest.raises(KeyboardInterrupt):
        run_one(make(tmp_path / "n.ipynb", "pass"), tmp_path / "out", {})
    assert json.loads((tmp_path / "out" / "status.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(("faults", "status"), [(1, "ok"), (2, "kernel_died")])
def test_a_kernel_that_never_started_is_tried_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: int, status: str
) -> None:
    import papermill

    calls: list[str] = []

    def execute(path: str, *_: Any, **__: Any) -> Any:
        calls.append(path)
        if len(calls) <= faults:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return new_notebook()

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    monkeypatch.setattr(execution, "_end_with_parent", lambda _: None)
    request = {"notebook": "n.ipynb", "folder": str(tmp_path), "parameters": {}}
    (tmp_path / "request.json").write_text(json.dumps(request))
    execution.main(tmp_path)
    assert len(calls) == 2
    assert json.loads((tmp_path / "events.jsonl").read_text())["status"] == status


def test_tail_waits_for_whole_lines_and_starts_again(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    tail = batch.Tail(file, "stage")
    assert list(tail) == []
    file.write_text('{"a": 1}\nnonsense\n{"b": ')
    assert list(tail) == [{"kind": "stage", "a": 1}]
    with open(file, "a") as f:
        f.write("2}\n")
    assert list(tail) == [{"kind": "stage", "b": 2}]
    file.write_text('{"c": 3}\n')
    assert list(tail) == [{"kind": "stage", "c": 3}]


def test_end_run_spares_others() -> None:
    alive = threading.active_count()
    batch.end_run("a token that nobody has")
    assert threading.active_count() == alive and psutil.pid_exists(os.getpid())


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COOKBOOK_PROFILES", raising=False)
    return make(tmp_path / "n {x}.ipynb", "splits = data.load(DATA)")


def test_parameters_are_converted(notebook: Path) -> None:
    given = {"SEED": "3", "LEARNING_RATE": "2e-4", "INTERACTIVE": "yes", "RANKS": "a, b", "STEPS": "4"}
    expected = {"SEED": 3, "LEARNING_RATE": 0.0002, "INTERACTIVE": True, "RANKS": ["a", "b"], "STEPS": 4}
    values = check_parameters(notebook, given)
    assert values == expected and {type(v) for v in values.values()} == {int, float, bool, list}
    assert check_parameters(notebook, expected | {"LEARNING_RATE": 1})["LEARNING_RATE"] == 1.0
    assert check_parameters(notebook, {"RANKS": '["x,y"]', "INTERACTIVE": "0", "MODEL": "a/b"}) == {
        **{"RANKS": ["x,y"], "INTERACTIVE": False, "MODEL": "a/b"}
    }


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "SEED",
            "1.5",
            "SEED: '1.5' is not a valid int (every random choice follows from it); the default is 0",
        ),
        ("SEED", 1.0, "SEED: 1.0 is not a valid int"),
        ("SEED", True, "SEED: True is not a valid int"),
        ("SEED", "", "SEED: '' is not a valid int"),
        ("LEARNING_RATE", "inf", "LEARNING_RATE: 'inf' is not a valid float"),
        ("LEARNING_RATE", "fast", "LEARNING_RATE: 'fast' is not a valid float"),
        ("INTERACTIVE", "2", "INTERACTIVE: '2' is not a valid bool"),
        ("RANKS", '["a"', "RANKS: '[\"a\"' is not a valid list[str]"),
        ("STEPS", "x", "STEPS: 'x' is not a valid int"),
        ("PROFILE", 3, "PROFILE: 3 is not a valid str"),
        ("LERNING_RATE", "1", "LERNING_RATE: no such parameter; did you mean LEARNING_RATE?"),
        ("seed", "1", "seed: no such parameter; did you mean SEED?"),
        ("ZZ", "1", "ZZ: no such parameter; n {x}.ipynb has PROFILE, MODEL"),
        ("PROFILE", "cpuu", "PROFILE: there is no profile 'cpuu'; did you mean cpu"),
        ("MODEL", "./nowhere/model", "MODEL: ./nowhere/model: no such folder"),
        ("MODEL", ".", "MODEL: .: no config.json there"),
        ("MODEL", "smollm2-135m", "did you mean smollm2-135m-instruct"),
        ("DATA", "tickets.jsonl", "DATA: tickets.jsonl: no such file or folder"),
    ],
)
def test_bad_parameters_are_refused(notebook: Path, name: str, value: Any, said: str) -> None:
    with pytest.raises(RequestError) as error:
        check_parameters(notebook, {name: value})
    assert said in str(error.value)


def test_all_problems_in_one_message(notebook: Path) -> None:
    with pytest.raises(RequestError) as error:
        check_parameters(notebook, {"SEED": "x", "NOPE": "1", "PROFILE": "huge", "DATA": "gone.csv"})
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "SEED",
        "NOPE",
        "PROFILE",
        "DATA",
    ]


def test_data_is_read_beforehand(notebook: Path, tmp_path: Path) -> None:
    rows = [{"prompt": md5(bytes([n])).hexdigest(), "completion": f"answer {n}"} for n in range(40)]
    good = tmp_path / "good.jsonl"
    good.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check_parameters(notebook, {"DATA": "good.jsonl"}) == {"DATA": str(good)}
    bad = tmp_path / "bad.jsonl"
    bad.write_text(good.read_text() + "{oops\n")
    with pytest.raises(RequestError, match=r"DATA: bad.jsonl:41: invalid JSON"):
        check_parameters(notebook, {"DATA": "bad.jsonl"})
    other = make(tmp_path / "other.ipynb", "my_own_reader(DATA)")
    assert check_parameters(other, {"DATA": "bad.jsonl"}) == {"DATA": str(bad)}
    assert check_parameters(notebook, {"DATA": "owner/data"}) == {"DATA": "owner/data"}  # not fetched


def test_a_folder_of_data_sets_is_read_beforehand(tmp_path: Path) -> None:
    notebook = make(tmp_path / "n.ipynb", "{n: data.load(f) for n, f in data.parts(DATA).items()}")
    rows = [{"prompt": md5(bytes([n])).hexdigest(), "completion": f"answer {n}"} for n in range(40)]
    for name in ("sales", "legal", ".hidden"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check_parameters(notebook, {"DATA": str(tmp_path / "all")}) == {"DATA": str(tmp_path / "all")}
    for other, said in {"all/legal": "two or more; there is none", "n.ipynb": "there is no folder"}.items():
        with pytest.raises(RequestError, match=said):
            check_parameters(notebook, {"DATA": str(tmp_path / other)})
    (tmp_path / "all" / "legal" / "train.jsonl").rename(tmp_path / "all" / "legal" / "test.jsonl")
    with pytest.raises(RequestError, match="legal: no training file; add train.jsonl"):
        check_parameters(notebook, {"DATA": str(tmp_path / "all")})
    (tmp_path / "all" / "legal").rename(tmp_path / "all" / "le.gal")
    with pytest.raises(RequestError, match=r"rename le\.gal: only letters, digits"):
        check_parameters(notebook, {"DATA": str(tmp_path / "all")})


def test_paths_become_absolute(notebook: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    values = check_parameters(notebook, {"MODEL": "model", "OUTPUT_DIR": "out", "PROFILE": "smoke"})
    expected = {"MODEL": str(tmp_path / "model"), "OUTPUT_DIR": str(tmp_path / "out"), "PROFILE": "smoke"}
    assert values == expected


def test_adapter_is_looked_at_before_the_kernel_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook, config = find("05"), tmp_path / "model" / "adapter_config.json"
    config.parent.mkdir()
    with pytest.raises(RequestError, match="ADAPTER: model: no adapter_config.json there"):
        check_parameters(notebook, {"ADAPTER": "model"})
    config.write_text('{"peft_type": "IA3"}')
    with pytest.raises(RequestError, match="an adapter of type IA3; give a LoRA adapter"):
        check_parameters(notebook, {"ADAPTER": "model"})
    config.write_text('{"peft_type": "LORA"}')
    assert check_parameters(notebook, {"ADAPTER": "model"}) == {"ADAPTER": str(config.parent)}


def test_not_a_notebook(tmp_path: Path) -> None:
    (tmp_path / "n.ipynb").write_text("{}")
    with pytest.raises(RequestError, match="not a readable notebook"):
        check_parameters(tmp_path / "n.ipynb", {})


def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "ROOT", tmp_path)
    for name in ("01_support_qlora", "02_support_dpo", "03_speech"):
        make(tmp_path / "notebooks" / f"{name}.ipynb", "pass")
    first = tmp_path / "notebooks" / "01_support_qlora.ipynb"
    assert [find(r) for r in ("1", "01", "01_support_qlora", "01-sup", str(first))] == [first] * 5
    titles = [(r.number, r.name, r.title) for r in recipes.recipes()]
    assert titles[2] == (3, "03_speech", "A tiny recipe")
    for wrong, said in [
        ("9", "there is no recipe '9'; known: 01_support_qlora, 02_support_dpo"),
        ("0", r"there is no recipe '0'"),
        ("03_speach", "did you mean 03_speech"),
        ("", "there is no recipe ''"),
        (str(first.with_name("03_spech.ipynb")), "no such notebook; did you mean 03_speech.ipynb"),
    ]:
        with pytest.raises(RequestError, match=said):
            find(wrong)
    make(tmp_path / "notebooks" / "03b_one_call.ipynb", "pass")
    assert find("3") == tmp_path / "notebooks" / "03_speech.ipynb", "3b is no second number 3"
    assert find("03b").stem == "03b_one_call"
    assert [r.number for r in recipes.recipes()] == [1, 2, 3, None]
    make(tmp_path / "notebooks" / "01_support_lora.ipynb", "pass")
    with pytest.raises(RequestError, match="may be 01_support_lora or 01_support_qlora"):
        find("01")
