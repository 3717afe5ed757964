"""Exports, read by the tools they are for: Axolotl, LLaMA-Factory and Together by their own code.

`make tools` makes an environment for it. OpenAI, Bedrock and NeMo check files on their side or need a GPU to be
imported: theirs are held against JSON schemas written from the pages that `cookbook.export_formats` names.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("DISABLE_VERSION_CHECK", "1")  # LLaMA-Factory: newer libraries of the cookbook beside its own
os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")

import jsonschema
import pytest
import transformers.image_utils
import transformers.video_utils  # noqa: F401
import yaml

from cookbook import chat, export, models, recipes, training_sets
from cookbook.export_config import export_config
from cookbook.export_formats import FORMATS

# LLaMA-Factory imports torchaudio, which has no build for this torch on a CPU and is not used on text.
sys.modules["torchaudio"] = ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)

SMOKE = {"PROFILE": "smoke"}
PARTS = {"01": [""], "02": [""], "03": ["finance", "hr", "it"], "05": ["sft", "dpo"]}
RUNS = [(recipe, part) for recipe, parts in PARTS.items() for part in parts]
IGNORED = -100


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return models.load_tokenizer("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def sets() -> dict[str, list[training_sets.TrainingSet]]:
    return {recipe: training_sets.of_recipe(recipes.find(recipe), SMOKE) for recipe in PARTS}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Every recipe in every format that has a form for it, written by the command's own function."""
    base, found = tmp_path_factory.mktemp("exports"), {}
    for recipe in PARTS:
        for tool, form in FORMATS.items():
            if recipe != "05" or form.preference:
                found[recipe, tool], _ = export.export(recipe, tool, base / f"{recipe}-{tool}", SMOKE)
    return found


def rows_of(sets: dict[str, list[training_sets.TrainingSet]], recipe: str, part: str) -> dict[str, list[Any]]:
    return next(one.rows for one in sets[recipe] if one.name == part)


def config(recipe: str, tool: str, part: str, folder: Path, **given: str) -> dict[str, Any]:
    return yaml.safe_load(export_config(recipe, tool, {"PROFILE": "cpu", **given}, part=part, folder=folder))


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
@pytest.mark.parametrize(("recipe", "part"), RUNS)
def test_axolotl_takes_the_configuration(recipe: str, part: str, profile: str, folders: Any) -> None:
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.config import AxolotlInputConfig

    asked = config(recipe, "axolotl", part, folders[recipe, "axolotl"], PROFILE=profile)
    assert set(asked) <= set(AxolotlInputConfig.model_fields), "a key that Axolotl ignores"
    taken = validate_config(DictDefault(asked)).to_dict()
    for key, value in asked.items():
        if key in ("datasets", "test_datasets"):
            for given, kept in zip(value, taken[key], strict=True):
                assert not set(given) - set(kept) and Path(kept["path"]).is_file(), given
        else:
            assert taken[key] == value, key


@pytest.mark.parametrize(("recipe", "part"), [run for run in RUNS if run[1] != "dpo"])
def test_axolotl_learns_the_same_tokens(recipe: str, part: str, folders: Any, sets: Any, tokenizer: Any) -> None:
    """Axolotl's own tokenizing strategy: the prompt as in the recipe, and loss on the last answer alone."""
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset

    asked = DictDefault(config(recipe, "axolotl", part, folders[recipe, "axolotl"]))
    entry = asked.datasets[0]
    strategy = load(tokenizer, DictDefault(asked | {"sequence_len": 4096}), ds_cfg=entry)
    found = load_dataset(entry.ds_type, data_files=entry.path, split=entry.split)
    expected = rows_of(sets, recipe, part)["train"]
    assert len(found) == len(expected)
    for record, row in list(zip(found, expected, strict=True))[::5]:
        encoded = strategy.tokenize_prompt(record)
        same_tokens(encoded["input_ids"], encoded["labels"], row, tokenizer)


def same_tokens(ids: list[int], labels: list[int], row: Any, tokenizer: Any) -> None:
    """The recipe's own tokens; those with loss are the answer's and its end, the line break behind it at will."""
    answer = row["completion"][0]["content"]
    full = tokenizer(chat.render_full(tokenizer, row["prompt"], answer), add_special_tokens=False)["input_ids"]
    asked = tokenizer(chat.render_prompt(tokenizer, row["prompt"]), add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).rstrip("\n") == tokenizer.decode(full).rstrip("\n")
    learnt = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(learnt).rstrip("\n") == tokenizer.decode(full[len(asked) :]).rstrip("\n")
    assert tokenizer.eos_token_id in learnt


def test_axolotl_masks_earlier_answers(tmp_path: Path, tokenizer: Any) -> None:
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset

    row, file = several_turns(tmp_path, "axolotl")
    asked = DictDefault(config("01", "axolotl", "", tmp_path))
    strategy = load(tokenizer, asked, ds_cfg=asked.datasets[0])
    encoded = strategy.tokenize_prompt(load_dataset("json", data_files=str(file), split="train")[0])
    same_tokens(encoded["input_ids"], encoded["labels"], row, tokenizer)


def several_turns(tmp_path: Path, tool: str) -> tuple[dict[str, Any], Path]:
    """A conversation of two questions before seven of one, exported for a tool: the row, and the file."""
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it red?"}]
    turns += [{"role": "assistant", "content": "It is."}, {"role": "user", "content": "And in blue?"}]
    row = {"prompt": turns, "completion": [{"role": "assistant", "content": "Sold out."}], "source": "x:1"}
    single = {"prompt": turns[:2], "completion": row["completion"], "source": "x:2"}
    rows = {"train": [row, *[single] * 7], "validation": [single], "test": [single]}
    one = training_sets.TrainingSet("", "sft", rows, "x", "x", "x", [])
    for name, (_, content) in export.render([one], tool)[0].items():
        (tmp_path / name).write_bytes(content)
    return row, tmp_path / f"train.{FORMATS[tool].suffix}"


def test_axolotl_reads_pairs(folders: Any, sets: Any, tokenizer: Any) -> None:
    from axolotl.prompt_strategies.dpo import load
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset

    asked = DictDefault(config("05", "axolotl", "dpo", folders["05", "axolotl"]))
    transform = load(asked.datasets[0].type, asked, dataset_idx=0)
    transform = transform[0] if isinstance(transform, tuple) else transform
    found = load_dataset("json", data_files=asked.datasets[0].path, split="train")
    for record, row in zip(found, rows_of(sets, "05", "dpo")["train"], strict=True):
        got = transform(record, tokenizer=tokenizer)
        assert got["prompt"] == chat.render_prompt(tokenizer, row["prompt"])
        for side in ("chosen", "rejected"):
            full = chat.render_full(tokenizer, row["prompt"], row[side][0]["content"])
            assert got["prompt"] + got[side] == full.rstrip("\n")


def llama_factory_arguments(asked: dict[str, Any], tmp_path: Path) -> Any:
    """Parsed as `llamafactory-cli train` does; but bf16, which needs a GPU."""
    from llamafactory.hparams import get_train_args

    return get_train_args(asked | {"bf16": False, "use_cpu": True, "output_dir": str(tmp_path / "model")})


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
@pytest.mark.parametrize(("recipe", "part"), RUNS)
def test_llama_factory_takes_the_configuration(
    recipe: str, part: str, profile: str, folders: Any, tmp_path: Path
) -> None:
    asked = config(recipe, "llama-factory", part, folders[recipe, "llama-factory"], PROFILE=profile)
    taken = llama_factory_arguments(asked, tmp_path)  # a key that it does not know is an error
    values = {key: value for group in taken for key, value in vars(group).items()}
    for key in ("learning_rate", "cutoff_len", "lora_rank", "lora_alpha", "pref_beta", "ld_alpha", "warmup_ratio"):
        if key in asked:
            assert values[key] == asked[key], key
    assert values["per_device_train_batch_size"] == asked["per_device_train_batch_size"]
    assert str(values["lr_scheduler_type"].value) == "cosine" and values["eval_steps"] == asked.get("eval_steps")


@pytest.mark.parametrize(("recipe", "part"), RUNS)
def test_llama_factory_reads_the_data(
    recipe: str, part: str, folders: Any, sets: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Its loader, converter, template and mask, on the files and names that the exports write."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer

    asked = config(recipe, "llama-factory", part, folders[recipe, "llama-factory"])
    model, data, training, tuning, _ = llama_factory_arguments(asked, tmp_path)
    template = get_template_and_fix_tokenizer(tokenizer, data)
    stage = "rm" if tuning.stage == "dpo" else "sft"
    found = get_dataset(template, model, data, training, stage=stage, tokenizer=tokenizer)
    expected = rows_of(sets, recipe, part)
    assert len(found["train_dataset"]) == len(expected["train"])
    if expected["validation"]:
        assert len(found["eval_dataset"]) == len(expected["validation"])
    for record, row in list(zip(found["train_dataset"], expected["train"], strict=True))[::5]:
        if stage == "sft":
            same_tokens(record["input_ids"], record["labels"], row, tokenizer)
        else:
            for side in ("chosen", "rejected"):
                half = {"prompt": row["prompt"], "completion": row[side]}
                same_tokens(record[f"{side}_input_ids"], record[f"{side}_labels"], half, tokenizer)


def test_llama_factory_masks_earlier_answers(tmp_path: Path, tokenizer: Any) -> None:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer

    row, _ = several_turns(tmp_path, "llama-factory")
    one = training_sets.TrainingSet("", "sft", dict.fromkeys(("train", "validation", "test"), [row]), "", "", "", [])
    (tmp_path / "dataset_info.json").write_text(json.dumps(export._dataset_info([one])))
    asked = config("01", "llama-factory", "", tmp_path, QUANTIZE="false")
    model, data, training, _, _ = llama_factory_arguments(asked, tmp_path)
    template = get_template_and_fix_tokenizer(tokenizer, data)
    record = get_dataset(template, model, data, training, stage="sft", tokenizer=tokenizer)["train_dataset"][0]
    same_tokens(record["input_ids"], record["labels"], row, tokenizer)


@pytest.mark.parametrize("recipe", list(PARTS))
def test_together_accepts_the_files(recipe: str, folders: Any, tmp_path: Path) -> None:
    from together.lib.utils.files import check_file

    several_turns(tmp_path, "together")
    files = [*folders[recipe, "together"].glob("*.jsonl"), tmp_path / "train.jsonl"]
    assert len(files) > 1
    for file in files:
        report = check_file(file)
        assert report["is_check_passed"], report


TEXT = {"type": "string", "minLength": 1}


def message(*roles: str, **more: Any) -> dict[str, Any]:
    fields = {"role": {"enum": list(roles)}, "content": TEXT, **more}
    return {"type": "object", "properties": fields, "required": ["role", "content"], "additionalProperties": False}


def record(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def several(item: dict[str, Any], fewest: int = 1, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": fewest, **more}


ANYBODY = message("system", "user", "assistant", weight={"enum": [0, 1]})
ANSWER = several(message("assistant"), maxItems=1)
BLOCKS = several(record(text=TEXT))
SCHEMAS: dict[tuple[str, str], dict[str, Any]] = {
    ("openai", "sft"): record(messages=several(ANYBODY, 2)),
    ("openai", "preference"): record(
        input=record(messages=several(message("system", "user", "assistant"))),
        preferred_output=ANSWER,
        non_preferred_output=ANSWER,
    ),
    ("bedrock", "converse"): {
        **record(schemaVersion={"const": "bedrock-conversation-2024"}, messages=several(record(
            role={"enum": ["user", "assistant"]}, content=BLOCKS), 2), system=BLOCKS),
        "required": ["schemaVersion", "messages"],
    },
    ("bedrock", "prompt_completion"): record(prompt=TEXT, completion=TEXT),
    ("nemo", "chat"): record(messages=several(message("system", "user", "assistant"), 2)),
    ("nemo", "input_output"): record(input=TEXT, output=TEXT),
    ("nemo", "preference"): record(
        context=several(message("system", "user", "assistant")),
        completions=several(record(rank={"enum": [0, 1]}, completion=ANSWER), 2, maxItems=2),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tool", "form"), list(SCHEMAS))
def test_records_keep_to_the_documented_form(tool: str, form: str, folders: Any) -> None:
    checked = 0
    for recipe in PARTS:
        for file in folders[recipe, tool].rglob("*.jsonl") if (recipe, tool) in folders else []:
            kind = file.parent.name if tool != "openai" else "preference" if "dpo_" in file.name else "sft"
            for line in file.read_text(encoding="utf-8").splitlines() if kind == form else []:
                jsonschema.validate(json.loads(line), SCHEMAS[tool, form])
                checked += 1
    assert checked > 30
