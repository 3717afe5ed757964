"""What a notebook needs beside itself, read from its code: sample data, packages, and what no copy can hold."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cookbook
from cookbook.recipes import RequestError

PACKAGE = Path(__file__).parent
ELSEWHERE = re.compile(r"data_samples|notebooks/|\.ipynb\b|\bcookbook run\b")  # in a text of the code


@dataclass(frozen=True)
class Needs:
    """Names of folders in `data_samples`, and top-level modules that the notebook imports, without `cookbook`."""

    samples: tuple[str, ...]
    modules: tuple[str, ...]


def of(notebook: Any, path: Path) -> Needs:
    """What the notebook needs; of the project that is its sample data alone.

    Args:
        notebook: as nbformat reads it.
        path: its file, to name it and to look for modules beside it.

    Raises:
        RequestError: it needs more of the project than sample data, a module beside it, or a package that is not
            installed; the message names every such place.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    samples, modules, problems, ours = {}, set(), [], False
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code":
            continue
        place = f"cell {number} ({cell.get('id', '')})"
        try:
            tree = ast.parse(TransformerManager().transform_cell(cell.source))
        except SyntaxError as error:
            raise RequestError(f"{path.name}: {place} is no Python: {(error.text or '').strip()}") from error
        top = {name for node in tree.body for name in _imported(node)}
        for node in ast.walk(tree):
            for name in _imported(node):
                root, _, inner = name.partition(".")
                ours |= name == "cookbook.data"  # and no table that is called data
                if root == "cookbook":
                    module = inner.split(".")[0]
                    drives = _drives_recipes(module)
                    if module and not (hasattr(cookbook, module) or _there(f"cookbook.{module}")):
                        problems.append(f"{place}: this version of the package has no cookbook.{module}")
                    problems += [f"{place}: cookbook.{module} works on other recipes, which are not copied"] * drives
                elif any((path.parent / end).exists() for end in (f"{root}.py", f"{root}/__init__.py")):
                    problems.append(f"{place}: imports {root}, which lies beside the notebook and is not copied")
                elif root not in sys.stdlib_module_names and _there(root):
                    modules.add(root)
                elif root not in sys.stdlib_module_names and name in top:
                    problems.append(f"{place}: imports {root}, which is not installed here")
            if ours and isinstance(node, ast.Call) and _name(node.func) in ("data.sample", "cookbook.data.sample"):
                name = getattr(node.args[0], "value", None) if node.args else None
                if isinstance(name, str) and re.fullmatch(r"[\w-]+", name):
                    samples[name] = None
                else:
                    problems.append(f"{place}: {ast.unparse(node)} names no sample by a plain text")
            if isinstance(node, ast.ImportFrom) and node.module == "cookbook.data":
                problems += [f"{place}: write data.sample(...)" for a in node.names if a.name == "sample"]
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and ELSEWHERE.search(node.value):
                problems.append(f"{place}: {node.value[:60]!r} is a place of the project that is not copied")
    if problems:
        raise RequestError("\n".join(f"{path.name}: {text}" for text in dict.fromkeys(problems)))
    return Needs(tuple(samples), tuple(sorted(modules)))


def _imported(node: ast.AST) -> Iterator[str]:
    """Dotted names of what an import statement brings; `from cookbook import data` brings cookbook.data."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [f"cookbook.{alias.name}" for alias in node.names]
        yield from names if node.module == "cookbook" else [node.module]


def _name(function: ast.expr) -> str:
    """The dotted name that is called; many things have a method `sample`, only `data` is meant."""
    return ast.unparse(function) if isinstance(function, ast.Attribute) else ""


def _there(module: str) -> bool:
    return find_spec(module) is not None


@cache
def _drives_recipes(module: str) -> bool:
    """Whether the module of the package finds or runs recipes: `recipes`, `batch`, or one that leads to `batch`."""
    seen, left = set(), [module]
    while left:
        name = left.pop()
        file = PACKAGE / f"{name}.py"
        if name == "batch" or name == module == "recipes":
            return True
        if name not in seen and name != "recipes" and file.is_file():  # many take only RequestError from there
            seen.add(name)
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            left += [n.split(".")[1] for node in nodes for n in _imported(node) if n.startswith("cookbook.")]
    return False
