"""Gradual unfreezing and discriminative learning rates (Howard and Ruder 2018, ULMFiT, sections 3.2 and 3.3)."""

from __future__ import annotations

import itertools
from typing import Any

from torch.nn import Module, ModuleList, Parameter
from transformers import PreTrainedModel, TrainerCallback

DECAY = 2.6  # of the learning rate from one group to the one below it, as in the paper


def layer_groups(model: PreTrainedModel, count: int) -> list[list[Parameter]]:
    """The model's parameters in `count` groups, from the top (next to the output) to the bottom.

    The blocks are dealt out evenly. What comes after them (the final norm, a head of its own) belongs to the top
    group; the input embeddings, and a head tied to them, to the bottom group.

    Raises:
        ValueError: fewer blocks than groups, or no group at all.
    """
    blocks = _blocks(model)
    if not 1 <= count <= len(blocks):
        raise ValueError(f"count is {count}: give 1 to {len(blocks)}, the number of blocks")
    cuts = [round(i * len(blocks) / count) for i in range(count + 1)]
    parts = [blocks[low:high] for low, high in itertools.pairwise(cuts)]
    groups = [[p for block in part for p in block.parameters()] for part in parts]
    placed = {id(p) for group in groups for p in group}
    bottom = {id(p) for p in model.get_input_embeddings().parameters()}
    for parameter in model.parameters():
        if id(parameter) not in placed:
            groups[0 if id(parameter) in bottom else -1].append(parameter)
    return groups[::-1]


def open_groups(progress: float, count: int, until: float = 0.5) -> int:
    """How many of `count` groups train at `progress` (0 to 1): one at first, all from `until` on, evenly between."""
    return count if progress >= until else min(count, 1 + int(progress / until * count))


class GradualUnfreezing(TrainerCallback):
    """Frees the groups of `layer_groups` from the top downwards while training goes on.

    Args:
        until: the share of the steps after which everything trains.
    """

    def __init__(self, groups: list[list[Parameter]], until: float = 0.5) -> None:
        self.groups, self.until = groups, until
        self._free(1)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._free(open_groups(state.global_step / state.max_steps, len(self.groups), self.until))

    def _free(self, count: int) -> None:
        for number, group in enumerate(self.groups):
            for parameter in group:
                parameter.requires_grad_(number < count)


def freeze_lower(model: PreTrainedModel, share: float = 0.5) -> int:
    """Freeze the input embeddings and the lower `share` of the blocks; returns how many blocks are frozen."""
    blocks = _blocks(model)
    count = round(share * len(blocks))
    for module in (model.get_input_embeddings(), *blocks[:count]):
        module.requires_grad_(False)
    return count


def _blocks(model: PreTrainedModel) -> list[Module]:
    """The transformer blocks: the longest module list of the model."""
    return list(max((m for m in model.modules() if isinstance(m, ModuleList)), key=len))
