"""Leaf through the data: filter and search it, and look at one row at a time down to its tokens."""

from __future__ import annotations

from typing import Any

import ipywidgets

from cookbook import inspecting, plots
from cookbook.data import Splits
from cookbook.tables import SPLITS
from cookbook.widgets.styling import line, paragraph


def browse(splits: Splits, tokenizer: Any, *, max_length: int = 0, used_with: Any = None) -> ipywidgets.VBox:
    """Filter by split and label, search, and step through what is found.

    Of each row its messages, then its tokens: coloured and underlined those that carry loss, framed those of the
    prompt that only training has, or only use. `inspecting.find` and `inspecting.table` give the same without it.

    Args:
        max_length, used_with: as in `inspecting.tokens`.
    """
    sizes = {split: len(getattr(splits, split)) for split in SPLITS}
    parts = [(f"all ({sum(sizes.values())})", ""), *((f"{name} ({count})", name) for name, count in sizes.items())]
    kinds = [("any", ""), *((f"{name} ({count})", name) for name, count in inspecting.labels(splits).items())]
    split = ipywidgets.Dropdown(options=parts, description="Split")
    label = ipywidgets.Dropdown(options=kinds, description="Label", layout={"width": "auto"})
    text = ipywidgets.Text(description="Search", placeholder="in questions and answers", continuous_update=False)
    place = ipywidgets.BoundedIntText(value=1, min=1, max=1, description="Row")
    before, after = (ipywidgets.Button(description=name) for name in ("Previous", "Next"))
    said, shown = ipywidgets.HTML(), ipywidgets.HTML()
    found: list[inspecting.Row] = []

    def select(_: Any = None) -> None:
        nonlocal found
        found = inspecting.find(splits, split=split.value, label=label.value, text=text.value)
        place.max, place.value = max(1, len(found)), 1
        show()

    def show(_: Any = None) -> None:
        if not found:
            said.value, shown.value = line("No row is like that."), ""
            return
        name, example = found[place.value - 1]
        said.value = line(f"Row {place.value} of {len(found)}: {example.source}, {name}")
        turns = [*example.prompt, {"role": "assistant", "content": example.completion}]
        seen = inspecting.tokens(example, tokenizer, max_length=max_length, used_with=used_with)
        strips = [("Trained on", plots.token_strip(seen.trained, seen.loss, seen.trained_only))]
        if seen.trained_only or seen.asked_only:
            strips.append(("Asked with", plots.token_strip(seen.asked, [False] * len(seen.asked), seen.asked_only)))
        shown.value = (
            "".join(paragraph(turn["content"], title=turn["role"]) for turn in turns)
            + line(str(seen))
            + "".join(f"<b>{title}</b>{strip.data}" for title, strip in strips)
        )

    def step(by: int) -> None:
        place.value = min(max(1, place.value + by), place.max)

    for control in (split, label, text):
        control.observe(select, "value")
    place.observe(show, "value")
    before.on_click(lambda _: step(-1))
    after.on_click(lambda _: step(1))
    select()
    row = {"flex_flow": "row wrap"}
    return ipywidgets.VBox(
        [
            ipywidgets.HBox([split, label, text], layout=row),
            ipywidgets.HBox([before, after, place], layout=row),
            said,
            shown,
        ]
    )
