"""How probable given answers are under a model, and how far a model has moved from its reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cookbook.chat import Messages, render_full, render_prompt, token_ids
from cookbook.heads import head_reads

Batch = tuple[
    list[int], dict[str, torch.Tensor], torch.Tensor
]  # places, model inputs, answer positions but the first


@torch.no_grad()
def of_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    answers: Sequence[str],
    *,
    batch_size: int = 16,
) -> list[np.ndarray]:
    """For each answer the log-probability, in nats, of each of its tokens (the end included) after its prompt."""
    found: list[np.ndarray] = [np.empty(0)] * len(answers)
    training = model.training
    model.eval()
    for places, asked, answer in _batches(model, tokenizer, prompts, answers, batch_size):
        with head_reads(model, lambda hidden, answer=answer: _before(hidden, answer)):
            logits = model(**asked, use_cache=False).logits.float()
        nll = torch.nn.functional.cross_entropy(logits, asked["input_ids"][:, 1:][answer], reduction="none")
        for place, part in zip(places, nll.split(answer.sum(1).tolist()), strict=True):
            found[place] = -part.cpu().numpy()
    model.train(training)
    return found


@torch.no_grad()
def divergence(
    model: PreTrainedModel,
    reference: Callable[[], AbstractContextManager[Any]],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    answers: Sequence[str],
    *,
    batch_size: int = 16,
) -> float:
    """KL(model || reference) in nats a token: exact over the vocabulary, averaged over the tokens of given answers.

    Args:
        reference: gives a block in which `model` answers as the reference: its adapter switched, for instance.
    """
    total, tokens, training = 0.0, 0, model.training
    model.eval()
    for _, asked, answer in _batches(model, tokenizer, prompts, answers, batch_size):
        with head_reads(model, lambda hidden, answer=answer: _before(hidden, answer)):
            now = model(**asked, use_cache=False).logits.float().log_softmax(-1)
            with reference():
                then = model(**asked, use_cache=False).logits.float().log_softmax(-1)
        total += float((now.exp() * (now - then)).sum())
        tokens += int(answer.sum())
    model.train(training)
    return total / tokens


def _before(hidden: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """The states that predict the answers' tokens; counted from the end: virtual tokens may stand in front."""
    return hidden[:, -answer.shape[1] - 1 : -1][answer]


def _batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    answers: Sequence[str],
    batch_size: int,
) -> Iterator[Batch]:
    """The rows by length, padded on the right, where no position moves."""
    asked = [len(i) for i in token_ids(tokenizer, [render_prompt(tokenizer, p) for p in prompts])]
    texts = [render_full(tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
    ids = [torch.tensor(i) for i in token_ids(tokenizer, texts)]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        rows = pad_sequence([ids[i] for i in places], batch_first=True, padding_value=tokenizer.pad_token_id)
        place = torch.arange(rows.shape[1])
        real = torch.stack([place < len(ids[i]) for i in places])
        answer = torch.stack([(place >= asked[i]) & (place < len(ids[i])) for i in places])[:, 1:]
        inputs = {"input_ids": rows.to(model.device), "attention_mask": real.long().to(model.device)}
        yield places, inputs, answer.to(model.device)
