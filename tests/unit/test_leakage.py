"""Near-duplicates that `cookbook.leakage` must find, near misses that it must not, and the gate."""

from __future__ import annotations

import random
import time

import pytest

from cookbook import leakage
from cookbook.data import Example, Schema, Splits
from cookbook.leakage import LeakageError, gate, near_duplicates

TRAIN = [
    "Hello, I bought the copper kettle two weeks ago (order LK-48213) and the lid no longer closes.",
    "my parcel says delivered on tuesday but nobody was home and there is nothing at the door or next door",
    "Can I still change the size of the wool socks from 38 to 40? They are not sent yet as far as I see.",
    "You took 49.90 from my card twice for one desk lamp, please give the second payment back to me.",
]
COPIES = {
    "exact": TRAIN[0],
    "number": TRAIN[0].replace("48213", "90 417"),
    "case and punctuation": TRAIN[1].upper().replace(" AND", ", AND") + "!!!",
    "one word": TRAIN[1].replace("tuesday", "friday"),
    "another word": TRAIN[3].replace("desk", "floor"),
    "appended": TRAIN[2] + " Also, your phone line is always busy, so please write instead of calling.",
    "inside": "the lid no longer closes. What now? I bought the copper kettle two weeks ago"[26:] + " (order LK-1)",
}
OTHERS = [
    "The top of the kettle I got a fortnight back will not shut any more, order LK-48213.",  # paraphrase
    "tracking shows it was handed over, yet the porch is empty and the people next door have not seen it",
    "where is my parcel? it was due on monday and the tracking has not moved since",  # same topic
    "I was charged two times for the garden chair, can you return one of the payments?",
    "hi",
]


@pytest.mark.parametrize("text", COPIES.values(), ids=COPIES)
def test_copies_are_found(text):
    pairs = near_duplicates(TRAIN, ["something else entirely", text])
    assert len(pairs) == 1 and pairs[0].test == 1 and pairs[0].similarity >= 0.6


def test_paraphrases_and_same_topic_are_not():
    assert near_duplicates(TRAIN, OTHERS) == []


def test_short_text_inside_a_long_one_both_ways():
    long = " ".join(TRAIN[1:])
    assert [(p.train, p.test) for p in near_duplicates([long], [TRAIN[2]])] == [(0, 0)]
    assert [(p.train, p.test) for p in near_duplicates([TRAIN[2]], [long])] == [(0, 0)]
    assert near_duplicates([TRAIN[1] + " thanks a lot"], ["thanks a lot"]) == []  # a stock phrase


def test_empty_and_tiny_texts():
    assert near_duplicates([], ["a"]) == [] and near_duplicates(["a"], []) == []
    assert near_duplicates(["ok"], ["OK!"])[0].jaccard == 1.0


def random_texts(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 8))) for _ in range(600)]
    return [" ".join(rng.choices(words, k=rng.randint(8, 60))) for _ in range(n)]


def test_minhash_agrees_with_the_full_comparison(monkeypatch):
    train = random_texts(120, 1)
    test = [f"{text[:-8]} changed" for text in train[:40]] + random_texts(20, 2)
    full = near_duplicates(train, test)
    monkeypatch.setattr(leakage, "EXACT_PAIRS", 0)
    assert near_duplicates(train, test) == full and len(full) == 40


def test_blocks_agree_with_one_product():
    train = random_texts(2001, 1)
    pairs = near_duplicates(train, [*random_texts(2001, 3), train[7]])
    assert [(p.train, p.test) for p in pairs] == [(7, 2001)]


def splits(train: list[str], validation: list[str], test: list[str]) -> Splits:
    parts = {"train": train, "validation": validation, "test": test}
    examples = {
        name: [
            Example([{"role": "user", "content": t}], "a", None, f"{name}.jsonl:{i}") for i, t in enumerate(texts, 1)
        ]
        for name, texts in parts.items()
    }
    return Splits(**examples, schema=Schema("message", (), {}, {}), source="", licence="", fingerprint="", report=[])


def test_gate_stops_and_names_both_lines():
    bad = splits(TRAIN, OTHERS[:2], [OTHERS[3], COPIES["number"]])
    with pytest.raises(LeakageError) as caught:
        gate(bad)
    text = str(caught.value)
    assert "train.jsonl:1 and test.jsonl:2: 1.00" in text and "copper kettle" in text
    assert "Remove these rows or move them" in text and "ALLOW_LEAKAGE=True" in text
    report = gate(bad, allow=True)
    assert {key: len(pairs) for key, pairs in report.pairs.items()} == {
        "train/test": 1,
        "validation/test": 0,
        "train/validation": 0,
    }
    assert report.highest["train/test"] == 1.0 and "train/test 1 (closest pair 1.00)" in str(report)


@pytest.mark.parametrize(("validation", "test"), [(TRAIN[:1], OTHERS[2:4]), (TRAIN[2:3], COPIES["appended"])])
def test_gate_checks_validation_too(validation, test):
    test = [test] if isinstance(test, str) else test
    train = TRAIN if test == OTHERS[2:4] else TRAIN[:1]
    with pytest.raises(LeakageError, match="validation.jsonl:1"):
        gate(splits(train, validation, test))


def test_gate_lists_five_of_many():
    with pytest.raises(LeakageError) as caught:
        gate(splits(random_texts(9, 1), OTHERS, random_texts(9, 1)))
    assert str(caught.value).count(" and test.jsonl:") == 5 and "train/test 9" in str(caught.value)


def test_gate_ignores_a_shared_prompt_template():
    head, tail = "Below is a customer's message. Name the problem in one word.\n\nMessage: ", "\n\nProblem:"
    wrapped = [[head + t + tail for t in texts] for texts in (TRAIN, OTHERS[:2], OTHERS[2:])]
    assert not any(gate(splits(*wrapped)).pairs.values())


def test_a_sample_sized_gate_takes_about_a_second():
    start = time.perf_counter()
    gate(splits(random_texts(600, 1), random_texts(48, 2), random_texts(96, 3)))
    assert time.perf_counter() - start < 5  # about one on an idle machine


# --- families -----------------------------------------------------------------------------------------

TERMS = (
    "You may copy and change this program and pass it on, provided that the notice above stays in every copy of it"
)


def test_families_are_chains_of_near_duplicates_and_equal_names() -> None:
    words = TERMS.split()
    chain = [" ".join(words[i : i + 16]) for i in (0, 2, 4, 6)]  # each like its neighbour, the ends are not alike
    texts = [
        *chain,
        "A text about gardens, ponds and the birds of early spring",
        "Quite another one: bread, salt, butter",
    ]
    found = leakage.families(texts, threshold=0.6)
    assert len(set(found[:4])) == 1 and len(set(found)) == 3
    assert not [p for p in leakage.near_duplicates(texts[:1], texts[3:4]) if p.similarity >= 0.6]
    named = leakage.families(texts, ["a", "b", "c", "d", "same", "same"], threshold=0.6)
    assert named[4] == named[5] != named[0]


def test_whole_families_go_to_one_side() -> None:
    groups = [0] * 5 + [1] * 5 + [*range(2, 42)]
    strata = ["x"] * 25 + ["y"] * 25
    parts = leakage.divide(groups, {"test": 12, "validation": 5}, strata, seed=1)
    assert sorted(i for rows in parts.values() for i in rows) == list(range(50))
    assert len(parts["test"]) == 12 and len(parts["validation"]) == 5
    for group in (0, 1):
        homes = [s for s, rows in parts.items() if {i for i, g in enumerate(groups) if g == group} & set(rows)]
        assert len(homes) == 1
    assert parts == leakage.divide(groups, {"test": 12, "validation": 5}, strata, seed=1)
