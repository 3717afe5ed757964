"""Scores before and after with an interval of the change, forgetting, and parity of what is shipped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from cookbook import metrics, results
from cookbook.data import Example, Schema
from cookbook.forgetting import ProbeResult, token_nll
from cookbook.fourbit import dense_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """One metric of one model: its value, the value of each row, and how rows make the value."""

    value: float
    rows: np.ndarray
    aggregate: Callable[[np.ndarray], float] | None = field(default=None, repr=False)  # None: the mean
    higher_is_better: bool = True


def score(
    examples: Sequence[Example],
    answers: Sequence[str],
    schema: Schema,
    rules: Mapping[str, Mapping[str, Callable[[str, str], bool]]] | None = None,
) -> dict[str, Score]:
    """Score answers by what their fields are: labels, exact values, or running text.

    A label gives `<name>_accuracy` and `<name>_macro_f1` (when there are more than three labels), an exact
    value `<name>_exact`, a text `<name>_rouge_l`. JSON answers also give `valid_json`, which is strict; the
    fields are read from the first JSON object in the answer, so that a chatty model is not scored as silent.

    Args:
        rules: for a field, named rules `(answer, expected) -> bool`; they give `<name>_rules`, the share kept.
    """
    found: dict[str, Score] = {}
    structured = bool(examples) and examples[0].target is not None
    if structured:
        found["valid_json"] = _compute(metrics.ValidJson(), answers, [e.completion for e in examples])
    for name in schema.targets:
        expected = [metrics.text(e.value(name)) for e in examples]
        given = fields(answers, name) if structured else list(answers)
        match schema.kinds[name]:
            case "label":
                found[f"{name}_accuracy"] = _compute(metrics.ExactMatch(), given, expected)
                if len(schema.labels.get(name, ())) > 3:
                    found[f"{name}_macro_f1"] = _compute(metrics.MacroF1(), given, expected)
            case "exact":
                found[f"{name}_exact"] = _compute(metrics.ExactMatch(), given, expected)
            case _:
                found[f"{name}_rouge_l"] = _compute(metrics.RougeL(), given, expected)
        if rules and name in rules:
            found[f"{name}_rules"] = _compute(metrics.Rules(dict(rules[name])), given, expected)
    return found


def fields(answers: Sequence[str], name: str) -> list[str]:
    """One field of each answer as text; "" where the answer has none."""
    parsed = [metrics.parse(a) or {} for a in answers]
    return [metrics.text(p[name]) if name in p else "" for p in parsed]


def headline(scores: Mapping[str, Score], schema: Schema) -> str:
    """The metric that decides: accuracy of the first label, else the first field's own metric."""
    first = next((t for t in schema.targets if schema.kinds[t] == "label"), schema.targets[0])
    own = {f"{first}_{kind}" for kind in ("accuracy", "exact", "rouge_l")}
    return next(name for name in scores if name in own)


def mean(rows: Sequence[float] | np.ndarray) -> Score:
    """The score whose value is the mean of its rows, such as a share of right answers."""
    rows = np.asarray(rows, dtype=float)
    return Score(float(rows.mean()), rows)


def compare(
    before: Mapping[str, Score],
    after: Mapping[str, Score],
    prompted: Mapping[str, Score] | None = None,
    *,
    seed: int = 0,
) -> dict[str, results.Metric]:
    """Each metric before and after on the same rows, with a 95 % interval of the paired change."""
    return {
        name: results.Metric(
            prompted=prompted[name].value if prompted else None, **_change(old, after[name], seed=seed)
        )
        for name, old in before.items()
    }


def _change(before: Score, after: Score, *, seed: int) -> dict[str, Any]:
    """What every line of a before/after table records."""
    low, high = interval(before, after, seed=seed)
    return {
        "before": before.value,
        "after": after.value,
        "change": after.value - before.value,
        "ci95": (low, high),
        "n": len(before.rows),
        "higher_is_better": before.higher_is_better,
        "verdict": verdict(low, high, higher_is_better=before.higher_is_better),
    }


def interval(before: Score, after: Score, *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of `after - before` over rows drawn together (paired).

    Efron and Tibshirani (1993), chapters 13 and 16, by `scipy.stats.bootstrap`.
    """
    n = len(before.rows)
    if n != len(after.rows):
        raise ValueError(f"a paired change needs the same rows: {n} before, {len(after.rows)} after")
    if n < 2:
        change = after.value - before.value
        return change, change
    settings = {"n_resamples": RESAMPLES, "confidence_level": level, "method": "percentile"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # every row the same: the interval is a point, and rightly so
        if before.aggregate is None and after.aggregate is None:
            found = stats.bootstrap((after.rows - before.rows,), np.mean, rng=np.random.default_rng(seed), **settings)
        else:
            found = stats.bootstrap(
                (np.arange(n),),
                lambda index: _value(after, index) - _value(before, index),
                vectorized=False,
                rng=np.random.default_rng(seed),
                **settings,
            )
    low, high = (float(x) for x in found.confidence_interval)
    return low, high


def verdict(low: float, high: float, *, higher_is_better: bool = True) -> results.Verdict:
    """In words: the interval of the change lies on one side of zero, or it does not."""
    if low <= 0 <= high:
        return "no measurable change"
    return "improved" if (low > 0) == higher_is_better else "worse"


def forgetting(before: ProbeResult, after: ProbeResult, *, seed: int = 0) -> list[results.Probe]:
    """General ability before and after: accuracy of each probe, and perplexity of general prose.

    Items are drawn for the accuracies, whole passages for the perplexity.
    """
    old, new = ({n: mean(rows) for n, rows in p.scores.items()} | {"perplexity": _prose(p)} for p in (before, after))
    return probes(old, new, seed=seed)


def probes(before: Mapping[str, Score], after: Mapping[str, Score], *, seed: int = 0) -> list[results.Probe]:
    """Scores of general ability before and after, as a record keeps them."""
    return [results.Probe(probe=name, **_change(old, after[name], seed=seed)) for name, old in before.items()]


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int = 512,
    batch_size: int = 8,
) -> Score:
    """Perplexity of plain texts, each cut at `max_length` tokens and read on its own; a row is a text."""
    model.eval()
    with dense_weights(model):
        starts = range(0, len(texts), batch_size)
        nll = [n for i in starts for n in token_nll(model, tokenizer, texts[i : i + batch_size], max_length)]
    return _perplexity(np.array([n.sum() for n in nll]), np.array([len(n) for n in nll]))


def gap(one: Score, other: Score, *, seed: int = 0) -> tuple[float, float, float]:
    """`one - other` for scores of different rows, and its 95 % interval, both sets of rows drawn again apart."""
    found = stats.bootstrap(
        (np.arange(len(one.rows)), np.arange(len(other.rows))),
        lambda a, b: _value(one, a) - _value(other, b),
        vectorized=False, paired=False, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = found.confidence_interval
    return one.value - other.value, float(low), float(high)


@dataclass(frozen=True)
class Parity:
    """How far two models answer alike: share of equal next tokens, and of rows in which all are equal."""

    same_token: float
    same_answer: float
    n: int

    def __str__(self) -> str:
        return f"same next token {self.same_token:.2%}, same answer throughout {self.same_answer:.1%} (n={self.n})"


def parity(trained: Sequence[Sequence[int]], shipped: Sequence[Sequence[int]]) -> Parity:
    """Compare the next tokens (`models.next_tokens`) of the shipped model with those of the trained one."""
    same = [np.equal(a, b) for a, b in zip(trained, shipped, strict=True)]
    return Parity(float(np.concatenate(same).mean()), float(np.mean([s.all() for s in same])), len(same))


def share_correct(expected: Sequence[str], given: Sequence[str], label: str | None = None) -> float:
    """Share of equal values, among the rows whose expected value is `label` (None: among all)."""
    pairs = [(e, g) for e, g in zip(expected, given, strict=True) if label in (None, e)]
    return float(np.mean([e == g for e, g in pairs])) if pairs else 0.0


def table(compared: Mapping[str, results.Metric]) -> pd.DataFrame:
    """The one table of a notebook: before, prompted, after, change, interval, n, verdict."""
    rows = {
        name: {
            "before": f"{m.before:.3f}",
            "prompted": "" if m.prompted is None else f"{m.prompted:.3f}",
            "after": f"{m.after:.3f}",
            "change": f"{m.change:+.3f}",
            "95 % interval": f"[{m.ci95[0]:+.3f}, {m.ci95[1]:+.3f}]",
            "n": m.n,
            "verdict": m.verdict,
        }
        for name, m in compared.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")


def forgetting_table(probes: Sequence[results.Probe]) -> pd.DataFrame:
    """The same table for the forgetting probes."""
    as_metrics = {p.probe: results.Metric(**p.model_dump(exclude={"probe"})) for p in probes}
    return table(as_metrics).drop(columns="prompted", errors="ignore").rename_axis("probe")


def _compute(metric: metrics.RowMetric, given: Sequence[str], expected: Sequence[str]) -> Score:
    found = metric.compute(predictions=list(given), references=list(expected))
    rows = np.asarray(found["rows"], dtype=float)
    own = type(metric).aggregate is not metrics.RowMetric.aggregate
    texts = np.asarray(list(given)), np.asarray(list(expected))
    aggregate = (lambda index: metric.aggregate(index, *texts, rows)) if own else None
    return Score(float(found["score"]), rows, aggregate)


def _value(one: Score, index: np.ndarray) -> float:
    return float(one.rows[index].mean()) if one.aggregate is None else one.aggregate(index)


def _prose(result: ProbeResult) -> Score:
    sums = np.bincount(result.token_passage, weights=result.token_nll)
    return _perplexity(sums, np.bincount(result.token_passage))


def _perplexity(sums: np.ndarray, tokens: np.ndarray) -> Score:
    """Perplexity of texts from the nats and the tokens of each; a row is a text's mean."""

    def aggregate(index: np.ndarray) -> float:
        return float(np.exp(sums[index].sum() / tokens[index].sum()))

    return Score(aggregate(np.arange(len(sums))), sums / tokens, aggregate, higher_is_better=False)
