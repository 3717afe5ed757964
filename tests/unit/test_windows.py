"""Notebook 04's windows, from its cells: what is shown, how often, what is spoiled, and how training goes on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from test_convert_whisper import as_ct2, tiny_whisper, write  # noqa: F401
from test_resume import StopAt
from transformers import set_seed

from cookbook import audio, callbacks, checks, convert_whisper, ledger, noise, recipes, resume, speech

PAUSE = 0.4


def clips(count: int, name: str, longest: float = 8.0) -> list[audio.Clip]:
    rng = np.random.default_rng(len(name))
    lengths = (rng.uniform(1.0, longest, count) * audio.RATE).astype(int)
    return [
        audio.Clip(Path(f"{name}{i}.wav"), f"{name} {i}", f"{name}:{i}", rng.standard_normal(n).astype(np.float32))
        for i, n in enumerate(lengths)
    ]


def names(folder: Path, *cells: str, together: float = 0.7, **more: Any) -> dict[str, Any]:
    """What the cells `dataset`, `windows`, `collate` and `cells` define, with a tiny model's processor."""
    convert_whisper.ct2_whisper(folder, folder.parent / "tiny")
    _, processor = speech.load(str(folder.parent / "tiny"))
    sources = {cell.id: cell.source for cell in nbformat.read(recipes.find("04"), as_version=4).cells}
    known: dict[str, Any] = {
        "audio": audio, "checks": checks, "noise": noise, "np": np, "speech": speech, "torch": torch,
        "SEED": 0, "TOGETHER": together, "WINDOW": 28.0, "PAUSE": PAUSE, "KINDS": ("telephone",),
        "processor": processor, "silence": np.zeros(round(PAUSE * audio.RATE), np.float32), **more,
    }  # fmt: skip
    exec("\n".join(sources[cell] for cell in ("dataset", "windows", "collate", *cells)), known)
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


def test_what_is_skipped_draws_too(tiny: Path) -> None:
    """A training that goes on from a checkpoint reads from the middle, and hears what one from the start hears."""
    known, own = names(tiny, KINDS=("telephone", "pink 10 dB", "babble 10 dB")), clips(12, "own")
    whole, rest = (known["Windows"](known["course"](own, 2), 1.0) for _ in range(2))
    expected = [row["input_features"] for row in (whole[i] for i in range(len(whole)))]
    assert len(expected) > 6
    for i in (3, 4, 6):
        assert torch.equal(rest[i]["input_features"], expected[i])


@pytest.mark.parametrize("lora", [False, True])
def test_a_stopped_training_ends_like_an_uninterrupted_one(tiny: Path, tmp_path: Path, lora: bool) -> None:
    """By the notebook's own trainer, with spoiled clips and masked spectrograms, which are drawn in two ways."""
    settings = {"MASKED": 0.05, "SAVE_STEPS": 2, "LORA_RANK": 4, "batch_size": 4, "micro": 2, "dtype": torch.float32}
    settings |= {"profile": SimpleNamespace(device="cpu"), "set_seed": set_seed, "KINDS": ("telephone", "pink 10 dB")}
    known = names(tiny, "trainer", together=0.3, **settings)
    course = known["course"](clips(10, "own", 3.0), 4)
    known["shown_validation"] = known["Windows"]([([clip], True) for clip in clips(2, "held", 3.0)])
    rows = [audio.fingerprint(window) for window, _ in course]

    def train(run: str, *stops: StopAt, rows: list[str] = rows) -> tuple[dict[str, torch.Tensor], str | None]:
        known["run_dir"] = tmp_path / run
        known["run_dir"].mkdir(exist_ok=True)
        live = callbacks.LiveLoss(ledger.Ledger(known["run_dir"]), "loss")
        model, _ = speech.load(str(tmp_path / "tiny"))
        fitted = known["recipe"](model, known["Windows"](course, 0.8), 1e-3, [live, *stops], lora=lora)
        found = resume.checkpoint(fitted, {"SEED": 0}, rows)
        fitted.train(resume_from_checkpoint=found)
        assert fitted.state.global_step == fitted.state.max_steps > 4
        assert [step for step, _ in live.train] == list(range(1, fitted.state.max_steps + 1))
        return {name: weight.detach() for name, weight in fitted.model.named_parameters()}, found

    whole, _ = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", StopAt(3))
    resumed, found = train("stopped")
    assert found and found.endswith("checkpoint-2")
    assert all(torch.equal(weight, whole[name]) for name, weight in resumed.items())
    assert train("stopped", rows=rows[::-1])[1] is None, "other rows are another training"


def test_replay_needs_speech_to_replay() -> None:
    """Other speakers are there to measure with; they alone are nothing to replay."""
    cells = {cell.id: cell.source for cell in nbformat.read(recipes.find("04"), as_version=4).cells}
    known: dict[str, Any] = {"profile": SimpleNamespace(test_rows=0), "data": None, "pd": None}
    for wanted in ({"REPLAY": 0.25, "ARMS": []}, {"REPLAY": 0.0, "ARMS": ["slow", "replay"]}):
        for general in ({}, {"replay": [], "other speakers": clips(2, "other")}):
            with pytest.raises(ValueError, match="no general speech to replay.*GENERAL"):
                exec(cells["general-table"], known | wanted | {"general": general})
