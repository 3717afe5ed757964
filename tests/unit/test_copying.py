"""A copied recipe: what lies in the folder, what is refused, and that nothing half-made is left."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell
from packaging.requirements import Requirement
from test_batch import make

from cookbook import cli, copying, data, recipes, results
from cookbook.recipes import RequestError

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST = ROOT / "notebooks" / "01_customer_service_qlora.ipynb"
SCRIPT = """\
import pandas as pd
from IPython.display import HTML, Code, display
from cookbook import plots
from cookbook import results
given = results.parameters(globals())
run_dir = results.output_dir("tiny", OUTPUT_DIR)
live = display(plots.curve([1, 2], {"a": [0, 1]}, title="A curve", xlabel="x", ylabel="y"), display_id=True)
live.update(plots.curve([1, 9], {"a": [5, 1]}, title="Another", xlabel="x", ylabel="y"))
display(pd.DataFrame({"long": ["x" * 90], "other": [1]}), Code("code = 1"), [1, 2])
display(HTML("<b>bold</b>"))
import json
(run_dir / "given.json").write_text(json.dumps(given))"""


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(script: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COOKBOOK_")} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(script), *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipe 01 as it is copied by default, out of a notebook that still has the marks of a run."""
    work = tmp_path_factory.mktemp("copied")
    notebook = nbformat.read(FIRST, as_version=4)
    notebook.metadata["papermill"] = notebook.cells[1].metadata["execution"] = {"start_time": "yesterday"}
    (work / "notebooks").mkdir()
    (work / "data_samples").symlink_to(ROOT / "data_samples")
    nbformat.write(notebook, source := work / "notebooks" / FIRST.name)
    copying.copy(source, work / "made" / "copy")
    return work / "made" / "copy"


def test_contents(copied: Path) -> None:
    name, sample = FIRST.name, ROOT / "data_samples" / "customer_service"
    there = {p.name for p in copied.iterdir()}
    assert there == {name, "data_samples", "wheels", "requirements.txt", "README.md", "LICENSE"}
    assert [p.name for p in copied.parent.iterdir()] == ["copy"]
    assert files(copied / "data_samples") == {f"customer_service/{k}": v for k, v in files(sample).items()}
    assert (copied / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    if os.name == "posix":
        (plain := copied.parent / "plain").mkdir()
        assert copied.stat().st_mode == plain.stat().st_mode  # others may read it where they may usually
        plain.rmdir()


def test_notebook_is_the_same_without_marks_of_a_run(copied: Path) -> None:
    before, after = (nbformat.read(p / FIRST.name, as_version=4) for p in (FIRST.parent, copied))
    nbformat.validate(after)
    assert "papermill" not in after.metadata and not after.cells[1].metadata
    pairs = list(zip(before.cells, after.cells, strict=True))
    assert [b for b, a in pairs if b.cell_type == "code" and b != a] == []
    assert any(a.get("outputs") for _, a in pairs)
    text = "\n".join(a.source for _, a in pairs if a.cell_type == "markdown")
    assert f"`cookbook run {FIRST.name} -p LORA_RANK 4`" in text and "cookbook run 01 " not in text
    assert f"`papermill {FIRST.name} out.ipynb" in text


def test_requirements_are_what_is_installed(copied: Path) -> None:
    *pins, wheel = (copied / "requirements.txt").read_text().splitlines()
    named = {Requirement(pin).name: Requirement(pin) for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {Requirement(line).name for line in project["dependencies"]} <= named.keys()
    for name, pin in named.items():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier))
        assert pin.specifier.contains(importlib.metadata.version(name), prereleases=True)
    assert (copied / wheel).is_file()
    assert wheel.startswith("./wheels/")


def test_wheel_is_the_whole_package(copied: Path) -> None:
    with zipfile.ZipFile(next((copied / "wheels").glob("*.whl"))) as wheel:
        packed = {n.removeprefix("cookbook/"): wheel.read(n) for n in wheel.namelist() if n.startswith("cookbook/")}
    source = {n: c for n, c in files(ROOT / "cookbook").items() if "__pycache__" not in n}
    assert packed == source and "profiles.toml" in packed


def test_readme(copied: Path) -> None:
    text = (copied / "README.md").read_text()
    assert text.startswith("# 01 · Customer service with QLoRA + SFT\n\nTeach a small language model")
    assert f"```\npip install -r requirements.txt\ncookbook run {FIRST.name}\n```" in text
    for name, (kind, default, told) in recipes.declared(FIRST).items():
        assert f"| `{name}` | {kind} | `{default!r}` | {told.replace('<', '&lt;')} |" in text
    assert f"cookbook run {FIRST.name} -p DATA" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_stands_alone(path: Path, tmp_path: Path) -> None:
    dest = tmp_path / "copy"
    if nbformat.read(path, as_version=4).metadata["cookbook"].get("kind") in ("guide", "comparison"):
        with pytest.raises(RequestError, match="works on other recipes, which are not copied"):
            copying.copy(path, dest)
        return
    names = copying.copy(path, dest, vendor=True, script=True)
    assert Path("wheels") not in names and ".whl" not in (dest / "requirements.txt").read_text()
    assert "python -m cookbook run" in (dest / "README.md").read_text()
    source = {n: c for n, c in files(ROOT / "cookbook").items() if "__pycache__" not in n}
    assert files(dest / "cookbook") == source

    cells = nbformat.read(dest / path.name, as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    for text in [*texts, (dest / "README.md").read_text(encoding="utf-8")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text):
            assert (dest / target).is_file(), target
    for sample in re.findall(r"data\.sample\(\\\"(\w+)", path.read_text()):
        assert (dest / "data_samples" / sample / "README.md").is_file()

    said = run(dest / f"{path.stem}.py", "--help", cwd=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    for name, (_, default, told) in recipes.declared(path).items():
        option = f"--{name.lower().replace('_', '-')}"
        assert re.search(rf"^  {option}\b", said.stdout, re.MULTILINE), option
        assert " ".join(told.split()) in " ".join(said.stdout.split())
        assert default in ("", []) or f"(default: {default})" in " ".join(said.stdout.split())


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny recipe's script; its helper is the project's."""
    work = tmp_path_factory.mktemp("script")
    notebook = make(work / "07_tiny.ipynb", SCRIPT)
    copying.copy(notebook, work / "copy", vendor=True, script=True)
    return work / "copy" / "07_tiny.py"


def test_script_runs_without_a_notebook(script: Path, tmp_path: Path) -> None:
    words = ["--seed", "-3", "--learning-rate", "1e-5", "--ranks", "4", "2", "--steps", "9", "--output-dir", "a b"]
    done = run(script, "--", *words, "--no-interactive", cwd=tmp_path)  # as `accelerate launch` passes it on
    assert (done.returncode, done.stderr) == (0, "")
    given = json.loads((tmp_path / "a b" / "given.json").read_text())
    assert given == {
        **{"PROFILE": "auto", "MODEL": "", "DATA": "", "OUTPUT_DIR": "", "SEED": -3, "LEARNING_RATE": 1e-5},
        **{"INTERACTIVE": False, "RANKS": ["4", "2"], "STEPS": 9},
    }
    figures = tmp_path / "a b" / "figures"
    assert sorted(p.name for p in figures.iterdir()) == ["01-a-curve.png", "02-html.html"]
    assert "<b>bold</b>" in (figures / "02-html.html").read_text()
    assert "x" * 90 in done.stdout and "code = 1\n[1, 2]\n" in done.stdout
    assert "[figure] figures/01-a-curve.png\n" in done.stdout and "Figure(" not in done.stdout


def test_figure_drawn_again_is_in_its_file(script: Path, tmp_path: Path) -> None:
    from cookbook import plots, scripting

    def drawn(last: int) -> Any:
        return plots.curve([1, last], {"a": [0, 1]}, title="T", xlabel="x", ylabel="y")

    show = scripting.Shown(tmp_path / "figures")
    handle = show(drawn(2), display_id=True)
    first = (tmp_path / "figures" / "01-t.png").read_bytes()
    handle.update(drawn(50))
    assert list(files(tmp_path / "figures")) == ["01-t.png"]
    assert (tmp_path / "figures" / "01-t.png").read_bytes() != first
    (tmp_path / "figures" / "mine.png").write_bytes(b"")
    scripting.Shown(tmp_path / "figures")  # the next run clears what the last one drew, and that alone
    assert list(files(tmp_path / "figures")) == ["mine.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "1.5"], "argument --seed: invalid int value: '1.5'"),
        (["--learning-rate", "nan"], "LEARNING_RATE: nan is not a valid float; the default is 0.0002"),
        (["--profile", "cpux"], "PROFILE: there is no profile 'cpux'; did you mean cpu"),
        (["--data", "nowhere.jsonl"], "DATA: nowhere.jsonl: no such file or folder"),
        (["--interactive"], "INTERACTIVE: widgets need a notebook"),
        (["--see", "1"], "unrecognized arguments: --see 1"),
        (["--output-dir", "taken/run"], "taken/run: cannot be written"),
    ],
)
def test_script_refuses(script: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "taken").write_text("")
    done = run(script, *words, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_script_is_not_run_by_an_import(script: Path, tmp_path: Path) -> None:
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__mp_main__')"  # as a spawned worker does
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "ImportError: this file is run, not imported" in done.stderr and not list(tmp_path.iterdir())


def refused(notebook: Path, dest: Path, **how: bool) -> str:
    with pytest.raises(RequestError) as error:
        copying.copy(notebook, dest, **how)
    return str(error.value)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("from cookbook import batch\nbatch.find('01')", "cookbook.batch works on other recipes"),
        ("def f():\n    from cookbook.recipes import find", "cookbook.recipes works on other recipes"),
        ("import cookbook.publish", "cookbook.publish works on other recipes"),
        ("path = f'{here}/data_samples/x.jsonl'", "is a place of the project that is not copied"),
        ("papermill = ['papermill', 'notebooks/01_x.ipynb']", "is a place of the project"),
        ("from cookbook import data\nname = 'x'\ndata.sample(name)", "names no sample by a plain text"),
        ("from cookbook import data\ndata.sample('../data_samples')", "names no sample by a plain text"),
        ("from cookbook import data\ndata.sample('no_such')", "no sample data 'no_such'; there are: brand_voice"),
        ("from cookbook.data import sample", "write data.sample"),
        ("from cookbook import data, no_such_module", "this version of the package has no cookbook.no_such_module"),
        ("import no_such_package", "imports no_such_package, which is not installed here"),
        ("import beside", "imports beside, which lies beside the notebook"),
        ("x = = 1", "is no Python: x = = 1"),
    ],
)
def test_what_a_copy_cannot_hold(tmp_path: Path, cell: str, said: str) -> None:
    notebook = make(tmp_path / "n.ipynb", "pass", cell)
    (tmp_path / "beside.py").write_text("")
    text = refused(notebook, tmp_path / "copy")
    assert said in text and "cell 6 (part-1)" in text or "no_such'" in said and said in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["beside.py", "n.ipynb"]


def test_what_is_guarded_or_pinned(tmp_path: Path) -> None:
    cells = "import pytest", "try:\n    import no_such_package\nexcept ImportError:\n    pass", "%matplotlib inline"
    notebook = make(tmp_path / "n.ipynb", *cells)
    copying.copy(notebook, tmp_path / "copy", vendor=True)  # a magic is well in a notebook
    pins = (tmp_path / "copy" / "requirements.txt").read_text().splitlines()
    assert f"pytest=={importlib.metadata.version('pytest')}" in pins  # imported, and no dependency of the project


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("%matplotlib inline", "no plain Python, so it cannot stand in a script: %matplotlib inline"),
        ("get_ipython().system('ls')", "get_ipython() needs a notebook"),
        ("await anything()", "'await' outside function"),
        ("from __future__ import annotations", "from __future__ imports must occur at the beginning"),
    ],
)
def test_what_no_script_can_hold(tmp_path: Path, cell: str, said: str) -> None:
    assert said in refused(make(tmp_path / "n.ipynb", cell), tmp_path / "copy", script=True)
    assert [p.name for p in tmp_path.iterdir()] == ["n.ipynb"]


def test_parameters_cell_of_a_script(tmp_path: Path) -> None:
    notebook = nbformat.read(make(tmp_path / "n.ipynb", "pass"), as_version=4)
    notebook.cells[1].source = f"import os\n{notebook.cells[1].source}"
    nbformat.write(notebook, tmp_path / "n.ipynb")
    assert "no option can be made of: import os" in refused(tmp_path / "n.ipynb", tmp_path / "copy", script=True)
    notebook.cells[1].source = "TABLE: dict = {}"
    nbformat.write(notebook, tmp_path / "n.ipynb")
    assert "no option can be made of: TABLE" in refused(tmp_path / "n.ipynb", tmp_path / "copy", script=True)


def test_what_is_no_recipe(tmp_path: Path) -> None:
    dest = tmp_path / "copy"
    notebook = nbformat.read(make(tmp_path / "n.ipynb", "pass"), as_version=4)
    notebook.cells[1].metadata.tags = []
    nbformat.write(notebook, tmp_path / "plain.ipynb")
    assert "not one cell tagged `parameters`" in refused(tmp_path / "plain.ipynb", dest)
    notebook.cells[1].metadata.tags = ["parameters"]
    notebook.cells[3].metadata.tags = ["injected-parameters"]
    nbformat.write(notebook, tmp_path / "run.ipynb")
    assert "the notebook of one run" in refused(tmp_path / "run.ipynb", dest)
    (tmp_path / "bad.ipynb").write_text("{")
    assert "not a readable notebook" in refused(tmp_path / "bad.ipynb", dest)
    assert not dest.exists()


def test_where_no_copy_goes(tmp_path: Path) -> None:
    notebook = make(tmp_path / "n.ipynb", "pass")
    assert "not empty" in refused(notebook, tmp_path)
    assert "n.ipynb is a file" in refused(notebook, notebook)
    assert "n.ipynb is a file" in refused(notebook, notebook / "below")
    for name in ("notebooks", "data_samples", "cookbook"):
        assert f"in the project's own {name}" in refused(notebook, ROOT / name / "copy")
        assert not (ROOT / name / "copy").exists()
    (tmp_path / "link").symlink_to(ROOT / "notebooks")
    assert "in the project's own notebooks" in refused(notebook, tmp_path / "link" / "copy")


def test_data_without_a_card_or_around_the_copy(tmp_path: Path) -> None:
    notebook = make(tmp_path / "n.ipynb", "from cookbook import data\ndata.sample('mine')")
    (mine := tmp_path / "data_samples" / "mine").mkdir(parents=True)
    assert "mine: no data card (README.md)" in refused(notebook, tmp_path / "copy", vendor=True)
    (mine / "README.md").write_text("Licence: mine")
    assert "in the data that are to be copied" in refused(notebook, mine / "copy", vendor=True)
    copying.copy(notebook, tmp_path / "copy", vendor=True)
    assert files(tmp_path / "copy" / "data_samples") == {"mine/README.md": b"Licence: mine"}
    make(tmp_path / "t.ipynb", "import pandas as pd\ndata = pd.DataFrame()\ndata.sample(frac=1)")  # a table's method
    copying.copy(tmp_path / "t.ipynb", tmp_path / "other", vendor=True)
    assert not (tmp_path / "other" / "data_samples").exists()


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = make(tmp_path / "n.ipynb", "pass")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.access(closed, os.W_OK):  # nothing is closed to the superuser

        def mkdtemp(*_: Any, **__: Any) -> str:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(closed))

        monkeypatch.setattr(copying.tempfile, "mkdtemp", mkdtemp)
    assert "closed/a/b: cannot be written (Permission denied)" in refused(notebook, closed / "a" / "b", vendor=True)
    assert not list(closed.iterdir())


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("where", ["copytree", "rename"])
def test_disk_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, there: bool) -> None:
    notebook, dest, called = make(tmp_path / "n.ipynb", "pass"), tmp_path / "copy", []
    owner = copying.shutil if where == "copytree" else Path
    real = getattr(owner, where)
    if there:
        dest.mkdir()

    def full(*given: Any, **more: Any) -> Any:
        called.append(given)
        if len(called) == (3 if where == "rename" and there else 1):  # after some were moved, where they are moved
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*given, **more)

    monkeypatch.setattr(owner, where, full)
    said = refused(notebook, dest, vendor=True)
    assert "cannot be written (No space left on device); nothing was left there" in said and called
    assert sorted(p.name for p in tmp_path.iterdir()) == (["copy"] if there else []) + ["n.ipynb"]
    assert not there or not list(dest.iterdir())


def test_into_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook, dest = make(tmp_path / "n.ipynb", "pass"), tmp_path / "copy"
    dest.mkdir()
    monkeypatch.chdir(dest)
    names = copying.copy(notebook, Path("."), vendor=True)
    assert sorted(os.listdir(".")) == [str(n) for n in names]  # this very folder, and nothing hidden in it
    assert "n.ipynb" in os.listdir(".")


def test_missing_build_back_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    broken = re.sub(
        r'requires = .*\nbuild-backend = ".*"', 'requires = []\nbuild-backend = "no_such_backend"', project
    )
    (tmp_path / "root").mkdir()
    for name in copying.SOURCES:
        (tmp_path / "root" / name).write_text(broken if name == "pyproject.toml" else "")
    monkeypatch.setattr(recipes, "ROOT", tmp_path / "root")
    said = refused(make(tmp_path / "n.ipynb", "pass"), tmp_path / "copy")
    assert "wheel could not be built" in said and "no_such_backend" in said and "--vendor" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n.ipynb", "root"]
    (tmp_path / "root" / "LICENSE").unlink()
    assert "no LICENSE there: a recipe is copied out of a clone" in refused(tmp_path / "n.ipynb", tmp_path / "copy")


def test_the_copys_data_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "data_samples" / "customer_service"
    mine.mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    assert data.sample("customer_service") == mine
    assert data.sample("brand_voice") == ROOT / "data_samples" / "brand_voice"
    monkeypatch.chdir("/")
    assert data.sample("customer_service") == ROOT / "data_samples" / "customer_service"
    assert data.sample("customer_service", tmp_path) == mine
    monkeypatch.setenv(results.RECIPE_VARIABLE, str(tmp_path))
    assert data.sample("customer_service") == mine


def test_links_to_what_is_not_there(tmp_path: Path) -> None:
    notebook = nbformat.read(make(tmp_path / "07b_n.ipynb", "pass"), as_version=4)
    text = (
        "see [01](01_x.ipynb), [that](../README.md#a), [web](https://example.org/a) and `cookbook run 07b -p SEED 1`"
    )
    notebook.cells.append(new_markdown_cell(f"{text}, `cookbook run 08`"))
    nbformat.write(notebook, tmp_path / "07b_n.ipynb")
    copying.copy(tmp_path / "07b_n.ipynb", tmp_path / "copy", vendor=True)
    last = nbformat.read(tmp_path / "copy" / "07b_n.ipynb", as_version=4).cells[-1].source
    assert last == (
        "see recipe 01, that, [web](https://example.org/a) and `python -m cookbook run 07b_n.ipynb -p SEED 1`, "
        "`cookbook run 08`"
    )


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["copy", *words])
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    assert call("77", "there")[::2] == (2, f"cookbook: {_unknown('77')}\n")
    make(tmp_path / "n.ipynb", "pass")
    code, out, err = call("n.ipynb", "there", "--vendor", "--script")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "there: LICENSE, README.md, cookbook, n.ipynb, n.py, requirements.txt"
    code, out, err = call("n.ipynb", "there")
    assert (code, out) == (2, "") and err.startswith("cookbook: there: not empty")


def _unknown(recipe: str) -> str:
    with pytest.raises(RequestError) as error:
        recipes.find(recipe)
    return str(error.value)
