"""Answers a second: all questions at once by `cookbook.models.generate`, and one by one as guides have it; then what
each of its means gives.

python -m bench.evaluation TASK_JSON OUT_JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.task import Task, read

QUESTIONS, NEW_TOKENS = 48, 64
FEW, MANY_TOKENS, SHOTS = 16, 160, 4  # rows a batch where sorting is to matter; a limit; worked examples


def measure(task: Task, questions: int = QUESTIONS) -> dict[str, Any]:
    """Generated tokens a second both ways, with the same model, greedy; and how many answers are the same."""
    import torch

    from cookbook import models

    models.quiet()
    model, tokenizer = models.load(task.model, dtype=getattr(torch, task.dtype))
    prompts = [row.prompt for row in [*task.validation, *task.train]][:questions]
    models.generate(model, tokenizer, prompts[:2], max_new_tokens=4)  # what is done once
    batched, together = timed(lambda: models.generate(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS))
    single, apart = timed(lambda: [_alone(model, tokenizer, prompt) for prompt in prompts])
    seconds = {"batched": together, "one by one": apart}
    tokens = {"batched": count(tokenizer, batched), "one by one": count(tokenizer, single)}
    rates = {name: tokens[name] / seconds[name] for name in seconds}
    return {
        "questions": len(prompts),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": rates,
        "ratio": rates["batched"] / rates["one by one"],
        "same": sum(a == b for a, b in zip(batched, single, strict=True)) / len(prompts),
        "levers": levers(task, model, tokenizer, prompts),
        "task": task.fingerprint,
    }


def timed(answer: Callable[[], list[str]]) -> tuple[list[str], float]:
    """Answers, and the seconds that they took."""
    start = time.perf_counter()
    return answer(), time.perf_counter() - start


def count(tokenizer: Any, answers: list[str]) -> int:
    return sum(map(len, tokenizer(answers, add_special_tokens=False)["input_ids"]))


def levers(task: Task, model: Any, tokenizer: Any, prompts: list[Any]) -> list[dict[str, Any]]:
    """One means of `generate` at a time, with it and without: seconds for the same questions, one run each."""
    from peft import LoraConfig, get_peft_model

    from bench.arms import lora
    from cookbook import models

    def answered(asked: Any = model, which: Any = prompts, limit: int = NEW_TOKENS, **given: Any) -> list[str]:
        return models.generate(asked, tokenizer, which, max_new_tokens=limit, **given)

    def in_parts() -> list[str]:
        parts = [prompts[i : i + FEW] for i in range(0, len(prompts), FEW)]
        return [answer for part in parts for answer in answered(which=part)]

    def patched(name: str, value: Any, **given: Any) -> list[str]:
        with patch(f"cookbook.{name}", value):
            return answered(**given)

    worked = [turn for row in task.train[-SHOTS:] for turn in (row.prompt[-1], row.completion[0])]
    shown = [[*prompt[:-1], *worked, prompt[-1]] for prompt in prompts]  # with worked examples
    never = [model.get_input_embeddings().num_embeddings - 1]  # a token that is not written

    def tried(words: str, kept: bool, with_it: Callable[[], Any], without: Callable[[], Any]) -> dict[str, Any]:
        seconds = {name: timed(way)[1] for name, way in (("with", with_it), ("without", without))}
        return {"lever": words, "kept": kept, "seconds": seconds, "gain": seconds["without"] / seconds["with"]}

    def no_prefix(**given: Any) -> list[str]:
        return patched("batching.shared_prefix", lambda *_: [], **given)

    found = [
        tried("48 rows a batch, not 16", True, answered, lambda: answered(batch_size=FEW)),
        tried("rows of a batch alike in length, not as they come", True, lambda: answered(batch_size=FEW), in_parts),
        tried(
            f"what all prompts begin with is read once ({SHOTS} worked examples)",
            True,
            lambda: answered(which=shown),
            lambda: no_prefix(which=shown),
        ),
        tried(
            f"a batch ends when all its answers have ({SHOTS} worked examples, limit {MANY_TOKENS})",
            True,
            lambda: answered(which=shown, limit=MANY_TOKENS),
            lambda: patched("models._stops", lambda *_: never, which=shown, limit=MANY_TOKENS),
        ),
        tried(
            "static cache",
            False,
            lambda: answered(more=lambda rows: {"cache_implementation": "static"}),
            no_prefix,
        ),
        tried(
            "attention of one token as plain products, not by torch's kernel",
            True,
            lambda: answered(which=shown),
            lambda: patched("models.one_token", nullcontext, which=shown),
        ),
    ]
    adapted = get_peft_model(model, LoraConfig(**lora(task)))
    found.append(
        tried(
            "fused layers, with an adapter",
            True,
            lambda: answered(adapted),
            lambda: patched("fused.layers", nullcontext, asked=adapted),
        )
    )
    apart = timed(lambda: answered(adapted))[1]
    merged = adapted.merge_and_unload()
    at_once = timed(lambda: answered(merged))[1]
    seconds = {"with": at_once, "without": apart}
    merging = {"lever": "adapter merged into the weights", "kept": False, "seconds": seconds}
    return [*found, merging | {"gain": apart / at_once}]


def _alone(model: Any, tokenizer: Any, prompt: list[dict[str, str]]) -> str:
    """One answer, as transformers' guide to chat writes it."""
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answered = model.generate(**asked, do_sample=False, max_new_tokens=NEW_TOKENS)
    return tokenizer.decode(answered[0, asked["input_ids"].shape[1] :], skip_special_tokens=True).strip()


if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(measure(read(source)), indent=1), encoding="utf-8")
