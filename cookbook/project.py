"""What pyproject.toml says of the project: which packages it needs, in which ranges, and where it can be had."""

from __future__ import annotations

import importlib.metadata
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent  # the project, where the package is installed editable
PYTHON = ">=3.11"


def required() -> tuple[SpecifierSet, list[Requirement]]:
    """Python and the packages for this system, in the ranges of pyproject.toml, or else of the installed package."""
    project = _project()
    lines = project.get("dependencies", [])
    if not lines:
        for name in importlib.metadata.packages_distributions().get("cookbook", []):
            lines += importlib.metadata.requires(name) or []
    packages = [Requirement(line) for line in lines]
    here = [package for package in packages if not package.marker or package.marker.evaluate({"extra": ""})]
    return SpecifierSet(project.get("requires-python", PYTHON)), here


def installed(name: str) -> str:
    """The version of a package that is installed; empty if it is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def repository() -> str:
    """Address of the project's repository, without a slash at its end; empty if pyproject.toml names none."""
    return _project().get("urls", {}).get("Repository", "").rstrip("/").removesuffix(".git")


def _project() -> dict[str, Any]:
    with suppress(OSError):
        return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {}
