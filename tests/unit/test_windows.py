"""Notebook 04's windows, read from its cells: what is shown, how often, and what is spoiled."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from test_convert_whisper import as_ct2, tiny_whisper, write  # noqa: F401

from cookbook import audio, checks, convert_whisper, noise, recipes, speech

PAUSE = 0.4


def clips(count: int, name: str, longest: float = 8.0) -> list[audio.Clip]:
    rng = np.random.default_rng(len(name))
    lengths = (rng.uniform(1.0, longest, count) * audio.RATE).astype(int)
    return [
        audio.Clip(Path(f"{name}{i}.wav"), f"{name} {i}", f"{name}:{i}", rng.standard_normal(n).astype(np.float32))
        for i, n in enumerate(lengths)
    ]


def names(folder: Path, *, together: float = 0.7) -> dict[str, Any]:
    """What the cells `dataset` and `windows` define, with a tiny model's processor."""
    convert_whisper.ct2_whisper(folder, folder.parent / "tiny")
    _, processor = speech.load(str(folder.parent / "tiny"))
    cells = {cell.id: cell.source for cell in nbformat.read(recipes.find("04"), as_version=4).cells}
    known: dict[str, Any] = {
        "audio": audio, "checks": checks, "noise": noise, "np": np, "speech": speech, "torch": torch,
        "SEED": 0, "TOGETHER": together, "WINDOW": 28.0, "PAUSE": PAUSE, "KINDS": ("telephone",),
        "processor": processor,
    }  # fmt: skip
    exec(cells["dataset"] + "\n" + cells["windows"], known)
    return known


@pytest.fixture
def tiny(tmp_path: Path, write) -> Path:  # noqa: F811
    return write(as_ct2(tiny_whisper(290)))


def said(rows: list[tuple[list[audio.Clip], bool]], own: bool) -> Counter[str]:
    return Counter(clip.text for window, of in rows if of == own for clip in window)


def test_every_clip_once_a_pass_and_general_speech_in_its_share(tiny: Path) -> None:
    rows = names(tiny)["course"](clips(30, "own"), 3, clips(4, "other"), 0.25)
    assert set(said(rows, True).values()) == {3} and len(said(rows, True)) == 30
    assert said(rows, False).total() == 30, "a quarter of all"
    assert max(said(rows, False).values()) - min(said(rows, False).values()) <= 3, "in turn, not by chance"
    lengths = [sum(clip.seconds + PAUSE for clip in window) for window, _ in rows]
    assert max(lengths) <= 28 and len(rows) < 0.75 * 120


def test_half_a_pass_and_no_sharing(tiny: Path) -> None:
    rows = names(tiny, together=0.0)["course"](clips(20, "own"), 0.5)
    assert [len(window) for window, _ in rows] == [1] * 10


def test_a_window_holds_its_clips_and_texts_in_order(tiny: Path) -> None:
    known = names(tiny, together=1.0)
    made = known["Windows"](known["course"](clips(6, "own", 3.0), 1))
    i = max(range(len(made)), key=lambda i: len(made.rows[i][0]))
    window = made.rows[i][0]
    assert len(window) > 1
    row = made[i]
    text = known["processor"].tokenizer.decode(row["labels"], skip_special_tokens=True)
    assert text == " " + " ".join(clip.text for clip in window)
    whole = np.concatenate([part for clip in window for part in (clip.samples, known["silence"])])
    assert torch.equal(row["input_features"], speech.features(known["processor"], [whole])[0])


def test_only_the_domain_is_spoiled_and_each_time_anew(tiny: Path) -> None:
    known = names(tiny, together=0.0)
    rows = known["course"](clips(6, "own"), 1, clips(6, "other"), 0.5)
    unspoiled, made = known["Windows"](rows), known["Windows"](rows, 1.0)
    for i, (_, own) in enumerate(rows):
        clean = unspoiled[i]["input_features"]
        first, second = made[i]["input_features"], made[i]["input_features"]
        assert torch.equal(first, clean) != own
        assert torch.equal(second, clean) != own


def test_same_seed_same_windows(tiny: Path) -> None:
    known, own = names(tiny), clips(12, "own")
    first, second = (known["Windows"](known["course"](own, 2), 0.5) for _ in range(2))
    assert [[c.text for c in w] for w, _ in first.rows] == [[c.text for c in w] for w, _ in second.rows]
    assert torch.equal(first[0]["input_features"], second[0]["input_features"])


def test_labels_are_padded_with_what_the_loss_ignores(tiny: Path) -> None:
    known = names(tiny)
    made = known["Windows"](known["course"](clips(6, "own"), 1))
    rows = [made[i] for i in range(len(made))]
    batch = known["collate"](rows)
    assert batch["input_features"].shape[0] == batch["labels"].shape[0] == len(rows)
    for row, padded in zip(rows, batch["labels"], strict=True):
        assert torch.equal(padded[: len(row["labels"])], row["labels"])
        assert (padded[len(row["labels"]) :] == checks.IGNORED).all()
