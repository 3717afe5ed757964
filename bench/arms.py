"""The arms: the same training by the libraries' documented defaults, by other trainers, and by our notebook.

Each is a function of the task and the clock. Libraries are imported inside: an arm may run in an environment that
has no others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from bench import ours
from bench.task import Task
from bench.watch import Clock, callback, validation_loss

Train = Callable[[Task, Clock], None]


@dataclass(frozen=True)
class Arm:
    """How to train, what it is in words, and the folder of its environment (empty: the one that runs this)."""

    train: Train
    words: str
    environment: str = ""
    seconds: float = 60.0  # what a run takes about, before one has been timed
    made_by: str = ""  # the target of make that makes its environment


def trl(task: Task, clock: Clock, **changed: Any) -> None:
    """TRL's example for SFT with LoRA and its defaults; on a CPU they train once they are told that it is one."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    with TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=task.model,
            args=SFTConfig(use_cpu=True, **settings(task, folder), **changed),
            train_dataset=Dataset.from_list([row.messages for row in task.train]),
            peft_config=LoraConfig(**lora(task)),
            callbacks=[watch(task, clock)],
        )
        task.same_rows(trainer.train_dataset)
        trainer.train()


def trainer(task: Task, clock: Clock) -> None:
    """transformers' Trainer on padded batches, as its guides and PEFT's write it; the weights' type is measured."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(task.model)
    base = AutoModelForCausalLM.from_pretrained(task.model, dtype=task.dtype)
    model = get_peft_model(base, LoraConfig(**lora(task)))
    with TemporaryDirectory() as folder:
        made = Trainer(
            model=model,
            args=TrainingArguments(use_cpu=True, **settings(task, folder)),
            train_dataset=Dataset.from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in task.train]),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            callbacks=[watch(task, clock)],
        )
        made.train()


def unsloth(task: Task, clock: Clock) -> None:
    """Unsloth's notebooks for SFT with LoRA, on its fallback for a CPU."""
    from unsloth import FastLanguageModel  # before all others

    from datasets import Dataset  # isort: skip
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = FastLanguageModel.from_pretrained(
        task.model, max_seq_length=task.max_length, load_in_4bit=False
    )
    shape = lora(task)
    model = FastLanguageModel.get_peft_model(
        model,
        r=shape["r"],
        lora_alpha=shape["lora_alpha"],
        lora_dropout=0.0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        random_state=task.seed,
    )
    with TemporaryDirectory() as folder:
        made = SFTTrainer(
            model=model,
            args=SFTConfig(use_cpu=True, max_length=task.max_length, **settings(task, folder)),
            train_dataset=Dataset.from_list([row.messages for row in task.train]),
            processing_class=tokenizer,
            callbacks=[watch(task, clock)],
        )
        task.same_rows(made.train_dataset)
        made.train()


def settings(task: Task, folder: str) -> dict[str, Any]:
    """What the task fixes, in the names of transformers' arguments; and neither files nor reports."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": task.batch_size,
        "max_steps": task.steps,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": task.warmup_steps,
        "seed": task.seed,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def lora(task: Task) -> dict[str, Any]:
    """What the task fixes, in the names of PEFT's LoraConfig."""
    return {
        "r": task.lora_rank,
        "lora_alpha": task.lora_alpha,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }


def watch(task: Task, clock: Clock) -> Any:
    return callback(clock, lambda model: validation_loss(model, task.validation), task.validate_every)


def other(module: str, task: Task, clock: Clock) -> None:
    """Another trainer, by its own module."""
    importlib.import_module(f"bench.trainers.{module}").train(task, clock)


ARMS: dict[str, Arm] = {
    "trl": Arm(trl, "TRL's SFTTrainer, documented defaults (bf16 autocast, gradient checkpointing)", seconds=85),
    "trl-fp32": Arm(partial(trl, bf16=False), "the same with bf16 switched off", seconds=130),
    "trainer": Arm(trainer, "transformers' Trainer, defaults, on weights in bf16 where that is fast", seconds=70),
    "unsloth": Arm(unsloth, "Unsloth's fallback for a CPU", ".venv-unsloth", 75, "unsloth"),
    "llama-factory": Arm(partial(other, "llama_factory"), "LLaMA-Factory", ".venv-llama-factory", 60, "trainers"),
    "litgpt": Arm(partial(other, "litgpt"), "LitGPT", ".venv-litgpt", 70, "trainers"),
    "lora": Arm(ours.lora, "notebook 01, `QUANTIZE=False`", seconds=45),
    "qlora": Arm(ours.qlora, "notebook 01 as it is: 4-bit base", seconds=50),
}
BASELINE, BASELINE_FP32, OURS = "trl", "trl-fp32", ("lora", "qlora")
MAIN = OURS[0]  # trains what the others train: LoRA on the unquantized base
