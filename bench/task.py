"""The one training that every arm does: base model, rows, LoRA shape, optimizer, steps, seed.

It is prepared once, as JSON, and needs nothing of this project to be read: arms run in environments of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "bench"
MODEL, DATA = "smollm2-135m-instruct", "customer_service"
IGNORED = -100  # label of a token that carries no loss


@dataclass(frozen=True)
class Row:
    """A question and its answer: as messages, as text through the chat template, as tokens.

    The last `supervised` of the tokens are the answer's, and carry loss.
    """

    prompt: list[dict[str, str]]
    completion: list[dict[str, str]]
    rendered: dict[str, str]  # prompt and completion
    input_ids: list[int]
    supervised: int

    @property
    def labels(self) -> list[int]:
        asked = len(self.input_ids) - self.supervised
        return [IGNORED] * asked + self.input_ids[asked:]

    @property
    def messages(self) -> dict[str, list[dict[str, str]]]:
        """The row in TRL's conversational form."""
        return {"prompt": self.prompt, "completion": self.completion}


@dataclass(frozen=True)
class Task:
    """What is learnt, and how; the optimizer is AdamW with torch's betas, no decay, gradients clipped to 1.

    The learning rate is a cosine from `learning_rate` to 0 after `warmup_steps`, as transformers draws it.
    """

    model: str  # folder
    dtype: str  # that the measurement chose: bfloat16 or float32
    train: list[Row]
    validation: list[Row]
    lora_rank: int = 16
    lora_alpha: int = 32
    learning_rate: float = 2e-3
    batch_size: int = 8  # rows an optimizer step
    steps: int = 12  # one epoch
    warmup_steps: int = 1
    max_length: int = 512
    validate_every: int = 3  # steps
    seed: int = 0
    threads: int = field(default_factory=lambda: threads())

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over all but where the model lies."""
        content = asdict(self) | {"model": Path(self.model).name}
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def tokens(self) -> int:
        """Real tokens of one epoch."""
        return sum(len(row.input_ids) for row in self.train)

    @property
    def supervised(self) -> int:
        """Tokens of one epoch that carry loss."""
        return sum(row.supervised for row in self.train)

    def same_rows(self, rows: Iterable[dict[str, Any]]) -> None:
        """Raises ValueError unless `rows` (`input_ids` and `labels`) are the training rows, in any order."""
        found = sorted((list(row["input_ids"]), list(row["labels"])) for row in rows)
        if found != sorted((row.input_ids, row.labels) for row in self.train):
            raise ValueError("this trainer would learn other tokens than the task has")

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1), encoding="utf-8")
        return path


def python(environment: str) -> str | None:
    """The interpreter of an environment of this project, by its folder; None where it has not been made."""
    found = ROOT / environment / "bin" / "python"
    return str(found) if found.is_file() else None


def read(path: Path | str) -> Task:
    fields = json.loads(Path(path).read_text(encoding="utf-8"))
    rows = {split: [Row(**row) for row in fields[split]] for split in ("train", "validation")}
    return Task(**fields | rows)


def threads() -> int:
    """Physical cores that this process may use."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)


def row(tokenizer: Any, messages: dict[str, list[dict[str, str]]]) -> Row:
    """Messages in TRL's form, with their text and tokens."""
    from cookbook.chat import render_full, render_prompt, token_ids

    asked = render_prompt(tokenizer, messages["prompt"])
    whole = render_full(tokenizer, messages["prompt"], messages["completion"][0]["content"])
    rendered = {"prompt": asked, "completion": whole.removeprefix(asked)}
    first, answer, ids = token_ids(tokenizer, [asked, rendered["completion"], whole])
    if first + answer != ids:
        raise ValueError(f"prompt and answer share a token: {asked[-20:]!r} {rendered['completion'][:20]!r}")
    return Row(**messages, rendered=rendered, input_ids=ids, supervised=len(answer))


def prepare(path: Path, *, train: int = 96, validation: int = 32) -> Task:
    """Convert the model, choose the dtype by measurement, pick the rows (never the test's), write all that."""
    from cookbook import data, models

    models.quiet()
    tokenizer = models.load_tokenizer(MODEL)
    splits = data.load(data.sample(DATA, ROOT))
    rows = {
        "train": [row(tokenizer, r) for r in data.rows(data.spread(splits.train, train))],
        "validation": [row(tokenizer, r) for r in data.rows(data.spread(splits.validation, validation))],
    }
    dtype, _ = models.choose_dtype("cpu")
    task = Task(model=models.resolve(MODEL), dtype=str(dtype).removeprefix("torch."), **rows)
    task.write(path)
    return task
