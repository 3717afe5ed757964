"""Live training: what its line says, and a stop by button or interrupt that a busy kernel really notices."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from IPython.display import Pretty
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.kernelspec import KernelSpec
from transformers import AutoModelForCausalLM, IntervalStrategy, Trainer, TrainerCallback, TrainingArguments

from cookbook import callbacks, ledger
from cookbook.results import Stopped
from cookbook.widgets.stopping import StopButton

ROWS = [{"input_ids": [5, 6, 7, 8], "attention_mask": [1, 1, 1, 0], "labels": [-100, 6, 7, 8]} for _ in range(16)]
STEPS = 8
PREPARE = """
import json, sys, time
sys.path[:0] = {paths}
from pathlib import Path
from IPython.display import display
from test_widgets_stopping import Slow, make
from cookbook import ledger

def train(seconds):
    book = ledger.Ledger(Path({folder!r}))
    live, trainer = make(Path({model!r}), book, Slow(seconds), interactive=True, steps=400)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    moved = any((a != b).any() for a, b in zip(before, trainer.model.parameters()))
    stopped = [one.model_dump() for one in book.stopped]
    print("RESULT", json.dumps([trainer.state.global_step, live.validation[-1][0], moved, stopped]))
"""


class Slow(TrainerCallback):
    """Makes a step long enough for somebody to press a button, and a KeyboardInterrupt possible in its midst."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        time.sleep(self.seconds)


class Press(TrainerCallback):
    """Presses the stop button in a step."""

    def __init__(self, step: int, press: Callable[[], None]) -> None:
        self.step, self.press = step, press

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step - 1:
            self.press()


class Handle:
    """Keeps what is displayed at one place."""

    def __init__(self, shown: list[Any], first: Any) -> None:
        self.shown, self.update = shown, shown.append
        self.update(first)


def make(
    model: Path, book: ledger.Ledger, *others: TrainerCallback, steps: int = STEPS, **more: Any
) -> tuple[callbacks.LiveLoss, Trainer]:
    live = callbacks.LiveLoss(book, "Loss", **more)
    arguments = TrainingArguments(
        output_dir=str(book.folder / "out"), max_steps=steps, per_device_train_batch_size=2, save_strategy="no",
        learning_rate=1e-2, eval_strategy="epoch", eval_on_start=True, logging_steps=1, report_to="none",
        disable_tqdm=True, use_cpu=True, label_names=["labels"], seed=0,
    )  # fmt: skip
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(model), args=arguments, callbacks=[live, *others],
        train_dataset=Dataset.from_list(ROWS), eval_dataset=Dataset.from_list(ROWS[:2]),
    )  # fmt: skip
    return live, trainer


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ledger.PROGRESS).read_text().splitlines()]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Python's own answer to an interrupt, which a process started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_line_and_the_ledger_say_how_training_goes(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(callbacks, "display", lambda first, display_id: Handle(shown, first))
    live, trainer = make(llama, ledger.Ledger(tmp_path), Slow(0.02))
    trainer.train()
    told = [event for event in events(tmp_path) if "loss" in event]
    assert [event["step"] for event in told] == list(range(1, STEPS + 1)) and {event["steps"] for event in told} == {
        8
    }
    rates = [event["learning_rate"] for event in told]
    assert rates[0] == pytest.approx(1e-2, rel=0.2) and rates == sorted(rates, reverse=True)
    last = told[-1]
    assert last["seconds_left"] == 0 <= told[0]["seconds_left"] and last["memory_gb"] > 0.05
    # 2 rows of 3 real tokens a step; the evaluations are no training
    assert last["tokens_per_second"] == pytest.approx(STEPS * 6 / sum(live.seconds), rel=0.05)
    assert not trainer.model._forward_pre_hooks
    lines = [one.data for one in shown if isinstance(one, Pretty)]
    assert lines[0] == "step 0 of 8" and lines[-1].startswith(
        f"step 8 of 8, loss {last['loss']:.3f}, learning rate 0"
    )
    assert lines[-1].endswith("GB, 0:00:00 left") and f" {last['tokens_per_second']:,} tokens a second" in lines[-1]


def test_the_button_stops_after_the_step_and_keeps_what_was_learnt(llama: Path, tmp_path: Path) -> None:
    book = ledger.Ledger(tmp_path)
    live, trainer = make(llama, book, Press(3, lambda: live._stop.button.click()), interactive=True)
    handler = signal.getsignal(signal.SIGINT)
    trainer.train()
    assert trainer.state.global_step == len(live.seconds) == 3
    assert live.validation[-1][0] == 3  # the end of a pass is measured as always
    assert book.stopped == [Stopped(training="Loss", step=3, steps=STEPS)]
    (noted,) = [event for event in events(tmp_path) if "stopped" in event]
    assert noted["stopped"] == "Loss" and (noted["step"], noted["steps"]) == (3, 8)
    assert book.resources(trainable=1, total=2, artifact=tmp_path).stopped == book.stopped
    assert live._stop.button.description == "Stopped at step 3 of 8" and live._stop.button.disabled
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_step_stopped_at_is_measured_and_saved_where_that_goes_by_steps(llama: Path, tmp_path: Path) -> None:
    live, trainer = make(
        llama, ledger.Ledger(tmp_path), Press(3, lambda: live._stop.button.click()), interactive=True
    )
    for name in ("eval", "save"):
        setattr(trainer.args, f"{name}_strategy", IntervalStrategy.STEPS)
        setattr(trainer.args, f"{name}_steps", 5)
    trainer.train()
    assert [step for step, _ in live.validation] == [0, 3]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-3"]


def test_an_interrupt_stops_after_the_step_and_only_if_asked_for(llama: Path, tmp_path: Path) -> None:
    book = ledger.Ledger(tmp_path)
    live, trainer = make(llama, book, Press(2, lambda: signal.raise_signal(signal.SIGINT)), interactive=True)
    trainer.train()
    assert trainer.state.global_step == 2 and book.stopped[0].step == 2
    press = Press(2, lambda: signal.raise_signal(signal.SIGINT))
    _, trainer = make(llama, book, press)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    press.step = 0
    trainer.train()  # the cell is run again: nothing of the first time is counted twice
    assert trainer.state.global_step == STEPS and not trainer.model._forward_pre_hooks


def test_a_press_in_the_last_step_stops_nothing(llama: Path, tmp_path: Path) -> None:
    book = ledger.Ledger(tmp_path)
    live, trainer = make(llama, book, Press(4, lambda: live._stop.button.click()), interactive=True, last=4)
    trainer.train()
    assert trainer.state.global_step == 4 and not book.stopped
    assert live._stop.button.description == "Ended at step 4 of 4"


def test_a_second_interrupt_ends_at_once() -> None:
    with StopButton() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.pressed
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with stop:
        assert not stop.pressed


class Front:
    """A front end as the kernel sees it: sends what a notebook sends, reads what a notebook is sent."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client

    def run(self, code: str, *then: Callable[[str], None], after: str = "") -> str:
        """Run a cell and return what it printed, or its error; `then` are done one after the other once it trains.

        Args:
            after: a cell that is queued behind it at the same time, as "run all" does.
        """
        mine, button, lines, todo = self.client.execute(code), "", [], list(then)
        waits = self.client.execute(after) if after else mine
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            content = message["content"]
            state = content.get("data", {}).get("state", {}) if message["msg_type"] == "comm_open" else {}
            if state.get("_model_name") == "ButtonModel":
                button = content["comm_id"]
            elif message["msg_type"] == "update_display_data" and button and todo:
                todo.pop(0)(button)
            elif message["msg_type"] == "stream":
                lines.append(content["text"])
            elif message["msg_type"] == "error":
                lines.append("\n".join([*content["traceback"], content["ename"]]))
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                if message["parent_header"].get("msg_id") == waits:
                    return "".join(lines)

    def click(self, button: str) -> None:
        told = {"comm_id": button, "data": {"method": "custom", "content": {"event": "click"}}}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", told))

    def interrupt(self, button: str) -> None:
        self.manager.interrupt_kernel()


@pytest.fixture(scope="module")
def front(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    manager = KernelManager()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=command, display_name="test", language="python")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        made = Front(manager, client)
        paths = [str(Path(__file__).parent), str(Path(ledger.__file__).parents[1])]
        folder = str(tmp_path_factory.mktemp("book"))
        said = made.run(PREPARE.format(paths=paths, folder=folder, model=str(llama)))
        assert "Error" not in said, said
        yield made
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def result(said: str) -> list[Any]:
    (line,) = [line for line in said.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def test_a_busy_kernel_notices_the_click(front: Front) -> None:
    said = front.run("train(0.02)", front.click, after="print('next cell')")
    step, measured, moved, stopped = result(said)
    assert 1 <= step < 100 and measured == step and moved
    assert stopped == [{"training": "Loss", "step": step, "steps": 400}]
    assert said.rstrip().endswith("next cell")  # what waited in the queue is run, after training


def test_a_busy_kernel_takes_the_interrupt_for_a_stop(front: Front) -> None:
    step, measured, moved, stopped = result(front.run("train(0.02)", front.interrupt))
    assert 1 <= step < 100 and measured == step and moved and stopped[0]["step"] == step
    assert result(front.run("train(0.001)", front.click))[0] < 400  # and the next training can be stopped as well


def test_a_second_interrupt_ends_the_cell(front: Front) -> None:
    def twice(button: str) -> None:
        front.interrupt(button)
        time.sleep(0.5)
        front.interrupt(button)

    said = front.run("train(5)", twice)
    assert said.endswith("KeyboardInterrupt")
    assert result(front.run("train(0.02)", front.click))[0] < 100
