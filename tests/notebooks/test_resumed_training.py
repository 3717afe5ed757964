"""Notebooks 01 and 02 cut off in mid-training and begun again: from a checkpoint to the very same end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_own_data_and_model import reviews
from test_smoke import cut_off, numbers, run

from cookbook import batch

pytestmark = pytest.mark.model


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: w for file in (folder / "model").glob("*.safetensors") for name, w in load_file(file).items()}


@pytest.mark.parametrize(
    ("recipe", "step", "given"),
    [
        ("01", 5, {"EPOCHS": 3.0, "COMPARE_STEPS": 0}),  # in the second pass
        ("02", 5, {"EPOCHS": 4.0, "SHOTS": 0, "ALLOW_LEAKAGE": True}),  # after an evaluation, before the next
    ],
)
def test_a_cut_off_run_ends_like_an_uninterrupted_one(
    recipe: str, step: int, given: dict[str, Any], tmp_path: Path
) -> None:
    notebook = batch.find(recipe)
    given = {"SAVE_STEPS": 2, **given}
    if recipe == "02":
        given["DATA"] = str(reviews(tmp_path / "clauses.jsonl"))
    whole = run(notebook, tmp_path / "whole", **given)
    assert not whole.resources.stopped and not (tmp_path / "whole" / "checkpoints").exists()
    cut_off(notebook, tmp_path / "cut", lambda _, at: at >= step, **given)
    assert list((tmp_path / "cut" / "checkpoints").glob("checkpoint-*"))
    resumed = run(notebook, tmp_path / "cut", **given)
    assert "resumed from checkpoint-" in (tmp_path / "cut" / "executed.ipynb").read_text(encoding="utf-8")
    assert numbers(resumed) == numbers(whole)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert expected and found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
