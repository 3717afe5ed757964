"""A plan to look at: stacked bars of memory against the card, as a figure and as HTML for a widget."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from cookbook.planning import Estimate
from cookbook.plots import STYLE

PARTS = {  # what each part is called, its colour and its hatch
    "weights": ("weights", "#1f6fb2", ""),
    "adapter": ("adapter", "#6baed6", ""),
    "copies": ("copies of weights", "#9ecae1", "//"),
    "gradients": ("gradients", "#d97706", ""),
    "optimizer": ("optimizer state", "#f0b35b", ".."),
    "activations": ("activations", "#4d9a55", ""),
    "logits": ("logits", "#a3cfa0", "\\\\"),
    "runtime": ("runtime", "#9aa5b1", ""),
}


def bars(estimates: Mapping[str, Estimate], *, title: str) -> Figure:
    """One horizontal bar a plan, in gigabytes a card, stacked by part; a black line where the card's memory ends."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 0.5 * len(estimates) + 1.6), layout="constrained")
        left = [0.0] * len(estimates)
        for part, (label, colour, hatch) in PARTS.items():
            widths = [found.parts[part] / 1e9 for found in estimates.values()]
            axes.barh(range(len(left)), widths, 0.62, left, label=label, color=colour, hatch=hatch, edgecolor="white")
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for place, found in enumerate(estimates.values()):
            end = found.card_bytes / 1e9
            axes.plot([end, end], [place - 0.42, place + 0.42], color="black", linewidth=2)
            word = "fits" if found.fits else "does not fit"
            axes.annotate(
                word, (max(left[place], end), place), xytext=(5, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(estimates)), list(estimates))
        axes.invert_yaxis()
        axes.set(title=title, xlabel="memory (GB a card); black line: what the card has")
        axes.margins(x=0.14)
        axes.grid(axis="y", visible=False)
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    plt.close(figure)
    return figure


def text(found: Estimate) -> str:
    """A plan in words: memory, hours, money, and what to turn if it does not fit."""
    job = found.job
    each = " a card" if job.cards > 1 else ""
    fits = "fits" if found.fits else "does not fit"
    lines = [
        f"{found.total / 1e9:.1f} GB{each} of {found.card_bytes / 1e9:.0f} GB: {fits}.",
        f"About {_hours(found.hours)} and {found.money:,.2f} dollars at {job.utilisation:.0%} of the card's peak.",
    ]
    if not found.fits:
        lines.append(f"Turn, one after another: {'; '.join(found.turns)}.")
    return "\n".join(lines)


def _hours(hours: float) -> str:
    return (
        f"{hours * 60:.0f} minutes" if hours < 1 else f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"
    )


def html(found: Estimate) -> str:
    """The same as a bar and a legend, in colours of its own and the theme's own text colour."""
    scale = 100 / max(found.total, found.card_bytes)
    boxes, legend = [], []
    for part, (label, colour, _) in PARTS.items():
        size = found.parts[part]
        boxes.append(
            f'<span style="display:inline-block;height:100%;width:{size * scale:.2f}%;background:{colour}"></span>'
        )
        legend.append(
            '<span style="white-space:nowrap;margin-right:1em"><span style="display:inline-block;width:1em;'
            f'height:1em;background:{colour}"></span> {label} {size / 1e9:.1f} GB</span>'
        )
    words = "<br>".join(escape(line) for line in text(found).splitlines())
    end = f"{found.card_bytes * scale:.2f}%"
    return (
        '<div style="color:var(--jp-ui-font-color1, currentColor);line-height:1.5">'
        f'<div role="img" aria-label="{escape(text(found).splitlines()[0])}" style="position:relative;height:1.6em;'
        f'line-height:0;font-size:1em;white-space:nowrap;margin:.3em 0">{"".join(boxes)}'
        f'<span style="position:absolute;left:calc({end} - 3px);top:-3px;bottom:-3px;width:3px;'
        'background:currentColor"></span></div>'
        f'<div>{" ".join(legend)}</div><p style="margin:.4em 0">{words}</p></div>'
    )


def refused(error: Exception) -> str:
    """Why there is no plan, as HTML."""
    return f'<p role="alert" style="color:var(--jp-error-color1, #c0392b)">{escape(str(error))}</p>'
