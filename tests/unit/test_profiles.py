"""Profiles: the shipped rows, a user's rows, and faults that are named with file and field."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cookbook import profiles
from cookbook.profiles import ProfileError

ROW = 'model = "m"\nmax_length = 64\nbatch_size = 4\nmicro_batch_size = 2\nepochs = 1\nmax_new_tokens = 8\n'


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "mine.toml"
    monkeypatch.setenv(profiles.VARIABLE, str(file))
    return file


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "cuda", lambda: None)


def test_shipped_rows() -> None:
    known = profiles.available()
    assert list(known) == ["smoke", "cpu", "gpu"]
    assert profiles.load("smoke").model == "smollm2-135m-instruct-smoke"
    assert known["cpu"].train_rows == 0
    assert known["gpu"].device == "cuda"


def test_auto_follows_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert profiles.load().name == "cpu"
    monkeypatch.setattr(profiles, "cuda", object)
    assert profiles.load("auto").name == "gpu"


def test_gpu_without_cuda_is_refused() -> None:
    with pytest.raises(ProfileError, match="needs a CUDA GPU.*use cpu"):
        profiles.load("gpu")


def test_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ProfileError, match="'smokee'; did you mean smoke.*known: auto, smoke, cpu, gpu"):
        profiles.load("smokee")


def test_users_rows_add_and_override(mine: Path) -> None:
    mine.write_text(f"[laptop]\n{ROW}[cpu]\nepochs = 5\n")
    assert profiles.load("laptop").model == "m"
    cpu = profiles.load("cpu")
    assert (cpu.epochs, cpu.model) == (5, "smollm2-135m-instruct")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"[new]\n{ROW}batch_sise = 3\n",
            r"mine.toml: \[new\] batch_sise: no such field; did you mean batch_size",
        ),
        ("[cpu]\nmax_length = '512'\n", r"mine.toml: \[cpu\] max_length: .*valid integer, not '512'"),
        ("[cpu]\nepochs = 0\n", r"mine.toml: \[cpu\] epochs: .*greater than 0, not 0"),
        ("[cpu]\ndevice = 'tpu'\n", r"mine.toml: \[cpu\] device: "),
        ("[cpu]\nmicro_batch_size = 5\n", r"mine.toml: \[cpu\] .*4 is not a multiple of micro_batch_size 5"),
        ("[new]\nmodel = 'm'\n", r"mine.toml: \[new\] max_length: is missing"),
        ("epochs = 3\n", r"mine.toml.*: epochs stands outside a profile"),
        ("[cpu\n", r"mine.toml \(COOKBOOK_PROFILES\): the profiles cannot be read: .*line 1"),
        (f"[auto]\n{ROW}", r"\[auto\] is taken"),
    ],
)
def test_faults_are_named(mine: Path, text: str, said: str) -> None:
    mine.write_text(text)
    with pytest.raises(ProfileError, match=said):
        profiles.load("cpu")


def test_missing_file_is_named(mine: Path) -> None:
    with pytest.raises(ProfileError, match=r"mine.toml \(COOKBOOK_PROFILES\).*No such file"):
        profiles.available()


def test_reading_profiles_needs_no_torch() -> None:
    code = "import sys; from cookbook import profiles; profiles.load('smoke'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
