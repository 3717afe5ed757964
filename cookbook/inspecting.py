"""One row of the data down to its tokens: which carry loss, which are cut off, and what a template changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

import pandas as pd

from cookbook.chat import render_full, render_prompt, token_ids
from cookbook.data import Splits
from cookbook.rows import Example
from cookbook.tables import SPLITS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = tuple[str, Example]


@dataclass(frozen=True)
class Tokens:
    """A row as it is trained on and as it is asked for, one piece of text a token.

    Attributes:
        trained: the whole row, prompt and answer, through the training template.
        loss: of each of these, whether it carries loss: those behind the prompt that are not cut off.
        asked: what the model is asked with when it is used.
        trained_only, asked_only: places in `trained` (before the answer) and in `asked` that the other lacks.
        cut: how many tokens at the end are over the sequence length.
    """

    trained: list[str]
    loss: list[bool]
    asked: list[str]
    trained_only: set[int]
    asked_only: set[int]
    cut: int

    def __str__(self) -> str:
        text = f"{len(self.trained)} tokens, {sum(self.loss)} carry loss"
        if self.cut:
            text += f", the last {self.cut} are cut off"
        if not (self.trained_only or self.asked_only):
            return f"{text}; the prompt in training and in use is the same, all {len(self.asked)} tokens."
        return (
            f"{text}; the prompt differs: {len(self.trained_only)} tokens only in training, "
            f"{len(self.asked_only)} only in use."
        )


def tokens(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 0,
    used_with: PreTrainedTokenizerBase | None = None,
) -> Tokens:
    """Render and tokenize a row twice, for training and for use.

    Args:
        max_length: tokens a training row may have; 0: any number.
        used_with: the tokenizer, and with it the chat template, that the model is used with; None: the same one.
    """
    inference = used_with or tokenizer
    (whole,) = token_ids(tokenizer, [render_full(tokenizer, example.prompt, example.completion)])
    # The trainer counts the prompt's tokens by rendering it alone.
    (prompt,) = token_ids(tokenizer, [render_prompt(tokenizer, example.prompt)])
    (asked,) = token_ids(inference, [render_prompt(inference, example.prompt)])
    start, end = len(prompt), max_length or len(whole)
    trained = [tokenizer.decode([i]) for i in whole]
    used = [inference.decode([i]) for i in asked]
    blocks = SequenceMatcher(None, trained[:start], used, autojunk=False).get_matching_blocks()
    return Tokens(
        trained=trained,
        loss=[start <= place < end for place in range(len(whole))],
        asked=used,
        trained_only=set(range(min(start, len(whole)))) - {b.a + i for b in blocks for i in range(b.size)},
        asked_only=set(range(len(used))) - {b.b + i for b in blocks for i in range(b.size)},
        cut=max(0, len(whole) - end),
    )


def labels(splits: Splits) -> dict[str, int]:
    """The names "column: value" of each label, and how many rows of all splits have it; sorted."""
    rows = [example for split in SPLITS for example in getattr(splits, split)]
    counts = Counter(f"{c}: {example.value(c)}" for example in rows for c in splits.schema.labels)
    return dict(sorted(counts.items()))


def find(splits: Splits, *, split: str = "", label: str = "", text: str = "") -> list[Row]:
    """The rows with their split, filtered.

    Args:
        split: train, validation or test; empty: all.
        label: one of `labels`; empty: any.
        text: what the question or the answer must hold, in any case; empty: anything.
    """
    wanted = text.casefold()
    return [
        (name, example)
        for name in SPLITS
        if not split or split == name
        for example in getattr(splits, name)
        if (not label or any(f"{c}: {example.value(c)}" == label for c in splits.schema.labels))
        and (wanted in example.text.casefold() or wanted in example.completion.casefold())
    ]


def table(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, max_length: int = 0,
    used_with: PreTrainedTokenizerBase | None = None,
) -> pd.DataFrame:  # fmt: skip
    """A line a row: its split, tokens, those with loss, cut off, and changed by a template, and its texts."""
    found = [tokens(example, tokenizer, max_length=max_length, used_with=used_with) for _, example in rows]
    lines = [
        {
            "split": split,
            "tokens": len(seen.trained),
            "with loss": sum(seen.loss),
            "cut": seen.cut,
            "only in training": len(seen.trained_only),
            "only in use": len(seen.asked_only),
            "question": example.text,
            "answer": example.completion,
        }
        for (split, example), seen in zip(rows, found, strict=True)
    ]
    return pd.DataFrame(lines, index=pd.Index([example.source for _, example in rows], name="row"))
