"""Ours with one means taken away, or one added: what each of them gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench import ours
from bench.task import Task
from bench.watch import Clock


@dataclass(frozen=True)
class Lever:
    """One change to our arm: what is in force then, and whether the notebook has the lever on."""

    words: str
    recipe: ours.Recipe
    kept: bool  # in the notebook; this run is the one without it
    beside: bool = False  # has an unchanged run of its own, right before: its gain is a matter of seconds
    over: str = ""  # the lever to whose run it adds one change
    environment: dict[str, str] = field(default_factory=dict)  # variables of its process
    needs: str = ""  # an instruction set, as bench/machine.py names it

    def train(self, task: Task, clock: Clock) -> None:
        ours.train(task, clock, self.recipe)


def _set(**settings: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(settings.items())


BESIDE = 2  # the round of the unchanged run that stands right before such levers
# Each taken away, or, where the notebook does not have it, added.
UNCHANGED, NARROW, COMPILED = "unchanged", "no-matrix-unit", "compiled"
LEVERS: dict[str, Lever] = {
    UNCHANGED: Lever("nothing changed", ours.Recipe(), True),
    "fp32": Lever("dtype by measurement → fp32", ours.Recipe(dtype="float32"), True),
    "checkpointing": Lever(
        "no gradient checkpointing → checkpointing", ours.Recipe(settings=_set(gradient_checkpointing=True)), True
    ),
    "random-order": Lever(
        "rows grouped by length → random order", ours.Recipe(settings=_set(train_sampling_strategy="random")), True
    ),
    "any-length": Lever(
        "lengths rounded up to eights → as they are", ours.Recipe(settings=_set(pad_to_multiple_of=None)), True
    ),
    "all-positions": Lever(
        "scores at supervised positions alone → TRL's own loss, entropy and accuracy",
        ours.Recipe(supervised_only=False),
        True,
    ),
    "own-layers": Lever("fused layers → PEFT's and transformers' own", ours.Recipe(layers=False), True),
    "apart": Lever(
        "what rows begin with in common computed once, no padding → each row by itself, padded",
        ours.Recipe(shared=False),
        True,
    ),
    "last-layer-whole": Lever(
        "of the last layer only what is to be scored → all of it", ours.Recipe(narrow=False), True
    ),
    "one-by-one": Lever(
        "LoRA's small products batched (q, k, v; gate, up) → each layer by itself", ours.Recipe(together=False), True
    ),
    "whole": Lever("narrow products in two halves → whole", ours.Recipe(halves=False), True),
    "all-scores": Lever("fused head and loss → all answers' scores at once", ours.Recipe(head=False), True),
    "sdpa": Lever("plain attention for short rows → SDPA", ours.Recipe(attention="sdpa"), True),
    "returned-memory": Lever("freed memory kept → given back to the system", ours.Recipe(keep_memory=False), True),
    "plain-adamw": Lever("fused AdamW → torch's default", ours.Recipe(settings=_set(optim="adamw_torch")), True),
    "packing": Lever(
        "padded rows → packed to 512 tokens, two packs a step (SDPA)",
        ours.Recipe(
            attention="sdpa",
            settings=_set(
                packing=True,
                pad_to_multiple_of=None,
                per_device_train_batch_size=2,
                train_sampling_strategy="random",
            ),
        ),
        False,
        over="sdpa",
    ),
    COMPILED: Lever(
        "fused layers → decoder layers by torch.compile, one code for all of them and for all lengths",
        ours.Recipe(layers=False, compiled=True),
        False,
        beside=True,
        environment={"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},  # as for the first time
    ),
    "pinned": Lever(
        "threads where the system puts them → each held to a core",
        ours.Recipe(),
        False,
        beside=True,
        environment={"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"},
    ),
    "huge-pages": Lever(
        "small pages of memory → huge ones (`THP_MEM_ALLOC_ENABLE`)",
        ours.Recipe(),
        False,
        environment={"THP_MEM_ALLOC_ENABLE": "1"},
    ),
    NARROW: Lever(
        "the processor's matrix unit (AMX) → AVX-512 BF16 alone",
        ours.Recipe(),
        True,
        environment={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
        needs="AMX BF16",
    ),
}
