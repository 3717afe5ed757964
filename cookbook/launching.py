"""Runs a plan of many runs: on this machine, some at a time, or as tasks of a Ray cluster."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cookbook import batch, results
from cookbook.batch import BusyError, RequestError, RunStatus
from cookbook.ledger import PROGRESS
from cookbook.sweep import Plan, Run

LEAST_FREE = 300_000_000  # bytes on the disk of the runs, below which no further one is started
RETRIES = 3  # of a run whose node or worker was lost; a run that fails by itself is not tried again
LOCK_SECONDS = 60  # how long a retried run waits for the one whose place it takes to be gone
Tell = Callable[[Run, dict[str, Any]], None]


class StoppedError(RuntimeError):
    """The sweep cannot go on; what is finished is kept. The message says why."""


def run(plan: Plan, *, engine: str = "local", workers: int = 0, tell: Tell) -> None:
    """Run what of a plan is to do. A run that fails is a status of its own, and the others go on.

    Args:
        engine: "local", or "ray": the cluster that RAY_ADDRESS names or that this machine belongs to, else one
            started here.
        workers: runs at a time on this machine; 0: as many as there are GPUs, else one. They share its cores.
        tell: called from one thread at a time with a run and its events: {"kind": "begin"}, those of
            `batch.run_one`, and last {"kind": "end", "status": RunStatus} or {"kind": "elsewhere"} where another
            launcher has it.

    Raises:
        RequestError: the folder cannot be written, the disk is too small for what is known of the runs, or there
            is no such engine.
        StoppedError: the disk is full.
    """
    if engine not in ("local", "ray"):
        raise RequestError(f"--engine {engine}: choose local or ray")
    _write_plan(plan)
    _fits(plan)
    for one in plan.to_do:
        if one.state == "outdated":
            _set_aside(plan.folder, one.folder)
    lock = threading.Lock()

    def say(one: Run, event: dict[str, Any]) -> None:
        with lock:
            tell(one, event)

    if engine == "ray":
        _on_ray(plan, say)
    else:
        _here(plan, workers or default_workers(), say)


def default_workers() -> int:
    """One for each GPU, else one: runs that share two cores take as long as one after the other."""
    return max(1, gpus())


def gpus() -> int:
    """How many CUDA devices torch sees; without a driver torch is not asked."""
    if not shutil.which("nvidia-smi"):
        return 0
    import torch

    return torch.cuda.device_count()


def threads(count: float) -> dict[str, str]:
    """The environment of a run that may use so many threads."""
    number = str(max(1, math.floor(count)))
    return {name: number for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def _here(plan: Plan, workers: int, tell: Tell) -> None:
    """A pool of threads, each of which starts one process a run, and waits for it."""
    stop, places = threading.Event(), SimpleQueue[dict[str, str]]()
    devices = gpus()
    for number in range(workers):
        place = threads(plan.sweep.resources.cpus or results.cores() / workers) if workers > 1 else {}
        places.put(place | ({"CUDA_VISIBLE_DEVICES": str(number % devices)} if devices and workers > 1 else {}))

    def one(wanted: Run) -> None:
        if stop.is_set():
            return
        _room(plan.folder)
        place = places.get()
        try:
            tell(wanted, {"kind": "begin"})
            status = batch.run_one(
                plan.notebook,
                wanted.folder,
                wanted.parameters,
                timeout=plan.sweep.timeout,
                progress=lambda event: tell(wanted, event),
                environment=place,
                stop=stop,
            )
            _finish(plan, wanted, status, tell)
        except BusyError:  # another launcher is writing there
            tell(wanted, {"kind": "elsewhere"})
        finally:
            places.put(place)

    with ThreadPoolExecutor(workers) as pool, _stopped_by_a_full_disk(plan.folder):
        try:
            for done in as_completed([pool.submit(one, wanted) for wanted in plan.to_do]):
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _on_ray(plan: Plan, tell: Tell) -> None:
    """The same runs as tasks. The folder must be one that all nodes share; the notebook travels with the task."""
    try:
        import ray
    except ImportError as error:
        raise RequestError('--engine ray needs Ray: pip install "fine-tuning-cookbook[ray]"') from error
    mine = not ray.is_initialized()
    if mine:
        ray.init(log_to_driver=False, logging_level="ERROR")
    needs = plan.sweep.resources
    cpus = needs.cpus or 1
    task = ray.remote(_task).options(
        num_cpus=cpus, num_gpus=needs.gpus, memory=int(needs.memory_gb * 1e9) or None, max_retries=RETRIES
    )
    text = ray.put(plan.notebook.read_text(encoding="utf-8"))
    waiting: dict[Any, tuple[Run, batch.Tail]] = {}
    begun: set[Path] = set()
    try:
        _room(plan.folder)
        for wanted in plan.to_do:
            (wanted.folder / PROGRESS).unlink(missing_ok=True)
            asked = task.remote(
                text, plan.notebook.name, str(wanted.folder), wanted.parameters, plan.sweep.timeout, threads(cpus)
            )
            waiting[asked] = wanted, batch.Tail(wanted.folder / PROGRESS, "stage")
        while waiting:
            ended, _ = ray.wait(list(waiting), timeout=0.5)
            for wanted, tail in waiting.values():
                for event in tail:
                    if wanted.folder not in begun:
                        begun.add(wanted.folder)
                        tell(wanted, {"kind": "begin"})
                    tell(wanted, event)
            for asked in ended:
                wanted, _ = waiting.pop(asked)
                with _stopped_by_a_full_disk(plan.folder):
                    _finish(plan, wanted, _answer(ray, asked, plan, wanted), tell)
    finally:
        for asked in waiting:
            ray.cancel(asked, force=True)
        if mine:
            ray.shutdown()


def _task(
    text: str, name: str, folder: str, parameters: dict[str, Any], timeout: float | None, environment: dict[str, str]
) -> dict[str, Any]:
    """What a Ray worker does: `run_one`, once the process whose place it takes has let go of the folder."""
    deadline = time.monotonic() + LOCK_SECONDS
    with tempfile.TemporaryDirectory(prefix="cookbook-") as work:
        notebook = Path(work, name)
        notebook.write_text(text, encoding="utf-8")
        while True:
            try:
                status = batch.run_one(notebook, Path(folder), parameters, timeout=timeout, environment=environment)
                return status.model_dump(mode="json")
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def _answer(ray: Any, asked: Any, plan: Plan, wanted: Run) -> RunStatus:
    """The status of a finished task; a task that Ray gave up gets one here."""
    try:
        return RunStatus.model_validate(ray.get(asked))
    except (ray.exceptions.RayError, OSError) as error:
        why = " ".join(str(error).split())
        status = RunStatus(
            status="kernel_died",
            seconds=0.0,
            error=f"Ray could not finish this run, nor in its place another: {why}"[:2000],
            cell=None,
            notebook=plan.notebook.name,
            code_sha256="",
            parameters=wanted.parameters,
            started=results.now(),
        )
        wanted.folder.mkdir(parents=True, exist_ok=True)
        results.write_json(wanted.folder / "status.json", status.model_dump(mode="json"))
        return status


def _finish(plan: Plan, wanted: Run, status: RunStatus, tell: Tell) -> None:
    if status.status == "ok" and not plan.sweep.models:
        shutil.rmtree(wanted.folder / "model", ignore_errors=True)
    tell(wanted, {"kind": "end", "status": status})


def _write_plan(plan: Plan) -> None:
    """`sweep.json`: which folder is which run; a later `sweep` of another recipe is refused by it."""
    runs = [{"folder": run.folder.name, "parameters": run.parameters, "varied": run.varied} for run in plan.runs]
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        results.write_json(plan.folder / "sweep.json", {"recipe": plan.notebook.stem, "runs": runs})
    except OSError as error:
        raise RequestError(f"{plan.folder}: cannot be written ({error.strerror}); give --output-dir") from error


def _set_aside(folder: Path, old: Path) -> None:
    """Keep a run of an older version of the notebook, where `compare` does not look."""
    status = json.loads((old / "status.json").read_text(encoding="utf-8"))
    target = folder / ".superseded" / f"{old.name}_{status.get('code_sha256', '')[:8]}"
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    with suppress(FileNotFoundError):
        old.rename(target)


def _fits(plan: Plan) -> None:
    """Refuse what cannot fit on the disk by what is known of such runs."""
    need = plan.bytes_a_run * len(plan.to_do) if plan.sweep.models else 0
    free = shutil.disk_usage(plan.folder).free
    if need > free:
        raise RequestError(
            f"{plan.folder}: {len(plan.to_do)} runs leave models of about {need / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free; write `models: false` in the sweep file, or choose another --output-dir"
        )


def _room(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        raise StoppedError(
            f"{folder}: only {free / 1e6:.0f} MB are free on this disk; finished runs are kept: free some space and "
            "give the same command again"
        )


@contextmanager
def _stopped_by_a_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoppedError(
            f"{folder}: {error.strerror or error}; finished runs are kept: mend it and give the same command again"
        ) from error
