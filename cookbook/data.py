"""A user's data as three checked splits: infer the schema, cut what is missing, report, fingerprint."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from cookbook.chat import render_full, token_ids
from cookbook.results import RECIPE_VARIABLE
from cookbook.rows import Example, default_instruction, examples_of, layout_of
from cookbook.tables import SPLITS, SUFFIXES, DataError, licence_of, read_folder, read_hub, read_table


@dataclass(frozen=True)
class Schema:
    """What is asked and what is answered, inferred from the training rows (labels: sorted, as text)."""

    input: str
    targets: tuple[str, ...]
    kinds: dict[str, Literal["label", "exact", "text"]]
    labels: dict[str, tuple[str, ...]]


@dataclass
class Splits:
    """Three lists of examples and what is known about them; `report` holds one remark a line."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    schema: Schema
    source: str
    licence: str
    fingerprint: str
    report: list[str]


def _kind(values: Sequence[Any]) -> Literal["label", "exact", "text"]:
    """Label: at most 40 short values, each three times on average; text: over four words; exact: the rest."""
    shown = [_as_text(value) for value in values if value is not None]
    if not shown or len(values) - len(shown) > max(2, len(values) / 20):  # often null: an optional field
        return "exact"
    distinct = set(shown)
    if len(distinct) <= 40 and len(shown) >= 3 * len(distinct) and max(map(len, distinct)) <= 60:
        return "label"
    return "text" if sum(len(text.split()) for text in shown) > 4 * len(shown) else "exact"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _schema(asked: str, targets: tuple[str, ...], train: Sequence[Example]) -> Schema:
    values = {column: [example.value(column) for example in train] for column in targets}
    kinds = {column: _kind(values[column]) for column in targets}
    labels = {
        c: tuple(sorted({_as_text(v) for v in values[c] if v is not None})) for c in targets if kinds[c] == "label"
    }
    return Schema(asked, targets, kinds, labels)


def load(
    source: str | Path,
    *,
    instruction: str = "",
    input_column: str = "",
    target_columns: Sequence[str] = (),
    seed: int = 0,
    fallback: Path | None = None,
    min_rows: tuple[int, int, int] = (8, 4, 4),
    test_share: float = 0.2,
    validation_share: float = 0.1,
) -> Splits:
    """Read a file, a folder of train, validation and test files, or a Hub id, and return checked splits.

    Rows are `messages`, `prompt` and `completion`, or named columns, whose answer is a JSON object of the
    target columns. A missing split is cut from train by `seed`: stratified by the first label column, with
    near-duplicates kept together. A folder with only a test file takes the rest from the folder `fallback`.
    `instruction` is the system message where a row has none. `min_rows`: rows needed in train, validation,
    test. The fingerprint covers what the model sees, system message included, and not the file's format.
    Raises DataError, with up to five problems of a file, for whatever would spoil the run.
    """
    path, typed, remarks = Path(source).expanduser(), str(source), []
    targets = (target_columns,) if isinstance(target_columns, str) else tuple(target_columns)
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", typed) and path.suffix.lower() not in SUFFIXES
    if hub and not path.exists() and not path.parent.exists():
        tables, licence = read_hub(typed)
    else:
        files = read_folder(path, typed)
        if "train" not in files:
            if fallback is None:
                raise DataError(f"{typed}: no training file; add train.jsonl, or give a fallback folder")
            files = {
                split: file for split, file in read_folder(fallback, fallback.name).items() if split != "test"
            } | files
            remarks.append(f"{path.name} has no training rows: these come from {fallback.name}.")
        where = {
            file: file.name if path.is_file() else f"{file.absolute().parent.name}/{file.name}"
            for file in files.values()
        }
        tables = {split: read_table(files[split], where[files[split]]) for split in SPLITS if split in files}
        licence = "; ".join(dict.fromkeys(licence_of(file.parent) for file in files.values()))
    for table in tables.values():
        if not table.rows:
            table.stop()
    layout = layout_of(tables["train"], input_column, targets, instruction)
    found = {split: examples_of(table, layout) for split, table in tables.items()}

    every = [example for examples in found.values() for example in examples]
    columns = tuple(every[0].target or ("answer",))
    if any(set(example.target or ()) != set(columns) for example in every):
        if any(example.target for example in every):
            remarks.append("Not every answer is a JSON object with the same keys: answers are scored as text.")
        columns = ("answer",)
        found = {split: [replace(example, target=None) for example in rows] for split, rows in found.items()}
    shares = {"test": (test_share, min_rows[2]), "validation": (validation_share, min_rows[1])}
    total = len(found["train"])
    sizes = {split: max(round(s * total), least) for split, (s, least) in shares.items() if split not in found}
    asked = layout.required[0]
    if sizes:
        from cookbook.leakage import cut

        labels = _schema(asked, columns, found["train"]).labels
        strata = [example.value(next(iter(labels))) if labels else None for example in found["train"]]
        parts, remark = cut(found["train"], sizes, strata, seed)
        found |= parts
        remarks.append(remark)
    for split, least in zip(SPLITS, min_rows, strict=True):
        if len(found[split]) < least:
            kept = (
                f" (of {total}, after cutting {' and '.join(sizes)})"
                if split in sizes or split == "train" and sizes
                else ""
            )
            name = tables.get(split, tables["train"]).name
            raise DataError(f"{name}: {split} has {len(found[split])} rows{kept} and needs {least}; add rows")
    schema = _schema(asked, columns, found["train"])
    _check_values(schema, found, remarks)
    parts = [[split, e.prompt, e.completion] for split in SPLITS for e in found[split]]
    digest = sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]
    text = ", ".join(table.name for table in tables.values())
    return Splits(
        **{s: found[s] for s in SPLITS},
        schema=schema,
        source=text,
        licence=licence,
        fingerprint=digest,
        report=remarks,
    )


def _check_values(schema: Schema, found: dict[str, list[Example]], remarks: list[str]) -> None:
    """Refuse a stray null in a label or text column; remark on labels that training never shows."""
    empty = []
    for column, kind in schema.kinds.items():
        for split, examples in found.items():
            values = [example.value(column) for example in examples]
            if kind != "exact":
                empty += [e.source for e, v in zip(examples, values, strict=True) if v is None]
            if column in schema.labels and (new := {_as_text(v) for v in values} - {*schema.labels[column], "null"}):
                remarks.append(f"{split}: {column} has labels that training never shows: {', '.join(sorted(new))}.")
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise DataError(f"{', '.join(empty[:5])}{more}: empty answer in a column that other rows fill; fill it in")


def sample(name: str, recipe_dir: Path | None = None) -> Path:
    """The folder of the sample data `name`, in `data_samples` beside the recipe or else beside the package.

    `recipe_dir` is by default what the launcher says, or else the working folder. Raises DataError if there is none.
    """
    here = recipe_dir or Path(os.environ.get(RECIPE_VARIABLE) or Path.cwd())
    folders = [p / "data_samples" for p in (here, here.parent, Path(__file__).resolve().parents[1])]
    if found := [folder / name for folder in folders if (folder / name).is_dir()]:
        return found[0]
    known = sorted({f.name for folder in folders if folder.is_dir() for f in folder.iterdir() if f.is_dir()})
    raise DataError(f"no sample data {name!r}; there are: {', '.join(known) or 'none (run it beside its data)'}")


def parts(folder: str | Path) -> dict[str, Path]:
    """The data sets in a folder that has one folder for each, by name; hidden folders do not count.

    Raises:
        DataError: no such folder, fewer than two in it, or a name that cannot name an adapter.
    """
    path = Path(folder).expanduser()
    inside = sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] not in "._") if path.is_dir() else []
    if len(inside) < 2:
        found = ", ".join(p.name for p in inside) or "none" if path.is_dir() else "no folder at all"
        raise DataError(f"{folder}: needs a folder of data for each department, two or more; there is {found}")
    if odd := [p.name for p in inside if not re.fullmatch(r"[A-Za-z0-9_-]+", p.name)]:
        raise DataError(f"{folder}: rename {', '.join(odd)}: only letters, digits, - and _ can name an adapter")
    return {p.name: p for p in inside}


def take(splits: Splits, *, train: int = 0, validation: int = 0, test: int = 0) -> Splits:
    """Fewer rows a split, evenly spread over it (0: all); the schema stays that of all training rows."""
    wanted = {"train": train, "validation": validation, "test": test}
    kept = {split: spread(getattr(splits, split), n) for split, n in wanted.items()}
    return replace(splits, **kept)


def spread(examples: Sequence[Any], count: int) -> list[Any]:
    """`count` of the examples at even distances, in order; all of them if `count` is 0 or more than there are."""
    if not 0 < count < len(examples):
        return list(examples)
    return [examples[i * len(examples) // count] for i in range(count)]


def only(example: Example, columns: Sequence[str]) -> Example:
    """The same question with only some columns of its answer asked for, in the system message and the answer.

    Raises:
        DataError: the answer is no JSON object, or lacks one of the columns.
    """
    if not set(columns) <= set(example.target or {}):
        raise DataError(f"{example.source}: the answer has no columns {', '.join(columns)} to ask for")
    asked, all_keys = default_instruction(tuple(columns)), default_instruction(tuple(example.target))
    first, *rest = example.prompt
    if first["role"] != "system":
        first, rest = {"role": "system", "content": ""}, example.prompt
    content = first["content"].replace(all_keys, asked)
    if asked not in content:
        content = f"{content}\n{asked}".strip()
    target = {column: example.target[column] for column in columns}
    prompt = [{"role": "system", "content": content}, *rest]
    return replace(example, prompt=prompt, completion=json.dumps(target, ensure_ascii=False), target=target)


def rows(examples: Sequence[Example]) -> list[dict[str, list[dict[str, str]]]]:
    """The examples in TRL's conversational prompt and completion format."""
    return [{"prompt": e.prompt, "completion": [{"role": "assistant", "content": e.completion}]} for e in examples]


def _lengths(examples: Sequence[Example], tokenizer: Any) -> list[int]:
    """Tokens of each templated row, answer included."""
    texts = [render_full(tokenizer, example.prompt, example.completion) for example in examples]
    return [len(ids) for ids in token_ids(tokenizer, texts)]


def report(splits: Splits, tokenizer: Any, max_length: int) -> dict[str, pd.DataFrame]:
    """Tables to show: "splits", a row a split, and for each label column its rows a label and split.

    Duplicates are messages equal but for case and spaces; `seen_before` counts those of an earlier split.
    Lengths are tokens of the templated row with its answer; `too_long` counts rows over `max_length`.
    """
    table, balance, before = {}, defaultdict(dict), set()
    for split in SPLITS:
        examples = getattr(splits, split)
        texts = [" ".join(unicodedata.normalize("NFKC", e.text).casefold().split()) for e in examples]
        tokens = pd.Series(_lengths(examples, tokenizer))
        table[split] = {
            "rows": len(examples),
            "duplicates": len(texts) - len(set(texts)),
            "seen_before": sum(text in before for text in texts),
            "tokens_p50": int(tokens.quantile(0.5)),
            "tokens_p95": int(tokens.quantile(0.95)),
            "tokens_max": int(tokens.max()),
            "too_long": int((tokens > max_length).sum()),
        }
        before |= set(texts)
        for column in splits.schema.labels:
            balance[column][split] = Counter(_as_text(e.value(column)) for e in examples)
    tables = {"splits": pd.DataFrame(table).T}
    return tables | {column: pd.DataFrame(counts).fillna(0).astype(int) for column, counts in balance.items()}


def fit_length(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    on_long: Literal["error", "drop", "truncate"],
) -> tuple[list[Example], str]:
    """Keep the rows that fit in `max_length` tokens, and say in one line (empty if all fit) which do not.

    "error" raises DataError, "drop" leaves long rows out, "truncate" keeps them for the trainer to cut.
    """
    if on_long not in ("error", "drop", "truncate"):
        raise ValueError(f"on_long is {on_long!r}; use 'error', 'drop' or 'truncate'")
    long = {e.source: n for e, n in zip(examples, _lengths(examples, tokenizer), strict=True) if n > max_length}
    if not long:
        return list(examples), ""
    places = ", ".join(f"{place} ({n})" for place, n in list(long.items())[:5]) + ", ..." * (len(long) > 5)
    text = f"{len(long)} of {len(examples)} rows are longer than {max_length} tokens: {places}"
    kept = [example for example in examples if on_long == "truncate" or example.source not in long]
    if on_long == "error" or not kept:
        raise DataError(
            f"{text}; raise the sequence length, or choose 'drop' (leave out) or 'truncate' (lose the end)"
        )
    return kept, f"{text}; {'dropped' if on_long == 'drop' else 'cut at the end, answers included'}."
