"""Scores of transcripts: word and character error rate, keyword recall; and a word-level diff to look at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape

import jiwer
import numpy as np
from IPython.display import HTML
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from cookbook.audio import Clip
from cookbook.evaluation import Score


@cache
def _normaliser() -> EnglishTextNormalizer:
    return EnglishTextNormalizer({})  # without the table of British spellings, which a model's file may lack


def normalise(text: str) -> str:
    """Whisper's own form for comparing: lower case, no punctuation, numbers as digits, no hesitations."""
    return " ".join(_normaliser()(text).split())


def score(clips: Sequence[Clip], transcripts: Sequence[str]) -> dict[str, Score]:
    """`wer`, `cer`, and `keyword_recall` where clips have keywords; all by errors or hits over all words.

    What is drawn again for an interval is a *sentence*, with all its clips: two voices that say the same sentence are
    no two independent rows. Word error rate counts substitutions, insertions and deletions over the words of the
    reference (jiwer), so it may pass 1. A keyword counts as heard where it stands in the transcript, whole.
    """
    sentences = list(dict.fromkeys(clip.text for clip in clips))
    place = {text: i for i, text in enumerate(sentences)}
    rows = np.array([place[clip.text] for clip in clips])
    pairs = [(normalise(clip.text), normalise(said)) for clip, said in zip(clips, transcripts, strict=True)]
    found = {}
    for name, measure in (("wer", jiwer.process_words), ("cer", jiwer.process_characters)):
        counted = [measure(*pair) for pair in pairs]
        wrong = [c.substitutions + c.insertions + c.deletions for c in counted]
        found[name] = _ratio(rows, wrong, [c.hits + c.substitutions + c.deletions for c in counted], better=False)
    heard = [[hears(said, word) for word in clip.keywords] for clip, said in zip(clips, transcripts, strict=True)]
    if any(heard):
        found["keyword_recall"] = _ratio(rows, [sum(h) for h in heard], [len(h) for h in heard], better=True)
    return found


def hears(transcript: str, keyword: str) -> bool:
    """Whether a keyword, or its plural or genitive, stands in the transcript as words of its own."""
    return bool(re.search(rf"\b{re.escape(normalise(keyword))}( ?s|es)?\b", normalise(transcript)))


def by(clips: Sequence[Clip], transcripts: Sequence[str], groups: Sequence[str]) -> dict[str, float]:
    """Word error rate of each group of clips, such as a voice or a kind of noise; groups in alphabetical order."""
    parts: dict[str, list[int]] = {name: [] for name in sorted(set(groups))}
    for i, name in enumerate(groups):
        parts[name].append(i)
    return {
        name: score([clips[i] for i in rows], [transcripts[i] for i in rows])["wer"].value
        for name, rows in parts.items()
    }


def diff(clip: Clip, **transcripts: str) -> HTML:
    """What was said, each transcript under it: wrong words red, missing ones struck through, surplus ones with +."""
    lines = [("said", escape(normalise(clip.text)))]
    for name, transcript in transcripts.items():
        aligned = jiwer.process_words(normalise(clip.text), normalise(transcript))
        lines.append((name, " ".join(_marked(aligned))))
    cells = "".join(f"<tr><td style='color:#666;padding-right:1em'>{n}</td><td>{text}</td></tr>" for n, text in lines)
    return HTML(f'<table style="font-family:monospace;font-size:12px;text-align:left">{cells}</table>')


def _marked(aligned: jiwer.WordOutput) -> Iterable[str]:
    wanted, given = aligned.references[0], aligned.hypotheses[0]
    for chunk in aligned.alignments[0]:
        old = escape(" ".join(wanted[chunk.ref_start_idx : chunk.ref_end_idx]))
        new = escape(" ".join(given[chunk.hyp_start_idx : chunk.hyp_end_idx]))
        if chunk.type == "equal":
            yield new
        elif chunk.type == "delete":
            yield f'<s style="color:#a33">{old}</s>'
        else:
            sign = "+" if chunk.type == "insert" else ""
            yield f'<b style="background:#f8d7d4;color:#7a1f1a">{sign}{new}</b>'


def _ratio(rows: np.ndarray, counts: Sequence[int], totals: Sequence[int], *, better: bool) -> Score:
    """A score that is a ratio of sums over sentences; a row is a sentence's own ratio."""
    above = np.bincount(rows, weights=counts)
    below = np.bincount(rows, weights=totals)

    def aggregate(index: np.ndarray) -> float:
        return float(above[index].sum() / max(below[index].sum(), 1))

    own = above / np.maximum(below, 1)
    return Score(aggregate(np.arange(len(own))), own, aggregate, higher_is_better=better)
