"""The benchmark's page, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import machine
from bench.arms import ARMS, BASELINE, MAIN
from bench.task import Task

LEFT_OUT = {
    "torchtune": "its last release, 0.6.1, imports only beside torchao up to 0.14, and its development was stopped "
    "in 2025 (meta-pytorch/torchtune, issue 2883)",
    "Axolotl": "it trains on GPUs",
}

LITGPT_SHAPE = (
    "LitGPT draws its shape from a table of its own, with the scaled positions of the published Llama-3.2: its "
    "loss is that of a slightly different model."
)
UNQUIET = 1.5  # times between an arm's fastest and slowest round


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(found: dict[str, Any], task: Task) -> str:
    """The whole page; sections without a measurement are left out."""
    parts = [
        f"# How fast it trains on {machine.kind(found['machine'])}",
        f"Measured by `make bench` on {found['machine']}; every number here is in [benchmark.json](benchmark.json). "
        "Other machines have [other ratios](../README.md): the same command measures yours.",
        _task(task),
        _bars(found),
        _arms(found),
        "![Tokens a second and validation loss of each arm](benchmark.png)",
        "*Left: the median of the rounds and their range. Right: the first round's validation loss; the dotted line "
        "is the loss that all are timed to.*",
        _sizes(found),
        _missing(found),
        _levers(found),
        _apart(found),
        _profile(found),
        _evaluation(found),
        _versions(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _task(task: Task) -> str:
    return (
        f"**The task.** LoRA of rank {task.lora_rank} on all linear layers of SmolLM2-135M-Instruct, "
        f"{len(task.train)} tickets of the sample inbox with their answers, {task.batch_size} rows a step, "
        f"{task.steps} steps, AdamW, a peak learning rate of {task.learning_rate:g}, seed {task.seed}: "
        f"{task.tokens:,} real tokens, {task.supervised:,} of them supervised, the same in every arm. Every arm is a "
        f"process of its own with {task.threads} threads. In a round the arms follow one another; rounds may lie "
        "days apart, and what is compared is compared within them. The clock runs from the first step's begin to the "
        "last one's end; validation, the same for all, is not on it. Padding does not count as tokens."
    )


def _bars(found: dict[str, Any]) -> str:
    """The bars, measured on the task's model and with the other shapes."""
    if not found["bars"]:
        return ""
    sized = found["sizes"]
    rows = bar_rows([found["bars"], *(told["bars"] for told in sized.values())])
    text = "## What was aimed at\n\n" + table(["", "aim", "measured", *(f"{s}'s shape" for s in sized)], rows)
    text += f"\n\nAll of this is about the arm `{MAIN}`, which trains what the others train."
    arms = found["arms"]
    if "qlora" in arms and BASELINE in arms:
        loss = arms["qlora"]["validation_loss"] / arms[BASELINE]["validation_loss"]
        text += f" On a base in 4 bits, as notebook 01 comes, the loss is {loss:.3g} times TRL's."
    if missed := _missed(found):
        text += f" {missed}"
    if any("MFU" in bar["what"] and not bar["met"] for bar in found["bars"]):
        text += "\n\n" + _peak(found)
    return text


def _missed(found: dict[str, Any]) -> str:
    """The share of the peak that the aimed-at speed would take, where the speed was missed."""
    speed = next((bar for bar in found["bars"] if bar["what"].endswith("over TRL's defaults")), {"met": True})
    share = found["arms"].get(MAIN, {}).get("mfu")
    if speed["met"] or share is None:
        return ""
    base, times = found["arms"][BASELINE]["mfu"], speed["at_least"]
    return (
        f"TRL's defaults reach {base:.2f} of the machine's matrix-product peak here, `{MAIN}` {share:.2f}: {times:g} "
        f"times TRL's speed would take {share * times / speed['measured']:.2f}."
    )


def bar_rows(columns: Sequence[list[dict[str, Any]]]) -> list[list[str]]:
    """A row for each bar: its name, what was aimed at, and what came out in each column."""
    found = [{bar["what"]: bar for bar in bars} for bars in columns]
    aims = {what: bar for bars in found for what, bar in bars.items()}
    return [[what, _aim(bar), *(_measured(bars.get(what)) for bars in found)] for what, bar in aims.items()]


def _aim(bar: dict[str, Any]) -> str:
    return f"≥ {bar['at_least']:g}" if "at_least" in bar else f"≤ {bar['at_most']:g}"


def _measured(bar: dict[str, Any] | None) -> str:
    if bar is None:
        return ""
    best = f" ({bar['best']})" if "best" in bar else ""
    return f"{bar['measured']:.3g}{best}, {'met' if bar['met'] else '**missed**'}"


def _peak(found: dict[str, Any]) -> str:
    """Why a small model keeps a fast processor waiting, in the numbers that were measured."""
    peaks = found["peak_gflops"].values()
    text = (
        "The peak is that of torch's matrix product, the best of many, large ones and one that lies in the cache: "
        f"{' to '.join(sorted({f'{min(peaks):,.0f}', f'{max(peaks):,.0f}'}))} GFLOP/s, each arm beside that of its "
        f"own round; a token of this model costs {found['flops_per_token'] / 1e9:.2f} GFLOP."
    )
    if told := found["products"]:
        text += (
            f" The products with frozen weights could be had in {told['seconds']:.2f} s of a step's "
            f"{told['step']:.2f} s, if all that they read lay in the cache. In a step they take longer, and beside "
            "them stand LoRA's own, 16 columns wide, norms, activations, attention and the moving of all that, bound "
            "by memory and not by arithmetic: the faster a processor multiplies, the smaller the share of its peak "
            "that a small model reaches."
        )
    if sized := found["sizes"]:
        shares = {name: s["arms"][MAIN]["mfu"] for name, s in sized.items()}
        if told := ", ".join(f"{share:.2f} with the shape of {name}" for name, share in shares.items() if share):
            text += f" A larger one makes larger products: the same cores reach {told} (below)."
    if narrow := found["narrow"]:
        most, floats = max(narrow["peaks"].values()), narrow["peaks"]
        text += (
            f" **The same cores without their matrix unit** (`ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16`) have a peak of "
            f"{most:,.0f} GFLOP/s (bf16 {floats['bfloat16']:,.0f}, fp32 {floats['float32']:,.0f}); the same recipe "
            f"then does {narrow['tokens_per_second']:.0f} tokens/s, an MFU of {narrow['mfu']:.2f}."
        )
    return text


def _arms(found: dict[str, Any]) -> str:
    text = "## Training\n\n" + _arm_table(found)
    if found["target_loss"]:
        text += (
            f"\n\nThe same loss is {found['target_loss']:.3f} nats a token, {BASELINE}'s final one and 2 %. "
            "Ratios are medians over rounds, each within its round. FLOPs are counted by torch over forward and "
            "backward, without what checkpointing computes twice."
        )
    if MAIN in found["arms"] and (computed := found["arms"][MAIN]["computed"]) < 1:
        text += (
            f" What rows of a batch begin with in common, `{MAIN}` computes once, with the same gradient: it computes"
            f" {computed:.0%} of the tokens that it learns from, and MFU counts no more than those."
        )
    rates = [arm["tokens_per_second"] for arm in found["arms"].values()]
    if rates and (apart := max(rate["max"] / rate["min"] for rate in rates)) > UNQUIET:
        text += (
            f" **The machine was not quiet**: an arm's rates lie up to {apart:.1f} times apart, which moves the "
            "ratios as well; measure again when nothing else runs on it."
        )
    if "litgpt" in found["arms"]:
        text += " LitGPT chooses its own precision and does not clip gradients."
    return text


def _arm_table(found: dict[str, Any]) -> str:
    head = [
        "arm",
        "rounds",
        "tokens/s (range)",
        f"× {BASELINE}",
        "s to the same loss",
        "validation loss",
        "peak GB",
        "MFU",
    ]
    head += ["s until the first step"]
    rows = []
    for name, arm in found["arms"].items():
        rate = arm["tokens_per_second"]
        rows.append(
            [
                f"**{name}**: {arm['words']}",
                str(arm["rounds"]),
                f"{rate['median']:.0f} ({rate['min']:.0f}–{rate['max']:.0f})",
                "" if arm["ratio"] is None else f"{arm['ratio']:.2f}",
                "not reached" if arm["seconds_to_target"] is None else f"{arm['seconds_to_target']:.0f}",
                f"{arm['validation_loss']:.3f}",
                f"{arm['peak_bytes'] / 1e9:.2f}",
                _share(arm),
                f"{arm['ready_seconds']:.0f}",
            ]
        )
    return table(head, rows)


def _share(arm: dict[str, Any]) -> str:
    return "" if arm["mfu"] is None else f"{arm['mfu']:.2f}"


def _sizes(found: dict[str, Any]) -> str:
    if not found["sizes"]:
        return ""
    rows = []
    for shape, told in found["sizes"].items():
        for name, arm in told["arms"].items():
            rate = arm["tokens_per_second"]
            speed = f"{rate['median']:.1f}"
            if arm["rounds"] > 1:
                speed += f" ({rate['min']:.1f}–{rate['max']:.1f})"
            ratio = "" if arm["ratio"] is None else f"{arm['ratio']:.2f}"
            peak, loss = f"{arm['peak_bytes'] / 1e9:.1f}", f"{arm['validation_loss']:.3f}"
            rounds = str(arm["rounds"])
            rows.append([shape, name, rounds, speed, ratio, peak, _share(arm), loss])
        rows += [[shape, name, "", f"failed: {why}", "", "", "", ""] for name, why in told["failed"].items()]
    first = next(iter(found["sizes"].values()))
    costs = ", ".join(f"{s['flops_per_token'] / 1e9:.2f} for {name}" for name, s in found["sizes"].items())
    return (
        "## Larger models\n\n"
        f"Random weights in the shapes of larger models, {first['task']['rows']} of the rows, "
        f"{first['task']['steps']} steps. Nothing is fetched, and nothing is learnt that means anything; speed, "
        f"memory and arithmetic are those of the shape. A token costs, in GFLOP: {costs}.\n\n"
        + table(["shape", "arm", "rounds", "tokens/s (range)", f"× {BASELINE}", "peak GB", "MFU", "loss"], rows)
        + (f"\n\n{LITGPT_SHAPE}" if any("litgpt" in s["arms"] for s in found["sizes"].values()) else "")
    )


def _missing(found: dict[str, Any]) -> str:
    rows = [f"- {name}: {why}." for name, why in LEFT_OUT.items()]
    rows += [f"- {name}: it failed here: {why}" for name, why in found["failed"].items()]
    absent = [a for a in ARMS if a not in found["arms"] and a not in found["failed"]]
    rows += [f"- {name}: not measured here." for name in absent]
    return "## What is not in the table\n\n" + "\n".join(rows)


def _levers(found: dict[str, Any]) -> str:
    if not found["levers"]:
        return ""
    rows = []
    for lever in found["levers"]:
        if "error" in lever:
            rows.append([lever["lever"], "", "", "", "", f"no: {lever['error']}"])
            continue
        gain = "" if lever["gain"] is None else f"{lever['gain']:.2f}"
        kept = "" if lever["gain"] is None else "yes" if lever["kept"] else "no"
        memory, loss = f"{lever['peak_bytes'] / 1e9:.2f}", f"{lever['validation_loss']:.3f}"
        rate = f"{lever['tokens_per_second']:.0f}" + (f" (of {lever['beside']:.0f})" if "beside" in lever else "")
        rows.append([lever["lever"], rate, gain, memory, loss, kept])
    head = ["one change to the arm `lora`", "tokens/s then", "what the lever gives, ×", "peak GB", "loss", "kept"]
    text = "## What each lever gives\n\n" + table(head, rows)
    runs = found["levers"][0]["runs"]
    text += (
        f"\n\nOne run each. The unchanged arm came first and last: {' and '.join(f'{r:.0f}' for r in runs)} tokens/s"
    )
    if len(runs) > 1:
        noise = max(runs) / min(runs) - 1
        text += (
            f". That is {noise:.0%} apart, and what a lever gives within {1 - noise:.2f} to {1 + noise:.2f} is "
            "undecided: such a lever is kept where it saves memory, is the library's own default or pays on another "
            "machine"
        )
    text += ". A kept lever is taken away, any other is added."
    if any("beside" in lever for lever in found["levers"]):
        text += (
            " Where a rate is of another one, that is not those two: an unchanged run right before, or for packing "
            "the run with SDPA, which it needs."
        )
    if told := found["compiled"]:
        text += (
            f" Compiling costs {told['cost']:.0f} s in the first half of these steps; after that a step is "
            f"{abs(told['gain']):.2f} s {'shorter' if told['gain'] > 0 else 'longer'} than the unchanged one, so it "
            + (f"pays from step {told['steps']:.0f} on." if told["steps"] else "never pays here.")
        )
    return text


def _apart(found: dict[str, Any]) -> str:
    """Levers measured without a training, and what the products alone allow."""
    told = found["products"]
    if not told:
        return ""
    rows = [
        [
            lever["lever"],
            f"{lever['gain']:.3f}",
            lever["what"],
            "yes" if lever["kept"] else "no",
        ]
        for lever in told["apart"]
    ]
    shapes = [
        [
            f"{s['inputs']} → {s['outputs']}",
            str(s["layers"]),
            *(f"{s[way]['gflops']:,.0f} ({s[way]['packed_gflops']:,.0f})" for way in ("forward", "backward")),
        ]
        for s in told["shapes"]
    ]
    return (
        "**Measured apart**, without a training:\n\n"
        + table(["lever", "gives a step, ×", "measured", "kept"], rows)
        + f"\n\nThe frozen layers' products, {told['rows']:,} rows at a time, GFLOP/s, pre-packed in brackets; the "
        "best of many, with nothing between them:\n\n"
        + table(["shape", "layers", "forward", "backward"], shapes)
        + f"\n\nTogether they take {told['seconds']:.2f} s a step, at {told['mfu']:.2f} of the peak; a step of the "
        f"unchanged arm takes {told['step']:.2f} s."
    )


def _profile(found: dict[str, Any]) -> str:
    if not found["profile"]:
        return ""
    kinds = sorted(
        {kind for part in found["profile"].values() for kind in part["milliseconds"]},
        key=lambda kind: -max(part["milliseconds"].get(kind, 0) for part in found["profile"].values()),
    )
    rows = []
    for kind in kinds:
        row = [kind]
        for part in found["profile"].values():
            spent, whole = part["milliseconds"].get(kind, 0.0), sum(part["milliseconds"].values())
            row.append(f"{spent:.0f} ({spent / whole:.0%})")
        rows.append(row)
    whole = [f"{sum(part['milliseconds'].values()):.0f}" for part in found["profile"].values()]
    tokens = [str(part["tokens"]) for part in found["profile"].values()]
    rate = [f"{sum(part['milliseconds'].values()) / part['tokens']:.2f}" for part in found["profile"].values()]
    rows += [["**all**", *whole], ["real tokens in the step", *tokens], ["milliseconds a token", *rate]]
    return "## Where a step's time goes\n\nMilliseconds of one step under torch's profiler.\n\n" + table(
        ["", *found["profile"]], rows
    )


def _evaluation(found: dict[str, Any]) -> str:
    parts = []
    if told := found["evaluation"]:
        rate = told["tokens_per_second"]
        parts.append(
            f"{told['questions']} questions, answers of up to 64 tokens, greedy: {rate['batched']:.0f} tokens a "
            "second by `models.generate` (sorted, batched, what all begin with read once), "
            f"{rate['one by one']:.0f} one by one with `generate`: **{told['ratio']:.1f} times**. {told['same']:.0%} "
            "of the answers are the same to the letter; the others differ by how sums of bf16 round, in a batch "
            "and in fused layers."
        )
        parts.append(_generation(told["levers"]))
    if over := found["overhead"]:
        seconds = over["seconds"]
        parts.append(
            f"Notebook 01, shortened, takes {seconds['notebook']:.0f} s through the launcher, kernel, figures and "
            f"record included, and {seconds['script']:.0f} s as a bare script: {over['over']:+.1%}, median of "
            f"{over['rounds']} runs each; their scores are {'the same' if over['same'] else 'NOT the same'}."
        )
    return "## Evaluation, and the notebook itself\n\n" + "\n\n".join(parts) if parts else ""


def _generation(levers: list[dict[str, Any]]) -> str:
    rows = [
        [
            lever["lever"],
            *(f"{lever['seconds'][way]:.1f}" for way in ("with", "without")),
            f"{lever['gain']:.2f}",
            "yes" if lever["kept"] else "no",
        ]
        for lever in levers
    ]
    return (
        table(["lever of generation", "s with", "s without", "gives, ×", "kept"], rows)
        + "\n\nOne run each: a tenth more or less is undecided. A merged adapter rounds its sum with the weights, so "
        "the notebooks score the adapter as it was trained, and compare the merged model with it when it ships. A "
        "static cache is not used together with what is read once."
    )


def _versions(found: dict[str, Any]) -> str:
    rows = [[name, ", ".join(f"{k} {v}" for k, v in arm["versions"].items())] for name, arm in found["arms"].items()]
    return "## Versions\n\n" + table(["arm", "versions"], rows)
