"""Base, prompted and tuned answers side by side: the same model in the same memory, and probabilities that add up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import chat
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

from cookbook import answering, models
from cookbook.chat import render_prompt
from cookbook.widgets import ask

SYSTEM = chat("")[:1]
SHOTS = [*SYSTEM, {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On its way."}]
ASKED = ["My parcel is late.", "The mug <b>broke</b> & I am sad."]
CONFIGS = {
    "lora": LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    "soft prompt": PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4),
}


@pytest.fixture
def plain(llama: Path) -> tuple[Any, Any]:
    return models.load(str(llama), dtype=torch.float32)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_adapter_is_off_for_the_base_and_on_again(llama: Path, plain: tuple[Any, Any], kind: str) -> None:
    base, tokenizer = plain
    torch.manual_seed(1)
    tuned = get_peft_model(models.load(str(llama), dtype=torch.float32)[0], CONFIGS[kind]).eval()
    rows = answering.side_by_side(tuned, tokenizer, ASKED, SYSTEM, prompted=SHOTS, max_new_tokens=12)
    asked = {"base": (base, SYSTEM), "prompted": (base, SHOTS), "tuned": (tuned, SYSTEM)}
    assert [list(row) for row in rows] == [list(asked)] * 2
    for name, (model, before) in asked.items():
        turns = [[*before, {"role": "user", "content": text}] for text in ASKED]
        assert [row[name].text for row in rows] == models.generate(model, tokenizer, turns, max_new_tokens=12)
    assert rows[0]["base"].text != rows[0]["tuned"].text


def test_probabilities_are_those_of_a_plain_forward(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    ((_, answer),) = answering.side_by_side(model, tokenizer, ASKED[:1], SYSTEM, max_new_tokens=8)[0].items()
    turns = [*SYSTEM, {"role": "user", "content": ASKED[0]}]
    asked = tokenizer(render_prompt(tokenizer, turns), add_special_tokens=False)["input_ids"]
    own = tokenizer(answer.text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        chances = model(torch.tensor([asked + own])).logits[0].softmax(-1)
    expected = [float(chances[len(asked) - 1 + i, token]) for i, token in enumerate(own)]
    assert answer.tokens == [tokenizer.decode([i]) for i in own] and answer.tokens[-1] == "<|im_end|>"
    np.testing.assert_allclose(answer.probabilities, expected, rtol=1e-4)
    assert answer.probability == pytest.approx(float(np.prod(expected)) ** (1 / len(expected)), rel=1e-3)


def test_another_model_as_base_and_the_table(llama: Path, qwen: Path, plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    other, _ = models.load(str(qwen), dtype=torch.float32)
    answered = answering.side_by_side(model, tokenizer, ASKED, SYSTEM, base=other, max_new_tokens=6)
    table = answering.table(ASKED, answered)
    assert list(table.index) == [(text, name) for text in ASKED for name in ("base", "tuned")]
    row = table.loc[(ASKED[1], "tuned")]
    assert row["answer"] == answered[1]["tuned"].text and row["tokens"] == len(answered[1]["tuned"].tokens)
    assert 0 < row["mean probability"] <= 1
    assert row["least probable"].endswith(f" {answered[1]['tuned'].probabilities.min():.2f}")


def test_the_widget_answers_in_the_open_and_escapes(plain: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = plain
    box = ask(model, tokenizer, SYSTEM, 6, base=model)
    question, button, said, answers = box.children
    button.click()
    assert not answers.children
    question.value = ASKED[0]
    button.click()
    assert [one.value.partition(":")[0] for one in answers.children] == ["<b>base", "<b>tuned"]
    shown = answers.children[1].value
    (expected,) = answering.side_by_side(model, tokenizer, ASKED[:1], SYSTEM, max_new_tokens=6)
    probabilities = [f"{p:.3f}" for p in expected["tuned"].probabilities]
    assert re.findall(r'title="([\d.]+)"', shown) == probabilities  # under the mouse
    assert re.findall(r"<td>([\d.]+)</td>", shown) == probabilities and "<summary>" in shown  # and without one
    assert not said.value and not button.disabled

    odd = answering.Answer("<script>", ["<script>", "'&"], np.array([0.25, 1.0]))
    monkeypatch.setattr(answering, "side_by_side", lambda *_, **__: [{"tuned": odd}])
    button.click()
    assert "<script>" not in answers.children[0].value and "&lt;script&gt;" in answers.children[0].value
    assert "mean probability 0.50" in answers.children[0].value


def test_the_widget_says_what_went_wrong(plain: tuple[Any, Any]) -> None:
    question, button, said, answers = ask(*plain, SYSTEM, 4000).children
    question.value = "hello"
    button.click()
    assert "max_new_tokens=4000 leaves no room in a context of 256" in said.value
    assert not answers.children and not button.disabled
