"""Predicted memory against bytes counted on real models, and a micro-batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHATML
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlamaConfig, PreTrainedModel

from cookbook import memory, models
from cookbook.memory import MemoryPlanError, Plan

FAMILIES = ["llama", "qwen", "gpt2", "wide"]
PLAN = Plan(8, 256, weights=100, adapter=10, gradients=10, optimizer=20, activations=800, logits=80, runtime=60)


@pytest.fixture(scope="session")
def wide(make_tokenizer: Callable[..., Any], save_model: Callable[..., Path]) -> Path:
    """A Llama of hidden size 256, so that second-level constants fill their blocks as in a real model."""
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}
    return save_model("wide-llama", LlamaConfig, make_tokenizer(CHATML, "<|im_end|>", "<|im_start|>"), **shape)


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def plan(folder: str, **settings: Any) -> Plan:
    return memory.plan(folder, **{"micro_batch": 4, "length": 64, "dtype": torch.float32, **settings})


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of every parameter and, for 4-bit ones, of the constants that it is unpacked with."""
    count = 0
    for weight in model.parameters():
        count += weight.nbytes
        if (state := getattr(weight, "quant_state", None)) is not None:
            count += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    return count


def load(folder: str, dtype: torch.dtype, four_bit: bool) -> PreTrainedModel:
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return models.load(folder, dtype=dtype, quantization_config=nf4 if four_bit else None)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_weights_are_exact(folder: str, dtype: torch.dtype) -> None:
    assert plan(folder, dtype=dtype, lora_rank=8).weights == weight_bytes(load(folder, dtype, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_weights_are_exact_within_two_percent(folder: str, dtype: torch.dtype) -> None:
    found = weight_bytes(load(folder, dtype, True))
    predicted = plan(folder, dtype=dtype, four_bit=True, lora_rank=8).weights
    assert predicted == pytest.approx(found, rel=0.02 if "wide" in folder else 0.03)
    assert predicted < plan(folder, dtype=dtype, lora_rank=8).weights


@pytest.mark.parametrize("rank", [4, 16])
def test_adapter_is_exact(folder: str, rank: int) -> None:
    config = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    trainable, _ = get_peft_model(load(folder, torch.float32, False), config).get_nb_trainable_parameters()
    found = plan(folder, lora_rank=rank)
    assert (found.adapter, found.gradients, found.optimizer) == (4 * trainable, 4 * trainable, 8 * trainable)


def test_full_fine_tuning_counts_master_weights_gradients_and_moments(folder: str) -> None:
    count = sum(p.numel() for p in load(folder, torch.float32, False).parameters())
    found = plan(folder, dtype=torch.bfloat16)
    assert (found.weights, found.adapter, found.gradients, found.optimizer) == (4 * count, 0, 4 * count, 8 * count)


def test_activations_and_logits_grow_with_tokens(folder: str) -> None:
    small, large = plan(folder, lora_rank=8), plan(folder, lora_rank=8, micro_batch=8, length=128)
    assert large.activations == 4 * small.activations and large.logits == 4 * small.logits
    assert small.logits == 4 * 64 * 320 * 4 * memory.LOGIT_ROWS
    assert plan(folder, lora_rank=8, device="cuda").runtime == 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_activations_against_what_autograd_keeps(folder: str, attention: str) -> None:
    """The rule of thumb stays within a factor of two of the bytes saved for the backward."""
    model = load(folder, torch.float32, False).train()
    model.set_attn_implementation(attention)
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    decoder = model.base_model
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = decoder(torch.ones(4, 64, dtype=torch.long), use_cache=False).last_hidden_state
    assert hidden.requires_grad
    predicted = plan(folder, lora_rank=8, eager=attention == "eager").activations
    assert 0.5 < predicted / sum(kept.values()) < 2


def test_total_and_table() -> None:
    assert PLAN.total == 1080
    assert list(PLAN.table())[-1] == "total" and PLAN.table()["total"] == "0.00 GB"


def test_fit_keeps_what_fits() -> None:
    assert memory.fit(PLAN, available=1080) is PLAN


@pytest.mark.parametrize(("available", "micro_batch", "total"), [(1079, 4, 640), (639, 2, 420), (419, 1, 310)])
def test_fit_halves_the_micro_batch(available: int, micro_batch: int, total: int) -> None:
    found = memory.fit(PLAN, available=available)
    assert (found.micro_batch, found.total, found.length) == (micro_batch, total, 256)


def test_fit_agrees_with_a_plan_of_the_smaller_batch(folder: str) -> None:
    wanted, half = plan(folder, lora_rank=8), plan(folder, lora_rank=8, micro_batch=2)
    assert memory.fit(wanted, available=half.total) == half


def test_fit_refuses() -> None:
    with pytest.raises(MemoryPlanError, match=r"one sequence of 256 tokens, free 0.0 GB: lower MAX_LENGTH"):
        memory.fit(PLAN, available=309)


def test_fit_looks_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.free_bytes() > 10e6 and memory.fit(PLAN) is PLAN
    monkeypatch.setattr(memory, "free_bytes", lambda device: 700)
    assert memory.fit(PLAN).micro_batch == 4
