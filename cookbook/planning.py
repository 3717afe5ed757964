"""Will it fit, how long will it take, what will it cost: a fine-tuning job planned before anything is rented."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from cookbook import memory
from cookbook.activations import IN_PLACE, METHODS
from cookbook.locating import ModelError, explained, resolve
from cookbook.recipes import RequestError

PRECISIONS = {  # of the products, and whether trained weights are kept in fp32
    "bf16, trained in fp32": (torch.bfloat16, True),
    "bf16 throughout": (torch.bfloat16, False),
    "fp32": (torch.float32, True),
}
# Share of a card's peak that training reaches. An ASSUMPTION: pretraining on thousands of cards reached 0.46
# (Chowdhery et al. 2022) and about 0.4 (Grattafiori et al. 2024); short rows and one card reach less.
UTILISATION = 0.30
CONTEXT_BYTES = 0.8e9  # of CUDA and its libraries on a card, an assumption


@dataclass(frozen=True)
class Card:
    """An accelerator: memory and dense 16-bit peak as sold, price in dollars an hour as assumed."""

    gigabytes: float
    tflops: float
    price: float


@dataclass(frozen=True)
class Job:
    """What is to be trained, on what. `batch` is rows a forward on each card, `tokens` the mean length of a row.

    `model` is a name in `models()`, a folder or a Hub id; `price` 0 takes the card's, in dollars an hour a card.

    Raises:
        RequestError: a value that is none of those there are, or a number out of range.
    """

    model: str = "Llama-3.1-8B"
    method: str = "qlora"
    rank: int = 16
    precision: str = "bf16, trained in fp32"
    length: int = 1024
    batch: int = 1
    optimizer: str = "adamw"
    checkpointing: bool = True
    rows: int = 1000
    tokens: int = 500
    epochs: float = 3.0
    card: str = "A100 80 GB"
    cards: int = 1
    price: float = 0.0
    utilisation: float = UTILISATION

    def __post_init__(self) -> None:
        known = {"method": METHODS, "precision": PRECISIONS, "optimizer": memory.OPTIMIZERS, "card": cards()}
        problems = [
            f"{name}: there is no {getattr(self, name)!r}; choose one of {', '.join(choices)}"
            for name, choices in known.items()
            if getattr(self, name) not in choices
        ]
        least = {"rank": 1, "length": 1, "batch": 1, "rows": 1, "tokens": 1, "cards": 1, "price": 0}
        problems += [
            f"{name} is {getattr(self, name)}: give {low} or more"
            for name, low in least.items()
            if not getattr(self, name) >= low
        ]
        problems += [
            f"{name} is {getattr(self, name)}: give more than 0"
            for name in ("epochs", "utilisation")
            if not getattr(self, name) > 0
        ]
        if self.utilisation > 1:
            problems.append(f"utilisation is {self.utilisation}: it is a share, at most 1")
        if problems:
            raise RequestError("\n".join(problems))


@dataclass(frozen=True)
class Estimate:
    """Bytes a card by part, tera-operations in all, hours, dollars; `turns` is what to change if it does not fit."""

    job: Job
    parts: dict[str, int]
    card_bytes: int
    operations: float
    hours: float
    money: float
    turns: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        """Predicted peak bytes on each card."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is below the card's memory."""
        return self.total <= self.card_bytes


@cache
def table() -> dict[str, Any]:
    """The file of models, cards and published runs."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


@cache
def cards() -> dict[str, Card]:
    """Cards by name."""
    return {name: Card(**row) for name, row in table()["cards"].items()}


def models() -> dict[str, float]:
    """Published parameter counts of the models whose shapes are here, by name."""
    return {name: row["parameters"] for name, row in table()["models"].items()}


@cache
def config(model: str) -> PretrainedConfig:
    """The config of a model of the table, or else of a bundled model, a folder or a Hub id.

    Raises:
        ModelError: there is none.
    """
    if model in models():
        return AutoConfig.for_model(**table()["models"][model]["config"])
    try:
        place = resolve(model)
    except ModelError as error:
        raise ModelError(f"{error}; sizes that the planner knows: {', '.join(models())}") from error
    with explained(model):
        return AutoConfig.from_pretrained(place)


def operations(job: Job) -> float:
    """Floating-point operations of the whole job.

    A token costs 2 operations a weight in the forward and 4 in the backward (Kaplan et al. 2020): 2 for the gradient
    of what came before, 2 for that of the weights, which frozen weights do not need. Of `frozen_half` the lower half
    has no backward. Attention adds 4 operations a token of context and hidden dimension in the forward, twice that
    in the backward (Chowdhery et al. 2022, appendix B). Checkpointing computes the forward twice.
    """
    shape = config(job.model)
    counted, text = memory.count(shape), shape.get_text_config()
    weights = counted.total - counted.looked_up
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    context = 4 * text.num_hidden_layers * text.num_attention_heads * size * job.tokens
    forward = 2 * weights + context
    if job.method == "full":
        backward = 4.0 * weights + 2 * context
    elif job.method == "frozen_half":
        backward = 4.0 * counted.upper_half + context
    else:
        backward = 2.0 * weights + 2 * context
    return (forward * (2 if job.checkpointing else 1) + backward) * job.rows * job.tokens * job.epochs


def estimate(job: Job) -> Estimate:
    """Memory, hours and money of a job, and what to turn if it does not fit.

    Several cards share weights, gradients and optimizer state evenly (FSDP), and each has rows of its own.

    Raises:
        ModelError: the model's config cannot be had.
    """
    found = _estimate(job)
    return found if found.fits else replace(found, turns=tuple(_turns(job)))


def _estimate(job: Job) -> Estimate:
    card = cards()[job.card]
    dtype, mixed = PRECISIONS[job.precision]
    plan = memory.plan(
        config(job.model), micro_batch=job.batch, length=job.length, dtype=dtype, mixed=mixed, method=job.method,
        lora_rank=job.rank, optimizer=job.optimizer, checkpointing=job.checkpointing, device="cuda",
    )  # fmt: skip
    shared = ("weights", "adapter", "copies", "gradients", "optimizer")
    parts = {name: size // job.cards if name in shared else size for name, size in plan.parts().items()}
    parts["runtime"] = int(CONTEXT_BYTES)
    del parts["holes"]  # what the allocator takes on a card is not counted
    flops = operations(job)
    hours = flops / (job.cards * card.tflops * 1e12 * job.utilisation) / 3600
    money = hours * job.cards * (job.price or card.price)
    return Estimate(job, parts, int(card.gigabytes * 1e9), flops, hours, money)


def _turns(job: Job) -> Iterator[str]:
    """Changes, one after another, until the job fits."""
    changes: list[tuple[str, dict[str, Any]]] = [
        ("one row a forward, more accumulated", {"batch": 1}),
        ("gradient checkpointing", {"checkpointing": True}),
        ("AdamW with 8-bit moments", {"optimizer": "adamw_8bit"}),
    ]
    if job.method in IN_PLACE:
        changes.append(("LoRA", {"method": "lora", "optimizer": job.optimizer}))
    if job.method != "qlora":
        changes.append(("QLoRA", {"method": "qlora", "optimizer": job.optimizer}))
    changes.append((f"rows of at most {job.length // 2} tokens", {"length": max(1, job.length // 2)}))
    changes += [(f"{n} cards", {"cards": n}) for n in (2, 4, 8, 16, 32, 64) if n > job.cards]
    for text, change in changes:
        changed = replace(job, **change)
        if changed == job:
            continue
        job, found = changed, _estimate(changed)
        yield f"{text}: {found.total / 1e9:.1f} GB{' a card' if job.cards > 1 else ''}"
        if found.fits:
            return
    yield "and even so it does not fit"


def row(found: Estimate) -> dict[str, str]:
    """An estimate as one line of a table."""
    job = found.job
    count = f"{job.cards} x " if job.cards > 1 else ""
    return {
        "model": job.model,
        "method": job.method,
        "card": count + job.card,
        "memory": f"{found.total / 1e9:.1f} of {found.card_bytes / 1e9:.0f} GB",
        "fits": "yes" if found.fits else "no",
        "hours": f"{found.hours:.1f}",
        "dollars": f"{found.money:.0f}" if found.money >= 10 else f"{found.money:.2f}",
        "if not": "; ".join(found.turns),
    }
