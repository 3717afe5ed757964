"""Speech-to-text models: load one with its processor, transcribe clips in batches, save, mix two sets of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from cookbook import locating, models
from cookbook.audio import RATE, Clip
from cookbook.decoding import one_token


def load(
    model: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """A Whisper in evaluation mode and its processor, which writes English where the model knows more languages.

    Raises:
        ModelError: no such model, no Whisper, or the Hub cannot be reached.
    """
    with locating.explained(model, kind="speech"):
        folder = locating.resolve(model, kind="speech")
        processor = WhisperProcessor.from_pretrained(folder)
        loaded = WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    if loaded.generation_config.is_multilingual:
        processor.tokenizer.set_prefix_tokens(language="en", task="transcribe")
    return loaded.to(device).eval(), processor


def features(processor: WhisperProcessor, samples: Sequence[np.ndarray]) -> torch.Tensor:
    """Log-mel spectrograms of clips, each filled with silence to 30 seconds: (clips, mel bands, 3000)."""
    read = processor.feature_extractor(list(samples), sampling_rate=RATE, return_tensors="pt")
    return read.input_features


@torch.no_grad()
def transcribe(
    model: Any,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    *,
    prompt: str = "",
    max_new_tokens: int = 128,
    batch_size: int = 16,
) -> list[str]:
    """What the model hears in each clip, greedily, in the order given.

    Clips of like length share a batch, since a batch ends with its last transcript. `prompt` is text that the model
    takes for what was said before: names in it are likelier to be written so (Whisper's `prompt_ids`).
    """
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
    if model.generation_config.is_multilingual:
        options |= {"language": "en", "task": "transcribe"}
    if prompt:
        options["prompt_ids"] = processor.get_prompt_ids(prompt, return_tensors="pt").to(model.device)
    order = sorted(range(len(clips)), key=lambda i: (len(clips[i].samples), i))
    found, training = [""] * len(clips), model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        heard = features(processor, [clips[i].samples for i in rows]).to(model.device, model.dtype)
        with one_token():
            written = model.generate(input_features=heard, **options)
        texts = processor.batch_decode(written, skip_special_tokens=True)
        for i, text in zip(rows, texts, strict=True):
            found[i] = text.strip()  # the prompt is not among it
    model.train(training)
    return found


def mix(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """Weights on the line between two models: `share` 0 is before, 1 is after (WiSE-FT, Wortsman et al. 2022)."""
    if set(before) != set(after):
        raise ValueError(f"not the same weights: {sorted(set(before) ^ set(after))[:3]}")
    return {name: torch.lerp(weight.float(), after[name].float(), share) for name, weight in before.items()}


def save(model: Any, processor: WhisperProcessor, folder: Path, *, base: str, card: str) -> Path:
    """Save weights or adapter (safetensors), the processor and a model card; no path of this machine stays in it."""
    if hasattr(model, "peft_config"):
        return models.save_adapter(model, processor, folder, base=base, card=card)
    return models.save(model, processor, folder, base=base, card=card)
