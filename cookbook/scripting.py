"""A recipe as a Python script: its parameters are options, its figures are files, and no kernel is needed.

`script` writes it; what it calls when it runs is `start`, and `Shown` in place of a notebook's display area.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from cookbook.recipes import TYPES, Parameter, RequestError, check_parameters, heading
from cookbook.results import OUTPUT_VARIABLE, RECIPE_VARIABLE

HEAD = '''\
#!/usr/bin/env python
"""{title}

The recipe {name}.ipynb as a script: `python` or `accelerate launch` runs it, with --help for its options.
Tables are printed, figures go to `figures` in the run's folder.
"""

if __name__ != "__main__":  # a worker process that is started afresh imports this file, and must not run it again
    raise ImportError("this file is run, not imported; data loaders must do without worker processes here")
'''


def script(notebook: Any, name: str, known: Mapping[str, Parameter]) -> str:
    """The notebook as a script that does the same, with its cells marked by `# %%`.

    What a cell shows by its last line alone, without `display` or `print`, is not shown.

    Args:
        notebook: as nbformat reads it, with one cell tagged `parameters`.
        name: the stem of the script's file.
        known: type, default and help of each parameter, as `recipes.declared` gives them.

    Raises:
        RequestError: a cell that cannot stand in a script; the message names it.
    """
    parts, title = [], ""
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "markdown":
            title = title or heading(cell.source)
            lines = [f"# {line}".rstrip() for line in cell.source.splitlines()]
            parts.append("\n".join(["# %% [markdown]", *lines]))
        elif cell.cell_type == "code":
            place = f"{name}.ipynb: cell {number} ({cell.get('id', '')})"
            chosen = "parameters" in cell.metadata.get("tags", [])
            parts.append(f"# %%\n{_options(cell.source, known, place) if chosen else _plain(cell.source, place)}")
    title = (title or name).replace("\\", "\\\\").replace('"""', "'''")
    text = "\n\n".join([HEAD.format(title=title, name=name), *parts]) + "\n"
    try:
        compile(text, f"{name}.py", "exec")
    except SyntaxError as error:  # each cell may be well by itself: `await`, or an import from __future__
        line = (error.text or "").strip()
        raise RequestError(f"{name}.ipynb cannot be a script: {error.msg}: {line}") from error
    return text


def _plain(source: str, place: str) -> str:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise RequestError(f"{place}: no plain Python, so it cannot stand in a script: {line}") from error
    if any(isinstance(node, ast.Name) and node.id == "get_ipython" for node in ast.walk(tree)):
        raise RequestError(f"{place}: get_ipython() needs a notebook, so it cannot stand in a script")
    return source


def _options(source: str, known: Mapping[str, Parameter], place: str) -> str:
    """The parameters cell as an argument parser, and its variables with what was given."""
    _plain(source, place)
    options, variables = [], []
    for line in ast.parse(source).body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        name, value = getattr(target, "id", None), getattr(line, "value", None)
        kind, default, told = known.get(name or "", ("", None, ""))
        if kind not in TYPES or value is None:
            raise RequestError(f"{place}: no option can be made of: {ast.unparse(line)}")
        facts = [f'"--{name.lower().replace("_", "-")}"', f'dest="{name}"']
        if kind == "bool":
            facts.append("action=argparse.BooleanOptionalAction")
        else:
            one = kind.removeprefix("list[").rstrip("]")
            facts += ['nargs="*"'] * (one != kind) + [f"type={one}", f'metavar="{one.upper()}"']
        facts.append(f"default={ast.get_source_segment(source, value)}")
        told = told.replace("%", "%%") + " (default: %(default)s)" * (default not in ("", [], None))
        told = json.dumps(told.strip(), ensure_ascii=False)
        options.append(f"parser.add_argument(\n    {', '.join(facts)},\n    help={told},\n)")
        variables.append(f"{name}: {kind} = given.{name}")
    if len(options) != len(known):
        raise RequestError(f"{place}: Papermill sees other parameters in it: {', '.join(known)}")
    head = "import argparse\n\nfrom cookbook import scripting\n\nparser = scripting.parser(__doc__)"
    return "\n".join([head, *options, "given = scripting.start(parser, __file__)", *variables])


def parser(about: str | None) -> argparse.ArgumentParser:
    """A parser without abbreviations, which would change their meaning with the next parameter."""
    title = (about or "").strip().splitlines()[:1]
    return argparse.ArgumentParser(description=textwrap.fill(*title) if title else None, allow_abbrev=False)


def start(options: argparse.ArgumentParser, file: str) -> argparse.Namespace:
    """Begin the run of a script: its checked options; from here on `display` prints, or writes into the run's folder.

    The run's folder is the option OUTPUT_DIR, or else `runs/<script>` here. A request that cannot be run ends the
    process with exit code 2, as argparse does, before anything is loaded.
    """
    words = sys.argv[1:]
    given = vars(options.parse_args(words[1:] if words[:1] == ["--"] else words))  # `accelerate launch` keeps the --
    known = {name: (_kind(value), options.get_default(name), "") for name, value in given.items()}
    try:
        values = check_parameters(Path(file), given, known)
        if values.get("INTERACTIVE"):
            raise RequestError("INTERACTIVE: widgets need a notebook; leave it off")
        chosen = values.get("OUTPUT_DIR") or os.environ.get(OUTPUT_VARIABLE) or Path("runs", Path(file).stem)
        folder = Path(chosen).absolute()
        folder.mkdir(parents=True, exist_ok=True)
    except RequestError as error:
        options.error(str(error))
    except OSError as error:
        options.error(f"{error.filename}: cannot be written ({error.strerror}); choose another OUTPUT_DIR")
    if "OUTPUT_DIR" in values:
        values["OUTPUT_DIR"] = ""  # as with the launcher: no path of this machine in the record
    os.environ |= {OUTPUT_VARIABLE: str(folder), RECIPE_VARIABLE: str(Path(file).resolve().parent)}
    os.environ.setdefault("MPLBACKEND", "agg")  # no window for a figure that goes to a file

    import IPython.display

    # What the recipe and the package import as `display`; in a notebook it is there without an import as well.
    IPython.display.display = builtins.display = Shown(folder / "figures")  # type: ignore[attr-defined]
    return argparse.Namespace(**values)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"list[{type(value[0]).__name__ if value else 'str'}]"
    return type(value).__name__


class Shown:
    """`display` without a notebook: figures and HTML become numbered files in `folder`, all else is printed.

    Of several processes of one run only the first shows anything.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count, self._first = folder, 0, os.environ.get("RANK", "0") == "0"
        for stale in folder.glob("[0-9][0-9]-*") if self._first else ():  # of an earlier run in the same folder
            stale.unlink()

    def __call__(self, *things: Any, display_id: Any = None, **_: Any) -> _Handle | None:
        files = [self._show(thing) for thing in things]
        return _Handle(self, files[-1]) if display_id and files else None

    def _show(self, thing: Any, file: Path | None = None) -> Path | None:
        """Print the thing or write its file, over `file` if that is given; returns the file."""
        if not self._first:
            return None
        made = _drawn(thing)
        if made is None:
            print(_as_text(thing) or thing)
            return None
        suffix, title, content = made
        if file is None:
            self._count += 1
            slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].rstrip("-")
            file = self._folder / f"{self._count:02d}-{slug or 'figure'}{suffix}"
            print(f"[figure] {self._folder.name}/{file.name}")
        self._folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file


class _Handle:
    """What `display(..., display_id=True)` returns: a figure that is drawn again goes to the same file."""

    def __init__(self, shown: Shown, file: Path | None) -> None:
        self._shown, self._file = shown, file

    def update(self, thing: Any, **_: Any) -> None:
        self._file = self._shown._show(thing, self._file)


def _drawn(thing: Any) -> tuple[str, str, bytes] | None:
    """Suffix, title and bytes of what is to be looked at in a file; None for what is to be printed."""
    if hasattr(thing, "savefig"):  # a matplotlib figure
        thing.savefig(drawn := BytesIO(), format="png")
        titles = [thing.get_suptitle(), *(axes.get_title() for axes in thing.axes)]
        return ".png", next(filter(None, titles), ""), drawn.getvalue()
    if _as_text(thing) or not hasattr(thing, "_repr_html_"):
        return None
    page = f'<!doctype html>\n<meta charset="utf-8">\n{thing._repr_html_()}\n'
    return ".html", type(thing).__name__, page.encode()


def _as_text(thing: Any) -> str:
    """A table whole, code and Markdown as they are; empty for anything else."""
    from IPython.display import Code, Markdown

    if isinstance(thing, Code | Markdown):
        return thing.data
    return thing.to_string() if hasattr(thing, "to_string") else ""
