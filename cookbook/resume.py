"""Training that was stopped goes on from its last checkpoint, if it is the very same training."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from cookbook import results

KEY = "training.json"  # beside the checkpoints: what they are checkpoints of
PLACES = ("output_dir", "logging_dir", "run_name", "hub_model_id", "hub_token", "push_to_hub_token")
WHOLE = ("trainer_state.json", "optimizer.pt", "scheduler.pt")  # the last files of a checkpoint


def checkpoint(trainer: Trainer, parameters: Mapping[str, Any], rows: Iterable[Any] | None = None) -> str | None:
    """What to give to `trainer.train(resume_from_checkpoint=…)`: the last checkpoint in its `output_dir`, or None.

    Only a checkpoint of the same training counts: the same parameters of the notebook, arguments of the trainer,
    adapter configuration, trained weights (names and shapes) and rows. Others are removed, so a changed recipe
    begins anew. Nothing is resumed where the arguments save no checkpoints.

    Args:
        rows: what tells the training rows apart, in their order, where reading them would be slow or draw at random;
            None: the rows themselves.
    """
    folder = Path(trainer.args.output_dir)
    key = _key(trainer, parameters, trainer.train_dataset if rows is None else rows)
    same = (folder / KEY).is_file() and json.loads((folder / KEY).read_text(encoding="utf-8")) == key
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
    if str(trainer.args.save_strategy.value) == "no":
        return None
    for half in folder.glob("checkpoint-*"):  # left by a kill in the midst of saving
        if not all((half / name).is_file() for name in WHOLE):
            shutil.rmtree(half)
    folder.mkdir(parents=True, exist_ok=True)
    results.write_json(folder / KEY, key)
    found = get_last_checkpoint(str(folder))
    if found:
        # The evaluation at the start is done; the one at the end of a pass comes after that pass's checkpoint.
        state = json.loads((Path(found) / "trainer_state.json").read_text(encoding="utf-8"))
        at_end = abs(state["epoch"] - round(state["epoch"])) < 1e-6
        if at_end:  # the next pass has its own seed; a kill can come before the callback that removes this
            for file in Path(found).glob("rng_state*.pth"):
                file.unlink()
        trainer.args.eval_on_start = at_end and trainer.args.eval_strategy.value == "epoch"
        if state["global_step"] >= state["max_steps"]:  # in the midst of a pass the library would take a step more
            trainer._run_epoch = lambda **_: None
        print(f"resumed from {Path(found).name}")
    return found


def _key(trainer: Trainer, parameters: Mapping[str, Any], rows: Iterable[Any]) -> dict[str, Any]:
    model = trainer.model
    arguments = {k: v for k, v in trainer.args.to_dict().items() if k not in PLACES}
    adapters = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
    trained = [(name, list(weight.shape)) for name, weight in model.named_parameters() if weight.requires_grad]
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=_plain).encode())
    key = {
        "parameters": dict(parameters),
        "arguments": arguments,
        "adapters": adapters,
        "trained": trained,
        "rows": digest.hexdigest(),
        "versions": results.versions(),
    }
    return json.loads(json.dumps(key, sort_keys=True, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(map(str, value))
    return value.tolist() if hasattr(value, "tolist") else str(value)
