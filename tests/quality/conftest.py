"""One run of a notebook at the cpu profile for all assertions of a module."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from cookbook import batch, results


@pytest.fixture(scope="module")
def run_at_cpu(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., results.Results]:
    """Run a recipe at the cpu profile and return its record; workers tell on stderr which stages ended."""

    def tell(recipe: str, event: dict[str, Any]) -> None:
        if event.get("event") == "end":
            print(f"  {recipe} {event['stage']}: {event['seconds']:.0f} s", file=sys.stderr, flush=True)

    def run(recipe: str, **given: object) -> results.Results:
        notebook, folder = batch.find(recipe), tmp_path_factory.mktemp(f"recipe{recipe}")
        parameters = batch.check_parameters(notebook, {"PROFILE": "cpu", **given})
        status = batch.run_one(notebook, folder, parameters, timeout=3000, progress=partial(tell, recipe))
        assert status.status == "ok", status.error
        return results.read(folder)

    return run
