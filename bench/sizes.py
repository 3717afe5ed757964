"""The same recipe beside TRL's defaults on larger models: random weights in well-known shapes, nothing to fetch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.task import Task
from bench.trainers.litgpt import converted

# Of the planner's table, with the GB that the baseline needs.
SHAPES = {"Qwen2.5-0.5B": 9, "Llama-3.2-1B": 11, "SmolLM2-1.7B": 15}
ALL_ARMS, ALL_GB = "Llama-3.2-1B", 19  # where all arms are measured, those beside the baseline and ours once
ROUNDS = 2
FOLDER = "sizes"  # below that of the measurements, with a folder like it for each shape


def scaled(task: Task, shape: str, folder: Path) -> Task:
    """Every second row of the task and half its steps, on a model of that shape; each row keeps its tokens."""
    train = task.train[::2]
    steps = len(train) // task.batch_size
    fewer = {"train": train, "validation": task.validation[::8], "steps": steps, "validate_every": steps}
    return replace(task, model=str(folder / shape), **fewer)


def fits(gigabytes: float) -> bool:
    """Whether so much memory is free now."""
    import psutil

    return gigabytes * 1e9 < psutil.virtual_memory().available


@contextmanager
def weights(task: Task, tokenizer: str) -> Iterator[None]:
    """The model's folder with random weights in fp32 and another model's tokenizer; removed in the end."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cookbook import allocator, models, planning

    models.quiet()
    folder = Path(task.model)
    try:
        torch.manual_seed(task.seed)
        model = AutoModelForCausalLM.from_config(planning.config(folder.name), dtype=torch.float32)
        model.save_pretrained(folder)
        del model
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
        allocator.release_memory()  # which the arms will want
        yield
    finally:
        for made in (folder, converted(task.model)):
            shutil.rmtree(made, ignore_errors=True)
