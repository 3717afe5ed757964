"""LLaMA-Factory 0.9.5: its `run_exp`, with the settings of its LoRA example and those that the task fixes."""

from __future__ import annotations

import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from bench.task import Task
from bench.watch import Clock, callback, validation_loss

ENVIRONMENT = ".venv-llama-factory"
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def arguments(task: Task, folder: Path) -> dict[str, Any]:
    """As in its examples/train_lora: bf16 where that is fast here, gradient checkpointing as it comes, on."""
    return {
        "model_name_or_path": task.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": task.lora_rank,
        "lora_alpha": task.lora_alpha,
        "lora_dropout": 0.0,
        "dataset": "task",
        "dataset_dir": str(folder),
        "template": "smollm2",
        "cutoff_len": task.max_length,
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": task.batch_size,
        "gradient_accumulation_steps": 1,
        "max_steps": task.steps,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": task.warmup_steps,
        "bf16": task.dtype == "bfloat16",
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "seed": task.seed,
    }


def train(task: Task, clock: Clock) -> None:
    """Train, and have `clock` see every step; the rows lie in a temporary folder in the tool's own format.

    Raises:
        ValueError: its template made other tokens of the rows than the task's.
    """
    os.environ["DISABLE_VERSION_CHECK"] = "1"  # of packages that have no part in this training
    # It imports torchaudio, which has no build for this torch on a CPU, for sound alone.
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    class SameRows(TrainerCallback):
        def on_train_begin(self, *_: Any, train_dataloader: Any = None, **__: Any) -> None:
            task.same_rows(train_dataloader.dataset)

    watch = callback(clock, lambda model: validation_loss(model, task.validation), task.validate_every)
    with TemporaryDirectory() as folder:
        rows = [{"messages": [*row.prompt, *row.completion]} for row in task.train]
        columns = {"messages": "messages"}
        info = {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns, "tags": TAGS}
        Path(folder, "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        Path(folder, "dataset_info.json").write_text(json.dumps({"task": info}), encoding="utf-8")
        run_exp(args=arguments(task, Path(folder)), callbacks=[SameRows(), watch])
