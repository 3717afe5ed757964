"""The sample data keep what their cards say: counts, forms, licence, and no near-duplicates between splits."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from cookbook import audio, data, leakage
from cookbook.tables import SPLITS, licence_of

SAMPLES = Path(__file__).resolve().parents[2] / "data_samples"
FOLDERS = sorted(file.parent for file in SAMPLES.rglob("train.jsonl"))
DEPARTMENTS = {
    "hr": r"Hi [^,\n]+, .+\nForm HR-\d\d, ask the \w+ desk\.",
    "it": r"\[P[123]\] queue: \w+\nDo: .+",
    "finance": r"(?:Please|Kindly) .+\nAccount \d{4} \| Approver: [a-z ]+",
}
FORBIDDEN = (
    r"\b(guarantee|promise|immediately|instantly|right away|today|tomorrow|compensation|definitely|free gift)\b"
)


def read(folder: Path) -> dict[str, pd.DataFrame]:
    return {split: pd.read_json(folder / f"{split}.jsonl", lines=True) for split in SPLITS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.relative_to(SAMPLES).as_posix())
def test_no_row_resembles_one_of_another_split(folder: Path) -> None:
    assert not any(leakage.gate(data.load(folder)).pairs.values())


@pytest.mark.parametrize("card", sorted(SAMPLES.glob("*/README.md")), ids=lambda c: c.parent.name)
def test_card_names_licence_and_weaknesses(card: Path) -> None:
    assert licence_of(card.parent) == "Apache-2.0"
    text = card.read_text(encoding="utf-8")
    assert {"## Balance", "## Known weaknesses"} <= set(re.findall(r"^## .+$", text, re.MULTILINE))


@pytest.mark.parametrize("name", DEPARTMENTS)
def test_departments(name: str) -> None:
    tables = read(SAMPLES / "departments" / name)
    assert [len(tables[split]) for split in SPLITS] == [130, 20, 40]
    for table in tables.values():
        assert table.topic.nunique() == 10 and table.topic.value_counts().nunique() == 1
        assert all(re.fullmatch(DEPARTMENTS[name], answer) for answer in table.completion)
        assert all(fact in answer for fact, answer in zip(table.fact, table.completion, strict=True))
    line = 0 if name == "it" else 1  # where the form stands
    heads = {split: set(table.completion.str.split("\n").str[line]) for split, table in tables.items()}
    assert heads["test"] <= heads["train"], "every form that is asked for is in training"


def test_brand_voice() -> None:
    tables = read(SAMPLES / "brand_voice")
    assert [len(tables[split]) for split in SPLITS] == [260, 28, 80]
    for table in tables.values():
        assert set(table) == {"prompt", "chosen", "rejected", "kind", "fault"}
        assert set(table.kind) == {"ordinary", "decline", "harmless"}
        assert set(table.fault) == {"over_promise", "rude", "leak", "needless_refusal", "padded", "complies"}
        assert set(table[table.fault == "complies"].kind) == {"decline"}
        assert not [c for c in table.chosen if re.search(FORBIDDEN, c, re.IGNORECASE) or not c.startswith("Hi ")]
        lengths = {column: table[column].str.split().str.len().mean() for column in ("chosen", "rejected")}
        assert abs(lengths["rejected"] / lengths["chosen"] - 1) < 0.15, "length must not give it away"


def test_spoken_service() -> None:
    folder = SAMPLES / "spoken_service"
    tables = read(folder)
    assert [len(tables[split]) for split in SPLITS] == [416, 48, 120]
    voices = [set(tables[split].voice) for split in SPLITS]
    assert sum(map(len, voices)) == len(set().union(*voices)), "no voice stands in two splits"
    assert set(tables["train"].noise) == {"none"}
    assert tables["test"].noise.value_counts().to_dict() == dict.fromkeys(set(tables["test"].noise), 24)
    assert tables["test"].groupby("text").size().eq(2).all()
    named = [{word for words in tables[split].keywords for word in words.split("; ")} for split in SPLITS]
    assert len(named[0]) == 40 and set().union(*named) == named[0], "every keyword that is tested was taught"
    assert sum(f.stat().st_size for f in (folder / "clips").rglob("*.ogg")) < 8e6
    found = audio.load(folder)  # decodes every clip
    assert all(1 < clip.seconds < 15 for split in SPLITS for clip in getattr(found, split))


def test_voices_and_noises_follow_from_the_seed() -> None:
    folder = SAMPLES / "spoken_service"
    spec = importlib.util.spec_from_file_location("synthesise", folder / "synthesise.py")
    synthesise = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthesise)
    for split in SPLITS:
        lines = (folder / "sentences" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        sentences = [json.loads(line) for line in lines]
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert synthesise.plan(split, sentences) == rows
        assert synthesise.plan(split, sentences, seed=1) != rows
