"""Peak memory of a fine-tuning run, predicted before anything is loaded, and a micro-batch that fits."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import psutil
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from cookbook.models import ModelError, resolve

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, one 8-bit constant per 64 weights, one fp32 per 256 of those
RUNTIME_BYTES = 0.75e9  # Python with torch and transformers loaded, on a CPU, where nobody has measured it
LOGIT_ROWS = 3  # fp32 copies of one micro-batch's logits alive at once in the loss, were every position supervised


class MemoryPlanError(ModelError):
    """The run would not fit, even with one sequence at a time."""


@dataclass(frozen=True)
class Plan:
    """Predicted bytes by part, for `micro_batch` sequences of `length` tokens."""

    micro_batch: int
    length: int
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int

    @property
    def total(self) -> int:
        """The predicted peak, in bytes."""
        return (
            self.weights + self.adapter + self.gradients + self.optimizer
            + self.activations + self.logits + self.runtime
        )  # fmt: skip

    def table(self) -> dict[str, str]:
        """The parts in gigabytes, as text, largest concern last."""
        parts = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "runtime", "total")
        return {p: f"{getattr(self, p) / 1e9:.2f} GB" for p in parts}


def plan(
    model: str,
    *,
    micro_batch: int,
    length: int,
    dtype: torch.dtype,
    four_bit: bool = False,
    lora_rank: int = 0,
    eager: bool = False,
    device: str = "cpu",
    runtime: float = RUNTIME_BYTES,
) -> Plan:
    """Predict the peak of training `model` from its config alone (weights stay on the meta device).

    Full fine-tuning (`lora_rank=0`) counts fp32 master weights, gradients and two Adam moments; LoRA counts the
    same for its A and B on every linear layer but the head. Activations are those of a transformer block kept
    for the backward, without checkpointing: about 16 hidden, 6 intermediate and 6 key/value vectors in the
    compute dtype, and four hidden vectors in fp32 for the norms (after Korthikanti et al. 2022). The attention
    matrix counts for `eager` attention alone, its softmax in fp32 and a copy in the compute dtype; fused attention
    does not keep it. `runtime` is what the process holds without a model (`Ledger.idle_bytes`).
    """
    config = AutoConfig.from_pretrained(resolve(model))
    with init_empty_weights(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = AutoModelForCausalLM.from_config(config)
    empty.tie_weights()
    head = empty.get_output_embeddings()
    linear = [m for m in empty.modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head]
    total = sum(p.numel() for p in empty.parameters())
    packed = sum(m.weight.numel() for m in linear)
    width = torch.finfo(dtype).bits // 8
    if four_bit:
        weights = packed * NF4_BYTES + (total - packed) * width
    else:
        weights = total * (width if lora_rank else 4)
    trained = lora_rank * sum(sum(m.weight.shape) for m in linear) if lora_rank else total
    text = config.get_text_config()
    hidden, layers, tokens = text.hidden_size, text.num_hidden_layers, micro_batch * length
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
    heads = text.num_attention_heads
    kv = hidden * getattr(text, "num_key_value_heads", heads) // heads
    block = width * (16 * hidden + 6 * inner + 6 * kv) + 4 * 4 * hidden
    matrix = tokens * length * heads * (4 + width) if eager else 0
    return Plan(
        micro_batch=micro_batch,
        length=length,
        weights=int(weights),
        adapter=int(4 * trained) if lora_rank else 0,
        gradients=int(4 * trained),
        optimizer=int(8 * trained),
        activations=int(layers * (tokens * block + matrix)),
        logits=int(tokens * text.vocab_size * 4 * LOGIT_ROWS),
        runtime=int(runtime) if device == "cpu" else 0,
    )


def fit(wanted: Plan, *, available: int | None = None, device: str = "cpu") -> Plan:
    """The plan itself if it fits in `available` bytes (default: what is free now), else a smaller micro-batch.

    Raises:
        MemoryPlanError: one sequence at a time is still too much.
    """
    limit = free_bytes(device) if available is None else available
    fitting = wanted
    while fitting.total > limit and fitting.micro_batch > 1:
        half = fitting.micro_batch // 2
        share = half / fitting.micro_batch
        fitting = replace(
            fitting,
            micro_batch=half,
            activations=int(fitting.activations * share),
            logits=int(fitting.logits * share),
        )
    if fitting.total > limit:
        raise MemoryPlanError(
            f"predicted peak {fitting.total / 1e9:.1f} GB with one sequence of {fitting.length} tokens, free "
            f"{limit / 1e9:.1f} GB: lower MAX_LENGTH, keep QUANTIZE on, or choose a smaller MODEL"
        )
    return fitting


def free_bytes(device: str = "cpu") -> int:
    """Bytes this process may still take, its own memory included."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())
    return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)
