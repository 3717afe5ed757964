"""Should you fine-tune at all, and how? The rules that practitioners' guides give, as data and one function."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from cookbook import recipes
from cookbook.recipes import RequestError

# The guides whose rules these are. What this project measured of them stands in its notebooks, claim by claim.
WU = "Wu 2025, A Comprehensive Guide to LLM Fine-Tuning"
LATA = "Lata Softwares 2025, Fine-Tuning LLMs in 2025"
DEXTRA = "Dextralabs 2025, fine-tuning guide"
STACK = "Fine-Tuning, a practitioner's guide of 2026"

LINK = re.compile(r"\[(.+?)\]\((.+?)\)")
PLANNED = {  # titles of notebooks that may not be there yet
    "06": "RLHF: reward model and PPO",
    "07": "reasoning with GRPO",
    "10": "continued pretraining",
    "12": "text generation with LoRA",
    "13": "data preparation",
    "15": "prompt, RAG or fine-tune",
    "22": "federated LoRA",
}


@dataclass(frozen=True)
class Question:
    """What is asked: possible answers with their wording, the first taken if none is given, and why it matters."""

    name: str
    text: str
    options: Mapping[str, str]
    why: str


YES_NO = {"no": "no", "yes": "yes"}
QUESTIONS = (
    Question(
        "task",
        "What is the model to do?",
        {
            "service": "customer service, questions and answers",
            "law": "law, medicine or another deep domain",
            "chat": "a chat assistant that people should like",
            "writing": "write, summarise, rewrite",
            "speech": "write down speech",
            "reasoning": "reason, where answers can be checked",
            "other": "something else",
        },
        "each kind of task has a usual method",
    ),
    Question("facts", "Do the facts in the answers change?", YES_NO, "weights cannot be edited like a document"),
    Question(
        "unseen", "Are facts needed that the model never saw?", YES_NO, "a prompt can carry them, training blurs them"
    ),
    Question("behaviour", "Should style, format or behaviour change?", YES_NO, "this is what fine-tuning does best"),
    Question(
        "examples",
        "How many good examples are there?",
        {
            "under 100": "fewer than 100",
            "100 to 1,000": "100 to 1,000",
            "1,000 to 10,000": "1,000 to 10,000",
            "over 10,000": "more than 10,000",
        },
        "too few are learnt by heart",
    ),
    Question(
        "latency", "Must answers come fast, or prompts be short?", YES_NO, "what is trained need not be prompted"
    ),
    Question(
        "private", "Is the data too sensitive for somebody else's service?", YES_NO, "then train a model of your own"
    ),
    Question(
        "departments",
        "How many departments or tasks share the model?",
        {"one": "one", "several": "several"},
        "adapters share one base",
    ),
    Question(
        "hardware",
        "What is there to train on?",
        {
            "laptop": "a laptop's processor",
            "one GPU": "one GPU of up to 24 GB",
            "one large GPU": "one GPU of 40 GB or more",
            "several GPUs": "several GPUs",
        },
        "memory decides between full fine-tuning, LoRA and QLoRA",
    ),
)


@dataclass(frozen=True)
class Reason:
    """One sentence, and the published guide that it comes from."""

    text: str
    source: str


@dataclass(frozen=True)
class Advice:
    """What to do: `approach` is prompt, RAG, fine-tune, or RAG and fine-tune.

    `method` is empty if nothing is trained. `notebooks` are numbers, the most fitting first; `start` holds the values
    to begin with.
    """

    approach: str
    method: str
    notebooks: tuple[str, ...]
    reasons: tuple[Reason, ...]
    examples: str
    start: Mapping[str, str]

    def markdown(self) -> str:
        """The advice as Markdown text, notebooks that exist as links."""
        lines = [f"**{self.approach}**{self.method and f': {self.method}'}", ""]
        lines += [f"- {reason.text} *({reason.source})*" for reason in self.reasons]
        lines += ["", *(f"{line}\n" for line in self._rest()), f"Notebooks: {links(self.notebooks)}"]
        return "\n".join(lines)

    def html(self) -> str:
        """The same as HTML, in the theme's own colours."""
        reasons = "".join(f"<li>{escape(r.text)} <i>({escape(r.source)})</i></li>" for r in self.reasons)
        rest = "".join(f"<p>{escape(line)}</p>" for line in self._rest())
        places = LINK.sub(r'<a href="\2" target="_blank">\1</a>', links(self.notebooks))
        return (
            '<div style="color:var(--jp-ui-font-color1, currentColor);line-height:1.5">'
            f"<p><b>{escape(self.approach)}</b>{escape(self.method and f': {self.method}')}</p>"
            f"<ul>{reasons}</ul>{rest}<p>Notebooks: {places}</p></div>"
        )

    def _rest(self) -> list[str]:
        begin = ", ".join(f"{name} {value}" for name, value in self.start.items())
        return [f"Data: {self.examples}", *([f"Begin with {begin}."] if begin else [])]


def advise(answers: Mapping[str, str]) -> Advice:
    """Which way to go, from answers to QUESTIONS by name; one that is not given takes its first option.

    Raises:
        RequestError: no such question, or no such answer to it.
    """
    given = _checked(answers)
    facts = "yes" in (given["facts"], given["unseen"])
    wishes = _wishes(given)
    enough = given["examples"] != "under 100"
    tunes = bool(wishes) and enough
    reasons = [Reason("Try a good prompt first: it costs least, and what it reaches is the bar to beat.", STACK)]
    if facts:
        reasons.append(Reason("Facts that change, or that the model never saw, are best retrieved (RAG).", STACK))
        if given["facts"] == "yes":
            reasons.append(Reason("Retrieval sees an update at once; weights need to be trained again.", DEXTRA))
    if wishes and not enough:
        reasons.append(Reason("With fewer than about 100 good examples a model is likely to overfit.", STACK))
    if tunes:
        reasons += wishes
    if facts and tunes:
        reasons.append(Reason("Both together serve complex domains best, and cost most.", STACK))
    approach = {(True, True): "RAG and fine-tune", (True, False): "RAG", (False, True): "fine-tune"}.get(
        (facts, tunes), "prompt"
    )
    if not tunes:
        return Advice(approach, "", ("15",), tuple(reasons), _data(given), {})
    method, notebooks, why = _method(given)
    start = {"learning rate": "1e-4", "epochs": "3"}
    if "LoRA" in method:
        start = {"learning rate": "1e-4 (up to 3e-4)", "epochs": "3"}
    if method.startswith("QLoRA"):
        start |= {"rank": "64", "alpha": "128"}
    reasons += [*why, Reason("Begin with learning rate 1e-4 and 3 epochs, then tune.", LATA)]
    return Advice(approach, method, notebooks + (("15",) if facts else ()), tuple(reasons), _data(given), start)


def _checked(answers: Mapping[str, str]) -> dict[str, str]:
    known = {question.name: question for question in QUESTIONS}
    problems = [
        f"there is no question {name!r}; there are {', '.join(known)}" for name in answers if name not in known
    ]
    for name, question in known.items():
        if name in answers and answers[name] not in question.options:
            problems.append(f"{name}: {answers[name]!r} is no answer; choose one of {', '.join(question.options)}")
    if problems:
        raise RequestError("\n".join(problems))
    return {name: answers.get(name, next(iter(question.options))) for name, question in known.items()}


def _wishes(given: Mapping[str, str]) -> list[Reason]:
    """What speaks for training."""
    found = []
    if given["behaviour"] == "yes":
        found.append(Reason("Style, format and behaviour are what fine-tuning changes reliably.", STACK))
    if given["latency"] == "yes":
        found.append(Reason("A tuned model needs a shorter prompt, so it can answer sooner.", STACK))
    if given["private"] == "yes":
        found.append(Reason("What is too sensitive for another's service calls for a model of your own.", STACK))
    if given["departments"] == "several":
        found.append(Reason("One base with an adapter each serves many departments.", WU))
    if given["task"] in ("law", "chat", "speech", "reasoning"):
        found.append(Reason("The task asks for abilities that a base model may lack.", STACK))
    return found


def _method(given: Mapping[str, str]) -> tuple[str, tuple[str, ...], list[Reason]]:
    """Method, notebooks and reasons, by kind of task, departments and hardware."""
    task, hardware, plenty = given["task"], given["hardware"], given["examples"] in ("1,000 to 10,000", "over 10,000")
    small = hardware == "one GPU"
    if task == "speech":
        return (
            "full fine-tuning of Whisper, or LoRA",
            ("04",),
            [Reason("Whisper adapts to jargon and accents.", DEXTRA)],
        )
    if task == "reasoning":
        why = Reason("GRPO is a simpler RLHF with strong results in reasoning.", STACK)
        return "GRPO with verifiable rewards", ("07",), [why]
    if task == "chat":
        why = [Reason("A chat assistant is made in three steps: SFT, reward model, RLHF.", WU)]
        why.append(Reason("DPO on preference pairs is simpler and needs less compute.", LATA))
        return "SFT, then a reward model, then RLHF; DPO instead of the last two is simpler", ("05", "06"), why
    if given["departments"] == "several":
        more = ("22",) if given["private"] == "yes" else ()
        return "adapters, one for each department", ("03", *more), [Reason("Many departments: adapters.", WU)]
    if task == "law":
        if plenty and hardware in ("one large GPU", "several GPUs"):
            return "full fine-tuning", ("02", "10"), [Reason("Deep domains: full fine-tuning.", WU)]
        why = Reason("Deep domains: full fine-tuning, or LoRA with a large corpus where memory is short.", WU)
        return ("QLoRA" if small else "LoRA") + " with a large corpus", ("02", "10", "01"), [why]
    if small:
        why = [Reason("One GPU: QLoRA, whose base is kept in four bits.", WU)]
        why.append(Reason("Usual: a 7B or 8B model, rank 64, alpha 128, 500 to 10,000 pairs, 2 to 12 hours.", STACK))
        return "QLoRA + SFT", ("01", "12") if task == "writing" else ("01", "19b"), why
    if task == "writing":
        return "LoRA + SFT", ("12", "01"), [Reason("Writing, summaries, rewriting: LoRA + SFT.", WU)]
    return "LoRA + SFT", ("01", "19b"), [Reason("Customer service and questions: LoRA or QLoRA with SFT.", WU)]


def _data(given: Mapping[str, str]) -> str:
    """The rule on the number of examples, for what there is."""
    text = {
        "under 100": "too few to train on; collect at least 100 good ones, or write them into the prompt",
        "100 to 1,000": "enough for style and format (100 to 500)",
        "1,000 to 10,000": "enough for domain knowledge (1,000 to 10,000)",
        "over 10,000": "enough to specialise wholly (10,000 to 100,000)",
    }[given["examples"]]
    if given["task"] == "law" and given["examples"] == "100 to 1,000":
        text += ", not for domain knowledge, which takes 1,000 to 10,000"
    return f"{text}; quality over quantity ({STACK}; {LATA})."


def published() -> dict[str, recipes.Recipe]:
    """The notebooks that there are, by number; each file is read for its title."""
    return {recipe.name.split("_")[0]: recipe for recipe in recipes.recipes()}


def links(numbers: Iterable[str], there: Mapping[str, recipes.Recipe] | None = None) -> str:
    """Notebooks by their numbers as Markdown links, or a title and that it is planned.

    Args:
        there: what `published` gave; None: look now.
    """
    there = published() if there is None else there
    return "; ".join(
        f"[{there[number].title}]({there[number].path.name})"
        if number in there
        else f"{number} · {PLANNED.get(number, 'notebook')} (planned)"
        for number in numbers
    )


def table(cases: Mapping[str, Mapping[str, str]]) -> str:
    """Named cases and what is advised for each, as a Markdown table."""
    there = published()
    lines = ["| case | approach | method | notebooks |", "|---|---|---|---|"]
    for name, answers in cases.items():
        advice = advise(answers)
        places = links(advice.notebooks, there)
        lines.append(f"| {name} | {advice.approach} | {advice.method or 'nothing is trained'} | {places} |")
    return "\n".join(lines)
