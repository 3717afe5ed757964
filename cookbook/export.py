"""Write what a recipe trains on, or the user's own data, in the form that another tool reads.

The split, the checks and the mixture are the recipe's own (`cookbook.training_sets`); test rows go into a file of
their own, or stay here where the tool has no place for them. The same request writes the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cookbook.export_formats import FORMATS, RANKING, SHAREGPT, Format, fault, limits
from cookbook.recipes import RequestError, find
from cookbook.results import write_text

if TYPE_CHECKING:
    from cookbook.training_sets import TrainingSet


def export(what: str, tool: str, folder: Path | None, given: Mapping[str, Any]) -> tuple[Path, list[str]]:
    """Write the training sets of a recipe, or of the user's data, for a tool.

    Args:
        what: a recipe (number, name, path of a notebook), or data (file, folder or Hub id).
        tool: a key of `FORMATS`.
        folder: where to; None: `runs/<recipe>-<tool>`.
        given: the recipe's parameters as the command line gives them; for data alone those of `PLAIN`.

    Returns:
        The folder, and what went where, one remark a line.

    Raises:
        RequestError: nothing was written; the message says why.
    """
    if tool not in FORMATS:
        near = get_close_matches(tool.casefold(), FORMATS, n=1)
        raise RequestError(f"--format {tool}: unknown{f'; did you mean {near[0]}' if near else ''}: {known()}")
    notebook = recipe_of(what)
    folder = folder or place(notebook.stem if notebook else Path(what).stem, tool)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder}: is there already; name an empty or a new folder with --output-dir")
    sets = _read(what, notebook, given)
    files, remarks = render(sets, tool)
    facts = {
        "data": [
            {"name": s.name, "source": s.source, "licence": s.licence, "fingerprint": s.fingerprint} for s in sets
        ],
        "format": tool,
        "recipe": notebook.stem if notebook else "",
        "rows": {name: len(rows) for name, (rows, _) in files.items()},
    }
    contents = {name: data for name, (_, data) in files.items()} | {"export.json": _json(facts)}
    if tool == "llama-factory":
        contents["dataset_info.json"] = _json(_dataset_info(sets))
    try:
        _write(contents, folder)
    except OSError as error:
        raise RequestError(f"{folder}: cannot be written: {error.strerror or error}") from error
    lines = [f"{len(rows):6d} rows  {name}" for name, (rows, _) in files.items()]
    return folder, lines + remarks


def known() -> str:
    return f"choose from {', '.join(FORMATS)}"


def place(stem: str, tool: str) -> Path:
    """Where the files go, and where `export-config` looks for them, if nobody says otherwise."""
    return Path("runs") / f"{stem}-{tool}"


def recipe_of(what: str) -> Path | None:
    """The notebook that is meant, or None if it is data.

    Raises:
        RequestError: neither.
    """
    path = Path(what).expanduser()
    if path.is_file() and path.suffix != ".ipynb":
        return None
    try:
        return find(what)
    except RequestError as error:
        if path.exists() or (what.count("/") == 1 and not path.parent.exists()):
            return None
        raise RequestError(f"{error}; nor is there a file or folder of data of that name") from None


def _read(what: str, notebook: Path | None, given: Mapping[str, Any]) -> list[TrainingSet]:
    from cookbook import training_sets
    from cookbook.assets import AssetError

    try:
        return training_sets.of_recipe(notebook, given) if notebook else training_sets.of_data(what, given)
    except (ValueError, OSError, AssetError) as error:  # DataError, LeakageError and ModelError are ValueErrors
        raise error if isinstance(error, RequestError) else RequestError(str(error)) from error


def render(sets: list[TrainingSet], tool: str) -> tuple[dict[str, tuple[list[Any], bytes]], list[str]]:
    """Every file's records and bytes, by its name in the folder, and the remarks; nothing is written.

    Raises:
        RequestError: the tool has no form for these rows.
    """
    form, remarks = FORMATS[tool], []
    files: dict[str, tuple[list[Any], bytes]] = {}
    for one in sets:
        label = f"{one.name}: " * bool(one.name)
        forms = form.sft if one.kind == "sft" else form.preference
        if not forms:
            able = ", ".join(name for name, other in FORMATS.items() if other.preference)
            raise RequestError(f"{tool} has no form for preference pairs; {able} have one")
        _check(one, tool, form)
        remarks += [label + remark for remark in one.report]
        for branch, make in forms.items():
            records = {split: [make(row) for row in rows] for split, rows in one.rows.items() if rows}
            if any(record is None for kept in records.values() for record in kept):
                remarks.append(f"{label}{branch} is left out: rows with several turns have no such form")
                continue
            for split, kept in records.items():
                if split in form.places:
                    name = "_".join(filter(None, [one.name, form.places[split]])) + f".{form.suffix}"
                    files["/".join(filter(None, [branch, name]))] = kept, _bytes(kept, form.suffix)
        held = {split: len(rows) for split, rows in one.rows.items() if rows and split not in form.places}
        remarks += [
            f"{label}{n} {split} rows are kept back: {tool} has no place for them" for split, n in held.items()
        ]
        remarks += [f"{label}limit: {remark}" for remark in limits(tool, one.rows["train"])]
        if one.in_order:
            remarks.append(f"{label}train for one epoch and do not shuffle: passes and order are in the file")
    return files, remarks


def _check(one: TrainingSet, tool: str, form: Format) -> None:
    faults = [
        f"{row['source']}: {why}"
        for rows in one.rows.values()
        for row in rows
        if (why := fault(row, form.alternating))
    ]
    if faults:
        more = [f"... and {len(faults) - 5} more"] * (len(faults) > 5)
        raise RequestError("\n  ".join([f"{len(faults)} rows cannot be written for {tool}", *faults[:5], *more]))


def _dataset_info(sets: list[TrainingSet]) -> dict[str, Any]:
    """LLaMA-Factory's index: the name of each data set, as `export-config` writes it, its file and its form."""
    found = {}
    for one in sets:
        for split in (s for s, rows in one.rows.items() if rows):
            name = "_".join(filter(None, [one.name, split]))
            found[name] = {"file_name": f"{name}.json"} | (SHAREGPT if one.kind == "sft" else RANKING)
    return found


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def _bytes(records: list[Any], suffix: str) -> bytes:
    if suffix == "json":
        return _json(records)
    return "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in records).encode()


def _write(contents: Mapping[str, bytes], folder: Path) -> None:
    """All files or none: they are written beside the folder, which then takes its name."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        for name, data in contents.items():
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        if folder.is_dir():
            folder.rmdir()  # only an empty one can be removed
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_new(file: Path, text: str) -> None:
    """Write a text file that is not there yet, whole or not at all.

    Raises:
        RequestError: it is there, or cannot be written.
    """
    if file.exists():
        raise RequestError(f"{file}: is there already; name a new file with --output")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except OSError as error:
        raise RequestError(f"{file}: cannot be written: {error.strerror or error}") from error
