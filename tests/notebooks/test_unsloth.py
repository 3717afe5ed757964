"""Notebooks 01 and 05 with Unsloth beneath them, where that is installed (`make unsloth`): they learn the same."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

from cookbook import batch, results

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth has an environment of its own"),
    pytest.mark.xdist_group("unsloth"),
]
CASES = {
    "01 on NF4": ("01", {"QUANTIZE": True}),
    "01 on bf16 or fp32": ("01", {"QUANTIZE": False}),
    "05": ("05", {}),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    recipe, given = request.param
    notebook, folders = batch.find(recipe), {}
    for engine in ("unsloth", "hf"):
        folders[engine] = tmp_path_factory.mktemp(engine)
        asked: dict[str, Any] = {"PROFILE": "smoke", "ENGINE": engine, **given}
        status = batch.run_one(notebook, folders[engine], batch.check_parameters(notebook, asked), timeout=900)
        assert status.status == "ok", f"{status.error} (cell {status.cell})"
    return folders


def test_it_learns_what_the_plain_libraries_learn(ran: dict[str, Path]) -> None:
    found = {engine: results.read(folder) for engine, folder in ran.items()}
    losses = {engine: np.array(record.details["validation_loss"]) for engine, record in found.items()}
    begin, end = (losses["unsloth"][place].ravel()[-1] for place in (0, -1))  # 05 has steps beside its losses
    assert end < begin
    assert losses["unsloth"] == pytest.approx(losses["hf"], rel=0.02)
    trained = {record.resources.parameters.trainable for record in found.values()}
    assert len(trained) == 1


def test_plain_libraries_read_its_adapter(ran: dict[str, Path]) -> None:
    record = results.read(ran["unsloth"])
    assert record.parameters["ENGINE"] == "unsloth"
    assert record.details["parity_reloaded"] >= 0.98


def test_it_prints_nothing_of_its_own(ran: dict[str, Path]) -> None:
    notebook = nbformat.read(ran["unsloth"] / "executed.ipynb", as_version=4)
    printed = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream"]
    assert [o.text for o in printed if o.name == "stderr" or "Unsloth" in o.text] == []
