"""Attention of one new token a row, which is what generation asks for, token after token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cookbook.fused_functions import Attention

SDPA = "sdpa"  # transformers' name for torch's fused attention


@contextmanager
def one_token() -> Iterator[None]:
    """Inside this block fused attention (`sdpa`) of a single query, in half precision on a CPU, is plain products.

    torch's kernel takes its queries in blocks of many, and for one takes three to nine times as long as the two
    products and the softmax between them (torch 2.13, 16 to 48 rows, 300 to 1,500 keys). More queries, fp32 and
    other devices are left to it.
    """
    before = ALL_ATTENTION_FUNCTIONS[SDPA]

    def attend(
        module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        mask: torch.Tensor | None, scaling: float | None = None, **more: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        """query (rows, heads, tokens, size), keys and values with as many heads or fewer; as transformers asks."""
        single = query.shape[2] == 1 and query.dtype != torch.float32 and query.device.type == "cpu"
        alike = mask is None or mask.shape[1] == 1  # for all heads
        if not (single and alike) or module.training or more.get("position_bias") is not None:
            return before(module, query, key, value, mask, scaling=scaling, **more)
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
        out = Attention.apply(query, key, value, mask, query.shape[-1] ** -0.5 if scaling is None else scaling)
        return out.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS[SDPA] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[SDPA] = before
