"""Labelling pairs: the file is read as it is by `cookbook.pairs`, whatever was undone, torn off or written by two."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets
import pytest

from cookbook import agreement, labels, pairs
from cookbook.tables import DataError
from cookbook.widgets import label, labelling

ASKED = [
    labels.Question(f"message {i}", f"first answer {i}", f"second answer {i}", {"kind": "ordinary"})
    for i in range(12)
]


def task(file: Path, labeller: str = "ann", count: int = len(ASKED)) -> labels.Labelling:
    return labels.Labelling(file, ASKED[:count], labeller)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def used(file: Path) -> dict[str, str]:
    """What notebook 05 would train on: the chosen answer by message."""
    read = pairs.load(file, min_rows=(0, 0, 0), test_share=0, validation_share=0)
    return {pair.text: pair.chosen for pair in read.train}


def test_sides_follow_the_seed_and_are_written_down(tmp_path: Path) -> None:
    seen = []
    for name in ("one", "two"):
        mine = task(tmp_path / f"{name}.jsonl")
        while shown := mine.next():
            mine.give(shown, "a")
        seen.append(lines(mine.file))
    assert seen[0] == seen[1] and len(seen[0]) == len(ASKED)
    assert {row["swapped"] for row in seen[0]} == {True, False}
    for row, question in zip(seen[0], ASKED, strict=True):
        assert (row["b"], row["a"]) == question[1:3] if row["swapped"] else (row["a"], row["b"]) == question[1:3]
        assert row["labeller"] == "ann" and row["kind"] == "ordinary"
    other = task(tmp_path / "three.jsonl", "bob")
    other.give(other.next(), "a")
    sides = [labels.Labelling(tmp_path / "s.jsonl", ASKED, "ann", seed=seed).next()["swapped"] for seed in range(20)]
    assert set(sides) == {True, False}
    assert used(tmp_path / "one.jsonl") == {row["prompt"]: row["a"] for row in seen[0]}


def test_it_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    first = task(tmp_path / "l.jsonl")
    for name in ("a", "tie", "skip"):
        first.give(first.next(), name)
    again = task(tmp_path / "l.jsonl")
    assert again.next()["prompt"] == "message 3" and again.left() == 9
    assert task(tmp_path / "l.jsonl", "bob").left() == 12
    assert len(used(tmp_path / "l.jsonl")) == 1


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_undone_the_file_says_what_stands(tmp_path: Path, seed: int) -> None:
    """Two people label, label again and undo at random; a plain list of what stands is kept beside it."""
    draw, file = random.Random(seed), tmp_path / "l.jsonl"
    stands: dict[str, list[tuple[str, dict[str, Any], str]]] = {"ann": [], "bob": []}
    for _ in range(80):
        who = draw.choice(["ann", "bob"])
        mine, said = task(file, who), stands[who]
        if draw.random() < 0.4:
            gone = mine.undo()
            assert (gone or {}).get("label") == (said.pop()[2] if said else None)
            continue
        shown = mine.next() if draw.random() < 0.7 else None
        if not shown and said:  # a second thought on an older pair
            shown = draw.choice(said)[1]
        if shown:
            said.append((shown["prompt"], shown, draw.choice(pairs.LABELS)))
            mine.give(shown, said[-1][2])
        assert {r["prompt"]: r["label"] for r in mine.given().values()} == {p: name for p, _, name in said}
    chosen: dict[str, set[str]] = {}
    for said in stands.values():
        for prompt, row, name in {prompt: (prompt, row, name) for prompt, row, name in said}.values():
            if name != "skip":
                chosen.setdefault(prompt, set()).add(row.get(name, "tie"))
    assert used(file) == {p: next(iter(c)) for p, c in chosen.items() if len(c) == 1 and c != {"tie"}}
    assert len(lines(file)) >= sum(map(len, stands.values()))


def test_a_torn_last_line_is_removed_and_a_whole_one_kept(tmp_path: Path) -> None:
    file = tmp_path / "l.jsonl"
    mine = task(file)
    for _ in range(2):
        mine.give(mine.next(), "b")
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    mine = task(file)
    assert "cut off by a crash" in mine.mended and mine.next()["prompt"] == "message 1"
    assert file.read_bytes() == whole.splitlines(keepends=True)[0]
    file.write_bytes(whole[:-1])
    mine = task(file)
    mine.give(mine.next(), "a")
    assert not mine.mended and [row["prompt"] for row in lines(file)] == ["message 0", "message 1", "message 2"]
    assert len(used(file)) == 3


def press_many(file: Path, who: str) -> None:
    mine = task(file, who)
    for turn in range(len(ASKED)):
        mine.give(mine.next(), "ab"[turn % 2])
        mine.undo()
        mine.give(mine.next(), "a")


def test_two_windows_on_one_file_do_not_harm_it(tmp_path: Path) -> None:
    file = tmp_path / "l.jsonl"
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=press_many, args=(file, who)) for who in ("ann", "bob")]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(lines(file)) == 2 * 3 * len(ASKED)
    assert labels.progress(file).to_dict("index") == {
        who: {"labelled": 12, "a": 12, "b": 0, "tie": 0, "skip": 0} for who in ("ann", "bob")
    }


@pytest.mark.parametrize(
    ("file", "who", "asked", "said"),
    [
        ("l.csv", "ann", ASKED, "l.csv: labels are lines of JSON"),
        ("l.jsonl", " ", ASKED, "labeller: give a name"),
        ("l.jsonl", "ann", [*ASKED, labels.Question("m", " ", "x")], "question 13: empty"),
        ("other.jsonl", "ann", ASKED, "other.jsonl:2: column 'a' is missing"),
        ("other.jsonl/l.jsonl", "ann", ASKED, "l.jsonl: cannot be read or written .File exists"),
    ],
)
def test_what_cannot_be_labelled_is_refused(tmp_path: Path, file: str, who: str, asked: list, said: str) -> None:
    row = {"prompt": "m", "a": "x", "b": "y", "label": "a", "labeller": "ann"}
    (tmp_path / "other.jsonl").write_text(json.dumps(row) + '\n{"prompt": "m"}\n')
    with pytest.raises(DataError, match=said):
        labels.Labelling(tmp_path / file, asked, who)


def test_agreement_has_an_interval(tmp_path: Path) -> None:
    draw = random.Random(0)
    one = [draw.choice("aabt") for _ in range(200)]
    two = [first if draw.random() < 0.7 else draw.choice("abt") for first in one]
    low, high = agreement.interval(one, two)
    assert low < agreement.kappa(one, two) < high and 0.1 < high - low < 0.3
    drawn = [draw.choices(range(200), k=200) for _ in range(1000)]
    by_hand = sorted(agreement.kappa([one[i] for i in d], [two[i] for i in d]) for d in drawn)
    assert low == pytest.approx(by_hand[25], abs=0.03) and high == pytest.approx(by_hand[974], abs=0.03)
    assert agreement.interval(["a", "a"], ["a", "a"]) == (1, 1)
    file = tmp_path / "l.jsonl"
    for who, wanted in (("ann", "first"), ("bob", "first"), ("eve", "second")):
        mine = task(file, who)
        for turn in range(8 if who != "bob" else 4):
            shown = mine.next()
            side = "a" if shown["a"].startswith(wanted) else "b"
            mine.give(shown, side if turn else "tie")
    table = labels.agreement(file)
    assert table["pairs"].to_dict() == {"ann and bob": 4, "ann and eve": 8, "bob and eve": 4}
    assert table.loc["ann and bob", "kappa"] == 1 and table.loc["ann and eve", "kappa"] < 0.2
    assert list(table.columns) == ["pairs", "agree", "kappa", "ci95 low", "ci95 high"]
    assert labels.agreement(tmp_path / "none.jsonl").empty and labels.progress(tmp_path / "none.jsonl").empty


def parts(box: ipywidgets.VBox) -> dict[str, Any]:
    state, asked, sides, row, said, look, tables = box.children
    *choices, undo, key = row.children
    names = dict(zip(("a", "b", "tie", "skip"), choices, strict=True))
    return names | {
        **{"state": state, "asked": asked, "sides": sides.children, "undo": undo, "key": key, "said": said},
        **{"look": look, "tables": tables},
    }


def test_a_click_too_many_on_a_slow_kernel_labels_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 5.0, 5.01, 5.01, 9.0, 9.0])  # shown, clicked, shown, clicked again in the queue, …
    monkeypatch.setattr(labelling, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    w = parts(label(ASKED[:4], tmp_path / "l.jsonl", "ann"))
    w["a"].click(), w["a"].click()
    assert "1 of 4" in w["state"].value and "Too fast" in w["said"].value
    w["a"].click()
    assert "2 of 4" in w["state"].value


def test_the_widget_by_mouse_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "PAUSE", 0)
    file = tmp_path / "l.jsonl"
    asked = [labels.Question("<b>m</b>", "x & y", "z"), *ASKED[:4], labels.Question("same", "x", " x ")]
    w = parts(label(asked, file, "ann"))
    assert "0 of 5 pairs" in w["state"].value and "1 pairs with equal answers" in w["said"].value
    assert "&lt;b&gt;m&lt;/b&gt;" in w["asked"].value and "<b>m" not in w["asked"].value
    assert {"x &amp; y", "z"} == {t for t in ("x &amp; y", "z") if any(f">{t}<" in s.value for s in w["sides"])}
    w["a"].click()
    w["key"].set_state({"value": "t"})  # as the browser sends it
    assert w["key"].value == "" and "2 of 5" in w["state"].value and "Written: tie" in w["said"].value
    w["key"].set_state({"value": "u"})
    assert "1 of 5" in w["state"].value and "Taken back: tie" in w["said"].value
    for typed in ("S", "x", "ab"):
        w["key"].set_state({"value": typed})
    assert "2 of 5" in w["state"].value and "one at a time" in w["said"].value
    w["b"].click(), w["key"].set_state({"value": "b"}), w["tie"].click()
    assert "5 of 5" in w["state"].value and "All pairs are labelled" in w["asked"].value and w["a"].disabled
    w["key"].set_state({"value": "a"})
    assert "nothing left to label" in w["said"].value
    assert [row["label"] for row in lines(file)] == ["a", "tie", "skip", "skip", "b", "b", "tie"]
    w["look"].click()
    assert "<td>5</td>" in w["tables"].value
    file.write_text("no labels\n")
    w["undo"].click()
    assert "l.jsonl:1: invalid JSON" in w["said"].value
