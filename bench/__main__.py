"""`python -m bench`: every arm in a process of its own, in turn, each lever, larger models, and the report.

What has been measured is kept in runs/bench and not measured again; remove a file there to have it anew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil

from bench import machine, overhead, report, sizes
from bench import task as tasks
from bench.arms import ARMS, BASELINE, MAIN
from bench.levers import BESIDE, LEVERS, UNCHANGED

PARTS = ("arms", "levers", "sizes", "evaluation", "profile", "overhead", "report")
PROFILED = (BASELINE, MAIN)
OVERHEAD_ROUNDS = 2
LIMIT = 1800.0  # seconds of one process


@dataclass(frozen=True)
class Job:
    """One process: its file under runs/bench, its command, and about how long it takes."""

    file: str
    words: tuple[str, ...]
    seconds: float
    python: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)


def interpreter(arm: str) -> str | None:
    """The Python that runs an arm; None where its environment has not been made."""
    folder = ARMS[arm].environment
    return tasks.python(folder) if folder else sys.executable


def plan(folder: Path, parts: list[str], arms: list[str], rounds: int) -> Iterator[Job]:
    """The jobs in the order in which they are done.

    Arms take turns, so that a slow hour slows all of them; ours stands right behind the baseline, whose ratio counts.
    """
    arms = sorted(arms, key=lambda arm: arm not in (BASELINE, MAIN))
    task = str(folder / "task.json")

    def one(arm: str, number: int, lever: str = "") -> Job:
        name, how = f"{arm}:{lever}".rstrip(":"), LEVERS[lever or UNCHANGED]
        file = f"{name.replace(':', '-')}-{number}.json"
        words = ("-m", "bench.one", name, str(number), task, str(folder / file))
        return Job(file, words, ARMS[arm].seconds, interpreter(arm) or "", how.environment)

    if "arms" in parts:
        for number in range(rounds):
            file = f"peak-{number}.json"
            yield Job(file, ("-m", "bench.machine", task, str(folder / file)), 30.0)
            yield from (one(arm, number) for arm in arms)
    if "levers" in parts:
        here = machine.words()
        names = [name for name, lever in LEVERS.items() if name != UNCHANGED and lever.needs in here]
        yield one(MAIN, 0, UNCHANGED)  # before and after all others
        yield from (one(MAIN, 0, name) for name in names if not LEVERS[name].beside)
        yield one(MAIN, 1, UNCHANGED)
        yield one(MAIN, BESIDE, UNCHANGED)
        yield from (one(MAIN, 0, name) for name in names if LEVERS[name].beside)
        yield Job("products.json", ("-m", "bench.products", task, str(folder / "products.json")), 40.0)
    if "evaluation" in parts:
        out = str(folder / "evaluation.json")
        yield Job("evaluation.json", ("-m", "bench.evaluation", task, out), 300.0)
    if "profile" in parts:
        for arm in PROFILED:
            file = f"profile-{arm}.json"
            words = ("-m", "bench.profiled", arm, task, str(folder / file))
            yield Job(file, words, ARMS[arm].seconds, interpreter(arm) or "")
    if "overhead" in parts:
        for number in range(OVERHEAD_ROUNDS):
            for way in overhead.WAYS:
                file = f"overhead-{way}-{number}.json"
                yield Job(file, ("-m", "bench.overhead", way, str(folder / file)), 200.0)


def done(file: Path, fingerprint: str) -> bool:
    """Whether a job's result is there, of this task and without an error."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not found.get("error") and found.get("task", fingerprint) == fingerprint


def run(job: Job, folder: Path, threads: int) -> float:
    """Start one job and wait; its seconds. What it said goes to a log beside its result, an error also into that."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(tasks.ROOT)} | job.environment
    file, log, start = folder / job.file, (folder / job.file).with_suffix(".log"), time.perf_counter()
    file.unlink(missing_ok=True)
    with log.open("w", encoding="utf-8") as said:
        command = [job.python, *job.words]
        process = subprocess.Popen(command, cwd=tasks.ROOT, env=environment, stdout=said, stderr=said)
        try:
            process.wait(LIMIT)
            why = f"ended with exit code {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"not done after {LIMIT:.0f} s"
        finally:
            process.kill()
            process.wait()
    if why and not file.is_file():
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        file.write_text(json.dumps({"error": ": ".join([why, *last])}), encoding="utf-8")
    return time.perf_counter() - start


def measure(folder: Path, jobs: list[Job], task: tasks.Task) -> None:
    """Do what is missing, with a line for each job: its outcome and the time left."""
    missing = [job for job in jobs if not done(folder / job.file, task.fingerprint)]
    if len(missing) < len(jobs):
        print(f"{len(jobs) - len(missing)} of {len(jobs)} measurements are there")
    spent: dict[str, list[float]] = {}
    for place, job in enumerate(missing):
        kind = job.file.rsplit("-", 1)[0]
        spent.setdefault(kind, []).append(run(job, folder, task.threads))
        rest = sum(statistics.median(spent.get(j.file.rsplit("-", 1)[0], [j.seconds])) for j in missing[place + 1 :])
        found = json.loads((folder / job.file).read_text(encoding="utf-8"))
        outcome = found.get("error") or f"{spent[kind][-1]:.0f} s"
        if rate := found.get("tokens_per_second"):
            outcome += f", {rate:.0f} tokens/s" if isinstance(rate, float) else ""
        print(
            f"[{place + 1}/{len(missing)}] {job.file[:-5]}: {outcome}; {timedelta(seconds=round(rest))} left",
            flush=True,
        )


def larger(folder: Path, task: tasks.Task, arms: list[str]) -> None:
    """The baseline and ours on models of other sizes, each in a folder of its own; on one of them all arms."""
    for shape in sizes.SHAPES:
        sub = folder / sizes.FOLDER / shape
        scaled = sizes.scaled(task, shape, sub)
        jobs = partial(plan, sub, ["arms"], rounds=sizes.ROUNDS)
        missing = [
            arm
            for arm in sizes.arms(shape, arms)
            if not all(done(sub / job.file, scaled.fingerprint) for job in jobs([arm]))
        ]
        free = psutil.virtual_memory().available / 1e9
        for arm in [arm for arm in missing if sizes.gigabytes(shape, arm) > free]:
            print(f"{shape}, {arm}: left out, that needs {sizes.gigabytes(shape, arm)} GB of free memory")
            missing.remove(arm)
        if not missing:
            continue
        print(f"{shape}:")
        with sizes.weights(scaled, task.model):
            scaled.write(sub / "task.json")
            facts(sub, scaled)
            measure(sub, list(jobs(missing)), scaled)


def facts(folder: Path, task: tasks.Task) -> None:
    """The machine in words and a token's arithmetic, once a task."""
    file = folder / "machine.json"
    if not done(file, task.fingerprint):
        found = {"machine": machine.words(), "flops_per_token": machine.flops_per_token(task)}
        file.write_text(json.dumps(found | {"task": task.fingerprint}, indent=1), encoding="utf-8")


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of all arms (default: 5)")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"default: {','.join(ARMS)}")
    parser.add_argument("--only", default=",".join(PARTS), help=f"default: {','.join(PARTS)}")
    parser.add_argument("--folder", type=Path, default=tasks.FOLDER, help="of the measurements")
    parser.add_argument("--output", type=Path, default=report.FOLDER, help="of the report")
    asked = parser.parse_args(given)
    arms, parts = asked.arms.split(","), asked.only.split(",")
    for name, known in [(a, ARMS) for a in arms] + [(p, PARTS) for p in parts]:
        if name not in known:
            parser.error(f"there is no {name!r}; choose from {', '.join(known)}")
    for arm in [arm for arm in arms if interpreter(arm) is None]:
        print(f"{arm} is left out: there is no {ARMS[arm].environment} (make {ARMS[arm].made_by})")
        arms.remove(arm)
    task = tasks.read(file) if (file := asked.folder / "task.json").is_file() else tasks.prepare(file)
    facts(asked.folder, task)
    measure(asked.folder, list(plan(asked.folder, parts, arms, asked.rounds)), task)
    if "sizes" in parts:
        larger(asked.folder, task, arms)
    if "report" in parts:
        print("written:", *(path.name for path in report.write(asked.folder, asked.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
