"""The same recipe beside TRL's defaults on larger models: random weights in well-known shapes, nothing to fetch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.arms import BASELINE, MAIN
from bench.task import Task
from bench.trainers.litgpt import converted

# Of the planner's table, with the GB that the baseline needs.
SHAPES = {"Qwen2.5-0.5B": 9, "Llama-3.2-1B": 11, "SmolLM2-1.7B": 15}
ALL_ARMS, ALL_GB = "Llama-3.2-1B", 19  # where all arms are measured, and the GB that the others need
ROUNDS = 2
FOLDER = "sizes"  # below that of the measurements, with a folder like it for each shape


def scaled(task: Task, shape: str, folder: Path) -> Task:
    """Every second row of the task and half its steps, on a model of that shape; each row keeps its tokens."""
    train = task.train[::2]
    steps = len(train) // task.batch_size
    fewer = {"train": train, "validation": task.validation[::8], "steps": steps, "validate_every": steps}
    return replace(task, model=str(folder / shape), **fewer)


def arms(shape: str, known: list[str]) -> list[str]:
    """Which arms are measured on that shape: the baseline and ours, on one of the shapes all."""
    return known if shape == ALL_ARMS else [arm for arm in known if arm in (BASELINE, MAIN)]


def gigabytes(shape: str, arm: str) -> int:
    """The free memory that an arm needs on that shape."""
    return SHAPES[shape] if arm in (BASELINE, MAIN) else ALL_GB


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
