"""Trainer callbacks: live loss and pace, a stop button, the time of each step, steady memory, order from the seed."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from IPython.display import Pretty, display
from transformers import TrainerCallback, set_seed

from cookbook import plots
from cookbook.allocator import Returns, memory_in_use
from cookbook.ledger import Ledger

if TYPE_CHECKING:
    from cookbook.widgets.stopping import StopButton

DRAW_EVERY = 10  # steps


class LiveLoss(TrainerCallback):
    """Training and validation loss in a figure updated in place, a line on where training is, and both in the ledger.

    `train` and `validation` hold (step, loss in nats a token); `seconds` holds the wall time of each step. The line
    has the step, the loss, the learning rate, tokens a second (no padding, over the steps alone), the time left at
    the pace so far, evaluations included, and the memory held (allocated on a GPU, resident on a CPU).

    Args:
        last: stop after this many steps, with the learning rates of the full run; 0: run to the end.
        interactive: show a button that stops after the step in progress and keeps what was learnt; an interrupt of
            the notebook does the same, a second one ends at once. The ledger, and so the run's record, says where.
    """

    def __init__(self, book: Ledger, title: str, *, seed: int = 0, last: int = 0, interactive: bool = False) -> None:
        self.book, self.title, self.seed, self.last, self.interactive = book, title, seed, last, interactive
        self.train: list[tuple[int, float]] = []
        self.validation: list[tuple[int, float]] = []
        self.seconds: list[float] = []
        self._handle: Any = None
        self._line: Any = None
        self._stop: StopButton | None = None
        self._open = ExitStack()
        self._spent, self._tokens, self._earlier = 0.0, 0, 0
        self._memory = Returns()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.steps = state.max_steps
        if state.global_step:  # resumed: what was logged before the stop
            logged = [(entry["step"], entry) for entry in state.log_history if entry["step"] <= state.global_step]
            self.train = [(step, entry["loss"]) for step, entry in logged if "loss" in entry]
            self.validation = [(step, entry["eval_loss"]) for step, entry in logged if "eval_loss" in entry]
        self._open.close()  # what an earlier training left that did not come to its end
        self._earlier = len(self.seconds)
        if model is not None:
            counted = model.register_forward_pre_hook(self._count, with_kwargs=True)
            self._open.callback(counted.remove)
        self._handle = display(self._draw(), display_id=True)
        self._line = display(Pretty(f"step {state.global_step} of {self._end}"), display_id=True)
        if self.interactive:
            from cookbook.widgets.stopping import StopButton

            self._stop = self._open.enter_context(StopButton())
            display(self._stop.button)
        self._first = time.perf_counter()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The order of rows must not depend on evaluations before; a resumed epoch has its own order again.
        set_seed(self.seed + int((state.epoch or 0) + 1e-6))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()
        if len(self.seconds) == self._earlier:
            self._first = self._began

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        self._spent += self.seconds[-1]
        self._memory.after(state.global_step)
        control.should_training_stop |= bool(self.last) and state.global_step >= self.last
        if self._stop and self._stop.pressed and state.global_step < self._end and not control.should_training_stop:
            control.should_training_stop = True
            control.should_evaluate |= args.eval_strategy == "steps"  # as the trainer does in its last step
            control.should_save |= args.save_strategy == "steps"
            self.book.stop(self.title, state.global_step, self._end)
            self._stop.say(f"Stopped at step {state.global_step} of {self._end}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.train.append((state.global_step, float(logs["loss"])))
            facts = self._facts(state.global_step, logs)
            self.book.note(**facts)
            if self._line:
                self._line.update(Pretty(_sentence(facts)))
        if "eval_loss" in logs:
            self.validation.append((state.global_step, float(logs["eval_loss"])))
        if self._handle and (len(self.train) % DRAW_EVERY == 0 or "eval_loss" in logs):
            self._handle.update(self._draw())

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if abs(state.epoch - round(state.epoch)) < 1e-6:  # a resumed training would load it after the epoch's seed
            for file in Path(args.output_dir, f"checkpoint-{state.global_step}").glob("rng_state*.pth"):
                file.unlink()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._open.close()
        if self._stop and not self._stop.button.disabled:
            self._stop.say(f"Ended at step {state.global_step} of {self._end}")
        if self._handle:
            self._handle.update(self._draw())

    @property
    def _end(self) -> int:
        """The step that training is to end with."""
        return min(self.steps, self.last or self.steps)

    def _count(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        """Adds up the real tokens of each forward that is learnt from; a tensor, so that no GPU is waited for."""
        if not (module.training and torch.is_grad_enabled()):
            return
        read, mask, labels = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
        if read is not None:
            self._tokens = self._tokens + (read.numel() if mask is None else mask.sum())
        elif labels is not None:  # speech in, text out
            self._tokens = self._tokens + (labels != -100).sum()

    def _facts(self, step: int, logs: dict[str, float]) -> dict[str, float]:
        facts = {"step": step, "steps": self._end, "loss": round(float(logs["loss"]), 4)}
        if "learning_rate" in logs:
            facts["learning_rate"] = float(f"{logs['learning_rate']:.3g}")
        if self._spent and int(self._tokens):
            facts["tokens_per_second"] = round(int(self._tokens) / self._spent)
        if steps := len(self.seconds) - self._earlier:
            pace = (time.perf_counter() - self._first) / steps
            facts["seconds_left"] = round(pace * (self._end - step))
        return facts | {"memory_gb": round(memory_in_use() / 1e9, 2)}

    def _draw(self) -> Any:
        return plots.losses(self.train, self.validation, title=self.title, steps=self.steps)


def _sentence(facts: dict[str, float]) -> str:
    """The ledger's line for a reader."""
    said = {
        "loss": "loss {:.3f}",
        "learning_rate": "learning rate {:.2g}",
        "tokens_per_second": "{:,} tokens a second",
        "memory_gb": "{:.2f} GB",
    }
    parts = [f"step {facts['step']} of {facts['steps']}"]
    parts += [text.format(facts[name]) for name, text in said.items() if name in facts]
    if "seconds_left" in facts:
        parts.append(f"{timedelta(seconds=facts['seconds_left'])} left")
    return ", ".join(parts)


class LiveRewards(LiveLoss):
    """The same for preference training: draws the rewards of chosen and rejected answers, keeps all that TRL logs.

    `rewards` maps "chosen", "rejected", "margins" and "accuracies", with "eval " before it for validation pairs,
    to (step, value); rewards are in β times nats.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        self.rewards: dict[str, list[tuple[int, float]]] = defaultdict(list)
        super().__init__(*args, **more)

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step:  # resumed: what was logged before the stop
            self.rewards.clear()
            for entry in state.log_history:
                self._keep(entry["step"], entry)
        super().on_train_begin(args, state, control, **more)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self._keep(state.global_step, logs)
        super().on_log(args, state, control, logs)

    def _keep(self, step: int, logs: dict[str, float]) -> None:
        for name, value in logs.items():
            if "rewards/" in name:
                self.rewards[name.replace("eval_", "eval ").replace("rewards/", "")].append((step, float(value)))

    def _draw(self) -> Any:
        names = {"chosen": "chosen", "rejected": "rejected", "eval chosen": "chosen, validation"}
        names |= {"eval rejected": "rejected, validation"}
        series = {label: self.rewards[name] for name, label in names.items()}
        return plots.steps(series, title=self.title, ylabel="reward (β × nats)", last=self.steps)
