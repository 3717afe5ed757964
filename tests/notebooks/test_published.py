"""What the committed runs reached, from their records: the bars of runs that the quality tier repeats shortened."""

from __future__ import annotations

import numpy as np
import pytest

from cookbook import claims, publish, recipes, results


def published(recipe: str) -> results.Results:
    return results.read(publish.record_of(recipes.find(recipe)))


def test_legal() -> None:
    record = published("02")
    perplexity, rival = record.metrics["perplexity"], record.details["rival"]
    assert perplexity.after <= 0.85 * perplexity.before
    assert perplexity.verdict == "improved"
    assert record.headline == "category_accuracy"
    assert rival["change"] >= 0.15 and rival["ci95"][0] > 0
    assert {"untouched", "full", "frozen", "gradual", "lora"} == set(record.details["arms"])
    assert all("knowledge" in arm and "prose" in arm for arm in record.details["arms"].values())


def test_speech() -> None:
    record = published("04")
    wer, recall, general = record.metrics["wer"], record.metrics["keyword_recall"], record.forgetting[0]
    assert record.headline == "wer" and wer.n == 60
    assert wer.after <= 0.65 * wer.before and wer.ci95[1] < 0
    assert wer.after < wer.prompted
    assert recall.change >= 0.3 and recall.ci95[0] > 0
    assert general.probe == "general_speech_wer" and general.n >= 120
    assert general.change <= 0.01
    assert {"untouched", "full", "full, mixed", "replay", "slow", "lora"} == set(record.details["arms"])
    assert record.resources.peak_memory_bytes.measured < 6e9  # with all arms


def test_preferences() -> None:
    """Nothing is asserted of declining when it is due: that did not improve, and the notebook says so."""
    record = published("05")
    preference, rate = record.metrics["preference_accuracy"], record.metrics["rubric_win_rate"]
    assert record.headline == "preference_accuracy"
    assert preference.before <= 0.60 and preference.after >= 0.80 and preference.n == 80
    assert record.metrics["ranking_accuracy_per_token"].verdict == "improved"
    assert rate.before == 0.5 and rate.ci95[0] > 0 and rate.n == 80
    intent, length = record.metrics["intent_accuracy"], record.details["length"]
    assert intent.before >= 0.4  # chance: one in twelve
    assert intent.change >= -0.03
    assert 0.8 <= length["length ratio"] <= 1.2
    assert length["win rate among equally long"] > 0.5
    assert record.details["first_loss"]["copied"] == pytest.approx(np.log(2), rel=0.005)
    assert record.resources.peak_memory_bytes.measured < 5e9


def test_one_technique() -> None:
    record = published("19b")
    intent, loss = record.metrics["intent_accuracy"], record.metrics["validation_loss"]
    assert record.headline == "intent_accuracy" and record.model.technique == "lora"
    assert intent.ci95[0] > 0.25 and intent.after > intent.prompted + 0.2
    assert record.metrics["valid_json"].after >= 0.95
    assert not loss.higher_is_better and loss.after < 0.2 * loss.before and loss.n == record.data.validation
    assert record.details["parity_reloaded"] == 1.0
    assert len(record.details["rows"]["intent_accuracy"]) == intent.n == 96
    assert 15_000 <= record.resources.tokens <= 20_000
    assert record.resources.artifact_bytes < 21e6
    assert record.resources.peak_memory_bytes.measured < 5e9


def test_shoot_out() -> None:
    """Every method ran with three seeds; what is asserted of their order is what the intervals show."""
    record = published("19")
    chosen, arms = record.details["chosen"], record.details["arms"]
    scores = {name.removeprefix("intent_accuracy, "): metric for name, metric in record.metrics.items()}
    assert set(scores) == {*chosen, "zero_shot", "few_shot"} and len(chosen) == 13
    assert record.details["seeds"] == [0, 1, 2] and all(arms[name]["n"] == 3 for name in chosen)
    for name, losses in record.details["rates"].items():
        tried = sorted(map(float, losses))
        assert tried[0] < chosen[name] < tried[-1], f"{name}: the best rate lies at an end of those tried"
    assert all(scores[name].ci95[0] > 0.1 for name in ("full", "lora", "bottleneck"))
    assert set(record.claims) == {"C1", "C4", "C5", "C6", "C10", "C17", "C19", "C20", "C21"}
    assert all(claim.verdict != claims.UNMEASURED for claim in record.claims.values())
    first = min(chosen, key=lambda name: min(record.details["rates"][name].values()))
    assert record.headline == f"intent_accuracy, {first}"
    pages = publish.record_of(recipes.find("19")).with_suffix("")
    assert {"compare.html", "compare.md", "compare.csv", "runs.csv"} == {page.name for page in pages.iterdir()}
    assert all(name in (pages / "compare.html").read_text(encoding="utf-8") for name in scores)
