"""Profiles: what a machine can do, as data. `smoke` tests, `cpu` learns on a laptop, `gpu` uses CUDA."""

from __future__ import annotations

import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cookbook.allocator import cuda

SHIPPED = Path(__file__).with_suffix(".toml")
VARIABLE = "COOKBOOK_PROFILES"  # a TOML file of the user's: rows there add to ours, or override fields of ours


class ProfileError(ValueError):
    """No such profile, a faulty row, or one that this machine cannot run; the message says what to do."""


class Profile(BaseModel):
    """One row of `profiles.toml`. Row counts: 0 means all. `batch_size` is sequences an optimiser step."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    model: str = Field(min_length=1)  # an asset of ours, a Hub id or a folder
    max_length: int = Field(ge=16)
    batch_size: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)
    epochs: float = Field(gt=0)
    train_rows: int = Field(default=0, ge=0)
    validation_rows: int = Field(default=0, ge=0)
    test_rows: int = Field(default=0, ge=0)
    probe_items: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(ge=1)
    speech_model: str = Field(default="whisper-tiny-en", min_length=1)
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _whole_steps(self) -> Profile:
        if self.batch_size % self.micro_batch_size:
            text = f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            raise ValueError(text)
        return self


def available() -> dict[str, Profile]:
    """All profiles by name: ours, then the user's.

    Raises:
        ProfileError: a file that cannot be read, or a row with a missing, unknown or mistyped field.
    """
    mine = os.environ.get(VARIABLE, "")
    shipped = _read(SHIPPED)
    users = _read(Path(mine).expanduser()) if mine else {}
    rows = shipped | {name: shipped.get(name, {}) | row for name, row in users.items()}
    return {name: _row(name, row, Path(mine) if name in users else SHIPPED) for name, row in rows.items()}


def load(name: str = "auto") -> Profile:
    """The profile called `name`; "auto" is gpu where torch sees a CUDA device, otherwise cpu.

    Raises:
        ProfileError: unknown name, a faulty row, or a CUDA profile where torch sees no CUDA device.
    """
    known = available()
    if name == "auto":
        return known["gpu" if cuda() else "cpu"]
    if name not in known:
        near = get_close_matches(name.casefold(), known, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ProfileError(f"there is no profile {name!r}; {hint}known: auto, {', '.join(known)}")
    if known[name].device == "cuda" and not cuda():
        import torch

        raise ProfileError(
            f"profile {name!r} needs a CUDA GPU, and torch {torch.__version__} sees none: "
            "install a CUDA build of torch, or use cpu"
        )
    return known[name]


def _read(file: Path) -> dict[str, dict[str, Any]]:
    named = "" if file == SHIPPED else f" ({VARIABLE})"
    try:
        rows = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        why = getattr(error, "strerror", None) or error
        raise ProfileError(f"{file}{named}: the profiles cannot be read: {why}") from error
    for name, row in rows.items():
        if not isinstance(row, dict):
            raise ProfileError(f"{file}{named}: {name} stands outside a profile; write [name] above its fields")
    if "auto" in rows:
        raise ProfileError(f"{file}{named}: [auto] is taken: it chooses between gpu and cpu; use another name")
    return rows


def _row(name: str, row: dict[str, Any], file: Path) -> Profile:
    try:
        return Profile(**{"name": name, **row})
    except ValidationError as error:
        problems = []
        for fault in error.errors(include_url=False):
            key = ".".join(map(str, fault["loc"]))
            text = f"{fault['msg']}, not {fault['input']!r}"
            if fault["type"] == "extra_forbidden":
                near = get_close_matches(key, Profile.model_fields, n=1)
                text = "no such field" + (f"; did you mean {near[0]}?" if near else "")
            elif fault["type"] == "missing":
                text = "is missing"
            elif not key:
                key, text = "steps", fault["msg"].removeprefix("Value error, ")
            problems.append(f"{file}: [{name}] {key}: {text}")
        raise ProfileError("\n".join(problems)) from error
