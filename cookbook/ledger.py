"""What a run costs: seconds a stage, tokens, peak memory predicted and measured, bytes on disk, money."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from cookbook.allocator import cuda, release_memory
from cookbook.results import Cost, Memory, Parameters, Resources, Seconds, Stopped

PROGRESS = "progress.jsonl"  # the launcher follows this file to show stages of a headless run


@dataclass
class Stage:
    """One finished stage: wall seconds and the highest memory seen in it, in bytes."""

    name: str
    seconds: float
    peak_bytes: int


@dataclass
class Ledger:
    """Keeps the books of one run in `folder`; use `with ledger.stage("train"):` around each stage.

    Args:
        folder: the run's folder; each stage adds a line to its `progress.jsonl`.
        rate_per_hour: price of the machine, in `currency` an hour; 0 if it costs nothing.
    """

    folder: Path
    rate_per_hour: float = 0.0
    currency: str = "EUR"
    stages: list[Stage] = field(default_factory=list)
    stopped: list[Stopped] = field(default_factory=list)
    predicted_bytes: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        self.started = psutil.Process().create_time()  # of the kernel: imports count as well
        self.started_at = datetime.fromtimestamp(self.started, UTC)
        self.idle_bytes = psutil.Process().memory_info().rss  # of Python and its libraries, without a model
        (self.folder / PROGRESS).write_text("", encoding="utf-8")
        if not gc.get_freeze_count():
            gc.freeze()  # the libraries: no garbage among them, and to look took half a second after each stage

    def note(self, **event: Any) -> None:
        """Add one line to `progress.jsonl`: the stage, or anything else a launcher may show."""
        with open(self.folder / PROGRESS, "a", encoding="utf-8") as f:
            f.write(json.dumps({"time": round(time.time(), 2), **event}) + "\n")

    def stop(self, training: str, step: int, steps: int) -> None:
        """Put down that somebody stopped a training after `step` of its planned `steps`; the record will say so."""
        self.stopped.append(Stopped(training=training, step=step, steps=steps))
        self.note(stopped=training, step=step, steps=steps)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and watch its memory (sampled every 50 ms)."""
        self.note(stage=name, event="start")
        start, watch = time.perf_counter(), _MemoryWatch()
        try:
            yield
        finally:
            done = Stage(name, time.perf_counter() - start, watch.stop())
            release_memory()
            self.stages.append(done)
            self.note(stage=name, event="end", seconds=round(done.seconds, 1), peak_bytes=done.peak_bytes)
        print(f"[{name}] {done.seconds:.1f} s, peak memory {done.peak_bytes / 1e9:.2f} GB")

    def seconds(self, *names: str) -> float:
        """Wall seconds of the stages whose name starts with one of `names`."""
        return sum(s.seconds for s in self.stages if s.name.startswith(names))

    def table(self) -> dict[str, float]:
        """Seconds by stage, in order; a stage that ran twice counts together."""
        seconds: dict[str, float] = {}
        for stage in self.stages:
            seconds[stage.name] = round(seconds.get(stage.name, 0.0) + stage.seconds, 1)
        return seconds

    @property
    def peak_bytes(self) -> int:
        """The highest memory seen in any stage, in bytes: resident on a CPU, allocated on a GPU."""
        return max((s.peak_bytes for s in self.stages), default=0)

    def resources(self, *, trainable: int, total: int, artifact: Path) -> Resources:
        """Close the books: stages named `train…` count as training, all others but `load…` as evaluation."""
        elapsed = time.time() - self.started
        train = self.seconds("train")
        evaluate = sum(s.seconds for s in self.stages if not s.name.startswith(("train", "load")))
        amount = elapsed / 3600 * self.rate_per_hour
        return Resources(
            seconds=Seconds(total=elapsed, train=train, evaluate=evaluate),
            tokens=self.tokens,
            tokens_per_second=self.tokens / train if train else 0.0,
            peak_memory_bytes=Memory(predicted=self.predicted_bytes, measured=self.peak_bytes),
            parameters=Parameters(total=total, trainable=trainable),
            artifact_bytes=folder_bytes(artifact),
            cost=Cost(rate_per_hour=self.rate_per_hour, currency=self.currency, amount=amount),
            stopped=self.stopped,
        )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())


class _MemoryWatch:
    """Samples this process's memory in a thread until `stop`, which returns the peak in bytes."""

    def __init__(self, interval: float = 0.05) -> None:
        self._process, self._interval, self._done = psutil.Process(), interval, threading.Event()
        self._cuda = cuda()
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
        self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(self._interval):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        self._peak = max(self._peak, self._process.memory_info().rss)  # a stage may be shorter than the interval
        return self._cuda.max_memory_allocated() if self._cuda else self._peak
