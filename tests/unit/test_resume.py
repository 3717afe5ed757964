"""A training that is stopped and resumed ends with the weights of one that was not; another training starts anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from cookbook import callbacks, ledger, resume

ROWS = [[(7 * i + j) % 50 + 5 for j in range(4 + i % 9)] for i in range(24)]


class StopAt(TrainerCallback):
    """Raises in the midst of the step after `step`, as a kill would end it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    return {"input_ids": pad(ids, True, 0), "labels": pad(ids, True, -100)}


@pytest.fixture
def make(tmp_path: Path, llama: Path) -> Callable[..., Trainer]:
    """A trainer of a tiny model with a LoRA adapter and dropout, over two passes of 12 steps."""

    def trainer(
        run: str, *stops: TrainerCallback, rows: list[list[int]] = ROWS, rank: int = 4, **more: Any
    ) -> Trainer:
        set_seed(0)
        model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
        adapted = get_peft_model(model, LoraConfig(r=rank, lora_dropout=0.1, target_modules="all-linear"))
        book = ledger.Ledger(tmp_path)
        settings = {"save_strategy": "steps", "save_steps": 0.25, "save_total_limit": 1, "eval_strategy": "epoch"}
        settings["learning_rate"] = 1e-2
        arguments = TrainingArguments(
            output_dir=str(tmp_path / run), num_train_epochs=2, per_device_train_batch_size=2,
            train_sampling_strategy="group_by_length", eval_on_start=True, logging_steps=1, report_to="none",
            disable_tqdm=True, use_cpu=True, remove_unused_columns=False, label_names=["labels"], seed=0,
            **(settings | more),
        )  # fmt: skip
        return Trainer(
            model=adapted, args=arguments, data_collator=collate,
            callbacks=[callbacks.LiveLoss(book, "loss"), *stops],
            train_dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
            eval_dataset=Dataset.from_list([{"input_ids": row} for row in ROWS[:4]]),
        )  # fmt: skip

    return trainer


def train(trainer: Trainer, **parameters: Any) -> str | None:
    found = resume.checkpoint(trainer, parameters)
    trainer.train(resume_from_checkpoint=found)
    return found


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}


def live(trainer: Trainer) -> callbacks.LiveLoss:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, callbacks.LiveLoss))


@pytest.mark.parametrize("step", [8, 13, 20])  # in the first pass, and at two places of the second
def test_resumed_training_ends_like_an_uninterrupted_one(make: Callable[..., Trainer], step: int) -> None:
    whole = make("whole")
    assert train(whole) is None
    with pytest.raises(KeyboardInterrupt):
        train(make("stopped", StopAt(step)))
    resumed = make("stopped")
    found = train(resumed)
    assert found and found.endswith(f"checkpoint-{step // 6 * 6}")
    assert resumed.state.global_step == whole.state.global_step == 24
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    assert live(resumed).train == live(whole).train and len(live(whole).train) == 24
    assert live(resumed).validation == live(whole).validation


def test_another_training_begins_anew(make: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(make("run", StopAt(8)), SEED=0)
    kept = tmp_path / "run" / "checkpoint-6"
    assert resume.checkpoint(make("run"), {"SEED": 0}) == str(kept)
    for other, parameters in (
        (make("run"), {"SEED": 1}),
        (make("run", learning_rate=2e-2), {"SEED": 0}),
        (make("run", rank=8), {"SEED": 0}),
        (make("run", rows=ROWS[::-1]), {"SEED": 0}),
        (make("run", save_strategy="no"), {"SEED": 0}),
    ):
        with pytest.raises(KeyboardInterrupt):
            train(make("run", StopAt(8)), SEED=0)
        assert kept.exists()
        assert resume.checkpoint(other, parameters) is None
        assert not kept.exists()


def test_half_a_checkpoint_is_no_checkpoint(make: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(make("run", StopAt(8)))
    (tmp_path / "run" / "checkpoint-6" / "optimizer.pt").unlink()
    assert resume.checkpoint(make("run"), {}) is None


def test_words_of_other_alphabets_do_not_hide_a_checkpoint(make: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(make("run", StopAt(8)), INSTRUCTION="Antworte höflich.")
    kept = tmp_path / "run" / "checkpoint-6"
    assert resume.checkpoint(make("run"), {"INSTRUCTION": "Antworte höflich."}) == str(kept)
