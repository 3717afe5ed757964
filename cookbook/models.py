"""Load a base model, generate in batches, save, reload, merge; choose the dtype by measurement."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from cookbook import assets, batching, engines, fused, softprompts
from cookbook.chat import PLAIN_TEMPLATE, Messages, render_full, render_prompt, token_ids
from cookbook.decoding import one_token
from cookbook.fourbit import dense_weights
from cookbook.heads import head_reads as head_reads  # where notebooks ask for it
from cookbook.locating import ModelError, explained, resolve

QUIET = ("trl", "peft", "accelerate", "datasets", "httpx", "huggingface_hub.repocard")


def quiet() -> None:
    """Silence the progress bars and the known harmless warnings of the stack; errors still show."""
    import datasets

    PrinterCallback.on_log = TrainerCallback.on_log  # else the trainer prints a line for every step
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    for known in (".*pin_memory.*", "fan_in_fan_out is set to"):  # no accelerator; PEFT turns the flag itself
        warnings.filterwarnings("ignore", message=known)


def choose_dtype(device: str = "cpu") -> tuple[torch.dtype, dict[str, float]]:
    """bf16 where it is faster than fp32 by a measurement of about a second, else fp32.

    Returns the dtype and the measured matrix-product speeds in GFLOP/s, best of several interleaved rounds.
    """
    best = {torch.float32: 0.0, torch.bfloat16: 0.0}
    n, deadline = 768, time.perf_counter() + 1.0
    pairs = {d: torch.ones(n, n, dtype=d, device=device) for d in best}
    while time.perf_counter() < deadline:
        for dtype, a in pairs.items():
            start = time.perf_counter()
            (a @ a).sum().item()
            best[dtype] = max(best[dtype], 2 * n**3 / (time.perf_counter() - start) / 1e9)
    fast = torch.bfloat16 if best[torch.bfloat16] > 1.2 * best[torch.float32] else torch.float32
    return fast, {"fp32_gflops": best[torch.float32], "bf16_gflops": best[torch.bfloat16]}


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left, with a chat template and a padding token in any case."""
    with explained(model):
        tokenizer = AutoTokenizer.from_pretrained(resolve(model))
    if tokenizer.eos_token is None:
        raise ModelError(f"MODEL {model}: its tokenizer has no end-of-text token, so no answer could ever end")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def load(
    model: str,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    quantization_config: Any = None,
    engine: str = "hf",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode, and its tokenizer.

    With 4-bit weights on a CPU the inference-only weight packing of bitsandbytes is switched off: a forward
    without gradients would otherwise repack the weights in place, and later gradients would be wrong
    (`checks.gradients_survive_evaluation` measures it).

    Args:
        engine: one of `engines.NAMES`; Unsloth's 4-bit weights are NF4 whatever else `quantization_config` says.

    Raises:
        ModelError: no such model, or the Hub cannot be reached.
    """
    tokenizer = load_tokenizer(model)
    with explained(model):
        folder = resolve(model)
        if engine == "unsloth":
            longest = context_length(AutoConfig.from_pretrained(folder))
            four_bit = quantization_config is not None
            loaded = engines.load(folder, dtype=dtype, device=device, max_length=longest, four_bit=four_bit)
        else:
            loaded = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": device},
                quantization_config=quantization_config,
                use_safetensors=True,
            )
    words = loaded.get_input_embeddings().num_embeddings
    if tokenizer.eos_token_id >= words:
        raise ModelError(f"MODEL {model}: its tokenizer has {len(tokenizer)} tokens, its embeddings {words}")
    if tokenizer.pad_token_id >= words:  # a default of the tokenizer's class that this model never had
        tokenizer.pad_token = tokenizer.eos_token
    for module in loaded.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    loaded.generation_config.pad_token_id = loaded.config.pad_token_id = tokenizer.pad_token_id
    return loaded.eval(), tokenizer


def fingerprint(model: str, kind: str = "model") -> str:
    """16 hex digits of the sha256 over a local model's weight files; a Hub id gives its commit hash."""
    folder = Path(resolve(model, kind))
    if not folder.is_dir():
        from transformers import AutoConfig

        return str(getattr(AutoConfig.from_pretrained(model), "_commit_hash", ""))[:16] or "unknown"
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()[:16]


def label(model: str) -> str:
    """What to call a model in records: its name, and of a local folder only the last part."""
    return model if model in assets.ASSETS or not Path(model).expanduser().is_dir() else Path(model).name


def context_length(config: Any) -> int:
    """How many tokens a model of this config can read (its position limit); a large number if it has none."""
    text = config.get_text_config()
    return int(getattr(text, "max_position_embeddings", 0) or getattr(text, "n_positions", 0) or 1 << 20)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages] | Sequence[str],
    *,
    max_new_tokens: int = 160,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 48,
    progress: Callable[[int, int], None] | None = None,
    more: Callable[[list[int]], dict[str, Any]] | None = None,
) -> list[str]:
    """Answers to chat prompts (or to ready text), in the order given: greedy, or drawn at a `temperature`.

    Prompts are sorted by length and padded on the left, so that a batch wastes little; a batch ends when each
    of its answers has ended. What all prompts begin with, such as worked examples, is read once. Prompts that
    leave no room in the model's context are cut at the start. `more` gives further arguments of the model's own
    `generate` for the rows of a batch (their places in `prompts`): `adapter_names`, for instance.
    """
    texts = [p if isinstance(p, str) else render_prompt(tokenizer, p) for p in prompts]
    ids = token_ids(tokenizer, texts)
    room = context_length(model.config) - max_new_tokens - softprompts.virtual_tokens(model)
    if room < 1:
        raise ModelError(
            f"max_new_tokens={max_new_tokens} leaves no room in a context of {context_length(model.config)}"
        )
    ids = [i[-room:] for i in ids]
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    answers, training = [""] * len(ids), model.training
    model.eval()
    with (
        dense_weights(model),
        fused.layers(model),
        one_token(),
        head_reads(model, torch.Tensor.contiguous),
        torch.random.fork_rng(),
    ):
        torch.manual_seed(seed)
        prefix = [] if more else batching.shared_prefix(model, ids)
        read = batching.read_prefix(model, prefix) if prefix else None
        done = 0
        for rows in batching.batches(order, [len(i) + max_new_tokens for i in ids], batch_size):
            batch = tokenizer.pad({"input_ids": [ids[i][len(prefix) :] for i in rows]}, return_tensors="pt")
            asked = batching.behind(prefix, batch["input_ids"])
            cache = copy.deepcopy(read)
            if cache is not None:
                cache.batch_repeat_interleave(len(rows))
            out = softprompts.generate(
                model,
                asked.to(model.device),
                batching.behind([1] * len(prefix), batch["attention_mask"]).to(model.device),
                past_key_values=cache,
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                temperature=temperature or None,
                top_p=None,
                top_k=None,
                eos_token_id=_stops(model, tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                use_cache=True,
                **(more(rows) if more else {}),
            )
            for i, row in zip(rows, out[:, asked.shape[1] :], strict=True):
                answers[i] = tokenizer.decode(row, skip_special_tokens=True).strip()
            done += len(rows)
            if progress:
                progress(done, len(ids))
    model.train(training)
    return answers


@torch.no_grad()
def next_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    answers: Sequence[str],
    *,
    batch_size: int = 8,
) -> list[list[int]]:
    """For each place in each given answer, the token this model would write there after the answer up to there.

    Two models for which these agree in a row would both, greedily, have written the same answer. Batches depend
    on the texts alone, so unlike generation this compares models without the rounding of different padding.
    """
    asked = [len(i) for i in token_ids(tokenizer, [render_prompt(tokenizer, p) for p in prompts])]
    texts = [render_full(tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
    ids = [torch.tensor(i) for i in token_ids(tokenizer, texts)]
    found: list[list[int]] = []
    for start in range(0, len(ids), batch_size):
        rows = range(start, min(start + batch_size, len(ids)))
        batch = pad_sequence([ids[i] for i in rows], batch_first=True)  # on the right, where no position moves
        place = torch.arange(batch.shape[1])
        written = torch.stack([(place >= asked[i] - 1) & (place < len(ids[i]) - 1) for i in rows])

        def scored(hidden: torch.Tensor, written: torch.Tensor = written) -> torch.Tensor:
            return hidden[:, -written.shape[1] :][written]  # from the end: virtual tokens may stand in front

        with dense_weights(model), head_reads(model, scored):
            best = model(input_ids=batch.to(model.device), use_cache=False).logits.argmax(-1)
        found += [part.tolist() for part in best.split(written.sum(1).tolist())]
    return found


def save_adapter(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, folder: Path, *, base: str, card: str
) -> Path:
    """Save an adapter (safetensors), a tokenizer (None: the base has it) and a model card; no path stays in it."""
    model.save_pretrained(folder)  # with the true path: PEFT compares the vocabulary with that of the base model
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for name in ("base_model_name_or_path", "tokenizer_name_or_path"):  # the other: what a soft prompt began as
        if config.get(name):
            config[name] = label(base)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, base: str, card: str) -> Path:
    """Save all weights (safetensors) in the model's dtype, its tokenizer and a model card; no path stays in it."""
    model.config._name_or_path = label(base)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    own = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return sorted(i for i in ids if i is not None)
