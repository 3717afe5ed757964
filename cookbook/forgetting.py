"""Forgetting probes: what a model could do before fine-tuning, asked again afterwards."""

from __future__ import annotations

import io
import json
import logging
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from cookbook import softprompts
from cookbook.fourbit import dense_weights

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBES = Path(__file__).parent / "probes"
CHOICE_TASKS = ("cookbook_knowledge", "cookbook_arithmetic")
GENERATION_TASKS = ("cookbook_instructions",)


@dataclass(frozen=True)
class ProbeResult:
    """What one run of the probes saw, item by item, so that two runs can be compared in pairs.

    `scores` maps `knowledge`, `arithmetic` and `instructions` to an array of 0 and 1, one
    entry an item in file order. `token_nll` is the negative log-likelihood, in nats, of every
    predicted token of the prose, and `token_passage` says which passage each of them is from.
    """

    scores: dict[str, np.ndarray]
    token_nll: np.ndarray
    token_passage: np.ndarray

    @property
    def perplexity(self) -> float:
        """Perplexity of the prose: the exponential of the mean negative log-likelihood a token."""
        return float(np.exp(self.token_nll.mean()))


def probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> ProbeResult:
    """Ask `model` the general questions, instructions and prose that it should not forget.

    The three tasks run through lm-eval (https://github.com/EleutherAI/lm-evaluation-harness),
    offline, on the live object: a plain model, an adapter, or either over 4-bit weights. The
    chat template, where the tokenizer has one, is applied to the instructions only; answers
    are greedy and at most 24 tokens long. The model's mode and settings, the tokenizer and
    the global random state are left as they were found.

    `limit` keeps the first items of each task and the first passages. `batch_size` is in
    sequences: use one value before and after, since padding moves bfloat16 results a little.
    `seed` fixes whatever is random inside the model. Raises `ValueError` if `limit` is less
    than 1 or the tokenizer has no end-of-sequence token.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: give at least 1, or None for every item")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token: set one, generation stops at it")

    with _quiet(), _unchanged(model), _seeded(seed), dense_weights(model):
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        lm = HFLM(
            pretrained=model,
            backend="causal",
            tokenizer=deepcopy(tokenizer),  # lm-eval adds a padding token where there is none
            batch_size=batch_size,
            softmax_dtype=torch.float32,
            enable_thinking=False,  # a reasoning model would spend its 24 tokens on thought
        )
        tasks = TaskManager(include_path=str(PROBES), include_defaults=False)
        scores: dict[str, np.ndarray] = {}
        for names, chat in ((CHOICE_TASKS, False), (GENERATION_TASKS, bool(tokenizer.chat_template))):
            # `simple_evaluate` is this call plus seconds of describing the machine.
            report = evaluate(lm, tasks.load(list(names)), limit=limit, bootstrap_iters=0, apply_chat_template=chat)
            for name in names:
                items = sorted(report["samples"][name], key=lambda item: item["doc_id"])
                scores[name.removeprefix("cookbook_")] = np.array([int(item["acc"]) for item in items])
        nll: list[np.ndarray] = []
        passages = read_prose()[:limit]
        for start in range(0, len(passages), batch_size):
            batch = passages[start : start + batch_size]
            nll += token_nll(model, tokenizer, batch, lm.max_length)
    return ProbeResult(
        scores=scores,
        token_nll=np.concatenate(nll),
        token_passage=np.repeat(np.arange(len(nll)), [len(row) for row in nll]),
    )


def read_items(file: str, **_: Any) -> dict[str, Dataset]:
    """Items of one JSONL file beside the task files, as the `test` split lm-eval asks for."""
    from datasets import Dataset

    lines = (PROBES / file).read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def read_prose() -> list[str]:
    """The passages of `prose.txt`, each on one line."""
    blocks = (PROBES / "prose.txt").read_text(encoding="utf-8").strip().split("\n\n")
    return [" ".join(block.split()) for block in blocks]


def follows(item: dict[str, Any], answers: list[str]) -> dict[str, int]:
    """Score 1 where the item's pattern is found in the stripped answer, else 0.

    `flags` holds the letters of Python's inline flags, for example `i` to ignore case.
    """
    flags = re.RegexFlag(0)
    for letter in item["flags"]:
        flags |= re.RegexFlag[letter.upper()]
    return {"acc": int(re.search(item["pattern"], answers[0].strip(), flags) is not None)}


@torch.no_grad()
def token_nll(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: Sequence[str], max_length: int
) -> list[np.ndarray]:
    """Negative log-likelihood, in nats, of each token but the first, one array a passage.

    Passages are read as plain text, all in one batch, and cut at `max_length` tokens.
    """
    rows = [torch.tensor(tokenizer(text)["input_ids"][:max_length]) for text in passages]
    ids = pad_sequence(rows, batch_first=True).to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
    width = ids.shape[1]
    # Soft-prompt adapters put virtual tokens in front: count positions from the end.
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -width:]
    return [
        torch.nn.functional.cross_entropy(
            logits[place, : len(row) - 1].float(), ids[place, 1 : len(row)], reduction="none"
        )
        .cpu()
        .numpy()
        for place, row in enumerate(rows)
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Swallow progress bars, log records up to warnings, and Python warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch, and put their states back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate in `eval` mode with plain generation settings, then undo every change."""
    from transformers import GenerationConfig

    from cookbook.fused import inner

    base = inner(model)
    generation = base.generation_config
    modes = [(module, module.training) for module in model.modules()]
    # bitsandbytes repacks 4-bit weights for good in a CPU forward without gradients, and what is
    # then trained on them follows wrong gradients.
    packers = [m for m in model.modules() if getattr(m, "support_avx512bf16_for_cpu", False)]
    try:
        for module in packers:
            module.support_avx512bf16_for_cpu = False
        # lm-eval ties weights again on arrival, which would undo a head trained on its own.
        model.tie_weights = lambda *args, **kwargs: None
        if softprompts.present(model):
            model.generate = partial(softprompts.generate, model)
        # A repetition penalty or length set for an application would change the probe.
        base.generation_config = GenerationConfig(
            bos_token_id=generation.bos_token_id, eos_token_id=generation.eos_token_id
        )
        model.eval()
        yield
    finally:
        base.generation_config = generation
        del model.tie_weights
        if softprompts.present(model):
            del model.generate
        for module in packers:
            module.support_avx512bf16_for_cpu = True
        for module, training in modes:
            module.training = training
