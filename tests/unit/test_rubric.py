"""The rubric counts rules, compares answer by answer, and tells length from quality."""

from __future__ import annotations

import numpy as np
import pytest

from cookbook import rubric
from cookbook.pairs import Pair

RULES = {"short": lambda a, p: len(a) < 10, "polite": lambda a, p: "please" in a, "said": lambda a, p: p.text in a}


def pair(text: str, chosen: str, rejected: str, **extra: str) -> Pair:
    return Pair([{"role": "user", "content": text}], chosen, rejected, "f:1", extra)


PAIRS = [
    pair("x", "please x", "no", fault="rude"),
    pair("y", "y", "please and a long answer", fault="padded"),
    pair("z", "y", "z please", fault="rude"),
    pair("w", "a", "b"),
]


def test_kept() -> None:
    found = rubric.kept(RULES, ["please x", "a much too long y"], PAIRS[:2])
    assert found.to_numpy().tolist() == [[True, True, True], [False, False, True]]
    assert list(found) == ["short", "polite", "said"]


def test_trust_by_fault() -> None:
    found = rubric.trust(RULES, PAIRS)
    assert found.loc["rude"].tolist() == [2, 0.5, 0, 0.5]
    assert found.loc["padded", "right"] == 1
    assert found.loc["all"].tolist() == [4, 0.5, 0.25, 0.25]


def test_won_and_win_rate() -> None:
    first = rubric.kept(RULES, ["x", "please y", "z", "w"], PAIRS)
    second = rubric.kept(RULES, ["please x", "y", "z", "w"], PAIRS)
    rows = rubric.won(first, second)
    assert rows.tolist() == [1, 0, 0.5, 0.5]
    even = rubric.win_rate(rows)
    assert (even.before, even.after, even.n, even.verdict) == (0.5, 0.5, 4, "no measurable change")
    ahead = rubric.win_rate(np.array([1.0] * 40 + [0.5] * 30 + [0.0] * 10))
    assert ahead.after == pytest.approx(0.6875) and ahead.ci95[0] > 0 and ahead.verdict == "improved"
    assert rubric.win_rate(1 - np.array([1.0] * 40 + [0.5] * 40)).verdict == "worse"


def test_length_bias() -> None:
    rows = np.array([1, 1, 0, 0.5, 1])
    found = rubric.length_bias(rows, [10, 10, 10, 10, 20], [20, 11, 30, 10, 10])
    assert found["mean tokens before"] == 12 and found["length ratio"] == pytest.approx(81 / 60)
    assert found["decided"] == 4
    assert found["decided for the longer answer"] == 0.5  # the first two wins; the loss and the last win went short
    assert found["equally long"] == 2 and found["win rate among equally long"] == 0.75
    nothing = rubric.length_bias(np.array([0.5, 0.5]), [1, 1], [5, 5])
    assert nothing["decided for the longer answer"] == nothing["win rate among equally long"] == 0.5


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("We will look at it. We will look at it.", 3),
        ("We will look, and you will hear.", 0),
        ("The order number, the ORDER number the order", 3),
        ("", 0),
    ],
)
def test_repeated(text: str, count: int) -> None:
    assert rubric.repeated(text) == count
