"""The planner against measured peaks and against what guides say: published runs, sweeps of notebook 19b, claims."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from cookbook import memory, planning, publish, recipes, results
from cookbook.activations import METHODS

STAGE = re.compile(r"^\[(.+)\] [\d.]+ s, peak memory ([\d.]+) GB$", re.MULTILINE)


@dataclass(frozen=True)
class Check:
    """One training stage: bytes predicted and measured; `counted` are weights, gradients and Adam's state alone.

    `beside` says what sets the run apart, if anything does.
    """

    recipe: str
    stage: str
    method: str
    predicted: int
    measured: int
    counted: int
    beside: str = ""

    @property
    def error(self) -> float:
        """Relative: 0.1 if a tenth too much was predicted."""
        return self.predicted / self.measured - 1

    def __str__(self) -> str:
        return f"{self.predicted / 1e9:.2f} GB predicted, {self.measured / 1e9:.2f} GB measured"


def peaks(notebook: Path) -> dict[str, int]:
    """The highest memory of each stage, in bytes, as the outputs of an executed notebook tell it."""
    found: dict[str, int] = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            for name, size in STAGE.findall("".join(output.get("text", ""))):
                found[name] = max(found.get(name, 0), round(float(size) * 1e9))
    return found


def checked(sweeps: Iterable[Path] = ()) -> list[Check]:
    """Every published CPU run whose training stage is in the planner's table, then the runs of sweeps of 19b.

    A run of which there is no record, or that did not train, is left out.
    """
    runs, found = planning.table()["runs"], []
    for row in runs:
        notebook = recipes.find(row["recipe"])
        if publish.record_of(notebook).is_file() and (measured := peaks(notebook).get(row["stage"])):
            found.append(_check(row, results.read(publish.record_of(notebook)), measured))
    alike = next(row for row in runs if row["recipe"] == "19b")
    for file in sorted(file for folder in sweeps for file in Path(folder).rglob("results.json")):
        record = results.read(file)
        method, measured = record.details.get("method"), record.details.get("train_peak_bytes")
        if record.recipe.startswith("19b_") and method in METHODS and measured:
            rank = record.parameters["BOTTLENECK" if method == "bottleneck" else "LORA_RANK"]
            found.append(_check(alike | {"method": method, "rank": rank}, record, measured))
    return found


def _check(row: dict[str, Any], record: results.Results, measured: int) -> Check:
    dtype = getattr(torch, str(record.environment["dtype"]).removeprefix("torch."))
    plan = memory.plan(
        _config(record.model.id), micro_batch=row["batch"], length=row["length"], dtype=dtype, method=row["method"],
        lora_rank=row.get("rank", 0), eager=True, supervised=row["supervised"],
        fused=row.get("fused", False),
    )  # fmt: skip
    counted = plan.weights + plan.adapter + plan.gradients + plan.optimizer
    return Check(row["recipe"], row["stage"], row["method"], plan.total, measured, counted, row.get("beside", ""))


def _config(name: str) -> PretrainedConfig:
    """A bundled model's config, from the planner's table if its shape is there: then the model need not be."""
    known = (size for size in planning.models() if name.casefold().startswith(size.casefold()))
    return planning.config(next(known, name))


def verdicts(full: Check | None) -> dict[str, results.Claim]:
    """C2, C3 and C32 by this module's arithmetic for a 70B model; `full`: a checked run of full fine-tuning."""
    large = planning.Job(model="Llama-3.1-70B", method="full")
    state = {}
    for name, change in {
        "fp32 gradients and moments": {},
        "bf16 gradients and moments": {"precision": "bf16 throughout"},
        "bf16 gradients, 8-bit moments": {"precision": "bf16 throughout", "optimizer": "adamw_8bit"},
    }.items():
        parts = planning.estimate(replace(large, **change)).parts
        state[name] = (parts["gradients"] + parts["optimizer"]) / 1e9
    beside = f". The same arithmetic for notebook {full.recipe}'s run: {full}" if full else ""
    weights = memory.count(planning.config("Llama-3.1-70B")).total
    stated = "; ".join(f"{name} {size:.0f} GB" for name, size in state.items())
    c2 = results.Claim(
        claim="full fine-tuning of a 70B model needs 280 GB for gradients and optimizer state",
        verdict="holds" if max(state.values()) <= 290 else "does not hold here",
        evidence=f"{stated}; bf16 gradients with fp32 moments {10 * weights / 1e9:.0f} GB. The weights come on top, "
        f"and activations. 280 GB is what the leanest of these needs{beside}",
    )
    plain, packed = (planning.estimate(replace(large, method=m)).parts["weights"] / 1e9 for m in ("lora", "qlora"))
    c3 = results.Claim(
        claim="4-bit NF4 takes a 70B model from 140 GB to 35 GB",
        verdict="holds" if packed <= 36 else "holds in part",
        evidence=f"{plain:.0f} GB in bf16, {packed:.1f} GB in NF4: {8 * memory.NF4_BYTES:.2f} bits a weight with its "
        "scales, and embeddings and head stay in bf16. 35 GB leaves these out",
    )
    job = replace(large, method="qlora", rank=64, rows=10_000, tokens=500)
    changes = ({}, {"utilisation": 0.15}, {"tokens": 2000}, {"card": "A100 40 GB"})
    wide, slow, long, narrow = (planning.estimate(replace(job, **change)) for change in changes)
    rooms = ", ".join(f"the {e.job.card} is {'large enough' if e.fits else 'too small'}" for e in (wide, narrow))
    held = [wide.fits, wide.hours < 48, slow.hours < 48]
    c32 = results.Claim(
        claim="QLoRA of a 70B model on one A100 in under 48 hours",
        verdict="holds" if all(held) else "holds in part" if any(held) else "does not hold here",
        evidence=f"by arithmetic, no such run was made here: rank 64, one row of {job.length} tokens at a time, "
        f"checkpointing: {wide.total / 1e9:.0f} GB, {rooms}. 10,000 pairs of 500 tokens, 3 epochs: {wide.hours:.0f} "
        f"hours at {job.utilisation:.0%} of the peak, {slow.hours:.0f} at 15%; with pairs of 2,000 tokens "
        f"{long.hours:.0f}",
    )
    return {"C2": c2, "C3": c3, "C32": c32}
