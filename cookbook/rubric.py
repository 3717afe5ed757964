"""Judge free answers by named rules that a program checks, and compare two models answer by answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from cookbook import results
from cookbook.evaluation import Score, compare
from cookbook.pairs import Pair

Rule = Callable[[str, Pair], bool]  # (answer, pair) -> kept?
SIMILAR = 0.2  # answers whose lengths differ by no more than this share count as equally long


def kept(rules: Mapping[str, Rule], answers: Sequence[str], pairs: Sequence[Pair]) -> pd.DataFrame:
    """Which rule each answer keeps: one row an answer, one column a rule, true or false."""
    rows = [{name: bool(rule(a, p)) for name, rule in rules.items()} for a, p in zip(answers, pairs, strict=True)]
    return pd.DataFrame(rows, columns=list(rules))


def trust(rules: Mapping[str, Rule], pairs: Sequence[Pair]) -> pd.DataFrame:
    """The rubric judged by people's preferences: how often it puts `chosen` above, level with, or below `rejected`.

    One line for each fault that the pairs name, and one for all. A rubric that ranks pairs no better than chance
    cannot rank models.
    """
    sides = [kept(rules, [getattr(p, side) for p in pairs], pairs).sum(axis=1) for side in ("chosen", "rejected")]
    lead = (sides[0] - sides[1]).to_numpy()
    faults = np.array([str(p.extra.get("fault", "")) for p in pairs])
    groups = {name: lead[faults == name] for name in sorted(set(faults) - {""})} | {"all": lead}
    table = {
        name: {"pairs": len(x), "right": (x > 0).mean(), "level": (x == 0).mean(), "wrong": (x < 0).mean()}
        for name, x in groups.items()
    }
    return pd.DataFrame(table).T.astype({"pairs": int})


def won(first: pd.DataFrame, second: pd.DataFrame) -> np.ndarray:
    """For each question 1 if `second` keeps more rules than `first`, 0 if fewer, a half if as many."""
    return (np.sign(second.sum(axis=1).to_numpy() - first.sum(axis=1).to_numpy()) + 1) / 2


def win_rate(rows: np.ndarray, *, seed: int = 0) -> results.Metric:
    """The mean of `won`, with its interval, against the half that a model scores against itself."""
    even = Score(0.5, np.full(len(rows), 0.5))
    return compare({"": even}, {"": Score(float(rows.mean()), rows)}, seed=seed)[""]


def length_bias(rows: np.ndarray, first: Sequence[int], second: Sequence[int]) -> dict[str, float]:
    """Whether wins come with length: means, share of wins by the longer answer, win rate among equally long ones.

    Args:
        rows: as `won` gives them; `first` and `second` are the lengths of the answers, in tokens.
    """
    one, two = np.asarray(first, float), np.asarray(second, float)
    decided = rows != 0.5
    longer = np.where(rows == 1, two > one, one > two)[decided]
    close = np.abs(two - one) <= SIMILAR * np.maximum(one, two)
    return {
        "mean tokens before": float(one.mean()),
        "mean tokens after": float(two.mean()),
        "length ratio": float(two.mean() / one.mean()),
        "decided": int(decided.sum()),
        "decided for the longer answer": float(longer.mean()) if decided.any() else 0.5,
        "equally long": int(close.sum()),
        "win rate among equally long": float(rows[close].mean()) if close.any() else 0.5,
    }


def repeated(answer: str, words: int = 3) -> int:
    """How many runs of `words` words occur again in the same answer."""
    said = re.findall(r"\w+(?:'\w+)?", answer.casefold())
    runs = [tuple(said[i : i + words]) for i in range(len(said) - words + 1)]
    return len(runs) - len(set(runs))
