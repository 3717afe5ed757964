"""The benchmark's clock, its bookkeeping and its page; no arm is timed here."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import bench.__main__ as command
from bench import evaluation, machine, overview, products, profiled, report, sizes, tables
from bench.arms import ARMS
from bench.levers import BESIDE, COMPILED, LEVERS, NARROW, UNCHANGED
from bench.task import Row, Task, read
from bench.watch import Clock, validation_loss
from cookbook import planning

MACHINE = "2 cores of AMD EPYC(TM), AVX2, AVX-512, 24 GiB of memory"
ROW = Row([{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}], {}, [5, 6, 7, 8], 2)


@pytest.fixture
def task(llama: Path) -> Task:
    rows = [ROW, Row(ROW.prompt, ROW.completion, {}, [9, 10, 11, 12, 13, 14], 3)]
    return Task(str(llama), "float32", rows, rows, lora_rank=4, threads=1)


@pytest.fixture
def measured(tmp_path: Path, task: Task) -> Path:
    """Two rounds of trl, lora and another, an arm that failed, one lever and the unchanged arm beside it."""
    folder = tmp_path / "measured"
    task.write(folder / "task.json")
    put(folder, "machine", machine=MACHINE, flops_per_token=8e6)
    for number, (base, ours, other) in enumerate([(100.0, 500.0, 200.0), (80.0, 440.0, 210.0)]):
        put(folder, f"peak-{number}", peaks={"float32": 1.0, "bfloat16": 4.0 + number}, task=task.fingerprint)
        run(folder, task, "trl-fp32", number, base / 2)
        run(folder, task, "trl", number, base, loss=1.0, peak=4e9)
        run(folder, task, "lora", number, ours, loss=1.01, peak=3e9)
        run(folder, task, "trainer", number, other, loss=0.99, peak=5e9)
    put(folder, "litgpt-0", arm="litgpt", lever="", task=task.fingerprint, round=0, error="OSError: no such thing")
    for number, rate in enumerate((480.0, 520.0)):
        run(folder, task, "lora", number, rate, lever=UNCHANGED)
    run(folder, task, "lora", 0, 250.0, lever="fp32")
    return folder


def put(folder: Path, name: str, **fields: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(fields))


def run(
    folder: Path,
    task: Task,
    arm: str,
    number: int,
    rate: float,
    loss: float = 1.0,
    peak: float = 1e9,
    lever: str = "",
    **more: Any,
) -> None:
    name = f"{arm}-{lever}-{number}" if lever else f"{arm}-{number}"
    seconds = 1000 / rate
    fields = {"arm": arm, "lever": lever, "round": number, "task": task.fingerprint, "seconds": seconds}
    fields |= {
        "tokens": 1000,
        "distinct": 1000,
        "tokens_per_second": rate,
        "validation_loss": loss,
        "peak_bytes": peak,
        "ready_seconds": 1.0,
    }
    fields |= {
        "step_seconds": [seconds / 2] * 2,
        "validation": [[1, seconds / 2, 2.0], [2, seconds, loss]],
        "versions": {"torch": "2"},
    }
    put(folder, name, **fields | more)


def test_the_clock_leaves_out_what_is_paused() -> None:
    clock = Clock()
    for _ in range(2):
        clock.step_begin()
        time.sleep(0.02)
        clock.step_end(tokens=10, supervised=3)
        with clock.paused():
            time.sleep(0.3)
        clock.validation(0.5)
    found = clock.result()
    assert 0.04 <= found["seconds"] < 0.3 and len(found["step_seconds"]) == 2
    assert (found["tokens"], found["supervised"], found["validation_loss"]) == (20, 6, 0.5)
    assert found["tokens_per_second"] == pytest.approx(20 / found["seconds"]) and found["peak_bytes"] > 1e7


def test_a_task_is_read_as_it_was_written_and_refuses_other_rows(task: Task, tmp_path: Path) -> None:
    again = read(task.write(tmp_path / "task.json"))
    assert again == task and again.fingerprint == task.fingerprint
    rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in reversed(task.train)]
    task.same_rows(rows)
    rows[0] = rows[0] | {"labels": rows[0]["input_ids"]}
    with pytest.raises(ValueError, match="would learn other tokens"):
        task.same_rows(rows)


def test_validation_loss_is_a_mean_over_supervised_tokens(task: Task, llama: Path) -> None:
    from cookbook import models

    model, _ = models.load(str(llama), dtype=torch.float32)
    nats = []
    for row in task.validation:
        logits = model(torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(-1)
        told = torch.tensor(row.input_ids[1:])
        nats += (-logits[torch.arange(len(told)), told])[-row.supervised :].tolist()
    assert validation_loss(model, task.validation) == pytest.approx(sum(nats) / len(nats), rel=1e-4)


def test_flops_of_lora_are_about_four_a_weight_and_token(task: Task) -> None:
    from cookbook import models

    model, _ = models.load(task.model, dtype=torch.float32)
    blocks = sum(m.weight.numel() for m in model.model.modules() if isinstance(m, torch.nn.Linear))
    found = machine.flops_per_token(task)
    assert 4 * blocks < found < 8 * blocks  # with LoRA's own products and the head's scores of the answers


def test_the_peak_is_of_the_products_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SHAPES", ((64, 32, 48), (128, 128, 128)))
    found = machine.peaks()
    assert set(found) == {"float32", "bfloat16"} and all(0 < rate < 1e5 for rate in found.values())


def test_the_machine_is_told_in_words() -> None:
    said = machine.words()
    assert "cores" in said and "GiB of memory" in said and "/" not in said


def test_medians_ratios_and_bars(measured: Path, task: Task) -> None:
    found = report.summary(measured, task)
    ours = found["arms"]["lora"]
    assert ours["tokens_per_second"] == {"median": 470.0, "min": 440.0, "max": 500.0}
    assert ours["ratio"] == pytest.approx((5 + 5.5) / 2)
    assert ours["mfu"] == pytest.approx((500 / 4 + 440 / 5) / 2 * 8e6 / 1e9)
    assert found["target_loss"] == pytest.approx(1.02)
    assert ours["seconds_to_target"] == pytest.approx(1000 / 470 * (0.5 + 0.5 * 0.98 / 0.99), rel=0.01)
    bars = {bar["what"]: (bar["measured"], bar["met"]) for bar in found["bars"]}
    assert bars["training, tokens a second over TRL's defaults"] == (pytest.approx(5.25), True)
    assert bars["training, tokens a second over TRL's defaults with bf16 switched off"] == (pytest.approx(10.5), True)
    best = (500 / 200 + 440 / 210) / 2
    assert bars["training, tokens a second over the best of the others"] == (pytest.approx(best), True)
    assert bars["peak memory over TRL's"] == (0.75, True)
    assert [lever["gain"] for lever in found["levers"]] == [None, 2.0]
    assert found["failed"] == {"litgpt": "OSError: no such thing"}


def test_a_bar_that_is_missed_says_so(measured: Path, task: Task) -> None:
    for number in (0, 1):
        run(measured, task, "lora", number, 120.0, loss=1.1, peak=5e9)
    found = report.summary(measured, task)
    assert sum(not bar["met"] for bar in found["bars"]) == 5 + 1  # speed three times, loss, memory, the peak's share
    page = tables.page(found, task)
    assert page.count("**missed**") == 6 and "`lora` 0.22: 4.5 times TRL's speed would take 0.72." in page


def test_what_rows_share_counts_once_for_the_share_of_the_peak(measured: Path, task: Task) -> None:
    before = report.summary(measured, task)
    assert "computes once" not in tables.page(before, task)
    for number, rate in enumerate((500.0, 440.0)):
        run(measured, task, "lora", number, rate, distinct=800)
    found = report.summary(measured, task)
    assert found["arms"]["lora"]["mfu"] == pytest.approx(0.8 * before["arms"]["lora"]["mfu"])
    assert found["arms"]["lora"]["ratio"] == before["arms"]["lora"]["ratio"]
    assert "it computes 80% of the tokens" in tables.page(found, task)


def test_a_machine_that_was_not_quiet_is_told(measured: Path, task: Task) -> None:
    assert "not quiet" not in tables.page(report.summary(measured, task), task)
    run(measured, task, "lora", 1, 200.0)
    assert "an arm's rates lie up to 2.5 times apart" in tables.page(report.summary(measured, task), task)


def test_the_page_names_every_arm_that_ran_or_did_not(measured: Path, tmp_path: Path) -> None:
    written = report.write(measured, tmp_path / "docs")
    own = ["amd-epyc-avx-512/" + name for name in ("benchmark.json", "README.md", "benchmark.png")]
    assert [path.relative_to(tmp_path / "docs").as_posix() for path in written] == [*own, "README.md"]
    page = written[1].read_text()
    assert all(arm in page for arm in ARMS) and "torchtune" in page and "OSError: no such thing" in page
    assert str(tmp_path) not in page and written[2].stat().st_size > 10_000


def test_another_machine_adds_a_column(measured: Path, tmp_path: Path) -> None:
    *_, page = report.write(measured, tmp_path / "docs")
    assert "| training, tokens a second over TRL's defaults | ≥ 4.5 | 5.25, met |" in page.read_text()
    put(measured, "machine", machine="4 cores of Intel(R) Xeon(R), AVX2, 24 GiB of memory", flops_per_token=8e6)
    (measured / "trl-fp32-0.json").unlink(), (measured / "trl-fp32-1.json").unlink()
    report.write(measured, tmp_path / "docs")
    said = page.read_text()
    head = (
        "|  | aim | [AMD EPYC, AVX-512](amd-epyc-avx-512/README.md) | [Intel Xeon, AVX2](intel-xeon-avx2/README.md) |"
    )
    assert head in said and "| tokens a second, `lora` |  | 470 | 470 |" in said and "`make bench-gpu`" in said
    assert "| training, tokens a second over TRL's defaults with bf16 switched off | ≥ 4.5 | 10.5, met |  |" in said
    (tmp_path / "docs" / overview.GPU_PAGE).touch()
    report.write(measured, tmp_path / "docs")
    assert "[measured](gpu.md)" in page.read_text()


def test_compiling_pays_after_the_steps_that_it_costs(measured: Path, task: Task) -> None:
    run(measured, task, "lora", BESIDE, 400.0, lever=UNCHANGED, step_seconds=[2.0, 1.0, 1.0, 1.0])
    assert report.summary(measured, task)["compiled"] == {}
    run(measured, task, "lora", 0, 500.0, lever=COMPILED, step_seconds=[12.0, 1.0, 0.5, 0.5])
    assert report.summary(measured, task)["compiled"] == {"cost": 10.0, "gain": 0.5, "steps": 22.0}
    assert "it pays from step 22 on" in tables.page(report.summary(measured, task), task)
    run(measured, task, "lora", 0, 500.0, lever=COMPILED, step_seconds=[12.0, 1.0, 1.5, 1.5])
    assert "it never pays here" in tables.page(report.summary(measured, task), task)
    row = next(row for row in report.summary(measured, task)["levers"] if row["lever"] == LEVERS[COMPILED].words)
    assert row["gain"] == 500 / 400 and report.summary(measured, task)["levers"][0]["tokens_per_second"] == 500.0


def test_the_share_of_the_peak_without_the_matrix_unit(measured: Path, task: Task) -> None:
    peaks = {"float32": 2.0, "bfloat16": 1.0}
    run(measured, task, "lora", 0, 100.0, lever=NARROW, peaks=peaks)
    run(measured, task, "lora", 0, 120.0)
    run(measured, task, "lora", 1, 120.0)
    found = report.summary(measured, task)
    assert found["narrow"]["mfu"] == pytest.approx(100 * 8e6 / 2e9) and found["arms"]["lora"]["mfu"] < 0.35
    assert "an MFU of 0.40" in tables.page(found, task)


def test_larger_models_have_their_own_arithmetic_and_bar(measured: Path, task: Task) -> None:
    assert report.summary(measured, task)["sizes"] == {}
    shape = list(sizes.SHAPES)[1]
    folder = measured / sizes.FOLDER / shape
    halved = sizes.scaled(replace(task, train=task.train * 16), shape, folder)
    assert (len(halved.train), halved.steps, halved.validate_every) == (16, 2, 2)
    larger = sizes.scaled(task, shape, folder)
    larger.write(folder / "task.json")
    put(folder, "machine", machine="2 cores", flops_per_token=8e7, task=larger.fingerprint)
    put(folder, "peak-0", peaks={"bfloat16": 8.0}, task=larger.fingerprint)
    run(folder, larger, "trl", 0, 10.0)
    run(folder, larger, "lora", 0, 60.0)
    found = report.summary(measured, task)
    assert found["sizes"][shape]["arms"]["lora"]["mfu"] == pytest.approx(60 * 8e7 / 8e9)
    page = tables.page(found, task)
    assert f"| {shape} | lora | 1 | 60.0 | 6.00 | 1.0 | 0.60 | 1.000 |" in page
    assert "| ≥ 0.35 | 0.852, met | 0.6, met |" in page and "2.3 (trainer), met |  |" in page


def test_a_model_that_does_not_fit_is_left_out(
    measured: Path, task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=12e9))
    asked: list[str] = []
    monkeypatch.setattr(command, "facts", lambda folder, *given: asked.append(folder.name))
    monkeypatch.setattr(command, "measure", lambda folder, jobs, task: asked.extend(job.file for job in jobs))
    monkeypatch.setattr(sizes, "weights", lambda task, tokenizer: nullcontext())
    command.larger(measured, task, ["trl", "trainer", "lora"])
    pair = [f"{name}-{number}.json" for number in range(2) for name in ("peak", "trl", "lora")]
    assert asked == ["Qwen2.5-0.5B", *pair, "Llama-3.2-1B", *pair]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said if "left out" in line] == [
        "Llama-3.2-1B, trainer",
        "SmolLM2-1.7B, trl",
        "SmolLM2-1.7B, lora",
    ]


def test_a_larger_model_has_the_same_random_weights_each_time(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "config", lambda name: AutoConfig.from_pretrained(task.model))
    larger, drawn = sizes.scaled(task, "any", tmp_path), []
    for _ in range(2):
        with sizes.weights(larger, task.model):
            model = AutoModelForCausalLM.from_pretrained(larger.model)
            drawn.append(model.get_input_embeddings().weight.detach().clone())
        assert not Path(larger.model).exists()
    assert torch.equal(*drawn) and model.dtype == torch.float32
    assert not torch.equal(drawn[0], AutoModelForCausalLM.from_pretrained(task.model).get_input_embeddings().weight)


def test_products_of_the_models_shapes_and_levers_measured_apart(
    measured: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SHAPES", ((64, 32, 48),))
    found = products.measure(task)
    layers = products.linear_layers(task)
    assert sum(shape["layers"] for shape in found["shapes"]) == len(layers)
    assert {(shape["inputs"], shape["outputs"]) for shape in found["shapes"]} == set(layers.values())
    assert found["seconds"] > 0 and len(found["apart"]) == 3
    put(measured, "products", **found)
    for number in (0, 1):
        run(measured, task, "lora", number, 500.0, lever=UNCHANGED, step_seconds=[1.0, 1.0])
    packed, *_, reference = report.summary(measured, task)["products"]["apart"]
    assert packed["gain"] == pytest.approx(1 / (1 - packed["saved"]))
    assert reference["gain"] == 1 + reference["saved"] / reference["step"]
    page = tables.page(report.summary(measured, task), task)
    assert all(lever["lever"] in page for lever in found["apart"]) and "Measured apart" in page


def test_each_means_of_generation_is_tried_with_it_and_without(
    measured: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "NEW_TOKENS", 4)
    monkeypatch.setattr(evaluation, "MANY_TOKENS", 6)
    found = evaluation.measure(task, questions=3)
    assert found["questions"] == 3 and found["ratio"] > 0
    for lever in found["levers"]:
        assert lever["gain"] == lever["seconds"]["without"] / lever["seconds"]["with"]
    put(measured, "evaluation", **found)
    page = tables.page(report.summary(measured, task), task)
    assert all(lever["lever"] in page for lever in found["levers"]) and len(found["levers"]) == 8


def test_seconds_to_a_loss() -> None:
    validation = [(3, 10.0, 2.0), (6, 20.0, 1.0)]
    assert report.seconds_to(validation, 1.5) == pytest.approx(15.0)
    assert report.seconds_to(validation, 2.5) == 10.0 and report.seconds_to(validation, 0.5) is None


def test_what_is_measured_is_not_measured_again(measured: Path, task: Task) -> None:
    peak, *jobs = command.plan(measured, ["arms"], ["trl", "litgpt", "qlora"], rounds=1)
    assert peak.file == "peak-0.json"
    there = {job.file: command.done(measured / job.file, task.fingerprint) for job in jobs}
    assert there == {"trl-0.json": True, "litgpt-0.json": False, "qlora-0.json": False}
    assert not command.done(measured / "trl-0.json", "another task")


@pytest.mark.parametrize(("here", "left_out"), [("2 cores, AVX2", 1), ("2 cores, AVX2, AMX BF16", 0)])
def test_arms_take_turns_and_levers_stand_between_unchanged_runs(
    measured: Path, monkeypatch: pytest.MonkeyPatch, here: str, left_out: int
) -> None:
    monkeypatch.setattr(machine, "words", lambda: here)
    arms = [job.file for job in command.plan(measured, ["arms"], ["trl", "trainer", "lora"], rounds=2)]
    assert arms == [f"{name}-{number}.json" for number in range(2) for name in ("peak", "trl", "lora", "trainer")]
    *levers, last = command.plan(measured, ["levers"], [], rounds=5)
    files = [job.file for job in levers]
    apart = files.index(f"lora-{UNCHANGED}-{BESIDE}.json")
    assert files[0] == f"lora-{UNCHANGED}-0.json" and files[apart - 1] == f"lora-{UNCHANGED}-1.json"
    assert files[apart + 1 :] == [f"lora-{name}-0.json" for name, lever in LEVERS.items() if lever.beside]
    assert len(files) == len(LEVERS) + 2 - left_out and last.file == "products.json"
    assert (f"lora-{NARROW}-0.json" in files) == (not left_out)
    assert next(job for job in levers if "pinned" in job.file).environment["OMP_PLACES"] == "cores"


def test_unknown_arm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--arms", "trl,lorra"])
    assert "there is no 'lorra'" in capsys.readouterr().err


def test_kinds_of_operations() -> None:
    told = {"aten::addmm_": "matrix products", "aten::_softmax": "attention", "aten::_log_softmax": "loss and scores"}
    told |= {"aten::copy_": "copies and casts", "aten::silu": "norms, activations, sums"}
    told |= {"aten::_fused_adamw_": "optimizer", "aten::empty_strided": "fresh memory"}
    assert {name: profiled.kind(name) for name in told} == told
