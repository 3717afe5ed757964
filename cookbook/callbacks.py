"""Trainer callbacks: a live loss figure, the time of each step, steady memory, and a data order from the seed."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from IPython.display import display
from transformers import TrainerCallback, set_seed

from cookbook import plots
from cookbook.ledger import Ledger, release_memory

DRAW_EVERY = 10  # steps
RELEASE_EVERY = 8  # steps: batches of many lengths leave holes in a CPU's memory that add up to gigabytes


class LiveLoss(TrainerCallback):
    """Draws training and validation loss in one figure that is updated in place, and tells the ledger.

    `train` and `validation` hold (step, loss in nats a token); `seconds` holds the wall time of each step.

    Args:
        last: stop after this many steps, with the learning rates of the full run; 0: run to the end.
    """

    def __init__(self, book: Ledger, title: str, *, seed: int = 0, last: int = 0) -> None:
        self.book, self.title, self.seed, self.last = book, title, seed, last
        self.train: list[tuple[int, float]] = []
        self.validation: list[tuple[int, float]] = []
        self.seconds: list[float] = []
        self._handle: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps = state.max_steps
        if state.global_step:  # resumed: what was logged before the stop
            logged = [(entry["step"], entry) for entry in state.log_history if entry["step"] <= state.global_step]
            self.train = [(step, entry["loss"]) for step, entry in logged if "loss" in entry]
            self.validation = [(step, entry["eval_loss"]) for step, entry in logged if "eval_loss" in entry]
        self._handle = display(self._draw(), display_id=True)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The order of rows must not depend on evaluations before; a resumed epoch has its own order again.
        set_seed(self.seed + int((state.epoch or 0) + 1e-6))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        if state.global_step % RELEASE_EVERY == 0:
            release_memory(collect=False)
        control.should_training_stop |= bool(self.last) and state.global_step >= self.last

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.train.append((state.global_step, float(logs["loss"])))
            self.book.note(step=state.global_step, steps=state.max_steps, loss=round(float(logs["loss"]), 4))
        if "eval_loss" in logs:
            self.validation.append((state.global_step, float(logs["eval_loss"])))
        if self._handle and (len(self.train) % DRAW_EVERY == 0 or "eval_loss" in logs):
            self._handle.update(self._draw())

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if abs(state.epoch - round(state.epoch)) < 1e-6:  # a resumed training would load it after the epoch's seed
            for file in Path(args.output_dir, f"checkpoint-{state.global_step}").glob("rng_state*.pth"):
                file.unlink()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._handle:
            self._handle.update(self._draw())

    def _draw(self) -> Any:
        return plots.losses(self.train, self.validation, title=self.title, steps=self.steps)


class LiveRewards(LiveLoss):
    """The same for preference training: draws the rewards of chosen and rejected answers, keeps all that TRL logs.

    `rewards` maps "chosen", "rejected", "margins" and "accuracies", with "eval " before it for validation pairs,
    to (step, value); rewards are in β times nats.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        self.rewards: dict[str, list[tuple[int, float]]] = defaultdict(list)
        super().__init__(*args, **more)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        for name, value in logs.items():
            if "rewards/" in name:
                self.rewards[name.replace("eval_", "eval ").replace("rewards/", "")].append(
                    (state.global_step, float(value))
                )
        super().on_log(args, state, control, logs)

    def _draw(self) -> Any:
        names = {"chosen": "chosen", "rejected": "rejected", "eval chosen": "chosen, validation"}
        names |= {"eval rejected": "rejected, validation"}
        series = {label: self.rewards[name] for name, label in names.items()}
        return plots.steps(series, title=self.title, ylabel="reward (β × nats)", last=self.steps)
