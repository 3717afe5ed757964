"""Soft prompts (PEFT's prompt, prefix and p-tuning) in generation: read once, and right under padding on the left."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, StoppingCriteriaList


def present(model: Any) -> bool:
    """Whether virtual tokens stand before what this model reads."""
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())


def virtual_tokens(model: Any) -> int:
    """How many virtual tokens stand before what this model reads; they take room in its context."""
    return model.active_peft_config.num_virtual_tokens if present(model) else 0


@torch.no_grad()
def read(model: Any) -> DynamicCache:
    """Keys and values of the model's virtual tokens, for one row, as if they had been read as its first tokens."""
    base = model.get_base_model()
    found = model.get_prompt(batch_size=1)
    if isinstance(found, DynamicCache):  # prefix tuning learns keys and values themselves
        return found
    cache = DynamicCache(config=base.config)
    embedded = found.to(base.get_input_embeddings().weight.dtype)
    base(inputs_embeds=embedded, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def generate(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, **settings: Any
) -> torch.Tensor:
    """`model.generate` for rows padded on the left, (rows, tokens), also where virtual tokens stand before them.

    PEFT puts the virtual tokens before the padding and, in prompt and p-tuning, counts the padding as positions:
    an answer would depend on the longest prompt in its batch. Here the base model goes on from the virtual tokens'
    keys and values, so the padding is masked and a row's first token has the position that it had in training.
    """
    if not present(model):
        return model.generate(input_ids=input_ids, attention_mask=attention_mask, **settings)
    cache = read(model)
    rows, count = len(input_ids), cache.get_seq_length()
    cache.batch_repeat_interleave(rows)
    if "max_length" in settings:
        settings["max_length"] += count
    settings["past_key_values"] = cache
    if told := settings.pop("stopping_criteria", None):
        settings["stopping_criteria"] = StoppingCriteriaList(
            [lambda ids, *rest, **more: told(ids[:, count:], *rest, **more)]
        )
    out = model.get_base_model().generate(
        input_ids=torch.cat([input_ids[:, :1].expand(rows, count), input_ids], 1),  # only their number counts
        attention_mask=torch.cat([attention_mask.new_ones(rows, count), attention_mask], 1),
        **settings,
    )
    return out[:, count:]
