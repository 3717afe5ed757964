"""A tiny Whisper with random weights: loading, order and batches of transcripts, prompts, mixed weights, saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_convert_whisper import as_ct2, tiny_whisper, write  # noqa: F401

from cookbook import convert_whisper, models, speech
from cookbook.audio import RATE, Clip


@pytest.fixture
def whisper(tmp_path: Path, write) -> Path:  # noqa: F811
    convert_whisper.ct2_whisper(write(as_ct2(tiny_whisper(290))), tmp_path / "tiny")
    return tmp_path / "tiny"


def clips(count: int) -> list[Clip]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(RATE // 2, 3 * RATE, count)
    return [
        Clip(Path(f"{i}.wav"), "x", "t:1", rng.standard_normal(n).astype(np.float32)) for i, n in enumerate(lengths)
    ]


def test_transcripts_keep_their_order_in_any_batch(whisper: Path) -> None:
    model, processor = speech.load(str(whisper))
    assert not model.training
    model.train()
    one = speech.transcribe(model, processor, clips(5), max_new_tokens=6, batch_size=1)
    assert model.training, "as it was"
    assert speech.transcribe(model, processor, clips(5), max_new_tokens=6, batch_size=2) == one
    assert len(set(one)) > 1
    backwards = speech.transcribe(model, processor, clips(5)[::-1], max_new_tokens=6, batch_size=5)
    assert backwards == one[::-1]


@pytest.mark.model
def test_a_prompt_is_no_part_of_the_transcript() -> None:
    model, processor = speech.load("whisper-tiny-en-smoke")
    heard = speech.transcribe(model, processor, clips(2), prompt="Kettra, Brulo, gasket.", max_new_tokens=6)
    assert not any("Kettra" in text for text in heard)
    assert heard != speech.transcribe(model, processor, clips(2), max_new_tokens=6)


def test_mixed_weights() -> None:
    before, after = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([1.0, 0.0])}
    assert torch.equal(speech.mix(before, after, 0)["w"], before["w"])
    assert torch.equal(speech.mix(before, after, 1)["w"], after["w"])
    assert torch.allclose(speech.mix(before, after, 0.25)["w"], torch.tensor([0.25, 1.5]))
    with pytest.raises(ValueError, match="not the same weights"):
        speech.mix(before, {"v": after["w"]}, 0.5)


def test_saved_and_loaded(whisper: Path, tmp_path: Path) -> None:
    model, processor = speech.load(str(whisper))
    folder = speech.save(model, processor, tmp_path / "saved", base=str(whisper), card="# tiny\n")
    again, reader = speech.load(str(folder))
    assert speech.transcribe(again, reader, clips(3), max_new_tokens=6) == speech.transcribe(
        model, processor, clips(3), max_new_tokens=6
    )
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_what_is_no_speech_model() -> None:
    with pytest.raises(models.ModelError, match="no bundled model .*whisper-tiny-en"):
        speech.load("smollm2-135m-instruct")
    with pytest.raises(models.ModelError, match="no bundled model .*smollm2"):
        models.resolve("whisper-tiny-en")
