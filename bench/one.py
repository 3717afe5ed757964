"""One arm, once, in this process: `python -m bench.one ARM ROUND TASK_JSON OUT_JSON`.

ARM may name a lever after a colon (`lora:fp32`, of bench/levers.py). The file written holds what the clock saw, or
in `error` why there is nothing.
"""

from __future__ import annotations

import json
import platform
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import machine
from bench import task as tasks
from bench.watch import Clock

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
TOOLS = {"unsloth": "unsloth", "llama-factory": "llamafactory", "litgpt": "litgpt"}


def run(name: str, number: int, task: tasks.Task, clock: Clock) -> dict[str, Any]:
    """Train; what the arm learnt must be every token of the task once."""
    from bench.arms import ARMS
    from bench.levers import LEVERS

    arm, _, lever = name.partition(":")
    record = {"arm": arm, "lever": lever, "round": number, "task": task.fingerprint}
    try:
        (LEVERS[lever].train if lever else ARMS[arm].train)(task, clock)
        record |= clock.result()
        if lever and LEVERS[lever].environment:
            record["peaks"] = machine.peaks()  # which the change may move as well
        if record["tokens"] != task.tokens or record["supervised"] not in (None, task.supervised):
            seen = f"{record['tokens']} tokens, {record['supervised']} of them supervised"
            raise ValueError(f"the task has {task.tokens} and {task.supervised}, this arm learnt from {seen}")
    except Exception as error:
        traceback.print_exc()
        record["error"] = f"{type(error).__name__}: {error}".strip().splitlines()[-1]
    tool = [TOOLS[arm]] if arm in TOOLS else []
    return record | {"versions": {"python": platform.python_version()} | versions(*tool, *PACKAGES)}


def versions(*names: str) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> int:
    clock = Clock()
    name, number, task, out = sys.argv[1:]
    record = run(name, int(number), tasks.read(task), clock)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(record.get("error") or f"{name}: {record['tokens_per_second']:.0f} tokens/s, {record['seconds']:.1f} s")
    return int("error" in record)


if __name__ == "__main__":
    sys.exit(main())
