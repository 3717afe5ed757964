"""The planner: counts against published ones, arithmetic by hand, limits, measured peaks, and its widget."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cookbook import headlines, memory, planning, planning_checks, planning_view, publish, recipes, widgets
from cookbook.models import ModelError
from cookbook.planning import Job, estimate
from cookbook.recipes import RequestError

SMALL = Job(model="SmolLM2-135M", card="T4 16 GB", length=128)


@pytest.mark.parametrize("model", planning.models())
def test_shapes_have_the_published_number_of_weights(model: str) -> None:
    assert memory.count(planning.config(model)).total == pytest.approx(planning.models()[model], rel=2e-3)


def test_operations_by_hand() -> None:
    """Of 10 rows of 100 tokens, once: 2 a weight forward, 4 backward, 2 with a frozen base; attention beside."""
    job = replace(SMALL, method="full", checkpointing=False, rows=10, tokens=100, epochs=1)
    weights, context = 134_515_008, 4 * 30 * 576 * 100
    assert planning.operations(job) == 1000 * (6 * weights + 3 * context)
    lora = replace(job, method="lora")
    assert planning.operations(lora) == 1000 * (4 * weights + 3 * context)
    assert planning.operations(replace(lora, checkpointing=True)) == 1000 * (6 * weights + 4 * context)
    half = planning.operations(replace(job, method="frozen_half"))
    assert half == 1000 * (2 * weights + 4 * 53_102_016 + 2 * context)
    untied = planning.operations(replace(job, model="Llama-3.1-8B")) / 1000
    assert untied == pytest.approx(6 * (8.03e9 - 128_256 * 4096) + 3 * 4 * 32 * 4096 * 100, rel=1e-3)


def test_hours_and_money_by_hand() -> None:
    job = replace(SMALL, cards=2, price=3.0, utilisation=0.5)
    found = estimate(job)
    assert found.hours == pytest.approx(planning.operations(job) / (2 * 65e12 * 0.5) / 3600)
    assert found.money == pytest.approx(found.hours * 2 * 3.0)
    assert estimate(replace(job, price=0.0)).money == pytest.approx(found.hours * 2 * 0.40)


def test_cards_share_weights_and_state_alone() -> None:
    one, four = (estimate(replace(SMALL, method="full", cards=n)).parts for n in (1, 4))
    for part in ("weights", "gradients", "optimizer"):
        assert four[part] == one[part] // 4
    assert four["activations"] == one["activations"] and four["runtime"] == one["runtime"]


def test_what_makes_a_plan_smaller() -> None:
    base = replace(SMALL, method="full", checkpointing=False, length=512, batch=8)
    for change in ({"batch": 4}, {"checkpointing": True}, {"optimizer": "adamw_8bit"}, {"length": 256},
                   {"precision": "bf16 throughout"}, {"method": "lora"}):  # fmt: skip
        assert estimate(replace(base, **change)).total < estimate(base).total, change
    lora = replace(base, method="lora")
    assert (
        estimate(replace(lora, method="qlora")).total < estimate(lora).total < estimate(replace(lora, rank=64)).total
    )


def test_turns_lead_to_a_plan_that_fits() -> None:
    found = estimate(Job(method="full", card="RTX 4090 24 GB"))
    assert not found.fits and found.turns[0].startswith("AdamW with 8-bit moments: ")
    sizes = [float(re.search(r": ([\d.]+) GB", turn)[1]) for turn in found.turns]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] <= found.card_bytes / 1e9 < sizes[-2]
    assert estimate(SMALL).fits and estimate(SMALL).turns == ()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "lorra"}, "method: there is no 'lorra'; choose one of full"),
        ({"card": "H1000"}, "card: there is no 'H1000'; choose one of T4"),
        ({"precision": "int2"}, "precision: there is no 'int2'"),
        ({"optimizer": "adam"}, "optimizer: there is no 'adam'"),
        ({"rows": 0}, "rows is 0: give 1 or more"),
        ({"epochs": float("nan")}, "epochs is nan: give more than 0"),
        ({"price": -1.0}, "price is -1.0: give 0 or more"),
        ({"utilisation": 1.5}, "utilisation is 1.5: it is a share"),
        ({"rank": 0, "batch": 0}, "(?s)rank is 0.*batch is 0"),
    ],
)
def test_impossible_jobs(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Job(**wrong)


def test_a_model_of_ones_own(llama: Path) -> None:
    assert estimate(replace(SMALL, model=str(llama), length=64)).fits
    with pytest.raises(ModelError, match="no folder here.*sizes that the planner knows: SmolLM2-135M"):
        estimate(replace(SMALL, model="llama-of-mine"))


def test_published_runs_are_within_a_fifth() -> None:
    """Those in which another training ran before in the same process may be further off, and say so."""
    checks = planning_checks.checked()
    assert {c.recipe for c in checks} >= {"01", "02", "03", "05", "19b"}
    for check in checks:
        assert abs(check.error) <= (0.25 if check.beside else 0.2), check
        assert check.counted < check.predicted


def test_peaks_are_read_from_outputs(tmp_path: Path) -> None:
    file = tmp_path / "n.ipynb"
    outputs = ["[train: a, b] 1.5 s, peak memory 2.25 GB\\nmore\\n", "[train: a, b] 1.0 s, peak memory 2.10 GB\\n"]
    cells = ",".join(f'{{"cell_type": "code", "outputs": [{{"text": ["{text}"]}}]}}' for text in outputs)
    file.write_text(f'{{"cells": [{{"cell_type": "markdown"}}, {cells}]}}')
    assert planning_checks.peaks(file) == {"train: a, b": 2_250_000_000}


def test_runs_of_a_sweep_are_checked_as_well(tmp_path: Path) -> None:
    record = publish.record_of(recipes.find("19b"))
    for method in ("full", "prefix"):  # of which the planner knows the first
        fields = json.loads(record.read_text(encoding="utf-8"))
        fields["details"] |= {"method": method, "train_peak_bytes": 4_260_000_000}
        (tmp_path / method).mkdir()
        (tmp_path / method / "results.json").write_text(json.dumps(fields))
    *published, found = planning_checks.checked([tmp_path])
    assert published == planning_checks.checked()
    assert (found.method, found.measured) == ("full", 4_260_000_000) and abs(found.error) < 0.2


def test_headlines_are_those_of_the_records() -> None:
    lines = headlines.table(without="19b_one_technique").splitlines()
    assert not [line for line in lines if "(19b_" in line]
    for recipe, record in headlines.published():
        metric = record.metrics[record.headline] if record else None
        line = next((line for line in lines if f"]({recipe.path.name})" in line), "")
        assert (
            not (metric and line) or f"| {metric.after:.3f} | {metric.change:+.3f} [{metric.ci95[0]:+.3f}, " in line
        )
    assert len(lines) == 2 + len(recipes.recipes()) - 1


def test_claims_about_70b() -> None:
    found = planning_checks.verdicts(None)
    assert {name: claim.verdict for name, claim in found.items()} == {
        "C2": "does not hold here",
        "C3": "holds in part",
        "C32": "holds",
    }
    assert "fp32 gradients and moments 847 GB" in found["C2"].evidence
    assert "141 GB in bf16, 39.5 GB in NF4" in found["C3"].evidence
    assert "by arithmetic" in found["C32"].evidence and "the A100 40 GB is too small" in found["C32"].evidence


def test_views() -> None:
    small, large = estimate(SMALL), estimate(Job(method="full", card="T4 16 GB"))
    assert small.total == sum(small.parts.values()) and set(small.parts) == set(planning_view.PARTS)
    assert ": fits." in planning_view.text(small) and "does not fit" in planning_view.text(large)
    assert planning.row(large)["fits"] == "no" and planning.row(small)["if not"] == ""
    figure = planning_view.bars({"small": small, "large": large}, title="two")
    drawn = sum(bar.get_width() for bar in figure.axes[0].patches)
    assert drawn == pytest.approx((small.total + large.total) / 1e9)


def test_widget_follows_its_fields() -> None:
    box = widgets.plan(SMALL)
    fields = {field.description: field for field in box.children[:-1]}
    shown = box.children[-1]
    assert ": fits." in shown.value
    fields["Model"].value = "Llama-3.1-70B"
    assert "does not fit" in shown.value
    fields["Card"].value = "H200 141 GB"
    assert fields["Dollars an hour a card"].value == planning.cards()["H200 141 GB"].price
    fields["Share of the peak"].value = 2.0
    assert 'role="alert"' in shown.value and "it is a share" in shown.value
    fields["Share of the peak"].value = 0.3
    fields["Model"].value = "<b>none"
    assert 'role="alert"' in shown.value and "<b>none" not in shown.value
