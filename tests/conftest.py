"""Test workers share the cores: threads beyond them wait for each other, which once made a run ten times slower."""

from __future__ import annotations

import os

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:  # kernels started by tests inherit it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
