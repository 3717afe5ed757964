"""What a training forward keeps for its backward: counted on the model's own code, with tensors that hold no data."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cookbook.fused import layers

METHODS = ("full", "frozen_half", "ln", "lora", "dora", "qlora", "ia3", "bottleneck")
IN_PLACE = ("full", "frozen_half", "ln")  # the whole model is kept in the trained weights' type
TOKENS = (16, 32, 48)  # lengths that are traced: enough for a parabola
UNMASKED = "sdpa_without_mask"  # a trace cannot see that nothing is padded, and would make a mask for fused attention
AttentionInterface.register(UNMASKED, sdpa_attention_forward)
AttentionMaskInterface.register(UNMASKED, lambda *_, **__: None)
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # what it fails at has a rule instead
ROWS = 2  # sequences that are traced; a single one is sometimes expanded without a copy


class Kept(NamedTuple):
    """What a forward keeps, in bytes, and what is trained.

    `copies` are weights in the type of the products, whatever the batch; a sequence of s tokens keeps
    `linear` * s + `square` * s * s. `trained` counts weights, `edges` the rows and columns of their matrices.
    """

    copies: float
    linear: float
    square: float
    trained: float
    edges: float

    def sequence(self, tokens: int) -> float:
        """Bytes of one sequence of so many tokens."""
        return self.linear * tokens + self.square * tokens**2


def trace(
    config: Any, method: str, rank: int, dtype: torch.dtype, *, mixed: bool, eager: bool, fused: bool = False
) -> tuple[Kept, Kept]:
    """What lies outside the blocks of a causal model of this config, and what each block adds.

    The model is cut to one block and to two, and its forward runs on fake tensors, which have shapes and no data;
    what autograd keeps of it is summed. The model is built as the notebooks build it, with PEFT's adapters and under
    autocast to `dtype`, so that casts and copies count as they are made. Takes some tenths of a second, once a model
    and method. `qlora` is traced as LoRA: packed weights are no activations; `frozen_half` as `full`. For a model
    whose code cannot be traced, a mixture of experts for one, a rule of thumb stands in (`rule_of_thumb`).

    Args:
        rank: of the LoRA family; the inner size of a bottleneck adapter.
        mixed: trained weights are kept in fp32; else they have `dtype` like all others.
        eager: plain attention, which keeps its matrix; else fused attention over rows without padding.
        fused: as it trains inside `fused.layers`.
    """
    fields = config.get_text_config().to_dict()
    alike = {"qlora": "lora", "frozen_half": "full"}.get(method, method)
    return _trace(json.dumps(fields, sort_keys=True, default=str), alike, rank, dtype, mixed, eager, fused)


@lru_cache(maxsize=64)
def _trace(
    fields: str, method: str, rank: int, dtype: torch.dtype, mixed: bool, eager: bool, fused: bool
) -> tuple[Kept, Kept]:
    found = []
    for blocks in (1, 2):
        fake = FakeTensorMode()
        model = _build(fake, _cut(json.loads(fields), blocks, eager), method, rank, dtype, mixed)
        trained = [p for p in model.parameters() if p.requires_grad]
        with layers(model) if fused else nullcontext():
            low, middle, high = (_kept(fake, model, tokens, dtype, eager) for tokens in TOKENS)
        step = TOKENS[1] - TOKENS[0]
        square = (high - 2 * middle + low) / (2 * step**2)
        linear = (middle - low) / step - square * (TOKENS[0] + TOKENS[1])
        copies = low - linear * TOKENS[0] - square * TOKENS[0] ** 2
        counts = sum(p.numel() for p in trained), sum(sum(p.shape) for p in trained)
        found.append(np.array([copies, linear / ROWS, square / ROWS, *counts]))
    one, two = found
    return Kept(*(2 * one - two).tolist()), Kept(*(two - one).tolist())


def _cut(fields: dict[str, Any], blocks: int, eager: bool) -> Any:
    config = AutoConfig.for_model(**fields)
    config.num_hidden_layers = blocks
    if fields.get("layer_types"):
        config.layer_types = fields["layer_types"][:blocks]
    config._attn_implementation = "eager" if eager else None  # None: fused, if the model can
    return config


def _build(fake: Any, config: Any, method: str, rank: int, dtype: torch.dtype, mixed: bool) -> torch.nn.Module:
    """The model on fake tensors, its trained weights in the type in which they are kept."""
    kept = torch.float32 if mixed else dtype
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config, dtype=kept if method in IN_PLACE else dtype)
        if model.config._attn_implementation == "sdpa":
            model.config._attn_implementation = UNMASKED
        if method == "bottleneck":
            from cookbook.bottleneck import Bottlenecks

            Bottlenecks(model).add("traced", rank)
        elif method != "full":
            from peft import get_peft_model

            model = get_peft_model(model, adapter(model, method, rank))
    fakes: dict[int, torch.Tensor] = {}  # by what they replace: tied weights stay tied
    with fake:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, old in tensors.items():
                    if old is not None and id(old) not in fakes:
                        fresh = torch.empty(old.shape, dtype=kept if old.requires_grad else old.dtype)
                        weight = isinstance(old, torch.nn.Parameter)
                        fakes[id(old)] = torch.nn.Parameter(fresh, old.requires_grad) if weight else fresh
                    tensors[name] = fakes.get(id(old))
    return model.train()


def adapter(model: torch.nn.Module, method: str, rank: int) -> Any:
    """PEFT's config of a method, on all linear layers where there is a choice."""
    from peft import IA3Config, LNTuningConfig, LoraConfig

    if method == "ia3":
        return IA3Config(task_type="CAUSAL_LM")
    if method == "ln":
        names = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if type(m).__name__.endswith("Norm")}
        return LNTuningConfig(target_modules=sorted(names), task_type="CAUSAL_LM")
    return LoraConfig(r=rank, target_modules="all-linear", use_dora=method == "dora", task_type="CAUSAL_LM")


def _kept(fake: Any, model: torch.nn.Module, tokens: int, dtype: torch.dtype, eager: bool) -> int:
    """Bytes of the storages that autograd keeps of a forward, the weights' own left out."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            saved[storage] = tensor
        return tensor

    with (
        fake,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        try:
            asked = torch.ones(ROWS, tokens, dtype=torch.long)
            model(input_ids=asked, use_cache=False, logits_to_keep=1)
        except Exception:  # whatever a model's code or an operator without a fake version may raise
            return rule_of_thumb(model.config, dtype, eager, ROWS, tokens)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def rule_of_thumb(config: Any, dtype: torch.dtype, eager: bool, rows: int, tokens: int) -> int:
    """Bytes that the blocks of a transformer keep, within a factor of two.

    About 16 hidden, 6 intermediate and 6 key/value vectors in the type of the products and four hidden ones in fp32
    for the norms (after Korthikanti et al. 2022); of plain attention the matrix, its softmax in fp32.
    """
    width, hidden, heads = torch.finfo(dtype).bits // 8, config.hidden_size, config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    kv = hidden * getattr(config, "num_key_value_heads", heads) // heads
    token = width * (16 * hidden + 6 * inner + 6 * kv) + 4 * 4 * hidden
    matrix = tokens * heads * (4 + width) if eager else 0
    return rows * tokens * config.num_hidden_layers * (token + matrix)
