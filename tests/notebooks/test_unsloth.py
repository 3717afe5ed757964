"""Notebook 01 with Unsloth beneath it, where that is installed (`make unsloth`): it learns the same."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from cookbook import batch, results

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth has an environment of its own"),
    pytest.mark.xdist_group("unsloth"),
]


@pytest.fixture(scope="module", params=[True, False], ids=["NF4", "bf16 or fp32"])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    notebook, folders = batch.find("01"), {}
    for engine in ("unsloth", "hf"):
        folders[engine] = tmp_path_factory.mktemp(engine)
        given = {"PROFILE": "smoke", "ENGINE": engine, "QUANTIZE": request.param}
        status = batch.run_one(notebook, folders[engine], batch.check_parameters(notebook, given), timeout=900)
        assert status.status == "ok", f"{status.error} (cell {status.cell})"
    return folders


def test_it_learns_what_the_plain_libraries_learn(ran: dict[str, Path]) -> None:
    found = {engine: results.read(folder) for engine, folder in ran.items()}
    losses = {engine: record.details["validation_loss"] for engine, record in found.items()}
    assert losses["unsloth"][-1] < losses["unsloth"][0]
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
