"""Our arm: notebook 01's own cells, read by their ids, on the benchmark's rows."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from bench.task import Task
from bench.watch import Clock, callback, validation_loss

SHORT = 256  # tokens up to which the notebook takes plain attention


@dataclass(frozen=True)
class Recipe:
    """What may differ from the notebook, which is what the defaults are.

    Args:
        dtype: of weights and products instead of the measured one.
        settings: of the trainer, instead of the notebook's.
        attention: instead of the notebook's choice.
        supervised_only: the answer's positions alone reach the head; else TRL's own loss.
        layers: inside `fused.layers`.
        shared: what a batch's rows begin with in common is computed once, and padding not at all.
        narrow: the last layer gives only the states that are to be scored.
        together: LoRA layers that read the same states read them together.
        halves: narrow products in two halves of their rows.
        head: the loss of `fused.nats` from a few positions at a time.
        keep_memory: freed memory stays with the process while it trains.
        compiled: each decoder layer by torch.compile.
    """

    quantize: bool = False
    dtype: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    attention: str = ""
    supervised_only: bool = True
    layers: bool = True
    shared: bool = True
    narrow: bool = True
    together: bool = True
    halves: bool = True
    head: bool = True
    keep_memory: bool = True
    compiled: bool = False


def train(task: Task, clock: Clock, recipe: Recipe | None = None) -> None:
    """Train as notebook 01 does, with what it shows while it trains sent nowhere."""
    from transformers import AutoConfig

    recipe, count = recipe or Recipe(), AutoConfig.from_pretrained(task.model).num_hidden_layers
    with TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        with _levers(recipe), _counted(clock, count if recipe.narrow else None):
            cells = Cells(task, recipe, Path(folder))
            trainer = cells.trainer(task, clock, recipe)
            if not packed(recipe):
                task.same_rows(trainer.train_dataset)
            with cells.names["fused"].layers(trainer.model) if _outside(recipe) else nullcontext():
                trainer.train()


def packed(recipe: Recipe) -> bool:
    return dict(recipe.settings).get("packing", False)


def _outside(recipe: Recipe) -> bool:
    """TRL's own trainer does not enter the fused layers by itself."""
    return recipe.layers and not recipe.supervised_only


class Cells:
    """The notebook's cells and the names that they have defined so far."""

    def __init__(self, task: Task, recipe: Recipe, folder: Path) -> None:
        import nbformat
        import torch

        from cookbook import ledger, models, profiles, recipes

        models.quiet()
        notebook = nbformat.read(recipes.find("01"), as_version=4)
        self.sources = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
        self.names: dict[str, Any] = {}
        self.run("parameters")
        self.run("helper")
        self.run("profile", ast.Import, ast.ImportFrom)
        longest = max(len(row.input_ids) for row in task.train)
        self.names |= {
            "SEED": task.seed,
            "LORA_RANK": task.lora_rank,
            "LORA_ALPHA": task.lora_alpha,
            "LEARNING_RATE": task.learning_rate,
            "QUANTIZE": recipe.quantize,
            "profile": profiles.load("cpu"),
            "dtype": getattr(torch, recipe.dtype or task.dtype),
            "model_id": task.model,
            "run_dir": folder,
            "book": ledger.Ledger(folder),
            "max_length": task.max_length,
            "plan": SimpleNamespace(micro_batch=task.batch_size),
            "accumulation": 1,
            "eager": longest <= SHORT,
        }

    def run(self, cell: str, *kinds: type[ast.stmt]) -> None:
        """Run a cell, or only those of its statements that are of these kinds."""
        tree = ast.parse(self.sources[cell])
        tree.body = [line for line in tree.body if not kinds or isinstance(line, kinds)]
        exec(compile(tree, f"01, cell {cell}", "exec"), self.names)

    def trainer(self, task: Task, clock: Clock, recipe: Recipe) -> Any:
        """The notebook's trainer over the task's rows, its callback and the clock in it."""
        from datasets import Dataset

        names = self.names
        for cell in ("load", "lora", "arguments", "answer-trainer"):
            self.run(cell)
        self.run("trainer", ast.FunctionDef)
        if not recipe.supervised_only:
            names["AnswerTrainer"] = names["SFTTrainer"]
        names["validation_rows"] = Dataset.from_list([row.messages for row in task.validation])
        live = names["callbacks"].LiveLoss(names["book"], "benchmark", seed=task.seed)
        watch = callback(clock, lambda model: validation_loss(model, task.validation), task.validate_every)
        rows = Dataset.from_list([row.messages for row in task.train])
        changed = names["aside"] | {"warmup_steps": task.warmup_steps} | dict(recipe.settings)
        made = names["recipe"](names["model"], rows, 1.0, [live, watch], **changed)
        if recipe.attention:
            made.model.get_base_model().set_attn_implementation(recipe.attention)
        if recipe.compiled:
            for layer in made.model.get_base_model().model.layers:
                layer.compile(dynamic=True)
        return made


@contextmanager
def _levers(recipe: Recipe) -> Iterator[None]:
    """The notebook's means that a recipe goes without, taken away while its cells run."""
    from cookbook import allocator, fused, fused_functions, fused_lora, prefixes

    instead = [
        (recipe.layers, fused, "layers", lambda model: allocator.kept()),
        (recipe.shared, fused, "_shares", lambda model: False),
        (recipe.narrow, prefixes, "narrowed", lambda decoder, shared: nullcontext(shared.asked)),
        (recipe.together, fused_lora, "siblings", lambda model, known: {}),
        (recipe.halves, fused_functions, "_halved", lambda rows, weight: False),
        (recipe.head, fused, "_plain_head", lambda model: None),
        (recipe.keep_memory, fused, "keep_memory", lambda: False),
    ]
    with ExitStack() as changes:
        for on, module, name, function in instead:
            if not on:
                changes.enter_context(patch.object(module, name, function))
        fused.keep_memory()  # before the model is loaded, as the notebook does
        yield


@contextmanager
def _counted(clock: Clock, layers: int | None) -> Iterator[None]:
    """The clock is told how many states were computed for how many tokens, where rows shared some.

    A state that the last of so many layers leaves out (None: none does) counts as less by one layer.
    """
    from cookbook import prefixes

    class Counted(prefixes.Shared):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            left_out = self.distinct - self.scored_once
            clock.distinct += self.distinct - (left_out / layers if layers else 0)

    with patch.object(prefixes, "Shared", Counted):
        yield


lora = partial(train, recipe=Recipe())
qlora = partial(train, recipe=Recipe(quantize=True))
