"""Bottleneck adapters (Houlsby et al. 2019, Pfeiffer et al. 2021), which PEFT lacks: after each feed-forward part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

HOST = "bottlenecks"  # where each block's feed-forward part keeps its adapters
FILE = "adapter_model.safetensors"  # in a folder for each adapter, as PEFT has it
Active = str | list[str | None] | dict[str, torch.Tensor] | None


class Bottleneck(nn.Module):
    """x -> up(gelu(down(x))), from `hidden` to `size` and back; zero at the start, so that nothing changes."""

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(hidden, size), nn.Linear(size, hidden)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(nn.functional.gelu(self.down(x)))


class Bottlenecks:
    """Named bottleneck adapters on one frozen model, one after the feed-forward part of every block.

    `set_adapter` says which of them answers: one for the whole batch, one for each row, a blend, or none. With
    none, a forward is that of the untouched model, bit for bit. `unload` takes everything off again. The methods
    are called like those of a `peft.PeftModel` that do the same.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.active: Active = None
        model.requires_grad_(False)
        self.hosts = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] == "mlp"]
        if not self.hosts:
            raise ValueError("this model has no feed-forward parts called `mlp`")
        self._hooks = []
        for host in self.hosts:
            host.add_module(HOST, nn.ModuleDict())
            self._hooks.append(host.register_forward_hook(self._change))

    @property
    def names(self) -> list[str]:
        """The adapters there are."""
        return list(getattr(self.hosts[0], HOST))

    def add(self, name: str, size: int) -> None:
        """Add an adapter of bottleneck `size`, in fp32; it alone is trained from now on, and used."""
        hidden = self.model.config.get_text_config().hidden_size
        for host in self.hosts:
            getattr(host, HOST)[name] = Bottleneck(hidden, size).to(self.model.device)
        self.train(name)

    def train(self, name: str) -> None:
        """Make one adapter the trained one, and use it."""
        for host in self.hosts:
            for other, adapter in getattr(host, HOST).items():
                adapter.requires_grad_(other == name)
        self.set_adapter(name)

    def set_adapter(self, name: str | None | Sequence[str | None] | Mapping[str, torch.Tensor]) -> None:
        """The adapter of the next forwards: one name, one for each row of the batch, or None for none.

        A mapping blends adapters: each one's output counts as much as its weight says, a number a row.

        Raises:
            KeyError: an adapter that is not there.
        """
        asked = [name] if name is None or isinstance(name, str) else list(name)
        if unknown := {n for n in asked if n is not None} - set(self.names):
            raise KeyError(f"no adapter {', '.join(sorted(unknown))}; there are {', '.join(self.names) or 'none'}")
        if name is None or isinstance(name, str):
            self.active = name
        else:
            self.active = dict(name) if isinstance(name, Mapping) else asked

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The weights of one adapter."""
        return [p for host in self.hosts for p in getattr(host, HOST)[name].parameters()]

    def save(self, name: str, folder: Path) -> None:
        """Write one adapter as safetensors into `folder`/`name`; its tensors are numbered by block."""
        adapters = [getattr(host, HOST)[name] for host in self.hosts]
        tensors = {f"{i}.{k}": v.contiguous() for i, a in enumerate(adapters) for k, v in a.state_dict().items()}
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name / FILE)

    def load_adapter(self, folder: Path | str, adapter_name: str) -> None:
        """Read an adapter from the folder in which `save` left it, under any name, and use it; not for training."""
        tensors = load_file(Path(folder) / FILE)
        self.add(adapter_name, len(tensors["0.down.bias"]))
        for i, host in enumerate(self.hosts):
            own = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.split(".", 1)[0] == str(i)}
            getattr(host, HOST)[adapter_name].load_state_dict(own)
        for parameter in self.parameters(adapter_name):
            parameter.requires_grad_(False)

    def delete_adapter(self, name: str) -> None:
        """Forget one adapter."""
        for host in self.hosts:
            del getattr(host, HOST)[name]
        self.active = None

    def unload(self) -> None:
        """Take all adapters and hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        for host in self.hosts:
            delattr(host, HOST)

    def _change(self, host: nn.Module, _: Any, out: torch.Tensor) -> torch.Tensor:
        adapters = getattr(host, HOST)
        if self.active is None:
            return out
        if isinstance(self.active, str):
            return out + _apply(adapters[self.active], out)
        if isinstance(self.active, dict):
            parts = [w.to(out)[:, None, None] * _apply(adapters[n], out) for n, w in self.active.items()]
            return out + sum(parts)
        changed = out.clone()
        for name in {n for n in self.active if n is not None}:
            rows = [i for i, n in enumerate(self.active) if n == name]
            changed[rows] += _apply(adapters[name], out[rows])
        return changed


def _apply(adapter: Bottleneck, x: torch.Tensor) -> torch.Tensor:
    return adapter(x.to(adapter.down.weight.dtype)).to(x.dtype)
