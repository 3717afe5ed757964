"""Verdicts on the literature follow from the numbers, in both directions."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BitsAndBytesConfig

from cookbook import claims, evaluation, models, results
from cookbook.forgetting import ProbeResult


def change(before: float, after: float, low: float, high: float) -> results.Metric:
    verdict = evaluation.verdict(low, high)
    return results.Metric(before=before, after=after, change=after - before, ci95=(low, high), n=96, verdict=verdict)


@pytest.mark.parametrize(("trainable", "verdict"), [(1_000_000, "holds"), (4_900_000, "holds in part")])
def test_fewer_parameters(trainable: int, verdict: str) -> None:
    claim = claims.fewer_parameters(trainable, 135_000_000, 16)
    assert claim.verdict == verdict
    assert "131,072 instead of 16,777,216, 1 in 128" in claim.evidence and f"{trainable:,}" in claim.evidence


@pytest.mark.parametrize(("double", "bits"), [(True, "4.13"), (False, "4.50")])
def test_nf4_memory(gpt2: Path, double: bool, bits: str) -> None:
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    model, _ = models.load(str(gpt2), dtype=torch.float32, quantization_config=nf4)
    found = claims.nf4_memory(model)
    times = 16 / float(bits)
    assert f"{bits} bits a weight" in found.evidence and f"{times:.1f} times less" in found.evidence
    assert " 40 GB" in found.evidence and found.verdict == "holds in part"


def test_nf4_memory_without_4_bit_layers(gpt2: Path) -> None:
    plain, _ = models.load(str(gpt2), dtype=torch.float32)
    assert claims.nf4_memory(None).verdict == claims.nf4_memory(plain).verdict == claims.UNMEASURED


@pytest.mark.parametrize(
    ("times", "loss", "verdict"),
    [
        (1.2, 0.0, "holds"),
        (2.0, 0.0, "holds in part"),
        (0.9, 0.3, "holds in part"),
        (0.9, 0.0, "does not hold here"),
    ],
)
def test_quantized_cost(times: float, loss: float, verdict: str) -> None:
    plain, losses = [9.0, 1.0, 1.1, 0.9, 1.0], [2.0, 1.8, 1.5, 1.2, 1.0]
    quantized = [1.0, *(times * s for s in plain[1:])]  # the first step is left out
    found = claims.quantized_cost(quantized, plain, [x + loss for x in losses], losses)
    assert found.verdict == verdict
    assert f"{times:.2f} times the seconds" in found.evidence and f"{loss:+.3f} nats" in found.evidence


def test_quantized_cost_of_too_few_steps() -> None:
    assert claims.quantized_cost([1, 1], [1, 1, 1], [1, 1], [1, 1, 1]).verdict == claims.UNMEASURED
    assert claims.quantized_cost([], [], [], []).verdict == claims.UNMEASURED


def point(train: float, validation: float, form: float) -> dict[str, float]:
    return {"training loss": train, "validation loss": validation, "valid_json": form, "intent_accuracy": 0.5}


@pytest.mark.parametrize(
    ("small", "enough", "verdict"),
    [
        (point(0.1, 1.5, 0.5), point(0.5, 0.8, 1.0), "holds"),
        (point(0.1, 1.5, 0.5), point(0.5, 0.8, 0.6), "holds in part"),
        (point(0.5, 0.6, 0.5), point(0.5, 0.8, 1.0), "holds in part"),
        (point(0.5, 0.6, 0.5), point(0.5, 0.8, 0.6), "does not hold here"),
    ],
)
def test_learning_curve(small: dict, enough: dict, verdict: str) -> None:
    found = claims.learning_curve({25: small, 200: enough, 800: point(0.3, 0.4, 1.0)}, "intent_accuracy")
    assert found.verdict == verdict and "25 rows: form 0.50" in found.evidence


def test_learning_curve_that_was_off() -> None:
    assert claims.learning_curve({}, "x").verdict == claims.UNMEASURED
    assert claims.learning_curve({800: point(1, 1, 1)}, "intent_accuracy").verdict == claims.UNMEASURED


def test_wrong_template() -> None:
    assert claims.wrong_template(change(0.9, 0.5, -0.5, -0.3), "intent_accuracy").verdict == "holds"
    found = claims.wrong_template(change(0.9, 0.88, -0.1, 0.05), "intent_accuracy")
    assert found.verdict == "does not hold here" and "[-0.100, +0.050], n=96" in found.evidence
    assert claims.wrong_template(change(0.5, 0.9, 0.3, 0.5), "x").verdict == "does not hold here"


def test_full_memory_counts_what_the_sentence_forgets() -> None:
    found = claims.full_memory(4_300_000_000, 4_100_000_000, 135_000_000)
    assert found.verdict == "does not hold here"
    assert "state are 700 GB" in found.evidence and "840 GB" in found.evidence
    assert "predicts 4.3 GB; measured 4.1 GB" in found.evidence


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [([3.0, 2.0, 2.4], "holds"), ([3.0, 2.0, 1.9], "does not hold here"), ([3.0, 2.0], claims.UNMEASURED)],
)
def test_early_stopping(losses: list[float], verdict: str) -> None:
    assert claims.early_stopping(list(enumerate(losses))).verdict == verdict


@pytest.mark.parametrize(
    ("accuracy", "perplexity", "verdict"),
    [
        ((0.2, 0.1, 0.3), (-2.0, -3.0, -1.0), "holds"),
        ((0.2, 0.1, 0.3), (-2.0, -3.0, 1.0), "holds in part"),
        ((0.1, -0.1, 0.3), (2.0, 1.0, 3.0), "does not hold here"),
    ],
)
def test_leaky_split(accuracy: tuple, perplexity: tuple, verdict: str) -> None:
    assert claims.leaky_split({"accuracy": accuracy, "perplexity": perplexity}).verdict == verdict
    assert claims.leaky_split({}).verdict == claims.UNMEASURED


def probe(knowledge: float, nats: float) -> ProbeResult:
    scores = {"knowledge": (np.arange(60) < 60 * knowledge).astype(float)}
    return ProbeResult(scores, np.full(100, nats) + 0.01 * np.arange(100) % 0.05, np.repeat(np.arange(10), 10))


def test_forgets_less() -> None:
    full, kept, lost = probe(0.3, 4.0), probe(0.9, 3.0), probe(0.1, 5.0)
    claim = claims.forgets_less("x", full, {"lora": kept})
    assert claim.verdict == "holds"
    assert re.search(r"lora minus full, 95 % intervals: .*perplexity -\d+\.\d\d \[-\d+\.\d\d, -\d+", claim.evidence)
    assert claims.forgets_less("x", full, {"frozen": kept, "gradual": lost}).verdict == "holds in part"
    assert claims.forgets_less("x", full, {"lora": lost}).verdict == "does not hold here"
    assert claims.forgets_less("x", full, {"lora": full}).verdict == "does not hold here"
    assert claims.forgets_less("x", full, {}).verdict == claims.UNMEASURED


@pytest.mark.parametrize(
    ("gained", "lost", "verdict"),
    [(-0.2, 0.0, "holds"), (-0.2, 0.05, "holds in part"), (0.0, 0.0, "does not hold here")],
)
def test_speech_domain(gained: float, lost: float, verdict: str) -> None:
    """Error rates: less is better, so what is gained is negative and what is lost is positive."""

    def moved(by: float) -> dict[str, object]:
        low, high = (by - 0.01, by + 0.01) if by else (-0.02, 0.02)
        said = evaluation.verdict(low, high, higher_is_better=False)
        return {"before": 0.3, "after": 0.3 + by, "change": by, "ci95": (low, high), "n": 60, "verdict": said,
                "higher_is_better": False}  # fmt: skip

    gains = {"noise": results.Metric(**moved(gained))}
    probes = [results.Probe(probe="general_speech_wer", **moved(lost))]
    assert claims.speech_domain(gains, probes).verdict == verdict
    assert claims.speech_domain(gains, []).verdict == claims.UNMEASURED


def scored(share: float, n: int = 200) -> evaluation.Score:
    """A score of n rows of which this share is right, the right ones first."""
    return evaluation.mean([float(i < share * n) for i in range(n)])


@pytest.mark.parametrize(
    ("expected", "share", "verdict"),
    [
        ("less", 0.5, "holds"),
        ("less", 0.7, "does not hold here"),
        ("less", 0.9, "does not hold here"),
        ("more", 0.9, "holds"),
        ("more", 0.7, "does not hold here"),
        ("near", 0.7, "holds"),
        ("near", 0.69, "holds"),
        ("near", 0.9, "holds"),
        ("near", 0.5, "does not hold here"),
    ],
)
def test_compared(expected: str, share: float, verdict: str) -> None:
    scores = {"lora": scored(share), "full": scored(0.7)}
    claim = claims.compared("x", scores, [("lora", "full")], expected, beside="It took a second.")
    assert claim.verdict == verdict
    assert f"lora {share:.3f}, full 0.700: {share - 0.7:+.3f}" in claim.evidence
    assert claim.evidence.endswith("n=200; It took a second.")


def test_compared_in_part_and_not_at_all() -> None:
    few = np.random.default_rng(0).permutation(20)
    noisy = evaluation.mean([float(i < 14) for i in few])
    other = evaluation.mean([float(i < 14) for i in few[::-1]])
    unclear = claims.compared("x", {"lora": noisy, "full": other}, [("lora", "full")], "near")
    assert unclear.verdict == "holds in part"  # neither shown to be near nor to be worse
    scores = {"a": scored(0.5), "b": scored(0.7), "c": scored(0.5)}
    assert claims.compared("x", scores, [("a", "b"), ("c", "a")], "less").verdict == "holds in part"
    pricey = [claims.compared("x", scores, [("c", "a")], "less", also=slower).verdict for slower in (True, False)]
    assert pricey == ["holds in part", "does not hold here"]
    missing = claims.compared("x", scores, [("a", "d")], "less")
    assert (missing.verdict, missing.evidence) == (claims.UNMEASURED, "its methods were not among those run")


@pytest.mark.parametrize(("loss", "verdict"), [(0.35, "holds"), (0.9, "holds in part"), (1.6, "does not hold here")])
def test_first_rate(loss: float, verdict: str) -> None:
    claim = claims.first_rate(1e-4, {1e-4: loss, 2e-3: 0.3}, 2.0)
    assert claim.verdict == verdict
    assert f"{loss:.3f} with a peak rate of 0.0001, 0.300 with 0.002" in claim.evidence
    assert claims.first_rate(1e-4, {2e-3: 0.3}, 2.0).verdict == claims.UNMEASURED
    assert claims.first_rate(1e-4, {1e-4: 2.2, 2e-3: 2.1}, 2.0).verdict == "does not hold here"
