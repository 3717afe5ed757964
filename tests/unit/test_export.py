"""Exported data: exact records a tool, the recipe's own rows, no test row in training, all files or none."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from cookbook import assets, cli, data, export, leakage, models, pairs, profiles, recipes, training_sets
from cookbook.export_formats import FORMATS
from cookbook.recipes import RequestError

SYSTEM = "Answer briefly."
COLOURS = ("red", "blue", "green", "grey", "brown")
THINGS = ("kettle", "parcel", "voucher", "sofa", "lamp", "invoice", "garden chair", "mixer", "pillow", "headphones")
ASKED = [f"What about the {c} {t}, number {i}?" for i, (c, t) in enumerate((c, t) for t in THINGS for c in COLOURS)]


def chat(question: str, answer: str, *earlier: str) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate([*earlier, question])]
    return {"messages": [*turns, {"role": "assistant", "content": answer}]}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def splits(folder: Path, train: list[dict[str, Any]], rest: list[dict[str, Any]]) -> Path:
    """A folder of three files; four validation rows, the other ones for the test."""
    for name, rows in (("train", train), ("validation", rest[:4]), ("test", rest[4:])):
        jsonl(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    rows = [chat(question, f"Answer {i} – naïve.") for i, question in enumerate(ASKED)]
    first = chat("And in blue?", "Sold out.", "Is the kettle here in red?", "It is.")
    return splits(tmp_path / "chats", [first, *rows[:30:3]], rows[40:])


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    rows = [{"prompt": q, "chosen": f"Yes, {i}.", "rejected": f"No {i}!"} for i, q in enumerate(ASKED)]
    return splits(tmp_path / "pairs", rows[:30:3], rows[40:])


def written(tmp_path: Path, source: Path, tool: str, **given: Any) -> tuple[Path, list[str]]:
    given = {"INSTRUCTION": SYSTEM, "ALLOW_LEAKAGE": "true"} | given  # the questions above are much alike
    return export.export(str(source), tool, tmp_path / "out" / tool, given)


def records(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


S = {"role": "system", "content": SYSTEM}
U = {"role": "user", "content": ASKED[0]}
A = {"role": "assistant", "content": "Answer 0 – naïve."}
TURNS = [{"role": "user", "content": "Is the kettle here in red?"}, {"role": "assistant", "content": "It is."}]
LAST = [{"role": "user", "content": "And in blue?"}, {"role": "assistant", "content": "Sold out."}]


@pytest.mark.parametrize(
    ("tool", "file", "single", "several"),
    [
        ("axolotl", "train.jsonl", {"messages": [S, U, A]}, [S, TURNS[0], TURNS[1] | {"train": False}, *LAST]),
        ("llama-factory", "train.json", {"messages": [S, U, A]}, [S, *TURNS, *LAST]),
        ("openai", "train.jsonl", {"messages": [S, U, A]}, [S, TURNS[0], TURNS[1] | {"weight": 0}, *LAST]),
        ("together", "train.jsonl", {"messages": [S, U, A]}, [S, TURNS[0], TURNS[1] | {"weight": 0}, *LAST]),
        (
            "bedrock",
            "converse/train.jsonl",
            {
                "schemaVersion": "bedrock-conversation-2024",
                "system": [{"text": SYSTEM}],
                "messages": [
                    {"role": "user", "content": [{"text": ASKED[0]}]},
                    {"role": "assistant", "content": [{"text": A["content"]}]},
                ],
            },
            [{"role": turn["role"], "content": [{"text": turn["content"]}]} for turn in [*TURNS, *LAST]],
        ),
        ("nemo", "chat/training.jsonl", {"messages": [S, U, A]}, [S, *TURNS, *LAST]),
    ],
)
def test_records_of_answers(
    tmp_path: Path, chats: Path, tool: str, file: str, single: dict[str, Any], several: list[Any]
) -> None:
    folder, lines = written(tmp_path, chats, tool)
    found = records(folder / file)
    assert len(found) == 11 and found[1] == single and found[0]["messages"] == several
    if tool in ("bedrock", "nemo"):  # a form of two texts has no place for several turns
        assert not [p for p in folder.rglob("*") if p.name in ("prompt_completion", "input_output")]
        assert any("left out: rows with several turns" in line for line in lines)


@pytest.mark.parametrize(
    ("tool", "file", "keys"),
    [
        ("bedrock", "prompt_completion/train.jsonl", ("prompt", "completion")),
        ("nemo", "input_output/training.jsonl", ("input", "output")),
    ],
)
def test_records_of_two_texts(tmp_path: Path, chats: Path, tool: str, file: str, keys: tuple[str, str]) -> None:
    rows = records(chats / "train.jsonl")
    jsonl(chats / "train.jsonl", rows[1:])
    folder, _ = written(tmp_path, chats, tool)
    assert records(folder / file)[0] == dict(zip(keys, (f"{SYSTEM}\n\n{ASKED[0]}", A["content"]), strict=True))


YES, NO = {"role": "assistant", "content": "Yes, 0."}, {"role": "assistant", "content": "No 0!"}
OPENAI = {"input": {"messages": [S, U]}, "preferred_output": [YES], "non_preferred_output": [NO]}


@pytest.mark.parametrize(
    ("tool", "file", "record"),
    [
        ("axolotl", "train.jsonl", {"messages": [S, U], "chosen": YES, "rejected": NO}),
        ("llama-factory", "train.json", {"messages": [S, U], "chosen": YES, "rejected": NO}),
        ("openai", "train.jsonl", OPENAI),
        ("together", "train.jsonl", OPENAI),
        (
            "nemo",
            "preference/training.jsonl",
            {
                "context": [S, U],
                "completions": [{"rank": 0, "completion": [YES]}, {"rank": 1, "completion": [NO]}],
            },
        ),
    ],
)
def test_records_of_pairs(tmp_path: Path, preferences: Path, tool: str, file: str, record: dict[str, Any]) -> None:
    assert records(written(tmp_path, preferences, tool)[0] / file)[0] == record


def test_dataset_info_names_each_file_and_its_form(tmp_path: Path, chats: Path, preferences: Path) -> None:
    for source in (chats, preferences):
        folder, _ = export.export(str(source), "llama-factory", tmp_path / source.name / "x", {"ALLOW_LEAKAGE": "1"})
        info = json.loads((folder / "dataset_info.json").read_text())
        assert set(info) == {"train", "validation", "test"}
        for name, entry in info.items():
            assert entry["file_name"] == f"{name}.json" and entry["formatting"] == "sharegpt"
            assert set(entry["columns"].values()) <= set(records(folder / entry["file_name"])[0])
            assert entry.get("ranking", False) == (source == preferences)


@pytest.mark.parametrize("tool", list(FORMATS))
def test_same_bytes_again_and_no_test_row_in_training(tmp_path: Path, chats: Path, tool: str) -> None:
    first, lines = written(tmp_path / "a", chats, tool)
    again, _ = written(tmp_path / "b", chats, tool)
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for file in files:
        assert (first / file).read_bytes() == (again / file).read_bytes()
    held = [row["messages"][-1]["content"] for row in records(chats / "test.jsonl")]
    has_place = "test" in FORMATS[tool].places
    for file in files:
        seen = [text in (first / file).read_text(encoding="utf-8") for text in held]
        assert all(seen) if file.stem == "test" else not any(seen)
    assert has_place == any(file.stem == "test" for file in files)
    assert has_place != any("6 test rows are kept back" in line for line in lines)
    rows = json.loads((first / "export.json").read_text())["rows"]
    assert [line for line in lines if "rows  " in line] == [f"{n:6d} rows  {name}" for name, n in rows.items()]


def test_a_missing_split_is_cut_as_the_loader_cuts_it(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "all.jsonl", [chat(q, f"{i}") for i, q in enumerate(ASKED)])
    for seed in (0, 5):
        folder, _ = export.export(str(file), "nemo", tmp_path / str(seed), {"SEED": str(seed), "ALLOW_LEAKAGE": "1"})
        loaded = data.load(file, seed=seed)
        for split, name in FORMATS["nemo"].places.items():
            expected = [e.completion for e in getattr(loaded, split)]
            assert [r["output"] for r in records(folder / "input_output" / f"{name}.jsonl")] == expected


def test_folders_in_a_folder_are_sets_of_their_own(tmp_path: Path) -> None:
    for name in ("hr", "it"):
        splits(
            tmp_path / "own" / name,
            [chat(f"{name} {q}", "x") for q in ASKED[:10]],
            [chat(q, name) for q in ASKED[30:]],
        )
    folder, lines = written(tmp_path, tmp_path / "own", "openai")
    assert {p.name for p in folder.iterdir()} == {
        "export.json", "hr_train.jsonl", "hr_validation.jsonl", "it_train.jsonl", "it_validation.jsonl"
    }  # fmt: skip
    assert any(line.startswith("it: 16 test rows are kept back") for line in lines)


def test_limits(tmp_path: Path) -> None:
    rows = [chat(q, f"{i}") for i, q in enumerate(ASKED)]
    rows[0]["messages"][1]["content"] = "x" * 70_000
    rows[1]["messages"][0]["content"] = "User: who are you?"
    source = splits(tmp_path / "few", rows[:9], rows[40:])
    said = {tool: "\n".join(written(tmp_path, source, tool)[1]) for tool in ("openai", "bedrock", "together")}
    assert "limit: 9 training rows, and openai asks for 10 (OpenAI's guide" in said["openai"]
    assert "limit: few/train.jsonl:1: may be longer than 65536 tokens" in said["openai"]
    assert "limit: few/train.jsonl:2: a prompt holds a word that bedrock reserves" in said["bedrock"]
    assert "limit" not in said["together"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chats", "--format", "openia"], "--format openia: unknown; did you mean openai"),
        (["chats.jsonl", "--format", "openai"], "nor is there a file or folder of data of that name"),
        (
            ["04", "--format", "axolotl"],
            "recordings cannot be exported: axolotl and llama-factory take audio for chat",
        ),
        (["clips", "--format", "axolotl"], "recordings cannot be exported"),
        (
            ["pairs", "--format", "bedrock", "-p", "ALLOW_LEAKAGE", "true"],
            "bedrock has no form for preference pairs; axolotl, llama-factory, openai",
        ),
        (["chats", "--format", "axolotl", "-p", "EPOCHS", "2"], "EPOCHS: DATA without a recipe takes SEED"),
        (["chats", "--format", "axolotl", "-p", "SEED", "x"], "SEED: 'x' is not a valid int"),
        (["01", "--format", "axolotl", "-p", "EPOCH", "2"], "EPOCH: no such parameter; did you mean EPOCHS"),
        (["01", "--format", "axolotl", "-p", "PROFILE", "cpux"], "there is no profile 'cpux'"),
        (
            ["twice", "--format", "together", "-p", "ALLOW_LEAKAGE", "true"],
            "twice/train.jsonl:2: user and assistant must take turns",
        ),
        (["broken", "--format", "openai"], "broken/train.jsonl:2: empty answer"),
        (["chats", "--format", "openai"], "train/test"),
        (["chats", "--format", "openai", "--output-dir", "full"], "full: is there already; name an empty or a new"),
        (["chats", "--format", "openai", "--output-dir", "full/file"], "full/file: is there already"),
    ],
)
@pytest.mark.usefixtures("chats", "preferences")
def test_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    good = [chat(q, f"{i}") for i, q in enumerate(ASKED)]
    twice = {"messages": [U, U, A]}
    splits(tmp_path / "twice", [good[0], twice, *good[1:9]], good[40:])
    splits(tmp_path / "broken", [good[0], chat("b?", " "), *good[1:9]], good[40:])
    if arguments[0] == "chats" and len(arguments) == 3:
        jsonl(tmp_path / "chats" / "test.jsonl", good[:6])  # what it was trained on
    jsonl(tmp_path / "clips" / "train.jsonl", [{"file": "a.ogg", "text": "Hello"}] * 9)
    jsonl(tmp_path / "full" / "file", [])
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["export-data", *arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and said in err and "Traceback" not in err and out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_all_files_or_none(tmp_path: Path, chats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "openai").mkdir(parents=True)  # an empty folder may be used
    assert written(tmp_path, chats, "openai")[0].name == "openai"

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RequestError, match="cannot be written: No space left on device"):
        written(tmp_path, chats, "together")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["openai"]


def test_command_line(tmp_path: Path, chats: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["export-data", "chats", "--format", "together", "-p", "ALLOW_LEAKAGE", "true"])
    lines = capsys.readouterr().out.splitlines()
    assert not stop.value.code and lines[:2] == ["runs/chats-together, for together:", "    11 rows  train.jsonl"]
    assert len(records(Path("runs/chats-together/validation.jsonl"))) == 4


def cells(recipe: str, names: dict[str, Any], *wanted: str) -> dict[str, Any]:
    """What these cells of a notebook define; a cell may be given as "id:text", up to where the text begins."""
    sources = {cell.id: cell.source for cell in nbformat.read(recipes.find(recipe), as_version=4).cells}
    for cell in wanted:
        name, _, stop = cell.partition(":")
        exec("from __future__ import annotations\n" + sources[name].split(stop or "\0")[0], names)
    return names


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The names that a notebook's data cells need, with the smoke profile and a seed of its own."""
    monkeypatch.setattr(pd.DataFrame, "_repr_html_", lambda self: "")

    def names(recipe: str, **changed: Any) -> dict[str, Any]:
        from transformers import AutoConfig

        given = {"PROFILE": "smoke", "SEED": 3, **changed}
        values = recipes.parameters(recipes.find(recipe), given)
        profile = profiles.load("smoke")
        modules = {"assets": assets, "data": data, "leakage": leakage, "models": models, "pairs": pairs, "pd": pd}
        modules |= {"AutoConfig": AutoConfig, "torch": __import__("torch"), "json": json, "random": random, "re": re}
        modules |= {"Dataset": __import__("datasets").Dataset, "itertools": __import__("itertools")}
        more = {"profile": profile, "model_id": profile.model, "run_dir": tmp_path, "display": lambda *_: None}
        return values | modules | more | {"__name__": "cells", "given": given}

    return names


def plain(rows: Any) -> list[dict[str, Any]]:
    """Rows without their places, as TRL gets them."""
    return [{k: v for k, v in row.items() if k != "source"} for row in rows]


@pytest.mark.model
def test_the_rows_are_those_of_01(notebook: Any) -> None:
    names = cells("01", notebook("01", WHOLE_SHARE=0.3), "data", "mixture")
    (found,) = training_sets.of_recipe(recipes.find("01"), names["given"])
    assert plain(found.rows["train"]) == list(names["mixture"](names["splits"].train))
    assert len(found.rows["train"]) == 28 + round(0.3 * 28)
    for split in ("validation", "test"):
        assert plain(found.rows[split]) == data.rows(getattr(names["splits"], split))
    assert found.fingerprint == names["splits"].fingerprint


@pytest.mark.model
def test_the_rows_are_those_of_02(notebook: Any) -> None:
    names = cells("02", notebook("02", EPOCHS=2.0), "obligations", "corpus", "split", "data")
    names["label"], names["epochs"] = next(iter(names["splits"].schema.labels), None), names["EPOCHS"]
    cells("02", names, "order")
    (found,) = training_sets.of_recipe(recipes.find("02"), names["given"])
    assert plain(found.rows["train"]) == list(names["train_rows"]) and found.in_order
    for split in ("validation", "test"):
        assert plain(found.rows[split]) == data.rows(getattr(names["splits"], split))
    assert (found.fingerprint, found.licence) == (names["splits"].fingerprint, names["splits"].licence)


def test_the_passes_of_02_are_the_notebook_s() -> None:
    sources = "\n".join(cell.source for cell in nbformat.read(recipes.find("02"), as_version=4).cells)
    assert "epochs = EPOCHS or 1.5 * profile.epochs" in sources


@pytest.mark.model
def test_the_rows_are_those_of_03(notebook: Any) -> None:
    names = cells("03", notebook("03", INSTRUCTION="Answer."), "data")
    found = training_sets.of_recipe(recipes.find("03"), names["given"])
    assert [one.name for one in found] == names["departments"]
    for one in found:
        for split, rows in one.rows.items():
            assert plain(rows) == data.rows(getattr(names["splits"][one.name], split))


@pytest.mark.model
def test_the_rows_are_those_of_05(notebook: Any) -> None:
    names = cells("05", notebook("05", ARCHIVE=3, TICKETS=20), "data", "tickets")
    first, second = training_sets.of_recipe(recipes.find("05"), names["given"])
    assert plain(first.rows["train"]) == list(names["sft_rows"]) and not first.rows["validation"]
    for split, rows in second.rows.items():
        assert plain(rows) == pairs.rows(getattr(names["splits"], split))
    assert (first.kind, second.kind) == ("sft", "preference")
