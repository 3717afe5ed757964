"""A sweep: one recipe, many sets of parameters. What it asks for, checked; what of it is done; what it will take."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cookbook import recipes
from cookbook.recipes import RequestError
from cookbook.sweepfile import Place, Range, Sweep

MOST_RUNS = 10_000
SAMPLE = 50  # finished runs from which the others are foretold
State = Literal["done", "missing", "failed", "outdated"]


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its folder, all its parameters as the notebook takes them, and those that vary."""

    folder: Path
    parameters: dict[str, Any]
    varied: dict[str, Any]
    state: State

    @property
    def name(self) -> str:
        """What tells it from the others, in words."""
        return " ".join(f"{k}={v}" for k, v in self.varied.items()) or "defaults"


@dataclass(frozen=True)
class Plan:
    """A checked sweep: the notebook, its runs, and what one takes as far as it is known (seconds: or None)."""

    notebook: Path
    runs: list[Run]
    sweep: Sweep
    folder: Path
    seconds_a_run: float | None
    bytes_a_run: int

    @property
    def to_do(self) -> list[Run]:
        return [run for run in self.runs if run.state != "done"]


def plan(sweep: Sweep, folder: Path | None = None, *, file: str = "", lines: Mapping[str, int] | None = None) -> Plan:
    """Check every run of a sweep and see which are done; nothing is started or written.

    Args:
        folder: where the runs' folders go; else the sweep's `output_dir`, else runs/sweep-RECIPE.
        file, lines: the sweep file and the lines of its keys, for messages.

    Raises:
        RequestError: naming every problem, with its line where it came from a file.
    """
    notebook = recipes.find(sweep.recipe)
    folder = Path(folder or sweep.output_dir or Path("runs") / f"sweep-{notebook.stem}").absolute()
    place = Place(file, lines or {})
    problems = _conflicts(sweep, place)
    total = count(sweep)
    if total > MOST_RUNS:
        problems.append(f"these are {total:,} runs; at most {MOST_RUNS:,} make one sweep")
    if problems:
        raise RequestError("\n".join(problems))
    asked = list(combinations(sweep))
    kinds = {name: facts[0] for name, facts in recipes.declared(notebook).items()}
    for run in asked:
        for name in sweep.random.parameters if sweep.random else ():
            if kinds.get(name) == "int" and isinstance(run[name], float):
                run[name] = round(run[name])
    checked: list[dict[str, Any]] = []
    for run in asked:
        try:
            checked.append(recipes.check_parameters(notebook, run))
        except RequestError as error:
            problems += [place.named(line) for line in str(error).splitlines()]
    if problems:
        raise RequestError("\n".join(dict.fromkeys(problems)))
    constant = {k: v for k, v in checked[0].items() if all(k in run and run[k] == v for run in checked)}
    code = recipes.code_hash(json.loads(notebook.read_text(encoding="utf-8"))["cells"])
    runs: dict[Path, Run] = {}
    for parameters in checked:
        varied = {k: v for k, v in parameters.items() if k not in constant}
        target = folder / _folder_name(notebook.stem, parameters)
        if target in runs and sweep.random:
            continue  # two draws of the same values
        if target in runs:
            raise RequestError(f"{runs[target].name} is asked for twice: two runs would write one folder")
        runs[target] = Run(target, parameters, varied, _state(target, parameters, code))
    _same_recipe(folder, notebook.stem)
    return Plan(notebook, list(runs.values()), sweep, folder, *_known(notebook, checked[0], runs.values()))


def part(whole: Plan, share: str) -> Plan:
    """The K-th of N parts of a plan ("2/8"), dealt out in turn; all of it for an empty `share`.

    Raises:
        RequestError: not K/N with K from 1 to N.
    """
    if not share:
        return whole
    found = re.fullmatch(r"(\d+)/(\d+)", share)
    number, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= parts:
        raise RequestError(f"--part {share}: write K/N, as in 1/8 to 8/8")
    return replace(whole, runs=whole.runs[number - 1 :: parts])


def count(sweep: Sweep) -> int:
    """How many runs a sweep has, without listing them."""
    seeds = sweep.seeds if isinstance(sweep.seeds, int) else len(sweep.seeds or [0])
    draws = sweep.random.draws if sweep.random else 1
    return math.prod(len(values) for values in sweep.grid.values()) * max(1, len(sweep.runs)) * draws * seeds


def combinations(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """The parameters of each run as the sweep states them, seeds innermost; draws follow the sweep's own seed."""
    import numpy as np

    drawn: list[dict[str, Any]] = [{}]
    if sweep.random:
        rng = np.random.default_rng(sweep.random.seed)
        drawn = [{k: _draw(rng, v) for k, v in sweep.random.parameters.items()} for _ in range(sweep.random.draws)]
    seeds = range(sweep.seeds) if isinstance(sweep.seeds, int) else sweep.seeds
    seeded = [{"SEED": seed} for seed in seeds] if seeds is not None else [{}]
    cells = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    for parts in itertools.product(cells, sweep.runs or [{}], drawn, seeded):
        yield {name: value for part in (sweep.fixed, *parts) for name, value in part.items()}


def _conflicts(sweep: Sweep, place: Place) -> list[str]:
    """Empty sections, parameters that two sections set, and OUTPUT_DIR."""
    problems = [
        f"{place.line(f'grid.{name}')}{name}: no value to try" for name, values in sweep.grid.items() if not values
    ]
    if sweep.seeds in (0, []) or (isinstance(sweep.seeds, int) and sweep.seeds < 0):
        problems.append(f"{place.line('seeds')}seeds: no seed to try")
    sections = {
        "fixed": set(sweep.fixed),
        "grid": set(sweep.grid),
        "runs": {name for entry in sweep.runs for name in entry},
        "random.parameters": set(sweep.random.parameters) if sweep.random else set(),
        "seeds": {"SEED"} if sweep.seeds is not None else set(),
    }
    for (one, names), (other, more) in itertools.combinations(sections.items(), 2):
        for name in sorted(names & more):
            if (one, other) != ("fixed", "runs"):  # an entry may differ from what is fixed
                problems.append(f"{place.named(name)} is set by {one} and by {other}; keep one")
    if any("OUTPUT_DIR" in names for names in sections.values()):
        problems.append(f"{place.named('OUTPUT_DIR')}: each run has a folder of its own; give --output-dir")
    return problems


def _draw(rng: Any, values: list[Any] | Range) -> Any:
    if isinstance(values, list):
        return values[int(rng.integers(len(values)))]
    if values.log:
        return float(math.exp(rng.uniform(math.log(values.low), math.log(values.high))))
    return float(rng.uniform(values.low, values.high))


def _folder_name(recipe: str, parameters: Mapping[str, Any]) -> str:
    """Readable, and the same for the same parameters, whatever else the sweep holds."""
    words = "_".join(f"{k}-{v}" for k, v in sorted(parameters.items()) if len(str(v)) <= 20)
    digest = hashlib.sha256(json.dumps([recipe, parameters], sort_keys=True).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', words)[:80]}_{digest}".lstrip("_.-")


def _state(folder: Path, parameters: Mapping[str, Any], code: str) -> State:
    """Whether a run's record stands, and is of these parameters and this notebook's code."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "failed" if (folder / "status.json").exists() else "missing"
    except (OSError, ValueError):
        return "missing"
    if status.get("status") != "ok":
        return "failed"
    same = status.get("parameters") == dict(parameters) and status.get("code_sha256") == code
    return "done" if same else "outdated"


def _same_recipe(folder: Path, recipe: str) -> None:
    other = recipe
    with suppress(OSError, ValueError, KeyError, TypeError):
        other = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["recipe"]
    if other != recipe:
        raise RequestError(f"{folder} holds a sweep of {other}; give another --output-dir")


def _known(notebook: Path, parameters: Mapping[str, Any], runs: Iterable[Run]) -> tuple[float | None, int]:
    """Seconds and bytes of a run: the median of this sweep's first finished ones, else those of the committed run.

    The committed run counts where it was of the same profile and trained the same arms; else nothing is known.
    """
    done = [run.folder for run in runs if run.state == "done"][:SAMPLE]
    if done:
        seconds = [json.loads((f / "status.json").read_text(encoding="utf-8"))["seconds"] for f in done]
        records = [json.loads((f / "results.json").read_text(encoding="utf-8")) for f in done]
        return statistics.median(seconds), round(statistics.median(_artifact(record) for record in records))
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((notebook.parent / "records" / f"{notebook.stem}.json").read_text(encoding="utf-8"))
        asked = {name: default for name, (_, default, _) in recipes.declared(notebook).items()} | dict(parameters)
        profiles = (asked.get("PROFILE"), "cpu" if asked.get("PROFILE") == "auto" else None)
        arms = {name: value for name, value in asked.items() if isinstance(value, bool | list)}  # what a run does
        if record["profile"] in profiles and arms.items() <= record["parameters"].items():
            return float(record["resources"]["seconds"]["total"]), _artifact(record)
    return None, 0


def _artifact(record: Mapping[str, Any]) -> int:
    return int(record.get("resources", {}).get("artifact_bytes", 0))
