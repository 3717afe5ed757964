"""What a model answers untouched, prompted and tuned, side by side, with the probability of each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cookbook import logprobs, models, softprompts
from cookbook.chat import Messages, render_full, render_prompt, token_ids


class Answer(NamedTuple):
    """A greedy answer, its tokens up to the one that ends it, and the probability (0 to 1) of each."""

    text: str
    tokens: list[str]
    probabilities: np.ndarray

    @property
    def probability(self) -> float:
        """The geometric mean over the tokens: 1 / perplexity."""
        return float(np.exp(np.log(self.probabilities).mean()))


@contextmanager
def untuned(model: Any) -> Iterator[Any]:
    """The model as it is without its adapter, in the same memory; None if it has no PEFT adapter."""
    if not isinstance(model, PeftModel):
        yield None
    elif softprompts.present(model):
        yield model.get_base_model()
    else:
        with model.disable_adapter():
            yield model


def side_by_side(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    system: Messages,
    *,
    prompted: Messages = (),
    base: PreTrainedModel | None = None,
    max_new_tokens: int = 160,
) -> list[dict[str, Answer]]:
    """For each question the answers "base", "prompted" and "tuned", as far as they can be had.

    Args:
        system: what stands before the question.
        prompted: what stands before it in a good prompt for the untouched model: rules, worked examples.
        base: the untouched model; None: `model` with its adapter switched off.
    """
    with untuned(model) if base is None else nullcontext(base) as plain:
        found = {}
        if plain is not None:
            found["base"] = _answers(plain, tokenizer, questions, system, max_new_tokens)
            if prompted:
                found["prompted"] = _answers(plain, tokenizer, questions, prompted, max_new_tokens)
    found["tuned"] = _answers(model, tokenizer, questions, system, max_new_tokens)
    return [dict(zip(found, answers, strict=True)) for answers in zip(*found.values(), strict=True)]


def _answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], before: Messages, max_new_tokens: int
) -> list[Answer]:
    prompts = [[*before, {"role": "user", "content": question}] for question in questions]
    texts = models.generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens)
    scores = logprobs.of_answers(model, tokenizer, prompts, texts)
    asked = token_ids(tokenizer, [render_prompt(tokenizer, prompt) for prompt in prompts])
    whole = token_ids(tokenizer, [render_full(tokenizer, *pair) for pair in zip(prompts, texts, strict=True)])
    answers = []
    for text, ids, start, score in zip(texts, whole, map(len, asked), scores, strict=True):
        own = ids[start:]
        if tokenizer.eos_token_id in own:  # templates write a line break after it, which nobody reads
            own = own[: own.index(tokenizer.eos_token_id) + 1]
        answers.append(Answer(text, [tokenizer.decode([i]) for i in own], np.exp(score[: len(own)])))
    return answers


def table(questions: Sequence[str], answered: Sequence[dict[str, Answer]]) -> pd.DataFrame:
    """A row an answer: the text, its tokens, their mean probability (geometric), and the least probable token."""
    rows = []
    for question, answers in zip(questions, answered, strict=True):
        for name, answer in answers.items():
            least = int(answer.probabilities.argmin())
            rows.append(
                {
                    "question": question,
                    "model": name,
                    "answer": answer.text,
                    "tokens": len(answer.tokens),
                    "mean probability": round(answer.probability, 3),
                    "least probable": f"{answer.tokens[least]!r} {answer.probabilities[least]:.2f}",
                }
            )
    return pd.DataFrame(rows).set_index(["question", "model"])
