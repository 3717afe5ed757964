"""What rows share is computed once: the same losses and gradients as from each row by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_fused import adapters_gradient, made

from cookbook import fused, prefixes

IDS = torch.tensor(
    [
        [7, 9, 11, 13, 2, 5, 8, 6, 4],
        [7, 9, 11, 3, 2, 5, 0, 0, 0],
        [7, 9, 11, 13, 2, 6, 8, 0, 0],
        [5, 9, 11, 13, 2, 0, 0, 0, 0],
    ]
)
LENGTHS = torch.tensor([9, 6, 7, 5])
REAL = torch.arange(9) < LENGTHS[:, None]
ANSWER = REAL[:, 1:] & (torch.arange(8) >= torch.tensor([3, 2, 4, 9])[:, None])  # nothing of the last row


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many states each batch needed."""
    seen: list[int] = []

    class Counted(prefixes.Shared):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            seen.append(self.distinct)

    monkeypatch.setattr(prefixes, "Shared", Counted)
    return seen


def losses(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    return fused.nats(model, {"input_ids": IDS} | inputs, ANSWER, IDS[:, 1:][ANSWER])


def test_states_that_rows_share_are_those_of_the_first_that_has_them() -> None:
    shared = prefixes.Shared(IDS[:, :-1], ANSWER)
    assert shared.distinct == 8 + 2 + 1  # rows 1 to 3: eight, five less three, six less five
    assert shared.shape == (4, 8) and shared.ids.shape == shared.positions.shape == (1, prefixes.MULTIPLE)
    assert shared.ids[0, :11].tolist() == [7, 9, 11, 13, 2, 5, 8, 6, 3, 2, 6]
    assert shared.positions[0, :11].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5]
    assert shared.asked.tolist() == [3, 4, 5, 6, 7, 2, 8, 9, 4, 10]


def test_the_long_row_has_a_state_that_is_nobodys() -> None:
    ids = torch.arange(2 * prefixes.MULTIPLE).view(2, -1)
    shared = prefixes.Shared(ids, torch.ones_like(ids, dtype=torch.bool))
    assert shared.distinct == 2 * prefixes.MULTIPLE and shared.ids.shape[1] == 3 * prefixes.MULTIPLE


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("strided", [False, True])
def test_spread_and_collected_with_exact_gradients(heads: int, strided: bool) -> None:
    torch.manual_seed(0)
    shared = prefixes.Shared(IDS[:, :-1], ANSWER)
    x = torch.randn(1, heads, prefixes.MULTIPLE, 3, dtype=torch.float64)
    x = (x.transpose(1, 2).contiguous().transpose(1, 2) if strided else x).requires_grad_()
    spread = prefixes.Spread.apply(x, shared, False)
    needed = torch.arange(8) <= torch.tensor([7, 4, 5, -1])[:, None]
    expected = x[0].transpose(0, 1)[shared._states].transpose(1, 2)
    assert torch.equal(spread.transpose(1, 2)[needed], expected.transpose(1, 2)[needed])
    back = prefixes.Collect.apply(spread, shared)
    assert torch.equal(back[0, : shared.distinct], x[0].transpose(0, 1)[: shared.distinct])
    weights = torch.randn(spread.transpose(1, 2)[needed].shape, dtype=torch.float64)
    found, wanted = (
        torch.autograd.grad((weights * y.transpose(1, 2)[needed]).sum(), x)[0] for y in (spread, expected)
    )
    assert torch.allclose(found.float(), wanted.float())  # summed in fp32
    rows = torch.randn(back[0, : shared.distinct].shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(
        (rows * prefixes.Collect.apply(spread, shared)[0, : shared.distinct]).sum(), spread
    )
    assert found.count_nonzero() == rows.count_nonzero() and torch.allclose(found.sum(), rows.sum())


def test_narrowed_to_what_is_scored_with_an_exact_gradient() -> None:
    torch.manual_seed(0)
    shared = prefixes.Shared(IDS[:, :-1], ANSWER)
    assert len(shared.asked) == shared.scored_once + 1  # one is scored in two rows
    x = torch.randn(1, prefixes.MULTIPLE, 3, dtype=torch.float64, requires_grad=True)
    scored = x.index_select(1, shared.last)[0, shared.asked_last]
    assert torch.equal(scored, x[0, shared.asked])
    weights = torch.randn(scored.shape, dtype=torch.float64)
    found, wanted = (torch.autograd.grad((weights * y).sum(), x)[0] for y in (scored, x[0, shared.asked]))
    assert torch.allclose(found, wanted)


@pytest.mark.parametrize("again", [False, True])
def test_the_last_layer_leaves_out_what_is_not_scored(llama: Path, again: bool) -> None:
    model, read = made(llama), []
    layers = model.get_base_model().model.layers
    if again:  # computed twice, by gradient checkpointing
        model.gradient_checkpointing_enable({"use_reentrant": False})
    many = torch.arange(4 * prefixes.MULTIPLE).view(4, -1) % 50
    answer = torch.zeros_like(many[:, 1:], dtype=torch.bool)
    answer[:, -3:] = True
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    with fused.layers(model):
        fused.nats(model, {"input_ids": many}, answer, many[:, 1:][answer])
        assert "forward" not in vars(layers[-1]) and not layers[-1].self_attn.o_proj._forward_pre_hooks
    assert len(read) > 1 and set(read[:-1]) == {4 * prefixes.MULTIPLE}
    assert read[-1] == (4 * prefixes.MULTIPLE if again else prefixes.MULTIPLE)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_same_losses_and_gradients(
    family: str, four_bit: bool, masked: bool, request: pytest.FixtureRequest, computed: list[int]
) -> None:
    model = made(request.getfixturevalue(family), four_bit=four_bit)
    inputs = {"attention_mask": REAL.long()} if masked else {}
    expected = losses(model, **inputs)
    weights = torch.linspace(-1, 2, len(expected))
    wanted = adapters_gradient(model, (weights * expected).sum())
    assert computed == []  # outside of the block each row by itself
    with fused.layers(model):
        found = losses(model, **inputs)
        gradient = adapters_gradient(model, (weights * found).sum())
    assert computed == [11]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-5 * wanted.abs().max().item())


def test_in_bf16_as_near_to_exact_as_each_row_by_itself(llama: Path, computed: list[int]) -> None:
    exact = adapters_gradient(*(lambda m: (m, losses(m).sum()))(made(llama)))
    model, gradients = made(llama, torch.bfloat16), {}
    for way in ("by itself", "shared"):
        with fused.layers(model), torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
            if way == "by itself":
                patch.setattr(fused, "_shareable", lambda *given: False)
            gradients[way] = adapters_gradient(model, losses(model).sum())
    assert computed == [11]
    apart = {way: (gradient - exact).norm().item() for way, gradient in gradients.items()}
    assert apart["shared"] < 1.2 * apart["by itself"]


def test_with_gradient_checkpointing(llama: Path, computed: list[int]) -> None:
    model = made(llama)
    wanted = adapters_gradient(model, losses(model).sum())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with fused.layers(model):
        gradient = adapters_gradient(model, losses(model).sum())
    assert computed == [11] and torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-5 * wanted.abs().max().item())


def test_hooks_of_the_model_see_the_batch(llama: Path) -> None:
    model, seen = made(llama), []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given), with_kwargs=True)
    with fused.layers(model):
        losses(model, attention_mask=REAL.long())
    assert torch.equal(seen[0]["input_ids"], IDS) and torch.equal(seen[0]["attention_mask"], REAL.long())
    assert not model.get_base_model().base_model._forward_pre_hooks


def test_padding_on_the_left_and_nothing_to_score_are_left_alone(llama: Path, computed: list[int]) -> None:
    model = made(llama)
    ids, real, answer = IDS.flip(1), REAL.flip(1), REAL.flip(1)[:, 1:]
    given = {"input_ids": ids, "attention_mask": real.long()}, answer, ids[:, 1:][answer]
    expected = fused.nats(model, *given)
    with fused.layers(model):
        assert torch.allclose(fused.nats(model, *given), expected, rtol=1e-4, atol=1e-5)
        none = fused.nats(model, {"input_ids": IDS}, torch.zeros_like(ANSWER), IDS[:0, 0])
    assert none.shape == (0,) and computed == []


@pytest.mark.parametrize("why", ["dropout", "kind", "window"])
def test_states_that_depend_on_more_are_not_shared(llama: Path, why: str, computed: list[int]) -> None:
    model = made(llama, **({"lora_dropout": 0.5} if why == "dropout" else {}))
    if why == "window":
        model.config.sliding_window = 4
    if why == "kind":
        model.config.layer_types = ["sliding_attention"] * model.config.num_hidden_layers
    with fused.layers(model) as found:
        losses(model)
    assert found.attention and computed == []
