"""Ask a model something, by text or by a recording, and read what it answers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import ipywidgets

from cookbook import models
from cookbook.tables import DataError


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


def hear(transcribe: Callable[[io.BytesIO], str]) -> ipywidgets.VBox:
    """A button to choose recordings; what the model hears in each is written below."""
    chosen = ipywidgets.FileUpload(accept="audio/*", multiple=True, description="Recording")
    heard = ipywidgets.Textarea(disabled=True, layout={"width": "100%", "height": "7em"})

    def run(change: Any) -> None:
        given = change["new"]  # a dictionary by name in ipywidgets 7, a tuple in 8
        files = given.values() if isinstance(given, dict) else given
        try:
            heard.value = "\n".join(transcribe(io.BytesIO(bytes(file["content"]))) for file in files)
        except DataError as error:
            heard.value = f"This recording cannot be read: {error}"

    chosen.observe(run, names="value")
    return ipywidgets.VBox([chosen, heard])
