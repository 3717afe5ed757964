"""Widgets for interactive sessions, one concern a module; each recipe also shows the same thing without them."""

from cookbook.widgets.asking import ask, hear

__all__ = ["ask", "hear"]
