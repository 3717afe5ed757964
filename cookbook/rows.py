"""Turn a table's rows into examples, and refuse with file and line those that would spoil a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cookbook.tables import DataError, Table, near, type_name

INPUTS = ("message", "text", "question", "input", "instruction", "prompt", "ticket", "query")
SHAPES = {"messages": ("messages",), "prompt/completion": ("prompt", "completion")}
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """One row: messages up to the answer, the answer, its columns if it is JSON, "file:line", further columns."""

    prompt: list[dict[str, str]]
    completion: str
    target: dict[str, Any] | None
    source: str
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What was asked: the messages without the system's, one a line."""
        return "\n".join(turn["content"] for turn in self.prompt if turn["role"] != "system")

    def value(self, column: str) -> Any:
        """The answer in one target column; the whole completion where there are no columns ("answer")."""
        return self.completion if self.target is None else self.target[column]


@dataclass(frozen=True)
class Layout:
    """How a row becomes messages, settled on the training rows; `required` starts with the input."""

    shape: str
    required: tuple[str, ...]
    types: dict[str, str]
    strict: bool  # all columns count: one that only some rows have is a fault
    instruction: str


def _shape(row: dict[str, Any]) -> str:
    return next((shape for shape, keys in SHAPES.items() if all(key in row for key in keys)), "columns")


def layout_of(table: Table, asked: str, targets: Sequence[str], instruction: str) -> Layout:
    counts = Counter(key for _, row in table.rows for key in row)
    named = [column for column in (asked, *targets) if column]
    for column in named:
        if column not in counts:
            columns = ", ".join(counts)
            raise DataError(f"{table.name}:1: no column {column!r}{near(column, counts)}; it has {columns}")
    shape = "columns" if named else Counter(_shape(row) for _, row in table.rows).most_common(1)[0][0]
    if shape != "columns":
        return Layout(shape, SHAPES[shape], {}, False, instruction)
    usual = [c for c, n in counts.items() if 2 * n > len(table.rows) and c != "id" and c not in targets]
    asked = asked or next((c for c in INPUTS if c in usual), usual[0] if usual else "")
    strict, targets = not targets, tuple(targets or (c for c in usual if c != asked))
    if not asked or not targets or asked in targets:
        hint = near(asked, ("messages",)) or "; give one column to read and others to answer"
        raise DataError(f"{table.name}:1: no column to ask or none to answer in {', '.join(counts)}{hint}")
    types = {}
    for column in targets:
        seen = Counter(type_name(row[column]) for _, row in table.rows if row.get(column) is not None)
        types[column] = seen.most_common(1)[0][0] if seen else "text"
    default = default_instruction(targets)
    return Layout("columns", (asked, *targets), types, strict, instruction or default)


def default_instruction(targets: Sequence[str]) -> str:
    """The system message where the user gives none: one sentence that names the keys of the answer."""
    keys = " and ".join(", ".join(targets).rsplit(", ", 1))
    return f"Answer with one JSON object with the key{'s' * (len(targets) > 1)} {keys}."


def _columns(row: dict[str, Any], layout: Layout) -> tuple[list[dict[str, str]], str]:
    """Messages and answer of a row of named columns; raises DataError without the place."""
    asked, *targets = layout.required
    if row[asked] is not None and not isinstance(row[asked], str):
        raise DataError(f"wrong type: column {asked!r} holds a {type_name(row[asked])}; it must be text")
    if not (row[asked] or "").strip():
        raise DataError(f"empty message (column {asked!r}); fill it in or remove the row")
    for column in targets:
        kind, usual = type_name(row[column]), layout.types[column]
        if kind not in ("null", usual) or kind not in ("null", "text", "number", "true/false"):
            need = f"the others hold {usual}" if kind != usual else "use text, a number or true/false"
            raise DataError(f"wrong type: column {column!r} holds a {kind} ({row[column]!r:.40}); {need}")
        if kind == "text" and not row[column].strip():
            raise DataError(f"empty answer (column {column!r}); fill it in, or write null for none")
    if all(row[column] is None for column in targets):
        raise DataError(f"empty answer: {', '.join(targets)} hold nothing; fill one in or remove the row")
    answer = json.dumps({column: row[column] for column in targets}, ensure_ascii=False)
    return [{"role": "user", "content": row[asked]}], answer


def _chat(row: dict[str, Any], layout: Layout) -> tuple[list[dict[str, str]], str]:
    """Messages and answer of a chat row; raises DataError without the place."""
    turns: list[Any] = []
    for key, role in zip(layout.required, ("user", "assistant"), strict=False):
        part = row[key]
        if isinstance(part, str) and key != "messages":
            part = [{"role": role, "content": part}]
        if not isinstance(part, list):
            raise DataError(f"wrong type: {key!r} holds a {type_name(part)}; it must be a list of messages")
        turns += part
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not {"role", "content"} <= set(turn):
            raise DataError(f"wrong type: message {number} is not an object with 'role' and 'content'")
        if turn["role"] not in ROLES or (turn["role"] == "system" and number > 1):
            hint = "; only the first is system" if turn["role"] == "system" else near(str(turn["role"]), ROLES)
            raise DataError(f"unknown role {turn['role']!r} (message {number}){hint}; use {', '.join(ROLES)}")
        if turn["content"] is not None and not isinstance(turn["content"], str):
            raise DataError(f"wrong type: message {number} holds a {type_name(turn['content'])}; it must be text")
        if not (turn["content"] or "").strip():
            what = "answer" if number == len(turns) else "message"
            raise DataError(f"empty {what} (message {number}, {turn['role']}); fill it in or remove the row")
    if [turn["role"] for turn in turns[-2:]] != ["user", "assistant"]:
        raise DataError("the last two messages must be a user's and the assistant's answer to it")
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return messages[:-1], messages[-1]["content"]


def examples_of(table: Table, layout: Layout) -> list[Example]:
    """Every row as an example; raises DataError with up to five of the file's problems."""
    counts = Counter(key for _, row in table.rows for key in row)
    absent = [c for c in layout.required if c not in counts]
    if table.rows and absent:
        hints = "".join(near(c, counts) for c in absent)
        table.fault(1, f"no column {', '.join(map(repr, absent))}{hints}; it has {', '.join(counts)}")
        table.stop()
    partial = {c for c, n in counts.items() if n < len(table.rows)} if layout.strict else set()
    examples = []
    for line, row in table.rows:
        try:
            missing = [c for c in layout.required if c not in row]
            extra = [c for c in row if c not in layout.required]
            if missing:
                mixed = _shape(row) != layout.shape and len(missing) == len(layout.required)
                hint = f"; mixed row shapes: the others have {', '.join(layout.required)}" if mixed else ""
                raise DataError(f"column {missing[0]!r} is missing{near(missing[0], extra)}{hint}")
            if odd := [c for c in extra if c in partial]:
                raise DataError(f"column {odd[0]!r} is in {counts[odd[0]]} of {len(table.rows)} rows only; remove it")
            prompt, completion = (_columns if layout.shape == "columns" else _chat)(row, layout)
        except DataError as error:
            table.fault(line, str(error))
            continue
        if layout.instruction and prompt[0]["role"] != "system":
            prompt.insert(0, {"role": "system", "content": layout.instruction})
        try:
            target = json.loads(completion)
        except ValueError:
            target = None
        target = target if isinstance(target, dict) and target else None
        more = {column: row[column] for column in extra}
        examples.append(Example(prompt, completion, target, f"{table.name}:{line}", more))
    table.stop()
    return examples
