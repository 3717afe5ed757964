"""The notebooks work unchanged with data of another shape, with models of other architectures, with another test."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from test_smoke import cut_off, numbers
from test_smoke import run as smoke_run

from cookbook import assets, batch, data, results

pytestmark = pytest.mark.model


def run(folder: Path, **given: object) -> results.Results:
    return smoke_run(batch.find("01"), folder, COMPARE_STEPS=0, **given)


def tiny(folder: Path, kind: str) -> Path:
    """A randomly initialised model with the smoke model's tokenizer; GPT-2 comes without a chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, Qwen2Config

    tokenizer = AutoTokenizer.from_pretrained(assets.path("smollm2-135m-instruct-smoke"))
    ids = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    if kind == "gpt2":
        tokenizer.chat_template = tokenizer.pad_token = None
        config = GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=512, **ids)
    else:
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = Qwen2Config(**shape, num_key_value_heads=2, tie_word_embeddings=True, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reviews(file: Path) -> Path:
    """Rows of another shape: running text in one column, one of two labels in the other."""
    draw, words = (
        random.Random(0),
        "table lamp spoon door river cloud paper glass train garden music salt wool".split(),
    )
    rows = []
    for i in range(60):
        label, verb = ("good", "loved") if i % 2 else ("bad", "hated")
        rows.append({"review": f"I {verb} it: {' '.join(draw.sample(words, 8))}", "sentiment": label})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_another_shape_of_data_on_gpt2(tmp_path: Path) -> None:
    model, file = tiny(tmp_path / "tiny-gpt2", "gpt2"), reviews(tmp_path / "reviews.jsonl")
    record = run(tmp_path / "run", MODEL=str(model), DATA=str(file), ALLOW_LEAKAGE=True)
    assert record.model.id == "tiny-gpt2"
    assert record.headline == "sentiment_accuracy"
    assert record.data.source == "reviews.jsonl"
    assert str(tmp_path) not in (tmp_path / "run" / "model" / "adapter_config.json").read_text()


def test_qwen2_and_a_folder_with_another_test_file(tmp_path: Path) -> None:
    folder = tmp_path / "others"
    folder.mkdir()
    rows = [json.loads(line) for line in (data.sample("customer_service") / "test.jsonl").read_text().splitlines()]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::8]))
    record = run(tmp_path / "run", MODEL=str(tiny(tmp_path / "tiny-qwen2", "qwen2")), DATA=str(folder), SEED=3,
                 LEARNING_CURVE=True)  # fmt: skip
    assert record.model.id == "tiny-qwen2"
    assert record.headline == "intent_accuracy"
    assert record.data.test == 8
    assert list(record.details["curve"]) == ["25", "28"]
    assert len(record.details["validation_loss"]) == 2, "losses of the curve are not those of the run"


def test_own_departments_on_gpt2_with_bottleneck_adapters(tmp_path: Path) -> None:
    for name in ("sales", "press-office"):
        (tmp_path / "all" / name).mkdir(parents=True)
        reviews(tmp_path / "all" / name / "train.jsonl")
    given = {"DATA": str(tmp_path / "all"), "METHOD": "bottleneck", "COMPARE": True, "ALLOW_LEAKAGE": True}
    notebook = batch.find("03")
    record = smoke_run(notebook, tmp_path / "run", MODEL=str(tiny(tmp_path / "tiny-gpt2", "gpt2")), **given)
    assert list(record.metrics) == ["right", "press-office_right", "sales_right"]
    assert record.data.test == 2 * 4
    assert set(record.details["matrix"]) == {"bottleneck", "lora"}
    assert record.details["bit_for_bit"] and record.details["hot_swapped"]
    assert record.claims["C6"].verdict != "not measured in this run"


def test_own_clauses_with_every_arm(tmp_path: Path) -> None:
    """Full fine-tuning of a model with tied embeddings and two blocks, on rows of another shape."""
    model, file = tiny(tmp_path / "tiny-qwen2", "qwen2"), reviews(tmp_path / "clauses.jsonl")
    given = {"DATA": str(file), "ARMS": ["frozen", "gradual", "lora"], "ALLOW_LEAKAGE": True, "SHOTS": 0}
    record = smoke_run(batch.find("02"), tmp_path / "run", MODEL=str(model), **given)
    assert record.headline == "sentiment_accuracy"
    assert record.data.source == "clauses.jsonl"
    assert set(record.details["arms"]) == {"untouched", "full", "frozen", "gradual", "lora"}
    assert record.details["random_split"] == {}, "there are no families in these rows to draw sisters from"
    assert record.resources.parameters.trainable == record.resources.parameters.total


def test_own_clauses_cut_off_between_two_evaluations(tmp_path: Path) -> None:
    """Begun again from a checkpoint that no evaluation goes with: to the same end."""
    model, file = tiny(tmp_path / "tiny-qwen2", "qwen2"), reviews(tmp_path / "clauses.jsonl")
    given = {
        "MODEL": str(model),
        "DATA": str(file),
        "EPOCHS": 4.0,
        "SAVE_STEPS": 2,
        "SHOTS": 0,
        "ALLOW_LEAKAGE": True,
    }
    whole = smoke_run(batch.find("02"), tmp_path / "whole", **given)
    cut_off(batch.find("02"), tmp_path / "cut", lambda _, step: step >= 5, **given)
    resumed = smoke_run(batch.find("02"), tmp_path / "cut", **given)
    executed = (tmp_path / "cut" / "executed.ipynb").read_text(encoding="utf-8")
    assert "resumed from checkpoint-" in executed and numbers(resumed) == numbers(whole)


def test_a_text_that_would_lose_its_answer_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    given = {"DATA": str(reviews(tmp_path / "clauses.jsonl")), "ON_LONG": "truncate"}
    parameters = batch.check_parameters(batch.find("02"), {"PROFILE": "smoke", **given})
    status = batch.run_one(batch.find("02"), tmp_path / "run", parameters)
    assert status.cell.id == "data"
    assert "ON_LONG is 'truncate'; use 'error' or 'drop'" in status.error


def calls(file: Path, start: int) -> Path:
    """A plain table of recordings and their texts: no keywords, voices or noise; clips of the sample."""
    sample = data.sample("spoken_service")
    rows = [json.loads(line) for line in (sample / "train.jsonl").read_text().splitlines()][start : start + 80 : 2]
    lines = [json.dumps({"audio": str(sample / row["file"]), "transcript": row["text"]}) for row in rows]
    file.write_text("\n".join(lines))
    return file


def test_own_calls_and_own_other_speech_with_lora_and_replay(tmp_path: Path) -> None:
    own, other = calls(tmp_path / "calls.jsonl", 0), calls(tmp_path / "meetings.jsonl", 200)
    given = {"METHOD": "lora", "REPLAY": 0.5, "ARMS": ["replay"], "MIX": -1.0, "EPOCHS": 1.0, "MASKED": 0.05}
    record = smoke_run(batch.find("04"), tmp_path / "run", DATA=str(own), GENERAL=str(other), **given)
    assert record.data.source == "calls.jsonl"
    assert "keyword_recall" not in record.metrics
    assert [p.probe for p in record.forgetting] == ["general_speech_wer"]
    assert record.details["replays"] > 0
    assert set(record.details["arms"]) >= {"untouched", "lora, replay", "replay"}
    assert record.resources.parameters.trainable < record.resources.parameters.total / 10
