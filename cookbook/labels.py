"""One person's choices between two answers, added line by line to a file that `cookbook.pairs` reads as it is.

A line holds `prompt`, the answers `a` and `b` as they stood left and right, `label` (a, b, tie or skip), `labeller`,
and `swapped`, whether the sides were exchanged. Nothing is ever changed in it: a later line on the same pair counts,
and taking back a label adds a line, marked `undone`, with what stood before, or with skip.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pandas as pd
from filelock import FileLock, Timeout

from cookbook import pairs
from cookbook.tables import DataError, read_table

WAIT = 10  # seconds for another writer to finish its line


class Question(NamedTuple):
    """Two answers to one message, in the order of where they come from; `extra` columns go into the file."""

    prompt: str
    one: str
    two: str
    extra: Mapping[str, Any] = {}


def of_pairs(given: Iterable[pairs.Pair]) -> list[Question]:
    """Pairs that are to be judged (again): the answers without what anybody said of them."""
    return [Question(p.text, p.chosen, p.rejected, p.extra) for p in given]


class Labelling:
    """What one person has labelled in a file, and what comes next; every call reads the file again.

    Several people, or several windows, may use one file at a time.

    Args:
        file: a `.jsonl` file; it is made with the first label. A last line that a crash cut off is removed.
        seed: with the prompt and the labeller's name it decides which answer stands on the left.

    Raises:
        DataError: another kind of file, a question with an empty text, or a file that holds other things. From
            every method: the file cannot be read or written; a label is then not kept.

    Attributes:
        mended: what was removed from the end of the file, in a sentence; empty: nothing.
        same: how many questions were left out because both answers are the same text.
    """

    def __init__(self, file: Path | str, questions: Sequence[Question], labeller: str, *, seed: int = 0) -> None:
        self.file, self.labeller, self.seed, self.mended = Path(file).expanduser(), labeller.strip(), seed, ""
        if self.file.suffix != ".jsonl":
            raise DataError(f"{self.file.name}: labels are lines of JSON; name a file that ends in .jsonl")
        if not self.labeller:
            raise DataError("labeller: give a name, by which two people's labels can be told apart")
        self.questions: dict[tuple[str, ...], Question] = {}
        for number, question in enumerate(questions, 1):
            if pairs.bare(question.one) == pairs.bare(question.two):
                continue
            try:
                pairs.check(self._shown(question) | {"label": "skip"}, pairs.LABELLED)
            except DataError as error:
                raise DataError(f"question {number}: {error}") from None
            self.questions[_key(question.prompt, question.one, question.two)] = question
        self.same = sum(pairs.bare(question.one) == pairs.bare(question.two) for question in questions)
        with self._alone():
            self._mend()
        self.given()

    def given(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """This person's labels that stand, as lines of the file, by pair."""
        return {_pair(row): row for row in self._stack()}

    def next(self) -> dict[str, Any] | None:
        """The first pair without a label, as a line of the file with no label yet; None: all are labelled."""
        done = self.given()
        return next((self._shown(question) for key, question in self.questions.items() if key not in done), None)

    def left(self) -> int:
        """How many pairs have no label."""
        return len(self.questions.keys() - self.given().keys())

    def give(self, shown: Mapping[str, Any], label: str) -> None:
        """Add a label to the file.

        Raises:
            DataError: it is none of `pairs.LABELS`.
        """
        row = {**shown, "label": label, "labeller": self.labeller}
        pairs.check(row, pairs.LABELLED)
        self._add(row)

    def undo(self) -> dict[str, Any] | None:
        """Take this person's last standing label back; returns its line, or None if there is none."""
        stack = self._stack()
        if not stack:
            return None
        *before, last = stack
        earlier = [row for row in before if _pair(row) == _pair(last)]
        self._add({**(earlier[-1] if earlier else last | {"label": "skip"}), "undone": True})
        return last

    def _stack(self) -> list[dict[str, Any]]:
        with self._alone():
            rows = read(self.file)
        stack: list[dict[str, Any]] = []
        for row in rows:
            if row.get("labeller") == self.labeller:
                if row.get("undone"):
                    del stack[-1:]
                else:
                    stack.append(row)
        return stack

    def _shown(self, question: Question) -> dict[str, Any]:
        swapped = Random(json.dumps([self.seed, self.labeller, question.prompt, question.one])).random() < 0.5
        a, b = (question.two, question.one) if swapped else (question.one, question.two)
        extra = {name: value for name, value in question.extra.items() if name != "undone"}
        return extra | {"prompt": question.prompt, "a": a, "b": b, "swapped": swapped}

    def _add(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._alone():
            self._mend()
            with self.file.open("ab") as f:
                f.write(line)
                f.flush()
                os.fsync(f.fileno())

    def _mend(self) -> None:
        """End a last line without its line break: keep it if it is whole, else cut it off."""
        if not self.file.exists() or not (tail := (data := self.file.read_bytes())[data.rfind(b"\n") + 1 :]):
            return
        try:
            whole = isinstance(json.loads(tail), dict)
        except ValueError:
            whole = False
        with self.file.open("r+b") as f:
            if whole:
                f.seek(0, os.SEEK_END)
                f.write(b"\n")
            else:
                f.truncate(len(data) - len(tail))
                self.mended = (
                    f"The last line was cut off by a crash and is removed: {tail[:80].decode(errors='replace')}"
                )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within this block nobody else reads or writes labels there."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_name(f".{self.file.name}.lock"), timeout=WAIT):
                yield
        except Timeout:
            raise DataError(f"{self.file.name}: another program has been writing for {WAIT} s; try again") from None
        except OSError as error:
            raise DataError(f"{self.file.name}: cannot be read or written ({error.strerror or error})") from error


def _key(prompt: str, one: str, two: str) -> tuple[str, ...]:
    """What makes two lines one pair, for `cookbook.pairs` too."""
    return pairs.bare(prompt), *sorted((pairs.bare(one), pairs.bare(two)))


def _pair(row: Mapping[str, Any]) -> tuple[str, ...]:
    return _key(row["prompt"], row["a"], row["b"])


def read(file: Path) -> list[dict[str, Any]]:
    """All lines of a file of labels; none if it is not there or empty.

    Raises:
        DataError: a line that is no label, with its number.
    """
    if not file.exists() or not file.stat().st_size:
        return []
    table = read_table(file, file.name)
    for line, row in table.rows:
        try:
            pairs.check(row, pairs.LABELLED)
        except DataError as error:
            table.fault(line, str(error))
    table.stop()
    return [row for _, row in table.rows]


def progress(file: Path) -> pd.DataFrame:
    """A row a labeller: pairs labelled, and how often the left (a), the right (b), a tie or skip.

    Sides are drawn by lot, so many more a than b, or the reverse, speak of the labeller and not of the answers.
    """
    last: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in read(file):
        last[row.get("labeller") or "one person", *_pair(row)] = row
    counts: dict[str, Counter[str]] = {}
    for (who, *_), row in last.items():
        if not (row.get("undone") and row["label"] == "skip"):
            counts.setdefault(who, Counter())[row["label"]] += 1
    rows = {
        who: {"labelled": count.total()} | {name: count[name] for name in pairs.LABELS}
        for who, count in counts.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["labelled", *pairs.LABELS]).rename_axis("labeller")


def agreement(file: Path) -> pd.DataFrame:
    """A row for each two who labelled the same pairs: pairs, share of equal labels, Cohen's kappa, its interval."""
    found = pairs.agreement(file) if read(file) else []
    rows = [[" and ".join(a.labellers), a.n, a.observed, a.kappa, *a.ci95] for a in found]
    columns = ["labellers", "pairs", "agree", "kappa", "ci95 low", "ci95 high"]
    return pd.DataFrame(rows, columns=columns).set_index("labellers").round(3)
