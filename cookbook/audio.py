"""Read transcribed speech: audio files and their texts as three checked splits of 16 kHz mono clips."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from scipy.signal import resample_poly

from cookbook import leakage
from cookbook.data import Schema, Splits
from cookbook.tables import SPLITS, SUFFIXES, DataError, Table, licence_of, near, read_folder, read_table

RATE = 16_000  # samples a second that Whisper hears
LOWEST_RATE = 8_000  # telephone quality; less has lost what tells consonants apart
LONGEST = 30.0  # seconds: the window of Whisper's encoder
AUDIO = ("file", "audio", "path", "file_name", "filename")
TEXT = ("text", "transcript", "transcription", "sentence")
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3")


@dataclass(frozen=True)
class Clip:
    """One recording: its file, samples (float32, 16 kHz, mono), transcript, "table:line", and what else is known."""

    file: Path
    text: str
    source: str
    samples: np.ndarray = field(repr=False, compare=False)
    keywords: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


def load(source: str | Path, *, seed: int = 0, min_rows: tuple[int, int, int] = (8, 4, 4)) -> Splits:
    """Read a table (JSONL, CSV, Parquet) of audio files and transcripts, or a folder of such tables, as three splits.

    Tables are called train, validation and test, or metadata (all rows); columns are the audio file, relative to its
    table, and its text; `keywords` (a list, or text with semicolons) and further columns are kept. A missing split is
    cut from train by `seed`; clips with the same or nearly the same text stay together, and so do those of one
    `voice` where enough clips are left for each split.

    Raises:
        DataError: with up to five problems of a table, by line: a missing, empty, corrupt, silent, too coarse or too
            long recording, a row without text, and, in a folder, a recording without a row.
    """
    path, typed = Path(source).expanduser(), str(source)
    tables = _tables(path, typed)
    found = {split: read(file, whole=path.is_dir()) for split, file in tables.items()}
    sizes = {s: max(round(share * len(found["train"])), least) for s, share, least in
             (("test", 0.2, min_rows[2]), ("validation", 0.1, min_rows[1])) if s not in found}  # fmt: skip
    remarks = []
    if sizes:
        parts, remark = _cut(found["train"], sizes, seed)
        found |= parts
        remarks.append(remark)
    for split, least in zip(SPLITS, min_rows, strict=True):
        if len(found[split]) < least:
            raise DataError(f"{typed}: {split} has {len(found[split])} clips and needs {least}; add rows")
    return Splits(
        **{split: found[split] for split in SPLITS},
        schema=Schema("audio", ("text",), {"text": "text"}, {}),
        source=", ".join(f"{path.name}/{f.name}" if path.is_dir() else f.name for f in tables.values()),
        licence="; ".join(dict.fromkeys(licence_of(f.parent) for f in tables.values())),
        fingerprint=fingerprint([clip for split in SPLITS for clip in found[split]]),
        report=remarks,
    )


def read(table_file: Path, *, whole: bool = False) -> list[Clip]:
    """The clips of one table, in its order; `whole`: recordings beside it that no row of a table names are refused.

    Raises:
        DataError: see `load`.
    """
    table = read_table(table_file, f"{table_file.absolute().parent.name}/{table_file.name}")
    if not table.rows:
        table.stop()
    columns = {key for _, row in table.rows for key in row}
    names = [next((name for name in known if name in columns), "") for known in (AUDIO, TEXT)]
    for name, known, what in zip(names, (AUDIO, TEXT), ("audio file", "transcript"), strict=True):
        if not name:
            hint = near(known[0], columns)
            raise DataError(f"{table.name}:1: no column of the {what} ({', '.join(known)}){hint}")
    clips = [_clip(table, line, row, table_file.parent, *names) for line, row in table.rows]
    if whole:
        _refuse_strays(table, table_file.parent)
    table.stop() if table.problems else None
    return [clip for clip in clips if clip]


def samples_of(file: Path) -> np.ndarray:
    """A recording as float32 samples at 16 kHz, its channels averaged.

    Raises:
        DataError: what is wrong with the file, without its name.
    """
    try:
        with soundfile.SoundFile(file) as sound:
            rate, seconds = sound.samplerate, sound.frames / sound.samplerate
            if rate < LOWEST_RATE:
                raise DataError(f"{rate} samples a second; record at {LOWEST_RATE} or more, better {RATE}")
            if seconds > LONGEST:
                raise DataError(f"{seconds:.0f} seconds long; cut it and its text to {LONGEST:.0f} at most")
            values = sound.read(dtype="float32", always_2d=True).mean(axis=1)
    except soundfile.SoundFileError as error:
        said = str(error).partition(": ")[2] or str(error)
        raise DataError(f"cannot be decoded ({said.strip()}); corrupt, or a kind that is not read") from error
    if len(values) < 0.9 * seconds * rate:
        raise DataError(f"cut short: {len(values) / rate:.1f} of {seconds:.1f} seconds can be decoded")
    if not len(values) or not np.abs(values).max() > 1e-4:
        raise DataError("no sound in it; record it again or remove the row")
    return values if rate == RATE else resample(values, rate)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Mono samples at `rate` a second as float32 at 16 kHz."""
    common = np.gcd(RATE, rate)
    return resample_poly(np.asarray(samples, np.float32), RATE // common, rate // common).astype(np.float32)


def fingerprint(clips: Sequence[Clip]) -> str:
    """16 hex digits over texts and samples (as 16-bit values: the last bits depend on the decoder)."""
    whole = hashlib.sha256()
    for clip in clips:
        whole.update(json.dumps([clip.text, round(clip.seconds, 2)]).encode())
        whole.update(np.round(clip.samples[:: RATE // 50] * 100).astype(np.int8).tobytes())
    return whole.hexdigest()[:16]


def _cut(clips: list[Clip], sizes: dict[str, int], seed: int) -> tuple[dict[str, list[Clip]], str]:
    """Clips by split, like texts together and, where enough clips are left for each split, voices together too."""
    texts, voices = [clip.text for clip in clips], [str(clip.extra.get("voice") or "") for clip in clips]
    why = "nothing says whose voice is heard: add a column 'voice'"
    for names in [voices] * all(voices) + [[]]:
        parts = leakage.divide(leakage.families(texts, names, seed=seed), sizes, [0] * len(clips), seed)
        if names and all(2 * len(parts[split]) >= size for split, size in sizes.items()) and parts["train"]:
            why = "so do voices"
            break
        why = "voices stand in several splits" if names else why
    remark = f"Cut from the training rows: {', '.join(sizes)} (seed {seed}; like texts stay together; {why})."
    return {split: [clips[i] for i in sorted(rows)] for split, rows in parts.items()}, remark


def _tables(path: Path, typed: str) -> dict[str, Path]:
    if path.is_dir():
        whole = [file for file in sorted(path.iterdir()) if file.stem == "metadata" and file.suffix in SUFFIXES]
        if whole:
            return {"train": whole[0]}
        sounds = sum(file.suffix.lower() in SOUNDS for file in path.iterdir())
        if sounds and not any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
            text = f"{typed}: {sounds} recordings and no transcripts"
            raise DataError(f'{text}; add metadata.jsonl with a row {{"file": "...", "text": "..."}} for each')
    tables = read_folder(path, typed)
    if "train" not in tables:
        raise DataError(f"{typed}: no training table; add train.jsonl, or metadata.jsonl for all rows")
    return tables


def _clip(table: Table, line: int, row: dict[str, Any], folder: Path, audio: str, text: str) -> Clip | None:
    name, said = row.get(audio), row.get(text)
    if not isinstance(name, str) or not name.strip():
        return table.fault(line, f"{audio!r} names no audio file; a transcript needs its recording")
    file = folder / name
    if not isinstance(said, str) or not any(c.isalnum() for c in said):
        return table.fault(line, f"{name}: no transcript in {text!r}; write what is said or remove the row")
    if not file.is_file():
        there = sorted(p.name for p in file.parent.iterdir()) if file.parent.is_dir() else []
        return table.fault(line, f"{name}: no such audio file{near(file.name, there)}; paths start at the table")
    if not file.stat().st_size:
        return table.fault(line, f"{name}: the audio file is empty (0 bytes); record it again or remove the row")
    try:
        samples = samples_of(file)
    except DataError as error:
        return table.fault(line, f"{name}: {error}")
    given = row.get("keywords") or ()
    keywords = given.split(";") if isinstance(given, str) else given
    extra = {key: value for key, value in row.items() if key not in (audio, text, "keywords")}
    words = tuple(word.strip() for word in keywords if word.strip())
    return Clip(file, said.strip(), f"{table.name}:{line}", samples, words, extra)


def _refuse_strays(table: Table, folder: Path) -> None:
    """Recordings beside the table that no table of the folder names: their transcripts were forgotten."""
    named = set()
    for file in folder.iterdir():
        if file.suffix.lower() in SUFFIXES:
            rows = read_table(file, file.name).rows
            named |= {str(value) for _, row in rows for key, value in row.items() if key in AUDIO}
    strays = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SOUNDS and p.name not in named)
    if strays:
        last = table.rows[-1][0]
        text = f"{len(strays)} recordings have no row, such as {', '.join(strays[:3])}; write their transcripts"
        table.fault(last + 1, text)
