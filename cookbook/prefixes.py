"""Rows of a batch that begin alike: what they share is computed once, and only what a loss needs is computed at all.

A causal model's state at a token depends on that token and those before it. Where two rows agree from their first
token on, so do their states, and one serves both; what follows a row's last scored token, padding included, serves
nobody. So the model gets one long row of those states that differ. Attention alone sees the rows: before it the
states of queries, keys and values are spread over them, after it they are collected again. Of the last layer
nothing reads the states that are not to be scored, so behind its attention they are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers.models.llama import modeling_llama

from cookbook.known import same_code

MULTIPLE = 64  # the long row's length: few different ones, as oneDNN prepares a product for each
EIGHTS = 8  # the same for the rows that attention sees


class Shared:
    """Which positions of a batch are computed, and where each position's state is.

    The long row is filled up to a multiple; its last state is nobody's, and no gradient reaches it.

    Args:
        ids: (rows, tokens), padded on the right if at all.
        answer: (rows, tokens), true where a state is to be scored, at least once; it needs those before it.

    Attributes:
        shape: (rows, tokens) that attention sees: as far as states are needed.
        ids, positions: (1, computed), the tokens of the long row and their places in the rows.
        asked: (scored,), places in the long row of the states to be scored, row after row.
        last: those places, each once, filled up to a multiple with nobody's.
        asked_last: (scored,), places in `last` of the states to be scored, row after row.
        distinct, scored_once: how many states of the long row are somebody's, and how many of these are scored.
    """

    def __init__(self, ids: torch.Tensor, answer: torch.Tensor) -> None:
        needed = answer.flip(1).cummax(1).values.flip(1)
        last = int(needed.any(0).sum())
        tokens = last + -last % EIGHTS
        ids, needed, answer = (
            torch.nn.functional.pad(x[:, :last], (0, tokens - last)) for x in (ids, needed, answer)
        )
        same = (ids[:, None] == ids) & needed[:, None] & needed
        agrees = same.int().cumprod(-1)  # each row with each, up to there
        homes = agrees.argmax(1) * tokens + torch.arange(tokens)  # in the first row that agrees
        places, found = homes[needed].unique(return_inverse=True)
        self.shape, self.distinct = ids.shape, len(places)
        self._places = torch.nn.functional.pad(places, (0, MULTIPLE - len(places) % MULTIPLE), value=int(places[0]))
        nobody = len(self._places) - 1
        self._states = torch.full_like(homes, nobody).masked_scatter_(needed, found)
        self._owned = torch.full_like(homes.view(-1), nobody).index_copy_(0, places, torch.arange(len(places)))
        self._copies = (needed.view(-1) & (self._owned == nobody)).nonzero().squeeze(1)
        self._summed, self._into = self._states.view(-1)[self._copies].unique(return_inverse=True)
        self.ids, self.positions = ids.reshape(-1)[self._places][None], (self._places % tokens)[None]
        self.asked = self._states[answer]
        once, self.asked_last = self.asked.unique(return_inverse=True)
        self.scored_once = len(once)
        self.last = torch.nn.functional.pad(once, (0, -len(once) % MULTIPLE), value=nobody)
        self._indices: dict[int, Indices] = {}

    def indices(self, heads: int) -> Indices:
        """The same for states of so many heads, each by itself."""
        if heads not in self._indices:
            head, computed, (rows, tokens) = torch.arange(heads), len(self._places), self.shape

            def spread(states: torch.Tensor, state: int, next_head: int) -> torch.Tensor:
                return (states.view(rows, 1, tokens) * state + head[:, None] * next_head).view(-1)

            def collected(places: torch.Tensor) -> torch.Tensor:
                row, token = places // tokens, places % tokens
                return (row * heads * tokens + token)[:, None] + head * tokens

            self._indices[heads] = Indices(
                from_heads=spread(self._states, 1, computed),
                from_states=spread(self._states, heads, 1),
                owned=spread(self._owned, heads, 1),
                places=collected(self._places).view(-1),
                copies=collected(self._copies),
                summed=self._summed,
                into=self._into,
            )
        return self._indices[heads]


class Indices(NamedTuple):
    """Where things are, with heads: flat, in (rows, heads, tokens) or in the long row.

    Attributes:
        from_heads, from_states: for each position its state in (heads, computed) and in (computed, heads).
        owned: for the position that a state was computed for, that state in (computed, heads); else nobody's.
        places: for each state in (computed, heads) its position.
        copies: (copies, heads), the other positions with that state.
        summed, into: (states,) the states that have copies, and (copies,) which of these each copy has.
    """

    from_heads: torch.Tensor
    from_states: torch.Tensor
    owned: torch.Tensor
    places: torch.Tensor
    copies: torch.Tensor
    summed: torch.Tensor
    into: torch.Tensor


class Spread(Function):
    """(1, heads, computed, size) to (rows, heads, tokens, size).

    Queries (`asks`) of a copied position are answered where the state was computed: its copies get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shared: Shared, asks: bool) -> torch.Tensor:
        ctx.shared, ctx.asks = shared, asks
        (rows, tokens), (_, heads, _, size), indices = shared.shape, x.shape, shared.indices(x.shape[1])
        if x.is_contiguous():
            found = x.view(-1, size).index_select(0, indices.from_heads)
        else:  # as a linear layer leaves it
            found = x.transpose(1, 2).reshape(-1, size).index_select(0, indices.from_states)
        return found.view(rows, heads, tokens, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        shared, (_, heads, _, size) = ctx.shared, grad.shape
        indices, grad = shared.indices(heads), grad.reshape(-1, size)
        out = grad.index_select(0, indices.places).view(-1, heads, size)
        out[shared.distinct :] = 0
        if len(indices.copies) and not ctx.asks:
            sums = out[indices.summed].float().index_add_(0, indices.into, grad[indices.copies].float())
            out.index_copy_(0, indices.summed, sums.to(grad.dtype))
        return out.transpose(0, 1)[None], None, None


class Collect(Function):
    """(rows, heads, tokens, size) to (1, computed, heads, size), each state from where it was computed for."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shared: Shared) -> torch.Tensor:
        ctx.shared, ctx.shape = shared, x.shape
        _, heads, _, size = x.shape
        return x.reshape(-1, size).index_select(0, shared.indices(heads).places).view(1, -1, heads, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        _, heads, _, size = ctx.shape
        return grad.reshape(-1, size).index_select(0, ctx.shared.indices(heads).owned).view(ctx.shape), None


def causal(tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """The mask (1, 1, tokens, tokens) that is added to scores: a token sees those up to itself."""
    return torch.full((tokens, tokens), torch.finfo(dtype).min, dtype=dtype).triu_(1)[None, None]


@contextmanager
def narrowed(decoder: Any, shared: Shared) -> Iterator[torch.Tensor]:
    """Inside, the last layer gives only the states to be scored, if it is Llama's; yields where these are then."""
    layer = getattr(decoder, "layers", [None])[-1]
    if not _plain_layer(layer):
        yield shared.asked
        return
    hook = layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: (args[0].index_select(1, shared.last),))
    layer.forward = partial(_last_forward, layer)
    try:
        yield shared.asked_last
    finally:
        hook.remove()
        del layer.forward


def _plain_layer(layer: torch.nn.Module | None) -> bool:
    """Whether a layer computes as Llama's does and is not computed twice, which would be after its hook is gone."""
    forwards = (inspect.unwrap(kind.forward) for kind in (type(layer), modeling_llama.LlamaDecoderLayer))
    if layer is None or "forward" in vars(layer) or not same_code(*forwards):
        return False
    twice = layer.training and getattr(layer, "gradient_checkpointing", False)
    return not twice and hasattr(layer.self_attn, "o_proj")


def _last_forward(layer: Any, hidden_states: torch.Tensor, *, shared: Shared, **given: Any) -> torch.Tensor:
    mixed, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), shared=shared, **given)
    hidden = hidden_states.index_select(1, shared.last) + mixed
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))
