"""One widget for each of several names, and a menu that says whose is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets


def switch(names: Sequence[str], make: Callable[[str], ipywidgets.Widget], *, title: str = "") -> ipywidgets.VBox:
    """A menu of `names` above the widget that `make` returns for the chosen one; it is made anew at each choice.

    Unlike `ipywidgets.interact` without an Output widget, in which a batch run may wait for ever.
    """
    menu = ipywidgets.Dropdown(options=list(names), description=title)
    box = ipywidgets.VBox([menu, make(menu.value)])

    def change(event: dict[str, object]) -> None:
        box.children = [menu, make(menu.value)]

    menu.observe(change, "value")
    return box
