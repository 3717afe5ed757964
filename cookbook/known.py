"""Whether a model's code is that of a model whose formulas are known."""

from __future__ import annotations

from types import FunctionType
from typing import Any


def same_code(one: Any, other: FunctionType) -> bool:
    """Whether two functions compute the same: the same instructions on the same names and numbers."""
    if not isinstance(one, FunctionType):
        return False
    a, b = ((f.__code__.co_code, f.__code__.co_names, _constants(f)) for f in (one, other))
    return a == b


def _constants(function: FunctionType) -> list[Any]:
    return [c for c in function.__code__.co_consts if c != function.__doc__ and not isinstance(c, str)]
