"""Preference pairs: read answers better and worse, or the labels that people gave, and refuse what spoils a run."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cookbook import leakage
from cookbook.agreement import Agreement, interval, kappa
from cookbook.chat import Messages, render_full, token_ids
from cookbook.data import DataError
from cookbook.tables import SPLITS, SUFFIXES, Table, licence_of, near, read_folder, read_hub, read_table, type_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAIR = ("prompt", "chosen", "rejected")
LABELLED = ("prompt", "a", "b", "label")  # and, where there are several people, "labeller"
LABELS = ("a", "b", "tie", "skip")


@dataclass(frozen=True)
class Pair:
    """One preference: messages, the better and the worse answer to them, "file:line", further columns."""

    prompt: Messages
    chosen: str
    rejected: str
    source: str
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What was asked, without the system message."""
        return self.prompt[-1]["content"]


@dataclass
class Pairs:
    """Three lists of pairs and what is known about them; `agreement` is there if two people labelled."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    source: str
    licence: str
    fingerprint: str
    report: list[str]
    agreement: list[Agreement] = field(default_factory=list)


def load(
    source: str | Path,
    *,
    instruction: str = "",
    seed: int = 0,
    fallback: Path | None = None,
    min_rows: tuple[int, int, int] = (8, 4, 4),
    test_share: float = 0.2,
    validation_share: float = 0.1,
) -> Pairs:
    """Read a file, a folder of train, validation and test files, or a Hub id, and return checked pairs.

    A row has `prompt`, `chosen` and `rejected`, or is one person's judgement: `prompt`, `a`, `b`, `label` (a, b,
    tie or skip) and `labeller`. Such a file is only ever added to: a labeller's last label of a pair counts, and a
    pair is kept if all who chose chose the same. Splits that are missing are cut from train by `seed`,
    near-duplicate prompts together. `instruction` is the system message.

    Raises:
        DataError: with up to five problems of a file, each with its line.
    """
    path, typed, remarks = Path(source).expanduser(), str(source), []
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", typed) and path.suffix.lower() not in SUFFIXES
    if hub and not path.exists() and not path.parent.exists():
        tables, licence = read_hub(typed)
    else:
        files = read_folder(path, typed)
        if "train" not in files:
            if fallback is None:
                raise DataError(f"{typed}: no training file; add train.jsonl, or give a fallback folder")
            files = {s: f for s, f in read_folder(fallback, fallback.name).items() if s != "test"} | files
            remarks.append(f"{path.name} has no training pairs: these come from {fallback.name}.")
        names = {s: f.name if path.is_file() else f"{f.absolute().parent.name}/{f.name}" for s, f in files.items()}
        tables = {s: read_table(files[s], names[s]) for s in SPLITS if s in files}
        licence = "; ".join(dict.fromkeys(licence_of(file.parent) for file in files.values()))
    found, agreement = {}, []
    for split, table in tables.items():
        found[split], compared, remark = _pairs_of(table, instruction)
        agreement += compared
        remarks += [f"{split}: {remark}"] * bool(remark)
    total = len(found["train"])
    shares = {"test": (test_share, min_rows[2]), "validation": (validation_share, min_rows[1])}
    sizes = {split: max(round(s * total), least) for split, (s, least) in shares.items() if split not in found}
    if sizes and not total:
        found |= {split: [] for split in sizes}
    elif sizes:
        parts, remark = leakage.cut(found["train"], sizes, [p.extra.get("kind") for p in found["train"]], seed)
        found |= parts
        remarks.append(remark)
    for split, least in zip(SPLITS, min_rows, strict=True):
        if len(found[split]) < least:
            name = tables.get(split, tables["train"]).name
            cut = f" (of {total}, after cutting {' and '.join(sizes)})" if sizes else ""
            raise DataError(f"{name}: {split} has {len(found[split])} pairs{cut} and needs {least}; add pairs")
    seen = [[split, p.prompt, p.chosen, p.rejected] for split in SPLITS for p in found[split]]
    digest = sha256(json.dumps(seen, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]
    text = ", ".join(table.name for table in tables.values())
    return Pairs(
        **{s: found[s] for s in SPLITS}, source=text, licence=licence, fingerprint=digest, report=remarks,
        agreement=agreement,
    )  # fmt: skip


def agreement(path: Path) -> list[Agreement]:
    """How far the people who labelled a file agree, two and two, where two labelled a pair.

    Raises:
        DataError: the file is empty, or has rows that are no labels.
    """
    return _pairs_of(read_table(path, path.name), "")[1]


def _pairs_of(table: Table, instruction: str) -> tuple[list[Pair], list[Agreement], str]:
    """The pairs of one file, the agreement of its labellers and one line on labels that gave no pair."""
    counts = Counter(key for _, row in table.rows for key in row)
    labelled = "label" in counts and not {"chosen", "rejected"} <= set(counts)
    wanted = LABELLED if labelled else PAIR
    if absent := [c for c in wanted if c not in counts]:
        if table.rows:
            hints = "".join(near(c, counts) for c in absent)
            table.fault(1, f"no column {', '.join(map(repr, absent))}{hints}; it has {', '.join(counts)}")
        table.stop()
    rows = []
    for line, row in table.rows:
        try:
            check(row, wanted)
            rows.append((line, row))
        except DataError as error:
            table.fault(line, str(error))
    table.stop()
    if labelled:
        return _decided(table, rows, instruction)
    kept: dict[tuple[str, ...], int] = {}
    for line, row in rows:
        asked, better, worse = (bare(row[column]) for column in PAIR)
        swapped = (asked, worse, better)
        if swapped in kept:
            table.fault(line, f"prefers the other answer than line {kept[swapped]} does; remove one of the two")
        kept.setdefault((asked, better, worse), line)
    table.stop()
    return [_pair(table, line, row, row["chosen"], row["rejected"], instruction) for line, row in rows], [], ""


def check(row: dict[str, Any], wanted: Sequence[str]) -> None:
    """Refuse a row that holds no preference; raises DataError without the place."""
    for column in wanted:
        if column not in row:
            raise DataError(f"column {column!r} is missing{near(column, row)}")
        if row[column] is not None and not isinstance(row[column], str):
            raise DataError(f"wrong type: {column!r} holds a {type_name(row[column])}; it must be text")
        if not (row[column] or "").strip():
            raise DataError(f"empty {column!r}; fill it in or remove the row")
    first, second = wanted[1:3]
    if bare(row[first]) == bare(row[second]):
        raise DataError(f"{first!r} and {second!r} are the same text: there is nothing to prefer; remove the row")
    if wanted == LABELLED and row["label"] not in LABELS:
        hint = near(row["label"], LABELS)
        raise DataError(f"unknown label {row['label']!r}{hint}; use {', '.join(LABELS)}")
    if not isinstance(row.get("labeller") or "", str):
        raise DataError(f"wrong type: 'labeller' holds a {type_name(row['labeller'])}; it must be text")


def bare(text: str) -> str:
    """A text by which it is known again: white space does not count."""
    return " ".join(text.split())


def _pair(table: Table, line: int, row: dict[str, Any], chosen: str, rejected: str, instruction: str) -> Pair:
    system = [{"role": "system", "content": instruction}] if instruction else []
    extra = {k: v for k, v in row.items() if k not in (*PAIR, *LABELLED, "labeller")}
    prompt = [*system, {"role": "user", "content": row["prompt"]}]
    return Pair(prompt, chosen.strip(), rejected.strip(), f"{table.name}:{line}", extra)


def _decided(
    table: Table, rows: list[tuple[int, dict[str, Any]]], instruction: str
) -> tuple[list[Pair], list[Agreement], str]:
    """What the labels of all people come to; a pair shown with its answers swapped is the same pair."""
    last: dict[tuple[str, ...], dict[str, tuple[str, int, dict[str, Any]]]] = defaultdict(dict)
    for line, row in rows:
        one, two = bare(row["a"]), bare(row["b"])
        label = row["label"]
        if one > two and label in ("a", "b"):
            label = "b" if label == "a" else "a"
        last[bare(row["prompt"]), *sorted((one, two))][row.get("labeller") or "one person"] = (label, line, row)
    pairs, left = [], Counter()
    for (_, *answers), given in last.items():
        labels = {label for label, _, _ in given.values() if label != "skip"}
        if len(labels) == 1 and labels <= {"a", "b"}:
            better = labels == {"b"}
            _, line, row = max(given.values(), key=lambda item: item[1])
            full = {bare(row[side]): row[side] for side in ("a", "b")}  # with their line breaks
            pairs.append(_pair(table, line, row, full[answers[better]], full[answers[not better]], instruction))
        else:
            left["tie" if labels == {"tie"} else "disagreement" if labels else "skip"] += 1
    why = ", ".join(f"{n} by {reason}" for reason, n in sorted(left.items()))
    remark = f"{len(pairs)} of {len(last)} labelled pairs are used{f'; left out: {why}' if why else ''}."
    people = sorted({who for given in last.values() for who in given})
    compared = [_agreement(table, x, y, list(last.values())) for x, y in combinations(people, 2)]
    return pairs, [found for found in compared if found], remark


def _agreement(
    table: Table, first: str, second: str, given: list[dict[str, tuple[str, int, Any]]]
) -> Agreement | None:
    both = [(g[first], g[second]) for g in given if first in g and second in g]
    both = [(x, y) for x, y in both if "skip" not in (x[0], y[0])]
    if not both:
        return None
    one, two = [x[0] for x, _ in both], [y[0] for _, y in both]
    differ = tuple(f"{table.name}:{y[1]}" for x, y in both if x[0] != y[0])
    observed = 1 - len(differ) / len(both)
    return Agreement((first, second), len(both), observed, kappa(one, two), interval(one, two), differ)


def rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The pairs in TRL's conversational preference format."""
    return [
        {"prompt": p.prompt, **{side: [_says(getattr(p, side))] for side in ("chosen", "rejected")}} for p in pairs
    ]


def unpaired(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Each answer on its own with a true or false `label`, as KTO reads it: all it needs is a thumb up or down."""
    return [
        {"prompt": p.prompt, "completion": [_says(answer)], "label": good}
        for p in pairs
        for answer, good in ((p.chosen, True), (p.rejected, False))
    ]


def _says(answer: str) -> dict[str, str]:
    return {"role": "assistant", "content": answer}


def lengths(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of each pair's longer templated row."""
    texts = [render_full(tokenizer, p.prompt, answer) for p in pairs for answer in (p.chosen, p.rejected)]
    counts = [len(ids) for ids in token_ids(tokenizer, texts)]
    return [max(two) for two in zip(counts[::2], counts[1::2], strict=True)]


def fit_length(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int, on_long: str
) -> tuple[list[Pair], str]:
    """Keep the pairs that fit in `max_length` tokens, and say in one line (empty if all fit) which do not.

    "error" raises DataError, "drop" leaves them out. Cutting is no choice: the answers would be judged unread.
    """
    if on_long not in ("error", "drop"):
        raise ValueError(f"ON_LONG is {on_long!r}; use 'error' or 'drop': a pair must not be cut")
    long = {p.source: n for p, n in zip(pairs, lengths(pairs, tokenizer), strict=True) if n > max_length}
    if not long:
        return list(pairs), ""
    places = ", ".join(f"{place} ({n})" for place, n in list(long.items())[:5]) + ", ..." * (len(long) > 5)
    text = f"{len(long)} of {len(pairs)} pairs are longer than {max_length} tokens: {places}"
    kept = [p for p in pairs if p.source not in long]
    if on_long == "error" or not kept:
        raise DataError(f"{text}; raise the sequence length, or choose 'drop' (leave out)")
    return kept, f"{text}; dropped."
