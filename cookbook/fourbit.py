"""4-bit weights on a CPU, unpacked once for a whole evaluation and not in every forward."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
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
            layer.forward = Dense(layer)
        yield
    finally:
        for layer in layers:
            del layer.forward


class Dense:
    """The forward of a 4-bit linear layer that unpacks its weights once."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self._layer, self._weight = layer, None

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The unpacked weights, (out, in)."""
        if self._weight is None or self._weight.dtype != dtype:
            self._weight = unpacked(self._layer, dtype)
        return self._weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        dtype = self._layer.compute_dtype or x.dtype
        bias = None if self._layer.bias is None else self._layer.bias.to(dtype)
        return torch.nn.functional.linear(x.to(dtype), self.weight(dtype), bias).to(x.dtype)


def unpacked(layer: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The weights of a 4-bit linear layer, (out, in), straight in the dtype of the product, as bitsandbytes does."""
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(layer.weight.quant_state)
    state.dtype = dtype
    return dequantize_4bit(layer.weight.data, state)
