"""`cookbook list | run | doctor`. Exit codes: 0 ok, 1 the run failed, 2 a request that cannot be run."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cookbook import batch, results

app = typer.Typer(
    help="A fine-tuning cookbook: run its notebooks with your parameters, data and models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
QUIET_SECONDS = 30  # without a terminal, at most one line of training progress in this time


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point; ends the process with the exit code."""
    app(args=_pairs(sys.argv[1:] if arguments is None else arguments), prog_name="cookbook")
    raise SystemExit(0)


def _pairs(arguments: Sequence[str]) -> list[str]:
    """Papermill's `-p NAME VALUE` as one `-p NAME=VALUE`: typer repeats only options of one value."""
    rest, done = iter(arguments), []
    for word in rest:
        done.append(word)
        if word in ("-p", "--parameter") and (name := next(rest, None)) is not None:
            value = None if "=" in name else next(rest, None)
            done.append(name if value is None else f"{name}={value}")
    return done


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=120)


@app.command("list")
def list_recipes() -> None:
    """The recipes, and what their last run here reached."""
    table = Table("no.", "recipe", "what it shows", "last run here", box=None, header_style="bold")
    known = batch.recipes()
    for recipe in known:
        number = "" if recipe.number is None else f"{recipe.number:02d}"
        table.add_row(number, recipe.name, escape(recipe.title), _headline(Path("runs") / recipe.name))
    _console().print(table if known else "No notebooks here: run it in a folder that holds notebooks/.")


def _headline(folder: Path) -> str:
    with suppress(OSError, ValueError):  # no run, or a record of another version
        record = results.read(folder)
        metric = record.metrics[record.headline]
        return f"{record.headline} {metric.before:.3g} → {metric.after:.3g} ({record.profile})"
    return ""


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="a number, a name, the beginning of one, or a path")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE", help="set a parameter; may be repeated"),
    ] = None,
    output_dir: Annotated[Path | None, typer.Option(help="where the run goes; else runs/RECIPE")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="stop the whole run after so long")
    ] = None,
) -> None:
    """Run one recipe: the executed notebook, its record and the model go to one folder."""
    for name in ("SIGTERM", "SIGHUP"):  # by default these would end this process and leave the run alone
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    console, show = _console(), None
    try:
        notebook = batch.find(recipe)
        values = batch.check_parameters(notebook, _given(parameter or []))
        chosen = values.pop("OUTPUT_DIR", "")  # the launcher's variable: no path in the notebook
        folder = output_dir or Path(chosen or Path("runs") / notebook.stem)
        console.print(f"{notebook.stem} → {_here(folder)}", markup=False, highlight=False)
        with _Show(console) as show:
            status = batch.run_one(notebook, folder, values, timeout=timeout, progress=show)
    except batch.RequestError as error:
        typer.echo(f"cookbook: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing is left running", err=True)
        raise typer.Exit(130) from None
    if status.status != "ok":
        typer.echo(f"The notebook as far as it came: {_here(folder / 'executed.ipynb')}")
        sys.stdout.flush()
        typer.echo(_failure(status), err=True)
        raise typer.Exit(1)
    _report(console, recipe, folder, results.read(folder))


@app.command()
def doctor() -> None:
    """Whether this machine can run the recipes: packages, kernel, memory, disk, CUDA, speed."""
    from cookbook.doctor import examine

    fixes = []
    for finding in examine():
        typer.echo(f"{'FIX ' if finding.fix else 'ok  '} {finding.name:<9} {finding.text}")
        fixes += [f"{finding.name}: {finding.fix}"] if finding.fix else []
    typer.echo(f"fix {' | '.join(fixes)}" if fixes else "ready")
    raise typer.Exit(bool(fixes))


def _given(pairs: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise batch.RequestError(f"-p {pair}: the value is missing; write -p NAME VALUE")
        if name in given:
            raise batch.RequestError(f"-p {name} is given twice")
        given[name] = value
    return given


def _failure(status: batch.RunStatus) -> str:
    """One line: in which cell, and why."""
    cell = status.cell
    place = f" in cell {cell.number} ({cell.id}: {cell.line})" if cell else " before the first cell"
    why = " ".join(status.error.split())
    return f"{status.status.replace('_', ' ')}{place}: {why[:400]}{'...' * (len(why) > 400)}"


def _here(path: Path) -> str:
    """Relative to the working directory where it lies in it, quoted for a shell."""
    path = Path(os.path.abspath(path))
    inside = path.is_relative_to(Path.cwd())
    return shlex.quote(str(path.relative_to(Path.cwd()) if inside else path))


class _Show:
    """Shows a run's events: a bar over the cells and a line a stage; without a terminal plain lines."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        terminal = console.is_terminal
        self._bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not terminal)
        self._task, self._heading, self._said = (
            self._bar.add_task("starting", total=None),
            "",
            time.monotonic(),
        )

    def __enter__(self) -> _Show:
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
            self._print(f"  {event['stage']:<12} {event.get('seconds', 0):7.0f} s {_gb(event):>9}")
        elif event.get("event") != "start":
            facts = "  ".join(f"{k} {v:.4g}" for k, v in event.items() if k != "time" and _is_number(v))
            self._bar.update(self._task, description=f"{self._heading[:30]}  {facts}")
            if not self._bar.console.is_terminal and time.monotonic() - self._said > QUIET_SECONDS:
                self._print(f"  {facts}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _gb(event: dict[str, Any]) -> str:
    return f"{event['peak_bytes'] / 1e9:.1f} GB" if event.get("peak_bytes") else ""


def _report(console: Console, recipe: str, folder: Path, record: results.Results) -> None:
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
        f"memory    {memory.measured / 1e9:.2f} GB at its peak, {memory.predicted / 1e9:.2f} predicted",
        f"notebook  {_here(folder / 'executed.ipynb')}",
        *([f"model     {_here(model)}"] if model.is_dir() else []),
        "",
        "Next:",
        f"  jupyter lab {_here(folder / 'executed.ipynb')}",
    ]
    word = shlex.quote(recipe)
    for extra in ("SEED 1", "DATA your.jsonl"):
        name = extra.split()[0]
        if name in record.parameters:
            lines.append(f"  cookbook run {word} -p {extra} --output-dir {_here(folder)}-{name.lower()}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
