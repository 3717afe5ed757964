"""How text looks in widgets: escaped, and readable in light and dark themes."""

from __future__ import annotations

from html import escape

EDGE = "1px solid var(--jp-border-color1, rgba(128,128,128,.5))"


def block(html: str, *, title: str = "") -> str:
    """A bordered block of ready HTML, line breaks kept, under a bold title (plain text)."""
    head = f"<b>{escape(title)}</b>" if title else ""
    return (
        f'{head}<div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4;border:{EDGE};'
        f'border-radius:3px;padding:.5em;margin:.2em 0">{html}</div>'
    )


def paragraph(text: str, *, title: str = "") -> str:
    """A bordered block of a user's text."""
    return block(escape(text), title=title)


def line(text: str) -> str:
    """A line of text: what a widget says of itself."""
    return f'<div style="line-height:1.4">{escape(text)}</div>'
