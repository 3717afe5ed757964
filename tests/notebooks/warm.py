"""Kernels that begin with their libraries loaded: one process loads them, and every kernel is forked from it.

What a notebook imports takes seven seconds of a processor, and the tests run some fifty. A test that looks at what
loading does, such as what it prints, uses a kernel of its own, as a reader does.

`environment()` makes Papermill's kernel a client of that process: `python warm.py SOCKET -f CONNECTION_FILE` hands
over its streams and its environment, passes signals on, and ends with the kernel. When the client ends, so does its
kernel.
"""

from __future__ import annotations

import ast
import atexit
import functools
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODELS = "llama", "gpt2", "qwen2", "whisper"  # transformers loads these when it meets them
INLINE = "module://matplotlib_inline.backend_inline"  # ipykernel sets it too late for a matplotlib that is loaded


@functools.cache
def environment() -> dict[str, str]:
    """Variables that give a run's kernel loaded libraries; none where a process cannot be forked with care."""
    if not sys.platform.startswith("linux"):
        return {}
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    address, spec = f"{folder.name}/socket", Path(folder.name, "kernels", "python3", "kernel.json")
    argv = [sys.executable, "-I", "-S", __file__, address, "-f", "{connection_file}"]
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}), encoding="utf-8")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        server = subprocess.Popen(
            [sys.executable, __file__, "serve", str(listener.fileno())],
            stdin=subprocess.PIPE,  # its end tells the server that the tests have ended
            pass_fds=[listener.fileno()],
            env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": INLINE},
        )
    atexit.register(folder.cleanup)
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    return {"JUPYTER_PATH": folder.name}


def serve(listener: socket.socket) -> None:
    """Load what the notebooks import, then fork a kernel for every client, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then end this process
    load()
    waiting: dict[int, tuple[socket.socket, int]] = {}  # by the kernel's process: its client, its handle
    with selectors.DefaultSelector() as events:
        events.register(0, selectors.EVENT_READ, None)
        events.register(listener, selectors.EVENT_READ, None)
        while True:
            for key, _ in events.select():
                if key.fileobj == 0:
                    for pid in waiting:
                        os.kill(pid, signal.SIGKILL)
                    return
                if key.fileobj is listener:
                    client = listener.accept()[0]
                    pid = forked(client)
                    waiting[pid] = client, os.pidfd_open(pid)
                    for end in waiting[pid]:
                        events.register(end, selectors.EVENT_READ, pid)
                elif (pid := key.data) in waiting:
                    client, handle = waiting.pop(pid)
                    for end in (client, handle):
                        events.unregister(end)
                    os.close(handle)
                    ended(pid, client, killed=key.fileobj is client)


def forked(client: socket.socket) -> int:
    """The process of a new kernel, of which its client is told."""
    message, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
    pid = os.fork()
    if pid == 0:
        try:
            become(json.loads(message), streams)
        finally:
            os._exit(1)
    for stream in streams:
        os.close(stream)
    tell(client, pid)
    return pid


def ended(pid: int, client: socket.socket, *, killed: bool) -> None:
    """End a kernel whose client was killed, or tell the client how its kernel ended."""
    if killed:
        os.kill(pid, signal.SIGKILL)
    tell(client, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    client.close()


def tell(client: socket.socket, number: int) -> None:
    with suppress(OSError):  # it may be gone, which its end tells
        client.sendall(f"{number}\n".encode())


def load() -> None:
    """Import what the code cells import, and the models' own code; no computation, so that no thread has begun."""
    warnings.simplefilter("ignore")
    quiet = warnings.filters[0]  # what loading says is for the kernels that load by themselves
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"]) if cell["cell_type"] == "code" else ""
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import | ast.ImportFrom) and "unsloth" not in ast.unparse(node):
                    with suppress(ImportError):
                        exec(ast.unparse(node), {})
    models = [f"transformers.models.{name}.modeling_{name}" for name in MODELS]
    for module in ("transformers.models.auto.modeling_auto", *models, "ipykernel.kernelapp"):
        importlib.import_module(module)
    warnings.filters.remove(quiet)


def become(asked: dict[str, Any], streams: list[int]) -> None:
    """In the new process: the kernel that the client was asked to be."""
    import numpy as np
    from ipykernel.kernelapp import launch_new_instance

    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["environment"], JPY_PARENT_PID=str(os.getppid()))
    os.chdir(asked["folder"])
    np.random.seed()  # each its own, as if it had been loaded here
    sys.argv = ["ipykernel_launcher", *asked["words"]]
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]
    launch_new_instance()
    sys.stdout.flush()
    os._exit(0)


def join(address: str, *words: str) -> None:
    """The client: be the kernel for those who started it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        asked = {"environment": dict(os.environ), "folder": os.getcwd(), "words": words}
        socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
        answers = server.makefile()
        pid = int(answers.readline())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda got, _: os.kill(pid, got))
        sys.exit(abs(int(answers.readline() or 1)))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(socket.socket(fileno=int(sys.argv[2])))
    else:
        join(*sys.argv[1:])
