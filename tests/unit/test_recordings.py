"""Recordings from Debian packages made here: what is kept, what is refused; and once, from the archive itself."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import wave
from pathlib import Path

import pytest

from cookbook import assets, recordings
from cookbook.assets import AssetError


def sound(file: Path, seconds: float = 0.5, rate: int = 8000) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes(bytes(range(256)) * round(seconds * rate / 128))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    texts = {
        "agent-pass": "Please enter your password...  followed by pound.", "beep": "[this is a beep tone]",
        "dictate/help": "press 0 for help", "no": "No.", "long": "This one goes on and on", "gone": "It is not there",
        "star": "Press * to go on now",
    }  # fmt: skip
    (folder / "doc").mkdir(parents=True)
    listed = "; Sounds\n\n" + "".join(f"{name}: {text}\n" for name, text in texts.items())
    (folder / "doc" / "core-sounds-en.txt.gz").write_bytes(gzip.compress(listed.encode()))
    for name in set(texts) - {"gone"}:
        sound(folder / "sounds" / "en_US_f_Allison" / f"{name}.wav", 31 if name == "long" else 0.5)
    return folder


def test_prompts(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    recordings.telephone_prompts(prompts, out)
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [(row["file"], row["text"]) for row in rows] == [
        ("agent-pass.wav", "Please enter your password followed by pound."),
        ("dictate-help.wav", "press 0 for help"),
    ]
    first = recordings.digest(out)
    (out / "agent-pass.wav").write_bytes(b"other")
    assert recordings.digest(out) != first


def test_read_sentences(tmp_path: Path) -> None:
    folder, out = tmp_path / "data", tmp_path / "out"
    out.mkdir()
    sound(folder / "cards" / "001.wav")
    (folder / "cards" / "cards.transcription").write_text("<s> ten of clubs  </s> (001)\n")
    recordings.read_sentences(folder, out)
    assert json.loads((out / "metadata.jsonl").read_text()) == {
        "file": "001.wav", "text": "ten of clubs", "voice": "cards"
    }  # fmt: skip
    shutil.rmtree(folder / "cards")
    with pytest.raises(ValueError, match="no recordings with texts"):
        recordings.read_sentences(folder, out)


def test_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AssetError, match="there is no apt-get here. Copy .* or name a folder of your own"):
        assets.path("telephone-prompts")
    assert not list(tmp_path.glob("*/"))


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: Path) -> Path:
    """An `apt-get` that knows one package after its list was updated; returns the log of what it was asked."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("needs dpkg-deb")
    (prompts / "DEBIAN").mkdir()
    control = "Package: sounds\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <x@example.org>\nDescription: x\n"
    (prompts / "DEBIAN" / "control").write_text(control)
    subprocess.run(["dpkg-deb", "-b", prompts, tmp_path / "sounds.deb"], check=True, capture_output=True)
    log, tool = tmp_path / "log", tmp_path / "bin" / "apt-get"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\necho "$*" >> {log}\ncase "$*" in *update*) touch {tmp_path}/known;; '
        f"*download*) [ -e {tmp_path}/known ] && cp {tmp_path}/sounds.deb . || echo E: Unable to locate; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "cache"))
    return log


def test_the_list_of_packages_is_fetched_where_there_is_none(archive: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    folder = recordings.unpack(["sounds"], work)
    assert list(folder.rglob("agent-pass.wav"))
    asked = archive.read_text().splitlines()
    assert ["download" in asked[0], "update" in asked[1], "download" in asked[2]] == [True] * 3
    assert f"Dir::State::Lists={work}" in asked[1], "the system's own list is left as it is"


def test_other_recordings_than_the_pinned_ones(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = assets.ASSETS["telephone-prompts"]
    changed = type(asset)(**{**vars(asset), "package": "sounds", "disk": 1000})
    monkeypatch.setitem(assets.ASSETS, "telephone-prompts", changed)
    with pytest.raises(AssetError, match="not the recordings that telephone-prompts is pinned to"):
        assets.path("telephone-prompts")


@pytest.mark.model
def test_real_recordings() -> None:
    if not shutil.which("apt-get"):
        pytest.skip("needs apt-get")
    for name, count in (("telephone-prompts", 260), ("read-sentences", 10)):
        folder = assets.path(name)
        assert len((folder / "metadata.jsonl").read_text().splitlines()) == len(list(folder.glob("*.wav"))) == count
