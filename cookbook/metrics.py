"""Metrics as local `evaluate.Metric` modules: nothing is fetched, and each also gives its value per row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

Rows = list[float]


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_not_json)  # Python's own reads NaN and Infinity


def parse(answer: str, *, strict: bool = False) -> dict[str, Any] | None:
    """The JSON object in an answer, or None; not strict: the first object in it, whatever stands around it."""
    answer = answer.strip()
    for start in [0] if strict else [i for i, letter in enumerate(answer) if letter == "{"]:
        try:
            value, end = _DECODER.raw_decode(answer, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and not (strict and end != len(answer)):
            return value
    return None


def text(value: Any) -> str:
    """A field as text: strings as they are, anything else (numbers, null) as JSON."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shown.encode("utf-8", "replace").decode()  # half a surrogate pair, which JSON may hold, is no text


class RowMetric(evaluate.Metric):
    """A metric over texts; `compute(predictions=…, references=…)` gives `score` and `rows`, one value a row."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(keep_in_memory=True, **settings)

    def _info(self) -> evaluate.MetricInfo:
        string = datasets.Value("string")
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions: answers; references: expected answers; both lists of str",
            features=datasets.Features({"predictions": string, "references": string}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        rows = self.rows(predictions, references)
        return {
            "score": float(self.aggregate(np.arange(len(rows)), predictions, references, rows)),
            "rows": rows,
        }

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Rows:
        raise NotImplementedError

    @staticmethod
    def aggregate(index: np.ndarray, predictions: Any, references: Any, rows: Rows) -> float:
        """The score of the rows in `index`; the mean, unless a metric is more than a mean."""
        return float(np.mean(np.asarray(rows)[index]))


class ExactMatch(RowMetric):
    """1 where the answer equals the expected one, white space at the ends aside."""

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Rows:
        return [float(p.strip() == r.strip()) for p, r in zip(predictions, references, strict=True)]


class MacroF1(ExactMatch):
    """The mean over expected classes of F1 = 2TP / (2TP + FP + FN); any other answer is simply wrong."""

    @staticmethod
    def aggregate(index: np.ndarray, predictions: Any, references: Any, rows: Rows) -> float:
        predicted, expected = np.asarray(predictions)[index], np.asarray(references)[index]
        scores = []
        for label in np.unique(expected):
            tp = np.sum((predicted == label) & (expected == label))
            wrong = np.sum((predicted == label) ^ (expected == label))
            scores.append(2 * tp / (2 * tp + wrong))
        return float(np.mean(scores))


class RougeL(RowMetric):
    """ROUGE-L F-measure (Lin 2004) by the `rouge-score` package, with stemming."""

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Rows:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        pairs = zip(predictions, references, strict=True)
        return [scorer.score(r, p)["rougeL"].fmeasure for p, r in pairs]


class ValidJson(RowMetric):
    """1 where the whole answer is one JSON object with exactly the keys of the expected one."""

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Rows:
        keys = [set(parse(r, strict=True) or {}) for r in references]
        found = [parse(p, strict=True) for p in predictions]
        return [float(f is not None and set(f) == k) for f, k in zip(found, keys, strict=True)]


class Rules(RowMetric):
    """The share of written rules that an answer keeps; each rule is `(answer, expected) -> bool`."""

    def __init__(self, rules: dict[str, Callable[[str, str], bool]], **settings: Any) -> None:
        self.written = rules
        super().__init__(**settings)

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Rows:
        pairs = zip(predictions, references, strict=True)
        return [float(np.mean([bool(p and rule(p, r)) for rule in self.written.values()])) for p, r in pairs]
