"""How far two people who judged the same things agree, beyond what chance would give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Agreement:
    """How far two people agree on the pairs that both labelled (skips left out), and where they differ."""

    labellers: tuple[str, str]
    n: int
    observed: float
    kappa: float
    ci95: tuple[float, float]
    differ: tuple[str, ...]  # "file:line" of the second one's label

    def __str__(self) -> str:
        who = " and ".join(self.labellers)
        low, high = self.ci95
        return (
            f"{who} agree on {self.observed:.0%} of {self.n} pairs, Cohen's kappa {self.kappa:.2f} "
            f"(95 % interval {low:.2f} to {high:.2f})."
        )


def kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Agreement of two people beyond chance: (observed - expected) / (1 - expected).

    Cohen (1960), A Coefficient of Agreement for Nominal Scales. 1: always, 0: as often as by chance. Where both
    only ever used one and the same label, chance would agree always too, and the value is 1 by convention.
    """
    n = len(first)
    observed = sum(x == y for x, y in zip(first, second, strict=True)) / n
    shares = Counter(first), Counter(second)
    expected = sum(shares[0][label] * shares[1][label] for label in shares[0]) / n**2
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)


def interval(first: Sequence[str], second: Sequence[str], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of kappa over the things judged, both labels of a thing drawn together.

    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    names = sorted({*first, *second})
    one, two = (np.array([[label == name for name in names] for label in given]) for given in (first, second))
    drawn = np.random.default_rng(seed).integers(len(first), size=(DRAWS, len(first)))
    observed = (one & two).any(1)[drawn].mean(1)
    expected = (one[drawn].mean(1) * two[drawn].mean(1)).sum(1)
    alike = np.isclose(expected, 1)
    found = np.where(alike, 1.0, (observed - expected) / np.where(alike, 1.0, 1 - expected))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
