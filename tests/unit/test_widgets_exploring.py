"""The run explorer: what it shows is what `cookbook compare` says of the same folder."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets
import pytest
from test_compare import record, save

from cookbook import compare, compare_page, compare_view
from cookbook.widgets import explore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four groups of one recipe, with two scores; a failed run; a run of another recipe; a record that is none."""
    for i, (rank, rate) in enumerate([(4, 1e-3), (4, 1e-4), (8, 1e-3), (8, 1e-4)]):
        for seed in (0, 1):
            made = record(
                0.5 + 0.1 * i + 0.02 * seed, SEED=seed, RANK=rank, RATE=rate, memory=(i + 1) * 1_000_000_000
            )
            made["metrics"]["wer"] = made["metrics"]["accuracy"] | {"higher_is_better": False}
            save(tmp_path / "runs" / f"{rank}-{rate}-{seed}", made)
    save(tmp_path / "runs" / "broken", None, {"parameters": {"RANK": 8, "SEED": 7}, "error": "<b>no memory</b>"})
    save(tmp_path / "runs" / "other", record(0.4, recipe="other"))
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "results.json").write_text("{}")
    return tmp_path / "runs"


def parts(box: ipywidgets.VBox) -> dict[str, Any]:
    top, grouping, said, table, figure, drawn, run, detail = box.children
    recipe, metric, again = top.children
    return {
        **{"recipe": recipe, "metric": metric, "again": again, "by": grouping.children[1], "said": said},
        **{"table": table, "figure": figure, "drawn": drawn, "run": run, "detail": detail},
    }


def test_it_shows_what_compare_says(folder: Path) -> None:
    w = parts(explore(folder))
    runs, _ = compare.collect([folder])
    other, tiny = compare.comparisons(runs)
    assert "bad" in w["said"].value and [value for _, value in w["recipe"].options] == ["other", "tiny"]
    assert compare_page.table_html(other) in w["table"].value and not w["drawn"].value
    w["recipe"].value = "tiny"
    assert w["metric"].value == "accuracy" and [box.description for box in w["by"].children] == ["RANK", "RATE"]
    assert (
        compare_page.table_html(tiny) in w["table"].value
        and escape(compare_view.conclusion(tiny)) in w["table"].value
    )
    drawn = list(compare_view.drawings(tiny))
    assert [title for title, _ in w["figure"].options] == [drawing.title for drawing in drawn]
    w["figure"].value = drawn[-1].title
    assert escape(drawn[-1].sentence) in w["drawn"].value and "data:image/svg+xml" in w["drawn"].value

    w["by"].children[1].value = False
    (pooled,) = compare.comparisons([run for run in runs if run.recipe == "tiny"], "accuracy", ["RANK"])
    assert (
        compare_page.table_html(pooled) in w["table"].value and "pools runs that differ in RATE" in w["table"].value
    )
    w["metric"].value = "wer"
    (errors,) = compare.comparisons([run for run in runs if run.recipe == "tiny"], "wer", ["RANK"])
    assert compare_page.table_html(errors) in w["table"].value


def test_one_run_in_full(folder: Path) -> None:
    w = parts(explore(folder))
    w["recipe"].value = "tiny"
    names = {name: value for name, value in w["run"].options}
    assert len(names) == 9 and "broken" in names
    w["run"].value = names["8-0.001-1"]
    assert "<td>RANK" not in w["detail"].value and "RANK</th>" in w["detail"].value and "0.72" in w["detail"].value
    w["run"].value = names["broken"]
    assert "kernel_died" in w["detail"].value and "<b>no memory" not in w["detail"].value


def test_a_folder_without_runs_is_said_and_can_be_read_again(tmp_path: Path) -> None:
    w = parts(explore(tmp_path / "none"))
    assert "no such file or folder" in w["said"].value and not w["table"].value
    (tmp_path / "none").mkdir()
    save(tmp_path / "none" / "a", None, {"parameters": {}})
    w["again"].click()
    assert "none of 1 runs finished" in w["said"].value
    save(tmp_path / "none" / "b", json.loads(json.dumps(record(0.6))))
    w["again"].click()
    assert w["recipe"].value == "tiny" and "0.600" in w["table"].value
