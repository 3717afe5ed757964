"""The page over all machines that the benchmark ran on: each has a folder with a page of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import machine, tables
from bench.arms import BASELINE, MAIN

GPU_PAGE = "gpu.md"  # by bench/gpu.py, beside the overview


def write(folder: Path) -> Path:
    """README.md in `folder`, from the benchmark.json of each machine's folder below."""
    files = sorted(folder.glob("*/benchmark.json"))
    found = {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    written = folder / "README.md"
    written.write_text(page(found, gpu=(folder / GPU_PAGE).is_file()), encoding="utf-8")
    return written


def page(found: dict[str, dict[str, Any]], *, gpu: bool) -> str:
    """What was aimed at and what came out, a column for each machine."""
    rows = tables.bar_rows([told["bars"] for told in found.values()])
    for arm in (MAIN, BASELINE):
        rates = [told["arms"].get(arm, {}).get("tokens_per_second") for told in found.values()]
        rows.append([f"tokens a second, `{arm}`", "", *(f"{rate['median']:.0f}" if rate else "" for rate in rates)])
    peaks = [told["peak_gflops"].values() for told in found.values()]
    rows.append(["peak, GFLOP/s", "", *(f"{max(peak):,.0f}" if peak else "" for peak in peaks)])
    head = ["", "aim", *(f"[{machine.kind(told['machine'])}]({where}/README.md)" for where, told in found.items())]
    parts = [
        "# How fast it trains, beside what people would use instead",
        "The same LoRA on the same rows, by notebook 01 and by other trainers, each in a process of its own. Ratios "
        f"are those of one run on one machine, and all are of the arm `{MAIN}`, which trains what the others train. "
        "A machine's page has all arms, what each lever gives, and where the time goes; it is of the code that was "
        "there when `make bench` last ran on such a machine. Run on another, the command adds a column.",
        tables.table(head, rows),
        f"GPUs: [measured]({GPU_PAGE})." if gpu else "GPUs: `make bench-gpu` measures one; it has not been run yet.",
    ]
    return "\n\n".join(parts) + "\n"
