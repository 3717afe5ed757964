"""Answers a second: all questions at once by `cookbook.models.generate`, and one by one as guides have it.

python -m bench.evaluation TASK_JSON OUT_JSON
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.task import Task, read

QUESTIONS, NEW_TOKENS = 48, 64


def measure(task: Task, questions: int = QUESTIONS) -> dict[str, Any]:
    """Generated tokens a second both ways, with the same model, greedy; and how many answers are the same."""
    import torch

    from cookbook import models

    models.quiet()
    model, tokenizer = models.load(task.model, dtype=getattr(torch, task.dtype))
    prompts = [row.prompt for row in [*task.validation, *task.train]][:questions]
    models.generate(model, tokenizer, prompts[:2], max_new_tokens=4)  # what is done once
    start = time.perf_counter()
    batched = models.generate(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS)
    middle = time.perf_counter()
    single = [_alone(model, tokenizer, prompt) for prompt in prompts]
    seconds = {"batched": middle - start, "one by one": time.perf_counter() - middle}
    tokens = {
        name: sum(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers)
        for name, answers in (("batched", batched), ("one by one", single))
    }
    rates = {name: tokens[name] / seconds[name] for name in seconds}
    return {
        "questions": len(prompts),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": rates,
        "ratio": rates["batched"] / rates["one by one"],
        "same": sum(a == b for a, b in zip(batched, single, strict=True)) / len(prompts),
        "task": task.fingerprint,
    }


def _alone(model: Any, tokenizer: Any, prompt: list[dict[str, str]]) -> str:
    """One answer, as transformers' guide to chat writes it."""
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answered = model.generate(**asked, do_sample=False, max_new_tokens=NEW_TOKENS)
    return tokenizer.decode(answered[0, asked["input_ids"].shape[1] :], skip_special_tokens=True).strip()


if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(measure(read(source)), indent=1), encoding="utf-8")
