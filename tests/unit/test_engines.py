"""The engine of a notebook: what cannot be used says so before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cookbook import engines

there = find_spec("unsloth") is not None


def tried(code: str) -> str:
    """What a process of its own prints of the error that `engines.use` raises after `code`."""
    lines = (
        f"{code}\nfrom cookbook import engines\n"
        "try:\n    engines.use('unsloth')\nexcept engines.EngineError as error:\n    print(error)"
    )
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True).stdout


def test_an_engine_that_there_is_not() -> None:
    with pytest.raises(engines.EngineError, match="ENGINE is 'unslot'; use hf or unsloth"):
        engines.use("unslot")


def test_plain_libraries_need_nothing() -> None:
    engines.use("hf")


@pytest.mark.skipif(there, reason="Unsloth is installed")
def test_not_installed() -> None:
    with pytest.raises(engines.EngineError, match=r"not installed here.*fine-tuning-cookbook\[unsloth\].*ENGINE hf"):
        engines.use("unsloth")


def test_a_version_that_does_not_train_here(tmp_path: Path) -> None:
    """A package in its place that refuses as Unsloth 2026.10.1 does without a GPU."""
    (tmp_path / "unsloth.py").write_text("raise NotImplementedError('You need a GPU.\\nSee the docs.')\n")
    told = tried(f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert "cannot run here: You need a GPU. Without a GPU it trains from version 2026.10.9 on" in told


def test_too_late(tmp_path: Path) -> None:
    (tmp_path / "unsloth.py").write_text("")
    told = tried(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport peft")
    assert "transformers, peft came first: restart the kernel" in told
