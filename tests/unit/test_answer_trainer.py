"""Notebook 01's trainer, read from its cell: loss and gradients of TRL's own, from fewer scored positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import torch
import trl
from conftest import TEXTS, chat
from datasets import Dataset
from peft import LoraConfig

from cookbook import checks, fused, models, recipes

ROWS = [{"prompt": chat(t), "completion": [{"role": "assistant", "content": t[::-1]}]} for t in TEXTS]


def answer_trainer() -> type[trl.SFTTrainer]:
    cells = {cell.id: cell.source for cell in nbformat.read(recipes.find("01"), as_version=4).cells}
    names = {"SFTTrainer": trl.SFTTrainer, "profile": SimpleNamespace(device="cpu")}
    names |= {"checks": checks, "fused": fused, "models": models, "torch": torch}
    exec(cells["answer-trainer"], names)
    return names["AnswerTrainer"]


@pytest.fixture(params=["llama", "qwen", "gpt2"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    def make(kind: type[trl.SFTTrainer]) -> Any:
        model, tokenizer = models.load(str(request.getfixturevalue(request.param)), dtype=torch.float32)
        torch.manual_seed(0)
        args = trl.SFTConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        )  # fmt: skip
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        rows = Dataset.from_list(ROWS)
        return kind(model=model, args=args, train_dataset=rows, processing_class=tokenizer, peft_config=lora)

    return make


def all_rows(trainer: Any) -> dict[str, torch.Tensor]:
    return dict(
        trainer.data_collator([{k: row[k] for k in ("input_ids", "labels")} for row in trainer.train_dataset])
    )


def step(trainer: Any, items: int | None) -> tuple[float, torch.Tensor]:
    """Loss and gradients of one batch of all rows."""
    loss = trainer.compute_loss(trainer.model.train(), all_rows(trainer), num_items_in_batch=items)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("items", [None, 500])
def test_the_same_loss_and_gradients_as_trl(make: Callable[..., Any], items: int | None) -> None:
    (loss, gradient), (expected, other) = step(make(answer_trainer()), items), step(make(trl.SFTTrainer), items)
    assert loss == pytest.approx(expected, rel=1e-5) and other.abs().max() > 0
    assert torch.allclose(gradient, other, rtol=1e-3, atol=1e-6 * other.abs().max().item())


def test_only_supervised_positions_reach_the_head(make: Callable[..., Any]) -> None:
    trainer, seen = make(answer_trainer()), []
    head = trainer.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape[:-1])))
    step(trainer, None)
    supervised = sum(label != -100 for row in trainer.train_dataset for label in row["labels"])
    assert seen == [(supervised,)] and supervised < sum(len(row["input_ids"]) for row in trainer.train_dataset)
    assert len(head._forward_pre_hooks) == 0


def test_the_check_refuses_a_loss_that_is_shifted(make: Callable[..., Any]) -> None:
    trainer = make(answer_trainer())
    batch = all_rows(trainer)
    own, theirs = checks.same_loss(trainer, batch)
    assert own == pytest.approx(theirs, rel=1e-4)

    class Shifted(type(trainer)):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any) -> Any:
            return super().compute_loss(model, inputs | {"labels": inputs["labels"].roll(1, 1)}, *rest)

    trainer.__class__ = Shifted
    with pytest.raises(checks.CheckError, match="compute_loss gives .* where AnswerTrainer gives"):
        checks.same_loss(trainer, batch)
