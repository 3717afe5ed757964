"""Gradual unfreezing: who trains when, on models whose parameters are known one by one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from cookbook import unfreezing


@pytest.fixture(params=["llama", "qwen", "gpt2"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    folder: Path = request.getfixturevalue(request.param)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("count", [1, 2])
def test_groups_hold_every_parameter_once_from_the_top(model: torch.nn.Module, count: int) -> None:
    groups = unfreezing.layer_groups(model, count)
    ids = [id(p) for group in groups for p in group]
    assert len(groups) == count and len(ids) == len(set(ids)) == len(list(model.parameters()))
    bottom = {id(p) for p in groups[-1]}
    assert {id(p) for p in model.get_input_embeddings().parameters()} <= bottom, "a tied head stays with them"
    last = list(model.parameters())[-1] if count == 2 else next(iter(groups[0]))
    assert any(last is p for group in groups for p in group)


def test_top_group_holds_the_last_block_and_the_final_norm(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    top, bottom = unfreezing.layer_groups(model, 2)
    named = {id(p): name for name, p in model.named_parameters()}
    names = {named[id(p)] for p in top}
    assert "model.norm.weight" in names and "lm_head.weight" in names
    assert all(".layers.1." in n or n in ("model.norm.weight", "lm_head.weight") for n in names)
    assert {named[id(p)].split(".")[1] for p in bottom} == {"layers", "embed_tokens"}


@pytest.mark.parametrize("count", [0, 3])
def test_wrong_count(llama: Path, count: int) -> None:
    with pytest.raises(ValueError, match="give 1 to 2"):
        unfreezing.layer_groups(AutoModelForCausalLM.from_pretrained(llama), count)


def test_schedule() -> None:
    opened = [unfreezing.open_groups(step / 100, 6) for step in range(101)]
    assert opened[0] == 1 and opened == sorted(opened) and set(opened) == {1, 2, 3, 4, 5, 6}
    assert opened[49] == 6 and opened[50] == 6 and opened[40] < 6
    assert {unfreezing.open_groups(p / 10, 1) for p in range(11)} == {1}


def test_gradual_unfreezing_frees_from_the_top(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    groups = unfreezing.layer_groups(model, 2)
    callback = unfreezing.GradualUnfreezing(groups, until=0.5)

    def trained() -> list[bool]:
        return [all(p.requires_grad for p in g) and any(p.requires_grad for p in g) for g in groups]

    assert trained() == [True, False], "before the first step, too: an optimizer may look"
    for step, expected in ((0, [True, False]), (3, [True, True]), (9, [True, True])):
        callback.on_step_begin(None, SimpleNamespace(global_step=step, max_steps=10), None)
        assert trained() == expected


def test_frozen_weights_do_not_move_and_free_ones_do(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    assert unfreezing.freeze_lower(model, 0.5) == 1
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.arange(12).reshape(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and not any(".layers.0." in n or "embed_tokens" in n for n in moved)
    assert all(n in moved for n in before if ".layers.1." in n)
