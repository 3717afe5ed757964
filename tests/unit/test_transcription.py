"""Error rates by hand-counted examples; intervals draw sentences and not clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cookbook import evaluation, transcription
from cookbook.audio import Clip


def clip(text: str, *keywords: str) -> Clip:
    return Clip(Path("x.wav"), text, "t:1", np.zeros(1, np.float32), keywords)


def test_normal_form() -> None:
    assert transcription.normalise("Um, the Kettra cost twenty-five dollars!") == "the kettra cost $25"
    assert transcription.normalise("Order forty-eight,  please.") == transcription.normalise("order 48 please")


def test_error_rates_are_ratios_of_sums() -> None:
    clips = [clip("the kettle leaks badly"), clip("no"), clip("it is the descaler")]
    found = transcription.score(clips, ["The cattle leaks.", "no", "it is the the descaler"])
    assert found["wer"].value == pytest.approx((2 + 0 + 1) / 9)
    assert list(found["wer"].rows) == [0.5, 0, 0.25]
    assert not found["wer"].higher_is_better and "keyword_recall" not in found
    assert transcription.score(clips, [c.text for c in clips])["cer"].value == 0
    assert transcription.score([clip("yes")], ["oh well no no"])["wer"].value > 1


def test_keywords_whole_and_in_other_forms() -> None:
    clips = [clip("The Kettra and its drip tray.", "Kettra", "drip tray"), clip("A bain-marie.", "bain-marie")]
    found = transcription.score(clips, ["the kettras and a drip-tray", "a ban marie"])["keyword_recall"]
    assert found.value == pytest.approx(2 / 3) and found.higher_is_better
    assert transcription.hears("I said SKU, twice", "SKU")
    assert not transcription.hears("the kettrable thing", "Kettra")
    assert not transcription.hears("raised a farm army", "RMA")


def test_a_sentence_is_the_unit() -> None:
    pair = [clip("one two three four"), clip("one two three four"), clip("five six")]
    found = transcription.score(pair, ["one two three four", "", "five six"])["wer"]
    assert len(found.rows) == 2 and list(found.rows) == [0.5, 0]
    clips = [clip(f"alpha beta {i}") for i in range(30) for _ in range(4)]
    wrong = ["gamma beta" if i % 8 < 4 else "" for i in range(120)]
    low, high = evaluation.interval(transcription.score(clips, [c.text for c in clips])["wer"],
                                    transcription.score(clips, wrong)["wer"])  # fmt: skip
    assert high - low > 0.05, "four clips of one sentence are not four sentences"


def test_compared_and_probed() -> None:
    clips = [clip(f"word number {i} said") for i in range(12)]
    before = transcription.score(clips, ["said"] * 12)
    after = transcription.score(clips, [c.text for c in clips])
    change = evaluation.compare(before, after)["wer"]
    assert change.verdict == "improved" and change.ci95[1] < 0
    probe = evaluation.probes({"general": after["wer"]}, {"general": before["wer"]})[0]
    assert (probe.probe, probe.verdict, probe.n) == ("general", "worse", 12)


def test_groups_and_diff() -> None:
    clips = [clip("yes please"), clip("no thanks")]
    assert transcription.by(clips, ["yes please", "no"], ["b", "a"]) == {"a": 0.5, "b": 0.0}
    shown = transcription.diff(clip("the kettle leaks now"), tuned="the cattle leaks").data
    assert ">cattle</b>" in shown and "<s" in shown and ">now</s>" in shown
