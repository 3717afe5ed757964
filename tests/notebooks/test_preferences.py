"""Notebook 05 works with labels of two people instead of pairs, and with each of its losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_smoke import run

from cookbook import batch, data

pytestmark = pytest.mark.model


def labels(file: Path) -> Path:
    """The sample's pairs as two people would have labelled them; the second is of another mind about one in ten."""
    lines = []
    for i, text in enumerate((data.sample("brand_voice") / "train.jsonl").read_text().splitlines()[:40]):
        row = json.loads(text)
        sides = {"prompt": row["prompt"], "a": row["chosen"], "b": row["rejected"]}
        lines += [sides | {"label": "a", "labeller": "one"}]
        lines += [sides | {"label": "b" if i % 10 == 0 else "a", "labeller": "two"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_labels_of_two_people_and_kto(tmp_path: Path) -> None:
    given = {"DATA": str(labels(tmp_path / "labels.jsonl")), "LOSS": "kto", "EPOCHS": 0.3}
    record = run(batch.find("05"), tmp_path / "run", **given)
    assert record.data.source == "labels.jsonl"
    assert record.data.train + record.data.validation + record.data.test <= 36
    assert record.model.technique == "SFT + KTO"
    assert "intent_accuracy" not in record.metrics, "the tickets belong to the sample's shop"
    executed = (tmp_path / "run" / "executed.ipynb").read_text()
    assert "one and two agree on 90% of 40 pairs" in executed


@pytest.mark.parametrize("loss", ["ipo", "orpo"])
def test_other_losses(tmp_path: Path, loss: str) -> None:
    record = run(batch.find("05"), tmp_path / "run", LOSS=loss, TICKETS=0, BETA=0.5, TAIL=1.0)
    assert record.model.technique == f"SFT + {loss.upper()}"
    assert record.claims["C7"].verdict == "not measured in this run"
    assert ("copied" in record.details["first_loss"]) == (loss == "ipo")
    assert bool(record.details["kl"]) == (loss == "ipo"), "ORPO keeps no reference to measure the distance to"
