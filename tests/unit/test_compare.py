"""Comparing runs: what is read, how it is grouped, ranked and weighed by cost, and the files that show it."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import RECORD
from test_cli import call

from cookbook import compare, compare_page, compare_view, console, results
from cookbook.recipes import RequestError

ROOT = Path(compare.__file__).parents[1]
STATUS: dict[str, Any] = {
    **{"status": "kernel_died", "seconds": 60.0, "error": "out of\nmemory", "cell": None, "notebook": "tiny.ipynb"},
    **{"code_sha256": "0", "parameters": {}, "started": "2026-01-01T00:00:00Z"},
}


def record(after: float, **changes: Any) -> dict[str, Any]:
    """The record of `conftest` with another accuracy; parameters by their names, resources by theirs."""
    made = deepcopy(RECORD)
    score = made["metrics"]["accuracy"]
    score.update(after=after, change=after - score["before"], ci95=[after - 0.2, after - 0.05])
    used = made["resources"]
    for name, value in changes.items():
        if name in ("memory", "train", "size", "amount"):
            place, key = {
                "memory": (used["peak_memory_bytes"], "measured"),
                "train": (used["seconds"], "train"),
                "size": (used, "artifact_bytes"),
                "amount": (used["cost"], "amount"),
            }[name]
            place[key] = value
        elif name.isupper():
            made["parameters"][name] = value
        else:
            made[name] = value
    return made


def save(folder: Path, made: dict[str, Any] | None, status: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    if made is not None:
        (folder / "results.json").write_text(json.dumps(made), encoding="utf-8")
    if status is not None:
        (folder / "status.json").write_text(json.dumps(STATUS | status), encoding="utf-8")
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Ranks 4 and 8, three seeds each, at two depths; rank 8 needs more of everything, one of its runs failed."""
    for seed, (four, eight) in enumerate([(0.5, 0.7), (0.6, 0.8), (0.7, 0.9)]):
        small = record(four, SEED=seed, RANK=4, OUTPUT_DIR=str(seed), memory=1_000_000_000 + seed, train=10 + seed)
        save(tmp_path / "sweep" / f"a{seed}", small)
        large = record(eight, SEED=seed, RANK=8, memory=2_000_000_000, train=30, size=5_000_000)
        save(tmp_path / "sweep" / "deep" / f"b{seed}", large, {"status": "ok"})
    save(tmp_path / "sweep" / "c", None, {"parameters": {"RANK": 8, "SEED": 3, "PROFILE": "auto"}})
    return tmp_path / "sweep"


def only(*paths: Path, metric: str = "", by: tuple[str, ...] = ()) -> compare.Comparison:
    (found,) = compare.comparisons(compare.collect(paths)[0], metric, by)
    return found


def test_groups_by_what_differs_but_the_seed(sweep: Path) -> None:
    found = only(sweep)
    assert (found.recipe, found.metric, found.by, found.notes) == ("tiny", "accuracy", ("RANK",), [])
    best, other = found.groups
    assert [best.parameters, other.parameters] == [{"RANK": 8}, {"RANK": 4}]
    assert (best.seeds, len(best.failed), other.seeds, len(other.failed)) == (3, 1, 3, 0)
    # mean 0.6 of 0.5, 0.6, 0.7: deviation 0.1, standard error 0.1 / sqrt(3), t(0.975; 2) = 4.302653
    assert other.after == pytest.approx((0.6, 0.6 - 0.2484138, 0.6 + 0.2484138, 3))
    assert best.change == pytest.approx((0.7, 0.7 - 0.2484138, 0.7 + 0.2484138, 3))
    assert (best.before, best.probe, best.forgotten) == (pytest.approx(0.1), "arithmetic", pytest.approx(-0.1))
    assert (other.memory_bytes, other.train_seconds, other.total_seconds) == (1_000_000_002, 11, 512)
    assert (best.artifact_bytes, best.amount, best.currency) == (5_000_000, 0, "EUR")
    # both are on every front, as the better one costs more; without a price there is no front of cost
    assert best.fronts == other.fronts == ("memory", "seconds", "size")


def test_one_seed_keeps_its_own_interval(tmp_path: Path) -> None:
    found = only(save(tmp_path / "a", record(0.9)))
    (group,) = found.groups
    assert group.parameters == {} and group.label == "all runs"
    assert group.change == pytest.approx((0.8, 0.7, 0.85, 1))
    assert group.after == pytest.approx((0.9, 0.8, 0.95, 1))
    head, ((_, seeds, score, *_),) = compare_view.cells(found)
    assert (head[2], seeds.text, score.text, score.second) == ("accuracy", "1", "0.900", "0.800 to 0.950*")
    assert any(line.startswith("* one seed") for line in compare_view.legend([found]))


def test_runs_of_one_seed_are_one_observation(tmp_path: Path) -> None:
    for i, (seed, after) in enumerate([(0, 0.4), (0, 0.6), (1, 0.7)]):
        save(tmp_path / str(i), record(after, SEED=seed, started=f"2026-01-0{i + 1}T00:00:00Z"))
    (group,) = only(tmp_path).groups
    # means 0.5 and 0.7: standard error 0.1, t(0.975; 1) = 12.7062
    assert group.after == pytest.approx((0.6, 0.6 - 1.27062, 0.6 + 1.27062, 2), abs=1e-5)
    assert len(group.runs) == 3
    (group,) = only(tmp_path / "0", tmp_path / "1").groups
    assert group.change == pytest.approx((0.4, 0.3, 0.45, 1))


def test_equal_seeds_have_an_interval_of_no_width() -> None:
    assert compare.t_interval([0.25, 0.25]) == (0.25, 0.25, 0.25, 2)


def test_lower_is_better(tmp_path: Path) -> None:
    for rank, loss, memory in ((4, 2.0, 1), (8, 1.5, 2), (16, 1.75, 3)):
        made = record(0.5, RANK=rank, memory=memory)
        score = {"before": 3.0, "after": loss, "change": loss - 3, "ci95": [loss - 3.1, loss - 2.9], "n": 9}
        made["metrics"]["loss"] = score | {"higher_is_better": False, "verdict": "improved"}
        save(tmp_path / str(rank), made)
    found = only(tmp_path, metric="loss")
    assert not found.higher_is_better
    assert [group.parameters["RANK"] for group in found.groups] == [8, 16, 4]
    assert ["memory" in group.fronts for group in found.groups] == [True, False, True]
    assert "Best loss (lower is better): 1.500" in compare_view.conclusion(found)
    assert compare_view.front_sentence(found, "memory") == (
        "In loss and peak memory 2 of 3 are not beaten, from RANK 4 (2.000 at 0.00 GB) to RANK 8 (1.500 at 0.00 GB): "
        "0.500 better for 2 times as much."
    )
    assert (
        compare_view.over_sentence(found)
        == "loss goes from 2.000 at RANK 4 to 1.750 at RANK 16; it is best at 8 (1.500)."
    )


@pytest.mark.parametrize(
    ("values", "costs", "higher", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], True, [0, 1, 2]),
        ([3, 2, 1], [1, 2, 3], True, [0]),
        ([3, 2, 1], [1, 2, 3], False, [0, 1, 2]),
        ([1, 1, 2, 2], [2, 1, 5, 4], True, [1, 3]),
        ([5, 5], [1, 1], True, [0, 1]),  # equal in both: neither beats the other
        ([9, float("nan"), 2, 1], [float("inf"), 0, 3, 2], True, [3, 2]),
        ([], [], True, []),
    ],
)
def test_front(values: list[float], costs: list[float], higher: bool, expected: list[int]) -> None:
    assert compare.front(values, costs, higher_is_better=higher) == expected


def test_by_pools_and_says_so(sweep: Path) -> None:
    for path in sweep.rglob("results.json"):  # seed 2 with another rate
        made = json.loads(path.read_text())
        made["parameters"]["RATE"] = 0.1 if made["parameters"]["SEED"] == 2 else 1
        path.write_text(json.dumps(made))
    assert only(sweep).by == ("RANK", "RATE") and len(only(sweep).groups) == 5  # the failed run's rate is unknown
    found = only(sweep, by=("RANK",))
    assert [(g.parameters, g.seeds, len(g.failed)) for g in found.groups] == [
        ({"RANK": 8}, 3, 1),
        ({"RANK": 4}, 3, 0),
    ]
    assert found.notes == ["A row pools runs that differ in RATE."]


def test_a_failed_run_that_fits_nowhere_has_a_row(sweep: Path) -> None:
    save(sweep / "d", None, {"parameters": {"RANK": 64}, "started": "2026-01-02T00:00:00Z"})
    found = only(sweep)
    assert [(g.parameters["RANK"], g.seeds, len(g.failed)) for g in found.groups] == [
        (8, 3, 1),
        (4, 3, 0),
        (64, 0, 1),
    ]
    row = compare_view.cells(found)[1][-1]
    assert [cell.text for cell in row[:4]] == ["RANK 64", "0", "none finished", ""] and row[1].second == "1 failed"
    assert all("64" not in drawing.sentence for drawing in compare_view.drawings(found))


def test_values_are_told_apart_as_a_notebook_would(tmp_path: Path) -> None:
    for i, value in enumerate([1, 1.0, True, "1", [1]]):
        save(tmp_path / str(i), record(0.5, EPOCHS=value, SEED=i))
    groups = only(tmp_path).groups
    assert sorted(len(group.runs) for group in groups) == [1, 1, 1, 2]  # 1 and 1.0 are one value


def test_an_older_failure_gives_way_to_a_newer_record(tmp_path: Path) -> None:
    late = {"started": "2026-01-01T00:02:00Z", "finished": "2026-01-01T00:09:00Z"}
    runs, _ = compare.collect(
        [save(tmp_path / "later", record(0.5) | late, {}), save(tmp_path / "same", record(0.5), {})]
    )
    assert [(run.path.name, run.status) for run in runs] == [("later", "ok"), ("same", "kernel_died")]
    assert runs[1].error == "out of memory" and not runs[1].metrics


def test_failed_runs_of_a_renamed_notebook_find_their_recipe(tmp_path: Path) -> None:
    save(tmp_path / "a", record(0.5), {"status": "ok", "notebook": "mine.ipynb"})
    save(tmp_path / "b", None, {"notebook": "mine.ipynb"})
    (group,) = only(tmp_path).groups
    assert (group.seeds, len(group.failed)) == (1, 1)


def test_auto_profile_is_what_it_came_to(tmp_path: Path) -> None:
    for name, given in (("auto", "cpu"), ("cpu", "cpu"), ("smoke", "smoke")):
        save(tmp_path / name, record(0.5, PROFILE=name, SEED=len(name), profile=given))
    assert [group.parameters for group in only(tmp_path).groups] == [{"PROFILE": "cpu"}, {"PROFILE": "smoke"}]


def test_a_run_given_twice_counts_once(sweep: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"  # as a published record: elsewhere, indented, without its folder
    made = json.loads((sweep / "a0" / "results.json").read_text())
    made["parameters"]["OUTPUT_DIR"] = ""
    copy.write_text(json.dumps(made, indent=2))
    runs, faults = compare.collect([sweep, sweep / "a0", sweep / "a0" / "results.json", sweep / "deep", copy])
    assert len(runs) == 7 and not faults


def test_unreadable_records_are_named_and_the_rest_compared(sweep: Path) -> None:
    save(sweep / "x1", None)
    (sweep / "x1" / "results.json").write_text("{oops")
    save(sweep / "x2", record(0.5, headline="f1"))
    save(sweep / "x3", record(0.5, schema_version=results.SCHEMA_VERSION + 1))
    save(sweep / "x4", None, {"status": "ok"})
    save(sweep / "x5", record(0.5), {"status": "lost"})
    (sweep / "x6" / "results.json").mkdir(parents=True)  # a folder of that name is no record
    (sweep / ".hidden").mkdir()
    (sweep / ".hidden" / "results.json").write_text("{oops")
    runs, faults = compare.collect([sweep])
    assert len(runs) == 7
    said = {fault.path.relative_to(sweep).as_posix(): fault.why for fault in faults}
    assert list(said) == [f"x{i}/{'status' if i == 5 else 'results'}.json" for i in range(1, 6)]
    for why, words in zip(
        said.values(), ("JSON", "headline 'f1' is", "written by a newer", "gone", "status"), strict=True
    ):
        assert words in why


def test_older_records_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = record(0.5, schema_version=0)
    old["score"] = old.pop("headline")
    save(tmp_path / "old", old)
    monkeypatch.setitem(
        results.UPGRADES, 0, lambda fields: {("headline" if k == "score" else k): v for k, v in fields.items()}
    )
    assert only(save(tmp_path / "new", record(0.7, SEED=1)), tmp_path / "old").groups[0].seeds == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone"], "gone: no such file or folder"),
        (["."], ".: no run records (results.json or status.json) below it"),
        (["loose"], "given one by one: loose/*.json"),
        (["sweep", "--metric", "acuracy"], "acuracy: no such metric; did you mean accuracy?"),
        (["sweep", "--metric", "zzz"], "zzz: no such metric; the runs have accuracy"),
        (["sweep", "--by", "RANK,RAMK"], "RAMK: no such parameter; did you mean RANK?"),
        (["sweep", "--by", "rank"], "did you mean RANK?"),
        (["sweep/c"], "no run finished: 1 kernel_died"),
        (["sweep", "other", "--metric", "f1", "--by", "RANK"], "no recipe has all that is asked for"),
        (["sweep", "--output-dir", "sweep/a0/results.json"], "cannot be written"),
        ([], "Missing argument"),
    ],
)
def test_bad_requests(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "01.json").write_text(json.dumps(record(0.5)))
    made = record(0.5, recipe="other", headline="f1")
    made["metrics"]["f1"] = made["metrics"].pop("accuracy")
    save(tmp_path / "other", made)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if arguments == ["."] else tmp_path)
    code, out, err = call(capsys, "compare", *arguments)
    assert code == 2 and said in " ".join(err.split()) and "Traceback" not in out + err


def test_several_recipes_have_a_table_each(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = record(0.5, recipe="other", headline="wer")
    made["metrics"]["wer"] = made["metrics"].pop("accuracy") | {"higher_is_better": False}
    made["resources"]["cost"] = {"rate_per_hour": 1.0, "currency": "USD", "amount": 2.5}
    save(sweep / "o", made)
    save(sweep / "p", None, {"notebook": "third.ipynb"})
    done = compare.comparisons(compare.collect([sweep])[0])
    assert [(c.recipe, c.metric, c.higher_is_better) for c in done] == [
        ("other", "wer", False),
        ("tiny", "accuracy", True),
    ]
    assert done[0].notes == ["Left out: third: none of 1 runs finished."]
    (one,) = compare.comparisons(compare.collect([sweep])[0], "accuracy", ["RANK"])
    assert "Left out: other: no metric accuracy." in one.notes
    code, out, err = call(capsys, "compare", str(sweep))
    assert (code, err) == (0, "") and "2.50 USD" in out and out.index("other") < out.index("tiny")
    assert max(map(len, out.splitlines())) <= 120


def test_what_may_not_be_comparable_is_said(tmp_path: Path) -> None:
    first = record(0.5, RANK=4, amount=1.0, environment={"device": "cpu"})
    second = record(
        0.6, RANK=8, amount=2.0, environment={"device": "GPU"}, data=RECORD["data"] | {"fingerprint": "g"}
    )
    second["resources"]["cost"]["currency"] = "USD"
    third = record(0.7, RANK=16, headline="f1")
    third["metrics"]["f1"] = third["metrics"].pop("accuracy")
    for i, made in enumerate((first, second, third)):
        save(tmp_path / str(i), made)
    found = only(tmp_path)
    assert found.metric == "accuracy" and [group.fronts.count("cost") for group in found.groups] == [0, 0]
    assert [note.split(" ")[0] for note in found.notes] == ["Left", "Runs", "Several", "Costs"]
    assert "1 of 3" in found.notes[0] and "(GPU, cpu)" in found.notes[2] and "(EUR, USD)" in found.notes[3]


def test_a_training_that_was_stopped_is_named(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = record(0.9, SEED=9, RANK=4)
    short["resources"]["stopped"] = [{"training": "Loss", "step": 3, "steps": 40}]
    place = save(sweep / "short", short)
    assert only(sweep).notes == [f"Training was stopped by hand in 1 of 7 runs, one of them {place}."]
    console.report(console.terminal(), "tiny", place, results.read(place))
    assert "stopped   Loss: by hand, at step 3 of 40" in capsys.readouterr().out


def test_cost_has_a_front_where_there_is_a_price(tmp_path: Path) -> None:
    for rank, after, amount in ((4, 0.5, 1.0), (8, 0.6, 3.0), (16, 0.55, 4.0)):
        save(tmp_path / str(rank), record(after, RANK=rank, amount=amount))
    found = only(tmp_path)
    assert [(g.parameters["RANK"], "cost" in g.fronts) for g in found.groups] == [(8, True), (16, False), (4, True)]
    head, rows = compare_view.cells(found)
    assert [row[head.index("cost")].text for row in rows] == ["◆ 3.00 EUR", "4.00 EUR", "◆ 1.00 EUR"]
    assert "from RANK 4 (0.500 at 1.00 EUR)" in compare_view.front_sentence(found, "cost")


def test_the_worst_probe_is_the_one_that_lost_the_largest_share(tmp_path: Path) -> None:
    probe = RECORD["forgetting"][0]
    probes = [
        probe | {"probe": "knowledge", "before": 0.8, "after": 0.6, "change": -0.2},  # a quarter
        probe | {"probe": "instructions", "before": 0.2, "after": 0.1, "change": -0.1},  # half
        probe
        | {"probe": "perplexity", "before": 10, "after": 13, "change": 3, "ci95": [2, 4], "higher_is_better": False},
    ]
    (group,) = only(save(tmp_path / "a", record(0.5, forgetting=probes))).groups
    assert (group.probe, group.forgotten) == ("instructions", pytest.approx(-0.1))
    assert group.accuracy_change == pytest.approx(-0.15)
    (group,) = only(save(tmp_path / "b", record(0.5, forgetting=probes[2:]))).groups
    assert (group.probe, group.forgotten, group.accuracy_change) == ("perplexity", 3, None)
    (group,) = only(save(tmp_path / "c", record(0.5, forgetting=[]))).groups
    assert (group.probe, group.forgotten) == ("", None)


def test_table_on_the_terminal(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "bad").mkdir()
    (sweep / "bad" / "results.json").write_text("{")
    code, out, err = call(capsys, "compare", str(sweep))
    assert code == 0 and err.startswith(f"cookbook: left out {sweep}/bad/results.json: Invalid JSON")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "runs seeds accuracy change forgetting memory training size",
        "RANK 8 3 0.800 +0.700 -0.100 ◆ 2.00 GB ◆ 30 s ◆ 5.0 MB",
        "1 failed 0.552 to 1.048 +0.452 to +0.948 arithmetic of 512 s",
        "RANK 4 3 0.600 +0.500 -0.100 ◆ 1.00 GB ◆ 11 s ◆ 0.00 MB",
    ):
        assert line in lines, out
    said = " ".join(lines)
    assert "Best accuracy (higher is better): 0.800, 95 % interval 0.552 to 1.048 over 3 seeds, RANK 8; next:" in said
    assert max(map(len, out.splitlines())) <= 120


class Page(HTMLParser):
    """Every tag with its attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._skip = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._skip = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._skip = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._skip else data


def test_files(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "<script>alert(1)</script>|`x`"
    save(sweep / "e", record(0.3, RANK=2, SEED=0))
    save(sweep / "f", None, {"error": hostile, "started": "2026-01-02T00:00:00Z"})
    save(sweep / "g", record(0.95, RANK=8, SEED=0, NAME=hostile))
    (sweep / "<img src=x>").mkdir()
    (sweep / "<img src=x>" / "results.json").write_text("{")
    out = tmp_path / "new" / "out"
    assert call(capsys, "compare", str(sweep), "--output-dir", str(out))[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["compare.csv", "compare.html", "compare.md", "runs.csv"]

    groups = pd.read_csv(out / "compare.csv")
    assert groups["after"].dropna().is_monotonic_decreasing and groups["RANK"].tolist()[:4] == [8, 8, 4, 2]
    # the failed runs may be of either name, and so of neither group
    assert groups["after"].isna().tolist() == [False] * 4 + [True] * 2 and groups["failed"].tolist()[4:] == [1, 1]
    assert groups["NAME"][0] == hostile and groups["interval_over"][0] == "test rows"
    row = groups[(groups["RANK"] == 4)].iloc[0]
    assert row["after_low"] == pytest.approx(0.6 - 0.2484138)
    assert row["best_in"] == "memory seconds"  # the best is as small
    runs = pd.read_csv(out / "runs.csv")
    assert len(runs) == 10 and runs["status"].value_counts().to_dict() == {"ok": 8, "kernel_died": 2}
    assert runs.query("RANK == 4")["accuracy_after"].tolist() == [0.5, 0.6, 0.7]
    assert {"SEED", "DATA", "OUTPUT_DIR", "accuracy_change_low", "forgetting_arithmetic_change"} <= {*runs.columns}

    markdown = (out / "compare.md").read_text(encoding="utf-8")
    assert "| runs | seeds |" in markdown and "## Failed runs" in markdown
    assert "alert(1)" in markdown and not re.search(r"(?<!\\)[<>`]", markdown)
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1  # every row has as many cells

    html = (out / "compare.html").read_text(encoding="utf-8")
    page = Page(html)
    assert hostile in page.text and "<img src=x>" in page.text and "kernel died" in page.text
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 1 and names.count("img") == 3  # nothing of the records became a tag
    for tag, attributes in page.tags:  # nothing is fetched
        assert tag not in ("link", "iframe", "object", "base") and not attributes.get("href")
        if source := attributes.get("src"):
            head, _, body = source.partition(",")
            assert tag == "img" and head == "data:image/svg+xml;base64" and attributes["alt"]
            svg = base64.b64decode(body)
            assert b"<svg" in svg and b"<script" not in svg and not re.search(rb'(?:href|src)="(?!#)', svg)
    assert "url(" not in html and "@import" not in html and "default-src 'none'" in html
    assert {"lang": "en"} in [attributes for tag, attributes in page.tags if tag == "html"]
    assert any(
        attributes.get("role") == "region" and attributes.get("tabindex") == "0" for _, attributes in page.tags
    )
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)
    assert names.count("figure") == names.count("figcaption") == 3


def test_a_number_that_was_varied_has_a_figure_of_its_own(sweep: Path) -> None:
    drawn = list(compare_view.drawings(only(sweep)))
    assert [drawing.title.removeprefix("tiny: accuracy ") for drawing in drawn] == [
        "over RANK", "against peak memory", "against training time", "against artifact size",
    ]  # fmt: skip
    assert drawn[0].sentence == "accuracy goes from 0.600 at RANK 4 to 0.800 at RANK 8; it is best there (0.800)."
    (after, *_), before = drawn[0].figure.axes[0].containers[0].lines, drawn[0].figure.axes[0].lines[-1]
    assert after.get_xydata().tolist() == [[4, pytest.approx(0.6)], [8, pytest.approx(0.8)]]
    assert before.get_ydata()[0] == pytest.approx(0.1)
    assert [drawing.title for drawing in compare_view.drawings(only(sweep / "a0"))] == []  # nothing to compare with


def test_a_failed_write_leaves_the_old_page(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, faults = compare.collect([sweep])
    done, out = compare.comparisons(runs), tmp_path / "out"
    compare_page.write(out, done, runs, faults)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(RequestError, match="cannot be written .no space left"):
        compare_page.write(out, done[:0], runs, faults)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_thousand_runs_take_seconds_and_no_more_memory_with_details(tmp_path: Path) -> None:
    def kept(make: Callable[[int], dict[str, Any]], name: str) -> int:
        for i in range(500):
            save(tmp_path / name / str(i), record(0.5 + i / 2000, SEED=i % 5, RANK=i // 5) | make(i))
        tracemalloc.start()
        runs, _ = compare.collect([tmp_path / name])
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(runs) == 500
        return held

    bare = kept(lambda _: {}, "bare")
    full = kept(lambda i: {"details": {"text": f"{i}" * 20_000}}, "full")
    assert full < 1.1 * bare < 20e6  # 500 records' details are 27 MB
    begun = time.monotonic()
    (found,) = compare.comparisons(compare.collect([tmp_path])[0])
    assert len(found.groups) == 100 and time.monotonic() - begun < 20


def test_the_library_is_imported_when_needed() -> None:
    heavy = "{'torch', 'pandas', 'scipy', 'matplotlib'}"
    code = f"import sys; from cookbook import compare, compare_view; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
