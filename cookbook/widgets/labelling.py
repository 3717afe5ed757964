"""Choose between two answers, pair by pair, by mouse or by keys; the file is what notebook 05 reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets

from cookbook import labels
from cookbook.tables import DataError
from cookbook.widgets.styling import line, paragraph

KEYS = {"a": "a", "b": "b", "t": "tie", "s": "skip"}
UNDO = "u"
PAUSE = 0.3  # seconds that a pair must have been shown: a second click on a slow kernel was meant for the one before
WORDS = {"a": "A is better (a)", "b": "B is better (b)", "tie": "Tie (t)", "skip": "Skip (s)"}


def label(questions: Sequence[labels.Question], file: Path | str, labeller: str, *, seed: int = 0) -> ipywidgets.VBox:
    """Show pair after pair with its answers on sides drawn by lot, and add each choice to `file`.

    With the cursor in the field "Key", a typed a, b, t, s or u acts at once. Opened again, it goes on where the file
    ends; `labels.progress` and `labels.agreement` give the tables that it shows.

    Raises:
        DataError: as `labels.Labelling` does.
    """
    task = labels.Labelling(file, questions, labeller, seed=seed)
    wide = {"flex": "1 1 20em", "width": "auto"}
    state, asked, said, tables = (ipywidgets.HTML() for _ in range(4))
    sides = [ipywidgets.HTML(layout=wide) for _ in range(2)]
    key = ipywidgets.Text(description="Key", placeholder="a, b, t, s, u", layout={"width": "14em"})
    choices = {name: ipywidgets.Button(description=text) for name, text in WORDS.items()}
    undo = ipywidgets.Button(description="Undo (u)")
    look = ipywidgets.Button(description="Progress, agreement", layout={"width": "14em"})
    row = {"flex_flow": "row wrap"}
    shown: dict[str, Any] = {}
    since = 0.0

    def show() -> None:
        nonlocal shown, since
        shown, total = task.next() or {}, len(task.questions)
        left = task.left() if shown else 0
        state.value = line(f"{total - left} of {total} pairs are labelled by {task.labeller}, in {task.file.name}.")
        asked.value = paragraph(shown["prompt"], title="Message") if shown else line("All pairs are labelled.")
        for side, name in zip(sides, "ab", strict=True):
            side.value = paragraph(shown[name], title=f"Answer {name.upper()}") if shown else ""
        for button in choices.values():
            button.disabled = not shown
        since = time.monotonic()

    def act(what: Callable[[], str]) -> None:
        try:
            said.value = line(what())
            show()
        except DataError as error:
            said.value = line(str(error))

    def choose(name: str) -> str:
        if not shown:
            return "There is nothing left to label."
        if time.monotonic() - since < PAUSE:
            return "Too fast for this pair to have been read: not written."
        task.give(shown, name)
        return f"Written: {name}."

    def take_back() -> str:
        gone = task.undo()
        return f"Taken back: {gone['label']}." if gone else "There is nothing to take back."

    def typed(change: Any) -> None:
        letters = change["new"].strip().lower()
        if not letters:
            return
        key.value = ""
        if letters == UNDO:
            act(take_back)
        elif letters in KEYS:
            act(partial(choose, KEYS[letters]))
        else:  # of several letters at once nobody knows which pair they were meant for
            said.value = line(f"{letters}: no such key; one at a time, of a, b, t, s and u.")

    def summary() -> str:
        found = labels.progress(task.file), labels.agreement(task.file)
        tables.value = "".join(table.reset_index().to_html(index=False) for table in found if len(table))
        return ""

    key.observe(typed, "value")
    for name, button in choices.items():
        button.on_click(lambda _, name=name: act(partial(choose, name)))
    undo.on_click(lambda _: act(take_back))
    look.on_click(lambda _: act(summary))
    same = f"{task.same} pairs with equal answers are left out." if task.same else ""
    act(lambda: f"{task.mended} {same}".strip())
    return ipywidgets.VBox(
        [
            state,
            asked,
            ipywidgets.HBox(sides, layout=row),
            ipywidgets.HBox([*choices.values(), undo, key], layout=row),
            said,
            look,
            tables,
        ]
    )
