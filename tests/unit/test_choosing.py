"""The rules of the guides: every way of answering, the cases that the guides name, links, and the widget."""

from __future__ import annotations

import itertools

import pytest

from cookbook import choosing, recipes, widgets
from cookbook.choosing import QUESTIONS, advise
from cookbook.recipes import RequestError

ENOUGH = {"behaviour": "yes", "examples": "100 to 1,000"}


def test_every_way_of_answering() -> None:
    names = [question.name for question in QUESTIONS]
    for values in itertools.product(*(question.options for question in QUESTIONS)):
        given = dict(zip(names, values, strict=True))
        advice = advise(given)
        trains = "fine-tune" in advice.approach
        assert advice.approach in ("prompt", "RAG", "fine-tune", "RAG and fine-tune")
        assert ("RAG" in advice.approach) == ("yes" in (given["facts"], given["unseen"]))
        assert not (trains and given["examples"] == "under 100")
        assert bool(advice.method) == trains == bool(advice.start) and advice.notebooks
        assert advice.reasons[0].text.startswith("Try a good prompt first")
        assert all(reason.source for reason in advice.reasons)
        assert not trains or (advice.start["learning rate"].startswith("1e-4") and advice.start["epochs"] == "3")


@pytest.mark.parametrize(
    ("given", "approach", "method", "notebook"),
    [
        ({}, "prompt", "", "15"),
        ({"behaviour": "yes", "examples": "under 100"}, "prompt", "", "15"),
        ({"facts": "yes"}, "RAG", "", "15"),
        ({"unseen": "yes", **ENOUGH}, "RAG and fine-tune", "LoRA + SFT", "01"),
        (ENOUGH, "fine-tune", "LoRA + SFT", "01"),
        ({"hardware": "one GPU", **ENOUGH}, "fine-tune", "QLoRA + SFT", "01"),
        (
            {"task": "law", "hardware": "several GPUs", "examples": "over 10,000"},
            "fine-tune",
            "full fine-tuning",
            "02",
        ),
        ({"task": "law", "examples": "over 10,000"}, "fine-tune", "LoRA with a large corpus", "02"),
        ({"departments": "several", **ENOUGH}, "fine-tune", "adapters, one for each department", "03"),
        ({"task": "speech", **ENOUGH}, "fine-tune", "full fine-tuning of Whisper, or LoRA", "04"),
        ({"task": "writing", **ENOUGH}, "fine-tune", "LoRA + SFT", "12"),
        ({"task": "reasoning", **ENOUGH}, "fine-tune", "GRPO with verifiable rewards", "07"),
        ({"latency": "yes", "examples": "over 10,000"}, "fine-tune", "LoRA + SFT", "01"),
        ({"private": "yes", "examples": "over 10,000"}, "fine-tune", "LoRA + SFT", "01"),
    ],
)
def test_cases_of_the_guides(given: dict[str, str], approach: str, method: str, notebook: str) -> None:
    advice = advise(given)
    assert (advice.approach, advice.method, advice.notebooks[0]) == (approach, method, notebook)


def test_a_chat_assistant_goes_through_three_steps() -> None:
    advice = advise({"task": "chat", **ENOUGH})
    assert advice.method.startswith("SFT, then a reward model, then RLHF") and set(advice.notebooks) == {"05", "06"}


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ("under 100", "at least 100"),
        ("100 to 1,000", "100 to 500"),
        ("1,000 to 10,000", "1,000 to 10,000"),
        ("over 10,000", "10,000 to 100,000"),
    ],
)
def test_rule_on_data(examples: str, said: str) -> None:
    assert said in advise({"examples": examples}).examples
    assert "quality over quantity" in advise({"examples": examples}).examples


def test_too_few_for_a_domain() -> None:
    assert "not for domain knowledge" in advise({"task": "law", "examples": "100 to 1,000"}).examples


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"taks": "law"}, "there is no question 'taks'; there are task, facts"),
        ({"task": "poetry"}, "task: 'poetry' is no answer; choose one of service, law"),
        ({"facts": "maybe", "x": "y"}, "(?s)no question 'x'.*'maybe' is no answer; choose one of no, yes"),
    ],
)
def test_unknown_question_or_answer(given: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        advise(given)


def test_notebooks_are_linked_if_they_exist() -> None:
    there = {recipe.name.split("_")[0] for recipe in recipes.recipes()}
    named = {n for task in QUESTIONS[0].options for n in advise({"task": task, **ENOUGH}).notebooks}
    for number in named:
        assert choosing.links([number]).startswith("[") == (number in there)
        assert number in there or choosing.links([number]).endswith("(planned)")
        assert number in there or number in choosing.PLANNED


def test_table_and_text() -> None:
    table = choosing.table({"tickets": ENOUGH, "prices": {"facts": "yes"}})
    assert "| tickets | fine-tune | LoRA + SFT | [01 · " in table
    assert "| prices | RAG | nothing is trained |" in table
    text = advise(ENOUGH).markdown()
    assert text.startswith("**fine-tune**: LoRA + SFT") and "](01_customer_service_qlora.ipynb)" in text
    assert "learning rate 1e-4 (up to 3e-4), epochs 3" in text


def test_widget_follows_its_menus() -> None:
    box = widgets.choose()
    *menus, advice = box.children
    assert [menu.description for menu in menus] == [question.text for question in QUESTIONS]
    assert "<b>prompt</b>" in advice.value
    for menu, question in zip(menus, QUESTIONS, strict=True):
        menu.value = (ENOUGH | {"facts": "yes"}).get(question.name, menu.value)
    assert "<b>RAG and fine-tune</b>: LoRA + SFT" in advice.value
    assert '<a href="01_customer_service_qlora.ipynb"' in advice.value
