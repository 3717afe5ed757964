"""What a run looks like on a terminal, or in a log: its progress, its end, and paths that can be copied."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cookbook import batch, results

if TYPE_CHECKING:
    from cookbook.compare import Comparison

QUIET_SECONDS = 30  # without a terminal, at most one line of training progress in this time


def terminal() -> Console:
    """The console on stdout; 120 columns where it is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def failure(status: batch.RunStatus) -> str:
    """One line: in which cell, and why."""
    cell = status.cell
    place = f" in cell {cell.number} ({cell.id}: {cell.line})" if cell else " before the first cell"
    why = " ".join(status.error.split())
    return f"{status.status.replace('_', ' ')}{place}: {why[:400]}{'...' * (len(why) > 400)}"


def here(path: Path) -> str:
    """Relative to the working directory where it lies in it, quoted for a shell."""
    path = Path(os.path.abspath(path))
    inside = path.is_relative_to(Path.cwd())
    return shlex.quote(str(path.relative_to(Path.cwd()) if inside else path))


class Show:
    """Shows a run's events: a bar over the cells and a line a stage; without a terminal plain lines."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        seen = console.is_terminal
        self._bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not seen)
        self._task, self._heading, self._said = (
            self._bar.add_task("starting", total=None),
            "",
            time.monotonic(),
        )

    def __enter__(self) -> Show:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _print(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)
        self._said = time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] == "cell":
            place = event["heading"] or event["line"]
            self._bar.update(self._task, description=place[:50], total=event["total"], completed=event["number"] - 1)
            if not self._bar.console.is_terminal and place != self._heading:
                self._print(f"[{event['number']:2d}/{event['total']}] {place}")
            self._heading = place
        elif event.get("event") == "end" and "stage" in event:
            self._print(f"  {event['stage']:<12} {event.get('seconds', 0):7.0f} s {gigabytes(event):>9}")
        elif event.get("event") != "start":
            said = facts(event)
            self._bar.update(self._task, description=f"{self._heading[:30]}  {said}")
            if not self._bar.console.is_terminal and time.monotonic() - self._said > QUIET_SECONDS:
                self._print(f"  {said}")


def facts(event: dict[str, Any]) -> str:
    """The numbers of a progress event, such as step and loss."""
    return "  ".join(f"{k} {v:.4g}" for k, v in event.items() if k != "time" and _is_number(v))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def gigabytes(event: dict[str, Any]) -> str:
    return f"{event['peak_bytes'] / 1e9:.1f} GB" if event.get("peak_bytes") else ""


def report(console: Console, recipe: str, folder: Path, record: results.Results) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("metric")
    for name in ("before", "prompted", "after", "change", "95 % interval", "n"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    rows: list[tuple[str, results.Metric | results.Probe]] = [*record.metrics.items()]
    rows += [(f"forgetting: {probe.probe}", probe) for probe in record.forgetting]
    for name, row in rows:
        prompted = getattr(row, "prompted", None)
        shown = [f"{row.before:.3f}", "" if prompted is None else f"{prompted:.3f}", f"{row.after:.3f}"]
        shown += [f"{row.change:+.3f}", f"{row.ci95[0]:+.3f} to {row.ci95[1]:+.3f}", str(row.n), row.verdict]
        table.add_row(escape(name), *shown, style="bold" if name == record.headline else None)
    console.print()
    console.print(table)
    used, model = record.resources, folder / "model"
    seconds, memory = used.seconds, used.peak_memory_bytes
    lines = [
        "",
        f"time      {seconds.total:.0f} s: training {seconds.train:.0f}, evaluation {seconds.evaluate:.0f}",
        *(f"stopped   {one.training}: by hand, at step {one.step} of {one.steps}" for one in used.stopped),
        f"memory    {memory.measured / 1e9:.2f} GB at its peak, {memory.predicted / 1e9:.2f} predicted",
        f"notebook  {here(folder / 'executed.ipynb')}",
        *([f"model     {here(model)}"] if model.is_dir() else []),
        "",
        "Next:",
        f"  jupyter lab {here(folder / 'executed.ipynb')}",
    ]
    word = shlex.quote(recipe)
    for extra in ("SEED 1", "DATA your.jsonl"):
        name = extra.split()[0]
        if name in record.parameters:
            lines.append(f"  cookbook run {word} -p {extra} --output-dir {here(folder)}-{name.lower()}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def compared(console: Console, comparisons: Sequence[Comparison]) -> None:
    """A table a recipe, best first, with what its numbers say; then how to read them."""
    from cookbook.compare_view import cells, conclusion, front_sentence, legend

    for comparison in comparisons:
        head, rows = cells(comparison)
        title = escape(comparison.recipe)
        table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
        for name in head:
            short = "\n".join(line.replace("_ ", "_") for line in wrap(name.replace("_", "_ "), 16))
            folds = name in ("runs", "forgetting")
            table.add_column(escape(short), justify="right", no_wrap=not folds, overflow="fold")
        table.columns[0].justify = "left"
        table.columns[0].min_width = min(16, max(len(line) for row in rows for line in row[0].text.split("\n")))
        for i, row in enumerate(rows):
            lines = ["\n".join(filter(None, (cell.text, cell.second))) for cell in row]
            table.add_row(*map(escape, lines), style="bold" if i == 0 else None)
        console.print()
        console.print(table)
        console.print()
        costs = dict.fromkeys(cost for group in comparison.groups for cost in group.fronts) if len(rows) > 1 else ()
        said = conclusion(comparison), *(front_sentence(comparison, cost) for cost in costs), *comparison.notes
        for line in said:
            console.print(line, markup=False, highlight=False)
    console.print()
    for line in legend(comparisons):
        console.print(line, markup=False, highlight=False)
