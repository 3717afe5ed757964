"""What the model's own matrix products allow, and levers that need no whole training to be measured.

python -m bench.products TASK_JSON OUT_JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import machine
from bench.task import IGNORED, Task, read
from bench.watch import padded

ROUNDS = 30  # of each product, the best of which counts


def measure(task: Task) -> dict[str, Any]:
    """The products by shape, and levers with the seconds of a step that each saves, or would save."""
    from cookbook import allocator

    allocator.keep_memory()
    with allocator.kept():
        shapes, pack = products(task)
    rows = tokens_a_step(task)
    return {
        "rows": rows,
        "peaks": machine.peaks(),
        "shapes": shapes,
        "seconds": sum(s["layers"] * (s["forward"]["seconds"] + s["backward"]["seconds"]) for s in shapes),
        "flops": sum(s["layers"] * 4 * rows * s["inputs"] * s["outputs"] for s in shapes),
        "apart": [pack, tokenized(task), reference(task)],
        "task": task.fingerprint,
    }


def tokens_a_step(task: Task) -> int:
    return round(task.tokens / task.steps)


def best(ways: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of each, the best of some rounds in which they take turns."""
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            found[name] = min(found[name], time.perf_counter() - start)
    return found


def linear_layers(task: Task) -> dict[str, tuple[int, int]]:
    """Name → (inputs, outputs) of every linear layer but the head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(task.model))
    inner = model.base_model.named_modules()
    return {name: (m.in_features, m.out_features) for name, m in inner if isinstance(m, torch.nn.Linear)}


def products(task: Task) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each shape's product with a frozen weight, forward and backward; the same with weights that oneDNN laid out."""
    import torch

    dtype, rows, found = getattr(torch, task.dtype), tokens_a_step(task), []
    total: Counter[str] = Counter()
    for (inputs, outputs), layers in Counter(linear_layers(task).values()).items():
        x, weight, gradient = (
            torch.randn(size).to(dtype) for size in ((rows, inputs), (outputs, inputs), (rows, outputs))
        )
        ways = {"forward": lambda x=x, w=weight: x @ w.t(), "backward": lambda g=gradient, w=weight: g @ w}
        for name, by, w in (("forward", x, weight), ("backward", gradient, weight.t().contiguous())):
            packed = torch.ops.mkldnn._reorder_linear_weight(w, rows)
            ways[f"{name}, packed"] = lambda by=by, packed=packed: torch.ops.mkldnn._linear_pointwise(
                by, packed, None, "none", [], ""
            )
        seconds = best(ways)
        for name, spent in seconds.items():
            total["packed" if "packed" in name else "plain"] += layers * spent
        flops = 2 * rows * inputs * outputs
        both = {
            n: {"seconds": seconds[n], "gflops": flops / seconds[n] / 1e9, "packed_gflops": flops / packed / 1e9}
            for n, packed in ((n, seconds[f"{n}, packed"]) for n in ("forward", "backward"))
        }
        found.append({"inputs": inputs, "outputs": outputs, "layers": layers} | both)
    what = f"all frozen products of a step {total['plain']:.3f} s, packed {total['packed']:.3f} s"
    saved = total["plain"] - total["packed"]
    return found, {
        "lever": "frozen weights pre-packed, twice the memory",
        "kept": False,
        "saved": saved,
        "what": what,
    }


def tokenized(task: Task) -> dict[str, Any]:
    """Seconds that a cache of the tokenized rows would spare."""
    from bench.task import row
    from cookbook import models

    tokenizer = models.load_tokenizer(task.model)
    start = time.perf_counter()
    for one in task.train:
        row(tokenizer, one.messages)
    seconds = time.perf_counter() - start
    what = f"{len(task.train)} rows through template and tokenizer take {seconds:.2f} s, once a run"
    return {"lever": "tokenized data cached", "kept": False, "saved": seconds / task.steps, "what": what}


def reference(task: Task) -> dict[str, Any]:
    """Step of the policy with and without a forward of the reference beside it, as DPO needs it in every pass."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from bench.arms import lora
    from cookbook import fused

    base = AutoModelForCausalLM.from_pretrained(
        task.model, dtype=getattr(torch, task.dtype), attn_implementation="eager"
    )
    model: Any = get_peft_model(base, LoraConfig(**lora(task)))
    ids, labels, real = padded(task.train[: task.batch_size])
    answer = labels[:, 1:] != IGNORED
    given = {"input_ids": ids, "attention_mask": real}, answer, labels[:, 1:][answer]

    def step() -> None:
        fused.nats(model, *given).sum().backward()

    def known() -> None:
        with torch.no_grad():
            fused.nats(model, *given)

    with fused.layers(model):
        step(), known()
        spent = best({"step": step, "reference": known}, rounds=3)
    step_s, forward = spent["step"], spent["reference"]
    what = (
        f"a step {step_s:.2f} s, the reference's forward of the same rows {forward:.2f} s; known after the first pass"
    )
    lever = {"lever": "the reference's log-probabilities cached (05)", "kept": True, "saved": forward, "what": what}
    return lever | {"step": step_s}


if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(measure(read(source)), indent=1), encoding="utf-8")
