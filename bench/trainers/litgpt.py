"""LitGPT 0.5.13: `litgpt.finetune.lora`, at the precision that it chooses, on a checkpoint by its own converter.

It neither clips gradients nor has an option for it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.task import FOLDER, IGNORED, Row, Task
from bench.watch import Clock, validation_loss

ENVIRONMENT = ".venv-litgpt"
NAMES = {"smollm2-135m-instruct": "SmolLM2-135M-Instruct"}  # its name of the shape, where the folder has another


def converted(model: str) -> Path:
    """Where the checkpoint lies in its format."""
    name = Path(model).name
    return FOLDER / "litgpt" / NAMES.get(name, name)


def convert(model: str) -> Path:
    """A folder with the checkpoint in its format; made once."""
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    folder = converted(model)
    if not (folder / "done").is_file():
        shutil.copytree(model, folder, dirs_exist_ok=True)
        convert_hf_checkpoint(folder)
        (folder / "done").touch()
    return folder


class Watched:
    """A data loader whose batches begin a step of the clock and leave their counts here."""

    def __init__(self, loader: Any, clock: Clock) -> None:
        self.loader, self.clock, self.dataset = loader, clock, loader.dataset
        self.tokens = self.supervised = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        for _ in range(len(self)):
            self.clock.step_begin()
            batch = next(batches)
            self.tokens = int(batch["token_counts"]["raw_plus_prompt_template"].sum())
            self.supervised = int((batch["labels"] != IGNORED).sum())
            yield batch


class Trained(Exception):
    """Ends the recipe when its loop has ended, before it saves, merges and reads the command line for a record."""


def train(task: Task, clock: Clock) -> None:
    """Train, and have `clock` see every step."""
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule, get_sft_collate_fn
    from litgpt.finetune import lora
    from litgpt.prompts import Default
    from torch import Generator, tensor
    from torch.utils.data import DataLoader

    class Rows(DataModule):
        """The task's tokens: its own data modules would end every answer in another way."""

        prompt_style = Default()

        def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
            self.batch_size = batch_size

        def loader(self, rows: list[Row], shuffle: bool) -> DataLoader:
            samples = [
                {
                    "input_ids": tensor(row.input_ids),
                    "labels": tensor(row.labels),
                    "token_counts": {"raw": len(row.input_ids), "raw_plus_prompt_template": len(row.input_ids)},
                }
                for row in rows
            ]
            order = Generator().manual_seed(task.seed)
            collate = get_sft_collate_fn(ignore_index=IGNORED)
            return DataLoader(samples, self.batch_size, shuffle=shuffle, generator=order, collate_fn=collate)

        def train_dataloader(self) -> DataLoader:
            return self.loader(task.train, shuffle=True)

        def val_dataloader(self) -> DataLoader:
            return self.loader(task.validation, shuffle=False)

    fit = lora.fit

    def watched_fit(**given: Any) -> None:
        """Its loop, seen from the loader, which begins a step, and from the schedule's step, which ends it."""
        model, scheduler = given["model"], given["scheduler"]
        loader = given["train_dataloader"] = Watched(given["train_dataloader"], clock)
        advance = scheduler.step

        def step() -> None:
            advance()
            clock.step_end(tokens=loader.tokens, supervised=loader.supervised)
            done = len(clock.steps)
            if done % task.validate_every == 0 or done == task.steps:
                with clock.paused():
                    loss = validation_loss(model, task.validation, lambda ids, mask: model(ids))
                clock.validation(loss)

        scheduler.step = step
        fit(**given)
        raise Trained

    checkpoint = convert(task.model)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    lora.fit = watched_fit
    with TemporaryDirectory() as folder, suppress(Trained):
        lora.setup(
            checkpoint_dir=checkpoint,
            out_dir=Path(folder),
            lora_r=task.lora_rank,
            lora_alpha=task.lora_alpha,
            lora_dropout=0.0,
            lora_query=True,
            lora_key=True,
            lora_value=True,
            lora_projection=True,
            lora_mlp=True,
            data=Rows(),
            train=TrainArgs(
                save_interval=None,
                log_interval=1,
                global_batch_size=task.batch_size,
                micro_batch_size=task.batch_size,
                lr_warmup_steps=task.warmup_steps,
                epochs=task.steps,  # more than are needed: max_steps ends it
                max_steps=task.steps,
            ),
            eval=EvalArgs(
                interval=task.steps + 1, max_new_tokens=1, initial_validation=False, final_validation=False
            ),
            optimizer={
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": task.learning_rate, "weight_decay": 0.0},
            },
            seed=task.seed,
        )
