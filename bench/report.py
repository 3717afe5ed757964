"""From the measurements: a page, a figure, all numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench import overview, sizes, tables
from bench.arms import ARMS, BASELINE, BASELINE_FP32, MAIN, OURS
from bench.levers import BESIDE, COMPILED, LEVERS, NARROW, UNCHANGED
from bench.machine import name as folder_name
from bench.task import ROOT, Task, read

FOLDER = ROOT / "docs" / "benchmark"
WITHIN = 1.02  # of the baseline's final validation loss: the loss that all are timed to, and the same quality


def write(measured: Path, folder: Path) -> list[Path]:
    """This machine's README.md, benchmark.png, benchmark.json below `folder`, from what `measured` holds by now.

    The overview of all machines, README.md in `folder`, is written anew and comes last.
    """
    task = read(measured / "task.json")
    found = summary(measured, task)
    own = folder / folder_name(found["machine"])
    own.mkdir(parents=True, exist_ok=True)
    written = [own / "benchmark.json", own / "README.md", own / "benchmark.png"]
    written[0].write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    written[1].write_text(tables.page(found, task), encoding="utf-8")
    draw(found, written[2])
    return [*written, overview.write(folder)]


def summary(measured: Path, task: Task) -> dict[str, Any]:
    """All that is told, from the files of this task; parts that were not measured are missing or empty."""
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(measured.glob("*.json"))}
    files = {name: found for name, found in files.items() if found.get("task", task.fingerprint) == task.fingerprint}
    runs = {arm: _runs(files, arm) for arm in ARMS}
    machine, peaks = files["machine"], _peaks(files)
    base = runs[BASELINE]
    target = WITHIN * median(run["validation_loss"] for run in base) if base else None
    share = {number: machine["flops_per_token"] / (peak * 1e9) for number, peak in peaks.items()}
    arms = {arm: _arm(arm, found, base, share, target) for arm, found in runs.items() if found}
    found = {
        "machine": machine["machine"],
        "peak_gflops": peaks,
        "flops_per_token": machine["flops_per_token"],
        "task": {"tokens": task.tokens, "supervised": task.supervised, "rows": len(task.train), "steps": task.steps},
        "target_loss": target,
        "arms": arms,
        "failed": {arm: _error(files, arm) for arm in ARMS if arm not in arms and _error(files, arm)},
        "levers": _levers(files),
        "compiled": _compiled(files),
        "products": _products(files),
        "narrow": _narrow(files, machine),
        "sizes": _sizes(measured, task),
        "evaluation": files.get("evaluation", {}),
        "overhead": _overhead(files),
        "profile": {arm: files[f"profile-{arm}"] for arm in ARMS if f"profile-{arm}" in files},
    }
    return found | {"bars": bars(found)}


def _peaks(files: dict[str, Any]) -> dict[int, float]:
    """GFLOP/s by round: the machine's at that time, whatever the type."""
    found = {name: f for name, f in files.items() if name.startswith("peak-") and not f.get("error")}
    return {int(name.split("-")[1]): max(f["peaks"].values()) for name, f in found.items()}


def _runs(files: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    found = [f for f in files.values() if f.get("arm") == arm and not f["lever"] and not f.get("error")]
    return sorted(found, key=lambda run: run["round"])


def _error(files: dict[str, Any], arm: str) -> str:
    return next((f["error"] for name, f in files.items() if name.rsplit("-", 1)[0] == arm and f.get("error")), "")


def _arm(
    arm: str, runs: list[dict[str, Any]], base: list[dict[str, Any]], share: dict[int, float], target: float | None
) -> dict[str, Any]:
    """Medians over rounds, ratios within each; `share` is that of the round's peak which one token a second takes."""
    beside = {run["round"]: run["tokens_per_second"] for run in base}
    rates = [run["tokens_per_second"] for run in runs]
    ratios = [run["tokens_per_second"] / beside[run["round"]] for run in runs if run["round"] in beside]
    shares = [
        run["tokens_per_second"] * _computed(run) * share[run["round"]] for run in runs if run["round"] in share
    ]
    timed = [seconds_to(run["validation"], target) for run in runs] if target else []
    return {
        "words": ARMS[arm].words,
        "rounds": len(runs),
        "tokens_per_second": {"median": median(rates), "min": min(rates), "max": max(rates)},
        "rates": {run["round"]: run["tokens_per_second"] for run in runs},
        "ratio": median(ratios) if ratios else None,
        "seconds": median(run["seconds"] for run in runs),
        "seconds_to_target": median(timed) if timed and None not in timed else None,
        "validation_loss": median(run["validation_loss"] for run in runs),
        "validation": runs[0]["validation"],
        "peak_bytes": median(run["peak_bytes"] for run in runs),
        "mfu": median(shares) if shares else None,
        "computed": _computed(runs[0]),
        "ready_seconds": median(run["ready_seconds"] for run in runs),
        "versions": runs[0]["versions"],
    }


def _computed(run: dict[str, Any]) -> float:
    """The share of its tokens that a run computed: what rows begin with counts once if it was computed once."""
    return run.get("distinct", run["tokens"]) / run["tokens"]


def seconds_to(validation: Sequence[Sequence[float]], target: float) -> float | None:
    """Training seconds until the validation loss was at most `target`, on straight lines between measurements."""
    before: Sequence[float] | None = None
    for _, seconds, loss in validation:
        if loss <= target:
            if before is None or before[1] == loss:
                return seconds
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (seconds - before[0])
        before = seconds, loss
    return None


def _levers(files: dict[str, Any]) -> list[dict[str, Any]]:
    """What each lever gives: above 1, training is so much faster with it than without."""
    found = _first_and_last(files)
    if not found:
        return []
    common = mean(f["tokens_per_second"] for f in found)
    beside = (_unchanged(files, BESIDE) or {"tokens_per_second": common})["tokens_per_second"]
    rows = []
    for name, lever in LEVERS.items():
        run = files.get(f"{MAIN}-{name}-0")
        if name == UNCHANGED or run is None:
            continue
        if run.get("error"):
            rows.append({"lever": lever.words, "kept": lever.kept, "error": run["error"]})
            continue
        other, rate = run["tokens_per_second"], beside if lever.beside else common
        if lever.over and (without := files.get(f"{MAIN}-{lever.over}-0", {})).get("tokens_per_second"):
            rate = without["tokens_per_second"]
        row = {"lever": lever.words, "kept": lever.kept, "tokens_per_second": other, "peak_bytes": run["peak_bytes"]}
        row |= {"beside": rate} if rate != common else {}
        row |= {"gain": rate / other if lever.kept else other / rate, "validation_loss": run["validation_loss"]}
        rows.append(row)
    same = {"lever": LEVERS[UNCHANGED].words, "kept": True, "tokens_per_second": common, "gain": None}
    same["runs"] = [f["tokens_per_second"] for f in found]
    same |= {name: mean(f[name] for f in found) for name in ("peak_bytes", "validation_loss")}
    return [same, *sorted(rows, key=lambda row: -row.get("gain", 0))]


def _unchanged(files: dict[str, Any], number: int) -> dict[str, Any] | None:
    """That run of the arm as it is; None where it is missing or failed."""
    run = files.get(f"{MAIN}-{UNCHANGED}-{number}")
    return None if run is None or run.get("error") else run


def _first_and_last(files: dict[str, Any]) -> list[dict[str, Any]]:
    """The unchanged runs before and after the levers, those that there are."""
    return [run for number in (0, 1) if (run := _unchanged(files, number))]


def _compiled(files: dict[str, Any]) -> dict[str, Any]:
    """What compiling costs in the first half of the steps, and what each step of the second half gains by it."""
    run, plain = files.get(f"{MAIN}-{COMPILED}-0"), _unchanged(files, BESIDE)
    if not run or run.get("error") or not plain:
        return {}
    half = len(plain["step_seconds"]) // 2
    later = [a - b for a, b in zip(plain["step_seconds"], run["step_seconds"], strict=True)]
    cost, gain = -sum(later[:half]), mean(later[half:])
    return {"cost": cost, "gain": gain, "steps": half + cost / gain if gain > 0 else None}


def _products(files: dict[str, Any]) -> dict[str, Any]:
    """The products alone, the share of the peak that they reach, and what each lever gives to an unchanged step."""
    found, plain = files.get("products"), _first_and_last(files)
    if not found or found.get("error") or not plain:
        return {}
    step = mean(run["seconds"] / len(run["step_seconds"]) for run in plain)
    apart = [
        lever | {"gain": 1 + lever["saved"] / own if lever["kept"] else own / (own - lever["saved"])}
        for lever in found["apart"]
        for own in [lever.get("step", step)]
    ]
    peak = max(found["peaks"].values()) * 1e9
    return found | {"apart": apart, "step": step, "mfu": found["flops"] / found["seconds"] / peak}


def _narrow(files: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """The share of the peak without the processor's matrix unit, which is that of processors that have none."""
    run = files.get(f"{MAIN}-{NARROW}-0")
    if not run or run.get("error"):
        return {}
    peaks = run["peaks"]
    return {
        "tokens_per_second": run["tokens_per_second"],
        "peaks": peaks,
        "mfu": run["tokens_per_second"] * _computed(run) * machine["flops_per_token"] / (max(peaks.values()) * 1e9),
    }


def _sizes(measured: Path, task: Task) -> dict[str, Any]:
    """The baseline and ours on each other size that was measured for this task, with what a token of it costs."""
    found = {}
    for shape in sizes.SHAPES:
        folder = measured / sizes.FOLDER / shape
        scaled, facts = sizes.scaled(task, shape, folder), folder / "machine.json"
        if not facts.is_file() or json.loads(facts.read_text(encoding="utf-8"))["task"] != scaled.fingerprint:
            continue
        told = summary(folder, scaled)
        if MAIN in told["arms"]:
            keys = ("flops_per_token", "peak_gflops", "task", "arms", "failed", "bars")
            found[shape] = {key: told[key] for key in keys}
    return found


def _overhead(files: dict[str, Any]) -> dict[str, Any]:
    by_way = {
        way: [f for name, f in files.items() if name.startswith(f"overhead-{way}-") and not f.get("error")]
        for way in ("notebook", "script")
    }
    if not all(by_way.values()):
        return {}
    seconds = {way: median(run["seconds"] for run in runs) for way, runs in by_way.items()}
    scores = [run["scores"] for runs in by_way.values() for run in runs]
    over = seconds["notebook"] / seconds["script"] - 1
    return {"seconds": seconds, "over": over, "same": all(s == scores[0] for s in scores), "rounds": len(scores) // 2}


def bars(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, and what came out; without a measurement there is no row."""
    arms, rows = found["arms"], []

    def bar(
        what: str, value: float, at_least: float | None = None, at_most: float | None = None, **more: str
    ) -> None:
        met = value >= at_least if at_least is not None else value <= at_most
        limit = {"at_least": at_least} if at_least is not None else {"at_most": at_most}
        rows.append({"what": what, "measured": value, "met": bool(met)} | limit | more)

    faster = _faster(arms)
    if MAIN in arms and BASELINE in arms:
        ours, base = arms[MAIN], arms[BASELINE]
        bar("training, tokens a second over TRL's defaults", ours["ratio"], 4.5)
        if BASELINE_FP32 in faster:
            bar("training, tokens a second over TRL's defaults with bf16 switched off", faster[BASELINE_FP32], 4.5)
        bar("final validation loss over TRL's", ours["validation_loss"] / base["validation_loss"], at_most=WITHIN)
        bar("peak memory over TRL's", ours["peak_bytes"] / base["peak_bytes"], at_most=1.0)
    others = {arm: times for arm, times in faster.items() if arm not in (*OURS, BASELINE, BASELINE_FP32)}
    if others:
        best = min(others, key=others.get)
        bar("training, tokens a second over the best of the others", others[best], 1.5, best=best)
    if MAIN in arms and arms[MAIN]["mfu"] is not None:
        bar("share of the machine's matrix-product peak (MFU)", arms[MAIN]["mfu"], 0.35)
    if found["evaluation"]:
        bar("evaluation, generated tokens a second over one by one", found["evaluation"]["ratio"], 4.0)
    if found["overhead"]:
        bar("the notebook's time beyond that of its code as a script", found["overhead"]["over"], at_most=0.05)
    return rows


def _faster(arms: dict[str, Any]) -> dict[str, float]:
    """How many times each arm's rate the main arm's is: within a round, the median over rounds."""
    mine = arms[MAIN]["rates"] if MAIN in arms else {}
    ratios = {
        name: [mine[n] / arm["rates"][n] for n in mine.keys() & arm["rates"].keys()] for name, arm in arms.items()
    }
    return {name: median(times) for name, times in ratios.items() if times}


def draw(found: dict[str, Any], path: Path) -> None:
    """Tokens a second with their range, and validation loss against training seconds, by arm."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    arms = found["arms"]
    colours = {arm: f"C{place}" for place, arm in enumerate(ARMS)}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    rates = {arm: a["tokens_per_second"] for arm, a in arms.items()}
    middle = [r["median"] for r in rates.values()]
    spread = [[r["median"] - r["min"] for r in rates.values()], [r["max"] - r["median"] for r in rates.values()]]
    left.barh(list(rates), middle, xerr=spread, color=[colours[arm] for arm in rates], capsize=3)
    left.invert_yaxis()
    left.set(xlabel="real tokens a second (median, range)", title="Training speed")
    for arm, a in arms.items():
        right.plot(*zip(*((s, loss) for _, s, loss in a["validation"]), strict=True), "o-", label=arm, c=colours[arm])
    if found["target_loss"]:
        right.axhline(found["target_loss"], ls=":", c="grey")
    right.set(xlabel="training seconds", ylabel="validation loss (nats a token)", title="Validation loss")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    right.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
