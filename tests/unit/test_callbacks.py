"""When a training gives free memory back to the system."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cookbook import callbacks, fused, ledger

GB = 1 << 30


@pytest.fixture
def released() -> list[int]:
    """Steps after which memory was given back."""
    return []


def train(held: list[float], released: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go through one step for each amount of memory, in GB, that is held after it."""
    live = callbacks.LiveLoss(ledger.Ledger(folder), "Loss")
    live.steps = len(held)
    control = SimpleNamespace(should_training_stop=False)
    for step, amount in enumerate(held, 1):
        monkeypatch.setattr(callbacks, "memory_in_use", lambda amount=amount: int(amount * GB))
        monkeypatch.setattr(callbacks, "release_memory", lambda collect, step=step: released.append(step))
        state = SimpleNamespace(global_step=step)
        live.on_step_begin(None, state, control)
        live.on_step_end(None, state, control)


def test_free_memory_goes_back_every_few_steps(
    tmp_path: Path, released: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_keeps", False)
    train([1.0] * 17, released, tmp_path, monkeypatch)
    assert released == [8, 16]


def test_kept_memory_goes_back_once_it_has_grown_by_half(
    tmp_path: Path, released: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_keeps", True)
    train([2.0] * 20 + [2.9, 3.1, 1.0, 1.4, 1.6, 1.0, 1.4], released, tmp_path, monkeypatch)
    assert released == [22, 25]
