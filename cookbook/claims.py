"""Sentences from the literature, each with the verdict that this run's numbers give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from cookbook import memory, results
from cookbook.evaluation import Score, forgetting, interval
from cookbook.forgetting import ProbeResult

UNMEASURED = "not measured in this run"
QUANTIZED = "QLoRA trains a little slower than LoRA, with a small loss of quality in some cases"


def fewer_parameters(trainable: int, total: int, rank: int) -> results.Claim:
    """C1, by arithmetic and by this model's own counts."""
    one, full = rank * (4096 + 4096), 4096 * 4096
    here = total / trainable
    return results.Claim(
        claim="LoRA trains about 100 times fewer parameters (r=16 on 4096 x 4096: 131K instead of 16.7M)",
        verdict="holds" if here >= 90 else "holds in part",
        evidence=f"r={rank} on 4096 x 4096: {one:,} instead of {full:,}, 1 in {full / one:.0f}. On this model, all "
        f"linear layers: {trainable:,} of {total:,}, 1 in {here:.0f}; narrow layers gain less, as r(m+n)/mn says",
    )


def nf4_memory(model: Any) -> results.Claim:
    """C3, measured on the linear layers of `model` and worked out for a 70B model (None: no 4-bit model)."""
    claim = "4-bit NF4 takes a 70B model from 140 GB to 35 GB"
    if model is None:
        return results.Claim(claim=claim, verdict=UNMEASURED, evidence="QUANTIZE was off")
    import bitsandbytes

    packed = weights = 0
    for layer in model.modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            state = layer.weight.quant_state
            weights += int(np.prod(state.shape))
            packed += layer.weight.numel() * layer.weight.element_size() + state.absmax.numel()
            packed += 4 * state.state2.absmax.numel() if state.nested else 3 * state.absmax.numel()
    if not weights:
        return results.Claim(claim=claim, verdict=UNMEASURED, evidence="the model has no 4-bit layers")
    bits = 8 * packed / weights
    embeddings = 2 * 128_256 * 8_192  # Llama-3-70B: input and output embeddings stay in 16 bits
    large = (70.6e9 - embeddings) * memory.NF4_BYTES + embeddings * 2
    return results.Claim(
        claim=claim,
        verdict="holds in part",
        evidence=f"linear layers here take {bits:.2f} bits a weight, scales included, so {16 / bits:.1f} times less "
        "than 16. Embeddings stay in 16 bits: "
        f"a Llama-3-70B comes to {large / 1e9:.0f} GB, not 35, before any activation",
    )


def quantized_cost(
    quantized: Sequence[float], plain: Sequence[float], quantized_loss: Sequence[float], plain_loss: Sequence[float]
) -> results.Claim:
    """C5 from the same steps of two runs: seconds a step and loss a step, NF4 against unquantized.

    The first step, which warms up, is left out of the speed. Empty sequences: not measured.
    """
    n = min(len(quantized), len(plain))
    if n < 3:
        return results.Claim(
            claim=QUANTIZED, verdict=UNMEASURED, evidence="fewer than three steps were timed in both"
        )
    ratio = float(np.median(np.asarray(quantized[1:n]) / np.asarray(plain[1:n])))
    old, new = np.asarray(plain_loss[:n]), np.asarray(quantized_loss[:n])
    low, high = interval(Score(float(old.mean()), old), Score(float(new.mean()), new))
    slower, costlier = ratio > 1.02, low > 0
    verdict = "holds" if slower and ratio < 1.5 else "holds in part" if slower or costlier else "does not hold here"
    evidence = (
        f"over the same {n} steps NF4 takes {ratio:.2f} times the seconds of the unquantized base (median); its "
        f"training loss differs by {(new - old).mean():+.3f} nats a token, 95 % interval [{low:+.3f}, {high:+.3f}]"
    )
    return results.Claim(claim=QUANTIZED, verdict=verdict, evidence=evidence)


def learning_curve(curve: Mapping[int, Mapping[str, float]], headline: str) -> results.Claim:
    """C12 from scores over the number of training rows."""
    claim = "fewer than 100 examples overfit; 100 to 500 suffice for format"
    small = [n for n in curve if n < 100]
    enough = [n for n in curve if 100 <= n <= 500]
    if not small or not enough:
        return results.Claim(claim=claim, verdict=UNMEASURED, evidence="LEARNING_CURVE was off")
    gap = {n: point["validation loss"] - point["training loss"] for n, point in curve.items()}
    shape = {n: point.get("valid_json", point[headline]) for n, point in curve.items()}
    overfit, format_kept = gap[min(small)] > gap[max(curve)] + 0.1, shape[max(enough)] >= 0.95
    verdict = (
        "holds" if overfit and format_kept else "holds in part" if overfit or format_kept else "does not hold here"
    )
    parts = [
        f"{n} rows: form {shape[n]:.2f}, {headline} {p[headline]:.2f}, loss gap {gap[n]:+.2f}"
        for n, p in curve.items()
    ]
    return results.Claim(claim=claim, verdict=verdict, evidence="; ".join(parts) + " (validation rows)")


def wrong_template(change: results.Metric, name: str) -> results.Claim:
    """C14 from the headline metric under the right and under another template."""
    return results.Claim(
        claim="a prompt format at inference that differs from training degrades the answers",
        verdict="holds" if change.verdict == "worse" else "does not hold here",
        evidence=f"{name} {change.before:.3f} with the training template, {change.after:.3f} with plain role names; "
        f"change {change.change:+.3f}, 95 % interval [{change.ci95[0]:+.3f}, {change.ci95[1]:+.3f}], n={change.n}",
    )


def full_memory(predicted: int, measured: int, parameters: int) -> results.Claim:
    """C2 by arithmetic for 70B parameters, and predicted against measured (bytes) for this model's `parameters`."""
    billions = 70
    parts = {"bf16 weights": 2, "bf16 gradients": 2, "two fp32 Adam moments": 8}
    total = billions * sum(parts.values())
    listed = ", ".join(f"{name} {billions * width} GB" for name, width in parts.items())
    return results.Claim(
        claim="full fine-tuning of a 70B model needs 280 GB for gradients and optimizer state",
        verdict="does not hold here",
        evidence=f"{listed}: gradients and state are {billions * 10} GB, with the weights {total} GB; fp32 master "
        f"weights add {billions * 4} GB, before any activation. The same arithmetic for this model's "
        f"{parameters / 1e6:.0f} M parameters, activations included, predicts {predicted / 1e9:.1f} GB; measured "
        f"{measured / 1e9:.1f} GB",
    )


def early_stopping(validation: Sequence[tuple[int, float]]) -> results.Claim:
    """C13 from (step, validation loss) of one run that was allowed to go on."""
    claim = "more epochs are not better: stop when validation loss rises"
    if len(validation) < 3:
        return results.Claim(claim=claim, verdict=UNMEASURED, evidence="too few evaluations")
    best, last = min(validation, key=lambda point: point[1]), validation[-1]
    rose = last[1] > best[1] + 0.01
    how = f"rose to {last[1]:.3f} at step {last[0]}" if rose else f"was still {last[1]:.3f} at step {last[0]}"
    evidence = f"validation loss {validation[0][1]:.3f} before, lowest {best[1]:.3f} at step {best[0]}; it {how}"
    return results.Claim(claim=claim, verdict="holds" if rose else "does not hold here", evidence=evidence)


def leaky_split(gaps: Mapping[str, tuple[float, float, float]]) -> results.Claim:
    """C15 from the gap (change, and its interval) of scores on a random split's test rows over new families' rows.

    Of "perplexity" less is better, of every other score more.
    """
    claim = "leakage inflates scores"
    if not gaps:
        return results.Claim(claim=claim, verdict=UNMEASURED, evidence="there was no random split to compare with")
    inflated = [high < 0 if name == "perplexity" else low > 0 for name, (_, low, high) in gaps.items()]
    verdict = "holds" if all(inflated) else "holds in part" if any(inflated) else "does not hold here"
    parts = [f"{n} {change:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}]" for n, (change, low, high) in gaps.items()]
    evidence = f"one model, rows of a random split against rows of families never seen: {'; '.join(parts)}"
    return results.Claim(claim=claim, verdict=verdict, evidence=evidence)


def forgets_less(claim: str, full: ProbeResult, others: Mapping[str, ProbeResult], *, seed: int = 0) -> results.Claim:
    """C20 and C22 from the forgetting probes of other ways to train, each against full fine-tuning item by item."""
    if not others:
        return results.Claim(claim=claim, verdict=UNMEASURED, evidence="the other arms were not trained (ARMS)")
    found, parts = [], []
    for name, probe in others.items():
        changes = forgetting(full, probe, seed=seed)
        better, worse = ([c.probe for c in changes if c.verdict == v] for v in ("improved", "worse"))
        found.append(bool(better) and not worse)
        moved = [f"{c.probe} {c.change:+.2f} [{c.ci95[0]:+.2f}, {c.ci95[1]:+.2f}]" for c in changes]
        parts.append(
            f"{name} keeps more of {', '.join(better) or 'nothing'}, less of {', '.join(worse) or 'nothing'} "
            f"({name} minus full, 95 % intervals: {', '.join(moved)})"
        )
    verdict = "holds" if all(found) else "holds in part" if any(found) else "does not hold here"
    return results.Claim(claim=claim, verdict=verdict, evidence="; ".join(parts))


def weaker_method(scores: Mapping[str, Score], weaker: str, stronger: str, *, seed: int = 0) -> results.Claim:
    """C6 from the scores of two methods on the same rows."""
    claim = f"{weaker} adapters are slightly weaker than {stronger} on hard tasks"
    if not {weaker, stronger} <= set(scores):
        return results.Claim(claim=claim, verdict=UNMEASURED, evidence="not both were trained to their end (COMPARE)")
    low, high = interval(scores[stronger], scores[weaker], seed=seed)
    verdict = "holds" if high < 0 else "does not hold here"
    change = scores[weaker].value - scores[stronger].value
    evidence = (
        f"{weaker} {scores[weaker].value:.3f}, {stronger} {scores[stronger].value:.3f}: {change:+.3f}, 95 % interval "
        f"[{low:+.3f}, {high:+.3f}], n={len(scores[weaker].rows)}"
    )
    return results.Claim(claim=claim, verdict=verdict, evidence=evidence)


def compared(
    claim: str,
    scores: Mapping[str, Score],
    pairs: Sequence[tuple[str, str]],
    expected: Literal["less", "near", "more"],
    *,
    margin: float = 0.05,
    seed: int = 0,
    beside: str = "",
    also: bool | None = None,
) -> results.Claim:
    """A sentence that ranks methods, from their scores on the same rows (higher is better, each row a mean of seeds).

    "less" and "more" hold where the 95 % interval of the first minus the second of a pair lies below or above zero.
    "near" holds where it lies above -`margin`, and does not where it lies below zero; in between nothing is shown.

    Args:
        pairs: the two methods of each comparison; those that were not both run are left out.
        beside: a further sentence of evidence, on cost.
        also: whether what the sentence says of cost holds; None: it says nothing of it.
    """
    found, parts = [], []
    for one, other in pairs:
        if one in scores and other in scores:
            low, high = interval(scores[other], scores[one], seed=seed)
            change = scores[one].value - scores[other].value
            shown = {"less": high < 0, "more": low > 0, "near": low > -margin}[expected]
            found.append(1.0 if shown else 0.5 if expected == "near" and high >= 0 else 0.0)
            parts.append(
                f"{one} {scores[one].value:.3f}, {other} {scores[other].value:.3f}: {change:+.3f}, 95 % interval "
                f"[{low:+.3f}, {high:+.3f}], n={len(scores[one].rows)}"
            )
    if not found:
        return results.Claim(claim=claim, verdict=UNMEASURED, evidence="its methods were not among those run")
    found += [] if also is None else [float(also)]
    verdict = "holds" if min(found) == 1 else "holds in part" if max(found) > 0 else "does not hold here"
    return results.Claim(claim=claim, verdict=verdict, evidence="; ".join([*parts, *filter(None, [beside])]))


def first_rate(rate: float, losses: Mapping[float, float], untouched: float) -> results.Claim:
    """C10, the part on the rate, from validation losses by learning rate after the same tokens.

    It holds where `rate` gets nine tenths of the fall of the best rate, in part where it gets half.
    """
    claim = "1e-4 and 3 epochs is a good start"
    if rate not in losses or len(losses) < 2:
        return results.Claim(claim=claim, verdict=UNMEASURED, evidence="no two rates were tried")
    best = min(losses, key=losses.__getitem__)
    share = (untouched - losses[rate]) / (untouched - losses[best]) if losses[best] < untouched else 0.0
    verdict = "holds" if share >= 0.9 else "holds in part" if share >= 0.5 else "does not hold here"
    evidence = (
        f"LoRA's validation loss {untouched:.3f} untouched, {losses[rate]:.3f} with a peak rate of {rate:g}, "
        f"{losses[best]:.3f} with {best:g}: {share:.0%} of the fall. Small models take larger rates; passes were not "
        "varied here"
    )
    return results.Claim(claim=claim, verdict=verdict, evidence=evidence)


def many_adapters(
    *,
    same_answers: float,
    bit_for_bit: bool,
    milliseconds: float,
    department_bytes: float,
    model_bytes: float,
    departments: int,
) -> results.Claim:
    """C33 from what serving many adapters on one base did here."""
    kept = [same_answers == 1, bit_for_bit, milliseconds < 100]
    return results.Claim(
        claim="one base, many adapters: easy switching, simple deployment",
        verdict="holds" if all(kept) else "holds in part" if any(kept) else "does not hold here",
        evidence=f"switching takes {milliseconds:.2f} ms; {same_answers:.0%} of a mixed batch's answers are given "
        f"one by one, too; the base comes back bit for bit: {bit_for_bit}; {departments} departments "
        f"take {(model_bytes + departments * department_bytes) / 1e6:.0f} MB, as whole models "
        f"{departments * model_bytes / 1e6:.0f} MB",
    )


def preference_cost(
    *, pairs: int, seconds: float, peak_bytes: int, loss: Sequence[tuple[int, float]], method: str
) -> results.Claim:
    """C7, the part that one preference run can say: what it cost, and how steadily its loss fell (step, loss)."""
    values = np.array([value for _, value in loss])
    third = max(1, len(values) // 3)
    return results.Claim(
        claim="DPO is comparable to RLHF, simpler, stabler, cheaper",
        verdict=UNMEASURED,
        evidence=f"{method}: {pairs} pairs in {seconds:.0f} s with the reference, {peak_bytes / 1e9:.1f} GB at most; "
        "one set of base weights, two adapters, no reward model, no value model, nothing sampled; loss "
        f"{values[:third].mean():.2f} in the first third, {values[-third:].mean():.2f} in the last. No RLHF ran",
    )


def speech_domain(gains: Mapping[str, results.Metric], general: Sequence[results.Probe]) -> results.Claim:
    """C26 from what changed for jargon, accents and noise, and on real speech of other kinds."""
    claim = "Whisper fine-tuning helps jargon, accents and noise without losing general ability"
    if not general:
        return results.Claim(claim=claim, verdict=UNMEASURED, evidence="there were no recordings of general speech")
    helped = [change.verdict == "improved" for change in gains.values()]
    kept = not any(probe.verdict == "worse" for probe in general)
    verdict = "holds" if all(helped) and kept else "holds in part" if any(helped) else "does not hold here"
    parts = [f"{name} {c.before:.3f} -> {c.after:.3f} ({c.verdict})" for name, c in gains.items()]
    parts += [
        f"{p.probe} {p.before:.3f} -> {p.after:.3f}, change {p.change:+.3f}, 95 % interval [{p.ci95[0]:+.3f}, "
        f"{p.ci95[1]:+.3f}], n={p.n}"
        for p in general
    ]
    return results.Claim(claim=claim, verdict=verdict, evidence="; ".join(parts))
