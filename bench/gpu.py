"""`python -m bench.gpu`: how fast a CUDA GPU fine-tunes models of well-known shapes; weights are random, no download.

LoRA, QLoRA and full fine-tuning at sequence 2,048 and 4,096, rows packed full, with the attention kernels, Liger,
torch.compile and Unsloth where they are installed. Each case is a process of its own; what is there is not run again.
This has been tried at the shape `tiny` on a CPU; it has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import overview
from bench.report import FOLDER
from bench.tables import table
from bench.task import ROOT, python

MEASURED = ROOT / "runs" / "bench-gpu"
SHAPES = ("Llama-3.1-8B", "Qwen3-8B")
TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": False}
LENGTHS = (2048, 4096)
RANK, WARM_UP, STEPS, LIMIT = 16, 3, 10, 900.0  # the last in seconds, of one case
HEAD_ROWS = 1024  # positions whose scores are made at once
NEMO = "NeMo AutoModel's published Llama-3-8B LoRA on one H100, sequence 4,096: 12,473 tokens/s, 402 TFLOP/s."


@dataclass(frozen=True)
class Case:
    """One training: a shape, a length in tokens, a method (lora, qlora, full), and what it uses beside torch."""

    shape: str
    length: int
    method: str
    extra: str = ""  # flash_attention_2, liger, compile or unsloth

    @property
    def name(self) -> str:
        return "-".join(filter(None, [self.shape, str(self.length), self.method, self.extra]))


PACKAGES = {"flash_attention_2": "flash_attn", "liger": "liger_kernel", "unsloth": "unsloth"}


def cases(shapes: list[str], lengths: list[int]) -> Iterator[Case]:
    """Methods with torch's own kernels, then LoRA and QLoRA with one thing more each."""
    for shape in shapes:
        for length in lengths:
            yield from (Case(shape, length, method) for method in ("lora", "qlora", "full"))
            if shape != "tiny":
                yield from (
                    Case(shape, length, "lora", e) for e in ("flash_attention_2", "liger", "compile", "unsloth")
                )
                yield Case(shape, length, "qlora", "unsloth")


def config(shape: str) -> Any:
    from transformers import AutoConfig

    from cookbook import planning

    return AutoConfig.for_model(**TINY) if shape == "tiny" else planning.config(shape)


def measure(case: Case) -> dict[str, Any]:
    """Tokens a second, peak memory, operations a second, bytes of the weights beside the planner's; or why not."""
    import torch

    from cookbook import memory

    if (package := PACKAGES.get(case.extra)) and not find_spec(package):
        return {"left_out": f"{package} is not installed"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = config(case.shape)
    asked = {"micro_batch": 1, "length": case.length, "dtype": torch.bfloat16, "method": case.method}
    asked |= {"lora_rank": RANK, "device": "cuda", "mixed": False, "supervised": min(1.0, HEAD_ROWS / case.length)}
    plans = {on: memory.plan(shape, **asked, checkpointing=on) for on in (False, True)}
    free = memory.free_bytes(device)
    checkpointing = plans[False].total > free
    if plans[checkpointing].total > free:
        need = plans[True].total / 1e9
        return {"left_out": f"needs {need:.0f} GB even with checkpointing, {free / 1e9:.0f} GB are free"}
    if case.extra == "unsloth":
        import unsloth  # noqa: F401  (before the model's code)
    torch.manual_seed(0)
    model, weights = (by_unsloth if case.extra == "unsloth" else build)(case, shape, device, checkpointing)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # of training, not of loading
    step = stepper(model, case, shape.get_text_config().vocab_size, device)
    seconds = timed(step, device)
    found = {"checkpointing": checkpointing, "tokens_per_second": case.length / seconds, "weight_bytes": weights}
    found |= {"planned_weight_bytes": plans[checkpointing].weights, "device": name(device)}
    found["tflops"] = flops(case, shape) / seconds / 1e12
    found["peak_tflops"] = peak(device)
    if device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def build(case: Case, shape: Any, device: str, checkpointing: bool) -> tuple[Any, int]:
    """The model, ready to be trained, and the bytes of its weights before an adapter came."""
    from peft import LoraConfig, get_peft_model

    from cookbook.fused import inner

    attention = case.extra if case.extra == "flash_attention_2" else "sdpa"
    model = drawn(shape, device, attention)
    if case.extra == "liger":
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=model)
    if case.method == "qlora":
        pack(model, device)
    weights = sum(_bytes(weight) for weight in model.parameters())
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if case.method != "full":
        model = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    if case.extra == "compile":
        for layer in inner(model).model.layers:
            layer.compile()
    return model.train(), weights


def drawn(shape: Any, device: str, attention: str) -> Any:
    """A causal language model with random weights in bf16."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        return AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16, attn_implementation=attention)


def pack(model: Any, device: str) -> None:
    """Linear layers, the head apart, in NF4 with double quantization."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(model.model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear:
                kind = {"quant_type": "nf4", "compress_statistics": True}
                packed = Linear4bit(
                    layer.in_features, layer.out_features, False, torch.bfloat16, device="meta", **kind
                )
                packed.weight = Params4bit(layer.weight.data, requires_grad=False, **kind)
                packed.support_avx512bf16_for_cpu = False
                setattr(parent, name, packed.to(device))


def by_unsloth(case: Case, shape: Any, device: str, checkpointing: bool) -> tuple[Any, int]:
    """Random weights as above, loaded and adapted by Unsloth, which reads them from a folder."""
    from unsloth import FastLanguageModel

    from cookbook import models

    with TemporaryDirectory() as folder:
        drawn(shape, device, "sdpa").save_pretrained(folder)
        models.load_tokenizer("smollm2-135m-instruct").save_pretrained(folder)
        model, _ = FastLanguageModel.from_pretrained(
            folder, max_seq_length=case.length, load_in_4bit=case.method == "qlora"
        )
    weights = sum(_bytes(weight) for weight in model.parameters())
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=2 * RANK, target_modules=linear,
        use_gradient_checkpointing="unsloth" if checkpointing else False,
    )  # fmt: skip
    return adapted, weights


def _bytes(weight: Any) -> int:
    """Of a weight and, in 4 bits, of its scales."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.nbytes
    return weight.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)


def stepper(model: Any, case: Case, words: int, device: str) -> Callable[[], None]:
    """Forward, backward and AdamW on one full row; the head's scores are made for some positions at a time."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    from cookbook.fused import inner

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device == "cuda")
    ids = torch.randint(words, (1, case.length), device=device)
    base = inner(model)
    head = base.get_output_embeddings()

    def part(hidden: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(hidden).float(), told, reduction="sum")

    def step() -> None:
        hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
        pieces = zip(hidden.split(HEAD_ROWS), ids[0, 1:].split(HEAD_ROWS), strict=True)
        loss = sum(checkpoint(part, h, t, use_reentrant=False) for h, t in pieces) / (case.length - 1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(step: Callable[[], None], device: str) -> float:
    """Seconds a step, after a warm-up."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(WARM_UP):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    wait()
    return (time.perf_counter() - start) / STEPS


def flops(case: Case, shape: Any) -> float:
    """Operations of one row: 2 a weight and token forward, 2 or 4 backward, and attention's.

    As `cookbook.planning.operations` has it (Kaplan et al. 2020; Chowdhery et al. 2022, appendix B); what
    checkpointing computes twice is not counted.
    """
    from cookbook import memory

    counted, text = memory.count(shape), shape.get_text_config()
    weights = counted.total - counted.looked_up
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    context = 4 * text.num_hidden_layers * text.num_attention_heads * size * case.length
    return ((6 if case.method == "full" else 4) * weights + 3 * context) * case.length


def peak(device: str) -> float:
    """TFLOP/s of a large square product in bf16, the best of some."""
    import torch

    size = 8192 if device == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = 0.0
    for _ in range(20):
        wait()
        start = time.perf_counter()
        torch.mm(a, a)
        wait()
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e12)
    return best


def name(device: str) -> str:
    """The card in words; a CPU is only for trying."""
    import torch

    if device == "cpu":
        return "a CPU"
    card = torch.cuda.get_device_properties(0)
    return f"{card.name}, {card.total_memory / 2**30:.0f} GiB"


def interpreter(case: Case) -> str:
    """Unsloth's own environment for its cases, where `make unsloth` has made it."""
    return (python(".venv-unsloth") if case.extra == "unsloth" else None) or sys.executable


def run(case: Case, folder: Path) -> dict[str, Any]:
    """The case in a process of its own, unless its file is there; a failure is recorded in a sentence."""
    file = folder / f"{case.name}.json"
    if not file.is_file():
        command = [interpreter(case), "-m", "bench.gpu", "--case", json.dumps(asdict(case)), "--folder", str(folder)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            said = f"not done after {LIMIT:.0f} s"
        if not file.is_file():
            file.write_text(json.dumps({"left_out": said}), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def page(found: dict[Case, dict[str, Any]]) -> str:
    """The table, the card in words above it, and what it is to be compared with."""
    head = ["shape", "tokens", "method", "with", "tokens/s", "TFLOP/s", "share of peak", "peak GB"]
    head += ["weights GB", "planned"]
    rows, out = [], []
    for case, told in found.items():
        if why := told.get("left_out"):
            out.append(f"- {case.name}: {why}.")
            continue
        extra = ", ".join(filter(None, [case.extra, "checkpointing" if told["checkpointing"] else ""]))
        memory = f"{told['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in told else ""
        cells = [case.shape, f"{case.length:,}", case.method, extra, f"{told['tokens_per_second']:,.0f}"]
        cells += [f"{told['tflops']:.3g}", f"{told['tflops'] / told['peak_tflops']:.0%}", memory]
        rows.append([*cells, *(f"{told[k] / 1e9:.3g}" for k in ("weight_bytes", "planned_weight_bytes"))])
    device = next((told["device"] for told in found.values() if "device" in told), "nothing")
    text = (
        f"# Fine-tuning speed on a GPU\n\nMeasured by `make bench-gpu` on {device}; random weights, one full row a "
    )
    text += f"step, {STEPS} steps after {WARM_UP}. For comparison: {NEMO}\n\n{table(head, rows)}\n"
    text += "".join(f"\n{line}\n" for line in beside_unsloth(found))
    return text + ("\nNot in the table:\n\n" + "\n".join(out) + "\n" if out else "")


def beside_unsloth(found: dict[Case, dict[str, Any]]) -> list[str]:
    """Unsloth's speed and memory over those without it, a sentence a pair; then what that makes of its claim."""
    said, holds = [], []
    for case, told in found.items():
        plain = found.get(Case(case.shape, case.length, case.method), {})
        if case.extra == "unsloth" and "peak_bytes" in told and "peak_bytes" in plain:
            speed = told["tokens_per_second"] / plain["tokens_per_second"]
            memory = told["peak_bytes"] / plain["peak_bytes"]
            holds.append(speed >= 2 and memory < 1)
            said.append(f"{case.name}: {speed:.2f} times the tokens a second, {memory:.2f} times the memory.")
    if not said:
        return []
    verdict = "holds" if all(holds) else "holds in part" if any(holds) else "does not hold"
    return [*said, f"Unsloth is 2 to 5 times faster with less memory: **{verdict}** beside the same training here."]


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}, tiny")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="tokens a row")
    parser.add_argument("--folder", type=Path, default=MEASURED, help="of the measurements")
    parser.add_argument("--output", type=Path, help=f"folder of the page (default: {FOLDER.relative_to(ROOT)})")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args(given)
    if asked.case:
        case = Case(**json.loads(asked.case))
        (asked.folder / f"{case.name}.json").write_text(json.dumps(measure(case), indent=1), encoding="utf-8")
        return 0
    import torch

    shapes = asked.shapes.split(",")
    if unknown := set(shapes) - {*SHAPES, "tiny"}:
        parser.error(f"there is no shape {', '.join(sorted(unknown))}; choose from {', '.join(SHAPES)}, tiny")
    if not torch.cuda.is_available() and (shapes != ["tiny"] or asked.output is None):
        parser.error("there is no CUDA GPU here; to try it on a CPU: --shapes tiny --lengths 64 --output FOLDER")
    asked.folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for case in cases(shapes, [int(length) for length in asked.lengths.split(",")]):
        found[case] = run(case, asked.folder)
        rate = found[case].get("tokens_per_second")
        print(f"{case.name}: {found[case].get('left_out') or f'{rate:,.0f} tokens/s'}", flush=True)
    output = asked.output or FOLDER
    output.mkdir(parents=True, exist_ok=True)
    (output / overview.GPU_PAGE).write_text(page(found), encoding="utf-8")
    if any(output.glob("*/benchmark.json")):  # the pages of other machines
        overview.write(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
