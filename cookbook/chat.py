"""Messages to text, and text to tokens, through a tokenizer's chat template."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For tokenizers without a chat template of their own (GPT-2 and other base models).
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize }}:\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
Messages = list[dict[str, str]]


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """The text a model is asked with: messages through the chat template, up to where the answer begins."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def render_full(tokenizer: PreTrainedTokenizerBase, messages: Messages, completion: str) -> str:
    """The text a model is trained on: the prompt and the answer, through the same template."""
    answer = [{"role": "assistant", "content": completion}]
    return str(tokenizer.apply_chat_template([*messages, *answer], tokenize=False))


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of templated texts, which hold their special tokens already."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []


def other_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with another chat template: plain role names, or bracketed ones if it had those."""
    other = copy.deepcopy(tokenizer)
    bracketed = PLAIN_TEMPLATE.replace("{{ m['role'] | capitalize }}:", "[{{ m['role'] }}]")
    other.chat_template = (
        PLAIN_TEMPLATE
        if tokenizer.chat_template != PLAIN_TEMPLATE
        else bracketed.replace("Assistant:", "[assistant]")
    )
    return other
