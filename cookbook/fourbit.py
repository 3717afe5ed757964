"""4-bit weights on a CPU, unpacked once for a whole evaluation and not in every forward."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def dense_weights(model: torch.nn.Module) -> Iterator[None]:
    """Inside this block the 4-bit linear layers of `model` on a CPU compute from unpacked weights.

    bitsandbytes unpacks every layer's weights in every forward, which for generation costs many times the
    matrix products themselves. Here each layer unpacks at its first use and keeps the result (2 bytes a weight
    in bf16) until the block ends. The values are those that bitsandbytes computes from, and nothing is
    repacked for inference, which would falsify the gradients of a later training step. Layers on other
    devices stay as they are.
    """
    bitsandbytes = sys.modules.get("bitsandbytes")  # not imported: no 4-bit layer can exist
    layers = [
        module
        for module in model.modules()
        if bitsandbytes is not None
        and isinstance(module, bitsandbytes.nn.Linear4bit)
        and module.weight.device.type == "cpu"
        and "forward" not in vars(module)  # hooked, or inside such a block already
        and not getattr(module.weight.quant_state, "packing_format_for_cpu", False)
    ]
    try:
        for layer in layers:
            layer.forward = _dense_forward(layer)
        yield
    finally:
        for layer in layers:
            del layer.forward


def _dense_forward(layer: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    from bitsandbytes.functional import dequantize_4bit

    weight: torch.Tensor | None = None

    def forward(x: torch.Tensor) -> torch.Tensor:
        nonlocal weight
        dtype = layer.compute_dtype or x.dtype
        if weight is None or weight.dtype != dtype:
            state = copy.copy(layer.weight.quant_state)
            state.dtype = dtype  # straight to the dtype of the product, as bitsandbytes does
            weight = dequantize_4bit(layer.weight.data, state)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return torch.nn.functional.linear(x.to(dtype), weight, bias).to(x.dtype)

    return forward
