"""The data browser: what is found, and a row's tokens as the trainer and the model in use see them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML
from test_data import jsonl, tickets, without

from cookbook import chat, data, inspecting
from cookbook.widgets import browse


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer(CHATML, "<|im_end|>", "<|im_start|>")


@pytest.fixture
def splits(tmp_path: Path) -> data.Splits:
    return data.load(jsonl(tmp_path / "t" / "train.jsonl", tickets()), seed=0)


def test_filters_and_search(splits: data.Splits) -> None:
    sizes = {"train": 42, "validation": 6, "test": 12}
    assert {name: len(inspecting.find(splits, split=name)) for name in sizes} == sizes
    assert inspecting.labels(splits) == {f"intent: {name}": 20 for name in ("broken", "late", "refund")}
    rows = inspecting.find(splits, split="train", label="intent: late")
    assert rows and {(name, e.target["intent"]) for name, e in rows} == {("train", "late")}
    assert {e.text for _, e in inspecting.find(splits, text="LAMP")} == {
        row["message"] for row in tickets() if "lamp" in row["message"] or "lamp" in row["reply"]
    }
    assert inspecting.find(splits, text="no such words") == []


def test_tokens_with_loss_are_the_answer_and_what_is_cut_is_none(splits: data.Splits, tokenizer: Any) -> None:
    example = splits.train[0]
    seen = inspecting.tokens(example, tokenizer)
    assert "".join(seen.trained) == chat.render_full(tokenizer, example.prompt, example.completion)
    learnt = "".join(piece for piece, on in zip(seen.trained, seen.loss, strict=True) if on)
    assert learnt == f"{example.completion}<|im_end|>\n"
    assert "".join(seen.asked) == chat.render_prompt(tokenizer, example.prompt)
    assert not seen.trained_only and not seen.asked_only and "is the same" in str(seen)
    short = inspecting.tokens(example, tokenizer, max_length=len(seen.trained) - 3)
    assert short.cut == 3 and sum(short.loss) == sum(seen.loss) - 3 and "last 3 are cut off" in str(short)


def test_template_differences_are_found(
    splits: data.Splits, tokenizer: Any, make_tokenizer: Callable[..., Any]
) -> None:
    example = splits.train[0]
    changed = make_tokenizer(CHATML.replace("assistant\n", "assistant\nAh: "), "<|im_end|>", "<|im_start|>")
    seen = inspecting.tokens(example, tokenizer, used_with=changed)
    assert not seen.trained_only and "".join(seen.asked[i] for i in sorted(seen.asked_only)) == "Ah: "
    # a template that thinks before it answers, but only when it is asked: the trainer takes it for the prompt's end
    thinks = make_tokenizer(CHATML.replace("assistant\n", "assistant\n<think>"), "<|im_end|>", "<|im_start|>")
    assert inspecting.tokens(example, thinks).loss.index(True) > inspecting.tokens(example, tokenizer).loss.index(
        True
    )
    table = inspecting.table([("train", example)], tokenizer, used_with=chat.other_template(tokenizer))
    row = table.loc[example.source]
    assert row["only in training"] > 0 and row["only in use"] > 0 and row["tokens"] == len(seen.trained)


def test_the_widget(splits: data.Splits, tokenizer: Any) -> None:
    splits.test[0].prompt[-1]["content"] += " <i>&"
    box = browse(splits, tokenizer, used_with=chat.other_template(tokenizer))
    filters, steps, said, shown = box.children
    split, label, text = filters.children
    before, after, place = steps.children
    assert "Row 1 of 60" in said.value and splits.train[0].source in said.value
    assert shown.value.count("outline:2px dashed") == sum(
        len(part)
        for seen in [inspecting.tokens(splits.train[0], tokenizer, used_with=chat.other_template(tokenizer))]
        for part in (seen.trained_only, seen.asked_only)
    )
    after.click()
    assert "Row 2 of 60" in said.value and place.value == 2
    before.click(), before.click()
    assert place.value == 1
    split.value = "test"
    place.value = 12
    assert "Row 12 of 12" in said.value
    label.value = "intent: late"
    count = int(re.search(r"of (\d+)", said.value)[1])
    assert 0 < count < 12 and place.value == 1 and place.max == count
    label.value, text.value = "", "<I>&"
    assert "Row 1 of 1" in said.value and "&lt;i&gt;&amp;" in shown.value and "<i>" not in shown.value
    text.value = "nothing like it"
    assert "No row" in said.value and not shown.value


def test_texts_without_labels_are_browsed(tmp_path: Path, tokenizer: Any) -> None:
    rows = [without(row, "intent") for row in tickets()]
    filters, _, said, shown = browse(data.load(jsonl(tmp_path / "t" / "train.jsonl", rows)), tokenizer).children
    assert [option for option, _ in filters.children[1].options] == ["any"]
    assert "of 60" in said.value and "Asked with" not in shown.value
