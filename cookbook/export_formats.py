"""The forms in which other tools read a training set, one function a form, and what each tool asks of its files.

Where the forms are documented (read in 2026):
axolotl: the pages "Conversation" (type chat_template) and "RLHF" (type chat_template.default); its own loaders.
llama-factory: data/README.md of the repository (sharegpt, and its ranking form); its own converters.
openai: the guides "Supervised fine-tuning" and "Direct preference optimization".
together: the pages "Data preparation" and "Preference fine-tuning"; the check of its Python package.
bedrock: "Prepare data for fine-tuning text-to-text models" in the Bedrock user guide, "Preparing data for
fine-tuning Understanding models" in the Nova user guide.
nemo: "Fine-tuning with Custom Datasets" of the NeMo Framework (input and output, the names of the files), the
ChatDataset of NeMo AutoModel (messages), the PreferenceDataset of NeMo RL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
Form = Callable[[Row], dict[str, Any] | None]  # a row of a `TrainingSet` -> the tool's record; None: it has no form
ROLES = ("system", "user", "assistant")


def messages(row: Row) -> dict[str, Any]:
    """The whole conversation; loss belongs to the last answer alone, and no row says so here."""
    return {"messages": [*row["prompt"], *row["completion"]]}


def marked(key: str, value: Any) -> Form:
    """`messages`, where answers before the last one carry a mark that keeps them out of the loss."""

    def form(row: Row) -> dict[str, Any]:
        earlier = [turn | {key: value} if turn["role"] == "assistant" else turn for turn in row["prompt"]]
        return {"messages": [*earlier, *row["completion"]]}

    return form


def converse(row: Row) -> dict[str, Any]:
    """Bedrock's conversation: the system message apart, each content a list of texts."""
    system = [{"text": turn["content"]} for turn in row["prompt"] if turn["role"] == "system"]
    turns = [turn for turn in [*row["prompt"], *row["completion"]] if turn["role"] != "system"]
    said = [{"role": turn["role"], "content": [{"text": turn["content"]}]} for turn in turns]
    return {"schemaVersion": "bedrock-conversation-2024", **({"system": system} if system else {}), "messages": said}


def flat(asked: str, answered: str) -> Form:
    """Two texts: the system message and the question with an empty line between, and the answer.

    A conversation of several turns has no such form.
    """

    def form(row: Row) -> dict[str, Any] | None:
        if sum(turn["role"] != "system" for turn in row["prompt"]) > 1:
            return None
        prompt = "\n\n".join(turn["content"] for turn in row["prompt"])
        return {asked: prompt, answered: row["completion"][0]["content"]}

    return form


def ranked_messages(row: Row) -> dict[str, Any]:
    """LLaMA-Factory's ranking form, and Axolotl's chat form of DPO: the two answers as one message each."""
    return {"messages": row["prompt"], "chosen": row["chosen"][0], "rejected": row["rejected"][0]}


def preferred(row: Row) -> dict[str, Any]:
    """OpenAI's and Together's form: the prompt as `input`, the two answers as lists of one message."""
    asked = {"input": {"messages": row["prompt"]}}
    return asked | {"preferred_output": row["chosen"], "non_preferred_output": row["rejected"]}


def ranks(row: Row) -> dict[str, Any]:
    """NeMo RL's form: completions with their ranks, 0 for the better one."""
    answers = [{"rank": rank, "completion": row[side]} for rank, side in enumerate(("chosen", "rejected"))]
    return {"context": row["prompt"], "completions": answers}


@dataclass(frozen=True)
class Format:
    """One tool's files.

    Attributes:
        sft: the forms of answers to learn, by the folder they go to ("": none, the place itself).
        preference: the same of pairs; empty: the tool has no form for them.
        places: the name of each split's file; a split without one is kept back.
        suffix: "jsonl", or "json" for one array.
        alternating: after a system message user and assistant must take turns.
        fewest: training rows that the tool asks for; `said` is where.
        longest: tokens of one example; longer ones are cut or refused.
        reserved: words that may not stand in a prompt.
    """

    sft: Mapping[str, Form]
    preference: Mapping[str, Form] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "validation": "validation"})
    suffix: str = "jsonl"
    alternating: bool = False
    fewest: int = 1
    longest: int = 0
    said: str = ""
    reserved: re.Pattern[str] | None = None


EVERY = {"train": "train", "validation": "validation", "test": "test"}
FORMATS: dict[str, Format] = {
    "axolotl": Format(sft={"": marked("train", False)}, preference={"": ranked_messages}),
    "llama-factory": Format(
        sft={"": messages}, preference={"": ranked_messages}, places=EVERY, suffix="json", alternating=True
    ),
    "openai": Format(
        sft={"": marked("weight", 0)},
        preference={"": preferred},
        fewest=10,
        longest=65_536,
        said="OpenAI's guide to supervised fine-tuning; the length as Azure documents it for gpt-4o models",
    ),
    "together": Format(
        sft={"": marked("weight", 0)},
        preference={"": preferred},
        alternating=True,
        said="Together's page on data preparation",
    ),
    "bedrock": Format(
        sft={"converse": converse, "prompt_completion": flat("prompt", "completion")},
        alternating=True,
        fewest=100,
        said="the Amazon Nova user guide, which recommends at least 100 for each task",
        reserved=re.compile(r"^(?:User|Bot|Assistant|System):|<image>|<video>|\[EOS\]"),
    ),
    "nemo": Format(
        sft={"chat": messages, "input_output": flat("input", "output")},
        preference={"preference": ranks},
        places={"train": "training", "validation": "validation", "test": "test"},
    ),
}
# How LLaMA-Factory finds its way in the files: one entry a file of dataset_info.json.
SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}
RANKING = SHAREGPT | {
    "ranking": True,
    "columns": {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
}


def fault(row: Row, alternating: bool) -> str:
    """What keeps a row from being a training example of the tool; empty if nothing does."""
    turns = [*row["prompt"], *row.get("completion", []), *row.get("chosen", [])[:1]]
    for turn in [*turns, *row.get("rejected", [])]:
        if turn["role"] not in ROLES or not turn["content"].strip():
            return f"an empty message, or one of the role {turn['role']!r}"
    roles = [turn["role"] for turn in turns]
    said = roles[1:] if roles[0] == "system" else roles
    if said[-2:] != ["user", "assistant"] or "system" in said:
        return "the last two messages must be a user's and the answer to it"
    if alternating and said != ["user", "assistant"] * (len(said) // 2):
        return "user and assistant must take turns, beginning with the user"
    return ""


def limits(tool: str, rows: list[Row]) -> list[str]:
    """What the tool's limits say of the training rows, one remark a line; nothing if none is touched."""
    form, remarks = FORMATS[tool], []
    if len(rows) < form.fewest:
        remarks.append(f"{len(rows)} training rows, and {tool} asks for {form.fewest} ({form.said})")
    if form.longest:  # a token is at least one byte, so fewer bytes need no tokenizer
        long = [row["source"] for row in rows if _bytes(row) > form.longest]
        if long:
            places = ", ".join(long[:5]) + ", ..." * (len(long) > 5)
            remarks.append(f"{places}: may be longer than {form.longest} tokens, where {tool} cuts ({form.said})")
    if form.reserved:
        odd = [r["source"] for r in rows if any(form.reserved.search(turn["content"]) for turn in r["prompt"])]
        if odd:
            places = ", ".join(odd[:5]) + ", ..." * (len(odd) > 5)
            remarks.append(f"{places}: a prompt holds a word that {tool} reserves (User:, [EOS], ...; {form.said})")
    return remarks


def _bytes(row: Row) -> int:
    sides = [row["completion"]] if "completion" in row else [row["chosen"], row["rejected"]]
    asked = sum(len(turn["content"].encode()) for turn in row["prompt"])
    return asked + max(len(side[0]["content"].encode()) for side in sides)
