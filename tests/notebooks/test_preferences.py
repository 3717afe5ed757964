"""Notebook 05 works with labels of two people instead of pairs, and with each of its losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_smoke import cut_off, numbers, run

from cookbook import batch, data, results

pytestmark = pytest.mark.model
one_worker = pytest.mark.xdist_group("labelled")


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


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, results.Results]:
    """A run on such labels: its parameters, its folder, its record."""
    folder = tmp_path_factory.mktemp("labelled")
    given = {"DATA": str(labels(folder / "labels.jsonl")), "LOSS": "kto", "EPOCHS": 3.0}
    return given, folder / "run", run(batch.find("05"), folder / "run", **given)


@one_worker
def test_labels_of_two_people_and_kto(labelled: tuple[dict[str, Any], Path, results.Results]) -> None:
    _, folder, record = labelled
    assert record.data.source == "labels.jsonl"
    assert record.data.train + record.data.validation + record.data.test <= 36
    assert record.model.technique == "SFT + KTO"
    assert "intent_accuracy" not in record.metrics, "the tickets belong to the sample's shop"
    executed = (folder / "executed.ipynb").read_text()
    assert "one and two agree on 90% of 40 pairs" in executed


@pytest.mark.parametrize("loss", ["ipo", "orpo"])
def test_other_losses(tmp_path: Path, loss: str) -> None:
    record = run(batch.find("05"), tmp_path / "run", LOSS=loss, TICKETS=0, BETA=0.5, TAIL=1.0)
    assert record.model.technique == f"SFT + {loss.upper()}"
    assert record.claims["C7"].verdict == "not measured in this run"
    assert ("copied" in record.details["first_loss"]) == (loss == "ipo")
    assert bool(record.details["kl"]) == (loss == "ipo"), "ORPO keeps no reference to measure the distance to"


@one_worker
def test_a_run_killed_in_its_second_training_goes_on_there(
    labelled: tuple[dict[str, Any], Path, results.Results], tmp_path: Path
) -> None:
    """Neither is begun anew or skipped, and all ends as in the run that saved nothing."""
    given, folder, whole = labelled
    given = given | {"SAVE_STEPS": 2}
    cut_off(batch.find("05"), tmp_path, lambda stage, step: stage == "train: DPO" and step >= 3, **given)
    resumed = run(batch.find("05"), tmp_path, **given)
    assert (tmp_path / "executed.ipynb").read_text().count("resumed from checkpoint-") == 2
    assert numbers(resumed) == numbers(whole)
    assert resumed.details["rewards"] == whole.details["rewards"] and resumed.details["kl"] == whole.details["kl"]
    saved = [load_file(run_dir / "model" / "adapter_model.safetensors") for run_dir in (folder, tmp_path)]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
