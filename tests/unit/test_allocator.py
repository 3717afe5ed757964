"""When a training gives free memory back to the system."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cookbook import allocator, callbacks, ledger

GB = 1 << 30


def train(held: list[float], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One step for each amount of memory, in GB, held after it; the steps after which memory was given back."""
    released: list[int] = []
    memory = allocator.Returns()
    for step, amount in enumerate(held, 1):
        monkeypatch.setattr(allocator, "memory_in_use", lambda amount=amount: int(amount * GB))
        monkeypatch.setattr(allocator, "release_memory", lambda collect, step=step: released.append(step))
        memory.after(step)
    return released


def test_free_memory_goes_back_every_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_keeps", False)
    assert train([1.0] * 17, monkeypatch) == [8, 16]


def test_kept_memory_goes_back_once_it_has_grown_by_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_keeps", True)
    held = [2.0] * 20 + [2.9, 3.1, 1.0, 1.4, 1.6, 1.0, 1.4]
    assert train(held, monkeypatch) == [22, 25]


def test_a_training_asks_after_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(allocator.Returns, "after", lambda self, step: asked.append(step))
    live = callbacks.LiveLoss(ledger.Ledger(tmp_path), "Loss")
    live.steps, control = 3, SimpleNamespace(should_training_stop=False)
    for step in (1, 2, 3):
        live.on_step_begin(None, SimpleNamespace(global_step=step), control)
        live.on_step_end(None, SimpleNamespace(global_step=step), control)
    assert asked == [1, 2, 3]
