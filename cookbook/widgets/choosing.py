"""Should you fine-tune at all? A menu for each question; the advice below follows every change."""

from __future__ import annotations

from typing import Any

import ipywidgets

from cookbook import choosing


def choose() -> ipywidgets.VBox:
    """A menu for each question of `choosing.QUESTIONS`; below them what is advised, as `choosing.advise` words it."""
    menus = {
        question.name: ipywidgets.Dropdown(
            options=[(label, value) for value, label in question.options.items()],
            description=question.text,
            style={"description_width": "28em"},
            layout={"width": "52em", "max_width": "100%"},
        )
        for question in choosing.QUESTIONS
    }
    advice = ipywidgets.HTML()

    def show(_: Any = None) -> None:
        advice.value = choosing.advise({name: menu.value for name, menu in menus.items()}).html()

    for menu in menus.values():
        menu.observe(show, names="value")
    show()
    return ipywidgets.VBox([*menus.values(), advice])
