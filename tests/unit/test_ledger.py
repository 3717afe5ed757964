"""The books of a run: seconds, peak memory, tokens, money, also when a stage fails."""

from __future__ import annotations

import gc
import json
import mmap
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from cookbook import ledger
from cookbook.ledger import Ledger


class Node:
    """Something that can refer to itself."""

    itself: Node


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / ledger.PROGRESS).read_text().splitlines()]


@contextmanager
def block_of_200_mb() -> Iterator[mmap.mmap]:
    """Resident memory outside of the allocator, which could keep a block back or have one ready."""
    with mmap.mmap(-1, 200_000_000) as block:
        for page in range(0, 200_000_000, 4096):
            block[page] = 1
        yield block


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setattr(ledger, "cuda", lambda: None)  # resident memory, also on a machine with a GPU
    return Ledger(tmp_path)


def test_stages(book: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("load", "train", "train again", "load"):
        with book.stage(name):
            time.sleep(0.06)
    assert [s.name for s in book.stages] == ["load", "train", "train again", "load"]
    assert 0.12 <= book.seconds("train") < 1 and 0.24 <= book.seconds("train", "load") < 2
    assert list(book.table()) == ["load", "train", "train again"] and book.table()["load"] >= 0.1
    assert book.seconds("evaluate") == 0
    told = events(tmp_path)
    assert [(e["stage"], e["event"]) for e in told[:3]] == [("load", "start"), ("load", "end"), ("train", "start")]
    assert told[1]["peak_bytes"] == book.stages[0].peak_bytes and all(e["time"] <= time.time() + 0.01 for e in told)
    assert capsys.readouterr().out.count("\n") == 4


def test_peak_memory_sees_an_array_that_is_gone_again(book: Ledger) -> None:
    before = psutil.Process().memory_info().rss
    with book.stage("train"):
        with block_of_200_mb():
            time.sleep(0.15)
    with book.stage("score"):
        pass
    with_array, without = (s.peak_bytes for s in book.stages)
    assert with_array >= before + 180e6 and without <= with_array - 150e6
    assert book.peak_bytes == with_array


def test_peak_memory_of_a_stage_shorter_than_the_sampling(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger._MemoryWatch.__init__, "__defaults__", (60.0,))
    before = psutil.Process().memory_info().rss
    with ExitStack() as held:
        with book.stage("train"):
            held.enter_context(block_of_200_mb())
    assert book.peak_bytes >= before + 180e6


def test_a_stage_that_fails_is_closed(book: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="no"), book.stage("train"):
        raise RuntimeError("no")
    assert [s.name for s in book.stages] == ["train"] and events(tmp_path)[-1]["event"] == "end"
    assert capsys.readouterr().out == ""


def test_progress_starts_anew_and_keeps_notes(tmp_path: Path) -> None:
    (tmp_path / ledger.PROGRESS).write_text("an old run\n")
    book = Ledger(tmp_path)
    assert events(tmp_path) == []
    book.note(step=3, steps=10, loss=1.5)
    assert {k: events(tmp_path)[0][k] for k in ("step", "steps", "loss")} == {"step": 3, "steps": 10, "loss": 1.5}


def test_resources(book: Ledger, tmp_path: Path) -> None:
    book.rate_per_hour, book.currency, book.tokens, book.predicted_bytes = 3.6, "USD", 1000, 7
    book.stages = [ledger.Stage(*s) for s in (("load", 1.0, 10), ("train", 4.0, 30), ("score before", 2.0, 20))]
    book.started = time.time() - 100
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "a").write_bytes(b"12345")
    (tmp_path / "model" / "deep" / "b").write_bytes(b"678")
    found = book.resources(trainable=5, total=50, artifact=tmp_path / "model")
    assert found.seconds.model_dump() == {"total": pytest.approx(100, abs=1), "train": 4, "evaluate": 2}
    assert (found.tokens, found.tokens_per_second, found.artifact_bytes) == (1000, 250, 8)
    assert found.peak_memory_bytes.model_dump() == {"predicted": 7, "measured": 30}
    assert found.parameters.model_dump() == {"total": 50, "trainable": 5}
    assert found.cost.amount == pytest.approx(0.1, abs=0.002) and found.cost.currency == "USD"


def test_a_run_without_training_costs_nothing_and_divides_by_nothing(book: Ledger, tmp_path: Path) -> None:
    found = book.resources(trainable=0, total=1, artifact=tmp_path / "nothing")
    assert found.tokens_per_second == found.cost.amount == found.artifact_bytes == 0
    assert found.seconds.total > 0, "counted from the start of the process, imports included"


def test_libraries_are_frozen_once_and_later_garbage_is_still_collected(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    frozen = gc.get_freeze_count()
    assert frozen
    node = Node()
    node.itself, dropped = node, weakref.ref(node)
    del node
    Ledger(tmp_path)
    assert gc.get_freeze_count() <= frozen, "a second ledger in one kernel freezes nothing that may become garbage"
    with book.stage("anything"):
        pass
    assert dropped() is None
