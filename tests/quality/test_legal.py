"""Notebook 02 at the cpu profile on the real model, in half the passes.

The committed run has all of them: `tests/notebooks/test_published.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cookbook import results

pytestmark = [pytest.mark.quality, pytest.mark.model]


@pytest.fixture(scope="module")
def record(run_at_cpu: Callable[..., results.Results]) -> results.Results:
    return run_at_cpu("02", EPOCHS=0.75, SHOTS=0)


def test_perplexity_of_families_never_seen(record: results.Results) -> None:
    perplexity = record.metrics["perplexity"]
    assert perplexity.after < 0.97 * perplexity.before
    assert perplexity.verdict == "improved"


def test_form_of_the_answers(record: results.Results) -> None:
    """The kinds themselves come in the second half of training: at this point 0.27 are right, at its end 0.56."""
    assert record.headline == "category_accuracy"
    assert record.metrics["valid_json"].after >= 0.8
    assert record.metrics["category_accuracy"].ci95[0] > 0


def test_shipped_model_answers_like_the_trained_one(record: results.Results) -> None:
    assert record.details["parity_reloaded"] >= 0.7  # of whole answers; bf16 rounds in other places
    assert record.details["parity_master"] >= 0.9  # of tokens


def test_forgetting_is_reported(record: results.Results) -> None:
    assert {p.probe for p in record.forgetting} == {"knowledge", "arithmetic", "instructions", "perplexity"}


def test_memory(record: results.Results) -> None:
    memory = record.resources.peak_memory_bytes
    assert memory.measured < 5.5e9
    assert 0.5 < memory.predicted / memory.measured < 2
