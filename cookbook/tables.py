"""Read tables of any kind (JSONL, CSV, Parquet, Hub) and keep the place of each row for error messages."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


class DataError(ValueError):
    """The data cannot be used as it is; the message says what is wrong, where, and what to do."""


@dataclass
class Table:
    """The rows of one file with their line numbers, and the problems found in them so far."""

    name: str
    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def fault(self, line: int, text: str) -> None:
        self.problems.append((line, text))

    def stop(self) -> None:
        """Raise the problems so far, five at most, as one DataError."""
        if not self.rows and not self.problems:
            raise DataError(f"{self.name}: the file is empty (no rows); add rows or name another file")
        lines = [f"{self.name}:{line}: {text}" for line, text in sorted(self.problems)]
        if lines:
            head = [f"{self.name}: {len(lines)} problems"] if len(lines) > 1 else []
            rest = [f"... and {len(lines) - 5} more"] if len(lines) > 5 else []
            raise DataError("\n  ".join(head + lines[:5] + rest))


def near(word: str, options: Iterable[str]) -> str:
    close = get_close_matches(word, list(options), n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def type_name(value: Any) -> str:
    names = {bool: "true/false", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def read_table(path: Path, name: str) -> Table:
    """One file as a table; a CSV row counts as the line it starts on, a Parquet row by its place from 1."""
    table, kind = Table(name), path.suffix.lower()
    try:
        if kind == ".parquet":
            from pyarrow.parquet import ParquetFile

            for number, row in enumerate(ParquetFile(path).read().to_pylist(), 1):
                table.rows.append((number, {k: None if v != v else v for k, v in row.items()}))  # NaN -> null
            return table
        raw = path.read_bytes().splitlines(keepends=True)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{name}: cannot be read as {kind[1:]} ({str(error).splitlines()[0]})") from error
    lines = []
    for number, line in enumerate(raw, 1):
        lines.append(line.decode("utf-8", errors="replace").removeprefix("\ufeff" if number == 1 else ""))
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"byte {error.start + 1} of the line (0x{line[error.start]:02x})"
            table.fault(number, f"invalid UTF-8 at {where}; save the file as UTF-8")
    (_read_csv if kind in (".csv", ".tsv") else _read_jsonl)(lines, table)
    return table


def _read_jsonl(lines: list[str], table: Table) -> None:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # no NaN, no lone surrogates
        except (ValueError, RecursionError) as error:
            table.fault(number, f"invalid JSON: {error}; write one JSON object a line")
            continue
        if isinstance(row, dict):
            table.rows.append((number, row))
        else:
            table.fault(number, f"the row is a {type_name(row)}, not an object; write {{...}}")


def _read_csv(lines: list[str], table: Table) -> None:
    mark = max(",;\t", key=lines[0].count) if lines else ","
    reader, start, header = csv.reader(lines, delimiter=mark, strict=True), 1, []
    try:
        for cells in reader:
            if not header:
                header = cells
                if not all(header) or len(set(header)) < len(header):
                    return table.fault(start, f"columns need names, each its own; the header is {header}")
            elif len(cells) == len(header):
                row = zip(header, cells, strict=True)
                table.rows.append((start, {key: cell if cell.strip() else None for key, cell in row}))
            elif cells:
                table.fault(start, f"{len(cells)} cells, not {len(header)}; quote cells that hold {mark!r}")
            start = reader.line_num + 1
    except csv.Error as error:
        table.fault(start, f"invalid CSV: {error}; check the quotes of this row")


def read_hub(name: str) -> tuple[dict[str, Table], str]:
    from datasets import ClassLabel, load_dataset

    try:
        found = load_dataset(name)
    except Exception as error:  # the hub client raises many kinds; all mean that there is nothing to read
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}; check name and network"
        raise DataError(f"{name}: no such file or folder, nor a Hub dataset in reach ({why})") from error
    tables = {}
    for split, aliases in SPLITS.items():
        if key := next((alias for alias in aliases if alias in found), None):
            names = {c: f for c, f in found[key].features.items() if isinstance(f, ClassLabel)}
            tables[split] = Table(f"{name}/{key}")
            for number, row in enumerate(found[key], 1):
                spelt = {c: label.int2str(row[c]) for c, label in names.items() if row[c] not in (None, -1)}
                tables[split].rows.append((number, row | spelt))
    if "train" not in tables:
        raise DataError(f"{name}: the Hub dataset has no split 'train', only {', '.join(found)}")
    return tables, found[next(iter(found))].info.license or "unknown"


def read_folder(source: Path, typed: str) -> dict[str, Path]:
    """The file of each split; a single file counts as `train`."""
    if source.is_file() and source.suffix.lower() in SUFFIXES:
        return {"train": source}
    if source.is_file():
        raise DataError(f"{typed}: unknown kind of file; use {', '.join(SUFFIXES)} or a folder of them")
    if not source.is_dir():
        there = sorted(path.name for path in source.parent.iterdir()) if source.parent.is_dir() else []
        beside = ", ".join(there[:8]) or "nothing, or does not exist itself"
        raise DataError(f"{typed}: no such file or folder{near(source.name, there)}; beside it: {beside}")
    data = [path for path in sorted(source.iterdir()) if path.suffix.lower() in SUFFIXES]
    names, found = ", ".join(path.name for path in data) or "no data file", {}
    for split, aliases in SPLITS.items():
        paths = [path for path in data if path.stem.lower() in aliases]
        if len(paths) > 1:
            raise DataError(f"{typed}: more than one file for {split} ({names}); keep one")
        found |= {split: paths[0]} if paths else {}
    if not found:
        raise DataError(f"{typed}: holds {names}; name files train, validation and test, or give one file")
    return found


def licence_of(folder: Path) -> str:
    """The licence named in the folder's data card, README.md, on a line `Licence: ...`; else "unknown"."""
    card = folder / "README.md"
    text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
    line = re.search(r"^\W*licen[cs]e\W*:\W*(\S.*?)[\s*]*$", text, re.IGNORECASE | re.MULTILINE)
    return line[1] if line else "unknown"
