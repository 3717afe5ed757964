"""The figures of the notebooks: light opaque background, line style as well as colour, axes with units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

STYLE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": 96,
}
BEFORE, AFTER, THIRD = "#9aa5b1", "#1f6fb2", "#d97706"
PLACES = ((7, 5), (-7, 5), (7, -5), (-7, -5), (0, 9), (0, -9), (14, 14), (-14, 14), (14, -14), (-14, -14))
MOST_NAMES = 20  # in a fuller figure only points on the front are named, and of a longer front every second or so


def losses(
    train: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]], *, title: str, steps: int
) -> Figure:
    """Training loss a step and validation loss where it was measured; both are (step, nats a token) pairs."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
        if train:
            axes.plot(*zip(*train, strict=True), color=AFTER, label="training")
        if validation:
            axes.plot(*zip(*validation, strict=True), "o--", color=THIRD, label="validation")
        axes.set(title=title, xlabel=f"optimiser step (of {steps})", ylabel="loss (nats a token)")
        axes.set_ylim(bottom=0)
        if axes.lines:
            axes.legend(frameon=False)
    plt.close(figure)
    return figure


def token_strip(tokens: Sequence[str], supervised: Sequence[bool], marked: Collection[int] = ()) -> HTML:
    """Tokens in boxes: grey ones are read, coloured and underlined ones carry loss, framed ones are `marked`."""
    look = "background:#eef0f2;color:#444", "background:#d6e8f7;color:#0b3d66;text-decoration:underline"
    boxes = "".join(
        f'<span style="{look[bool(on)]}{";outline:2px dashed #d97706" if place in marked else ""};padding:1px 3px;'
        f'margin:1px;border-radius:3px;display:inline-block">'
        f"{escape(token).replace(chr(10), '&#9166;').replace(' ', '&nbsp;')}</span>"
        for place, (token, on) in enumerate(zip(tokens, supervised, strict=True))
    )
    return HTML(f'<div style="font-family:monospace;font-size:12px;line-height:1.7">{boxes}</div>')


def before_after(names: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str, xlabel: str) -> Figure:
    """Horizontal bars, one group a name: for example accuracy per label before and after (0 to 1)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.42 * len(names) + 1.2), layout="constrained")
        height, y = 0.8 / len(series), np.arange(len(names))
        looks = zip((BEFORE, THIRD, AFTER), ("//", "..", ""), strict=True)
        for i, ((label, values), (colour, hatch)) in enumerate(zip(series.items(), looks, strict=False)):
            axes.barh(
                y + (i - (len(series) - 1) / 2) * height, values, height, label=label, color=colour, hatch=hatch,
                edgecolor="white",
            )  # fmt: skip
        axes.set_yticks(y, names)
        axes.invert_yaxis()
        axes.set(title=title, xlabel=xlabel, xlim=(0, 1.02))
        axes.grid(axis="y", visible=False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    plt.close(figure)
    return figure


def confusion(expected: Sequence[str], given: Sequence[str], labels: Sequence[str], *, title: str) -> Figure:
    """Rows: expected label; columns: given label, the last for answers that are none of them. Counts in cells."""
    columns = [*labels, None]  # a label may itself be called "other"
    counts = Counter((e, g if g in labels else None) for e, g in zip(expected, given, strict=True))
    grid = np.array([[counts[e, g] for g in columns] for e in labels])
    side = 0.42 * len(labels) + 2
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(side + 0.6, side), layout="constrained")
        axes.imshow(grid, cmap="Blues", vmin=0)
        axes.set_xticks(range(len(columns)), [*labels, "none of these"], rotation=60, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.set(title=title, xlabel="given", ylabel="expected")
        for (i, j), count in np.ndenumerate(grid):
            if count:
                dark = count > grid.max() / 2
                axes.text(j, i, str(count), ha="center", va="center", color="white" if dark else "black", size=8)
    plt.close(figure)
    return figure


def curve(
    x: Sequence[float], series: Mapping[str, Sequence[float]], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """Lines over a logarithmic x axis: for example scores over the number of training rows."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
        for (label, values), style in zip(series.items(), ("o-", "s--", "^:", "d-."), strict=False):
            axes.plot(x, values, style, label=label)
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{v:g}" for v in x])
        axes.minorticks_off()
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.legend(frameon=False)
    plt.close(figure)
    return figure


def points(
    x: Sequence[float], y: Sequence[float], names: Sequence[str], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """One named point each: for example what ways to train gained against what they kept."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
        for place, marker, name in zip(zip(x, y, strict=True), "os^vDPX*" * len(names), names, strict=False):
            axes.plot(*place, marker, markersize=9, label=name)
            axes.annotate(name, place, xytext=(7, 5), textcoords="offset points")
        axes.margins(0.2)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    plt.close(figure)
    return figure


def matrix(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """A table of shares (0 to 1) in colour, with the numbers in it: for example each adapter on each test set."""
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(1.1 * len(columns) + 2.4, 0.55 * len(rows) + 1.4), layout="constrained")
        axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        for (i, j), value in np.ndenumerate(values):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.5 else "black")
    plt.close(figure)
    return figure


def steps(
    series: Mapping[str, Sequence[tuple[int, float]]], *, title: str, ylabel: str, last: int | None = None
) -> Figure:
    """Lines of (step, value) pairs; those named validation, measured now and then, have marks and dashes."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
        for name, points in series.items():
            held = "validation" in name
            colour = BEFORE if "rejected" in name and not held else THIRD if held else AFTER
            style = ("s--" if "rejected" in name else "o--") if held else (":" if "rejected" in name else "-")
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, label=name)
        axes.set(title=title, xlabel="optimiser step" + (f" (of {last})" if last else ""), ylabel=ylabel)
        if axes.lines:
            axes.legend(frameon=False)
    plt.close(figure)
    return figure


def spectrograms(pictures: Mapping[str, np.ndarray], *, seconds: float, title: str) -> Figure:
    """Log-mel spectrograms one above the other, each (mel bands, frames) as the model reads it."""
    with plt.rc_context(STYLE | {"axes.grid": False, "figure.dpi": 80}):  # noise does not compress
        figure, axes = plt.subplots(
            len(pictures), figsize=(7.5, 1.5 * len(pictures) + 0.8), sharex=True, layout="constrained", squeeze=False
        )
        for row, (name, values) in zip(axes[:, 0], pictures.items(), strict=True):
            frames = min(values.shape[1], round(values.shape[1] * seconds / 30))
            picture = row.imshow(
                values[:, :frames], origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, len(values))
            )
            row.set(title=name, ylabel="mel band")
        row.set_xlabel("seconds")
        figure.colorbar(picture, ax=axes, label="log energy, scaled")
        figure.suptitle(title)
    plt.close(figure)
    return figure


def trade_off(
    values: Sequence[float],
    costs: Sequence[float],
    names: Sequence[str],
    *,
    front: Sequence[int],
    title: str,
    xlabel: str,
    ylabel: str,
    intervals: Sequence[tuple[float, float]] | None = None,
    log: bool = False,
    named: str = "",
) -> Figure:
    """A score against what it costs, a named point each, and the steps of the Pareto front.

    Points on the front (`front`: indices, see `compare.front`) are filled and always named, the others where there
    is room. `intervals` are (low, high) of each value; `log` makes the cost axis logarithmic, with every cost above
    0; `named` says in the legend what the names are made of.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        lows, highs = zip(*(intervals or [(value, value) for value in values]), strict=True)
        steps = sorted((costs[i], values[i]) for i in front)
        axes.plot(*zip(*steps, strict=True), "-", color=AFTER, drawstyle="steps-post", label="front", zorder=1)
        others = [i for i in range(len(values)) if i not in set(front)]
        looks = (others, "#5f6b76", "white", "s", "beaten by another"), (front, AFTER, AFTER, "o", "not beaten")
        for part, colour, face, marker, label in looks:
            if part:
                x, y = [costs[i] for i in part], [values[i] for i in part]
                ends = [[values[i] - lows[i] for i in part], [highs[i] - values[i] for i in part]]
                axes.errorbar(x, y, np.clip(ends, 0, None), fmt="none", ecolor=colour, alpha=0.5, zorder=2)
                axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=7, label=label, zorder=3)
        axes.margins(0.1)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        named = f"named by {named}" if named else None
        figure.legend(frameon=False, loc="outside lower center", ncols=3, title=named)
        _name_points(figure, list(zip(costs, lows, values, highs, names, strict=True)), [*front, *others], len(front))
    plt.close(figure)
    return figure


def _name_points(
    figure: Figure, points: Sequence[tuple[float, float, float, float, str]], order: Sequence[int], always: int
) -> None:
    """Write each point's name at the first place around it that is free; past `always`, drop what has none."""
    figure.canvas.draw()  # the layout decides what overlaps
    axes, taken = figure.axes[0], []
    for x, low, value, high, _ in points:
        (left, bottom), (right, top) = axes.transData.transform([(x, low), (x, high)])
        taken.append(Bbox.from_extents(left - 2, bottom, right + 2, top))
        across, up = axes.transData.transform((x, value))
        taken.append(Bbox.from_extents(across - 5, up - 5, across + 5, up + 5))
    steps = axes.transData.transform(sorted(points[i][0:3:2] for i in order[:always]))
    for (left, level), (right, after) in zip(steps, steps[1:], strict=False):
        taken.append(Bbox.from_extents(left, level - 2, right, level + 2))
        taken.append(Bbox.from_extents(right - 1, min(level, after), right + 1, max(level, after)))
    named = order if len(points) <= MOST_NAMES else order[:always][:: 1 + always // MOST_NAMES]
    for rank, i in enumerate(named):
        x, _, value, _, name = points[i]
        label, tried = axes.annotate(name, (x, value), xytext=(0, 0), textcoords="offset points", fontsize=8), []
        label.set_in_layout(False)
        for place in PLACES:
            _move(label, place)
            box = label.get_window_extent()
            outside = not all(axes.bbox.contains(*corner) for corner in box.get_points())
            tried.append((3 * outside + box.count_overlaps(taken), place))
            if not tried[-1][0]:
                break
        faults, place = min(tried, key=lambda one: one[0])
        _move(label, place)
        if not faults or rank < always <= MOST_NAMES:
            taken.append(label.get_window_extent())
        else:
            label.remove()


def _move(label: Annotation, place: tuple[int, int]) -> None:
    label.xyann = place
    across, up = (np.sign(offset) for offset in place)
    label.set(ha=("center", "left", "right")[int(across)], va=("center", "bottom", "top")[int(up)])


def over(
    x: Sequence[float],
    values: Sequence[float],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    intervals: Sequence[tuple[float, float]] | None = None,
    before: float | None = None,
    log: bool = False,
) -> Figure:
    """A score over one number that was varied, with intervals; `before` is drawn as a level line."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        ends = np.abs(np.array(intervals or [(value, value) for value in values]).T - values)
        axes.errorbar(x, values, ends, fmt="o-", color=AFTER, capsize=3, label="after")
        if before is not None:
            axes.axhline(before, color=BEFORE, linestyle="--", label="before")
        if log:
            axes.set_xscale("log")
            axes.minorticks_off()
        if len(x) <= 10:
            axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.legend(frameon=False)
    plt.close(figure)
    return figure
