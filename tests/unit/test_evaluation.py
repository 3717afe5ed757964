"""Scores, intervals and verdicts: a planted change is found, no change is not, and worse is called worse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cookbook import evaluation, metrics, models
from cookbook.data import Example, Schema
from cookbook.evaluation import Score
from cookbook.forgetting import ProbeResult

INTENTS = ("late", "broken", "wrong", "refund")
SCHEMA = Schema(
    input="message",
    targets=("order_id", "intent", "urgency", "reply"),
    kinds={"order_id": "exact", "intent": "label", "urgency": "label", "reply": "text"},
    labels={"intent": INTENTS, "urgency": ("high", "low")},
)


def example(intent: str, order: str | None = None, urgency: str = "low", reply: str = "We are sorry.") -> Example:
    target = {"order_id": order, "intent": intent, "urgency": urgency, "reply": reply}
    return Example([{"role": "user", "content": "Hi"}], json.dumps(target), target, "a.jsonl:1")


EXAMPLES = [example("late", "LK-1"), example("broken"), example("wrong", urgency="high"), example("refund")]
RIGHT = [e.completion for e in EXAMPLES]


def mean_score(rows: Any) -> Score:
    rows = np.asarray(rows, dtype=float)
    return Score(float(rows.mean()), rows)


def zeros_and_ones(share: float, n: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(float)


# --- scores ------------------------------------------------------------------------------------------


def test_right_answers_score_one_in_everything() -> None:
    scores = evaluation.score(EXAMPLES, RIGHT, SCHEMA)
    assert list(scores) == [
        "valid_json", "order_id_exact", "intent_accuracy", "intent_macro_f1", "urgency_accuracy", "reply_rouge_l",
    ]  # fmt: skip
    assert all(s.value == 1 and len(s.rows) == 4 for s in scores.values())


def test_scores_by_hand() -> None:
    answers = [
        'Sure: {"order_id": "LK-1", "intent": "late", "urgency": "low", "reply": "We are sorry."}',  # chatty
        '{"order_id": null, "intent": "late", "urgency": "low", "reply": "nothing"}',  # wrong intent
        '{"intent": "wrong"}',  # fields missing
        "I cannot help.",
    ]
    scores = {name: s.value for name, s in evaluation.score(EXAMPLES, answers, SCHEMA).items()}
    f1 = (2 / 3 + 0 + 1 + 0) / 4
    assert scores == pytest.approx(
        {
            "valid_json": 1 / 4,
            "order_id_exact": 2 / 4,
            "intent_accuracy": 2 / 4,
            "intent_macro_f1": f1,
            "urgency_accuracy": 2 / 4,
            "reply_rouge_l": 1 / 4,
        }
    )


def test_rules_and_running_text_without_columns() -> None:
    plain = [Example([{"role": "user", "content": "Hi"}], text, None, "a:1") for text in ("Yes.", "No, sorry.")]
    schema = Schema("prompt", ("answer",), {"answer": "text"}, {})
    rules = {"answer": {"full stop": lambda answer, expected: answer.endswith(".")}}
    scores = evaluation.score(plain, ["Yes.", "no"], schema, rules)
    assert {n: round(s.value, 3) for n, s in scores.items()} == {"answer_rouge_l": 0.833, "answer_rules": 0.5}


def test_fields() -> None:
    assert evaluation.fields(['{"a": null, "b": 2}', "x", '{"b": "two"}'], "a") == ["null", "", ""]
    assert evaluation.fields(['{"a": null, "b": 2}', "x", '{"b": "two"}'], "b") == ["2", "", "two"]


def test_headline_is_the_first_label() -> None:
    assert evaluation.headline(evaluation.score(EXAMPLES, RIGHT, SCHEMA), SCHEMA) == "intent_accuracy"
    text = Schema("prompt", ("answer",), {"answer": "text"}, {})
    assert evaluation.headline({"answer_rouge_l": mean_score([1]), "answer_rules": mean_score([1])}, text) == (
        "answer_rouge_l"
    )


def test_headline_is_not_misled_by_a_field_with_a_longer_name() -> None:
    schema = Schema("text", ("order_id", "order"), {"order_id": "exact", "order": "label"}, {"order": ("a", "b")})
    scores = {"valid_json": mean_score([1]), "order_id_exact": mean_score([1]), "order_accuracy": mean_score([1])}
    assert evaluation.headline(scores, schema) == "order_accuracy"


# --- intervals and verdicts --------------------------------------------------------------------------


def test_a_planted_change_is_found_in_either_direction() -> None:
    low, high = mean_score(zeros_and_ones(0.3, 96, 0)), mean_score(zeros_and_ones(0.8, 96, 1))
    up, down = evaluation.interval(low, high), evaluation.interval(high, low)
    assert 0 < up[0] < high.value - low.value < up[1]
    assert down == pytest.approx((-up[1], -up[0]), abs=0.02)
    assert evaluation.verdict(*up) == "improved" and evaluation.verdict(*down) == "worse"


def test_no_change_is_not_found() -> None:
    same, other = mean_score(zeros_and_ones(0.7, 96, 2)), mean_score(zeros_and_ones(0.7, 96, 3))
    assert evaluation.interval(same, same) == (0, 0)
    low, high = evaluation.interval(same, other)
    assert low < 0 < high and evaluation.verdict(low, high) == "no measurable change"


def test_a_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    before = zeros_and_ones(0.5, 96, 4)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:10]] = 1
    low, high = evaluation.interval(mean_score(before), mean_score(after))
    draw = np.random.default_rng(0)
    apart = [draw.choice(after, 96).mean() - draw.choice(before, 96).mean() for _ in range(2000)]
    unpaired = np.quantile(apart, [0.025, 0.975])
    assert high - low < 0.6 * (unpaired[1] - unpaired[0])
    assert unpaired[0] < 0 < low, "only the paired interval sees this change"


@pytest.mark.parametrize("own", [False, True])
def test_the_seed_decides(own: bool) -> None:
    def mean(index: np.ndarray) -> float:
        return float(rows[index].mean())

    rows = zeros_and_ones(0.5, 40, 5)
    before = Score(0.0, np.zeros(40), (lambda index: 0.0) if own else None)
    after = Score(float(rows.mean()), rows, mean if own else None)
    first, again, other = (evaluation.interval(before, after, seed=s) for s in (7, 7, 8))
    assert first == again and np.allclose(first, other, atol=0.05)


def test_an_interval_of_a_score_that_is_no_mean() -> None:
    """Macro F1 is worked out anew in every resample; weighting classes equally moves it away from accuracy."""
    expected = ["a"] * 40 + ["b"] * 8
    before = evaluation._compute(metrics.MacroF1(), ["a"] * 48, expected)
    after = evaluation._compute(metrics.MacroF1(), expected, expected)
    low, high = evaluation.interval(before, after)
    change = after.value - before.value
    assert after.value == 1 and before.value == pytest.approx((80 / 88) / 2)
    assert 0.4 < low <= change <= high < 0.65, "accuracy changes by 8/48 only"


def test_coverage_is_roughly_95_percent() -> None:
    draw, true, hits = np.random.default_rng(6), 0.7 - 0.5, 0
    for run in range(100):
        shared = draw.random(80)
        before, after = shared < 0.5, np.where(draw.random(80) < 0.5, shared, draw.random(80)) < 0.7
        low, high = evaluation.interval(mean_score(before), mean_score(after), seed=run)
        hits += low <= true <= high
    assert 88 <= hits <= 100


def test_intervals_of_few_and_of_unequal_rows() -> None:
    assert evaluation.interval(mean_score([0]), mean_score([1])) == (1, 1)
    with pytest.raises(ValueError, match="same rows: 3 before, 2 after"):
        evaluation.interval(mean_score([0, 1, 1]), mean_score([0, 1]))


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "words"),
    [
        (0.1, 0.2, True, "improved"),
        (-0.2, -0.1, True, "worse"),
        (-0.1, 0.2, True, "no measurable change"),
        (0.0, 0.2, True, "no measurable change"),
        (-0.2, 0.0, False, "no measurable change"),
        (0.1, 0.2, False, "worse"),
        (-0.2, -0.1, False, "improved"),
    ],
)
def test_verdict(low: float, high: float, higher_is_better: bool, words: str) -> None:
    assert evaluation.verdict(low, high, higher_is_better=higher_is_better) == words


def test_compare_and_table() -> None:
    examples, wrong = EXAMPLES * 6, ["I cannot help."] * 24
    scores = [evaluation.score(examples, answers, SCHEMA) for answers in (wrong, RIGHT * 6)]
    compared = evaluation.compare(scores[0], scores[1], prompted=scores[0])
    found = compared["intent_accuracy"]
    assert (found.before, found.prompted, found.after, found.change, found.n) == (0, 0, 1, 1, 24)
    assert found.verdict == "improved" and found.ci95 == (1, 1)
    assert evaluation.compare(scores[1], scores[0])["valid_json"].verdict == "worse"
    table = evaluation.table(compared)
    assert list(table.columns) == ["before", "prompted", "after", "change", "95 % interval", "n", "verdict"]
    assert table.loc["valid_json"].tolist()[:5] == ["0.000", "0.000", "1.000", "+1.000", "[+1.000, +1.000]"]
    assert evaluation.table(evaluation.compare(*scores)).loc["valid_json", "prompted"] == ""


# --- forgetting --------------------------------------------------------------------------------------


def probes(share: float, nll: float, seed: int = 0) -> ProbeResult:
    draw = np.random.default_rng(seed)
    lengths = [20, 60, 40, 30, 50]
    return ProbeResult(
        scores={"knowledge": zeros_and_ones(share, 64, seed), "arithmetic": zeros_and_ones(0.5, 48, 9)},
        token_nll=nll + 0.1 * draw.standard_normal(sum(lengths)),
        token_passage=np.repeat(np.arange(len(lengths)), lengths),
    )


def test_forgetting_names_what_got_worse_and_what_did_not() -> None:
    before, after = probes(0.9, 2.0), probes(0.3, 3.0, seed=1)
    found = {p.probe: p for p in evaluation.forgetting(before, after)}
    assert [p.verdict for p in found.values()] == ["worse", "no measurable change", "worse"]
    assert found["knowledge"].n == 64 and found["knowledge"].higher_is_better
    perplexity = found["perplexity"]
    assert not perplexity.higher_is_better and perplexity.n == 5, "passages are drawn, not tokens"
    assert perplexity.before == pytest.approx(before.perplexity) == pytest.approx(np.exp(before.token_nll.mean()))
    assert perplexity.ci95[0] < perplexity.change < perplexity.ci95[1]
    assert {p.probe: p.verdict for p in evaluation.forgetting(after, before)}["perplexity"] == "improved"
    table = evaluation.forgetting_table(list(found.values()))
    assert "prompted" not in table and table.loc["perplexity", "verdict"] == "worse"


def test_nothing_measured_is_an_empty_table() -> None:
    assert evaluation.forgetting_table([]).empty


def test_passages_weigh_by_their_tokens() -> None:
    result = ProbeResult({}, np.array([1.0, 1, 1, 4]), np.array([0, 0, 0, 1]))
    score = evaluation._prose(result)
    assert score.value == score.aggregate(np.array([0, 1])) == pytest.approx(np.exp(7 / 4))
    assert score.rows.tolist() == [1, 4] and score.aggregate(np.array([0, 0])) == pytest.approx(np.e)


def test_a_model_that_broke_is_not_called_improved() -> None:
    with pytest.raises(ValidationError, match="finite"):
        evaluation.forgetting(probes(0.9, 2.0), probes(0.9, float("nan")))


# --- parity ------------------------------------------------------------------------------------------


def test_parity() -> None:
    found = evaluation.parity([[1, 2], [3], [4, 5]], [[1, 2], [9], [4, 6]])
    assert (found.same_token, found.same_answer, found.n) == (0.6, pytest.approx(1 / 3), 3)
    assert str(found) == "same next token 60.00%, same answer throughout 33.3% (n=3)"
    with pytest.raises(ValueError):
        evaluation.parity([[1, 2], [3]], [[1, 2]])
    with pytest.raises(ValueError):
        evaluation.parity([[1, 2]], [[1, 2, 3]])


def test_share_correct() -> None:
    share: Callable[..., float] = evaluation.share_correct
    expected, given = ["a", "a", "b", "c"], ["a", "b", "b", "a"]
    assert [share(expected, given, label) for label in (None, "a", "b", "c", "d")] == [0.5, 0.5, 1, 0, 0]


# --- perplexity, and scores of different rows ---------------------------------------------------------


def test_perplexity_of_texts(llama: Path) -> None:
    model, tokenizer = models.load(str(llama), dtype=torch.float32)
    texts = ["My parcel is late.", "The mug arrived broken, please send another one."]
    found = evaluation.perplexity(model, tokenizer, texts, batch_size=1)
    for text, row in zip(texts, found.rows, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            assert row == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-4)
    assert found.value == pytest.approx(evaluation.perplexity(model, tokenizer, texts).value, rel=1e-4)
    assert not found.higher_is_better
    worse = evaluation.Score(found.value * 2, found.rows + np.log(2), lambda i: found.aggregate(i) * 2, False)
    assert evaluation.compare({"perplexity": found}, {"perplexity": worse})["perplexity"].verdict == "worse"
    assert evaluation.compare({"perplexity": worse}, {"perplexity": found})["perplexity"].verdict == "improved"


def test_gap_between_different_rows() -> None:
    low, high = (evaluation.mean(zeros_and_ones(share, n, 3)) for share, n in ((0.3, 60), (0.8, 90)))
    change, least, most = evaluation.gap(high, low)
    assert change == pytest.approx(high.value - low.value) and 0 < least < change < most
    same = evaluation.gap(low, evaluation.mean(zeros_and_ones(0.3, 80, 5)))
    assert same[1] < 0 < same[2]
    assert evaluation.gap(high, low) == (change, least, most), "the seed fixes it"
