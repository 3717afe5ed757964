"""A stop button that is seen while a cell computes, and the notebook's own interrupt to the same end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import ipywidgets
from IPython import get_ipython


class StopButton:
    """A wish to stop that a busy kernel notices; within `with StopButton() as stop:` ask for `stop.pressed`.

    While a cell computes, no widget's callback runs: the click waits in the kernel's queue behind the cell. So the
    messages are looked at where they arrive, on the kernel's shell channel, and passed on unchanged. That needs
    ipykernel (6 or 7). The notebook's interrupt (the square button of JupyterLab and Colab) does the same everywhere;
    once a stop is wished for, a further interrupt raises KeyboardInterrupt as always.

    Attributes:
        button: the widget to display.
    """

    def __init__(self, text: str = "Stop after this step") -> None:
        self.button = ipywidgets.Button(description=text, layout={"width": "16em"})
        self.button.on_click(lambda _: self._wanted.set())  # where the kernel runs callbacks meanwhile
        self._wanted = threading.Event()
        self._untap: Callable[[], None] | None = None
        self._look: Callable[[], object] = lambda: None
        self._interrupt: Any = None

    @property
    def pressed(self) -> bool:
        """Whether a stop was wished for since the block began."""
        self._look()
        return self._wanted.is_set()

    def say(self, text: str) -> None:
        """Write on the button how it ended; it cannot be pressed any more."""
        self.button.description, self.button.disabled = text, True

    def __enter__(self) -> StopButton:
        self._wanted.clear()
        kernel = getattr(get_ipython(), "kernel", None)
        stream = getattr(kernel, "shell_stream", None)
        inner = getattr(stream, "_recv_callback", None)
        if inner is not None:
            self._tap(kernel, stream, inner)
        if threading.current_thread() is threading.main_thread():
            self._interrupt = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *_: object) -> None:
        if self._interrupt is not None:
            signal.signal(signal.SIGINT, self._interrupt)
            self._interrupt = None
        if self._untap:
            self._untap()
            self._untap, self._look = None, lambda: None

    def _tap(self, kernel: Any, stream: Any, inner: Callable[[Any], Any]) -> None:
        def seen(frames: Any) -> Any:
            if self._is_click(kernel.session, frames):
                self._wanted.set()
            return inner(frames)

        if getattr(kernel, "shell_channel_thread", None):  # ipykernel 7 reads its messages in a thread of their own
            change = partial(stream.io_loop.add_callback, stream.on_recv)
        else:  # in ipykernel 6 this very thread reads them, when it is told to
            change, self._look = stream.on_recv, partial(stream.flush, 1)  # 1: zmq.POLLIN
        change(seen, copy=False)
        self._untap = partial(change, inner, copy=False)

    def _is_click(self, session: Any, frames: Any) -> bool:
        try:
            _, parts = session.feed_identities(frames, copy=False)
            message = session.deserialize(parts, content=False, copy=False)  # without the content: only a look
            if message["header"]["msg_type"] != "comm_msg":
                return False
            content = session.unpack(message["content"])
            told = content["data"].get("content")
        except (AttributeError, KeyError, TypeError, ValueError):  # no message for us; the kernel says what is wrong
            return False
        return content["comm_id"] == self.button.model_id and told == {"event": "click"}

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._wanted.is_set():
            raise KeyboardInterrupt
        self._wanted.set()
