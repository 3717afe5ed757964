"""Metrics against numbers worked out by hand or by another library."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cookbook import metrics

GOOD = '{"intent": "late", "order_id": null}'


def score(metric: metrics.RowMetric, predictions: list[str], references: list[str]) -> tuple[float, list[float]]:
    found = metric.compute(predictions=predictions, references=references)
    return found["score"], found["rows"]


# --- JSON in answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "lenient", "strict"),
    [
        ('{"a": 1}', {"a": 1}, {"a": 1}),
        (' \n{"a": 1}\n', {"a": 1}, {"a": 1}),
        ('Sure! {"a": 1} Anything else?', {"a": 1}, None),
        ('```json\n{"a": 1}\n```', {"a": 1}, None),
        ('{"a": 1} {"a": 2}', {"a": 1}, None),
        ('Fill in {this}: {"a": 1}', {"a": 1}, None),
        ('{"a": {"b": 2}}', {"a": {"b": 2}}, {"a": {"b": 2}}),
        ('{"a": 1', None, None),
        ("{'a': 1}", None, None),
        ("[1, 2]", None, None),
        ("5", None, None),
        ("", None, None),
        ("no braces at all", None, None),
        ('{"a": NaN}', None, None),
        ('{"a": Infinity}', None, None),
        ('{"a": ' + "[" * 100_000, None, None),
        ("{" * 3000, None, None),
    ],
)
def test_parse(answer: str, lenient: dict | None, strict: dict | None) -> None:
    assert metrics.parse(answer) == lenient
    assert metrics.parse(answer, strict=True) == strict


def test_text() -> None:
    assert [metrics.text(v) for v in ("late", None, 5, True, "é")] == ["late", "null", "5", "true", "é"]


def test_half_a_surrogate_pair_in_an_answer_does_not_stop_the_evaluation() -> None:
    value = metrics.text(metrics.parse('{"reply": "so sorry \\ud83d"}')["reply"])
    assert score(metrics.ExactMatch(), [value], ["so sorry"]) == (0.0, [0.0])
    assert metrics.text(["\ud83d"]).isascii()


# --- values ------------------------------------------------------------------------------------------


def test_exact_match() -> None:
    assert score(metrics.ExactMatch(), ["a", " b ", "C", ""], ["a", "b", "c", "d"]) == (0.5, [1, 1, 0, 0])


def test_macro_f1_by_hand() -> None:
    expected = ["a", "a", "a", "b", "b", "c"]
    given = ["a", "a", "b", "b", "junk", "a"]
    # a: TP 2, FP 1, FN 1 -> 4/6; b: TP 1, FP 1, FN 1 -> 2/4; c: never given -> 0
    value, rows = score(metrics.MacroF1(), given, expected)
    assert value == pytest.approx((4 / 6 + 2 / 4 + 0) / 3)
    assert rows == [1, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_against_sklearn(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(seed)
    expected = draw.choice(list("abcde"), 80).tolist()
    given = [e if draw.random() < 0.6 else str(draw.choice([*"abcde", "other"])) for e in expected]
    labels = sorted(set(expected))
    right = sklearn.f1_score(expected, given, labels=labels, average="macro", zero_division=0)
    assert score(metrics.MacroF1(), given, expected)[0] == pytest.approx(right)


def test_rouge_l() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    pairs = [("the cat sat", "the cat sat"), ("a dog", "the cat sat"), ("cats sat there", "the cat sat")]
    value, rows = score(metrics.RougeL(), [p for p, _ in pairs], [r for _, r in pairs])
    assert rows == pytest.approx([1, 0, 2 / 3])  # stemmed, two of three words in order
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    assert rows == [scorer.score(r, p)["rougeL"].fmeasure for p, r in pairs]
    assert value == pytest.approx(np.mean(rows))


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        (GOOD, 1),
        ('{"order_id": "LK-1", "intent": 3}', 1),
        ('{"intent": "late"}', 0),
        (GOOD[:-1] + ', "more": 1}', 0),
        (f"Here: {GOOD}", 0),
        (f"{GOOD} Bye.", 0),
        (GOOD[:-1], 0),
        ("", 0),
    ],
)
def test_valid_json_is_strict(answer: str, valid: int) -> None:
    assert score(metrics.ValidJson(), [answer], [GOOD]) == (valid, [valid])


def test_rules() -> None:
    rules = {"greets": lambda a, e: a.startswith("Hello"), "short": lambda a, e: len(a) <= len(e) + 10}
    value, rows = score(metrics.Rules(rules), ["Hello you", "Hello " * 9, "x" * 40, ""], ["Hello"] * 4)
    assert rows == [1, 0.5, 0, 0] and value == 0.375, "an empty answer keeps no rule"


@pytest.mark.parametrize("metric", [metrics.ExactMatch, metrics.MacroF1, metrics.RougeL, metrics.ValidJson])
def test_every_metric_goes_down_when_answers_get_worse(metric: type[metrics.RowMetric]) -> None:
    right = [json.dumps({"intent": word, "order_id": None}) for word in ("late", "broken", "wrong", "late")]
    worse = [right[0], right[1].replace("broken", "late"), right[2][:-1], "Sorry?"]
    best, poor = score(metric(), right, right)[0], score(metric(), worse, right)[0]
    assert best == 1 and 0 < poor < best


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError):
        metrics.ExactMatch().compute(predictions=["a", "b"], references=["a"])
