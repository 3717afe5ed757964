"""What each training run of a recipe sets, as data, and one run with its parameters and profile filled in.

The notebooks are where these numbers belong; they are repeated here for other tools to be told, and unit tests look
for each of them in the notebook's own cells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cookbook import data
from cookbook.catalogue import ASSETS
from cookbook.export import place
from cookbook.recipes import RequestError
from cookbook.training_sets import choose

SCHEDULE = "cosine"  # what all notebooks set; the optimiser and the clipping are their trainers' defaults
OPTIMISER = "adamw_torch"
CLIP = 1.0


@dataclass(frozen=True)
class Run:
    """One training run as its notebook sets it; names in capitals are parameters, and 0 there leaves the choice here.

    Attributes:
        epochs, batch: a parameter, and what the profile's value is multiplied with where that is 0.
        micro: rows a forward, from the batch and the profile's most rows.
        rank, alpha: parameters of LoRA; no rank: all weights are trained; no alpha: it is twice the rank.
        evaluate: after which share of the steps the validation loss is computed.
        notes: what the tools do not do; parameters are filled in.
    """

    rate: str
    warmup: float
    epochs: tuple[str, float]
    batch: tuple[str, float]
    micro: Callable[[int, int], int]
    method: str = "sft"
    rank: str = ""
    alpha: str = ""
    four_bit: str = ""
    weight_decay: float = 0.0
    patience: str = ""
    in_order: bool = False
    evaluate: float = 0.0
    notes: tuple[str, ...] = ()


ONCE = ("", 0.0)  # one epoch, whatever the profile says
RUNS: dict[str, dict[str, Run]] = {
    "01_customer_service_qlora": {
        "": Run(
            rate="LEARNING_RATE", warmup=0.05, epochs=("EPOCHS", 1), batch=("BATCH_SIZE", 1), micro=min,
            rank="LORA_RANK", alpha="LORA_ALPHA", four_bit="QUANTIZE",
            notes=("WHOLE_SHARE {WHOLE_SHARE:g} is in the data: every row for its labels, a share for all of it.",),
        )
    },
    "02_legal_full_finetuning": {
        "": Run(
            rate="LEARNING_RATE", warmup=0.1, epochs=ONCE, batch=("BATCH_SIZE", 1), weight_decay=0.01,
            micro=lambda batch, most: min(most, max(1, batch // 2)), patience="PATIENCE", in_order=True, evaluate=0.2,
            notes=(
                "TEXT_WEIGHT {TEXT_WEIGHT:g}: the recipe also learns the text, by its mean loss a token times this, "
                "and counts an answer by the sum over its tokens. Here answers alone are learnt, by the mean.",
                "EPOCHS and WHOLE_SHARE {WHOLE_SHARE:g} are in the data, which are read once, in their order.",
                "ARMS, the thriftier ways, are runs of their own.",
            ),
        )
    },
    "03_department_adapters": {
        "*": Run(  # a run for each department
            rate="LORA_LEARNING_RATE", warmup=0.05, epochs=("EPOCHS", 3), batch=("BATCH_SIZE", 1), micro=min,
            rank="LORA_RANK",
            notes=(
                "KEY_WEIGHT {KEY_WEIGHT:g}: the recipe counts the tokens of codes and facts so many times; here all "
                "tokens of an answer count the same.",
            ),
        )
    },
    "05_dpo_alignment": {
        "sft": Run(
            rate="SFT_LEARNING_RATE", warmup=0.05, epochs=ONCE, batch=("BATCH_SIZE", 2), rank="LORA_RANK",
            micro=lambda batch, most: min(2 * batch, most),
        ),
        "dpo": Run(
            rate="LEARNING_RATE", warmup=0.1, epochs=("EPOCHS", 0.8), batch=("BATCH_SIZE", 2), rank="LORA_RANK",
            micro=lambda batch, most: max(1, min(2 * batch, most) // 2), method="dpo", evaluate=0.5,
        ),
    },
}  # fmt: skip
REFUSED = {
    "04_whisper_asr": "Axolotl and LLaMA-Factory train language models; neither trains Whisper",
}


@dataclass(frozen=True)
class Settings:
    """A run with every parameter filled in. Rows are pairs where `method` is dpo; `rank` 0: all weights."""

    run: Run
    values: Mapping[str, Any]
    model: str
    base: str
    part: str
    data: Path
    output: str
    start: str
    method: str
    rate: float
    epochs: float
    micro: int
    accumulation: int
    length: int
    seed: int
    rank: int
    alpha: int
    four_bit: bool


def settle(notebook: Path, tool: str, given: Mapping[str, Any], part: str, folder: Path | None) -> Settings:
    """Everything that the parameters and the profile decide; a recipe may halve `micro` where memory is short.

    Raises:
        RequestError: a wrong parameter, or one that no other tool can follow.
    """
    v, profile = choose(notebook, given)
    part, run, index = _part(notebook.stem, v, part)
    _refuse(notebook.stem, tool, v, run)
    name, factor = run.batch
    batch = v[name] or round(factor * profile.batch_size)
    micro = run.micro(batch, profile.micro_batch_size)
    name, factor = run.epochs
    rank = v[run.rank] if run.rank else 0
    model, output = v["MODEL"] or profile.model, f"runs/{notebook.stem}-{tool}-model"
    return Settings(
        run=run, values=v, model=model, base=hub_id(model), part=part, method=run.method,
        data=folder or place(notebook.stem, tool), output=f"{output}/{part}".rstrip("/"),
        start=v["ADAPTER"] or f"{output}/sft" if run.method == "dpo" else "",
        rate=v[run.rate], epochs=float(v[name] or factor * profile.epochs) if name else 1.0,
        micro=micro, accumulation=max(1, round(batch / micro)), length=v["MAX_LENGTH"] or profile.max_length,
        seed=v["SEED"] + index, rank=rank, alpha=(v[run.alpha] if run.alpha else 0) or 2 * rank,
        four_bit=bool(run.four_bit and v[run.four_bit]),
    )  # fmt: skip


def _part(stem: str, v: Mapping[str, Any], part: str) -> tuple[str, Run, int]:
    """Which run is meant, and its number, which 03 adds to the seed."""
    runs = RUNS[stem]
    if "*" in runs:
        names = list(data.parts(v["DATA"] or data.sample("departments")))
        runs = dict.fromkeys(names, runs["*"])
    names = [name for name in runs if name]
    default = "dpo" if "dpo" in runs else next(iter(runs))
    if part and part not in names:
        raise RequestError(f"--part {part}: {stem} has {', '.join(names) or 'one run only'}")
    chosen = part or default
    return chosen, runs[chosen], list(runs).index(chosen) if "*" in RUNS[stem] else 0


def _refuse(stem: str, tool: str, v: Mapping[str, Any], run: Run) -> None:
    above = [run.rate, *filter(None, [run.rank, "BETA" if run.method == "dpo" else ""])]
    low = [f"{name} {v[name]}: must be above 0" for name in above if v[name] <= 0]
    least = [run.epochs[0], run.batch[0], "MAX_LENGTH", run.alpha, run.patience]
    low += [f"{name} {v[name]}: must not be below 0" for name in filter(None, least) if v[name] < 0]
    if low:
        raise RequestError("\n".join(low))
    if v.get("METHOD", "lora") != "lora":
        raise RequestError(f"METHOD {v['METHOD']}: {tool} has no bottleneck adapters; only lora can be exported")
    if v.get("ADAPTER") and stem == "05_dpo_alignment" and run.method == "sft":
        raise RequestError("ADAPTER is given, so the recipe has no first stage; leave --part sft out")
    loss = v.get("LOSS", "sigmoid")
    able = ("sigmoid", "ipo", "orpo") if tool == "llama-factory" else ("sigmoid", "ipo")
    if run.method == "dpo" and loss not in able:
        why = "KTO reads single answers" if loss == "kto" else f"{tool} reads other data for it"
        raise RequestError(f"LOSS {loss}: export-data writes pairs, and {why}; {', '.join(able)} can be exported")


def hub_id(model: str) -> str:
    """What another tool finds a base model under: the Hub id behind a bundled model; others stay as they are.

    Raises:
        RequestError: a bundled model that is no copy of one on the Hub.
    """
    asset = ASSETS.get(model)
    if asset is None:
        return model
    found = re.match(r"https://huggingface\.co/([\w.-]+/[\w.-]+)", asset.source)
    if found is None:
        raise RequestError(f"{model}: {asset.source}, which no Hub has; give -p PROFILE cpu or gpu, or -p MODEL")
    return found[1]
