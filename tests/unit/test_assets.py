"""Assets with planted faults: every one ends in a clean error or a clean folder, never in half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cookbook import assets
from cookbook.assets import Asset, AssetError

ROOT = Path(assets.__file__).parents[1]
CONTENT = b"weights " * 5000
TOY = {
    "name": "toy",
    "source": "made up",
    "licence": "MIT",
    "converter": "copy",
    "disk": 1000,
    "package": "toy-weights",
    "version": "1.0",
    "file": "toy_weights/toy.bin",
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
    "size": len(CONTENT),
}


def write_wheel(folder: Path, member: str = TOY["file"], content: bytes = CONTENT) -> Path:
    wheel = folder / "toy_weights-1.0-py3-none-any.whl"
    info = "toy_weights-1.0.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr("toy_weights/note.txt", "a note")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def copy(source: Path, out: Path) -> None:
    (out / "model.bin").write_bytes(source.read_bytes())


def first_bytes(folder: Path, out: Path, count: int) -> None:
    (out / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:count])


Converter = Callable[..., None]


@pytest.fixture
def use_converter(monkeypatch: pytest.MonkeyPatch) -> Callable[[Converter], None]:
    """Make `copy` of a stand-in for cookbook.convert (which would import torch) the given function."""

    def use(converter: Converter) -> None:
        stand_in = types.ModuleType("cookbook.convert")
        stand_in.copy, stand_in.first_bytes = converter, first_bytes
        monkeypatch.setitem(sys.modules, "cookbook.convert", stand_in)

    return use


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_converter: Callable) -> Iterator[Path]:
    """The toy asset in the table, its wheel in a folder, no network; yields the empty cache."""
    cache = tmp_path / "cache"
    write_wheel(tmp_path / "wheels")
    for name, value in {
        "COOKBOOK_CACHE": str(cache),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    part = {"name": "toy-part", "converter": "first_bytes", "parent": "toy", "options": {"count": 8}}
    table = [Asset(**TOY), Asset(source="toy", licence="MIT", disk=10, **part)]
    monkeypatch.setattr(assets, "ASSETS", {asset.name: asset for asset in table})
    use_converter(copy)
    yield cache


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def refuse(*args: object, **kwargs: object) -> None:
            raise AssertionError("pip was started")

        monkeypatch.setattr(assets.subprocess, "run", refuse)

    return forbid


def repin(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    monkeypatch.setitem(assets.ASSETS, "toy", Asset(**(TOY | changes)))


def assert_clean(cache: Path) -> None:
    """Nothing but lock files: no half state under any name."""
    assert not [entry for entry in cache.glob("*") if entry.suffix != ".lock"]


def test_first_use_fetches_and_says_so(toy: Path, capsys: pytest.CaptureFixture) -> None:
    folder = assets.path("toy")
    assert folder == toy / "toy"
    assert (folder / "model.bin").read_bytes() == CONTENT
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "toy-weights 1.0" in said and "once" in said
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["licence"] == "MIT" and manifest["recipe"]["sha256"] == TOY["sha256"]
    assert manifest["files"] == {"model.bin": {"size": len(CONTENT), "sha256": TOY["sha256"]}}
    assert sorted(entry.name for entry in toy.iterdir()) == ["toy", "toy.lock"]


def test_second_use_is_offline_unlocked_and_hashes_nothing(
    toy: Path, no_pip: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assets.path("toy")
    capsys.readouterr()
    no_pip()
    monkeypatch.setattr(assets, "_sha256", None)
    monkeypatch.setattr(assets, "FileLock", None)
    before = time.perf_counter()
    assert assets.path("toy") == toy / "toy"
    assert time.perf_counter() - before < 0.1
    assert capsys.readouterr().out == ""


def test_derived_asset_is_made_from_its_parent(toy: Path, no_pip: Callable) -> None:
    folder = assets.path("toy-part")
    assert (folder / "model.bin").read_bytes() == CONTENT[:8]
    assert (toy / "toy" / "model.bin").read_bytes() == CONTENT
    shutil.rmtree(folder)
    no_pip()
    assert assets.path("toy-part") == folder


def test_files_beside_the_main_file(toy: Path, monkeypatch: pytest.MonkeyPatch, use_converter: Callable) -> None:
    def both(source: Path, out: Path) -> None:
        (out / "model.bin").write_text((source.parent / "note.txt").read_text())

    repin(monkeypatch, beside={"toy_weights/note.txt": hashlib.sha256(b"a note").hexdigest()})
    use_converter(both)
    assert (assets.path("toy") / "model.bin").read_text() == "a note"
    repin(monkeypatch, beside={"toy_weights/note.txt": "0" * 64})
    with pytest.raises(AssetError, match=r"note\.txt .* expected sha256 0000"):
        assets.path("toy")


def test_new_pin_rebuilds(toy: Path, monkeypatch: pytest.MonkeyPatch, use_converter: Callable) -> None:
    assets.path("toy-part")
    use_converter(lambda source, out: (out / "model.bin").write_bytes(b"new"))
    repin(monkeypatch, revision=2)
    assert (assets.path("toy") / "model.bin").read_bytes() == b"new"
    assert (assets.path("toy-part") / "model.bin").read_bytes() == b"new", "made from the old parent"


def test_wrong_hash(toy: Path, tmp_path: Path) -> None:
    other = CONTENT[:-1] + b"!"
    write_wheel(tmp_path / "wheels", content=other)
    with pytest.raises(AssetError) as caught:
        assets.path("toy")
    assert TOY["sha256"] in str(caught.value)
    assert hashlib.sha256(other).hexdigest() in str(caught.value)
    assert_clean(toy)


def test_the_wheel_itself(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_converter: Callable
) -> None:
    wheel = next(tmp_path.rglob("toy_weights-1.0-*.whl"))
    whole = {"file": "", "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(), "kind": "corpus"}
    monkeypatch.setitem(assets.ASSETS, "toy", Asset(**TOY | whole))
    made = assets.path("toy") / "model.bin"
    assert zipfile.is_zipfile(made) and "toy" in assets.names("corpus") and "toy" not in assets.names("model")
    monkeypatch.setitem(assets.ASSETS, "toy", Asset(**TOY | whole | {"sha256": "0" * 64}))
    with pytest.raises(AssetError, match="toy_weights-1.0-py3-none-any.whl is not the file"):
        assets.path("toy")


def test_file_not_in_wheel(toy: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", member="toy_weights/renamed.bin")
    with pytest.raises(AssetError, match=r"holds no toy_weights/toy\.bin"):
        assets.path("toy")
    assert_clean(toy)


def test_damaged_wheel(toy: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "toy_weights-1.0-py3-none-any.whl"
    content = bytearray(wheel.read_bytes())
    start = content.index(TOY["file"].encode()) + len(TOY["file"])
    content[start + 5 : start + 25] = bytes(20)
    wheel.write_bytes(content)
    with pytest.raises(AssetError, match=r"toy_weights-1\.0.* is damaged"):
        assets.path("toy")
    assert_clean(toy)


def test_no_network(toy: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "wheels")
    with pytest.raises(AssetError) as caught:
        assets.path("toy")
    for part in ("toy-weights==1.0", "No matching distribution", "PIP_FIND_LINKS", "COOKBOOK_CACHE"):
        assert part in str(caught.value)
    assert_clean(toy)


def test_index_credentials_are_not_shown(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = b"Could not reach http://user:hunter2@index.example/simple\n"
    failed = subprocess.CompletedProcess([], 1, said, b"")
    monkeypatch.setattr(assets.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(AssetError, match="//\\*\\*\\*@index") as caught:
        assets.path("toy")
    assert "hunter2" not in str(caught.value)


def test_no_pip(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    monkeypatch.setattr(assets.sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(AssetError, match=r"has no pip: run .*ensurepip"):
        assets.path("toy")
    assert_clean(toy)


def test_truncated_file_is_rebuilt(toy: Path) -> None:
    file = assets.path("toy") / "model.bin"
    file.write_bytes(CONTENT[:100])
    assert (assets.path("toy") / "model.bin").read_bytes() == CONTENT
    file.unlink()
    assert (assets.path("toy") / "model.bin").read_bytes() == CONTENT
    assert not list(toy.glob(".toy.*"))


@pytest.mark.parametrize("manifest", ["", "{", "[]", "null", '{"recipe": 1}'])
def test_broken_manifest_is_rebuilt(toy: Path, manifest: str) -> None:
    (assets.path("toy") / "manifest.json").write_text(manifest)
    assets.path("toy")
    assert "files" in json.loads((toy / "toy" / "manifest.json").read_text())


def test_verify_finds_a_changed_byte(toy: Path, no_pip: Callable) -> None:
    file = assets.path("toy") / "model.bin"
    file.write_bytes(b"W" + CONTENT[1:])
    assets.path("toy")
    assert file.read_bytes() != CONTENT, "same size: not seen without verify"
    assert (assets.path("toy", verify=True) / "model.bin").read_bytes() == CONTENT
    no_pip()
    assets.path("toy", verify=True)


def test_failing_converter(toy: Path, use_converter: Callable) -> None:
    def fail(source: Path, out: Path) -> None:
        copy(source, out)
        raise ValueError("odd tensor")

    use_converter(fail)
    with pytest.raises(AssetError, match="could not be made by copy: ValueError: odd tensor"):
        assets.path("toy")
    assert_clean(toy)


def test_failed_rebuild_keeps_nothing_loadable(toy: Path, tmp_path: Path) -> None:
    (assets.path("toy") / "model.bin").write_bytes(b"short")
    shutil.rmtree(tmp_path / "wheels")
    for _ in range(2):
        with pytest.raises(AssetError, match="pip could not fetch"):
            assets.path("toy")
    assert not list(toy.glob(".toy.*"))


def test_disk_checked_beforehand(toy: Path, monkeypatch: pytest.MonkeyPatch, no_pip: Callable) -> None:
    usage = shutil.disk_usage(toy.parent)._replace(free=999)
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda folder: usage)
    no_pip()
    with pytest.raises(AssetError, match=r"Not enough disk space .* COOKBOOK_CACHE"):
        assets.path("toy")
    assert_clean(toy)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left on device")],
)
def test_disk_full_on_the_way(toy: Path, use_converter: Callable, error: Exception) -> None:
    def fill(source: Path, out: Path) -> None:
        copy(source, out)
        raise error

    use_converter(fill)
    with pytest.raises(AssetError, match="Not enough disk space"):
        assets.path("toy")
    assert_clean(toy)


@pytest.fixture
def tiny_disk(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real filesystem of 256 KiB as the cache, where this user may mount one."""
    toy.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(toy)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield toy
    subprocess.run(["umount", str(toy)], check=True)


@pytest.mark.parametrize("full_at", ["pip", "extract", "convert"])
def test_really_full_disk(
    tiny_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_converter: Callable, full_at: str
) -> None:
    content = os.urandom(200_000) if full_at == "pip" else bytes(300_000 if full_at == "extract" else 1000)
    write_wheel(tmp_path / "wheels", content=content)
    repin(monkeypatch, sha256=hashlib.sha256(content).hexdigest())

    def save(source: Path, out: Path) -> None:
        import torch
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(1_000_000)}, out / "model.safetensors")

    use_converter(save)
    with pytest.raises(AssetError, match="Not enough disk space"):
        assets.path("toy")
    assert_clean(tiny_disk)


def test_unwritable_cache(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match=r"cannot be kept in .* Set COOKBOOK_CACHE to a folder"):
        assets.path("toy")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_read_only_cache(tiny_disk: Path) -> None:
    remount = ["mount", "-o", "remount,ro", str(tiny_disk)]
    folder = assets.path("toy")
    subprocess.run(remount, check=True)
    assert assets.path("toy") == folder, "a ready asset needs no write access"
    with pytest.raises(AssetError, match=r"Read-only file system.* Set COOKBOOK_CACHE"):
        assets.path("toy-part")


def test_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(AssetError, match=r"smollm-135m-instruct.*Did you mean smollm2-135m-instruct"):
        assets.path("smollm-135m-instruct")
    with pytest.raises(AssetError, match=r"Known assets: .*smollm2-135m-instruct-smoke"):
        assets.path("zzz")


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COOKBOOK_CACHE", "~/elsewhere")
    assert assets.cache_dir() == Path.home() / "elsewhere"
    monkeypatch.setenv("COOKBOOK_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert assets.cache_dir() == tmp_path / "cookbook"


CHILD = """
    import json, os, sys, time, types
    from pathlib import Path
    from cookbook import assets

    def copy(source, out):
        (out / "model.bin").write_bytes(source.read_bytes()[:100])
        with open(sys.argv[1], "a") as log:
            log.write(f"{os.getpid()}\\n")
        time.sleep(float(sys.argv[2]))
        (out / "model.bin").write_bytes(source.read_bytes())

    stand_in = types.ModuleType("cookbook.convert")
    stand_in.copy = copy
    sys.modules["cookbook.convert"] = stand_in
    assets.ASSETS["toy"] = assets.Asset(**json.loads(sys.argv[3]))
    print(assets.path("toy"))
"""


def start_child(log: Path, seconds: float) -> subprocess.Popen[str]:
    """A process of its own that asks for the toy; its converter logs and then takes this long."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(log), str(seconds), json.dumps(TOY)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], child: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and child.poll() is None, "the child did not get that far"
        time.sleep(0.02)


def test_two_processes_fetch_once(toy: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    children = [start_child(log, seconds=1.5) for _ in range(2)]
    said = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert all(text.splitlines()[-1] == str(toy / "toy") for text in said)
    assert len(log.read_text().splitlines()) == 1, "converted twice"
    assert sorted("Fetching" in text for text in said) == [False, True]
    assert (toy / "toy" / "model.bin").read_bytes() == CONTENT


def test_kill_in_the_middle_then_clean_load(toy: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = start_child(log, seconds=600)
    try:
        wait_for(log.exists, child)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=30)
    assert not (toy / "toy").exists()
    assert len(list(toy.glob(".toy.*/out/model.bin"))) == 1, "half of it lies in the temporary folder"
    assert (assets.path("toy") / "model.bin").read_bytes() == CONTENT
    assert not list(toy.glob(".toy.*")), "swept"


def test_waiting_process_takes_over_from_a_killed_one(toy: Path, tmp_path: Path) -> None:
    first = start_child(tmp_path / "first", seconds=600)
    try:
        wait_for((tmp_path / "first").exists, first)
        second = start_child(tmp_path / "second", seconds=0)
        time.sleep(0.5)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=30)
    second.communicate(timeout=60)
    assert second.returncode == 0
    assert (toy / "toy" / "model.bin").read_bytes() == CONTENT


def test_table_is_consistent() -> None:
    for name, asset in assets.ASSETS.items():
        assert asset.name == name and asset.licence and asset.source
        assert asset.kind in ("model", "embedder", "speech", "corpus", "recordings")
        if asset.parent:
            assert asset.parent in assets.ASSETS and not asset.package
        else:
            assert len(asset.sha256) == 64 and asset.size and asset.disk > 2 * asset.size


@pytest.mark.model
@pytest.mark.parametrize("name", sorted(assets.ASSETS))
def test_real_assets_are_whole(name: str) -> None:
    folder = assets.path(name, verify=True)
    if assets.ASSETS[name].kind == "model":
        assert (folder / "model.safetensors").stat().st_size > 1e8
    before = time.perf_counter()
    assets.path(name)
    assert time.perf_counter() - before < 0.5
