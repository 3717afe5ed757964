"""Notebook 05's trainer, read from its cells, against TRL's; the checks before the first step; log-probabilities."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import trl
from conftest import TEXTS, chat
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from test_resume import StopAt
from trl.trainer.utils import use_adapter

from cookbook import callbacks, checks, claims, fused, logprobs, models, plots, recipes, resume
from cookbook.ledger import Ledger

ANSWERS = ["Hello Anna, we ask the carrier.", "No.", "Sorry about the mug!", "Yes: tomorrow at noon"]
ROWS = [
    {
        "prompt": chat(t),
        "chosen": [{"role": "assistant", "content": a}],
        "rejected": [{"role": "assistant", "content": f"{a[::-1]} and so on" if i % 2 else a[: len(a) // 2][::-1]}],
    }
    for i, (t, a) in enumerate(zip(TEXTS, ANSWERS, strict=True))
]


def defined(loss: str, beta: float, tail: float, policy: Any, tokenizer: Any) -> dict[str, Any]:
    """What the notebook's cells define: `AnswerDPO` and `with_reference`."""
    cells = {cell.id: cell.source for cell in nbformat.read(recipes.find("05"), as_version=4).cells}
    names: dict[str, Any] = {"LOSS": loss, "BETA": beta, "TAIL": tail, "np": np, "Dataset": Dataset}
    names |= {"profile": SimpleNamespace(device="cpu"), "fused": fused, "torch": torch, "logprobs": logprobs}
    names |= {"policy": policy, "tokenizer": tokenizer}
    names["sft"] = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    exec("\n".join(cells[name] for name in ("loss", "pairs-rows", "answer-tokens", "dpo-trainer")), names)
    return names


def policy(folder: Path, adapter: str = "default") -> tuple[Any, Any]:
    """A tiny model whose adapter already differs from nothing, as after SFT."""
    model, tokenizer = models.load(str(folder), dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora, adapter_name=adapter)
    nudge(model, 0.02)
    return model, tokenizer


def nudge(model: Any, scale: float) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape) * scale)


def trainer(
    folder: Path,
    out: Path,
    loss: str = "sigmoid",
    beta: float = 0.1,
    weight: float = 0.0,
    tail: float = 1.0,
    **more: Any,
) -> Any:
    model, tokenizer = policy(folder)
    names = defined(loss, beta, tail, model, tokenizer)
    both = {"loss_type": [loss, "sft"], "loss_weights": [1.0, weight]} if weight else {"loss_type": [loss]}
    args = trl.DPOConfig(
        output_dir=str(out), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", beta=beta,
        ld_alpha=tail, per_device_train_batch_size=2, logging_steps=1, disable_tqdm=True,
        **both | {"num_train_epochs": 1} | more,
    )  # fmt: skip
    rows = names["with_reference"]([dict(row) for row in ROWS])
    return names["AnswerDPO"](model, args=args, train_dataset=rows, processing_class=tokenizer)


def all_rows(made: Any) -> dict[str, torch.Tensor]:
    return dict(made.data_collator(list(made.train_dataset)))


def step(made: Any, theirs: bool) -> tuple[float, torch.Tensor]:
    made.model.train().zero_grad()
    call = super(type(made), made).compute_loss if theirs else made.compute_loss
    loss = call(made.model, all_rows(made))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("tail", [1.0, 0.4, 0.0])
@pytest.mark.parametrize(("loss", "weight"), [("sigmoid", 0.0), ("sigmoid", 0.3), ("ipo", 0.0)])
def test_the_same_loss_and_gradients_as_trl(
    llama: Path, tmp_path: Path, loss: str, weight: float, tail: float
) -> None:
    made = trainer(llama, tmp_path, loss, 0.3, weight, tail)
    nudge(made.model, 0.05)  # away from the reference, where the loss depends on the tokens it looks at
    own, gradient = step(made, theirs=False)
    expected, theirs = step(made, theirs=True)
    assert own == pytest.approx(expected, rel=1e-4)
    assert torch.nn.functional.cosine_similarity(gradient, theirs, dim=0) > 0.9999
    assert gradient.norm() == pytest.approx(theirs.norm().item(), rel=1e-3)
    assert made._metrics["train"]["rewards/margins"][0] == pytest.approx(
        made._metrics["train"]["rewards/margins"][1], abs=1e-3
    )


@pytest.mark.parametrize(("loss", "expected"), [("sigmoid", np.log(2)), ("ipo", 25.0)])
def test_the_first_loss_is_known(llama: Path, tmp_path: Path, loss: str, expected: float) -> None:
    made = trainer(llama, tmp_path, loss)
    own, theirs = checks.same_loss(made, all_rows(made), noise=0.05)
    assert own != pytest.approx(expected, rel=1e-3), "the nudge shows that the tokens matter"
    first, _ = step(made, theirs=False)
    assert checks.first_loss(first, expected) < 1e-3


def test_a_wrong_mask_is_found(llama: Path, tmp_path: Path) -> None:
    made = trainer(llama, tmp_path)
    right = type(made).compute_loss

    class Wrong(type(made)):
        def compute_loss(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            mask = inputs["completion_mask"] * (inputs["completion_mask"].cumsum(1) > 4)  # without their start
            return right(self, model, inputs | {"completion_mask": mask}, *more, **named)

    made.__class__ = Wrong
    with pytest.raises(checks.CheckError, match="compute_loss gives"):
        checks.same_loss(made, all_rows(made), noise=0.05)


def test_a_lost_reference_is_found(llama: Path, tmp_path: Path) -> None:
    made = trainer(llama, tmp_path)
    rows = all_rows(made) | {"ref_chosen_logps": torch.zeros(4) - 50.0}
    with pytest.raises(checks.CheckError, match=r"first loss is .* and not 0\.6931"):
        checks.first_loss(float(made.compute_loss(made.model, rows)), np.log(2))


def test_policy_and_reference(llama: Path, tmp_path: Path) -> None:
    made = trainer(llama, tmp_path)
    moving, frozen = checks.policy_and_reference(made.model)
    assert moving == frozen == sum(p.numel() for p in made.model.parameters() if p.requires_grad) > 0
    nudge(made.model, 0.01)
    with pytest.raises(checks.CheckError, match="differs from the policy"):
        checks.policy_and_reference(made.model)


def test_an_adapter_of_another_name_has_no_copy(llama: Path) -> None:
    with pytest.raises(checks.CheckError, match=r"found \['mine'\]: name yours default"):
        checks.policy_and_reference(policy(llama, "mine")[0])
    with pytest.raises(checks.CheckError, match="found none"):
        checks.policy_and_reference(models.load(str(llama), dtype=torch.float32)[0])


def test_a_reference_that_would_train(llama: Path, tmp_path: Path) -> None:
    made = trainer(llama, tmp_path)
    for name, p in made.model.named_parameters():
        p.requires_grad_(".ref." in name or p.requires_grad)
    with pytest.raises(checks.CheckError, match="reference would be trained"):
        checks.policy_and_reference(made.model)


def test_training_moves_the_policy_and_not_the_reference(llama: Path, tmp_path: Path) -> None:
    made = trainer(llama, tmp_path / "out")
    before = {n: p.clone() for n, p in made.model.named_parameters() if ".ref." in n}
    live = callbacks.LiveRewards(Ledger(tmp_path), "Rewards")
    made.add_callback(live)
    made.args.learning_rate = 1e-2
    made.train()
    assert all(torch.equal(p, dict(made.model.named_parameters())[n]) for n, p in before.items())
    assert len(live.rewards["chosen"]) == len(live.rewards["margins"]) == len(live.train) == 2
    assert live.train[0][1] == pytest.approx(np.log(2), rel=0.01)
    prompts = [row["prompt"] for row in ROWS]
    with torch.no_grad():
        far = logprobs.divergence(
            made.model, lambda: use_adapter(made.model, "ref"), made.processing_class, prompts, ANSWERS
        )
    assert far > 1e-4


def test_a_resumed_training_ends_like_an_uninterrupted_one(llama: Path, tmp_path: Path) -> None:
    """Killed in the midst of it, and once more after its last step, which does not end a pass over the rows."""

    def made(folder: str) -> Any:
        several = {"num_train_epochs": 2.5, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2}
        torch.manual_seed(0)
        new = trainer(llama, tmp_path / folder, weight=1.0, **several)
        new.precompute_ref_logps = True  # as in the notebook: the stored numbers are the reference
        new.add_callback(callbacks.LiveRewards(Ledger(tmp_path), "Rewards"))
        return new

    def ended(new: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        new.train(resume_from_checkpoint=resume.checkpoint(new, {}))
        assert new.state.global_step == 5
        return {n: p.detach().clone() for n, p in new.model.named_parameters() if "lora" in n}, live(new).rewards

    def live(new: Any) -> callbacks.LiveRewards:
        return next(c for c in new.callback_handler.callbacks if isinstance(c, callbacks.LiveRewards))

    whole, rewards = ended(made("whole"))
    assert len(rewards["margins"]) == 5
    killed = made("stopped")
    killed.add_callback(StopAt(3))
    with pytest.raises(KeyboardInterrupt):
        killed.train(resume_from_checkpoint=resume.checkpoint(killed, {}))
    for last in (2, 5):
        resumed = made("stopped")
        assert str(resume.checkpoint(resumed, {})).endswith(f"checkpoint-{last}")
        weights, again = ended(resumed)
        assert weights.keys() == whole.keys() and all(torch.equal(weights[n], whole[n]) for n in whole)
        assert again == rewards


def test_log_probabilities_of_answers(llama: Path) -> None:
    model, tokenizer = policy(llama)
    prompts = [row["prompt"] for row in ROWS]
    found = logprobs.of_answers(model.train(), tokenizer, prompts, ANSWERS, batch_size=3)
    assert model.training
    for prompt, answer, tokens in zip(prompts, ANSWERS, found, strict=True):
        text = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
        asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        start = len(tokenizer(asked, add_special_tokens=False).input_ids)
        with torch.no_grad():
            logits = model.eval()(ids).logits.log_softmax(-1)[0, :-1]
        alone = logits.gather(1, ids[0, 1:, None])[start - 1 :, 0]
        assert tokens == pytest.approx(alone.numpy(), abs=1e-3)


def test_no_distance_to_oneself(llama: Path) -> None:
    model, tokenizer = policy(llama)
    model.add_adapter("ref", model.peft_config["default"])
    for name, p in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(p.data)
    prompts = [row["prompt"] for row in ROWS]

    def distance() -> float:
        return logprobs.divergence(model, lambda: use_adapter(model, "ref"), tokenizer, prompts, ANSWERS)

    assert distance() == pytest.approx(0, abs=1e-6)
    nudge(model, 0.05)
    assert distance() > 1e-3


def test_the_figure_and_the_claim() -> None:
    figure = plots.steps({"chosen": [(1, 0.0), (2, 1.0)], "rejected, validation": []}, title="a", ylabel="b", last=2)
    assert [line.get_label() for line in figure.axes[0].lines] == ["chosen"]
    claim = claims.preference_cost(
        pairs=260, seconds=200, peak_bytes=3_000_000_000, loss=[(1, 0.7), (2, 0.5), (3, 0.2)], method="SFT + DPO"
    )
    assert claim.verdict == claims.UNMEASURED and "260 pairs in 200 s" in claim.evidence
