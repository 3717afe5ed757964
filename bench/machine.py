"""The machine in words, the peak of its matrix product, and what a token costs by arithmetic.

`python -m bench.machine TASK_JSON OUT_JSON` measures the peak, in a process of its own as the arms have.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

from bench.task import Task, read, threads

FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX BF16"}
# Of products, (rows, inner) with (inner, columns): large ones, and one that lies in a core's cache.
SHAPES, ROUNDS = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (1024, 576, 1536)), 24


def words() -> str:
    """Kind of processor, cores used, instruction sets, memory: nothing that tells one machine from its like."""
    import psutil

    info = Path("/proc/cpuinfo")
    told = info.read_text(encoding="utf-8") if info.is_file() else ""
    found = dict(line.split(":", 1) for line in told.replace("\t", "").splitlines() if ":" in line)
    sets = [name for flag, name in FLAGS.items() if flag in found.get("flags", "").split()]
    kind = found.get("model name", platform.processor() or platform.machine()).strip()
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory"
    return ", ".join([f"{threads()} cores of {kind}", *sets, memory])


def name(words: str) -> str:
    """A folder's name for a machine in words: "2 cores of AMD EPYC, AVX2, AVX-512, …" has amd-epyc-avx-512."""
    return re.sub(r"[^a-z0-9]+", "-", kind(words).lower()).strip("-")


def kind(words: str) -> str:
    """Its processor and the last of its instruction sets: AMD EPYC, AVX-512."""
    cores, *sets, _ = re.sub(r"\((R|TM)\)", "", words).split(", ")
    return ", ".join([cores.split(" of ", 1)[-1], *sets[-1:]])


def peaks() -> dict[str, float]:
    """GFLOP/s of torch's matrix product by type: the best of many, of some shapes, interleaved."""
    import torch

    best = dict.fromkeys(("float32", "bfloat16"), 0.0)
    for rows, inner, columns in SHAPES:
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        pairs = {name: (a.to(kind), b.to(kind)) for name in best for kind in [getattr(torch, name)]}
        for _ in range(ROUNDS):
            for name, (x, y) in pairs.items():
                start = time.perf_counter()
                torch.mm(x, y)
                rate = 2 * rows * inner * columns / (time.perf_counter() - start) / 1e9
                best[name] = max(best[name], rate)
    return best


def flops_per_token(task: Task, rows: int = 8) -> float:
    """Operations of one forward and backward of the LoRA model, a token of real text, scores of answers included.

    Counted by torch as they are made, on rows without padding, without recomputation; frozen weights get no gradient.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    from bench.arms import lora
    from cookbook import models

    models.quiet()
    base = AutoModelForCausalLM.from_pretrained(task.model, attn_implementation="eager")
    model: Any = get_peft_model(base, LoraConfig(**lora(task))).train()
    counted = FlopCounterMode(display=False)
    chosen = task.train[:: max(1, len(task.train) // rows)]
    with counted:
        for row in chosen:
            ids = torch.tensor([row.input_ids])
            with models.head_reads(model, lambda hidden, count=row.supervised: hidden[:, -count - 1 : -1]):
                logits = model(input_ids=ids, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits[0], ids[0, -row.supervised :]).backward()
    return counted.get_total_flops() / sum(len(row.input_ids) for row in chosen)


if __name__ == "__main__":
    source, out = sys.argv[1:]
    Path(out).write_text(json.dumps({"peaks": peaks(), "task": read(source).fingerprint}), encoding="utf-8")
