"""A sweep on a real Ray cluster of two nodes on this machine, one of which is killed in mid-sweep."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from test_batch import WRITE, make

from cookbook import launching, sweep
from cookbook.sweepfile import Sweep

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(os.name != "posix", reason="Ray's test cluster needs POSIX"),
]
NODE = "import time\nopen('attempts', 'a').write('x')\ntime.sleep(3)"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(launching.__file__).parents[1])]))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def in_flight(plan: sweep.Plan) -> list[sweep.Run]:
    """Runs whose notebook has begun and not ended."""
    return [r for r in plan.runs if (r.folder / "attempts").exists() and not (r.folder / "status.json").exists()]


def test_all_runs_finish_although_a_node_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    notebook = make(tmp_path / "tiny.ipynb", NODE, WRITE)
    wanted = sweep.plan(Sweep(recipe=str(notebook), seeds=5), tmp_path / "out")
    ended: list[tuple[sweep.Run, Any]] = []
    killed = threading.Event()

    def kill() -> None:
        """Kill one node while a run is in flight on each."""
        while len(in_flight(wanted)) < 2:
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        killed.set()

    def tell(run: sweep.Run, event: dict[str, Any]) -> None:
        if event["kind"] == "end":
            ended.append((run, event["status"]))

    threading.Thread(target=kill, daemon=True).start()
    launching.run(wanted, engine="ray", tell=tell)
    assert killed.is_set()
    assert {run.folder for run, _ in ended} == {run.folder for run in wanted.runs}
    assert [status.status for _, status in ended] == ["ok"] * 5
    attempts = [len((run.folder / "attempts").read_text()) for run in wanted.runs]
    assert sum(attempts) == 6, attempts  # the lost run was begun again
    assert not sweep.plan(Sweep(recipe=str(notebook), seeds=5), tmp_path / "out").to_do
