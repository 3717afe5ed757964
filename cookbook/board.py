"""What a sweep looks like: its plan, a live table while it runs (lines where there is no terminal), and its end."""

from __future__ import annotations

import time
from collections import Counter, deque
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cookbook import results
from cookbook.batch import RunStatus
from cookbook.console import facts, failure, here
from cookbook.sweep import Plan, Run

SHOWN = 8  # runs that have ended, in the live table
STATES = {"done": "done before", "failed": "failed before, run again", "outdated": "of an older notebook, run again"}


def show_plan(console: Console, plan: Plan, workers: int, engine: str) -> None:
    """What will be run, what is done already, and what the rest takes by what is known."""
    states = Counter(run.state for run in plan.runs)
    said = [f"{states[state]} {text}" for state, text in STATES.items() if states[state]]
    place = "on Ray" if engine == "ray" else f"{workers} at a time"
    lines = [
        f"{plan.notebook.stem} → {here(plan.folder)}",
        f"{len(plan.runs)} runs{''.join(f', {text}' for text in said)}; {len(plan.to_do)} to do, {place}",
    ]
    for name in dict.fromkeys(name for run in plan.runs for name in run.varied):
        values = list(dict.fromkeys(str(run.varied[name]) for run in plan.runs if name in run.varied))
        more = f" … {len(values)} values" if len(values) > 12 else ""
        lines.append(f"  {name}: {', '.join(values[:12])}{more}")
    if plan.to_do:
        lines.append(_forecast(plan))
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _forecast(plan: Plan) -> str:
    if plan.seconds_a_run is None:
        return "time: not known yet; the first run that ends will tell"
    seconds = plan.seconds_a_run * len(plan.to_do)
    first = plan.to_do[0].parameters
    rate, currency = first.get("RATE_PER_HOUR", 0.0), first.get("CURRENCY", "EUR")
    cost = f", {seconds / 3600 * rate:.2f} {currency}" if rate else ""
    return f"time: about {_clock(seconds)} one after the other{cost}, at {_clock(plan.seconds_a_run)} a run"


class Board:
    """Keeps and shows the state of every run; `with Board(…) as board: launching.run(…, tell=board)`."""

    def __init__(self, console: Console, plan: Plan, workers: int) -> None:
        self._console, self._plan, self._workers = console, plan, max(1, workers)
        self._running: dict[Path, tuple[Run, float, str]] = {}
        self._last: deque[tuple[str, Run, str]] = deque(maxlen=SHOWN)
        self._seconds: list[float] = []
        self.failed: list[tuple[Run, RunStatus]] = []
        self.elsewhere = self.ok = 0
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    @property
    def left(self) -> int:
        """Runs that have not ended."""
        return len(self._plan.to_do) - self.ok - len(self.failed) - self.elsewhere

    def __call__(self, run: Run, event: dict[str, Any]) -> None:
        kind, now = event["kind"], time.monotonic()
        if kind == "begin":
            self._running[run.folder] = run, now, "starting"
        elif kind in ("end", "elsewhere"):
            self._running.pop(run.folder, None)
            self._ended(run, event.get("status"))
        elif run.folder in self._running and (text := _words(event)):
            self._running[run.folder] = run, self._running[run.folder][1], text
        if self._live:
            self._live.update(self._table(now), refresh=True)

    def _ended(self, run: Run, status: RunStatus | None) -> None:
        if status is None:
            self.elsewhere += 1
            word, text = "elsewhere", "another launcher is at it"
        elif status.status == "ok":
            self.ok += 1
            self._seconds.append(status.seconds)
            word, text = "ok", f"{_clock(status.seconds)}  {_headline(run.folder)}"
        else:
            self.failed.append((run, status))
            word, text = "failed", f"{_clock(status.seconds)}  {failure(status)}"
        self._last.append((word, run, text))
        if not self._live:
            done = len(self._plan.to_do) - self.left
            line = f"[{done}/{len(self._plan.to_do)}] {word:<6} {run.name}  {text}{self._remaining()}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _remaining(self) -> str:
        known = self._seconds or ([self._plan.seconds_a_run] if self._plan.seconds_a_run else [])
        if not known or not self.left:
            return ""
        return f"  (about {_clock(sum(known) / len(known) * self.left / self._workers)} left)"

    def _table(self, now: float) -> Group:
        table = Table(box=None, header_style="bold", pad_edge=False)
        wide = min(48, max(len(run.name) for run in self._plan.runs))
        for name, width in ("", 9), ("run", wide), ("", None):  # where room is short the last column gives way
            table.add_column(name, overflow="ellipsis", no_wrap=True, min_width=width, max_width=width)
        for word, run, text in self._last:
            table.add_row(word, escape(run.name), escape(text), style="red" if word == "failed" else "dim")
        for run, began, text in self._running.values():
            table.add_row("running", escape(run.name), escape(f"{_clock(now - began)}  {text}"))
        queued = self.left - len(self._running)
        head = f"queued {queued}  running {len(self._running)}  ok {self.ok}  failed {len(self.failed)}"
        return Group(head + self._remaining(), table)


def show_end(console: Console, plan: Plan, board: Board) -> None:
    """How many are ok, which failed and why, and what to do next."""
    done = sum(run.state == "done" for run in plan.runs)
    counts = {"ok": board.ok, "done before": done, "failed": len(board.failed), "elsewhere": board.elsewhere}
    counts["not run"] = board.left
    lines = ["", ", ".join(f"{number} {word}" for word, number in counts.items() if number)]
    causes: dict[str, list[Run]] = {}
    for run, status in board.failed:
        causes.setdefault(failure(status), []).append(run)
    for cause, runs in causes.items():
        names = "; ".join(run.name for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
        lines += [f"  {cause}", f"    {names}", f"    {here(runs[0].folder / 'executed.ipynb')}"]
    if board.ok or done:
        lines += ["", "Next:", f"  cookbook compare {here(plan.folder)}"]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _words(event: dict[str, Any]) -> str:
    if event["kind"] == "cell":
        return str(event["heading"] or event["line"])[:60]
    if "stage" in event and event.get("event") == "start":
        return str(event["stage"])
    return facts(event) if "stage" not in event else ""


def _headline(folder: Path) -> str:
    try:
        record = results.read(folder)
    except (OSError, ValueError):
        return ""
    return f"{record.headline} {record.metrics[record.headline].after:.3g}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
