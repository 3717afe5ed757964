"""Will it fit, how long, what does it cost? Menus and sliders, and a bar that follows them."""

from __future__ import annotations

from typing import Any

import ipywidgets

from cookbook import memory, planning, planning_view
from cookbook.activations import METHODS
from cookbook.locating import ModelError
from cookbook.recipes import RequestError

SLIDERS = {  # label, and the values a slider stops at
    "rank": ("Rank", [1, 2, 4, 8, 16, 32, 64, 128, 256]),
    "length": ("Longest row, tokens", [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]),
    "batch": ("Rows a forward", [1, 2, 4, 8, 16, 32, 64]),
    "rows": ("Rows of data", [100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000]),
    "tokens": ("Mean row, tokens", [50, 100, 200, 500, 1000, 2000, 4000]),
    "epochs": ("Epochs", [1, 2, 3, 4, 5, 10]),
    "cards": ("Cards", [1, 2, 4, 8, 16, 32, 64]),
}


def plan(job: planning.Job | None = None) -> ipywidgets.VBox:
    """Every field of a `planning.Job`, and the estimate below, as `planning_view.html` shows it.

    A slider shows the nearest of its values to the job's; the model can also be a folder or a Hub id.
    """
    job = job or planning.Job()
    look: dict[str, Any] = {"style": {"description_width": "12em"}, "layout": {"width": "30em", "max_width": "100%"}}
    menus = {
        "method": ("Method", METHODS),
        "precision": ("Precision", planning.PRECISIONS),
        "optimizer": ("Optimizer", memory.OPTIMIZERS),
        "card": ("Card", planning.cards()),
    }
    fields: dict[str, Any] = {
        "model": ipywidgets.Combobox(
            value=job.model, options=list(planning.models()), description="Model", continuous_update=False, **look
        )
    }
    for name, (label, options) in menus.items():
        fields[name] = ipywidgets.Dropdown(options=list(options), value=getattr(job, name), description=label, **look)
    for name, (label, values) in SLIDERS.items():
        nearest = min(values, key=lambda value: abs(value - getattr(job, name)))
        fields[name] = ipywidgets.SelectionSlider(
            options=values, value=nearest, description=label, continuous_update=False, **look
        )
    fields["checkpointing"] = ipywidgets.Checkbox(
        value=job.checkpointing, description="Gradient checkpointing", **look
    )
    for name, label, value in (
        ("price", "Dollars an hour a card", job.price or planning.cards()[job.card].price),
        ("utilisation", "Share of the peak", job.utilisation),
    ):
        fields[name] = ipywidgets.FloatText(value=value, step=0.05, description=label, **look)
    found = ipywidgets.HTML()

    def show(change: Any = None) -> None:
        if change and change["owner"] is fields["card"]:
            fields["price"].value = planning.cards()[change["new"]].price  # which shows the plan, if it changes
        try:
            asked = planning.Job(**{name: field.value for name, field in fields.items()})
            found.value = planning_view.html(planning.estimate(asked))
        except (RequestError, ModelError) as error:
            found.value = planning_view.refused(error)

    for field in fields.values():
        field.observe(show, names="value")
    show()
    return ipywidgets.VBox([*fields.values(), found])
