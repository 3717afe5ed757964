"""Colab and Kaggle: install what they lack, leave numpy and torch as they are, and say in words what does not fit.

Every notebook's setup cell (`opening.setup`) calls `prepare`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from cookbook import project

# The command line's, and those that the notebook's own server and kernel consist of: not touched, not judged.
SERVER = frozenset(
    ["ipykernel", "ipython", "ipywidgets", "jupyter-client", "jupyterlab", "nbclient", "nbformat", "papermill"]
)
KEPT = ("numpy", "torch", "torchaudio", "torchvision", "triton")  # built for each other and for the machine's driver
RESTART = "restart the session and run the notebook from the top"


def prepare() -> None:
    """On Colab and Kaggle: install the missing packages, print all versions, and what is wrong with them.

    Elsewhere nothing happens.

    Raises:
        RuntimeError: pip could not install them; the message has what it said.
    """
    if "google.colab" not in sys.modules and "KAGGLE_KERNEL_RUN_TYPE" not in os.environ:
        return
    _, required = project.required()
    wanted = [requirement for requirement in required if requirement.name not in SERVER]
    if missing := [requirement for requirement in wanted if not project.installed(requirement.name)]:
        print("installing", *missing, flush=True)
        _install(missing)
    for requirement in wanted:
        print(f"{requirement.name:<14} {project.installed(requirement.name):<16} {requirement.specifier}")
    for sentence in faults(wanted):
        print(f"\n{sentence}")


def faults(required: Iterable[Requirement]) -> list[str]:
    """A sentence on each package whose version is out of range or is not the one that is loaded: what to do."""
    said = []
    for requirement in required:
        name, version = requirement.name, project.installed(requirement.name)
        loaded = str(getattr(sys.modules.get(name), "__version__", version))
        if version and not requirement.specifier.contains(version, prereleases=True):
            lower = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
            old = any(Version(version) < end for end in lower)
            cure = f"run %pip install '{requirement}', then {RESTART}"
            if name in KEPT:
                cure = (
                    f"it comes with this machine and is not replaced: choose a {'newer' if old else 'older'} runtime"
                )
            kind = "too old" if old else "newer than what was tried"
            said.append(f"{name} {version} is {kind} (this project: {requirement.specifier}): {cure}.")
        elif version and Version(loaded).public != Version(version).public:
            said.append(f"{name} {loaded} is loaded, but {version} is installed: {RESTART}.")
    return said


def _install(missing: list[Requirement]) -> None:
    with tempfile.TemporaryDirectory() as work:
        kept = Path(work, "kept.txt")
        kept.write_text("".join(f"{name}=={project.installed(name)}\n" for name in KEPT if project.installed(name)))
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-input", "-c", str(kept), *map(str, missing)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    importlib.invalidate_caches()
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise RuntimeError(f"{', '.join(map(str, missing))}: pip could not install them. It said:\n{said}")
