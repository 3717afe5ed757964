"""PEFT's LoRA layers as `cookbook.fused` computes them, alone or together with those that read the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any

import torch

from cookbook.fourbit import Dense, unpacked
from cookbook.fused_functions import Frozen, Lora

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names in a Llama-like layer
Forward = Callable[..., torch.Tensor]


def fits(module: torch.nn.Module) -> bool:
    """Whether this is PEFT's plain LoRA, without dropout, on a frozen linear layer, 4-bit or not."""
    if not type(module).__module__.startswith("peft.tuners.lora") or not hasattr(module, "get_base_layer"):
        return False
    base = module.get_base_layer()
    if type(base) is not torch.nn.Linear and not _four_bit(base):
        return False
    if base.weight.requires_grad or base._forward_hooks or base._forward_pre_hooks:
        return False
    if "forward" in vars(base) and not isinstance(base.forward, Dense):
        return False
    return all(_plain_adapter(module, name) for name in module.active_adapters)


def forward(module: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The layer's output, by its own code where something special is asked of it."""
    if args or kwargs or _adapter(module) is None:
        return type(module).forward(module, x, *args, **kwargs)
    return _outputs([module], x)[0]


def siblings(model: torch.nn.Module, known: Container[torch.nn.Module]) -> dict[torch.nn.Module, Forward]:
    """Forwards of the LoRA layers of `model` among the `known` that read the same states as another one."""
    found: dict[torch.nn.Module, Forward] = {}
    for parent in model.modules():
        for names in SIBLINGS:
            layers = [layer for name in names if (layer := getattr(parent, name, None)) in known]
            if len(layers) > 1 and len({layer.in_features for layer in layers}) == 1 and not _reads_two(parent):
                together = Together(layers)
                found |= {layer: partial(together.forward, layer) for layer in layers}
    return found


def _reads_two(parent: torch.nn.Module) -> bool:
    """Whether its keys and values may be another sequence's than its queries."""
    return "key_value_states" in inspect.signature(type(parent).forward).parameters


class Together:
    """LoRA layers that read the same states: the first one asked computes for all, the others give what is ready."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self._read: torch.Tensor | None = None
        self._asked: tuple[Any, ...] = ()
        self._ready: dict[Any, torch.Tensor] = {}

    def forward(self, module: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        adapters = [_adapter(layer) for layer in self._layers]
        if args or kwargs or None in adapters:
            return forward(module, x, *args, **kwargs)
        asked = (torch.is_grad_enabled(), *adapters)
        if x is not self._read or asked != self._asked or module not in self._ready:
            self._read, self._asked = x, asked
            self._ready = dict(zip(self._layers, _outputs(self._layers, x), strict=True))
        out = self._ready.pop(module)
        if not self._ready:
            self._read = None
        return out


def _outputs(modules: Sequence[Any], x: torch.Tensor) -> list[torch.Tensor]:
    layers, trained = [], []
    dtype = _product_type(modules[0].get_base_layer(), x)
    for module in modules:
        base, name = module.get_base_layer(), _adapter(module)
        layers.append(Frozen(_weight(base, dtype), base.bias, module.scaling[name]))
        trained += [module.lora_A[name].weight, module.lora_B[name].weight]
    outputs = Lora.apply(x.to(dtype), layers, *trained)
    return [out if torch.is_autocast_enabled(x.device.type) else out.to(x.dtype) for out in outputs]


def _adapter(module: Any) -> str | None:
    """The one adapter in use, if there is one and it is simply added."""
    names = [name for name in module.active_adapters if name in module.lora_A]
    return None if module.disable_adapters or module.merged or len(names) != 1 else names[0]


def _plain_adapter(module: Any, name: str) -> bool:
    """LoRA itself, or nothing, under this name: no dropout, no variant, no bias, no hooks."""
    if name not in module.lora_A:
        return True
    pair = module.lora_A[name], module.lora_B[name]
    return (
        isinstance(module.lora_dropout[name], torch.nn.Identity)
        and name not in module.lora_variant
        and all(type(part) is torch.nn.Linear and part.bias is None and not part._forward_hooks for part in pair)
    )


def _four_bit(base: torch.nn.Module) -> bool:
    packed = getattr(base.weight, "quant_state", None)
    return (
        type(base).__module__.startswith("bitsandbytes")
        and packed is not None
        and not getattr(packed, "packing_format_for_cpu", False)
    )


def _product_type(base: torch.nn.Module, x: torch.Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return (getattr(base, "compute_dtype", None) or x.dtype) if _four_bit(base) else base.weight.dtype


def _weight(base: Any, dtype: torch.dtype) -> torch.Tensor | Callable[[], torch.Tensor]:
    """The frozen weights, (out, in); of a 4-bit layer what gives them, unpacked once if the layer does so itself."""
    if not _four_bit(base):
        return base.weight
    return partial(base.forward.weight, dtype) if isinstance(base.forward, Dense) else partial(unpacked, base, dtype)
