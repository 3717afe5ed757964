"""The command `cookbook`. Exit codes: 0 ok, 1 the run failed, 2 a request that cannot be run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from cookbook import batch, results
from cookbook.console import Show, compared, failure, here, report, terminal

app = typer.Typer(
    help="A fine-tuning cookbook: run its notebooks with your parameters, data and models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Parameters = Annotated[
    list[str] | None, typer.Option("-p", "--parameter", metavar="NAME VALUE", help="set a parameter; may be repeated")
]


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
    parameter: Parameters = None,
    output_dir: Annotated[Path | None, typer.Option(help="where the run goes; else runs/RECIPE")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="stop the whole run after so long")
    ] = None,
) -> None:
    """Run one recipe: the executed notebook, its record and the model go to one folder."""
    _end_by_signals()
    console = terminal()
    with _requests():
        notebook = batch.find(recipe)
        values = batch.check_parameters(notebook, _given(parameter or []))
        chosen = values.pop("OUTPUT_DIR", "")  # the launcher's variable: no path in the notebook
        folder = output_dir or Path(chosen or Path("runs") / notebook.stem)
        console.print(f"{notebook.stem} → {here(folder)}", markup=False, highlight=False)
        with Show(console) as show:
            status = batch.run_one(notebook, folder, values, timeout=timeout, progress=show)
    if status.status != "ok":
        typer.echo(f"The notebook as far as it came: {here(folder / 'executed.ipynb')}")
        sys.stdout.flush()
        typer.echo(failure(status), err=True)
        raise typer.Exit(1)
    report(console, recipe, folder, results.read(folder))


@app.command()
def sweep(
    what: Annotated[str, typer.Argument(metavar="SWEEP", help="a sweep file (YAML), or a recipe with -p")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUES", help="one value, A,B,C, or 0..4; may be repeated"),
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: a cluster")] = "local",
    workers: Annotated[int, typer.Option(min=0, help="runs at a time here; 0: one, or one for each GPU")] = 0,
    output_dir: Annotated[Path | None, typer.Option(help="where the runs go; else runs/NAME")] = None,
    timeout: Annotated[float | None, typer.Option(min=1, metavar="SECONDS", help="stop a run after so long")] = None,
    part: Annotated[str, typer.Option(metavar="K/N", help="only the K-th of N parts, for job arrays")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the plan and start nothing")] = False,
) -> None:
    """Run a recipe many times: a grid, a list or random draws, over seeds; again, it runs what is missing."""
    from cookbook import board, launching, sweepfile
    from cookbook import sweep as sweeps

    _end_by_signals()
    console = terminal()
    with _requests():
        file = Path(what).expanduser()
        asked, lines, known = None, {}, file.suffix in (".yaml", ".yml")
        if known:
            asked, lines = sweepfile.read(file)
        if asked is None or parameter:
            asked = sweepfile.from_words(asked.recipe if asked else what, parameter or [], asked)
        asked = asked.model_copy(update={"timeout": timeout or asked.timeout})
        target = output_dir or (Path("runs") / file.stem if known and not asked.output_dir else None)
        plan = sweeps.part(sweeps.plan(asked, target, file=what if known else "", lines=lines), part)
        at_once = workers or launching.default_workers()
        board.show_plan(console, plan, at_once, engine)
        if dry_run or not plan.to_do:
            raise typer.Exit(0)
        with board.Board(console, plan, at_once) as seen:
            try:
                launching.run(plan, engine=engine, workers=at_once, tell=seen)
            except launching.StoppedError as error:
                typer.echo(f"cookbook: {error}", err=True)
    board.show_end(console, plan, seen)
    raise typer.Exit(int(bool(seen.failed or seen.left)))


@app.command()
def compare(
    paths: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="run folders, folders with runs below them, record files")
    ],
    metric: Annotated[str, typer.Option(metavar="NAME", help="compare by this score; else by the headline")] = "",
    by: Annotated[
        str, typer.Option(metavar="PARAM[,PARAM...]", help="group by these; else by all that differ but the seed")
    ] = "",
    output_dir: Annotated[Path | None, typer.Option(help="write CSV, Markdown and an HTML page there")] = None,
) -> None:
    """Compare finished runs: score, forgetting, memory, time, cost and size, best first."""
    from cookbook.compare import collect, comparisons

    with _requests():
        runs, faults = collect(paths)
        for path, why in faults:
            typer.echo(f"cookbook: left out {path}: {why}", err=True)
        done = comparisons(runs, metric, [name.strip() for name in by.split(",") if name.strip()])
        compared(terminal(), done)
        if output_dir:
            from cookbook.compare_page import write

            typer.echo("")
            for file in write(output_dir, done, runs, faults):
                typer.echo(f"wrote {here(file)}")


@app.command("export-data")
def export_data(
    what: Annotated[str, typer.Argument(metavar="RECIPE|DATA", help="a recipe, or a file, folder or Hub id of data")],
    tool: Annotated[str, typer.Option("--format", help="axolotl, llama-factory, openai, together, bedrock or nemo")],
    output_dir: Annotated[Path | None, typer.Option(help="a new folder; else runs/RECIPE-FORMAT")] = None,
    parameter: Parameters = None,
) -> None:
    """Write what a recipe trains on, or your data, in the form of another tool."""
    from cookbook.export import export

    with _requests():
        folder, lines = export(what, tool, output_dir, _given(parameter or []))
    typer.echo("\n".join([f"{here(folder)}, for {tool}:", *lines]))


@app.command("export-config")
def export_config(
    recipe: Annotated[str, typer.Argument(help="a number, a name, the beginning of one, or a path")],
    tool: Annotated[str, typer.Option(help="axolotl or llama-factory")],
    parameter: Parameters = None,
    part: Annotated[str, typer.Option(help="which run of several: a department of 03; sft or dpo of 05")] = "",
    data_dir: Annotated[
        Path | None, typer.Option(help="where export-data wrote to, if not to its own choice")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="a new file; else it is printed")] = None,
) -> None:
    """Write a recipe's training run as the YAML of another tool."""
    from cookbook.export import write_new
    from cookbook.export_config import export_config

    with _requests():
        text = export_config(recipe, tool, _given(parameter or []), part=part, folder=data_dir)
        if output:
            write_new(output, text)
    typer.echo(here(output) if output else text.rstrip())


@app.command()
def copy(
    recipe: Annotated[str, typer.Argument(help="a number, a name, the beginning of one, or a path")],
    dest: Annotated[Path, typer.Argument(help="a folder that does not exist yet, or is empty")],
    vendor: Annotated[bool, typer.Option("--vendor", help="with the source of the package, not a wheel")] = False,
    script: Annotated[bool, typer.Option("--script", help="with the recipe as a Python script, too")] = False,
) -> None:
    """Copy one recipe into a folder of its own: notebook, data, package, pinned requirements."""
    from cookbook import copying

    with _requests():
        names = copying.copy(batch.find(recipe), dest, vendor=vendor, script=script)
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


def _end_by_signals() -> None:
    for name in ("SIGTERM", "SIGHUP"):  # by default these would end this process and leave its runs alone
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))


@contextmanager
def _requests() -> Iterator[None]:
    """A request that cannot be run ends with 2 and its reason, Ctrl-C with 130."""
    try:
        yield
    except batch.RequestError as error:
        typer.echo(f"cookbook: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing is left running", err=True)
        raise typer.Exit(130) from None


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
