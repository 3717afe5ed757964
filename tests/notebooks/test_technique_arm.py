"""Notebook 19b where it takes another way than at its defaults: a learning-rate choice, an arm without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_own_data_and_model import reviews, tiny
from test_smoke import run

from cookbook import batch

pytestmark = pytest.mark.model


def test_a_choice_reads_no_test_row_and_saves_nothing(tmp_path: Path) -> None:
    record = run(batch.find("19b"), tmp_path, METHOD="prompt", CHOOSE=True, LEARNING_RATE=0.02)
    assert record.headline == "validation_loss" and list(record.metrics) == ["validation_loss"]
    loss = record.metrics["validation_loss"]
    assert loss.n == record.data.validation and not loss.higher_is_better and loss.after < loss.before
    assert record.forgetting == [] and record.resources.artifact_bytes == 0
    assert not (tmp_path / "model").exists()
    assert record.details["learning_rate"] == 0.02 and record.details["steps"] >= 2
    stages = " ".join(record.details["stages"])
    assert "untouched" not in stages and "answers" not in stages and "probes" not in stages


def test_few_shot_trains_nothing_and_ships_its_prompt(tmp_path: Path) -> None:
    record = run(batch.find("19b"), tmp_path, METHOD="few_shot")
    assert record.resources.parameters.trainable == record.resources.tokens == 0
    assert all(m.after == m.prompted for name, m in record.metrics.items() if name != "validation_loss")
    loss = record.metrics["validation_loss"]  # that of the same answers, behind a longer prompt
    assert loss.after != loss.before and loss.n == record.data.validation
    assert {p.change for p in record.forgetting} == {0.0}
    turns = json.loads((tmp_path / "model" / "prompt.json").read_text())
    assert [t["role"] for t in turns] == ["system", *["user", "assistant"] * 4]
    assert record.details["parity_reloaded"] == 1.0
    assert record.resources.artifact_bytes < 10_000


def test_own_rows_on_gpt2(tmp_path: Path) -> None:
    model, file = tiny(tmp_path / "tiny-gpt2", "gpt2"), reviews(tmp_path / "reviews.jsonl")
    given = {"DATA": str(file), "ALLOW_LEAKAGE": True, "METHOD": "ia3"}
    record = run(batch.find("19b"), tmp_path / "run", MODEL=str(model), **given)
    assert record.headline == "sentiment_accuracy" and record.data.source == "reviews.jsonl"
    assert record.details["parity_reloaded"] == 1.0
