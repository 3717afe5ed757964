"""Notebook 03 at the cpu profile on the real model, default parameters: what it must reach, from its record."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cookbook import results

pytestmark = [pytest.mark.quality, pytest.mark.model]
DEPARTMENTS = ("finance", "hr", "it")
BAR = 0.25


@pytest.fixture(scope="module")
def record(run_at_cpu: Callable[..., results.Results]) -> results.Results:
    return run_at_cpu("03")


@pytest.mark.parametrize("name", DEPARTMENTS)
def test_each_department_beats_the_base(record: results.Results, name: str) -> None:
    right = record.metrics[f"{name}_right"]
    assert right.change >= BAR
    assert right.ci95[0] > 0
    assert right.after > right.prompted
    assert right.n == 40


@pytest.mark.parametrize("name", DEPARTMENTS)
def test_each_department_beats_every_other_adapter(record: results.Results, name: str) -> None:
    right = record.details["matrix"]["lora"]
    others = [right[f"{other} on {name}"] for other in DEPARTMENTS if other != name]
    assert right[f"{name} on {name}"] >= max(others) + BAR


def test_facts(record: results.Results) -> None:
    facts = record.metrics["facts"]
    assert facts.change >= BAR
    assert facts.verdict == "improved"


def test_mixed_batch_swap_and_removal_are_exact(record: results.Results) -> None:
    assert record.details["mixed_batch_same"] == 1
    assert record.details["bit_for_bit"] is True
    assert record.details["hot_swapped"] is True
    assert record.claims["C33"].verdict == "holds"


def test_choosing_an_adapter(record: results.Results) -> None:
    assert min(record.details["router"].values()) >= 0.7
    for department, weights in zip(DEPARTMENTS, record.details["gate"]["weights"].values(), strict=True):
        assert max(weights) == weights[DEPARTMENTS.index(department)], "the gate finds the department by itself"


def test_resources(record: results.Results) -> None:
    memory = record.resources.peak_memory_bytes
    assert memory.measured < 5e9
    assert 0.4 < memory.predicted / memory.measured < 2  # of training is predicted, of the gate is measured
    assert record.resources.artifact_bytes < 0.25 * 3 * 2 * record.resources.parameters.total
