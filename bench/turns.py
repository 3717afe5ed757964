"""Processes that take turns, a step at a time: one of them runs at any moment, and a slow minute slows all alike.

A process joins with its first step and waits; then each does one step, and whatever follows it up to its next, in
a fixed order. What has been loaded stays in memory meanwhile.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

HOST, PORT = "127.0.0.1", "BENCH_TURNS"  # the variable by which a process knows where to wait
WORD = b"."  # said by a process when it waits, and to it when it may go on
LOOK = 0.2  # seconds between two looks whether a process has died without a word


class Turn:
    """This process's place among those that take turns; without the variable it has not to wait."""

    def __init__(self) -> None:
        port = os.environ.pop(PORT, "")  # no child of this process is to wait as well
        self._line = socket.create_connection((HOST, int(port))) if port else None

    @property
    def shared(self) -> bool:
        return self._line is not None

    def wait(self) -> None:
        """Until it is this process's turn."""
        if self._line is not None:
            self._line.sendall(WORD)
            if not self._line.recv(len(WORD)):
                raise ConnectionError("who told this process when its turn is has ended")


def together(
    starts: Sequence[Callable[[ExitStack, dict[str, str]], subprocess.Popen[Any]]],
    limit: float,
    told: Callable[[int, int], None],
) -> list[str]:
    """Start processes one after another, each once all others wait, and let them take turns until all have ended.

    Args:
        starts: each starts a process with these variables beside its own, and has the stack end it.
        limit: seconds that a process may run, waiting left out.
        told: gets how many turns each has had, and how many processes are left.

    Returns:
        Why a process ended too soon, or nothing, in the order of `starts`.
    """
    why = [""] * len(starts)
    spent = [0.0] * len(starts)
    running: list[tuple[int, subprocess.Popen[Any], socket.socket]] = []
    with ExitStack() as stack, socket.create_server((HOST, 0)) as door:
        door.settimeout(LOOK)
        for place, start in enumerate(starts):
            began = time.monotonic()
            process = start(stack, {PORT: str(door.getsockname()[1])})
            line = _joined(door, process, began + limit)
            spent[place] = time.monotonic() - began
            if line is not None and _waits(stack.enter_context(line), process, began + limit):
                running.append((place, process, line))
            else:
                why[place] = ended(process, limit, spent[place])
        rounds = 0
        while running:
            for one in list(running):
                place, process, line = one
                began = time.monotonic()
                waits = _goes(line) and _waits(line, process, began + limit - spent[place])
                spent[place] += time.monotonic() - began
                if not waits:
                    why[place] = ended(process, limit, spent[place])
                    running.remove(one)
            rounds += 1
            told(rounds, len(running))
    return why


def _joined(door: socket.socket, process: subprocess.Popen[Any], until: float) -> socket.socket | None:
    """The line to a process that has just been started; None if it ends before, or takes too long."""
    while process.poll() is None and time.monotonic() < until:
        try:
            line, _ = door.accept()
        except TimeoutError:
            continue
        line.settimeout(LOOK)
        return line
    return None


def _goes(line: socket.socket) -> bool:
    """Tell a process to go on; false if it is no longer there."""
    try:
        line.sendall(WORD)
    except OSError:
        return False
    return True


def _waits(line: socket.socket, process: subprocess.Popen[Any], until: float) -> bool:
    """Whether the process comes to wait again; else it has ended, or takes too long."""
    while time.monotonic() < until:
        try:
            return bool(line.recv(len(WORD)))
        except TimeoutError:
            if process.poll() is not None:
                return False
        except OSError:
            return False
    return False


def ended(process: subprocess.Popen[Any], limit: float, spent: float = 0.0) -> str:
    """Wait for a process that has run for `spent` seconds: why it ended, if it should not have."""
    try:
        code = process.wait(max(0.0, limit - spent))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"not done after {limit:.0f} s"
    return f"ended with exit code {code}" if code else ""
