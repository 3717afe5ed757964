"""Memory of this process: how much it holds, what is freed and kept for the next step, when it goes back."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
MMAP_BYTES = 1 << 30  # only larger blocks are mapped, and unmapped, by themselves
USUAL_BYTES = 32 << 20  # the same, as far as glibc raises it by itself
NEVER = -1
RELEASE_EVERY = 8  # steps
GROWN = 1.5  # times what a first step held
_keeps = False


def memory_in_use() -> int:
    """Bytes held at this moment: allocated on a GPU, resident on a CPU."""
    gpu = cuda()
    return gpu.memory_allocated() if gpu else psutil.Process().memory_info().rss


def cuda() -> Any:
    """`torch.cuda` where there is a GPU, else None."""
    import torch

    return torch.cuda if torch.cuda.is_available() else None


def release_memory(*, collect: bool = True) -> None:
    """Return to the system what is free now: between stages, so that one's peak is not the next one's floor.

    Args:
        collect: run Python's garbage collector first, some tenths of a second with this stack loaded.
    """
    if collect:
        gc.collect()
    if _glibc():
        ctypes.CDLL(None).malloc_trim(0)


def keep_memory() -> bool:
    """Let blocks inside `kept` keep freed memory for the next step; whether that is possible.

    Large tensors are otherwise mapped anew in every step, and the system clears each page at its first touch. Only
    glibc can be told so.
    """
    global _keeps
    _keeps = _glibc() and _limits(USUAL_BYTES, 2 * USUAL_BYTES)
    return _keeps


@contextmanager
def kept() -> Iterator[None]:
    """Freed memory stays with the process, if `keep_memory` has been called.

    After the block, where sizes differ from batch to batch and what is kept would be holes, memory is given back as
    before.
    """
    if not _keeps:
        yield
        return
    _limits(MMAP_BYTES, NEVER)
    try:
        yield
    finally:
        _limits(USUAL_BYTES, 2 * USUAL_BYTES)
        release_memory()


class Returns:
    """Gives free memory back to the system while a model trains, when it is time.

    Batches of many lengths leave holes in a CPU's memory that add up to gigabytes, so what is free is given back:
    every few steps, but with `keep_memory`, where the next steps would have it cleared anew, only once it has grown.
    """

    def __init__(self) -> None:
        self._held = 0  # bytes after the first step since the last return

    def after(self, step: int) -> None:
        """To be called after each step of training."""
        if not _keeps:
            due = step % RELEASE_EVERY == 0
        else:
            held = memory_in_use()
            self._held = self._held or held
            due = held > GROWN * self._held
        if due:
            release_memory(collect=False)
            self._held = 0


def _glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _limits(mapped: int, trimmed: int) -> bool:
    """From how many bytes on glibc maps a block by itself, and gives back the free end of its heap."""
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, mapped) and libc.mallopt(M_TRIM_THRESHOLD, trimmed))
