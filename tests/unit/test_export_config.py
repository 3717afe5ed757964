"""Exported configurations: each parameter moves what it should, fixed values stand in the notebooks, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from cookbook import cli, recipe_runs, recipes
from cookbook.export_config import TOOLS, export_config
from cookbook.recipe_runs import CLIP, OPTIMISER, RUNS, SCHEDULE
from cookbook.recipes import RequestError

CASES = [(recipe, tool, part) for recipe, part in (("01", ""), ("02", ""), ("03", "it"), ("05", "sft"), ("05", "dpo"))
         for tool in TOOLS]  # fmt: skip
# What a parameter decides; "a/b" is Axolotl's key and LLaMA-Factory's.
MODEL, LENGTH = "base_model/model_name_or_path", "sequence_len/cutoff_len"
RATE, EPOCHS = "learning_rate/learning_rate", "num_epochs/num_train_epochs"
BATCH = "gradient_accumulation_steps/gradient_accumulation_steps"
RANK = "lora_r/lora_rank lora_alpha/lora_alpha"
COMMON = {"MODEL": MODEL + " -/template", "MAX_LENGTH": LENGTH, "BATCH_SIZE": BATCH, "SEED": "seed/seed"}
MOVES: dict[tuple[str, str], dict[str, str]] = {
    ("01", ""): COMMON
    | {"LEARNING_RATE": RATE, "EPOCHS": EPOCHS, "LORA_RANK": RANK, "LORA_ALPHA": "lora_alpha/lora_alpha"}
    | {
        "QUANTIZE": "adapter/quantization_bit load_in_4bit/quantization_method bnb_config_kwargs/quantization_type "
        "-/double_quantization"
    },
    ("02", ""): COMMON
    | {"LEARNING_RATE": RATE, "PATIENCE": "early_stopping_patience/early_stopping_steps"}
    | {"BATCH_SIZE": BATCH + " micro_batch_size/per_device_train_batch_size -/per_device_eval_batch_size"},
    ("03", "it"): COMMON | {"LORA_LEARNING_RATE": RATE, "EPOCHS": EPOCHS, "LORA_RANK": RANK},
    ("05", "sft"): COMMON | {"SFT_LEARNING_RATE": RATE, "LORA_RANK": RANK},
    ("05", "dpo"): COMMON
    | {"LEARNING_RATE": RATE, "EPOCHS": EPOCHS, "LORA_RANK": RANK, "BETA": "rl_beta/pref_beta"}
    | {"LOSS": "dpo_loss_type/pref_loss", "SFT_WEIGHT": "dpo_loss_weights/pref_ftx", "TAIL": "-/ld_alpha"},
}
# Parameters that no configuration holds: of the data, of the evaluation, of other runs, or told in a comment.
ELSEWHERE = set(
    "PROFILE DATA OUTPUT_DIR INTERACTIVE INPUT_COLUMN TARGET_COLUMNS INSTRUCTION ON_LONG ALLOW_LEAKAGE WHOLE_SHARE "
    "SHOTS COMPARE_STEPS LEARNING_CURVE RATE_PER_HOUR CURRENCY EXCERPT_TOKENS FAMILY_ROWS CATEGORY_ROWS TEXT_WEIGHT "
    "ARMS METHOD COMPARE KEY_WEIGHT BOTTLENECK BOTTLENECK_LEARNING_RATE MIX_ROWS ADAPTER TICKETS ARCHIVE "
    "ARCHIVE_GOOD TEMPERATURE SAMPLES SAVE_STEPS ENGINE".split()
)
OTHER_RUN = {
    ("02", ""): {"EPOCHS", "LORA_RANK", "LORA_LEARNING_RATE"},  # in the data; of an arm
    ("05", "sft"): {"LEARNING_RATE", "EPOCHS", "LOSS", "BETA", "TAIL", "SFT_WEIGHT"},
    ("05", "dpo"): {"SFT_LEARNING_RATE"},
}
CHANGED = {"MODEL": "owner/model", "QUANTIZE": "false", "LOSS": "ipo", "BATCH_SIZE": "32", "EPOCHS": "7"}


def keys(recipe: str, tool: str, part: str, **given: str) -> dict[str, Any]:
    return yaml.safe_load(export_config(recipe, tool, {"PROFILE": "cpu", **given}, part=part))


@pytest.mark.parametrize(("recipe", "tool", "part"), CASES)
def test_each_parameter_moves_what_it_decides_and_nothing_else(recipe: str, tool: str, part: str) -> None:
    moves, column = MOVES[recipe, part], list(TOOLS).index(tool)
    here = {p for (number, _), m in MOVES.items() if number == recipe for p in m} | OTHER_RUN.get(
        (recipe, part), set()
    )
    known = recipes.parameters(recipes.find(recipe), {})
    assert set(known) - ELSEWHERE == here, "a new parameter: say in MOVES or ELSEWHERE what it decides"
    before = keys(recipe, tool, part)
    for name in sorted(here):
        value = CHANGED.get(name) or str(int(known[name]) + 77 if isinstance(known[name], int) else 0.77)
        after = keys(recipe, tool, part, **{name: value})
        found = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        wanted = {pair.split("/")[column] for pair in moves.get(name, "").split()} - {"-"}
        assert found == wanted, name


# Where in a notebook the values stand that no parameter decides.
EVIDENCE: dict[tuple[str, str], tuple[str, ...]] = {
    ("01", ""): (
        'lora_alpha=LORA_ALPHA or 2 * LORA_RANK',
        'lora_dropout=0.0',
        'target_modules="all-linear"',
        '"lr_scheduler_type": "cosine", "warmup_steps": 0.05',
        'bnb_4bit_quant_type="nf4"',
        "bnb_4bit_use_double_quant=True",
        '"train_sampling_strategy": "group_by_length"',
        '"gradient_checkpointing": False',
        "epochs = EPOCHS or profile.epochs",
        "batch_size = BATCH_SIZE or profile.batch_size",
        "micro_batch=min(profile.micro_batch_size, batch_size)",
        "max_length = min(MAX_LENGTH or profile.max_length",
    ),
    ("02", ""): (
        '"num_train_epochs": 1,',
        '"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "weight_decay": 0.01',
        '"train_sampling_strategy": "sequential"',
        "round(epochs * len(splits.train) / batch_size / 5)",
        "early_stopping_patience=PATIENCE",
        '"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False',
        "micro_batch=min(profile.micro_batch_size, max(1, batch_size // 2))",
        "batch_size = BATCH_SIZE or profile.batch_size",
    ),
    ("03", "it"): (
        "SCALE = 2.0",
        "lora_alpha=SCALE * LORA_RANK",
        'target_modules="all-linear"',
        'lr_scheduler_type="cosine", warmup_steps=0.05',
        "epochs = EPOCHS or 3 * profile.epochs",
        "batch_size = BATCH_SIZE or profile.batch_size",
        "set_seed(SEED + departments.index(name))",
        'train_sampling_strategy="group_by_length"',
    ),
    ("05", "sft"): (
        "lora_alpha=2 * LORA_RANK",
        "learning_rate=SFT_LEARNING_RATE, warmup_steps=0.05, num_train_epochs=1",
        '"lr_scheduler_type": "cosine"',
        "batch_size = BATCH_SIZE or 2 * profile.batch_size",
        "micro_batch=min(2 * batch_size, profile.micro_batch_size)",
    ),
    ("05", "dpo"): (
        '"learning_rate": LEARNING_RATE, "warmup_steps": 0.1, "beta": BETA',
        '"num_train_epochs": EPOCHS or 0.8 * profile.epochs',
        '"loss_type": [LOSS, "sft"], "loss_weights": [1.0, SFT_WEIGHT]',
        "in_hand = max(1, plan.micro_batch // 2)",
        '"eval_steps": 0.5',
        "ld_alpha=TAIL",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "part"), list(EVIDENCE))
def test_fixed_values_stand_in_the_notebook(recipe: str, part: str) -> None:
    notebook = recipes.find(recipe)
    source = "\n".join(c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code")
    for text in EVIDENCE[recipe, part]:
        assert text in source, text
    run = RUNS[notebook.stem].get(part) or RUNS[notebook.stem]["*"]
    said = "\n".join(EVIDENCE[recipe, part])
    assert f"{run.warmup}" in said.replace("warmup_steps=", "").replace('"warmup_steps": ', "")
    assert SCHEDULE in source and (not run.weight_decay or f'"weight_decay": {run.weight_decay}' in said)


def test_what_the_notebooks_leave_to_their_trainers() -> None:
    from transformers import TrainingArguments
    from trl import DPOConfig, SFTConfig

    for config in (TrainingArguments, SFTConfig, DPOConfig):
        fields = config.__dataclass_fields__
        assert str(fields["optim"].default).endswith(("adamw_torch", "adamw_torch_fused", "ADAMW_TORCH_FUSED"))
        assert (fields["max_grad_norm"].default, fields["weight_decay"].default) == (CLIP, 0.0)
    assert OPTIMISER == "adamw_torch"
    for recipe in ("01", "02", "03", "05"):
        source = recipes.find(recipe).read_text(encoding="utf-8")
        assert "max_grad_norm" not in source and '\\"optim' not in source and "optim=" not in source


@pytest.mark.parametrize("tool", list(TOOLS))
def test_profiles(tool: str) -> None:
    """A GPU is not needed to write for one, and the batch is that of the profile."""
    found = yaml.safe_load(export_config("01", tool, {"PROFILE": "gpu"}))
    name, micro = next(iter(found)), "micro_batch_size" if tool == "axolotl" else "per_device_train_batch_size"
    base = found["base_model" if tool == "axolotl" else "model_name_or_path"]
    assert base == "Qwen/Qwen2.5-1.5B-Instruct" and name in ("base_model", "model_name_or_path")
    assert (found[micro], found["gradient_accumulation_steps"]) == (16, 1)
    on_cpu = keys("01", tool, "")
    assert base != "HuggingFaceTB/SmolLM2-135M-Instruct" == on_cpu[list(on_cpu)[0]]
    assert on_cpu[micro] == 4


def test_data_files_are_those_that_export_data_writes(tmp_path: Path) -> None:
    found = keys("03", "axolotl", "hr")
    assert found["datasets"][0]["path"] == "runs/03_department_adapters-axolotl/hr_train.jsonl"
    assert found["seed"] == 1  # the second of the departments
    text = export_config("05", "llama-factory", {"PROFILE": "cpu"}, folder=tmp_path)
    found = yaml.safe_load(text)
    assert (found["dataset_dir"], found["dataset"], found["eval_dataset"]) == (
        tmp_path.as_posix(), "dpo_train", "dpo_validation"
    )  # fmt: skip
    assert found["adapter_name_or_path"] == keys("05", "llama-factory", "sft")["output_dir"]
    assert keys("05", "axolotl", "dpo")["lora_model_dir"] == keys("05", "axolotl", "sft")["output_dir"]


def test_what_the_tool_does_not_do_stands_in_comments() -> None:
    weighted = export_config("03", "axolotl", {"PROFILE": "cpu", "KEY_WEIGHT": "3"})
    assert "# KEY_WEIGHT 3: the recipe counts the tokens of codes" in weighted
    assert "# TEXT_WEIGHT 0.25:" in export_config("02", "llama-factory", {"PROFILE": "cpu", "TEXT_WEIGHT": "0.25"})
    assert "# bf16 is off" in export_config("02", "axolotl", {"PROFILE": "cpu"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["04", "--tool", "axolotl"], "04_whisper_asr: Axolotl and LLaMA-Factory train language models"),
        (["03", "--tool", "axolotl", "-p", "METHOD", "bottleneck"], "METHOD bottleneck: axolotl has no bottleneck"),
        (
            ["05", "--tool", "axolotl", "-p", "LOSS", "kto"],
            "LOSS kto: export-data writes pairs, and KTO reads single",
        ),
        (["05", "--tool", "axolotl", "-p", "LOSS", "orpo"], "sigmoid, ipo can be exported"),
        (["01", "--tool", "trl"], "--tool trl: unknown; choose from axolotl, llama-factory"),
        (["01", "--tool", "axolotl", "--part", "dpo"], "--part dpo: 01_customer_service_qlora has one run only"),
        (["03", "--tool", "axolotl", "--part", "sales"], "--part sales: 03_department_adapters has finance, hr, it"),
        (["01", "--tool", "axolotl", "-p", "PROFILE", "smoke"], "which no Hub has; give -p PROFILE cpu or gpu"),
        (["01", "--tool", "axolotl", "-p", "LORA_RANK", "0"], "LORA_RANK 0: must be above 0"),
        (["01", "--tool", "axolotl", "-p", "RANK", "8"], "RANK: no such parameter; did you mean LORA_RANK"),
        (["01", "--tool", "axolotl", "--output", "there.yml"], "there.yml: is there already"),
        (["data.csv", "--tool", "axolotl"], "there is no recipe 'data.csv'"),
    ],
)
def test_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "there.yml").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["export-config", *arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and said in err and out == ""
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["export-config", "01", "--tool", "llama-factory", "-p", "PROFILE", "cpu", "-p", "LORA_RANK", "8"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*given, "--output", "a/b.yml"])
    assert not stop.value.code and capsys.readouterr().out == "a/b.yml\n"
    with pytest.raises(SystemExit):
        cli.main(given)
    assert capsys.readouterr().out == Path("a/b.yml").read_text()
    assert yaml.safe_load(Path("a/b.yml").read_text())["lora_alpha"] == 16


def test_bundled_models_have_hub_ids() -> None:
    assert recipe_runs.hub_id("smollm2-135m-instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert recipe_runs.hub_id("owner/model") == "owner/model"
    with pytest.raises(RequestError, match="first four decoder layers"):
        recipe_runs.hub_id("smollm2-135m-instruct-smoke")
