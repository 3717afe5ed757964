"""Preference pairs: both forms are read alike, and what would spoil a run is refused with file and line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cookbook import data, leakage, pairs
from cookbook.batch import RequestError, check_parameters, find
from cookbook.tables import DataError

WORDS = "table lamp spoon door river cloud paper glass train garden music salt wool bread stone chair".split()


def rows(count: int = 30) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {
            "prompt": f"{i}: {' '.join(draw.sample(WORDS, 8))}",
            "chosen": f"Good {' '.join(draw.sample(WORDS, 4))}",
            "rejected": f"Bad {' '.join(draw.sample(WORDS, 4))}",
            "kind": "ordinary" if i % 3 else "decline",
        }
        for i in range(count)
    ]


def write(file: Path, lines: list[dict[str, Any]]) -> Path:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif file.suffix == ".csv":
        pd.DataFrame(lines).to_csv(file, index=False)
    else:
        pd.DataFrame(lines).to_parquet(file)
    return file


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_file_is_read_and_cut(tmp_path: Path, suffix: str) -> None:
    found = pairs.load(write(tmp_path / f"p.{suffix}", rows()), instruction="Reply.")
    assert [len(part) for part in (found.train, found.validation, found.test)] == [20, 4, 6]
    assert {p.text for p in [*found.train, *found.validation, *found.test]} == {row["prompt"] for row in rows()}
    first = found.train[0]
    assert first.prompt[0] == {"role": "system", "content": "Reply."} and first.prompt[1]["role"] == "user"
    assert first.chosen.startswith("Good") and first.rejected.startswith("Bad")
    assert set(first.extra) == {"kind"}
    assert first.source.startswith(f"p.{suffix}:")
    assert not any(leakage.gate(found).pairs.values())


def test_the_same_pairs_in_any_format_have_one_fingerprint(tmp_path: Path) -> None:
    found = {pairs.load(write(tmp_path / f"p.{s}", rows())).fingerprint for s in ("jsonl", "csv", "parquet")}
    assert len(found) == 1


def test_fewer_pairs(tmp_path: Path) -> None:
    found = pairs.load(write(tmp_path / "p.jsonl", rows()))
    assert len(data.take(found, train=8, test=4).train) == 8


def broken(**changed: Any) -> dict[str, Any]:
    return {k: v for k, v in (rows()[0] | {"prompt": "something else"} | changed).items() if v != "DROP"}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (broken(rejected="DROP"), "'rejected' is missing"),
        (broken(chosen=""), "empty 'chosen'"),
        (broken(prompt="  "), "empty 'prompt'"),
        (broken(chosen="The  same", rejected="The same"), "the same text: there is nothing to prefer"),
        (broken(chosen=3), "'chosen' holds a number; it must be text"),
        (broken(chosen=[{"role": "assistant", "content": "x"}]), "'chosen' holds a list"),
        (rows()[4] | {"chosen": rows()[4]["rejected"], "rejected": rows()[4]["chosen"]}, "than line 5 does"),
    ],
)
def test_a_faulty_pair_is_named(tmp_path: Path, row: dict[str, Any], text: str) -> None:
    file = write(tmp_path / "p.jsonl", [*rows(12), row])
    with pytest.raises(DataError, match=r"p\.jsonl:13: .*") as error:
        pairs.load(file)
    assert text in str(error.value)


def test_faults_of_the_whole_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p.jsonl:1: no column 'rejected'; did you mean 'rejekted'\?"):
        pairs.load(write(tmp_path / "p.jsonl", [{"rejekted" if k == "rejected" else k: v for k, v in r.items()} for r in rows()]))  # fmt: skip  # noqa: E501
    with pytest.raises(DataError, match="test has 0 pairs"):
        folder = tmp_path / "f"
        folder.mkdir()
        write(folder / "train.jsonl", rows())
        write(folder / "test.jsonl", [label(0, "skip", "x"), label(1, "tie", "x")])
        pairs.load(folder)
    with pytest.raises(DataError, match="the file is empty"):
        pairs.load(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(DataError, match=r"train has 1 pairs \(of 9, after cutting .*needs 8; add pairs"):
        pairs.load(write(tmp_path / "few.jsonl", rows(9)))


def label(i: int, given: str, who: str | None = None, swapped: bool = False) -> dict[str, Any]:
    row = rows()[i]
    a, b = (row["rejected"], row["chosen"]) if swapped else (row["chosen"], row["rejected"])
    return {"prompt": row["prompt"], "a": a, "b": b, "label": given} | ({"labeller": who} if who else {})


def test_labels_come_to_the_same_pairs(tmp_path: Path) -> None:
    lines = [label(i, "b" if i % 2 else "a", "ann", swapped=bool(i % 2)) for i in range(30)]
    found = pairs.load(write(tmp_path / "l.jsonl", lines))
    every = [*found.train, *found.validation, *found.test]
    assert {(p.text, p.chosen, p.rejected) for p in every} == {
        (r["prompt"], r["chosen"], r["rejected"]) for r in rows()
    }
    assert found.report[0] == "train: 30 of 30 labelled pairs are used."
    assert not found.agreement


def test_the_last_label_of_a_labeller_counts(tmp_path: Path) -> None:
    lines = [label(i, "a") for i in range(30)] + [label(0, "b"), label(1, "a", swapped=True), label(2, "tie")]
    found = pairs.load(write(tmp_path / "l.jsonl", lines))
    every = {p.text: p for p in [*found.train, *found.validation, *found.test]}
    assert every[rows()[0]["prompt"]].chosen.startswith("Bad") and every[rows()[0]["prompt"]].source == "l.jsonl:31"
    assert every[rows()[1]["prompt"]].chosen.startswith("Bad"), "shown the other way round: a is the rejected one"
    assert rows()[2]["prompt"] not in every
    assert "29 of 30 labelled pairs are used; left out: 1 by tie." in found.report[0]


def test_labelled_answers_keep_their_lines(tmp_path: Path) -> None:
    given = [label(i, "a", "one") | {"a": f"Dear {i},\n\nyes."} for i in range(12)]
    found = pairs.load(write(tmp_path / "l.jsonl", given), min_rows=(1, 1, 1))
    assert {p.chosen for p in (*found.train, *found.validation, *found.test)} == {g["a"] for g in given}


def test_two_labellers(tmp_path: Path) -> None:
    lines = [label(i, "a", "ann") for i in range(30)] + [label(i, "b" if i < 6 else "a", "bob") for i in range(20)]
    lines += [label(29, "skip", "bob")]
    found = pairs.load(write(tmp_path / "l.jsonl", lines))
    assert "24 of 30 labelled pairs are used; left out: 6 by disagreement." in found.report[0]
    (both,) = found.agreement
    assert (both.labellers, both.n, both.observed) == (("ann", "bob"), 20, 0.7)
    assert both.differ[0] == "l.jsonl:31" and len(both.differ) == 6
    assert "ann and bob agree on 70% of 20 pairs" in str(both)


def test_an_unknown_label_is_named(tmp_path: Path) -> None:
    lines = [label(i, "a") for i in range(8)] + [label(9, "A ")]
    with pytest.raises(DataError, match=r"l.jsonl:9: unknown label 'A '.*use a, b, tie, skip"):
        pairs.load(write(tmp_path / "l.jsonl", lines))


def test_kappa_by_hand() -> None:
    first, second = ["a"] * 25 + ["b"] * 25, ["a"] * 20 + ["b"] * 5 + ["a"] * 10 + ["b"] * 15
    assert pairs.kappa(first, second) == pytest.approx(0.4)  # the example of Cohen's table: (0.7 - 0.5) / 0.5
    assert pairs.kappa(["a", "b"], ["a", "b"]) == pairs.kappa(["a", "a"], ["a", "a"]) == 1
    assert pairs.kappa(["a", "b"], ["b", "a"]) == -1


def test_kappa_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = random.Random(1)
    first = draw.choices(["a", "b", "tie"], k=60)
    second = [x if draw.random() < 0.6 else draw.choice(["a", "b", "tie"]) for x in first]
    assert pairs.kappa(first, second) == pytest.approx(metrics.cohen_kappa_score(first, second))


def test_prompts_that_leak_are_refused(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", rows(12 if split == "train" else 4))
    with pytest.raises(leakage.LeakageError, match="train.jsonl:1 and .*test.jsonl:1"):
        leakage.gate(pairs.load(tmp_path))


def test_rows_for_the_trainers() -> None:
    pair = pairs.Pair([{"role": "user", "content": "q"}], "good", "bad", "f:1")
    (row,) = pairs.rows([pair])
    assert row["chosen"] == [{"role": "assistant", "content": "good"}] and row["prompt"] == pair.prompt
    assert [(r["completion"][0]["content"], r["label"]) for r in pairs.unpaired([pair])] == [
        ("good", True),
        ("bad", False),
    ]


def test_long_pairs(llama: Path, tmp_path: Path) -> None:
    from cookbook import models

    tokenizer = models.load_tokenizer(str(llama))
    found = pairs.load(write(tmp_path / "p.jsonl", rows())).train
    lengths = pairs.lengths(found, tokenizer)
    limit = sorted(lengths)[-3]
    kept, remark = pairs.fit_length(found, tokenizer, limit, "drop")
    assert len(kept) == sum(n <= limit for n in lengths) < len(found) and "longer than" in remark
    assert pairs.fit_length(found, tokenizer, max(lengths), "error") == (found, "")
    with pytest.raises(DataError, match="p.jsonl:"):
        pairs.fit_length(found, tokenizer, limit, "error")
    with pytest.raises(ValueError, match="a pair must not be cut"):
        pairs.fit_length(found, tokenizer, limit, "truncate")


def test_the_launcher_refuses_bad_pairs_before_a_kernel(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [*rows(12), broken(chosen="x", rejected="x")])
    with pytest.raises(RequestError, match=r"DATA: bad.jsonl:13: 'chosen' and 'rejected' are the same text"):
        check_parameters(find("05"), {"DATA": str(bad)})
    good = write(tmp_path / "good.jsonl", rows())
    assert check_parameters(find("05"), {"DATA": str(good)}) == {"DATA": str(good)}
    only_test = tmp_path / "folder"
    only_test.mkdir()
    write(only_test / "test.jsonl", rows(8))
    check_parameters(find("05"), {"DATA": str(only_test)})  # trains on the sample's pairs
