"""Widgets for interactive sessions; each recipe also shows the same thing without them."""

from __future__ import annotations

from typing import Any

import ipywidgets

from cookbook import models


def ask(model: Any, tokenizer: Any, system: models.Messages, max_new_tokens: int = 160) -> ipywidgets.VBox:
    """A text field and a button: type a message, read the model's answer below."""
    question = ipywidgets.Textarea(placeholder="Type a message", layout={"width": "100%", "height": "5em"})
    button = ipywidgets.Button(description="Answer", button_style="primary")
    answer = ipywidgets.Textarea(disabled=True, layout={"width": "100%", "height": "7em"})

    def run(_: Any) -> None:
        if question.value.strip():
            answer.value = "…"
            turns = [*system, {"role": "user", "content": question.value.strip()}]
            answer.value = models.generate(model, tokenizer, [turns], max_new_tokens=max_new_tokens)[0]

    button.on_click(run)
    return ipywidgets.VBox([question, button, answer])
