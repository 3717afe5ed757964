"""Transcribed speech in all shapes, and every planted fault refused with its file and line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cookbook import audio, batch, noise
from cookbook.data import DataError

RATE = audio.RATE
LINES = (
    "The kettle leaks from its base.", "Please read me the number underneath.", "My parcel came without a lid.",
    "Nobody has called me back since Friday.", "Where do I find the manual?", "That lamp flickers in the evening.",
    "Two of the four chairs wobble.", "I would like to return the blender.", "Is the blanket safe for children?",
    "Your driver left it in the rain.", "The invoice shows the wrong street.", "Can somebody explain the fee?",
    "A hinge snapped on the second day.", "It hums louder every week.", "Has the refund been sent yet?",
    "The colour is nothing like the picture.", "We ordered six and got five.", "Which bulb fits the small one?",
    "Tell the warehouse to hold it.", "The plug gets far too warm.",
)  # fmt: skip


def tone(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def folder_of(folder: Path, rows: list[dict], name: str = "metadata.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def good(folder: Path, count: int = 20) -> list[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        soundfile.write(folder / f"{i:02d}.wav", tone(), RATE)
    return [{"file": f"{i:02d}.wav", "text": LINES[i]} for i in range(count)]


def test_one_table_is_cut_by_sentences(tmp_path: Path) -> None:
    rows = good(tmp_path)
    rows += [{**row, "voice": "second"} for row in rows]
    found = audio.load(folder_of(tmp_path, rows))
    texts = [{clip.text for clip in getattr(found, split)} for split in ("train", "validation", "test")]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 20, (
        "a sentence stands in one split, both its clips too"
    )
    assert len(found.test) == 8 and len(found.validation) == 4
    assert "like texts stay together" in found.report[0]
    assert audio.load(tmp_path).fingerprint == found.fingerprint
    assert audio.load(tmp_path, seed=1).fingerprint != found.fingerprint


def test_voices_stay_together_where_they_can(tmp_path: Path) -> None:
    rows = [{**row, "voice": f"voice {i // 2}"} for i, row in enumerate(good(tmp_path))]
    found = audio.load(folder_of(tmp_path, rows), min_rows=(8, 2, 2))
    voices = [{clip.extra["voice"] for clip in getattr(found, split)} for split in ("train", "validation", "test")]
    assert sum(map(len, voices)) == len(set().union(*voices)) == 10
    assert "so do voices" in found.report[0]
    rows = [{**row, "voice": f"voice {i // 10}"} for i, row in enumerate(rows)]
    found = audio.load(folder_of(tmp_path, rows), min_rows=(8, 2, 2))
    assert len(found.test) == 4, "two voices cannot fill three splits"
    assert "voices stand in several splits" in found.report[0]


def test_tables_of_splits_and_columns(tmp_path: Path) -> None:
    rows = good(tmp_path / "wav")
    parts = {"train": rows[:10], "validation": rows[10:14], "test": rows[14:]}
    for name, part in parts.items():
        table = [f"wav/{row['file']};{row['text']};lid,plug;pink" for row in part]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path;transcript;keywords;noise", *table]) + "\n")
    (tmp_path / "README.md").write_text("Licence: MIT\n")
    found = audio.load(tmp_path)
    assert [len(found.train), len(found.validation), len(found.test)] == [10, 4, 6]
    clip = found.test[0]
    assert (clip.text, clip.source) == (rows[14]["text"], f"{tmp_path.name}/test.csv:2")
    assert clip.keywords == ("lid,plug",) and clip.extra == {"noise": "pink"}
    assert found.licence == "MIT" and found.report == []


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (22050, 1), (44100, 2), (48000, 1)])
def test_other_rates_and_channels_become_16_khz_mono(tmp_path: Path, rate: int, channels: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.repeat(tone(1.5, rate)[:, None], channels, axis=1), rate)
    found = audio.samples_of(tmp_path / "a.wav")
    assert found.dtype == np.float32 and abs(len(found) - 1.5 * RATE) <= 1
    middle = slice(RATE // 4, RATE)
    assert np.corrcoef(found[middle], tone(1.5)[middle])[0, 1] > 0.999


def test_every_fault_with_its_line(tmp_path: Path) -> None:
    rows = good(tmp_path)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "junk.wav").write_bytes(b"this is no sound at all" * 40)
    whole = (tmp_path / "00.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 3])
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "coarse.wav", tone(1, 6000), 6000)
    soundfile.write(tmp_path / "long.wav", np.tile(tone(), 31), RATE)
    wrong = {
        "missing.wav": r"missing\.wav: no such audio file", "07.waw": r"07\.waw: no such .* did you mean '07\.wav'",
        "empty.wav": r"empty\.wav: the audio file is empty", "junk.wav": r"junk\.wav: cannot be decoded",
        "silent.wav": r"silent\.wav: no sound in it", "coarse.wav": r"coarse\.wav: 6000 samples a second",
        "long.wav": r"long\.wav: 31 seconds long",
    }  # fmt: skip
    for file, message in wrong.items():
        table = [*rows, {"file": file, "text": "Said by nobody."}]
        (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
        with pytest.raises(DataError, match=rf"{tmp_path.name}/one\.jsonl:21: {message}"):
            audio.load(tmp_path / "one.jsonl")
    for row, message in (
        ({"file": "00.wav", "text": " ... "}, "no transcript"),
        ({"file": None, "text": "Hm"}, "names no"),
    ):
        (tmp_path / "one.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [row, *rows]))
        with pytest.raises(DataError, match=rf"one\.jsonl:1: .*{message}"):
            audio.load(tmp_path / "one.jsonl")
    try:
        assert len(audio.samples_of(tmp_path / "cut.wav")) < RATE / 2  # libsndfile mends the header of some
    except DataError as error:
        assert "cut short" in str(error) or "decoded" in str(error)


def test_faults_are_collected(tmp_path: Path) -> None:
    rows = good(tmp_path) + [{"file": f"x{i}.wav", "text": "Hm."} for i in range(7)]
    with pytest.raises(DataError) as caught:
        audio.load(folder_of(tmp_path, rows))
    said = str(caught.value)
    assert "7 problems" in said and "metadata.jsonl:21: x0.wav" in said and "... and 2 more" in said


def test_recordings_and_transcripts_without_each_other(tmp_path: Path) -> None:
    rows = good(tmp_path)
    with pytest.raises(DataError, match="20 recordings and no transcripts; add metadata"):
        audio.load(tmp_path)
    folder_of(tmp_path, rows[:-2])
    with pytest.raises(DataError, match=r"metadata\.jsonl:19: 2 recordings have no row, such as 18\.wav, 19\.wav"):
        audio.load(tmp_path)
    folder_of(tmp_path, [{"sound": row["file"], "text": row["text"]} for row in rows])
    with pytest.raises(DataError, match="no column of the audio file"):
        audio.load(tmp_path)
    folder_of(tmp_path, rows[:12], "few.jsonl")
    with pytest.raises(DataError, match="train has 4 clips and needs 8"):
        audio.load(tmp_path / "few.jsonl")


def test_the_launcher_refuses_bad_clips_before_a_kernel_starts(tmp_path: Path) -> None:
    rows = good(tmp_path)
    (tmp_path / "03.wav").write_bytes(b"")
    folder_of(tmp_path, rows)
    notebook = batch.find("04")
    with pytest.raises(batch.RequestError, match=r"DATA: .*metadata\.jsonl:4: 03\.wav: the audio file is empty"):
        batch.check_parameters(notebook, {"DATA": str(tmp_path), "PROFILE": "cpu"})
    with pytest.raises(batch.RequestError, match="no such file or folder"):
        batch.check_parameters(notebook, {"DATA": str(tmp_path / "nowhere"), "PROFILE": "cpu"})
    with pytest.raises(batch.RequestError, match="did you mean whisper-tiny-en"):
        batch.check_parameters(notebook, {"MODEL": "whisper-tinyen", "PROFILE": "cpu"})
    for model in ("whisper-tiny-en", "smollm2-135m-instruct"):
        other = notebook if model.startswith("whisper") else batch.find("01")
        assert batch.check_parameters(other, {"MODEL": model, "PROFILE": "cpu"})["MODEL"] == model


def test_noise_levels_and_band() -> None:
    rng, speech = np.random.default_rng(0), tone(2)
    for kind in (noise.pink(len(speech), rng), noise.babble(len(speech), [tone(), tone(0.7)[::-1]], rng)):
        mixed = noise.add(speech, kind, 10)
        scale = float(np.dot(mixed, speech) / np.dot(speech, speech))
        left = mixed - scale * speech
        ratio = 10 * np.log10(np.var(scale * speech) / np.var(left))
        assert 9 < ratio < 11
    low = np.sin(2 * np.pi * 100 * np.arange(2 * RATE) / RATE).astype(np.float32)
    assert np.std(noise.telephone(low)[RATE // 2 : -RATE // 2]) < 0.02, "100 Hz does not pass a telephone"
    assert np.std(noise.telephone(speech)) > 0.9 * np.std(speech)
    power = np.abs(np.fft.rfft(noise.pink(1 << 16, rng))) ** 2
    assert 8 < power[100:200].mean() / power[1000:2000].mean() < 12


def test_spoiling_follows_the_seed() -> None:
    crowd = [tone(), tone(0.5)]
    first, again, other = (
        noise.spoil(tone(), "babble 10 dB + telephone", crowd, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert noise.spoil(first, "none", crowd, np.random.default_rng(0)) is first
    with pytest.raises(ValueError, match="unknown kind of noise 'rain 3 dB'"):
        noise.spoil(first, "rain 3 dB", crowd, np.random.default_rng(0))
