"""Explore a folder of runs: choose the score and the grouping, see the table, a figure, and one run in full."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets

from cookbook import compare, compare_page, compare_view
from cookbook.recipes import RequestError
from cookbook.widgets.styling import line


def explore(folder: Path | str) -> ipywidgets.VBox:
    """The runs in a folder, as `cookbook compare` shows them, with its choices as controls.

    `compare.collect`, `compare.comparisons` and `compare_view.drawings` give the same without a widget.
    """
    recipe, metric, figure, run = (
        ipywidgets.Dropdown(description=name, options=[("", "")], layout={"width": "auto"})
        for name in ("Recipe", "Score", "Figure", "Run")
    )
    by = ipywidgets.HBox(layout={"flex_flow": "row wrap"})
    again = ipywidgets.Button(description="Read again")
    said, table, drawn, detail = (ipywidgets.HTML() for _ in range(4))
    runs: dict[str, list[compare.Run]] = {}
    drawings: dict[str, compare_view.Drawing] = {}

    def read(_: Any = None) -> None:
        runs.clear()
        try:
            found, faults = compare.collect([folder])
            finished = {one.recipe for one in found if one.status == "ok"}
            if not finished:
                raise RequestError(f"{folder}: none of {len(found)} runs finished")
        except RequestError as error:
            said.value = line(str(error))
            _offer(recipe, [], choose_recipe)
            return
        said.value = compare_page.list_html(f"left out {path}: {why}" for path, why in faults)
        for one in found:
            runs.setdefault(one.recipe, []).append(one)
        _offer(recipe, [(f"{name} ({len(runs[name])} runs)", name) for name in sorted(finished)], choose_recipe)

    def choose_recipe(_: Any = None) -> None:
        own = runs.get(recipe.value, [])
        scores = sorted({name for one in own for name in one.metrics})
        whole = compare.comparisons(own)[0] if own else None
        varied = whole.by if whole else ()
        by.children = [
            ipywidgets.Checkbox(True, description=name, indent=False, layout={"width": "auto"}) for name in varied
        ]
        for box in by.children:
            box.observe(show, "value")
        headline = whole.metric if whole else ""
        _offer(metric, sorted(((name, name) for name in scores), key=lambda pair: pair[1] != headline), show)
        base = Path(folder)
        places = [
            (str(one.path.relative_to(base) if one.path.is_relative_to(base) else one.path), i)
            for i, one in enumerate(own)
        ]
        _offer(run, places, show_run)

    def show(_: Any = None) -> None:
        drawings.clear()
        table.value = ""
        own = runs.get(recipe.value)
        if own:
            grouping = [box.description for box in by.children if box.value]
            try:
                (one,) = compare.comparisons(own, metric.value, grouping)
                drawings.update({drawing.title: drawing for drawing in compare_view.drawings(one)})
                notes = [compare_view.conclusion(one), *one.notes, *compare_view.legend([one])]
                table.value = compare_page.table_html(one) + compare_page.list_html(notes)
            except RequestError as error:
                table.value = line(str(error))
        _offer(figure, [(title, title) for title in drawings], show_figure)

    def show_figure(_: Any = None) -> None:
        drawing = drawings.get(figure.value)
        if not drawing:
            drawn.value = ""
            return
        source, title = compare_page.data_uri(drawing.figure), escape(drawing.title, quote=True)
        drawn.value = f'<img src="{source}" alt="{title}" style="max-width:100%">{line(drawing.sentence)}'

    def show_run(_: Any = None) -> None:
        own = runs.get(recipe.value)
        detail.value = compare_page.runs_table([own[run.value]]).T.to_html(header=False, na_rep="") if own else ""

    for control, act in ((recipe, choose_recipe), (metric, show), (figure, show_figure), (run, show_run)):
        control.observe(act, "value")
    again.on_click(read)
    read()
    return ipywidgets.VBox(
        [
            ipywidgets.HBox([recipe, metric, again], layout={"flex_flow": "row wrap"}),
            ipywidgets.HBox([ipywidgets.Label("Grouped by (nothing chosen: all that differ)"), by]),
            said,
            table,
            figure,
            drawn,
            run,
            detail,
        ]
    )


def _offer(control: ipywidgets.Dropdown, options: Sequence[tuple[str, Any]], act: Any) -> None:
    """Give a dropdown other options, the first of them chosen, and act once, also if the value is the old one."""
    control.unobserve(act, "value")
    control.options = options or [("", "")]
    control.value = control.options[0][1]
    control.observe(act, "value")
    act()
