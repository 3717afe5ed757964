"""Batches for generation: bounded in tokens, with what all prompts begin with read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from cookbook import softprompts

PREFIX_TOKENS = 64  # prompts that begin alike for so long share one reading of it
BATCH_TOKENS = 16_384  # prompts and answers of one batch in generation: bounds its memory


def batches(order: list[int], lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """`order` (by length) in runs of at most `batch_size` rows and, padded, `BATCH_TOKENS` tokens."""
    while order:
        rows = order[:batch_size]
        rows = rows[: max(1, BATCH_TOKENS // lengths[rows[-1]])]
        yield rows
        order = order[len(rows) :]


def shared_prefix(model: PreTrainedModel, ids: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, if they are worth reading once and this model can go on from there."""
    if len(ids) < 2:
        return []
    first, last = min(ids), max(ids)  # in order, so what these two share is shared by all between
    shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    shared = min(shared, min(map(len, ids)) - 1)  # each prompt keeps a token of its own
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    fits = shared >= PREFIX_TOKENS and layers == {"full_attention"} and not softprompts.present(model)
    return first[:shared] if fits else []


def read_prefix(model: PreTrainedModel, prefix: list[int]) -> DynamicCache:
    """The keys and values of a prefix, for one row."""
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([prefix], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def behind(prefix: list[int], rows: torch.Tensor) -> torch.Tensor:
    """Each of `rows` (rows, tokens) with the prefix before it."""
    return torch.cat([torch.tensor([prefix], dtype=rows.dtype).expand(len(rows), -1), rows], dim=1)
