"""Layers that train faster, keep less and answer faster on a CPU: the same results, fewer passes over memory."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import SiLUActivation
from transformers.masking_utils import eager_mask
from transformers.models.llama import modeling_llama

from cookbook import allocator, fused_functions, fused_lora, prefixes
from cookbook.allocator import keep_memory as keep_memory  # where notebooks ask for it
from cookbook.heads import head_reads
from cookbook.known import same_code

PLAIN = "fused_plain"  # the attention below, as transformers calls it
SHARED = "fused_shared"  # the same, in a model whose states depend on their row's tokens up to them alone
SILU = (SiLUActivation, torch.nn.SiLU)
ROTARY = "apply_rotary_pos_emb"  # by this name a transformers model's code looks it up, in its own module
LLAMAS = {ROTARY: modeling_llama.apply_rotary_pos_emb, "rotate_half": modeling_llama.rotate_half}


class Fused(NamedTuple):
    """How many layers compute by this module inside `layers`; and whether positions and plain attention do."""

    lora: int
    norms: int
    gates: int
    rotary: bool
    attention: bool


@contextmanager
def layers(model: torch.nn.Module) -> Iterator[Fused]:
    """Inside this block a model on a CPU trains with fewer passes over memory, by the same formulas.

    - LoRA: base product, adapter's product and their sum in three matrix products, forward and backward, and
      nothing kept but the input and the adapter's inner vector. PEFT's layer makes and keeps casts of both. Layers
      that read the same states, such as queries, keys and values, read them together.
    - Frozen RMS norms keep their input and one number a token, gated feed-forward parts keep no activation.
    - Rotary positions turn a head's halves where they lie, without a second, rearranged copy.
    - Plain (`eager`) attention reads grouped keys and values without repeating them, and keeps its matrix once.

    Replaced is only what is known: PEFT's plain LoRA without dropout on linear layers, 4-bit ones among them, and
    classes whose code is that of transformers' Llama. Everything else, and everything on a GPU, stays as it is.
    A layer asked for something special (adapters off, merged, mixed in one batch) answers by its own code.

    Yields:
        What was replaced.
    """
    found: dict[torch.nn.Module, Callable[..., torch.Tensor]] = {}
    kinds = {"lora": 0, "norms": 0, "gates": 0}
    for module in model.modules() if _on_cpu(model) else ():
        for kind, (fits, forward) in _KINDS.items():
            if "forward" not in vars(module) and fits(module):
                found[module] = partial(forward, module)
                kinds[kind] += 1
    found |= fused_lora.siblings(model, found)
    plain = _attention_owner(model) if found else None
    turned = _rotary_homes(model) if found else {}
    try:
        for module, forward in found.items():
            module.forward = forward
        if plain is not None:
            plain.set_attn_implementation(SHARED if _shares(model) else PLAIN)
        for home in turned:
            setattr(home, ROTARY, _rotate)
        with allocator.kept():
            yield Fused(**kinds, rotary=bool(turned), attention=plain is not None)
    finally:
        for module in found:
            del module.forward
        if plain is not None:
            plain.set_attn_implementation("eager")
        for home, function in turned.items():
            setattr(home, ROTARY, function)


def nats(model: Any, inputs: dict[str, Any], answer: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How unlikely a causal model finds `targets`: cross entropy in nats, a number a position, in fp32.

    Only the positions `answer` reach the head. On a CPU, with a frozen head, their scores over the vocabulary are
    made for a few positions at a time, turned into the gradient at once, and never kept. Else they are all made.

    Inside `layers`, with plain attention and without dropout, what rows begin with in common is computed once,
    padding on the right not at all, and the last layer only where something is scored (`cookbook.prefixes`).

    Args:
        inputs: of the model's forward.
        answer: (rows, tokens - 1), true where the next token is to be scored.
        targets: (positions,), those next tokens, row after row.

    Returns:
        (positions,)
    """
    with _asked(model, inputs, answer):
        if (head := _plain_head(model)) is None:
            logits = model(**inputs, use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        head.forward = lambda hidden: fused_functions.Nats.apply(_cast(hidden), head.weight, targets)
        try:
            return model(**inputs, use_cache=False).logits
        finally:
            del head.forward


def inner(model: Any) -> Any:
    """The transformers model inside PEFT's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# What rows share


@contextmanager
def _asked(model: Any, inputs: dict[str, Any], answer: torch.Tensor) -> Iterator[None]:
    """Inside, the head reads the positions `answer`; where rows may share states, the decoder gets one long row."""
    if not (_shareable(model, inputs) and answer.any()):
        with head_reads(model, lambda hidden: hidden[:, :-1][answer]):
            yield
        return
    shared = prefixes.Shared(inputs["input_ids"][:, :-1], answer)
    given = {
        "input_ids": shared.ids,
        "position_ids": shared.positions,
        "attention_mask": prefixes.causal(shared.shape[1], model.dtype),  # of the rows, as attention sees them
        "shared": shared,
    }
    decoder = inner(model).base_model
    replaced = decoder.register_forward_pre_hook(lambda _, args, asked: (args, asked | given), with_kwargs=True)
    try:
        with (
            prefixes.narrowed(decoder, shared) as asked,
            head_reads(model, lambda hidden: hidden[0].index_select(0, asked)),
        ):
            yield
    finally:
        replaced.remove()


def _shares(model: torch.nn.Module) -> bool:
    """Whether all layers see all tokens before, and none drops anything."""
    config = inner(model).config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    near = kinds != {"full_attention"} or bool(getattr(config, "sliding_window", None))
    return not near and not any(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))


def _shareable(model: Any, inputs: dict[str, Any]) -> bool:
    """Inside `layers`: whether rows of these inputs that begin alike have the same states there."""
    mask = inputs.get("attention_mask")
    return (
        getattr(inner(model).config, "_attn_implementation", None) == SHARED
        and inputs.keys() <= {"input_ids", "attention_mask"}
        and (mask is None or bool((mask.diff(dim=1) <= 0).all()))  # padded on the right
    )


# Norms and gated feed-forward parts, where their code is Llama's


def _frozen_norm(module: torch.nn.Module) -> bool:
    return same_code(type(module).forward, modeling_llama.LlamaRMSNorm.forward) and not module.weight.requires_grad


def _norm_forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    return fused_functions.RMSNorm.apply(x, module.weight, module.variance_epsilon)


def _gated(module: torch.nn.Module) -> bool:
    return same_code(type(module).forward, modeling_llama.LlamaMLP.forward) and isinstance(module.act_fn, SILU)


def _gated_forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(fused_functions.Gate.apply(module.gate_proj(x), module.up_proj(x)))


_KINDS = {
    "lora": (fused_lora.fits, fused_lora.forward),
    "norms": (_frozen_norm, _norm_forward),
    "gates": (_gated, _gated_forward),
}


# Positions and attention


def _attention_owner(model: Any) -> Any:
    """The transformers model inside `model`, if it uses plain attention and all its attention is Llama's."""
    owner = inner(model)
    config = getattr(owner, "config", None)
    if getattr(config, "_attn_implementation", None) != "eager" or getattr(config, "attention_dropout", 0.0):
        return None
    eager = [getattr(home, "eager_attention_forward", None) for home in _attention_homes(owner)]
    known = eager and all(same_code(function, modeling_llama.eager_attention_forward) for function in eager)
    return owner if known else None


def _attention_homes(model: torch.nn.Module) -> set[ModuleType]:
    """The modules of code that the model's attention comes from."""
    return {sys.modules[type(m).__module__] for m in model.modules() if type(m).__name__.endswith("Attention")}


def _rotary_homes(model: torch.nn.Module) -> dict[ModuleType, FunctionType]:
    """Those of them whose rotary positions are Llama's, each with its function."""
    return {
        home: getattr(home, ROTARY)
        for home in _attention_homes(model)
        if all(same_code(getattr(home, name, None), function) for name, function in LLAMAS.items())
    }


def _rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """As transformers asks for it: q and k (rows, heads, tokens, size), cos and sin (rows, tokens, size)."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return fused_functions.Rotary.apply(q, cos, sin), fused_functions.Rotary.apply(k, cos, sin)


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
    scaling: float, dropout: float = 0.0, shared: prefixes.Shared | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as transformers asks for it; query (rows, heads, tokens, size), keys with fewer heads or as many."""
    read = [_cast(x) for x in (query, key, value)]
    if shared is not None:
        read = [prefixes.Spread.apply(x, shared, asks) for x, asks in zip(read, (True, False, False), strict=True)]
    out = fused_functions.Attention.apply(*read, mask, scaling)
    return out.transpose(1, 2).contiguous() if shared is None else prefixes.Collect.apply(out, shared), None


for _name in (PLAIN, SHARED):
    AttentionInterface.register(_name, _attend)
    AttentionMaskInterface.register(_name, eager_mask)


# Loss


def _plain_head(model: Any) -> torch.nn.Module | None:
    """The head of a model on a CPU, if it is frozen and its scores are all that the model makes of it."""
    base, head = inner(model), model.get_output_embeddings()
    own = plain_scores(base) and not head.weight.requires_grad and "forward" not in vars(head)
    return head if own and head.weight.device.type == "cpu" else None


def plain_scores(model: Any) -> bool:
    """Whether a causal model's scores are those of a linear head without bias, as Llama's are."""
    head = model.get_output_embeddings()
    ends = (inspect.unwrap(kind.forward) for kind in (type(model), modeling_llama.LlamaForCausalLM))
    return type(head) is torch.nn.Linear and head.bias is None and same_code(*ends)


def _cast(x: torch.Tensor) -> torch.Tensor:
    """In the type of products under autocast."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _on_cpu(model: torch.nn.Module) -> bool:
    return all(weight.device.type == "cpu" for weight in model.parameters())
