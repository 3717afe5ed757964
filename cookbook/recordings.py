"""Recordings of people speaking, with their texts: fetched from Debian's archive, written as a folder of clips."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import wave
from collections.abc import Sequence
from pathlib import Path

from cookbook.assets import AssetError, cache_dir

TABLE = "metadata.jsonl"  # file, text, voice
SPOKEN = re.compile(r"[A-Za-z0-9 ,.'?!:;-]+")  # a text with other signs describes a sound, or is read in an odd way


def unpack(packages: Sequence[str], work: Path) -> Path:
    """Download Debian packages with apt's own settings and unpack them, no root needed; return the folder.

    Where apt knows no packages yet (a fresh container), their list is fetched into `work` first.

    Raises:
        AssetError: no apt on this machine, or it could not fetch them.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise AssetError(
            f"{' and '.join(packages)}: recordings come as Debian packages, and there is no apt-get here. Copy "
            f"{cache_dir()} from a Debian or Ubuntu machine that has them, or name a folder of your own recordings"
        )
    folder, own = work / "debs", work / "apt"
    folder.mkdir()
    (own / "lists" / "partial").mkdir(parents=True)
    here = ["-o", f"Dir::State::Lists={own / 'lists'}", "-o", f"Dir::Cache={own}", "-o", "APT::Sandbox::User="]
    for before, options in (([], ["-o", "APT::Sandbox::User="]), (["update"], here)):
        said = _apt([*options, *before], folder) if before else ""
        said += _apt([*options, "download", *packages], folder)
        debs = sorted(folder.glob("*.deb"))
        if len(debs) == len(packages):
            for deb in debs:
                subprocess.run(["dpkg-deb", "-x", deb, folder / "files"], check=True, capture_output=True)
            return folder / "files"
    last = "\n".join(f"  {line}" for line in said.strip().splitlines()[-5:])
    raise AssetError(f"apt-get could not fetch {' and '.join(packages)}. It said:\n{last}\nCheck the network.")


def _apt(arguments: Sequence[str], folder: Path) -> str:
    plain = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(["apt-get", "-q", *arguments], cwd=folder, env=plain, capture_output=True, text=True)
    return done.stdout + done.stderr


def digest(folder: Path) -> str:
    """sha256 over names and contents of all files in a folder of clips: the pin, however they were packed."""
    whole = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        whole.update(f"{file.relative_to(folder).as_posix()}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def telephone_prompts(folder: Path, out: Path, least: int = 3) -> None:
    """Write the English prompts of the Asterisk telephone exchange, as recorded (8 kHz), and their texts.

    Left out: sounds, silences, texts with signs that are read in more than one way, texts under `least` words, and
    recordings over 30 seconds, the window of Whisper's encoder.
    """
    listed = next(folder.rglob("core-sounds-en.txt.gz"))
    sounds = {file.relative_to(file.parents[1]).as_posix(): file for file in folder.rglob("*.wav")}
    sounds |= {file.name: file for file in folder.rglob("en_US_f_Allison/*.wav")}
    rows = []
    for line in gzip.decompress(listed.read_bytes()).decode("utf-8").splitlines():
        name, _, text = line.partition(": ")
        text = " ".join(text.replace("...", " ").split())
        file = sounds.get(f"{name}.wav")
        if file and len(text.split()) >= least and SPOKEN.fullmatch(text) and _seconds(file) <= 30:
            rows.append(_clip(file, out, name.replace("/", "-"), text, "telephone prompts"))
    _write(rows, out)


def read_sentences(folder: Path, out: Path) -> None:
    """Write the test clips of PocketSphinx: sentences of a novel, and playing cards called out (16 kHz)."""
    rows = []
    for texts in sorted([*folder.rglob("librivox/transcription"), *folder.rglob("cards.transcription")]):
        for text, name in re.findall(r"<s> (.+?)\s*</s> \((\S+)\)", texts.read_text(encoding="utf-8")):
            rows.append(_clip(texts.parent / f"{name}.wav", out, name, text, texts.parent.name))
    _write(rows, out)


def _seconds(file: Path) -> float:
    with wave.open(str(file)) as sound:
        return sound.getnframes() / sound.getframerate()


def _clip(file: Path, out: Path, name: str, text: str, voice: str) -> dict[str, str]:
    shutil.copyfile(file, out / f"{name}.wav")
    return {"file": f"{name}.wav", "text": text, "voice": voice}


def _write(rows: list[dict[str, str]], out: Path) -> None:
    if not rows:
        raise ValueError("the packages hold no recordings with texts")
    lines = [json.dumps(row, ensure_ascii=False) for row in sorted(rows, key=lambda row: row["file"])]
    (out / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")
