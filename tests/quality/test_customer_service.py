"""Notebook 01 at the cpu profile on the real model, default parameters: what it must reach, from its record."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cookbook import results

pytestmark = [pytest.mark.quality, pytest.mark.model]


@pytest.fixture(scope="module")
def record(run_at_cpu: Callable[..., results.Results]) -> results.Results:
    return run_at_cpu("01")


def test_format(record: results.Results) -> None:
    assert record.metrics["valid_json"].after >= 0.97


def test_intent(record: results.Results) -> None:
    intent = record.metrics["intent_accuracy"]
    assert intent.after >= 0.85  # 0.896 and 0.854 on two processors, whose sums round differently
    assert intent.change >= 0.5
    assert intent.ci95[0] > 0
    assert intent.verdict == "improved"
    assert intent.after > intent.prompted
    assert record.headline == "intent_accuracy"


def test_order_id(record: results.Results) -> None:
    assert record.metrics["order_id_exact"].after >= 0.95


def test_shipped_model_answers_like_the_trained_one(record: results.Results) -> None:
    assert record.details["parity_reloaded"] >= 0.98
    assert record.details["merged"]["after"] >= record.metrics["intent_accuracy"].after - 0.25


def test_forgetting_is_reported_with_intervals(record: results.Results) -> None:
    assert {p.probe for p in record.forgetting} == {"knowledge", "arithmetic", "instructions", "perplexity"}
    assert sum(p.n for p in record.forgetting if p.probe != "perplexity") >= 120


def test_validation_loss_fell(record: results.Results) -> None:
    losses = record.details["validation_loss"]
    assert losses[-1] < 0.7 * losses[0]


def test_resources(record: results.Results) -> None:
    memory = record.resources.peak_memory_bytes
    assert memory.measured < 4e9
    assert 0.5 < memory.predicted / memory.measured < 2
    assert record.resources.parameters.trainable < record.resources.parameters.total / 10
