"""Which recipes there are, and whether a request for one can be run: checked before any kernel starts."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter

from cookbook import profiles
from cookbook.project import ROOT

TYPES: dict[str, Any] = {
    "str": TypeAdapter(str),
    "int": TypeAdapter(int),
    "float": TypeAdapter(FiniteFloat),
    "bool": TypeAdapter(bool),
    "list[str]": TypeAdapter(list[str]),
    "list[int]": TypeAdapter(list[int]),
    "list[float]": TypeAdapter(list[FiniteFloat]),
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
Parameter = tuple[str, Any, str]  # its type as written, its default, its help text
CHEAP_BYTES = 20_000_000  # larger data is checked by the notebook alone


class RequestError(ValueError):
    """The request cannot be run as it is; no kernel was started. The message names every problem."""


@dataclass(frozen=True)
class Recipe:
    """A notebook of `notebooks/`: its number (None for 19b, say), its file's stem, its first heading."""

    number: int | None
    name: str
    path: Path
    title: str


def recipes() -> list[Recipe]:
    """The notebooks of the project, or else of `notebooks/` here, by name."""
    folder = next((base for base in (ROOT, Path.cwd()) if (base / "notebooks").is_dir()), ROOT) / "notebooks"
    found = []
    for path in sorted(folder.glob("*.ipynb")):
        number = re.match(r"(\d+)_", path.stem)
        found.append(Recipe(int(number[1]) if number else None, path.stem, path, _title(path)))
    return found


def find(recipe: str) -> Path:
    """The notebook meant by a number ("1", "01"), a name, the unique beginning of one, or a path.

    Raises:
        RequestError: none or several match.
    """
    path = Path(recipe).expanduser()
    if path.suffix == ".ipynb" or path.is_file():
        if path.is_file():
            return path.resolve()
        beside = [p.name for p in path.parent.glob("*.ipynb")]
        raise RequestError(f"{recipe}: no such notebook{_near(path.name, beside)}")
    known = recipes()
    names = [r.name for r in known]
    wanted = recipe.casefold().replace("-", "_")
    if recipe.isdecimal():
        matches = [r for r in known if r.number == int(recipe)]
    else:
        matches = [r for r in known if r.name.casefold() == wanted]
        matches = matches or [r for r in known if wanted and r.name.casefold().startswith(wanted)]
    if len(matches) == 1:
        return matches[0].path
    if matches:
        raise RequestError(f"{recipe!r} may be {' or '.join(r.name for r in matches)}; give the whole name")
    hint = _near(wanted, names) or (f"; known: {', '.join(names)}" if names else "; found no notebooks here")
    raise RequestError(f"there is no recipe {recipe!r}{hint}")


def heading(markdown: str) -> str:
    """The first heading in a markdown cell, without its signs; empty if there is none."""
    found = re.search(r"^#{1,6}\s+(.+?)\s*#*$", markdown, re.MULTILINE)
    return found[1] if found else ""


def literal(path: Path | str) -> str:
    """A path that Papermill, which fills {names} in paths with parameters, takes as it is."""
    return str(path).replace("{", "{{").replace("}", "}}")


def check_parameters(
    notebook: Path, given: Mapping[str, Any], known: Mapping[str, Parameter] | None = None
) -> dict[str, Any]:
    """The given parameters, converted to the types that the notebook declares, or that `known` names.

    Text is converted (the command line gives nothing else; a list as JSON or with commas), other values must
    have the declared type; numbers must be finite. PROFILE must be known, MODEL, DATA, GENERAL and ADAPTER must be
    there and readable if they are files or folders; their relative paths, and that of OUTPUT_DIR, become absolute.

    Raises:
        RequestError: naming every problem.
    """
    known, problems = declared(notebook) if known is None else known, []
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            near = _near(name.upper(), known) or f"; {Path(notebook).name} has {', '.join(known) or 'none'}"
            problems.append(f"{name}: no such parameter{near}")
            continue
        kind, default, help_text = known[name]
        try:
            values[name] = convert(kind, value)
        except (ValueError, KeyError):
            about = f" ({help_text})" if help_text else ""
            problems.append(f"{name}: {value!r} is not a valid {kind}{about}; the default is {default!r}")
    every = {name: default for name, (_, default, _) in known.items()} | values
    for name, check in (
        ("PROFILE", _profile),
        ("MODEL", _model),
        ("DATA", _data),
        ("GENERAL", _data),
        ("ADAPTER", _adapter),
        ("OUTPUT_DIR", _place),
    ):
        if name in known and isinstance(every[name], str) and (name in values or name == "PROFILE"):
            try:
                checked = check(every[name], every, Path(notebook))
                values |= {name: checked} if name in values else {}
            except (ValueError, OSError) as error:  # ProfileError and DataError are ValueErrors
                problems.append(f"{name}: {error}")
    if problems:
        raise RequestError("\n".join(problems))
    return values


def parameters(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a notebook: its defaults, and over them the given ones, checked as `check_parameters` does.

    Raises:
        RequestError: naming every problem.
    """
    checked = check_parameters(notebook, given)
    return {name: default for name, (_, default, _) in declared(notebook).items()} | checked


def declared(notebook: Path) -> dict[str, Parameter]:
    """Type, default and help of each parameter of a notebook, as Papermill sees them.

    Raises:
        RequestError: it is not a readable notebook.
    """
    path = Path(notebook)
    return dict(_inspect(path, path.stat().st_mtime_ns if path.exists() else 0))


@lru_cache(maxsize=16)
def _inspect(notebook: Path, _: int) -> dict[str, Parameter]:
    import papermill

    try:
        found = papermill.inspect_notebook(literal(notebook))
    except Exception as error:  # JSON, nbformat and jsonschema each raise their own
        raise RequestError(f"{notebook}: not a readable notebook ({type(error).__name__}: {error})") from error
    known: dict[str, Parameter] = {}
    for name, facts in found.items():
        default: Any = None
        with suppress(ValueError, SyntaxError):
            default = ast.literal_eval(facts["default"])
        kind = facts["inferred_type_name"].replace(" ", "")
        kind = type(default).__name__ if kind == "None" else kind
        known[name] = ("list[str]" if kind == "list" else kind, default, facts["help"])
    return known


def code_hash(cells: Iterable[Mapping[str, Any]]) -> str:
    """sha256 over the sources of the code cells: prose and outputs do not change what a notebook does.

    Nor does the cell tagged `setup`, which prepares a hosted machine and does nothing on any other.
    """
    counted = [c for c in cells if c["cell_type"] == "code" and "setup" not in c.get("metadata", {}).get("tags", [])]
    parts = ["".join(cell["source"]) for cell in counted]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def convert(kind: str, value: Any) -> Any:
    """A value in the type declared as `kind`: text is read, anything else must have that type already.

    Raises:
        ValueError: it is no such value.
    """
    if not isinstance(value, str):
        return TYPES[kind].validate_python(value, strict=True)
    if not kind.startswith("list"):
        return TYPES[kind].validate_python(value)
    text = value.strip()
    items = json.loads(text) if text.startswith("[") else [item.strip() for item in text.split(",") if item]
    return TYPES[kind].validate_python(items)


def _profile(name: str, *_: Any) -> str:
    profiles.available() if name == "auto" else profiles.load(name)
    return name


def _place(value: str, *_: Any) -> str:
    return os.path.abspath(os.path.expanduser(value)) if value else value


def _adapter(value: str, *_: Any) -> str:
    """The absolute path of a LoRA adapter's folder."""
    if not value:
        return value
    file = Path(value).expanduser() / "adapter_config.json"
    if not file.is_file():
        raise RequestError(f"{value}: no adapter_config.json there; give the model folder of a run of 01")
    kind = json.loads(file.read_text(encoding="utf-8")).get("peft_type")
    if kind != "LORA":
        raise RequestError(f"{value}: an adapter of type {kind}; give a LoRA adapter")
    return _place(value)


def _model(value: str, _: Mapping[str, Any], notebook: Path) -> str:
    """An absolute path if it is one; names of assets and Hub ids stay as they are (see `locating.resolve`)."""
    from cookbook.assets import names

    path = Path(value).expanduser()
    bundled = names("speech" if "speech.load(" in notebook.read_text(encoding="utf-8") else "model")
    if not value or value in bundled:
        return value
    if path.exists():
        if not (path / "config.json").is_file():
            raise RequestError(f"{value}: no config.json there; give a folder written by save_pretrained")
        return _place(value)
    near = _near(path.name, [p.name for p in path.parent.glob("*")] + bundled)
    if HUB_ID.fullmatch(value) and not value.startswith(".") and not near:
        return value
    raise RequestError(f"{value}: no such folder, no bundled model and no Hub id (owner/name){near}")


def _data(value: str, every: Mapping[str, Any], notebook: Path) -> str:
    """An absolute path, read once to refuse what the notebook would refuse; a Hub id stays as it is."""
    from cookbook import data

    path = Path(value).expanduser()
    hub = HUB_ID.fullmatch(value) and path.suffix.lower() not in data.SUFFIXES and not path.parent.exists()
    if not value or (hub and not path.exists()):
        return value
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    if sum(f.stat().st_size for f in files) >= CHEAP_BYTES:
        return _place(value)
    text = notebook.read_text(encoding="utf-8")
    sample = re.search(r"data\.sample\(\W+(\w+)", text)  # the one it loads first
    columns = every.get("TARGET_COLUMNS") or []
    columns = [c.strip() for c in columns.split(",")] if isinstance(columns, str) else columns
    stamp = tuple(sorted((str(f.absolute()), f.stat().st_mtime_ns) for f in files))
    fallback = data.sample(sample[1], notebook.resolve().parent) if sample else None
    _read_data(text, path, fallback, every.get("INPUT_COLUMN") or "", tuple(columns), stamp)
    return _place(value)


@lru_cache(maxsize=64)  # the runs of a sweep read the same data
def _read_data(
    notebook: str, path: Path, fallback: Path | None, column: str, columns: tuple[str, ...], _: Any
) -> None:
    """Read data the way the notebook does; its faults are raised. The last argument tells changed files apart."""
    from cookbook import data

    if "audio.load(" in notebook:
        importlib.import_module("cookbook.audio").load(path)
    elif "pairs.load(" in notebook:
        importlib.import_module("cookbook.pairs").load(path, fallback=fallback)
    elif "data.load(" in notebook or not path.exists():
        several = "data.parts(" in notebook
        for part in data.parts(path).values() if several else [path]:
            data.load(part, input_column=column, target_columns=list(columns), fallback=None if several else fallback)


def _near(word: str, options: Iterable[str]) -> str:
    close = get_close_matches(word, list(options), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _title(path: Path) -> str:
    with suppress(OSError, ValueError, AttributeError):
        for cell in json.loads(path.read_text(encoding="utf-8")).get("cells", []):
            if cell.get("cell_type") == "markdown" and (title := heading("".join(cell["source"]))):
                return title
    return ""
