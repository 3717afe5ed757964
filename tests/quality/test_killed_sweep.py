"""Twelve real runs of a sweep, whose launcher is killed twice: the same command finishes what is missing, no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cookbook
from cookbook import compare, results

pytestmark = [pytest.mark.quality, pytest.mark.model, pytest.mark.skipif(os.name != "posix", reason="kill -9")]
WORDS = ["19b", "-p", "METHOD", "lora,ia3,ln,zero_shot", "-p", "SEED", "0..2", "-p", "PROFILE", "smoke"]


def launch(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cookbook", "sweep", *WORDS, "--workers", "2", "--output-dir", "out"]
    environment = os.environ | {"PYTHONPATH": str(Path(cookbook.__file__).parents[1])}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def finished(folder: Path) -> dict[str, float]:
    """When each finished run ended, by its folder's name; a run ends when the launcher has seen its record."""
    return {file.parent.name: file.stat().st_mtime for file in folder.glob("out/*/status.json")}


def test_twelve_runs_whose_launcher_is_killed_twice(tmp_path: Path) -> None:
    kept: dict[str, float] = {}
    for wanted in (3, 7):
        process = launch(tmp_path)
        while len(finished(tmp_path)) < wanted:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        process.kill()
        process.communicate()
        time.sleep(1)  # runs in flight end with their launcher
        assert kept.items() <= finished(tmp_path).items()  # nothing that was done is done again
        kept = finished(tmp_path)
    last = launch(tmp_path)
    said, _ = last.communicate(timeout=1500)
    assert last.returncode == 0, said
    assert kept.items() <= finished(tmp_path).items() and len(finished(tmp_path)) == 12
    states = [json.loads(file.read_text())["status"] for file in tmp_path.glob("out/*/status.json")]
    assert states == ["ok"] * 12
    again = launch(tmp_path)
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and "12 runs, 12 done before; 0 to do" in said

    runs, faults = compare.collect([tmp_path / "out"])
    assert not faults and len(runs) == 12
    (comparison,) = compare.comparisons(runs, "validation_loss")
    found = {group.parameters["METHOD"]: group for group in comparison.groups}
    assert {name: group.seeds for name, group in found.items()} == dict.fromkeys(found, 3) and len(found) == 4
    assert found["lora"].change.mean < 0 < found["lora"].artifact_bytes
    assert results.read(runs[0].path).recipe == "19b_one_technique"
