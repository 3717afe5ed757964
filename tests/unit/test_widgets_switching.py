"""The menu above a widget: the first name's is shown, and another choice makes that name's own."""

from __future__ import annotations

import ipywidgets

from cookbook import widgets


def test_the_chosen_one_is_made_and_shown() -> None:
    made = []

    def make(name: str) -> ipywidgets.Label:
        made.append(name)
        return ipywidgets.Label(f"of {name}")

    box = widgets.switch(["hr", "it"], make, title="Adapter of")
    menu, shown = box.children
    assert (menu.description, menu.options, shown.value) == ("Adapter of", ("hr", "it"), "of hr")
    menu.value = "it"
    assert box.children[0] is menu and box.children[1].value == "of it" and made == ["hr", "it"]
    assert not [w for w in box.children if isinstance(w, ipywidgets.Output)]
