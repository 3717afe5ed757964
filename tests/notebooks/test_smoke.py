"""Every notebook runs at the smoke profile through the launcher; the run contract holds."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
import warm
from safetensors.torch import load_file

from cookbook import batch, publish, recipes, results

ROOT = Path(__file__).resolve().parents[2]
Ran = tuple[Path, Path, results.Results]  # notebook, run folder, record
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(path: Path, folder: Path, kernel: dict[str, str] | None = None, **given: object) -> results.Results:
    """A run that ends well, in a warm kernel unless told otherwise."""
    parameters = batch.check_parameters(path, {"PROFILE": "smoke", **given})
    kernel = warm.environment() if kernel is None else kernel
    status = batch.run_one(path, folder, parameters, timeout=900, environment=kernel)
    assert status.status == "ok", f"{status.error} (cell {status.cell})"
    return results.read(folder)


def cut_off(path: Path, folder: Path, when: Callable[[str, int], bool], **given: object) -> None:
    """The same, killed as soon as `when(stage, step)` holds of its progress."""
    stop, stage = threading.Event(), ""

    def watch(event: dict[str, Any]) -> None:
        nonlocal stage
        stage = event.get("stage", stage)
        if when(stage, event.get("step", 0)):
            stop.set()

    parameters = batch.check_parameters(path, {"PROFILE": "smoke", **given})
    with pytest.raises(KeyboardInterrupt):
        batch.run_one(
            path, folder, parameters, timeout=900, progress=watch, stop=stop, environment=warm.environment()
        )


def numbers(record: results.Results) -> dict:
    """Everything in a record that the seed must fix: scores, forgetting, fingerprints; not seconds or bytes."""
    return {
        "metrics": {k: m.model_dump() for k, m in record.metrics.items()},
        "forgetting": [p.model_dump() for p in record.forgetting],
        "data": record.data.model_dump(),
        "model": record.model.model_dump(),
        "trained": {k: record.details.get(k) for k in ("validation_loss", "training_loss", "rewards", "kl")},
    }


def trainings(folder: Path) -> dict[str, int]:
    """The stages of a run that trained, in their order, and the steps of each."""
    stage, found = "", {}
    for line in (folder / "progress.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        stage = event.get("stage", stage)
        if stage.startswith("train") and "step" in event:
            found[stage] = event["steps"]
    return found


def weights(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    """What a run ships: each tensor by its file and its name."""
    files = (folder / "model").rglob("*.safetensors")
    return {(str(f.relative_to(folder)), name): w for f in files for name, w in load_file(f).items()}


@pytest.fixture(
    scope="module",
    params=[pytest.param(p, id=p.stem, marks=pytest.mark.xdist_group(p.stem)) for p in NOTEBOOKS],  # one worker each
)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp(request.param.stem)
    record = run(request.param, folder, kernel={})  # as a reader runs it: what loading prints shows
    return request.param, folder, record


@pytest.mark.model
class TestSmoke:
    def test_record_and_files(self, ran: Ran) -> None:
        path, folder, record = ran
        assert record.recipe == path.stem
        assert record.profile == "smoke"
        assert json.loads((folder / "status.json").read_text())["status"] == "ok"
        if record.resources.parameters.trainable:
            assert list((folder / "model").rglob("*.safetensors"))
            assert (folder / "model" / "README.md").read_text().startswith("# ")
            assert record.resources.tokens > 0
        else:
            assert not (folder / "model").exists() and record.resources.tokens == 0
        assert record.resources.peak_memory_bytes.measured > 0

    def test_executed_notebook_is_quiet(self, ran: Ran) -> None:
        notebook = nbformat.read(ran[1] / "executed.ipynb", as_version=4)
        outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        noise = [o.text[:300] for o in outputs if o.output_type == "stream" and o.name == "stderr"]
        assert not noise
        assert not publish.machine_paths(notebook)

    def test_same_seed_same_numbers(self, ran: Ran, tmp_path: Path) -> None:
        """In a second run, killed in its last training and begun again: from its checkpoints to the same end.

        Its kernels are warm, and so have another order of sets than the first run's. A notebook without checkpoints
        of its own is run again over what its first run left.
        """
        path, folder, record = ran
        again = tmp_path / folder.name
        if "SAVE_STEPS" in recipes.declared(path):
            steps = trainings(folder)
            last = list(steps)[-1]
            cut_off(path, again, lambda stage, step: stage == last and step > steps[last] // 2, SAVE_STEPS=1)
            assert list((again / "checkpoints").rglob("checkpoint-*"))
            second = run(path, again, SAVE_STEPS=1)
            executed = (again / "executed.ipynb").read_text(encoding="utf-8")
            assert executed.count("resumed from checkpoint-") == len(steps), "none of them begins anew"
            assert not (again / "checkpoints").exists() and not second.resources.stopped
        else:
            shutil.copytree(folder, again)
            for trained in ("arms", "model"):  # of 19: what it compares is trained again
                shutil.rmtree(again / trained, ignore_errors=True)
            second = run(path, again)
        assert numbers(second) == numbers(record)
        expected, found = weights(folder), weights(again)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
