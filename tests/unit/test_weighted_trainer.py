"""Notebook 03's weighted loss, read from its cells: which tokens count more, and what the loss then is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from cookbook import chat, checks, data, fused, models, recipes

KEY = 5.0


def cells(tokenizer: Any, weight: float = KEY, own: bool = False) -> dict[str, Any]:
    """What the cells `score`, `weights` and `trainer` define; `own`: as with data of the user's."""
    sources = {cell.id: cell.source for cell in nbformat.read(recipes.find("03"), as_version=4).cells}
    names: dict[str, Any] = {"tokenizer": tokenizer, "KEY_WEIGHT": weight, "DATA": "own" if own else ""}
    names |= {"chat": chat, "checks": checks, "data": data, "fused": fused, "torch": torch, "Trainer": Trainer}
    names |= {"evaluation": None, "max_length": 512, "__name__": "cells"}
    for cell in ("score", "weights", "trainer"):
        exec("from __future__ import annotations\n" + sources[cell].split("\n\n\nexample")[0], names)
    return names


@pytest.fixture(params=["llama", "gpt2"])
def loaded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return models.load(str(request.getfixturevalue(request.param)), dtype=torch.float32)


def rows(name: str) -> list[data.Example]:
    return data.load(data.sample("departments") / name).train[:4]


@pytest.mark.parametrize("name", ["finance", "hr", "it"])
def test_codes_and_facts_count_more(loaded: tuple[Any, Any], name: str) -> None:
    tokenizer = loaded[1]
    names = cells(tokenizer)
    for example in rows(name):
        row = names["encode"](name, example)
        assert {len(v) for v in row.values()} == {len(row["input_ids"])}
        pairs = list(zip(row["input_ids"], row["weights"], strict=True))
        heavy = tokenizer.decode([i for i, w in pairs if w == KEY])
        for part in [*names["codes"](name, example.completion), example.extra["fact"]]:
            assert part.replace(" ", "") in heavy.replace(" ", "")
        asked = [label == checks.IGNORED for label in row["labels"]]
        assert all(w == 1 for w, prompt in zip(row["weights"], asked, strict=True) if prompt)
        assert 0 < sum(w == KEY for w in row["weights"]) < 0.7 * (len(asked) - sum(asked))


def test_your_own_departments_count_evenly(loaded: tuple[Any, Any]) -> None:
    row = cells(loaded[1], own=True)["encode"]("hr", rows("hr")[0])
    assert set(row["weights"]) == {1.0}


@pytest.mark.parametrize("weight", [1.0, KEY])
def test_the_loss_is_the_weighted_mean(loaded: tuple[Any, Any], weight: float, tmp_path: Path) -> None:
    model, tokenizer = loaded
    names, examples = cells(tokenizer, weight), rows("it")
    encoded = [names["encode"]("it", e) for e in examples]
    batch = names["collate"](encoded)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False)
    trainer = names["WeightedTrainer"](
        model=model, args=args, train_dataset=Dataset.from_list(encoded), data_collator=names["collate"]
    )
    loss = trainer.compute_loss(model, dict(batch))
    plain = {key: batch[key] for key in ("input_ids", "labels")}
    if weight == 1:
        torch.testing.assert_close(loss, model(**plain).loss)
    else:
        logits, labels, counts = model(batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:], batch["weights"]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        counts = counts[:, 1:] * (labels != checks.IGNORED)
        torch.testing.assert_close(loss, (each * counts).sum() / counts.sum())
        assert abs(loss.item() - model(**plain).loss.item()) > 1e-4
