"""Ask a model something, by text or by a recording, and read what it answers."""

from __future__ import annotations

import io
from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets

from cookbook import answering, models
from cookbook.tables import DataError
from cookbook.widgets.styling import block, line


def ask(
    model: Any,
    tokenizer: Any,
    system: models.Messages,
    max_new_tokens: int = 160,
    *,
    prompted: models.Messages = (),
    base: Any = None,
) -> ipywidgets.VBox:
    """Type a message; read what the untouched, the prompted and the tuned model answer, side by side.

    The less probable a token was, the more it is shaded; its probability shows where the mouse rests, and for all
    tokens in a table to unfold. Where there is no adapter to switch off and no `base`, the tuned model answers alone.
    The arguments are those of `answering.side_by_side`, which with `answering.table` gives the same without a widget.
    """
    question = ipywidgets.Textarea(
        placeholder="Type a message", description="Message", layout={"width": "100%", "height": "5em"}
    )
    button = ipywidgets.Button(description="Answer", button_style="primary")
    said, answers = ipywidgets.HTML(), ipywidgets.HBox(layout={"flex_flow": "row wrap"})

    def run(_: Any) -> None:
        if not (text := question.value.strip()):
            return
        button.disabled, said.value = True, line("Answering …")
        try:
            (found,) = answering.side_by_side(
                model, tokenizer, [text], system, prompted=prompted, base=base, max_new_tokens=max_new_tokens
            )
            answers.children = [
                ipywidgets.HTML(told(name, answer), layout={"flex": "1 1 20em", "width": "auto"})
                for name, answer in found.items()
            ]
            said.value = ""
        except (RuntimeError, ValueError) as error:  # no room in the context, no memory
            said.value = line(f"No answer: {str(error).partition(chr(10))[0]}")
        finally:
            button.disabled = False

    button.on_click(run)
    return ipywidgets.VBox([question, button, said, answers])


def told(name: str, answer: answering.Answer) -> str:
    """One answer as HTML: its tokens shaded by improbability, and their probabilities in a table to unfold."""
    chances = [float(p) for p in answer.probabilities]
    pieces = "".join(
        f'<span title="{p:.3f}" style="background:rgba(230,126,34,{0.7 * (1 - p):.2f})'
        f'{";text-decoration:underline dotted" if p < 0.5 else ""}">{escape(token)}</span>'
        for token, p in zip(answer.tokens, chances, strict=True)
    )
    rows = "".join(
        f'<tr><td style="white-space:pre;text-align:left">{escape(repr(token))}</td><td>{p:.3f}</td></tr>'
        for token, p in zip(answer.tokens, chances, strict=True)
    )
    title = f"{name}: {len(chances)} tokens, mean probability {answer.probability:.2f}"
    return (
        f"{block(pieces, title=title)}<details><summary>Token probabilities</summary>"
        f"<table><tr><th>token</th><th>probability</th></tr>{rows}</table></details>"
    )


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
