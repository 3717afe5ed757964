"""`cookbook list | run | copy | doctor`. Exit codes: 0 ok, 1 the run failed, 2 a request that cannot be run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from cookbook import batch, results
from cookbook.console import Show, failure, here, report, terminal

app = typer.Typer(
    help="A fine-tuning cookbook: run its notebooks with your parameters, data and models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


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


@app.command("list")
def list_recipes() -> None:
    """The recipes, and what their last run here reached."""
    table = Table("no.", "recipe", "what it shows", "last run here", box=None, header_style="bold")
    known = batch.recipes()
    for recipe in known:
        number = "" if recipe.number is None else f"{recipe.number:02d}"
        table.add_row(number, recipe.name, escape(recipe.title), _headline(Path("runs") / recipe.name))
    terminal().print(table if known else "No notebooks here: run it in a folder that holds notebooks/.")


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
    console, show = terminal(), None
    try:
        notebook = batch.find(recipe)
        values = batch.check_parameters(notebook, _given(parameter or []))
        chosen = values.pop("OUTPUT_DIR", "")  # the launcher's variable: no path in the notebook
        folder = output_dir or Path(chosen or Path("runs") / notebook.stem)
        console.print(f"{notebook.stem} → {here(folder)}", markup=False, highlight=False)
        with Show(console) as show:
            status = batch.run_one(notebook, folder, values, timeout=timeout, progress=show)
    except batch.RequestError as error:
        typer.echo(f"cookbook: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing is left running", err=True)
        raise typer.Exit(130) from None
    if status.status != "ok":
        typer.echo(f"The notebook as far as it came: {here(folder / 'executed.ipynb')}")
        sys.stdout.flush()
        typer.echo(failure(status), err=True)
        raise typer.Exit(1)
    report(console, recipe, folder, results.read(folder))


@app.command()
def copy(
    recipe: Annotated[str, typer.Argument(help="a number, a name, the beginning of one, or a path")],
    dest: Annotated[Path, typer.Argument(help="a folder that does not exist yet, or is empty")],
    vendor: Annotated[bool, typer.Option("--vendor", help="with the source of the package, not a wheel")] = False,
    script: Annotated[bool, typer.Option("--script", help="with the recipe as a Python script, too")] = False,
) -> None:
    """Copy one recipe into a folder of its own: notebook, data, package, pinned requirements."""
    from cookbook import copying

    try:
        names = copying.copy(batch.find(recipe), dest, vendor=vendor, script=script)
    except batch.RequestError as error:
        typer.echo(f"cookbook: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{here(dest)}: {', '.join(map(str, names))}")
    typer.echo(f"Next:\n  cd {here(dest)}\n  pip install -r requirements.txt")


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
