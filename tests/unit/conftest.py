"""Tiny random models saved to disk with a tokenizer built here: nothing is fetched, and 4-bit blocks fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = (
    "My parcel LK-40213 is late and nobody answers the phone.",
    "The mug arrived broken, please send another one or return the money.",
    '{"intent": "late_delivery", "order_id": "LK-40213", "urgency": "high"}',
    "Hello Anna, we are sorry that your order is late. We ask the carrier today.",
)
# A complete run record.
RECORD: dict[str, Any] = {
    "recipe": "tiny",
    "profile": "cpu",
    "parameters": {"SEED": 0, "DATA": ""},
    "model": {"id": "m", "fingerprint": "f", "technique": "none"},
    "data": {"source": "s", "fingerprint": "f", "train": 1, "validation": 1, "test": 1, "licence": "MIT"},
    "metrics": {
        "accuracy": {
            **{"before": 0.1, "prompted": 0.2, "after": 0.9, "change": 0.8, "ci95": [0.7, 0.9], "n": 96},
            "verdict": "improved",
        }
    },
    "headline": "accuracy",
    "forgetting": [
        {
            **{"probe": "arithmetic", "before": 0.5, "after": 0.4, "change": -0.1, "ci95": [-0.2, 0.1]},
            **{"n": 40, "verdict": "no measurable change"},
        }
    ],
    "resources": {
        "seconds": {"total": 512.0, "train": 300.0, "evaluate": 150.0},
        "tokens": 1000,
        "tokens_per_second": 3.3,
        "peak_memory_bytes": {"predicted": 2_300_000_000, "measured": 2_100_000_000},
        "parameters": {"total": 100, "trainable": 1},
        "artifact_bytes": 1,
        "cost": {"rate_per_hour": 0.0, "currency": "EUR", "amount": 0.0},
    },
    "environment": {},
    "started": "2026-01-01T00:00:00Z",
    "finished": "2026-01-01T00:08:00Z",
}
NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Answer with JSON."}, {"role": "user", "content": text}]


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """A byte-level BPE learnt from the texts above, with or without a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(1)  # tiny matrices gain nothing from a second thread

    def make(template: str | None, eos: str | None, *special: str) -> Any:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=[*([eos] if eos else []), *special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(TEXTS, trainer)
        made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos)
        made.chat_template = template
        return made

    return make


@pytest.fixture(scope="session")
def save_model(make_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a randomly initialised model of `config_class` and its tokenizer; returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM

    def save(name: str, config_class: Any, tokenizer: Any, **shape: Any) -> Path:
        torch.manual_seed(0)
        ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
        model = AutoModelForCausalLM.from_config(config_class(vocab_size=len(tokenizer), **ids, **shape))
        with torch.no_grad():  # wide logits: the best token leads by more than rounding moves it
            for weight in model.parameters():
                weight.mul_(8) if weight.ndim == 2 else None
        folder = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def llama(make_tokenizer: Callable[..., Any], save_model: Callable[..., Path]) -> Path:
    """A Llama of two layers, hidden size 64, grouped attention, its own chat template, 256 positions."""
    from transformers import LlamaConfig

    tokenizer = make_tokenizer(CHATML, "<|im_end|>", "<|im_start|>")
    return save_model(
        "tiny-llama", LlamaConfig, tokenizer, **NARROW, num_key_value_heads=2, max_position_embeddings=256
    )


@pytest.fixture(scope="session")
def qwen(make_tokenizer: Callable[..., Any], save_model: Callable[..., Path]) -> Path:
    """A Qwen2 with biases in its attention and tied embeddings."""
    from transformers import Qwen2Config

    tokenizer = make_tokenizer(CHATML, "<|im_end|>", "<|im_start|>")
    more = {"num_key_value_heads": 4, "max_position_embeddings": 512, "tie_word_embeddings": True}
    return save_model("tiny-qwen2", Qwen2Config, tokenizer, **NARROW, **more)


@pytest.fixture(scope="session")
def gpt2(make_tokenizer: Callable[..., Any], save_model: Callable[..., Path]) -> Path:
    """A GPT-2 (Conv1D layers, dropout, no chat template, no padding token) of 256 positions."""
    from transformers import GPT2Config

    tokenizer = make_tokenizer(None, "<|endoftext|>")
    return save_model("tiny-gpt2", GPT2Config, tokenizer, n_embd=64, n_layer=2, n_head=4, n_positions=256)
