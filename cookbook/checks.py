"""What must hold before training; each of these faults trains happily and ruins the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from cookbook.chat import Messages, render_prompt, token_ids

IGNORED = -100  # the label that carries no loss


class CheckError(RuntimeError):
    """Training now would spend time on a wrong setting: what is wrong and what to do."""


@dataclass(frozen=True)
class Supervision:
    """Share of tokens that carry loss, and the number of rows looked at."""

    share: float
    rows: int

    def __str__(self) -> str:
        return f"{self.share:.0%} of tokens carry loss, the end of the answer among them ({self.rows} rows)"


def supervision(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Supervision:
    """Loss falls on some tokens and not on all, and each row teaches the model to stop.

    Args:
        rows: tokenized rows with `input_ids` and `labels` (ignored labels are -100), as the trainer holds them.

    Raises:
        CheckError: no label anywhere, a label everywhere, or rows whose end-of-text token carries no loss.
    """
    supervised = [[t for t in row["labels"] if t != IGNORED] for row in rows]
    total, used = sum(len(row["labels"]) for row in rows), sum(len(s) for s in supervised)
    if used == 0:
        raise CheckError("no token carries loss (every label is -100): nothing would be learnt; check the mask")
    if used == total:
        raise CheckError("every token carries loss, prompts too; use prompt/completion rows or a mask")
    empty = sum(not s for s in supervised)
    if empty:
        raise CheckError(f"{empty} of {len(rows)} rows carry no loss at all: is max_length cutting the answers off?")
    endless = sum(tokenizer.eos_token_id not in s for s in supervised)
    if endless:
        raise CheckError(
            f"{endless} of {len(rows)} rows never show the model the end-of-text token {tokenizer.eos_token!r} "
            "as something to predict: its answers would not stop; check the template and max_length"
        )
    return Supervision(used / total, len(rows))


def same_template(
    rows: Sequence[dict[str, Any]], prompts: Sequence[Messages], tokenizer: PreTrainedTokenizerBase
) -> int:
    """Training and inference see the same prompt, token by token; returns the number of prompt tokens compared.

    Args:
        rows: tokenized training rows (`input_ids`, `labels`), in the order of `prompts`.

    Raises:
        CheckError: at the first token that differs, with both texts around it.
    """
    compared = 0
    inference = token_ids(tokenizer, [render_prompt(tokenizer, messages) for messages in prompts])
    for number, (row, asked) in enumerate(zip(rows, inference, strict=True)):
        start = next((i for i, t in enumerate(row["labels"]) if t != IGNORED), len(row["labels"]))
        trained = list(row["input_ids"][:start])
        compared += len(trained)
        if trained == asked:
            continue
        at = next((i for i, (a, b) in enumerate(zip(trained, asked, strict=False)) if a != b), None)
        at = min(len(trained), len(asked)) if at is None else at
        lo, hi = max(0, at - 5), at + 6
        raise CheckError(
            f"row {number}: the training prompt and the inference prompt differ at token {at}: trained on "
            f"{tokenizer.decode(trained[lo:hi])!r}, asked with {tokenizer.decode(asked[lo:hi])!r}"
        )
    return compared


def one_adapter(model: Any) -> tuple[int, int]:
    """The adapter is applied once and alone is trained; returns (trainable, total) parameter counts.

    Packed 4-bit weights count as the parameters they stand for.

    Raises:
        CheckError: no adapter, an adapter on an adapter, more than one active, or base weights that would train.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        raise CheckError("the model carries no adapter: wrap it with get_peft_model or pass peft_config")
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    nested = [n for n, m in layers if any(isinstance(x, BaseTunerLayer) for x in list(m.modules())[1:])]
    if nested or isinstance(model.get_base_model(), PeftModel) or len(model.peft_config) > 1:
        where = f" (first at {nested[0]})" if nested else f": {sorted(model.peft_config)}"
        raise CheckError(f"the adapter is applied more than once{where}; pass peft_config or a PeftModel, not both")
    own = tuple(name for layer in layers for name in layer[1].adapter_layer_names)
    stray = [n for n, p in model.named_parameters() if p.requires_grad and not any(o in n for o in own)]
    stray = [n for n in stray if "modules_to_save" not in n and not n.startswith("prompt_encoder.")]
    if stray:
        raise CheckError(f"{len(stray)} base weights would be trained beside the adapter, first {stray[0]}")
    trainable, total = model.get_nb_trainable_parameters()
    if not trainable:
        raise CheckError("no parameter is trainable: was the adapter loaded with is_trainable=False?")
    return trainable, total


def all_trained(model: Any) -> int:
    """Every weight is trained, and held in fp32; returns the number of parameters.

    Under bf16 autocast the fp32 weights are the master copy. A bf16 weight has 8 bits of precision and swallows
    any update smaller than about 1/256 of itself.

    Raises:
        CheckError: an adapter, frozen weights, or weights in a shorter type.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        raise CheckError("the model carries an adapter: its base weights would stay as they are")
    if frozen := [n for n, p in model.named_parameters() if not p.requires_grad]:
        raise CheckError(f"{len(frozen)} weights are frozen, first {frozen[0]}")
    if short := [n for n, p in model.named_parameters() if p.dtype != torch.float32]:
        raise CheckError(f"{len(short)} weights are not fp32, first {short[0]}: load with dtype=torch.float32")
    return sum(p.numel() for p in model.parameters())


def same_loss(
    trainer: Any, batch: dict[str, torch.Tensor], *, noise: float = 0.0, within: float = 0.01
) -> tuple[float, float]:
    """A trainer's own `compute_loss` gives what its parent class gives on the same batch, within 1 %.

    Returns both losses, in nats a token.

    Args:
        noise: standard deviation of what the trained weights are moved by meanwhile: while a policy still equals
            its reference, a preference loss is the same whatever tokens it looks at.

    Raises:
        CheckError: they differ.
    """
    trained = [p for p in trainer.model.parameters() if p.requires_grad] if noise else []
    with torch.no_grad(), _moved(trained, noise):
        own = float(trainer.compute_loss(trainer.model, dict(batch)))
        theirs = float(super(type(trainer), trainer).compute_loss(trainer.model, dict(batch)))
    if not abs(own - theirs) <= within * abs(theirs):
        raise CheckError(
            f"compute_loss gives {own:.4f} where {type(trainer).__base__.__name__} gives {theirs:.4f}: "
            "look at the shift by one position, the mask, and what the sum is divided by"
        )
    return own, theirs


def gradients_survive_evaluation(model: Any, batch: dict[str, torch.Tensor], *, least: float = 0.999) -> float:
    """Evaluating a quantized model must not change the gradients it gives afterwards.

    Compares the gradient of all trainable weights on `batch` (`input_ids`, `attention_mask`, `labels`, each
    of shape rows × tokens) before and after a forward in evaluation mode; returns their cosine similarity.
    An untrained LoRA has B = 0 and so no gradient in A: B alone would hide the fault in the first layers, so
    B is filled with small noise for the comparison and emptied again.

    Raises:
        CheckError: a cosine below `least`, or a gradient of zero.
    """
    trained, was_training = [(n, p) for n, p in model.named_parameters() if p.requires_grad], model.training
    with _moved([p for _, p in trained], 0.02):
        before = _gradient(model, batch, trained)
        model.eval()
        with torch.no_grad():
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        after = _gradient(model, batch, trained)
    model.train(was_training)
    if not before.norm() or not after.norm():
        raise CheckError("the gradient of the trainable weights is zero: nothing would be learnt")
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=0).item()
    if not cosine >= least:
        raise CheckError(
            f"gradients changed through an evaluation (cosine {cosine:.3f}): the quantized weights were repacked; "
            "set support_avx512bf16_for_cpu = False on every Linear4bit before the first forward"
        )
    return cosine


@contextmanager
def _moved(weights: Sequence[torch.Tensor], scale: float) -> Iterator[None]:
    """Inside this block the weights have normal noise of this standard deviation added, always the same."""
    kept, generator = [p.detach().clone() for p in weights], torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in weights:
            p.add_((torch.randn(p.shape, generator=generator) * scale).to(p.device, p.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(weights, kept, strict=True):
                p.copy_(old)


def _gradient(model: Any, batch: dict[str, torch.Tensor], trained: list[tuple[str, Any]]) -> torch.Tensor:
    model.train()
    model.zero_grad(set_to_none=True)
    with torch.random.fork_rng():  # the same dropout both times
        torch.manual_seed(0)
        model(**batch, use_cache=False).loss.backward()
    flat = torch.cat([p.grad.detach().double().flatten().cpu() for _, p in trained if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return flat


def policy_and_reference(model: Any) -> tuple[int, int]:
    """The policy starts where the reference stands; returns the number of trained and of frozen adapter weights.

    TRL copies the adapter `default` of a PEFT model to a frozen adapter `ref` before DPO. With an adapter of
    another name there is no copy, and the reference would be the base model, without what SFT taught.

    Raises:
        CheckError: no such copy, a copy that would train, or one that differs from the policy.
    """
    adapters = getattr(model, "peft_config", {})
    if set(adapters) != {"default", "ref"}:
        raise CheckError(
            f"expected the adapters default and ref, found {sorted(adapters) or 'none'}: name yours default"
        )
    weights = dict(model.named_parameters())
    policy = {n: p for n, p in weights.items() if ".default." in n}
    copies = {n: weights[n.replace(".default.", ".ref.")] for n in policy}
    if moving := [n for n, p in copies.items() if p.requires_grad]:
        raise CheckError(f"{len(moving)} weights of the reference would be trained, first {moving[0]}")
    if apart := [n for n, p in policy.items() if not torch.equal(p, copies[n].to(p.dtype))]:
        raise CheckError(f"the reference differs from the policy in {len(apart)} weights, first {apart[0]}")
    return sum(p.numel() for p in policy.values()), sum(p.numel() for p in copies.values())


def first_loss(loss: float, expected: float, *, within: float = 0.02) -> float:
    """A preference loss before the first step is known beforehand; returns how far `loss` is from it.

    Policy and reference are still one model, so every implicit reward is zero: the DPO loss is ln 2, IPO's is
    (1 / 2β)², KTO's is one half. `within` is a share of `expected` and leaves room for rounding.

    Raises:
        CheckError: another loss, so the reference is not the model that training starts from.
    """
    if not abs(loss - expected) <= within * expected:
        raise CheckError(
            f"the first loss is {loss:.4f} and not {expected:.4f}: policy and reference are not the same model; pass "
            "the reference, or precompute its log-probabilities, instead of letting it be loaded again by name"
        )
    return abs(loss - expected)
