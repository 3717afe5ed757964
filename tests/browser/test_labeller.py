"""Five pairs labelled in JupyterLab, by keys and by mouse; the file is then read as notebook 05 reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from lab import Opened
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from cookbook import data, pairs

CELL = """\
from cookbook import data, labels, pairs, widgets
given = pairs.load(data.sample("brand_voice"), seed=0)
widgets.label(labels.of_pairs(given.train), {file!r}, "me", seed=0)"""


def test_five_pairs_by_keys_and_mouse(open_notebook: Callable[..., Opened], tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    notebook = new_notebook(cells=[new_code_cell(CELL.format(file=str(file)), id="label")])
    opened = open_notebook("label.ipynb", notebook)
    opened.run_all()
    cell = opened.cell("label")
    key = cell.get_by_placeholder("a, b, t, s, u")

    def done(count: int) -> None:
        expect(cell.get_by_text(re.compile(f"^{count} of .* pairs are labelled by me"))).to_be_visible()
        opened.page.wait_for_timeout(400)  # as long as it takes to read: a choice made sooner is refused

    done(0)
    for count, letter in enumerate("abt", 1):
        key.focus()
        key.press(letter)
        done(count)
    key.focus()
    key.press("u")
    done(2)
    for count, name in enumerate(("B is better", "A is better", "Skip"), 3):
        cell.get_by_role("button", name=name).click()
        done(count)
    opened.screenshots("05-labeller", "label")

    written = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["label"] for row in written] == ["a", "b", "tie", "skip", "b", "a", "skip"]
    assert [number for number, row in enumerate(written) if row.get("undone")] == [3]
    shown = pairs.load(data.sample("brand_voice"), seed=0).train[:5]
    assert [row["prompt"] for row in written] == [shown[i].text for i in (0, 1, 2, 2, 2, 3, 4)]
    read = pairs.load(file, min_rows=(1, 1, 1))
    better = {pair.text: pair.chosen for part in (read.train, read.validation, read.test) for pair in part}
    assert better == {row["prompt"]: row[row["label"]].strip() for row in written if row["label"] in ("a", "b")}
    assert len(better) == 4
