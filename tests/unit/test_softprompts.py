"""Virtual tokens before a prompt: answers that depend on no padding, the same probes, the checks before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS, chat
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
    initialize_kv_prefix_from_text,
)
from transformers import StoppingCriteriaList

from cookbook import checks, forgetting, models, softprompts
from cookbook.chat import render_prompt, token_ids

VIRTUAL = 6
PROMPTS = [chat(text) for text in (*TEXTS, "Hi", "Where is it?", TEXTS[1] * 2)]


def soft(folder: Path, kind: str) -> tuple[Any, Any]:
    """A model behind virtual tokens that matter to its answers."""
    model, tokenizer = models.load(str(folder), dtype=torch.float32)
    torch.manual_seed(3)
    common = {"num_virtual_tokens": VIRTUAL, "task_type": "CAUSAL_LM"}
    if kind == "prefix":
        made = get_peft_model(model, PrefixTuningConfig(**common))
        initialize_kv_prefix_from_text(made, tokenizer, text=TEXTS[3])
    elif kind == "prompt":
        text = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": TEXTS[3]}
        made = get_peft_model(model, PromptTuningConfig(**common, **text, tokenizer_name_or_path=str(folder)))
    else:
        made = get_peft_model(model, PromptEncoderConfig(**common, encoder_hidden_size=16))
        torch.nn.init.normal_(made.prompt_encoder["default"].mlp_head[-1].weight, std=2.0)
    return made.eval(), tokenizer


@pytest.fixture(params=["prefix", "prompt", "p_tuning"])
def made(request: pytest.FixtureRequest, llama: Path) -> tuple[Any, Any]:
    return soft(llama, request.param)


def greedy(model: Any, tokenizer: Any, prompt: Any, count: int) -> str:
    """One row alone, without a cache and without padding: what PEFT's forward says, token by token."""
    ids = torch.tensor(token_ids(tokenizer, [render_prompt(tokenizer, prompt)]))
    start = ids.shape[1]
    with torch.no_grad():
        while ids.shape[1] < start + count and ids[0, -1] != tokenizer.eos_token_id:
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


def test_answers_are_those_of_the_forward_whatever_the_padding(made: tuple[Any, Any]) -> None:
    model, tokenizer = made
    expected = [greedy(model, tokenizer, prompt, 10) for prompt in PROMPTS]
    for size in (1, 3, 48):
        assert models.generate(model, tokenizer, PROMPTS, max_new_tokens=10, batch_size=size) == expected
    with model.disable_adapter():
        base = models.generate(model.get_base_model(), tokenizer, PROMPTS, max_new_tokens=10)
    assert base != expected, "the virtual tokens must matter for this test to say anything"


def test_peft_itself_answers_otherwise(llama: Path) -> None:
    """The fault that `softprompts.generate` is there for: with transformers up to 5.23 only under padding."""
    model, tokenizer = soft(llama, "prompt")
    ids = token_ids(tokenizer, [render_prompt(tokenizer, p) for p in PROMPTS])
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=10, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    theirs = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    expected = [greedy(model, tokenizer, prompt, 10) for prompt in PROMPTS]
    wrong = [i for i, (a, b) in enumerate(zip(theirs, expected, strict=True)) if a.strip() != b]
    assert wrong


def test_next_tokens_are_those_of_the_forward(made: tuple[Any, Any]) -> None:
    model, tokenizer = made
    answers = [TEXTS[i % 3][: 10 + 7 * i] for i in range(4)]
    found = models.next_tokens(model, tokenizer, PROMPTS[:4], answers, batch_size=3)
    for prompt, answer, tokens in zip(PROMPTS, answers, found, strict=False):
        asked = token_ids(tokenizer, [render_prompt(tokenizer, prompt)])[0]
        whole = torch.tensor([token_ids(tokenizer, [models.render_full(tokenizer, prompt, answer)])[0]])
        with torch.no_grad():
            logits = model(whole).logits[0, -whole.shape[1] :]
        assert tokens == logits.argmax(-1)[len(asked) - 1 : -1].tolist()


def test_probes_do_not_depend_on_the_batch(made: tuple[Any, Any]) -> None:
    model, tokenizer = made
    alone, together = (forgetting.probe(model, tokenizer, limit=6, batch_size=n) for n in (1, 6))
    assert all(np.array_equal(alone.scores[name], together.scores[name]) for name in alone.scores)
    assert np.allclose(alone.token_nll, together.token_nll, atol=1e-4)
    assert "generate" not in vars(model)


def test_probes_generate_under_padding_too(made: tuple[Any, Any]) -> None:
    model, tokenizer = made
    ids = token_ids(tokenizer, [render_prompt(tokenizer, p) for p in PROMPTS])
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    width, seen = batch["input_ids"].shape[1], []
    criteria = StoppingCriteriaList([lambda ids, scores, **_: seen.append(ids.shape[1]) or torch.tensor([False])])
    with forgetting._unchanged(model):
        out = model.generate(**batch, max_length=width + 10, do_sample=False, stopping_criteria=criteria)
    given = [text.strip() for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]
    assert given == [greedy(model, tokenizer, prompt, 10) for prompt in PROMPTS]
    assert seen[0] == width + 1, "what stops an answer sees the rows as they were given"


def test_a_soft_prompt_is_one_adapter(made: tuple[Any, Any], llama: Path) -> None:
    model, _ = made
    trainable, total = checks.one_adapter(model)
    assert trainable == sum(p.numel() for p in model.prompt_encoder.parameters()) > 0
    assert total == trainable + sum(p.numel() for p in model.get_base_model().parameters())
    model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(checks.CheckError, match="1 base weights would be trained"):
        checks.one_adapter(model)


def test_saved_and_reloaded_without_a_path(made: tuple[Any, Any], llama: Path, tmp_path: Path) -> None:
    model, tokenizer = made
    folder = models.save_adapter(model, tokenizer, tmp_path / "model", base=str(llama), card="# A card\n")
    config = (folder / "adapter_config.json").read_text()
    assert str(llama.parent) not in config and str(tmp_path) not in config
    again = PeftModel.from_pretrained(models.load(str(llama), dtype=torch.float32)[0], str(folder)).eval()
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


def test_what_counts_as_a_soft_prompt(made: tuple[Any, Any], llama: Path) -> None:
    model, _ = made
    plain, _ = models.load(str(llama), dtype=torch.float32)
    assert softprompts.present(model) and softprompts.virtual_tokens(model) == VIRTUAL
    lora = get_peft_model(plain, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert not softprompts.present(lora) and softprompts.virtual_tokens(lora) == 0
    assert softprompts.read(model).get_seq_length() == VIRTUAL
