"""The GPU benchmark on a tiny shape, on a CPU: every method trains, and the page has its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import gpu


def test_every_method_trains_a_tiny_shape(tmp_path: Path) -> None:
    words = [
        "--shapes",
        "tiny",
        "--lengths",
        "64",
        "--folder",
        str(tmp_path / "m"),
        "--output",
        str(tmp_path / "docs"),
    ]
    assert gpu.main(words) == 0
    found = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "m").glob("*.json")}
    assert set(found) == {"tiny-64-lora", "tiny-64-qlora", "tiny-64-full"}
    for told in found.values():
        assert told["tokens_per_second"] > 0 and told["tflops"] > 0 and told["peak_tflops"] > 0
        assert told["weight_bytes"] == pytest.approx(told["planned_weight_bytes"], rel=0.03)
    assert found["tiny-64-qlora"]["weight_bytes"] < 0.8 * found["tiny-64-lora"]["weight_bytes"]
    page = (tmp_path / "docs" / "gpu.md").read_text()
    assert page.count("| tiny |") == 3 and "12,473 tokens/s" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("words", [[], ["--shapes", "tiny"], ["--output", "x"]])
def test_without_a_gpu_it_says_so(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(words)
    assert "there is no CUDA GPU here" in capsys.readouterr().err


def test_a_case_that_fails_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu.run(gpu.Case("tiny", 16, "lora", "liger"), tmp_path)
    assert found == {"left_out": "liger_kernel is not installed"}
    assert "tiny-16-lora-liger: liger_kernel is not installed." in gpu.page(
        {gpu.Case("tiny", 16, "lora", "liger"): found}
    )


def test_the_claim_about_unsloth_has_its_verdict() -> None:
    def told(rate: float, peak: float) -> dict[str, float]:
        return {"tokens_per_second": rate, "peak_bytes": peak}

    plain, beside = (gpu.Case("Qwen3-8B", 2048, "lora", extra) for extra in ("", "unsloth"))
    assert gpu.beside_unsloth({plain: told(100.0, 2e10)}) == []
    *said, verdict = gpu.beside_unsloth({plain: told(100.0, 2e10), beside: told(250.0, 1e10)})
    assert said == ["Qwen3-8B-2048-lora-unsloth: 2.50 times the tokens a second, 0.50 times the memory."]
    assert "**holds**" in verdict
    assert "**does not hold**" in gpu.beside_unsloth({plain: told(100.0, 2e10), beside: told(150.0, 1e10)})[-1]
