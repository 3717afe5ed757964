"""What a notebook costs over its own code: 01 through the launcher, and as the script that `cookbook copy` writes.

python -m bench.overhead notebook|script OUT_JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.task import ROOT

RECIPE = "01_customer_service_qlora"
WAYS = ("notebook", "script")
GIVEN = {"PROFILE": "cpu", "EPOCHS": 0.1, "COMPARE_STEPS": 0}  # some minutes, most of them evaluation


def measure(way: str) -> dict[str, Any]:
    """Wall seconds of one run, from its command to its end, and its scores.

    Raises:
        RuntimeError: the run failed.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with TemporaryDirectory() as work:
        folder = Path(work, "run")
        if way == "script":
            copied = [sys.executable, "-m", "cookbook", "copy", RECIPE, f"{work}/copy", "--script"]
            subprocess.run(copied, check=True, env=environment, stdout=subprocess.DEVNULL)
            words = [f"{work}/copy/{RECIPE}.py", "--output-dir", str(folder)]
            words += [w for k, v in GIVEN.items() for w in (f"--{k.lower().replace('_', '-')}", str(v))]
        else:
            words = ["-m", "cookbook", "run", RECIPE, "--output-dir", str(folder)]
            words += [w for k, v in GIVEN.items() for w in ("-p", k, str(v))]
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{way}: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
        record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {"seconds": seconds, "scores": {name: metric["after"] for name, metric in record["metrics"].items()}}


if __name__ == "__main__":
    way, out = sys.argv[1:]
    Path(out).write_text(json.dumps(measure(way), indent=1), encoding="utf-8")
