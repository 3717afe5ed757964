"""When a training gives free memory back to the system."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cookbook import callbacks, fused, ledger

GB = 1 << 30


def train(held: list[float], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One step for each amount of memory, in GB, held after it; the steps after which memory was given back."""
    released: list[int] = []
    live = callbacks.LiveLoss(ledger.Ledger(folder), "Loss")
    live.steps = len(held)
    control = SimpleNamespace(should_training_stop=False)
    for step, amount in enumerate(held, 1):
        monkeypatch.setattr(callbacks, "memory_in_use", lambda amount=amount: int(amount * GB))
        monkeypatch.setattr(callbacks, "release_memory", lambda collect, step=step: released.append(step))
        state = SimpleNamespace(global_step=step)
        live.on_step_begin(None, state, control)
        live.on_step_end(None, state, control)
    return released


def test_free_memory_goes_back_every_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_keeps", False)
    assert train([1.0] * 17, tmp_path, monkeypatch) == [8, 16]


def test_kept_memory_goes_back_once_it_has_grown_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_keeps", True)
    held = [2.0] * 20 + [2.9, 3.1, 1.0, 1.4, 1.6, 1.0, 1.4]
    assert train(held, tmp_path, monkeypatch) == [22, 25]
