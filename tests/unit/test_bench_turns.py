"""Processes of the benchmark that take turns: in order, one at a time, and what becomes of one that fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench import turns
from bench.task import ROOT

WORKER = """
import sys, time
from pathlib import Path
from bench.turns import Turn

name, steps, file = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
turn = Turn()
for step in range(steps):
    turn.wait()
    with file.open("a") as said:
        said.write(f"{name}{step}<")
    time.sleep(0.02)  # would be seen if another one ran
    with file.open("a") as said:
        said.write(">")
sys.exit(name == "bad")
"""


def starter(name: str, steps: int, file: Path) -> Callable[[ExitStack, dict[str, str]], subprocess.Popen[Any]]:
    def start(stack: ExitStack, more: dict[str, str]) -> subprocess.Popen[Any]:
        command = [sys.executable, "-c", WORKER, name, str(steps), str(file)]
        process = subprocess.Popen(command, env={"PYTHONPATH": str(ROOT)} | more)
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    return start


def test_one_step_each_in_order_until_all_have_ended(tmp_path: Path) -> None:
    file, told = tmp_path / "said", []
    starts = [starter(name, steps, file) for name, steps in (("a", 3), ("none", 0), ("b", 2), ("bad", 1))]
    why = turns.together(starts, 60, lambda *how: told.append(how))
    assert file.read_text() == "a0<>b0<>bad0<>a1<>b1<>a2<>"
    assert why == ["", "", "", "ended with exit code 1"]
    assert told == [(1, 2), (2, 1), (3, 0)]


def test_a_process_that_takes_too_long_is_ended_and_the_others_go_on(tmp_path: Path) -> None:
    file = tmp_path / "said"

    def slow(stack: ExitStack, more: dict[str, str]) -> subprocess.Popen[Any]:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    why = turns.together([slow, starter("a", 1, file)], 2, lambda *_: None)
    assert why == ["not done after 2 s", ""] and file.read_text() == "a0<>"


def test_without_the_variable_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(turns.PORT, raising=False)
    turn = turns.Turn()
    turn.wait()
    assert not turn.shared
