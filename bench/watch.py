"""A stop-watch for one training: seconds, tokens and memory, with validation outside of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.task import IGNORED, Row

INTERVAL = 0.02  # seconds between two looks at the memory
LOOKS = 50  # at the memory, between two looks for child processes, which cost more
VALIDATION_ROWS = 4  # a forward


class Clock:
    """Runs from the first step's begin to the last step's end; what is `paused` does not count.

    A training loop of any kind calls `step_begin` and `step_end`. Seconds between steps count as well: they are data
    loading and logging.
    """

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._born = time.time() - self._process.create_time()  # seconds that this process has lived by now
        self._made = time.perf_counter()
        self.steps: list[float] = []
        self.tokens: list[int] = []
        self.supervised: list[int | None] = []
        self.distinct = 0  # states that a model computed for all tokens, where rows share some; else 0
        self.validations: list[tuple[int, float, float]] = []  # steps done, training seconds so far, nats a token
        self.ready = 0.0  # seconds from the process's begin to the first step
        self._first: float | None = None
        self._last = self._began = 0.0
        self._away = self._away_last = self._away_began = 0.0  # seconds paused: by now, at a step's end, at its begin
        self._peak, self._sleeping, self._done = 0, threading.Event(), threading.Event()
        self._watch = threading.Thread(target=self._follow, daemon=True)
        self._watch.start()

    def step_begin(self) -> None:
        """Before the forward of an optimizer step."""
        self._began = time.perf_counter()
        if self._first is None:
            self._first, self._away = self._began, 0.0
            self.ready = self._born + self._began - self._made
        self._away_began = self._away

    def step_end(self, *, tokens: int, supervised: int | None = None) -> None:
        """After the optimizer's step: real tokens in it, and those that carry loss (None: not seen from here)."""
        self._last = time.perf_counter()
        self.steps.append(self._last - self._began - (self._away - self._away_began))
        self.tokens.append(tokens)
        self.supervised.append(supervised)
        self._away_last = self._away

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Neither time nor memory counts inside."""
        start = time.perf_counter()
        self._sleeping.set()
        try:
            yield
        finally:
            self._sleeping.clear()
            self._away += time.perf_counter() - start

    def validation(self, loss: float) -> None:
        """A validation loss after the steps done so far."""
        self.validations.append((len(self.steps), self.seconds, float(loss)))

    @property
    def seconds(self) -> float:
        """Training seconds up to the end of the last step."""
        return self._last - (self._first or 0.0) - self._away_last if self.steps else 0.0

    def result(self) -> dict[str, Any]:
        """All of it, after the training; memory is no longer watched."""
        self._done.set()
        self._watch.join()
        total = sum(self.tokens)
        return {
            "seconds": self.seconds,
            "step_seconds": self.steps,
            "tokens": total,
            "supervised": None if None in self.supervised else sum(self.supervised),
            "step_tokens": self.tokens,
            "distinct": self.distinct or total,
            "tokens_per_second": total / self.seconds if self.seconds else 0.0,
            "validation": self.validations,
            "validation_loss": self.validations[-1][2] if self.validations else None,
            "ready_seconds": self.ready,
            "peak_bytes": self._peak,
        }

    def _follow(self) -> None:
        children: list[Any] = []
        looks = 0
        while not self._done.wait(INTERVAL):
            if looks % LOOKS == 0:
                children = self._process.children(recursive=True)
            looks += 1
            if not self._sleeping.is_set():
                self._peak = max(self._peak, sum(map(_resident, [self._process, *children])))


def _resident(process: Any) -> int:
    """Bytes of a process; none if it has ended."""
    import psutil

    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def validation_loss(model: Any, rows: Sequence[Row], forward: Callable[..., Any] | None = None) -> float:
    """Nats a supervised token over all rows: the one measure of every arm, in its own model, in plain torch.

    Args:
        forward: (input_ids, attention_mask), each (rows, tokens) → logits; left out, a transformers model's.
    """
    import torch

    forward = forward or (lambda ids, mask: model(input_ids=ids, attention_mask=mask, use_cache=False).logits)
    ordered, training = sorted(rows, key=lambda row: len(row.input_ids)), model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, len(ordered), VALIDATION_ROWS):
            part = ordered[start : start + VALIDATION_ROWS]
            ids, labels, mask = padded(part)
            answer = labels[:, 1:] != IGNORED
            logits = forward(ids, mask)[:, :-1][answer].float()
            total += torch.nn.functional.cross_entropy(logits, labels[:, 1:][answer], reduction="sum").double()
    model.train(training)
    return total.item() / sum(row.supervised for row in rows)


def padded(rows: Sequence[Row]) -> tuple[Any, Any, Any]:
    """Tokens, labels and mask of rows filled up at their ends, each a tensor (rows, tokens)."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids, labels = (
        pad_sequence([torch.tensor(getattr(row, name)) for row in rows], batch_first=True, padding_value=pad)
        for name, pad in (("input_ids", 0), ("labels", IGNORED))
    )
    mask = pad_sequence([torch.ones(len(row.input_ids), dtype=torch.long) for row in rows], batch_first=True)
    return ids, labels, mask


def callback(clock: Clock, validate: Callable[[Any], float], every: int = 3) -> Any:
    """A callback for transformers' Trainer and what is derived from it; counts tokens where they enter the model.

    Args:
        validate: model → loss, run every `every` steps and after the last one, off the clock.
    """
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.seen: list[tuple[Any, Any]] = []
            model.register_forward_pre_hook(self.count, with_kwargs=True)

        def count(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
            if module.training and torch.is_grad_enabled():
                ids, mask, labels = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
                tokens = ids.numel() if mask is None or mask.ndim != 2 else int(mask.sum())
                self.seen.append((tokens, None if labels is None else int((labels[:, 1:] != IGNORED).sum())))

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.seen.clear()
            clock.step_begin()

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            tokens, supervised = zip(*self.seen, strict=True)
            clock.step_end(tokens=sum(tokens), supervised=None if None in supervised else sum(supervised))
            if state.global_step % every == 0 or state.global_step == state.max_steps:
                with clock.paused():
                    loss = validate(model)
                clock.validation(loss)

    return Watch()
