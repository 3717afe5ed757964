"""Where the model is that MODEL names, and what is wrong if it cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from cookbook import assets


class ModelError(ValueError):
    """A model that cannot be had or does not fit: what is wrong and what to do."""


def resolve(model: str, kind: str = "model") -> str:
    """A bundled asset's name (of this kind), a local folder or a Hub id → what `from_pretrained` takes.

    Raises:
        ModelError: a path that does not exist or holds no model.
    """
    if model in assets.names(kind):
        return str(assets.path(model))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"MODEL {model}: no config.json in this folder; give a folder saved by save_pretrained")
        return str(folder)
    if model.count("/") == 1 and not model.startswith((".", "~", "/")):
        return model
    raise ModelError(
        f"MODEL {model!r} is no folder here, no bundled model ({', '.join(assets.names(kind))}) "
        "and no Hub id (owner/name)"
    )


@contextmanager
def explained(model: str, kind: str = "model") -> Iterator[None]:
    """Turns the many errors of a model that cannot be had into one sentence."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"MODEL {model} cannot be loaded: {first} Give a folder, a bundled model "
            f"({', '.join(assets.names(kind))}), "
            "or a Hub id while online (HF_TOKEN in the environment if it is gated)"
        ) from error
