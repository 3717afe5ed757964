"""Which library makes the model and its adapter: transformers and PEFT (`hf`), or Unsloth."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

NAMES = ("hf", "unsloth")


class EngineError(ValueError):
    """No such engine, or it cannot work here; the message says what to do."""


def use(engine: str) -> None:
    """Call it before anything of transformers, PEFT or TRL is imported: Unsloth changes them as it is imported.

    Raises:
        EngineError: not one of `NAMES`, not installed, imported too late, or not able to run on this machine.
    """
    if engine not in NAMES:
        raise EngineError(f"ENGINE is {engine!r}; use {' or '.join(NAMES)}")
    if engine == "hf" or "unsloth" in sys.modules:
        return
    if find_spec("unsloth") is None:
        raise EngineError(
            "ENGINE is unsloth, which is not installed here. It needs older versions of this stack, so give it an "
            'environment of its own: pip install "fine-tuning-cookbook[unsloth]", or `make unsloth` in a clone; '
            "or use ENGINE hf"
        )
    if late := ", ".join(name for name in ("transformers", "peft", "trl") if name in sys.modules):
        raise EngineError(f"ENGINE is unsloth, but {late} came first: restart the kernel and run all cells")
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):  # it announces what it changes
            import unsloth  # noqa: F401
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise EngineError(
            f"ENGINE is unsloth, which cannot run here: {str(error).strip().splitlines()[0]} Without a GPU it trains "
            "from version 2026.10.9 on; or use ENGINE hf"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def load(folder: str, *, dtype: Any, device: str, max_length: int, four_bit: bool) -> Any:
    """A causal language model by Unsloth, ready for its `FastLanguageModel.get_peft_model`.

    Args:
        max_length: longest sequence in tokens; more than the model's own context would stretch its positions.
        four_bit: NF4 with double quantization.
    """
    from unsloth import FastLanguageModel

    with redirect_stdout(io.StringIO()):
        model, _ = FastLanguageModel.from_pretrained(
            folder,
            max_seq_length=max_length,
            dtype=dtype,
            load_in_4bit=four_bit,
            device_map={"": device},
            use_gradient_checkpointing=False,
        )
    return model
