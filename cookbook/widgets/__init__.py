"""Widgets for interactive sessions, one concern a module; each recipe also shows the same thing without them."""

from cookbook.widgets.asking import ask, hear
from cookbook.widgets.browsing import browse
from cookbook.widgets.choosing import choose
from cookbook.widgets.exploring import explore
from cookbook.widgets.labelling import label
from cookbook.widgets.planning import plan
from cookbook.widgets.stopping import StopButton
from cookbook.widgets.switching import switch

__all__ = ["StopButton", "ask", "browse", "choose", "explore", "hear", "label", "plan", "switch"]
