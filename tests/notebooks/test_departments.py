"""Notebook 03, stopped while it trains its second department and begun again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_own_data_and_model import reviews, tiny
from test_smoke import cut_off, numbers, run

from cookbook import batch

pytestmark = pytest.mark.model


def test_a_stopped_run_trains_no_department_twice(tmp_path: Path) -> None:
    """A finished adapter comes from its last checkpoint, the other goes on: the same scores and weights."""
    for name in ("press-office", "sales"):
        (tmp_path / "all" / name).mkdir(parents=True)
        reviews(tmp_path / "all" / name / "train.jsonl")
    model = tiny(tmp_path / "tiny-gpt2", "gpt2")
    given = {"DATA": str(tmp_path / "all"), "MODEL": str(model), "ALLOW_LEAKAGE": True, "EPOCHS": 20.0}
    given |= {"SAVE_STEPS": 4}  # of two steps a pass
    whole = run(batch.find("03"), tmp_path / "whole", **given)
    second_training = "train: lora, sales"
    cut_off(batch.find("03"), tmp_path / "stopped", lambda at, step: at == second_training and step >= 9, **given)
    resumed = run(batch.find("03"), tmp_path / "stopped", **given)
    executed = (tmp_path / "stopped" / "executed.ipynb").read_text()
    first, second = map(int, re.findall(r"resumed from checkpoint-(\d+)", executed))
    assert first == 40 and 8 <= second < 40
    assert numbers(resumed) == numbers(whole)
    assert len(resumed.details["validation_loss"]["lora, sales"]) == 21
    for name in ("press-office", "sales"):
        file = Path("model", "lora", name, "adapter_model.safetensors")
        saved = [load_file(tmp_path / run_dir / file) for run_dir in ("whole", "stopped")]
        assert all(torch.equal(saved[0][key], saved[1][key]) for key in saved[0])
    assert not (tmp_path / "stopped" / "checkpoints").exists()
