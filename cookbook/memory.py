"""Peak memory of a fine-tuning run, predicted before anything is loaded, and a micro-batch that fits."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import psutil
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from cookbook import activations, unfreezing
from cookbook.activations import IN_PLACE, METHODS
from cookbook.fused import plain_scores
from cookbook.fused_functions import LOSS_ROWS
from cookbook.locating import ModelError, resolve

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, one 8-bit constant per 64 weights, one fp32 per 256 of those
# On a CPU, where nobody has measured it: Python with its libraries loaded, and the 0.2 GB in which oneDNN keeps 128
# products that it has compiled.
RUNTIME_BYTES = 0.95e9
LOGIT_ROWS = 3  # fp32 copies of one micro-batch's logits alive at once in the loss, were every position supervised
# What is freed between tensors that are kept leaves holes in glibc's heap, more of them with every step of another
# shape. Three LoRA steps of a 135M model, all of one shape, peaked at 1.77 GB, as counted, with every tensor in pages
# of its own (MALLOC_MMAP_THRESHOLD_=65536), at 2.11 GB without. In the published runs a byte of activations and
# logits takes 1.4 to 2.4 bytes, more in longer runs; this is the middle. On a GPU only what is allocated is counted.
HEAP = 1.9
# Optimizer state: copies of the trained weights in their own type, further bytes a weight, bytes a row or column.
OPTIMIZERS = {
    "adamw": (2.0, 0.0, 0.0),  # two moments
    "adamw_8bit": (0.0, 2 + 2 * 4 / 256, 0.0),  # two moments of a byte, an fp32 scale per 256 each (bitsandbytes)
    "adafactor": (0.0, 0.0, 4.0),  # one moment, as its rows' and columns' means (Shazeer and Stern 2018)
    "sgd": (0.0, 0.0, 0.0),  # without momentum
}


class MemoryPlanError(ModelError):
    """The run would not fit, even with one sequence at a time."""


@dataclass(frozen=True)
class Plan:
    """Predicted bytes by part, for `micro_batch` sequences of `length` tokens.

    `copies` are weights in the type of the products, made on the way; `heap` is what an allocator takes for each
    byte of activations and logits.
    """

    micro_batch: int
    length: int
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int
    copies: int = 0
    heap: float = 1.0

    @property
    def holes(self) -> int:
        """What the allocator takes beside activations and logits, in bytes."""
        return int((self.heap - 1) * (self.activations + self.logits))

    @property
    def total(self) -> int:
        """The predicted peak, in bytes."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        names = "weights adapter copies gradients optimizer activations logits holes runtime"
        return {name: getattr(self, name) for name in names.split()}

    def table(self) -> dict[str, str]:
        """The parts in gigabytes, as text, largest concern last."""
        return {part: f"{bytes_ / 1e9:.2f} GB" for part, bytes_ in (self.parts() | {"total": self.total}).items()}


class Counted(NamedTuple):
    """How many weights a model has, and where; how many blocks."""

    total: int
    packed: int  # in linear layers, the head apart: those that 4-bit loading packs
    largest: int  # in one linear layer
    looked_up: int  # in input embeddings that are no head as well: part of no product
    upper_half: int  # in the upper half of the blocks and what lies above them
    blocks: int
    plain: bool  # its scores are what its head gives: `fused.nats` need not hold them all


def count(config: PretrainedConfig) -> Counted:
    """The weights of a causal model of this config, which stay on the meta device (accelerate's estimator)."""
    return _count(json.dumps(config.to_dict(), sort_keys=True, default=str))


@lru_cache(maxsize=64)
def _count(fields: str) -> Counted:
    with init_empty_weights(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = AutoModelForCausalLM.from_config(AutoConfig.for_model(**json.loads(fields)))
    empty.tie_weights()
    head, looked_up = empty.get_output_embeddings(), empty.get_input_embeddings().weight
    linear = [m.weight.numel() for m in empty.modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head]
    total = sum(p.numel() for p in empty.parameters())
    unfreezing.freeze_lower(empty, 0.5)
    return Counted(
        total=total,
        packed=sum(linear),
        largest=max(linear, default=0),
        looked_up=0 if looked_up is head.weight else looked_up.numel(),
        upper_half=sum(p.numel() for p in empty.parameters() if p.requires_grad),
        blocks=empty.config.get_text_config().num_hidden_layers,
        plain=plain_scores(empty),
    )


def plan(
    model: str | PretrainedConfig,
    *,
    micro_batch: int,
    length: int,
    dtype: torch.dtype,
    four_bit: bool = False,
    lora_rank: int = 0,
    eager: bool = False,
    device: str = "cpu",
    runtime: float = RUNTIME_BYTES,
    method: str = "",
    mixed: bool = True,
    optimizer: str = "adamw",
    checkpointing: bool = False,
    supervised: float = 1.0,
    fused: bool = False,
) -> Plan:
    """Predict the peak of training `model`, a name or a config, from its config alone: nothing is loaded.

    Weights are counted on the meta device by accelerate, activations on torch's fake tensors
    (`activations.trace`): what autograd keeps of one forward. Gradients count in full beside all activations, as they
    are when a step accumulates several micro-batches.

    Args:
        dtype: of the products, and of frozen weights.
        lora_rank: of the LoRA family; the inner size of a bottleneck adapter.
        eager: plain attention, whose matrix is kept; fused attention does not keep it.
        runtime: bytes that the process holds without a model (`Ledger.idle_bytes`); counted on a CPU alone.
        method: one of `activations.METHODS`; left out, LoRA where there is a rank, else full fine-tuning.
        mixed: trained weights, their gradients and moments are fp32; else they have `dtype`.
        optimizer: one of OPTIMIZERS.
        checkpointing: each block keeps its input alone and is computed again in the backward.
        supervised: share of the positions whose logits are computed.
        fused: trained inside `fused.layers`, with the loss of `fused.nats`, where that replaces anything: on a CPU.

    Raises:
        ModelError: no such method, optimizer or model.
    """
    method = method or ("lora" if lora_rank else "full")
    for given, known in ((method, METHODS), (optimizer, OPTIMIZERS)):
        if given not in known:
            raise ModelError(f"there is no {given!r} here; choose one of {', '.join(known)}")
    config = AutoConfig.from_pretrained(resolve(model)) if isinstance(model, str) else model
    counted = count(config)
    fused = fused and device == "cpu"
    rest, block = activations.trace(config, method, lora_rank, dtype, mixed=mixed, eager=eager, fused=fused)
    width, kept = (torch.finfo(t).bits // 8 for t in (dtype, torch.float32 if mixed else dtype))
    text, in_place = config.get_text_config(), method in IN_PLACE
    blocks = counted.blocks - round(counted.blocks / 2) if method == "frozen_half" else counted.blocks
    trained = {"full": counted.total, "frozen_half": counted.upper_half}.get(
        method, rest.trained + counted.blocks * block.trained
    )
    copies = rest.copies + block.copies * (1 if checkpointing and not in_place else blocks)
    weights = counted.total * (kept if in_place else width)
    if four_bit or method == "qlora":
        weights = counted.packed * NF4_BYTES + (counted.total - counted.packed) * width
        copies += counted.largest * width  # a layer is unpacked for its product
    sequence = rest.sequence(length) + block.sequence(length) * (1 if checkpointing else blocks)
    if checkpointing:
        sequence += blocks * length * text.hidden_size * (kept if in_place else width)
    moments, more, edge = OPTIMIZERS[optimizer]
    scored = micro_batch * length * supervised
    if fused and counted.plain and not in_place:
        scored = min(scored, LOSS_ROWS)
    return Plan(
        micro_batch=micro_batch,
        length=length,
        weights=int(weights),
        adapter=0 if in_place else int(kept * trained),
        gradients=int(kept * trained),
        optimizer=int((moments * kept + more) * trained + edge * (rest.edges + blocks * block.edges)),
        activations=int(micro_batch * sequence),
        logits=int(scored * text.vocab_size * 4 * LOGIT_ROWS),
        runtime=int(runtime) if device == "cpu" else 0,
        copies=int(copies),
        heap=HEAP if device == "cpu" else 1.0,
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
