"""A recipe that leaves the project: a folder that somebody else can install, run and change.

It holds the notebook, its sample data, the helper package (a wheel, or its source), pinned requirements, the
licence, and a README with the commands; a script of the recipe on request.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from cookbook import __version__, needs, opening, project, recipes, scripting
from cookbook.recipes import Parameter, RequestError

PACKAGE = Path(__file__).parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE")  # what a wheel is built from, beside the package
RUN_ONLY = ("papermill", "widgets", "execution", "ExecuteTime")  # metadata of one run
UNWANTED = shutil.ignore_patterns("__pycache__", ".*")


def copy(notebook: Path, dest: Path, *, vendor: bool = False, script: bool = False) -> list[Path]:
    """Copy a recipe into the folder `dest`, whole or not at all; returns what lies in it, relative and sorted.

    Args:
        notebook: the recipe, as `recipes.find` gives it.
        dest: a folder that does not exist yet, or is empty.
        vendor: put the package's source into the folder, not a wheel of it.
        script: add the recipe as a Python script.

    Raises:
        RequestError: the recipe cannot stand alone, or the folder cannot be made; nothing was left there.
    """
    import nbformat

    dest = _checked(dest)
    root = recipes.ROOT
    if missing := [name for name in SOURCES if not (root / name).is_file()]:
        raise RequestError(f"{root}: no {missing[0]} there: a recipe is copied out of a clone of the project")
    known = recipes.declared(notebook)
    recipe = nbformat.read(notebook, as_version=4)
    tags = [tag for cell in recipe.cells for tag in cell.metadata.get("tags", [])]
    if "injected-parameters" in tags:
        raise RequestError(f"{notebook}: the notebook of one run; copy the recipe that it was made from")
    if tags.count("parameters") != 1 or not known:
        raise RequestError(f"{notebook}: not one cell tagged `parameters`, so it is no recipe")
    needed = needs.of(recipe, notebook)
    samples = {name: _sample(name, notebook, dest) for name in needed.samples}
    pins = _pins(needed.modules)
    _clean(recipe, notebook, samples, vendor)
    code = scripting.script(recipe, notebook.stem, known) if script else None

    with _whole(dest) as folder:
        nbformat.write(recipe, folder / notebook.name)
        for name, source in samples.items():
            shutil.copytree(source, folder / "data_samples" / name, ignore=UNWANTED)
        shutil.copy(root / "LICENSE", folder)
        if vendor:
            shutil.copytree(PACKAGE, folder / "cookbook", ignore=UNWANTED)
        else:
            pins.append(f"./wheels/{_wheel(folder / 'wheels').name}")
        (folder / "requirements.txt").write_text("\n".join([*pins, ""]), encoding="utf-8")
        if code is not None:
            (folder / f"{notebook.stem}.py").write_text(code, encoding="utf-8")
        text = _readme(recipe, notebook.stem, known, list(samples), vendor, script)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return sorted(path.relative_to(dest) for path in dest.iterdir())


def _checked(dest: Path) -> Path:
    """The absolute folder, if it may be written: new or empty, and not among the project's own."""
    folder = dest.expanduser().resolve()
    for name in ("notebooks", "data_samples", "tests", PACKAGE.name):
        if folder.is_relative_to(recipes.ROOT / name):
            raise RequestError(f"{dest}: in the project's own {name}; choose a folder outside of it")
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not there.is_dir():
            raise RequestError(f"{dest}: {there.name} is a file; give a folder that does not exist yet, or is empty")
        if folder.is_dir() and any(folder.iterdir()):
            raise RequestError(f"{dest}: not empty; give a folder that does not exist yet, or an empty one")
    except OSError as error:
        raise RequestError(f"{dest}: cannot be read ({error.strerror}); choose another") from error
    return folder


def _sample(name: str, notebook: Path, dest: Path) -> Path:
    from cookbook import data

    try:
        folder = data.sample(name, notebook.parent)
    except data.DataError as error:
        raise RequestError(f"{notebook.name}: {error}") from error
    if dest.is_relative_to(folder.resolve()):
        raise RequestError(f"{dest}: in the data that are to be copied; choose a folder outside of them")
    if not (folder / "README.md").is_file():
        raise RequestError(f"{folder}: no data card (README.md), and data without one are not passed on")
    return folder


@contextmanager
def _whole(dest: Path) -> Iterator[Path]:
    """A hidden folder on the same disk whose content becomes `dest` at the end; after a failure nothing is left."""
    base = next(folder for folder in (dest, *dest.parents) if folder.is_dir())
    work, moved = None, []
    try:
        work = Path(tempfile.mkdtemp(prefix=".cookbook-copy-", dir=base))
        (made := work / "made").mkdir()  # with the usual permissions, which mkdtemp does not give
        yield made
        if base == dest:  # it may be a mounted disk or the shell's own folder, which a rename would replace
            for path in list(made.iterdir()):
                moved.append(path.rename(dest / path.name))
        else:
            dest.parent.mkdir(parents=True, exist_ok=True)
            made.rename(dest)
    except BaseException as error:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if isinstance(error, OSError):
            why = error.strerror or str(error)  # shutil.Error has only a list of what failed
            raise RequestError(f"{dest}: cannot be written ({why[:300]}); nothing was left there") from error
        raise
    finally:
        if work:
            shutil.rmtree(work, ignore_errors=True)


def _pins(modules: tuple[str, ...]) -> list[str]:
    """`name==version` of the project's dependencies as installed here, and of what else the notebook imports."""
    lines = tomllib.loads((recipes.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    wanted = {canonicalize_name((r := Requirement(line)).name): r for line in lines}
    owners = importlib.metadata.packages_distributions()
    for module in modules:
        names = {canonicalize_name(name) for name in owners.get(module, [])}
        if names and not names & wanted.keys():
            wanted |= {name: Requirement(name) for name in names}
    pins, missing = [], []
    for name, requirement in sorted(wanted.items()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            pins.append(str(requirement))  # not for this system: no version was tried
            continue
        if not (found := project.installed(name)):
            missing.append(name)
            continue
        version = Version(found).public  # a local part such as +cpu is on no index
        requirement.specifier = SpecifierSet(f"=={version}")
        pins.append(str(requirement))
    if missing:
        raise RequestError(f"not installed here, so that no version can be pinned: {', '.join(missing)}")
    return pins


def _wheel(folder: Path) -> Path:
    """Build the package's wheel into `folder`, from a copy of its sources: a build leaves files beside them."""
    with tempfile.TemporaryDirectory(prefix="cookbook-wheel-") as work:
        for name in SOURCES:
            shutil.copy(recipes.ROOT / name, work)
        shutil.copytree(PACKAGE, Path(work, PACKAGE.name), ignore=UNWANTED)
        wanted = tomllib.loads(Path(work, "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-input", "--disable-pip-version-check"]
        command += ["--no-build-isolation"] * all(_installed(Requirement(line)) for line in wanted)
        done = subprocess.run(
            [*command, "-w", str(folder), "."], cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = "\n".join(f"  {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-5:])
        said = re.sub(r"//[^/\s@]+@", "//***@", said)  # an index may carry credentials in its address
        raise RequestError(
            f"the package's wheel could not be built. pip said:\n{said}\n"
            f"Install what builds it ({', '.join(wanted)}), or use --vendor, which copies the source."
        )
    return wheels[0]


def _installed(requirement: Requirement) -> bool:
    found = project.installed(requirement.name)
    return bool(found) and requirement.specifier.contains(found, prereleases=True)


def _clean(recipe: Any, notebook: Path, samples: Mapping[str, Path], vendor: bool) -> None:
    """Take one run's metadata away, and let links and commands in the text lead where they lead in the copy."""
    for part in (recipe, *recipe.cells):
        part.metadata = {k: v for k, v in part.metadata.items() if k not in RUN_ONLY}
    opening.furnish(recipe, notebook.name, "")  # badges and setup cell would lead back to the project's repository
    number = re.match(r"\d+", notebook.stem)

    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        place = (notebook.parent / target).resolve()
        for name, folder in samples.items():
            if place.is_relative_to(folder.resolve()):
                return f"[{text}](data_samples/{name}/{place.relative_to(folder.resolve()).as_posix()})"
        return f"recipe {text}" if re.fullmatch(r"\d+\w?", text) else text  # another notebook, which is not here

    def command(found: re.Match[str]) -> str:
        word = found[1]
        same = number and word.isdecimal() and int(word) == int(number[0])
        return f"{_launcher(vendor)} {notebook.name}" if same or notebook.stem.startswith(word) else found[0]

    for cell in recipe.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)\s]+)\)", link, cell.source)
            text = re.sub(r"\bcookbook run ([\w-]+)(?![\w.])", command, text)
            cell.source = text.replace(f"papermill notebooks/{notebook.name}", f"papermill {notebook.name}")


def _launcher(vendor: bool) -> str:
    return "python -m cookbook run" if vendor else "cookbook run"


def _readme(
    recipe: Any, name: str, known: Mapping[str, Parameter], samples: list[str], vendor: bool, script: bool
) -> str:
    """What the recipe is, how to install and run it, its parameters, and how to use other data."""
    first = next((cell.source for cell in recipe.cells if cell.cell_type == "markdown"), "").strip()
    title = recipes.heading(first) or name
    about = next((part for part in first.split("\n\n") if part.strip() and not part.startswith("#")), "")
    run, profile = f"{_launcher(vendor)} {name}.ipynb", " -p PROFILE cpu" * ("PROFILE" in known)
    lines = [f"# {title}", "", about, ""]
    lines += [
        f"The recipe `{name}` of the fine-tuning cookbook {__version__}, copied to be run and changed here.",
        "",
    ]
    lines += ["```", "pip install -r requirements.txt", run, "```", ""]
    lines += [
        "Give both commands in this folder, in an environment of its own. The versions in `requirements.txt`, and "
        f"Python {platform.python_version()}, are those that the copy was made with. On Linux the index gives torch "
        "with CUDA; for a CPU alone, install that version first with the command that pytorch.org shows. Models are "
        "fetched at first use and kept. A run leaves `executed.ipynb`, `results.json` and `model/` in "
        f"`runs/{name}`.",
        "",
        "Other ways to run it:",
        "",
        "```",
        f"jupyter lab {name}.ipynb",
        f"papermill {name}.ipynb out.ipynb{profile}",
    ]
    if script:
        option = profile.replace(" -p PROFILE", " --profile")
        lines += [f"python {name}.py{option}", f"accelerate launch {name}.py{option}", f"python {name}.py --help"]
    lines += ["```", "", "## What is here", "", "| | |", "| --- | --- |"]
    lines += [f"| `{name}.ipynb` | the notebook, with the outputs of a run |"]
    lines += [f"| `{name}.py` | the same as a script; figures become files in the run's folder |"] * script
    lines += [f"| [data_samples/{s}](data_samples/{s}/README.md) | sample data and their card |" for s in samples]
    helper = "`cookbook/` | the package that the notebook imports, in source"
    lines += [f"| {helper} |" if vendor else "| `wheels/` | the package `cookbook` that the notebook imports |"]
    lines += ["", "## Parameters", "", f"`{run} -p NAME VALUE`, with `-p` for each.", ""]
    lines += ["| name | type | default | |", "| --- | --- | --- | --- |"]
    for parameter, (kind, default, told) in known.items():
        told = told.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{parameter}` | {kind} | `{default!r}` | {told} |")
    if "DATA" in known:
        lines += ["", "## Your own data", "", "```", f"{run} -p DATA path/to/your_data", "```", ""]
        lines += [
            f"`DATA`: {known['DATA'][2]}. What would spoil a run is refused, with file and line, before it starts."
        ]
        lines += ["The columns of the sample are the pattern; its card explains them."] * bool(samples)
    lines += [
        "",
        "## Licence",
        "",
        "[Apache-2.0](LICENSE). Models and data keep their own licences; cards name them.",
    ]
    return "\n".join(lines) + "\n"
