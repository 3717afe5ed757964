"""The figures say what the numbers say, have units and a light background, and leave nothing open."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from cookbook import cards, plots

FIGURES: dict[str, Callable[[], Figure]] = {
    "losses": lambda: plots.losses([(1, 2.0), (2, 1.0)], [(2, 1.5)], title="a", steps=2),
    "losses, nothing yet": lambda: plots.losses([], [], title="a", steps=2),
    "before_after": lambda: plots.before_after(["x", "y"], {"a": [0, 1], "b": [0.5, 1]}, title="a", xlabel="share"),
    "confusion": lambda: plots.confusion(["x", "y"], ["x", "z"], ["x", "y"], title="a"),
    "trade_off": lambda: plots.trade_off(
        [0.5, 0.7, 0.6],
        [1, 2, 3],
        ["a", "b", "c"],
        front=[0, 1],
        title="a",
        xlabel="GB",
        ylabel="share",
        intervals=[(0.4, 0.6), (0.6, 0.8), (0.55, 0.6)],
        named="RANK",
    ),
    "trade_off, one point": lambda: plots.trade_off([0.5], [1], ["a"], front=[0], title="a", xlabel="x", ylabel="y"),
    "over": lambda: plots.over([1, 8], [0.5, 0.6], title="a", xlabel="x", ylabel="y", before=0.1, log=True),
    "curve": lambda: plots.curve([25, 50], {"a": [0.1, 0.2]}, title="a", xlabel="rows", ylabel="share"),
}


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.axes[0].texts]


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_every_figure(draw: Callable[[], Figure]) -> None:
    figure, png = draw(), BytesIO()
    axes = figure.axes[0]
    assert axes.get_title() == "a" and axes.get_xlabel() and (axes.get_ylabel() or len(axes.get_yticklabels()))
    assert figure.get_facecolor() == (1, 1, 1, 1) and not plt.get_fignums(), "closed, so that it is shown once"
    figure.savefig(png, format="png")
    assert png.getvalue().startswith(b"\x89PNG")


def test_losses() -> None:
    axes = FIGURES["losses"]().axes[0]
    assert [line.get_label() for line in axes.lines] == ["training", "validation"]
    assert axes.lines[0].get_xydata().tolist() == [[1, 2], [2, 1]] and axes.get_ylim()[0] == 0
    assert "of 2" in axes.get_xlabel() and "nats" in axes.get_ylabel()


def test_series_differ_by_more_than_colour() -> None:
    bars = FIGURES["before_after"]().axes[0].patches
    assert len({bar.get_hatch() for bar in bars}) == 2
    assert [bar.get_width() for bar in bars] == [0, 1, 0.5, 1]
    lines = plots.curve([1, 2], {k: [1, 2] for k in "abcd"}, title="", xlabel="x", ylabel="y").axes[0].lines
    assert len({line.get_linestyle() for line in lines}) == len({line.get_marker() for line in lines}) == 4


def test_confusion_counts() -> None:
    figure = plots.confusion(["x", "x", "y", "y"], ["x", "x", "x", ""], ["x", "y"], title="a")
    assert np.asarray(figure.axes[0].images[0].get_array()).tolist() == [[2, 0, 0], [1, 0, 1]]
    assert texts(figure) == ["2", "1", "1"]


def test_confusion_of_a_label_called_other() -> None:
    """A label of this name is not the same as an answer that is none of the labels."""
    figure = plots.confusion(["other", "other", "x"], ["other", "junk", "other"], ["other", "x"], title="a")
    assert np.asarray(figure.axes[0].images[0].get_array()).tolist() == [[1, 0, 1], [1, 0, 0]]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["other", "x", "none of these"]


def test_trade_off_shows_the_front_and_intervals() -> None:
    axes = FIGURES["trade_off"]().axes[0]
    front, *points = axes.lines
    assert front.get_drawstyle() == "steps-post" and front.get_xydata().tolist() == [[1, 0.5], [2, 0.7]]
    assert [line.get_xydata().tolist() for line in points] == [[[3, 0.6]], [[1, 0.5], [2, 0.7]]]
    assert len({line.get_marker() for line in points}) == 2, "told apart without colour"
    ends = [path.vertices[:, 1].tolist() for bars in axes.collections for path in bars.get_paths()]
    assert np.allclose(ends, [[0.55, 0.6], [0.4, 0.6], [0.6, 0.8]])


def test_names_of_a_full_figure_do_not_overlap() -> None:
    random = np.random.default_rng(0)
    costs, values = random.uniform(1, 100, 60), random.uniform(0, 1, 60)
    front = [int(np.argmin(costs)), int(np.argmax(values))]
    names = [f"run {i}" for i in range(60)]
    figure = plots.trade_off(values, costs, names, front=front, title="a", xlabel="x", ylabel="y", log=True)
    assert {*texts(figure)} == {names[i] for i in front}, "among so many only the front is named"
    few = plots.trade_off(values[:9], costs[:9], names[:9], front=[0], title="a", xlabel="x", ylabel="y")
    few.canvas.draw()
    boxes = [label.get_window_extent() for label in few.axes[0].texts]
    assert len(boxes) > 4 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_token_strip_escapes() -> None:
    html: Any = plots.token_strip(["<b>", " a\n"], [False, True]).data
    assert "&lt;b&gt;" in html and "<b>" not in html and "&nbsp;a&#9166;" in html
    assert html.count("underline") == 1
    with pytest.raises(ValueError):
        plots.token_strip(["a"], [])


def test_markdown_table() -> None:
    import pandas as pd

    table = pd.DataFrame({"before": ["0.1"], "n": [4]}, index=pd.Index(["f1"], name="metric"))
    assert cards.markdown(table) == "| metric | before | n |\n| --- | --- | --- |\n| f1 | 0.1 | 4 |"
