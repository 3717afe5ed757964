"""One run of a notebook at the cpu profile for all assertions of a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cookbook import batch, results


@pytest.fixture(scope="module")
def run_at_cpu(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., results.Results]:
    """Run a recipe at the cpu profile and return its record; stages are printed as they end."""

    def tell(event: dict[str, Any]) -> None:
        if event.get("event") == "end":
            print(f"  {event['stage']}: {event['seconds']:.0f} s", flush=True)

    def run(recipe: str, **given: object) -> results.Results:
        notebook, folder = batch.find(recipe), tmp_path_factory.mktemp(f"recipe{recipe}")
        parameters = batch.check_parameters(notebook, {"PROFILE": "cpu", **given})
        status = batch.run_one(notebook, folder, parameters, timeout=3000, progress=tell)
        assert status.status == "ok", status.error
        return results.read(folder)

    return run
