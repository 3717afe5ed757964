"""Notebook 04's windows and its loss, read from its cells: what is shown, how often, what general speech costs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from test_convert_whisper import as_ct2, tiny_whisper, write  # noqa: F401
from torch.nn.functional import cross_entropy
from transformers import Seq2SeqTrainingArguments

from cookbook import audio, checks, convert_whisper, noise, recipes, speech

PAUSE = 0.4


def clips(count: int, name: str, longest: float = 8.0) -> list[audio.Clip]:
    rng = np.random.default_rng(len(name))
    lengths = (rng.uniform(1.0, longest, count) * audio.RATE).astype(int)
    return [
        audio.Clip(Path(f"{name}{i}.wav"), f"{name} {i}", f"{name}:{i}", rng.standard_normal(n).astype(np.float32))
        for i, n in enumerate(lengths)
    ]


def names(folder: Path, *, replay: float = 0.25, together: float = 0.7) -> dict[str, Any]:
    """What the cells `dataset`, `mixture`'s collator and `reminded` define, over a tiny model."""
    convert_whisper.ct2_whisper(folder, folder.parent / "tiny")
    model, processor = speech.load(str(folder.parent / "tiny"))
    untouched, _ = speech.load(str(folder.parent / "tiny"))
    cells = {cell.id: cell.source for cell in nbformat.read(recipes.find("04"), as_version=4).cells}
    known: dict[str, Any] = {
        "audio": audio, "checks": checks, "noise": noise, "np": np, "speech": speech, "torch": torch,
        "SEED": 0, "REPLAY": replay, "TOGETHER": together, "WINDOW": 28.0, "PAUSE": PAUSE, "KINDS": ("telephone",),
        "processor": processor, "untouched": untouched, "model": model, "dtype": torch.float32,
    }  # fmt: skip
    exec(cells["dataset"] + "\n" + cells["mixture"].split("\npool =")[0] + "\n" + cells["reminded"], known)
    return known


@pytest.fixture
def tiny(tmp_path: Path, write) -> Path:  # noqa: F811
    return write(as_ct2(tiny_whisper(290)))


def said(rows: list[tuple[list[audio.Clip], bool]], general: bool) -> Counter[str]:
    return Counter(clip.text for window, other in rows if other == general for clip in window)


def test_every_clip_once_a_pass_and_general_speech_in_its_share(tiny: Path) -> None:
    own, other = clips(30, "own"), clips(4, "other")
    rows = names(tiny)["Windows"](own, other, 3).rows
    assert set(said(rows, False).values()) == {3} and len(said(rows, False)) == 30
    assert said(rows, True).total() == 30, "a quarter of all"
    assert max(said(rows, True).values()) - min(said(rows, True).values()) <= 3, "in turn, not by chance"
    lengths = [sum(clip.seconds + PAUSE for clip in window) for window, _ in rows]
    assert max(lengths) <= 28 and len(rows) < 0.75 * 120


def test_half_a_pass_and_no_sharing(tiny: Path) -> None:
    own = clips(20, "own")
    made = names(tiny, together=0.0)["Windows"](own, (), 0.5)
    assert [len(window) for window, _ in made.rows] == [1] * 10


def test_a_window_holds_its_clips_and_texts_in_order(tiny: Path) -> None:
    known = names(tiny, together=1.0)
    made = known["Windows"](clips(6, "own", 3.0))
    i = max(range(len(made)), key=lambda i: len(made.rows[i][0]))
    window = made.rows[i][0]
    assert len(window) > 1
    row = made[i]
    text = known["processor"].tokenizer.decode(row["labels"], skip_special_tokens=True)
    assert text == " " + " ".join(clip.text for clip in window)
    whole = np.concatenate([part for clip in window for part in (clip.samples, known["silence"])])
    assert torch.equal(row["input_features"], speech.features(known["processor"], [whole])[0])


def test_same_seed_same_windows(tiny: Path) -> None:
    kind, own = names(tiny)["Windows"], clips(12, "own")
    first, second = (kind(own, (), 2, spoiled=0.5) for _ in range(2))
    assert [[c.text for c in w] for w, _ in first.rows] == [[c.text for c in w] for w, _ in second.rows]
    assert torch.equal(first[0]["input_features"], second[0]["input_features"])


def test_general_speech_costs_what_the_model_has_moved(tiny: Path, tmp_path: Path) -> None:
    known = names(tiny)
    model, windows = known["model"], known["Windows"](clips(4, "own"), clips(4, "other"), 2)
    rows = [windows[i] for i in range(len(windows))]
    batch = known["collate"](rows)
    assert batch["general"].any() and not batch["general"].all()
    arguments = Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    made = known["Reminded"](model=model, args=arguments)
    losses = {}
    for made.remind in (0.0, 1.0, 3.0):
        losses[made.remind] = float(made.compute_loss(model, dict(batch)))
    own, real = ~batch["general"], batch["labels"] != checks.IGNORED
    with torch.no_grad():
        logits = model(input_features=batch["input_features"], labels=batch["labels"]).logits
    expected = cross_entropy(logits[own][real[own]], batch["labels"][own][real[own]], reduction="sum") / real.sum()
    assert losses[1.0] == pytest.approx(float(expected), rel=1e-4), "nothing has moved yet"
    assert losses[3.0] == pytest.approx(losses[1.0], rel=1e-4)
    assert losses[0.0] > losses[1.0], "its transcripts are learnt instead"
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    moved = {}
    for made.remind in (1.0, 3.0):
        moved[made.remind] = float(made.compute_loss(model, dict(batch)))
    assert moved[3.0] > moved[1.0] + 1e-3
