"""A recipe's training run as a configuration of Axolotl or LLaMA-Factory.

`axolotl` and `llama_factory` say what the tools call the settings of `cookbook.recipe_runs`: the keys of Axolotl's
config reference (axolotl.utils.schemas) and of LLaMA-Factory's arguments (llamafactory.hparams). What a recipe does
and a tool does not stands as a comment in the file. The data files are those that `cookbook export-data` writes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cookbook.recipe_runs import CLIP, OPTIMISER, REFUSED, RUNS, SCHEDULE, Settings, settle
from cookbook.recipes import HUB_ID, RequestError, find

Key = tuple[str, Any]
# Chat templates that LLaMA-Factory writes itself; of other models it takes the tokenizer's.
TEMPLATES = {"HuggingFaceTB/SmolLM2-": "smollm2", "Qwen/Qwen2.5-": "qwen"}


def export_config(
    recipe: str, tool: str, given: Mapping[str, Any], *, part: str = "", folder: Path | None = None
) -> str:
    """The configuration as YAML text with comments.

    Args:
        tool: "axolotl" or "llama-factory".
        given: parameters as the command line gives them.
        part: of a recipe with several runs: a department, or sft or dpo; empty: the first department, or dpo.
        folder: where `export-data` put the data; None: where it puts them if nobody says otherwise.

    Raises:
        RequestError: the recipe or this choice of parameters has no counterpart in the tool.
    """
    if tool not in TOOLS:
        raise RequestError(f"--tool {tool}: unknown; choose from {', '.join(TOOLS)}")
    notebook = find(recipe)
    if notebook.stem in REFUSED:
        raise RequestError(f"{notebook.stem}: {REFUSED[notebook.stem]}")
    if notebook.stem not in RUNS:
        raise RequestError(f"{notebook.stem}: has no counterpart here; {', '.join(RUNS)} have")
    settings = settle(notebook, tool, given, part, folder)
    notes = [note.format(**settings.values) for note in settings.run.notes]
    keys, more = TOOLS[tool](settings)
    head = [
        f"{notebook.stem}{f', {settings.part}' * bool(settings.part)}, for {tool}: one GPU; more divide the batch."
    ]
    head += [*_about_model(settings), *notes, *more]
    told = "".join(f"{textwrap.fill(line, 100, initial_indent='# ', subsequent_indent='#   ')}\n" for line in head)
    return told + "".join(yaml.safe_dump({k: v}, sort_keys=False, allow_unicode=True, width=200) for k, v in keys)


def _about_model(s: Settings) -> list[str]:
    if s.model != s.base:
        return [f"The cookbook's copy of the base model, {s.model}, was quantized once (Q4_1); the Hub's was not."]
    return [] if HUB_ID.fullmatch(s.base) else ["The base model is a folder of this machine."]


def _file(s: Settings, split: str) -> str:
    return (s.data / f"{'_'.join(filter(None, [s.part, split]))}.jsonl").as_posix()


def _watched(s: Settings) -> bool:
    return s.part != "sft"  # the first stage of 05 has no validation rows


def axolotl(s: Settings) -> tuple[list[Key], list[str]]:
    """Keys of Axolotl's configuration, and what it does otherwise than the recipe."""
    form: dict[str, Any] = {"ds_type": "json", "split": "train", "type": "chat_template"}
    form |= {"field_messages": "messages", "message_field_training": "train"}
    form |= {"roles_to_train": ["assistant"], "train_on_eos": "turn"}
    watched = form
    if s.method == "dpo":
        watched = {"split": "train", "type": "chat_template.default"}  # other keys get lost, and are the defaults
        form = watched | {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected"}
    entries = {"train": [{"path": _file(s, "train"), **form}]}
    entries["watched"] = [{"path": _file(s, "validation"), **watched}]
    keys: list[Key] = [("base_model", s.base), ("datasets", entries["train"])]
    keys += [("test_datasets", entries["watched"])] if _watched(s) else [("val_set_size", 0.0)]
    notes = []
    if s.rank:
        keys += [("adapter", "qlora" if s.four_bit else "lora"), ("load_in_4bit", s.four_bit), ("lora_r", s.rank)]
        keys += [("lora_alpha", s.alpha), ("lora_dropout", 0.0), ("lora_target_linear", True)]
        if s.four_bit:
            keys.append(("bnb_config_kwargs", {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}))
    if s.method == "dpo":
        v = s.values
        keys += [("rl", "dpo"), ("rl_beta", v["BETA"]), ("lora_model_dir", s.start)]
        losses = {v["LOSS"]: 1.0} | ({"sft": v["SFT_WEIGHT"]} if v["SFT_WEIGHT"] else {})
        keys += [("dpo_loss_type", list(losses)), ("dpo_loss_weights", list(losses.values()))]
        notes += [
            f"TAIL {v['TAIL']:g}: the recipe weighs what one answer is longer by with this; here it counts whole."
        ]
        notes += [_first(s)]
    keys += [("sequence_len", s.length), ("sample_packing", False), ("micro_batch_size", s.micro)]
    keys += [("gradient_accumulation_steps", s.accumulation), ("num_epochs", s.epochs), ("learning_rate", s.rate)]
    keys += [("optimizer", OPTIMISER), ("lr_scheduler", SCHEDULE), ("warmup_ratio", s.run.warmup)]
    keys += [("weight_decay", s.run.weight_decay), ("max_grad_norm", CLIP), ("train_on_inputs", False)]
    if s.rank:
        keys.append(("bf16", "auto"))
    else:
        keys.append(("bf16", False))
        notes.append("bf16 is off: Axolotl would keep the weights themselves in it, where the recipe's are fp32.")
    if s.run.in_order:
        keys += [("curriculum_sampling", True), ("shuffle_merged_datasets", False)]
    elif s.method == "sft":
        keys.append(("group_by_length", True))
    keys += [("gradient_checkpointing", False), ("attn_implementation", "sdpa"), ("seed", s.seed)]
    return keys + _evaluation(s, "early_stopping_patience") + [("output_dir", s.output)], notes


def llama_factory(s: Settings) -> tuple[list[Key], list[str]]:
    """Arguments of `llamafactory-cli train`, and what it does otherwise than the recipe."""
    notes = []
    keys: list[Key] = [("model_name_or_path", s.base), ("stage", s.method), ("do_train", True)]
    keys += [("finetuning_type", "lora" if s.rank else "full")]
    if s.rank:
        keys += [("lora_rank", s.rank), ("lora_alpha", s.alpha), ("lora_dropout", 0.0), ("lora_target", "all")]
    if s.four_bit:
        keys += [("quantization_method", "bnb"), ("quantization_bit", 4), ("quantization_type", "nf4")]
        keys += [("double_quantization", True)]
    if s.method == "dpo":
        v = s.values
        keys += [("adapter_name_or_path", s.start), ("create_new_adapter", True)]
        keys += [("pref_loss", v["LOSS"]), ("pref_beta", v["BETA"])]
        if v["LOSS"] != "orpo":
            keys += [("pref_ftx", v["SFT_WEIGHT"]), ("ld_alpha", v["TAIL"])]
            notes.append("ld_alpha is applied to the policy alone; the recipe weighs the reference's tokens alike.")
        notes += [_first(s), "That adapter is merged first and a new one is trained, so that the reference is right."]
    keys += [("dataset_dir", s.data.as_posix()), ("dataset", "_".join(filter(None, [s.part, "train"])))]
    if _watched(s):
        keys += [("eval_dataset", "_".join(filter(None, [s.part, "validation"])))]
    name = next((name for start, name in TEMPLATES.items() if s.base.startswith(start)), "")
    keys += [("template", name)] if name else []
    notes += (
        [] if name else ["No template is named: LLaMA-Factory reads it from the tokenizer. Look at its first rows."]
    )
    keys += [("cutoff_len", s.length), ("packing", False), ("per_device_train_batch_size", s.micro)]
    keys += [("gradient_accumulation_steps", s.accumulation), ("num_train_epochs", s.epochs)]
    keys += [("learning_rate", s.rate), ("optim", OPTIMISER), ("lr_scheduler_type", SCHEDULE)]
    keys += [("warmup_ratio", s.run.warmup), ("weight_decay", s.run.weight_decay), ("max_grad_norm", CLIP)]
    if s.method == "sft":
        keys += [("train_on_prompt", False), ("mask_history", True)]
    keys += [("disable_shuffling", True)] if s.run.in_order else []
    if not s.run.in_order:
        notes.append("The recipe puts rows of similar length into one batch, to be faster; here they are shuffled.")
    keys += [("bf16", True), ("disable_gradient_checkpointing", True), ("seed", s.seed), ("logging_steps", 1)]
    keys += [("per_device_eval_batch_size", s.micro), ("report_to", "none")]
    return keys + _evaluation(s, "early_stopping_steps") + [("output_dir", s.output)], notes


def _evaluation(s: Settings, patience: str) -> list[Key]:
    """When the validation loss is computed, and whether it chooses the weights that are kept."""
    if not _watched(s):
        return [("save_strategy", "no")]
    keys: list[Key] = [("eval_strategy", "steps"), ("eval_steps", s.run.evaluate)] if s.run.evaluate else []
    keys = keys or [("eval_strategy", "epoch")]
    if not s.run.patience:
        return [*keys, ("save_strategy", "no")]
    keys += [("save_strategy", "steps"), ("save_steps", s.run.evaluate), ("save_total_limit", 1)]
    keys += [("load_best_model_at_end", True), ("metric_for_best_model", "eval_loss"), ("greater_is_better", False)]
    return [*keys, (patience, s.values[s.run.patience])]


def _first(s: Settings) -> str:
    return f"Needs {s.start}: an adapter of the same rank; --part sft writes the configuration that trains it."


TOOLS: dict[str, Callable[[Settings], tuple[list[Key], list[str]]]] = {
    "axolotl": axolotl,
    "llama-factory": llama_factory,
}
