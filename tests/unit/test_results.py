"""The run record: what is written is read again, and nothing inconsistent or half-written is."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORD
from pydantic import ValidationError

from cookbook import results

METRIC = {"before": 0.2, "after": 0.9, "change": 0.7, "ci95": (0.5, 0.8), "n": 96, "verdict": "improved"}
RECORD = RECORD | {
    "recipe": "01_test",
    "metrics": {"intent_accuracy": METRIC | {"prompted": 0.4}, "valid_json": METRIC},
    "headline": "intent_accuracy",
    "forgetting": [METRIC | {"probe": "perplexity", "higher_is_better": False, "verdict": "worse"}],
    "started": "2026-01-01T10:00:00Z",
    "finished": results.now(),
    "claims": {"C1": {"claim": "x", "verdict": "holds in part", "evidence": "é"}},
    "details": {"curve": {"25": {"loss": 1.5}}, "rows": [1, None, "two"]},
}


def record(**changes: Any) -> results.Results:
    return results.Results(**(deepcopy(RECORD) | changes))


def test_checkpoints_go_when_the_record_stands(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    results.write(tmp_path, record())
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "model"}


def test_round_trip(tmp_path: Path) -> None:
    path = results.write(tmp_path, record())
    assert path == tmp_path / "results.json"
    assert results.read(tmp_path) == results.read(path) == results.read(str(path)) == record()
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert raw["schema_version"] == results.SCHEMA_VERSION and raw["started"] == "2026-01-01T10:00:00Z"
    assert raw["metrics"]["valid_json"]["prompted"] is None and "é" in path.read_text(encoding="utf-8")
    assert [f.name for f in tmp_path.iterdir()] == ["results.json"]


FAULTS = {
    "change": (METRIC | {"change": 0.6}, "is not after - before"),
    "interval": (METRIC | {"ci95": (0.8, 0.5)}, r"is not \[low, high\]"),
    "no rows": (METRIC | {"n": 0}, "greater than or equal to 1"),
    "verdict": (METRIC | {"verdict": "great"}, "no measurable change"),
    "nan": (METRIC | {"after": float("nan"), "change": float("nan")}, "finite"),
    "unknown field": (METRIC | {"p_value": 0.01}, "not permitted"),
    "missing field": ({k: v for k, v in METRIC.items() if k != "ci95"}, "required"),
}


@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
def test_inconsistent_scores_are_refused(fault: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        record(metrics={"intent_accuracy": fault})
    with pytest.raises(ValidationError, match=words):
        record(forgetting=[fault | {"probe": "knowledge"}])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"headline": "accuracy"}, r"headline 'accuracy' is none of the metrics \['intent_accuracy', 'valid_json'\]"),
        ({"metrics": {}}, "is none of the metrics"),
        ({"data": RECORD["data"] | {"train": -1}}, "greater than or equal to 0"),
        ({"claims": {"C1": {"claim": "x", "verdict": "true", "evidence": "y"}}}, "holds"),
        ({"details": {"model": object()}}, "JSON"),
        ({"extra": 1}, "not permitted"),
    ],
)
def test_inconsistent_records_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        record(**changes)


def test_read_refuses_what_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        results.read(tmp_path)
    (tmp_path / "results.json").write_text('{"recipe": "01"')
    with pytest.raises(ValidationError):
        results.read(tmp_path)


def test_older_records_are_upgraded_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(fields: dict[str, Any]) -> dict[str, Any]:
        assert fields["schema_version"] == 0
        fields["headline"] = fields.pop("main_metric")
        return fields

    old = json.loads(results.write(tmp_path, record()).read_text(encoding="utf-8"))
    old["main_metric"], old["schema_version"] = old.pop("headline"), 0
    (tmp_path / "results.json").write_text(json.dumps(old), encoding="utf-8")
    with pytest.raises(ValidationError, match="schema version 0 is older than what this cookbook reads"):
        results.read(tmp_path)
    monkeypatch.setitem(results.UPGRADES, 0, first)
    assert results.read(tmp_path) == record()
    now = results.SCHEMA_VERSION
    monkeypatch.setattr(results, "SCHEMA_VERSION", now + 1)
    monkeypatch.setitem(results.UPGRADES, now, lambda fields: fields | {"profile": fields["profile"].upper()})
    assert results.read(tmp_path) == record(schema_version=now + 1, profile="CPU")


def test_a_record_from_before_trainings_could_be_stopped(tmp_path: Path) -> None:
    old = json.loads(results.write(tmp_path, record()).read_text(encoding="utf-8"))
    assert old["resources"].pop("stopped") == []
    (tmp_path / "results.json").write_text(json.dumps(old | {"schema_version": 1}), encoding="utf-8")
    assert results.read(tmp_path) == record()


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (results.SCHEMA_VERSION + 1, "written by a newer cookbook .schema version 3; this one reads up to 2"),
        (-1, "schema version -1 is older"),
        ("one", "schema_version: Input should be a valid integer"),
    ],
)
def test_records_of_unknown_versions_are_refused(tmp_path: Path, version: Any, said: str) -> None:
    path = results.write(tmp_path, record())
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"schema_version": version}))
    with pytest.raises(ValidationError) as error:
        results.read(tmp_path)
    assert re.match(said, results.fault(error.value))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plain = results.write_json(tmp_path / "a.json", {"old": 1}), tmp_path / "b"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # readable by whoever may read the folder's other files
    plain.unlink()
    with pytest.raises(TypeError):
        results.write_json(path, {"new": 1, "not JSON": object()})

    def full(*_: object) -> None:
        raise OSError("no space left")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
            patch.setattr(results.os, step, full)
            results.write_json(path, {"new": 1})
    assert json.loads(path.read_text()) == {"old": 1} and [f.name for f in tmp_path.iterdir()] == ["a.json"]


def test_output_dir_removes_an_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(results.OUTPUT_VARIABLE, raising=False)
    folder = tmp_path / "deep" / "run"
    assert results.output_dir("01", str(folder)) == folder and folder.is_dir()
    results.write(folder, record())
    (folder / "keep.txt").write_text("x")
    assert results.output_dir("01", str(folder)) == folder
    assert [f.name for f in folder.iterdir()] == ["keep.txt"]


def test_output_dir_of_the_launcher_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(results.OUTPUT_VARIABLE, str(tmp_path / "launcher"))
    assert results.output_dir("01", str(tmp_path / "chosen")) == tmp_path / "launcher"
    assert not (tmp_path / "chosen").exists()


def test_parameters_are_the_plain_upper_case_values() -> None:
    namespace = {
        "SEED": 0, "RATE": 0.1, "DATA": "", "FLAG": True, "LIST": ["a"], "LORA_R2": 8,
        "_HIDDEN": 1, "lower": 2, "Mixed": 3, "MODULE": json, "NOTHING": None,
    }  # fmt: skip
    assert list(results.parameters(namespace)) == ["SEED", "RATE", "DATA", "FLAG", "LIST", "LORA_R2"]


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "STACK", ("numpy", "no-such-package"))
    found = results.environment("a CPU", dtype="bf16")
    assert list(results.versions()) == ["numpy"] and found["dtype"] == "bf16" and found["device"] == "a CPU"
    assert found["cores"] >= 1 and found["memory_bytes"] > 1e8
