"""Where a step's time goes: torch's profiler over one step of an arm, by kind of operation.

python -m bench.profiled ARM TASK_JSON OUT_JSON
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from bench.task import Task, read
from bench.watch import Clock

STEP = 6  # the one that is looked at; the first ones make what later ones reuse
# The first kind whose names an operation's name contains.
KINDS = {
    "optimizer": ("adamw", "_foreach", "optimizer", "clip_grad"),
    "matrix products": ("mm", "linear", "gemm", "Lora", "dequantize"),
    "attention": ("scaled_dot_product", "_softmax"),
    "loss and scores": ("log_softmax", "nll_loss", "logsumexp", "cross_entropy", "entropy", "argmax", "Nats"),
    "copies and casts": ("copy_", "clone", "contiguous", "cat", "index", "gather", "scatter", "embedding", "repeat"),
    "fresh memory": ("empty", "fill_", "zero_", "zeros", "resize"),
    "norms, activations, sums": (
        *("mul", "add", "sub", "div", "neg", "pow", "mean", "rsqrt", "sqrt", "silu", "sigmoid", "exp", "log", "sum"),
        *("cos", "sin", "norm", "square", "vecdot", "where", "masked", "clamp", "RMSNorm", "Gate"),
    ),
}
FIRST = ("loss and scores",)  # its log_softmax is no attention


def kind(name: str) -> str:
    """The kind of an operation, by its name as the profiler has it."""
    order = [*FIRST, *(k for k in KINDS if k not in FIRST)]
    return next((k for k in order if any(part in name for part in KINDS[k])), "Python and the rest")


class Profiler(Clock):
    """A clock that has the profiler look at one step."""

    def __init__(self) -> None:
        super().__init__()
        self.milliseconds: Counter[str] = Counter()
        self.step_tokens = 0
        self._profile: Any = None

    def step_begin(self) -> None:
        super().step_begin()
        if len(self.steps) == STEP - 1:
            import torch

            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self._profile.__enter__()

    def step_end(self, *, tokens: int, supervised: int | None = None) -> None:
        if self._profile:
            self._profile.__exit__(None, None, None)
            for event in self._profile.key_averages():
                self.milliseconds[kind(event.key)] += event.self_cpu_time_total / 1e3
            self._profile, self.step_tokens = None, tokens
        super().step_end(tokens=tokens, supervised=supervised)


def measure(arm: str, task: Task) -> dict[str, Any]:
    """Milliseconds of one step by kind, and its real tokens."""
    from bench.arms import ARMS

    clock = Profiler()
    ARMS[arm].train(task, clock)
    clock.result()
    return {"milliseconds": dict(clock.milliseconds), "tokens": clock.step_tokens, "task": task.fingerprint}


if __name__ == "__main__":
    name, source, out = sys.argv[1:]
    Path(out).write_text(json.dumps(measure(name, read(source)), indent=1), encoding="utf-8")
