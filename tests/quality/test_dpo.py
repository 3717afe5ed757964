"""Notebook 05 at the cpu profile on the real model, half the pairs, a smaller archive, no tickets.

The committed run has all of them: `tests/notebooks/test_published.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cookbook import results

pytestmark = [pytest.mark.quality, pytest.mark.model]


@pytest.fixture(scope="module")
def record(run_at_cpu: Callable[..., results.Results]) -> results.Results:
    return run_at_cpu("05", EPOCHS=0.5, TICKETS=0, ARCHIVE=1, SHOTS=0)


def test_preferences_of_pairs_never_seen(record: results.Results) -> None:
    preference = record.metrics["preference_accuracy"]
    assert record.headline == "preference_accuracy"
    assert preference.before == 0.5, "by definition: nothing has been gained over the reference"
    assert preference.after >= 0.80
    assert preference.verdict == "improved"
    assert record.metrics["ranking_accuracy_per_token"].change > 0, "by a measure without a reference, too"


def test_own_answers_beat_those_of_sft(record: results.Results) -> None:
    rate = record.metrics["rubric_win_rate"]
    assert rate.after > 0.5
    assert rate.n == 80


def test_not_by_length(record: results.Results) -> None:
    length = record.details["length"]
    assert 0.5 <= length["length ratio"] <= 1.2  # without tickets SFT runs in circles, and what is cut is that
    assert length["decided"] > 0
    assert length["win rate among equally long"] >= 0.5
    assert abs(record.details["length_kappa"][0]) < 0.2


def test_training_started_at_the_reference(record: results.Results) -> None:
    assert record.details["first_loss"]["copied"] == pytest.approx(np.log(2), rel=0.005)
    assert record.details["first_loss"]["stored"] == pytest.approx(np.log(2), rel=0.05)
    losses = [value for _, value in record.details["validation_loss"]]
    assert losses[-1] < losses[0] - 0.2
    assert record.details["kl"][0][1] < 0.01 < record.details["kl"][-1][1]


def test_shipped_model_answers_like_the_trained_one(record: results.Results) -> None:
    assert record.details["parity_reloaded"] >= 0.98


def test_refusals_and_forgetting_are_reported(record: results.Results) -> None:
    assert {"declined_when_due", "refused_without_cause"} <= set(record.metrics)
    assert {p.probe for p in record.forgetting} == {"knowledge", "arithmetic", "instructions", "perplexity"}


def test_resources(record: results.Results) -> None:
    memory = record.resources.peak_memory_bytes
    assert memory.measured < 5e9
    assert 0.5 < memory.predicted / memory.measured < 2
    assert record.resources.parameters.trainable < record.resources.parameters.total / 10
