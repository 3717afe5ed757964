"""Attention of one token: what torch's kernel computes, and only where it is slow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cookbook import decoding
from cookbook.decoding import one_token

ROWS, HEADS, KEYS, SIZE = 3, 6, 40, 16
HIDDEN = {
    "none": None,
    "left padding": torch.arange(KEYS) >= torch.tensor([0, 5, 30])[:, None, None, None],
    "in numbers": torch.where(torch.arange(KEYS) < 7, -3e38, 0.0).expand(ROWS, 1, 1, KEYS),
}


def asked(dtype: torch.dtype, groups: int, tokens: int = 1) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """An attention module, and its queries, keys and values."""
    module = torch.nn.Module().eval()
    module.num_key_value_groups = HEADS // groups
    draw = torch.Generator().manual_seed(0)
    shapes = (HEADS, tokens), (groups, KEYS), (groups, KEYS)
    return module, [torch.randn(ROWS, h, n, SIZE, generator=draw).to(dtype) for h, n in shapes]


def attend(module: torch.nn.Module, *given: Any, **more: Any) -> torch.Tensor:
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *given, **more)[0]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("scaling", [None, 0.5])
def test_it_is_the_kernels_attention(hidden: str, groups: int, scaling: float | None) -> None:
    module, read = asked(torch.bfloat16, groups)
    mask = HIDDEN[hidden]
    short = mask.bfloat16() if hidden == "in numbers" else mask
    wanted = attend(module, *(x.float() for x in read), mask, scaling=scaling)
    with one_token():
        found = attend(module, *read, short, scaling=scaling)
    assert found.dtype == torch.bfloat16 and found.shape == wanted.shape == (ROWS, 1, HEADS, SIZE)
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_what_is_hidden_is_not_read() -> None:
    module, read = asked(torch.bfloat16, 2)
    mask = HIDDEN["left padding"]
    with one_token():
        found = attend(module, *read, mask)
        read[2][1, :, :5] = 1e4
        assert torch.equal(attend(module, *read, mask), found)
        read[2][0, :, :5] = 1e4
        assert not torch.equal(attend(module, *read, mask)[0], found[0])


@pytest.mark.parametrize(
    ("dtype", "tokens", "training"),
    [(torch.float32, 1, False), (torch.bfloat16, 2, False), (torch.bfloat16, 1, True)],
)
def test_the_rest_is_left_alone(
    dtype: torch.dtype, tokens: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "Attention", None)
    module, read = asked(dtype, 2, tokens)
    module.train(training)
    wanted = attend(module, *read, None)
    with one_token():
        assert torch.equal(attend(module, *read, None), wanted)


def test_it_ends_with_its_block() -> None:
    with pytest.raises(RuntimeError), one_token():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward
        raise RuntimeError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
