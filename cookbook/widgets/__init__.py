"""Widgets for interactive sessions, one concern a module; each recipe also shows the same thing without them."""

from cookbook.widgets.asking import ask, hear
from cookbook.widgets.choosing import choose
from cookbook.widgets.planning import plan

__all__ = ["ask", "choose", "hear", "plan"]
