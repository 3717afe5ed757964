"""Notebook 19b's cells on a tiny model: each method trains what is its own, saves it, and answers the same again."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import torch
from accelerate.utils import extract_model_from_parallel
from conftest import TEXTS, chat
from datasets import Dataset
from peft import PeftModel
from transformers import BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments, set_seed

import cookbook.cards
from cookbook import bottleneck, checks, data, evaluation, fourbit, models, recipes, unfreezing

METHODS = ["full", "frozen_half", "ln", "lora", "lora_qv", "rslora", "dora", "qlora", "ia3", "bottleneck", "prefix",
           "prompt", "p_tuning"]  # fmt: skip
EXAMPLES = [
    data.Example(prompt=chat(text), completion=json.dumps({"intent": text[:9]}), source=str(i), target=None)
    for i, text in enumerate(TEXTS * 3)
]
SOURCES = {cell.id: cell.source for cell in nbformat.read(recipes.find("19b"), as_version=4).cells}


def cells(folder: Path, method: str, into: Path, **changed: Any) -> dict[str, Any]:
    """What the notebook's cells define for this method, on the model in `folder`, up to a trainer that may train."""
    names: dict[str, Any] = {
        **vars(cookbook), "copy": copy, "json": json, "random": random, "replace": replace, "sha256": sha256,
        "torch": torch, "Dataset": Dataset, "Trainer": Trainer, "TrainingArguments": TrainingArguments,
        "BitsAndBytesConfig": BitsAndBytesConfig, "extract_model_from_parallel": extract_model_from_parallel,
        "bottleneck": bottleneck, "checks": checks, "data": data, "evaluation": evaluation, "fourbit": fourbit,
        "models": models, "unfreezing": unfreezing, "chat": cookbook.chat, "PeftModel": PeftModel, "Path": Path,
        "set_seed": set_seed, "METHOD": method, "SEED": 0, "TOKENS": 600, "BATCH_SIZE": 2, "LORA_RANK": 4,
        "LORA_ALPHA": 0, "BOTTLENECK": 8, "VIRTUAL_TOKENS": 6, "SAVE_STEPS": 0, "CHOOSE": True,
        "model_id": str(folder), "dtype": torch.float32, "run_dir": into, "learning_rate": 1e-2, "max_length": 200,
        "accumulation": 1, "profile": SimpleNamespace(device="cpu", epochs=1, batch_size=2),
        "plan": SimpleNamespace(micro_batch=2),
        "splits": SimpleNamespace(train=EXAMPLES[:8], validation=EXAMPLES[8:], test=EXAMPLES[8:]),
        "guide": "Answer with one JSON object.", "headline": "x", "technique": method, "handle": None,
    }  # fmt: skip
    names |= changed
    names["in_place"] = method in ("full", "frozen_half", "ln")
    names["base"], names["tokenizer"] = models.load(str(folder), dtype=names["dtype"])
    for cell in ("encode", "order", "answer-loss", "beside", "soft", "adapt", "trainer", "as-used", "save", "loaded"):
        source = SOURCES[cell].split("\n\n\nwith book.stage")[0].split("\n\n\nasked =")[0]
        exec("from __future__ import annotations\n" + source, names)
    return names


def adapted(names: dict[str, Any]) -> Any:
    method = names["METHOD"]
    if method == "qlora":
        names["base"], _ = models.load(names["model_id"], dtype=names["dtype"], quantization_config=names["NF4"])
    elif names["in_place"]:
        names["base"], _ = models.load(names["model_id"], dtype=torch.float32)
    names["model"], names["handle"] = names["adapt"](method, names["base"])
    return names["model"]


class Until(TrainerCallback):
    """Stops a run after some steps, as the loss of its machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40).reshape(2, 20), use_cache=False).logits[:, -20:].float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_trains_its_own_weights_and_comes_back_the_same(
    llama: Path, method: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = cells(llama, method, tmp_path, dtype=dtype)
    model = adapted(names)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    mark = {"bottleneck": bottleneck.HOST, "ia3": "ia3_l", "ln": "ln_tuning", "full": "", "frozen_half": "layers.1"}
    mark |= dict.fromkeys(("prefix", "prompt", "p_tuning"), "prompt_encoder")
    stray = {name for name in trained if mark.get(method, "lora_") not in name}
    assert trained and stray == ({"model.norm.weight", "lm_head.weight"} if method == "frozen_half" else set())
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    before = names["validation_loss"](model, names["held_out"])
    trainer = names["recipe"](model, [])
    own, theirs = checks.same_loss(trainer, names["collate"](names["train_rows"][:2]), within=0.02)
    assert own == pytest.approx(theirs, rel=0.02)
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p.detach(), start[name])}
    assert moved and moved <= trained
    assert method == "p_tuning" or len(moved) >= 0.9 * len(trained), trained - moved
    names["tuned"] = tuned = names["as_used"](model)
    after = names["validation_loss"](tuned, names["held_out"])
    assert after.value < before.value and not after.higher_is_better
    monkeypatch.setattr(cookbook.cards, "model_card", lambda *_: "# A card\n")
    names |= {"cards": cookbook.cards, "metrics": {}, "forgotten": []}
    names["evaluation"] = SimpleNamespace(table=len, forgetting_table=len)
    names["save"](tmp_path / "model")
    again = names["loaded"](tmp_path / "model").eval()
    untouched, _ = models.load(str(llama), dtype=dtype)
    apart = (logits(again) - logits(tuned)).abs().max()
    assert apart <= (1e-4 if dtype == torch.float32 else 0.1 * (logits(tuned) - logits(untouched)).abs().max())
    assert (tmp_path / "model" / "README.md").read_text() == "# A card\n"
    for file in (tmp_path / "model").rglob("*"):
        assert not file.is_file() or str(llama.parent).encode() not in file.read_bytes(), file


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_from_a_checkpoint_of_the_trainer(llama: Path, method: str, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    saving |= {"eval_strategy": "no", "eval_on_start": False}
    runs = []
    for stopped in (False, True):
        if stopped:
            names = cells(llama, method, tmp_path / "stopped", dtype=torch.bfloat16)
            names["recipe"](adapted(names), [Until(2)], **saving).train()
        names = cells(llama, method, tmp_path / ("stopped" if stopped else "whole"), dtype=torch.bfloat16)
        trainer = names["recipe"](adapted(names), [], **saving)
        trainer.train(resume_from_checkpoint=stopped)
        assert trainer.state.global_step == 4
        runs.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
    same = all(torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())
    assert same == (method != "p_tuning"), "PEFT keeps what p-tuning's network makes, and not the network"
