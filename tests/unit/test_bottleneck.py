"""Bottleneck adapters on tiny models: identity at first, learning, mixed batches, saving, leaving no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cookbook.bottleneck import Bottlenecks

IDS = torch.arange(3, 27).reshape(3, 8)


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    folder: Path = request.getfixturevalue(request.param)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def fill(adapters: Bottlenecks, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(name):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_nothing_changes_at_the_start_and_only_the_adapter_learns(model: torch.nn.Module) -> None:
    before, weights = logits(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    adapters = Bottlenecks(model)
    adapters.add("hr", 4)
    assert torch.equal(logits(model), before)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in adapters.parameters("hr")}
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    losses = []
    for _ in range(20):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters() if n in weights)
    adapters.set_adapter(None)
    assert torch.equal(logits(model), before), "bit for bit, with the adapter off"


def test_mixed_batch_equals_one_by_one(model: torch.nn.Module) -> None:
    adapters = Bottlenecks(model)
    for seed, name in enumerate(("hr", "it")):
        adapters.add(name, 4)
        fill(adapters, name, seed)
    alone = []
    for name, row in zip(("it", None, "hr"), IDS, strict=True):
        adapters.set_adapter(name)
        alone.append(logits(model, row[None])[0])
    adapters.set_adapter(["it", None, "hr"])
    torch.testing.assert_close(logits(model), torch.stack(alone))
    adapters.set_adapter("it")
    assert not torch.allclose(logits(model)[2], alone[2])


def test_a_blend_counts_each_adapter_by_its_weight_and_passes_gradients(model: torch.nn.Module) -> None:
    before, alone = logits(model), {}
    adapters = Bottlenecks(model)
    for seed, name in enumerate(("hr", "it")):
        adapters.add(name, 4)
        fill(adapters, name, seed)
        alone[name] = logits(model)
    one, zero = torch.ones(3), torch.zeros(3)
    adapters.set_adapter({"hr": one, "it": zero})
    torch.testing.assert_close(logits(model), alone["hr"])
    adapters.set_adapter({"hr": zero, "it": torch.tensor([0.0, 1.0, 0.0])})
    torch.testing.assert_close(logits(model), torch.stack([before[0], alone["it"][1], before[2]]))
    weights = (one / 2).requires_grad_()
    adapters.set_adapter({"hr": weights, "it": 1 - weights})
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert (weights.grad != 0).all()


def test_save_load_delete_unload(model: torch.nn.Module, tmp_path: Path) -> None:
    before = logits(model)
    adapters = Bottlenecks(model)
    adapters.add("hr", 4)
    fill(adapters, "hr", 0)
    changed = logits(model)
    adapters.save("hr", tmp_path)
    adapters.delete_adapter("hr")
    assert torch.equal(logits(model), before) and adapters.names == []
    adapters.load_adapter(tmp_path / "hr", "again")
    assert torch.equal(logits(model), changed) and adapters.names == ["again"]
    assert not [p for p in model.parameters() if p.requires_grad]
    names = {n for n, _ in model.named_parameters()}
    adapters.unload()
    assert torch.equal(logits(model), before)
    assert {n for n in names if "bottlenecks" not in n} == {n for n, _ in model.named_parameters()}


def test_unknown_adapter_and_unfit_model(model: torch.nn.Module) -> None:
    adapters = Bottlenecks(model)
    adapters.add("hr", 4)
    with pytest.raises(KeyError, match="no adapter it; there are hr"):
        adapters.set_adapter(["hr", "it"])
    with pytest.raises(ValueError, match="no feed-forward parts"):
        Bottlenecks(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
