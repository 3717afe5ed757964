"""Runs side by side: those that differ only in the seed make one group; groups are ranked and weighed by cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from pydantic import JsonValue

from cookbook import results
from cookbook.recipes import RequestError
from cookbook.runs import Fault, Run, collect, frozen, shown

__all__ = [
    "Comparison",
    "Fault",
    "Group",
    "Interval",
    "Run",
    "collect",
    "comparisons",
    "front",
    "groups",
    "t_interval",
]

UNVARIED = ("SEED", "OUTPUT_DIR")  # runs that differ in these alone are one group
COSTS = {"memory": "memory_bytes", "seconds": "train_seconds", "size": "artifact_bytes", "cost": "amount"}


class Interval(NamedTuple):
    """A mean with its 95 % interval: over seeds, or, with a single seed, over that run's test rows."""

    mean: float
    low: float
    high: float
    seeds: int


@dataclass(slots=True)
class Group:
    """Runs of one recipe with the same values of `parameters`; the numbers are None if none of them finished.

    Attributes:
        after, change: the metric after training, and its change against before.
        probe, forgotten: the forgetting probe that lost the largest share of its score, and its mean change.
        accuracy_change: mean change over the probes of which higher is better.
        memory_bytes: the highest peak; seconds, bytes and amount are means over runs.
        fronts: the names in COSTS in which no other group beats this one.
    """

    parameters: dict[str, JsonValue]
    runs: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    before: float | None = None
    after: Interval | None = None
    change: Interval | None = None
    probe: str = ""
    forgotten: float | None = None
    accuracy_change: float | None = None
    memory_bytes: float | None = None
    train_seconds: float | None = None
    total_seconds: float | None = None
    artifact_bytes: float | None = None
    amount: float | None = None
    currency: str = ""
    fronts: tuple[str, ...] = ()

    @property
    def seeds(self) -> int:
        return self.after.seeds if self.after else 0

    @property
    def label(self) -> str:
        return ", ".join(f"{name} {shown(value)}" for name, value in self.parameters.items()) or "all runs"


@dataclass(frozen=True)
class Comparison:
    """The groups of one recipe, best first; `notes` say what a reader must know before trusting the order."""

    recipe: str
    metric: str
    higher_is_better: bool
    by: tuple[str, ...]
    groups: list[Group]
    notes: list[str]


def comparisons(runs: Iterable[Run], metric: str = "", by: Sequence[str] = ()) -> list[Comparison]:
    """One comparison a recipe, by name; what cannot be compared is left out and named in the notes.

    Args:
        metric: the score to compare; empty: each recipe's headline.
        by: parameters to group by; empty: those that differ among the runs, seed and output folder apart.

    Raises:
        RequestError: no recipe has the metric or a parameter, or no run finished.
    """
    parts: dict[str, list[Run]] = {}
    for run in runs:
        parts.setdefault(run.recipe, []).append(run)
    finished = {recipe: [run for run in part if run.status == "ok"] for recipe, part in parts.items()}
    if not any(finished.values()):
        count = Counter(run.status for part in parts.values() for run in part)
        raise RequestError(f"no run finished: {', '.join(f'{n} {status}' for status, n in count.items()) or 'none'}")
    scores = sorted({name for part in finished.values() for run in part for name in run.metrics})
    _check("metric", [metric] if metric else [], scores)
    _check("parameter", by, sorted({name for part in finished.values() for run in part for name in run.parameters}))
    done, skipped = [], []
    for recipe, part in sorted(parts.items()):
        names = {name for run in finished[recipe] for name in run.parameters}
        if not finished[recipe]:
            skipped.append(f"{recipe}: none of {len(part)} runs finished")
        elif metric and not any(metric in run.metrics for run in finished[recipe]):
            skipped.append(f"{recipe}: no metric {metric}")
        elif missing := [name for name in by if name not in names]:
            skipped.append(f"{recipe}: no parameter {', '.join(missing)}")
        else:
            done.append(_comparison(recipe, part, metric, by))
    if not done:
        raise RequestError("no recipe has all that is asked for: " + "; ".join(skipped))
    for note in skipped:
        done[0].notes.append(f"Left out: {note}.")
    return done


def _check(kind: str, asked: Iterable[str], known: list[str]) -> None:
    for name in asked:
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.5) or get_close_matches(name.upper(), known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the runs have {', '.join(known)}"
            raise RequestError(f"{name}: no such {kind}; {hint}")


def _comparison(recipe: str, part: list[Run], metric: str, by: Sequence[str]) -> Comparison:
    done = [run for run in part if run.status == "ok"]
    if not metric:
        # the headline of most runs, of those equally frequent the first by name
        metric = max(sorted({run.headline for run in done}), key=[run.headline for run in done].count)
    ways = Counter(run.metrics[metric].higher_is_better for run in done if metric in run.metrics)
    higher = ways.most_common(1)[0][0]
    scored = [run for run in done if metric in run.metrics and run.metrics[metric].higher_is_better == higher]
    found = groups([*scored, *(run for run in part if run.status != "ok")], metric, by)
    notes = []
    if len(scored) < len(done):
        which = next(run.path for run in done if run not in scored)
        missing = f"{len(done) - len(scored)} of {len(done)} runs, one of them {which}"
        notes.append(f"Left out for want of a comparable {metric}: {missing}.")
    notes += _notes(scored, by or tuple(found[0].parameters), asked=bool(by))
    return Comparison(recipe, metric, higher, tuple(found[0].parameters), found, notes)


def _notes(runs: list[Run], by: Sequence[str], *, asked: bool) -> list[str]:
    pooled = [name for name in _varied(runs) if name not in by] if asked else []
    notes = [f"A row pools runs that differ in {', '.join(pooled)}."] if pooled else []
    data: dict[Any, set[str]] = {}
    for run in runs:  # the split may follow the seed, and the fingerprint with it
        data.setdefault(frozen(run.parameters.get("SEED")), set()).add(run.data)
    if max(map(len, data.values())) > 1:
        notes.append("Runs of one seed were scored on different data: their scores may not be comparable.")
    if short := [run.path for run in runs if run.resources and run.resources.stopped]:
        notes.append(f"Training was stopped by hand in {len(short)} of {len(runs)} runs, one of them {short[0]}.")
    if len(devices := sorted({run.device for run in runs})) > 1:
        notes.append(f"Several devices ({', '.join(devices)}): seconds and memory may not be comparable.")
    if len(money := sorted({run.resources.cost.currency for run in runs if run.resources})) > 1:
        notes.append(f"Costs are in several currencies ({', '.join(money)}) and are not ranked.")
    return notes


def groups(runs: Sequence[Run], metric: str, by: Sequence[str] = ()) -> list[Group]:
    """The runs of one recipe in groups, best first by `metric`; groups without a finished run come last.

    A failed run joins the one group that agrees with every parameter it was given; where several or none do,
    it makes a group of its own.

    Raises:
        KeyError: a finished run has no such metric.
    """
    done = [run for run in runs if run.status == "ok"]
    by, found = tuple(by or _varied(runs)), {}
    for run in done:
        values = {name: run.parameters.get(name) for name in by}
        found.setdefault(frozen(values), Group(values)).runs.append(run)
    alone: dict[Any, Group] = {}
    for run in (run for run in runs if run.status != "ok"):
        given = {name: frozen(run.parameters[name]) for name in by if name in run.parameters}
        fits = [g for g in found.values() if all(frozen(g.parameters[name]) == v for name, v in given.items())]
        own = {name: run.parameters.get(name) for name in by}
        (fits[0] if len(fits) == 1 else alone.setdefault(frozen(own), Group(own))).failed.append(run)
    for group in found.values():
        _fill(group, metric)
    sign = -1 if done and done[0].metrics[metric].higher_is_better else 1
    ranked = sorted(found.values(), key=lambda group: sign * group.after.mean)
    for name, attribute in COSTS.items():
        costs = [getattr(group, attribute) for group in ranked]
        if name != "cost" or (any(costs) and len({g.currency for g in ranked}) == 1 and ranked[0].currency):
            for i in front([group.after.mean for group in ranked], costs, higher_is_better=sign < 0):
                ranked[i].fronts += (name,)
    return [*ranked, *alone.values()]


def front(values: Sequence[float], costs: Sequence[float], *, higher_is_better: bool = True) -> list[int]:
    """Indices of the Pareto front, cheapest first: no other point is as good in both and better in one.

    Equal points stay together; points that are not finite are on no front.
    """
    gain = np.asarray(values, float) * (1 if higher_is_better else -1)
    cost = np.asarray(costs, float)
    usable = np.isfinite(gain) & np.isfinite(cost)
    kept = [
        i
        for i in np.flatnonzero(usable)
        if not np.any(usable & (gain >= gain[i]) & (cost <= cost[i]) & ((gain > gain[i]) | (cost < cost[i])))
    ]
    return sorted(map(int, kept), key=lambda i: (cost[i], i))


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of two or more independent values and its 95 % interval by Student's t."""
    from scipy import stats

    mean = fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half, len(values))


def _fill(group: Group, metric: str) -> None:
    """A seed counts once, as the mean of its runs: runs of one seed are not independent of each other."""
    scores = [run.metrics[metric] for run in group.runs]
    seeds: dict[Any, list[results.Metric]] = {}
    for run, score in zip(group.runs, scores, strict=True):
        seeds.setdefault(frozen(run.parameters["SEED"]) if "SEED" in run.parameters else run.path, []).append(score)
    each = list(seeds.values())
    group.before = fmean(fmean(score.before for score in seed) for seed in each)
    if len(each) > 1:
        group.after = t_interval([fmean(score.after for score in seed) for seed in each])
        group.change = t_interval([fmean(score.change for score in seed) for seed in each])
    else:
        # The ends are averaged over runs, which is no narrower than the mean's own interval would be.
        low, high = (fmean(score.ci95[end] for score in scores) for end in (0, 1))
        group.change = Interval(fmean(score.change for score in scores), low, high, 1)
        group.after = Interval(group.before + group.change.mean, group.before + low, group.before + high, 1)
    used = [run.resources for run in group.runs]
    group.memory_bytes = max(use.peak_memory_bytes.measured for use in used)
    group.train_seconds = fmean(use.seconds.train for use in used)
    group.total_seconds = fmean(use.seconds.total for use in used)
    group.artifact_bytes = fmean(use.artifact_bytes for use in used)
    group.amount = fmean(use.cost.amount for use in used)
    group.currency = used[0].cost.currency if len({use.cost.currency for use in used}) == 1 else ""
    probes: dict[str, list[results.Probe]] = {}
    for probe in (probe for run in group.runs for probe in run.probes):
        probes.setdefault(probe.probe, []).append(probe)
    if probes:
        group.probe = max(probes, key=lambda name: _lost(probes[name]))
        group.forgotten = fmean(probe.change for probe in probes[group.probe])
        kept = [fmean(p.change for p in part) for part in probes.values() if part[0].higher_is_better]
        group.accuracy_change = fmean(kept) if kept else None


def _lost(probes: Sequence[results.Probe]) -> float:
    """The share of its score that a probe lost on average; scores are not all of one unit."""
    before, change = fmean(probe.before for probe in probes), fmean(probe.change for probe in probes)
    worse = -change if probes[0].higher_is_better else change
    return worse / abs(before) if before else worse and float("inf") * worse


def _varied(runs: Sequence[Run]) -> list[str]:
    """Parameters in which runs differ; of a failed run only those count that it was given."""
    names = dict.fromkeys(name for run in runs for name in run.parameters if name not in UNVARIED)
    known = {n: {frozen(r.parameters.get(n)) for r in runs if r.status == "ok" or n in r.parameters} for n in names}
    return [name for name, values in known.items() if len(values) > 1]
