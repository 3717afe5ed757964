"""What `cookbook doctor` looks at: whether this machine can run the recipes, and what to fix if not."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from cookbook import assets, profiles, project, results

MEMORY_BYTES = 4_000_000_000  # what the cpu profile may take


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is empty if all is well, else what to do."""

    name: str
    text: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Every finding, the slow ones (torch) last. Nothing is fetched."""
    yield from _python()
    yield _kernel()
    yield from _machine()
    yield from _assets()
    yield _profiles()
    yield from _torch()


def _python() -> Iterator[Finding]:
    wanted, required = project.required()
    version = platform.python_version()
    yield Finding("python", version, "" if version in wanted else f"install Python {wanted}")
    wrong, there = [], []
    for requirement in required:
        if not (found := project.installed(requirement.name)):
            wrong.append(f"{requirement} (missing)")
            continue
        there.append(f"{requirement.name} {found}")
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement} (there is {found})")
    clone = (project.ROOT / "pyproject.toml").is_file()
    install = 'pip install -e "."' if clone else "pip install -r requirements.txt"  # of a copied recipe
    fix = f"{install}: {'; '.join(wrong)}" if wrong else ""
    yield Finding("packages", ", ".join(there) or "no requirements found to compare with", fix)


def _kernel() -> Finding:
    """Whether the kernel called python3 exists, and is this Python."""
    try:
        import ipykernel
        from jupyter_client.kernelspec import KernelSpecManager

        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except Exception as error:  # a missing package, no such kernel, a damaged kernel.json
        fix = f"{sys.executable} -m pip install ipykernel"
        return Finding("kernel", f"none ({type(error).__name__}: {error})", fix)
    named = Path(command).name.startswith("python") and not Path(command).is_absolute()
    if named or Path(command).resolve() == Path(sys.executable).resolve():
        return Finding("kernel", f"python3, ipykernel {ipykernel.__version__}")
    fix = f"the kernel python3 is another Python: {sys.executable} -m ipykernel install --sys-prefix"
    return Finding("kernel", command, fix)


def _machine() -> Iterator[Finding]:
    cores = results.cores()
    memory = psutil.virtual_memory()
    text = f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free"
    need = f"profile cpu takes up to {MEMORY_BYTES / 1e9:.0f} GB: end other programs, or use smoke"
    yield Finding("cores", str(cores))
    yield Finding("memory", text, need if memory.available < MEMORY_BYTES else "")


def _assets() -> Iterator[Finding]:
    cache = assets.cache_dir()
    there = next((folder for folder in (cache, *cache.parents) if folder.is_dir()), Path("/"))
    free, missing = shutil.disk_usage(there).free, []
    for name in assets.ASSETS:
        if not (cache / name / assets.MANIFEST).is_file():
            missing.append(name)
    need = sum(assets.ASSETS[name].disk for name in missing)
    fix = ""
    if free < need:
        fix = f"models need {need / 1e9:.1f} GB: free some, or set COOKBOOK_CACHE to a folder on a larger disk"
    elif not os.access(there, os.W_OK):
        fix = f"{there} cannot be written: set COOKBOOK_CACHE to a folder that can"
    yield Finding("cache", f"{cache}, {free / 1e9:.1f} GB free", fix)
    state = {name: "fetched at first use" if name in missing else "ready" for name in assets.ASSETS}
    yield Finding("models", ", ".join(f"{name}: {text}" for name, text in state.items()))


def _profiles() -> Finding:
    try:
        return Finding("profiles", ", ".join(profiles.available()))
    except profiles.ProfileError as error:
        return Finding("profiles", "cannot be read", str(error))


def _torch() -> Iterator[Finding]:
    try:
        import torch

        from cookbook import models
    except Exception as error:  # a broken build raises OSError and others as well
        yield Finding("torch", f"{type(error).__name__}: {error}", "reinstall torch and transformers")
        return
    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else "none: profile auto is cpu"
    memory = f", {torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB" if cuda else ""
    yield Finding("cuda", name + memory)
    dtype, speed = models.choose_dtype("cuda" if cuda else "cpu")
    text = f"fp32 {speed['fp32_gflops']:.0f}, bf16 {speed['bf16_gflops']:.0f} GFLOP/s"
    yield Finding("dtype", f"{str(dtype).removeprefix('torch.')} ({text})")
