"""What a model's head, its output embeddings, is given to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


@contextmanager
def head_reads(model: PreTrainedModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside this block the head (the output embeddings) reads `change(hidden)`, hidden being (rows, tokens, size).

    To score few positions, select them. When only the last ones are scored, copy them (`torch.Tensor.contiguous`):
    given a slice and frozen weights, torch multiplies with a copy of the whole head for each row, which is gigabytes.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, hidden: (change(hidden[0]),))
    try:
        yield
    finally:
        hook.remove()
