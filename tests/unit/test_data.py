"""What `cookbook.data` reads, what it refuses and where it says the fault is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cookbook import data, rows
from cookbook.data import DataError, load

LABELS = ("refund", "late", "broken")
NOUNS = "lamp kettle chair blanket rake boots puzzle speaker tea shelf mug duvet hose coat train toaster".split()
VERBS = "wobbles hums leaks arrived vanished shrank cracked smells stalls fades".split()


def ticket(i: int) -> dict:
    noun, verb = NOUNS[i % 16], VERBS[(i // 16 + i) % 10]
    text = f"{noun} {verb} {NOUNS[(7 * i + 3) % 16]} {VERBS[(3 * i + i // 10) % 10]} number {i * 37}: {i * i}"
    return {
        "message": text,
        "intent": LABELS[i % 3],
        "reply": f"Thank you for writing about your {noun} case {i}.",
    }


def tickets(n: int = 60) -> list[dict]:
    return [ticket(i) for i in range(n)]


def jsonl(path: Path, rows: list, **replaced: object) -> Path:
    """Write rows; `line_N=...` replaces line N by an object or by raw text."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    for key, value in replaced.items():
        lines[int(key[5:]) - 1] = value if isinstance(value, str) else json.dumps(value)
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def refused(source: object, *words: str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load(source, **options)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def without(row: dict, *keys: str) -> dict:
    return {key: value for key, value in row.items() if key not in keys}


# --- shapes and files --------------------------------------------------------------------------------


def test_named_columns_become_json(tmp_path):
    splits = load(jsonl(tmp_path / "tickets.jsonl", tickets()))
    example = splits.train[0]
    assert [turn["role"] for turn in example.prompt] == ["system", "user"]
    assert all(word in example.prompt[0]["content"] for word in ("intent", "reply", "JSON"))
    assert list(json.loads(example.completion)) == ["intent", "reply"] and example.target["intent"] in LABELS
    assert example.source.startswith("tickets.jsonl:")
    assert splits.schema.input == "message" and splits.schema.targets == ("intent", "reply")
    assert splits.schema.kinds == {"intent": "label", "reply": "text"}
    assert splits.schema.labels == {"intent": tuple(sorted(LABELS))}
    assert data.rows([example])[0]["completion"] == [{"role": "assistant", "content": example.completion}]


def test_named_columns_chosen_by_the_user(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", tickets())
    splits = load(path, input_column="reply", target_columns=["intent"], instruction="Classify.")
    assert splits.schema.input == "reply" and splits.schema.targets == ("intent",)
    assert splits.train[0].prompt[0] == {"role": "system", "content": "Classify."}
    assert load(path, target_columns="intent").schema.targets == ("intent",)
    refused(path, "a.jsonl:1", "'mesage'", "did you mean 'message'", input_column="mesage")
    refused(path, "a.jsonl:1", "'intents'", "did you mean 'intent'", target_columns=["intents"])


def test_id_is_no_target_and_exact_may_be_null(tmp_path):
    rows = [row | {"id": i, "order": None if i % 2 else f"LK-{i}"} for i, row in enumerate(tickets())]
    schema = load(jsonl(tmp_path / "a.jsonl", rows)).schema
    assert schema.targets == ("intent", "reply", "order") and schema.kinds["order"] == "exact"


def chats(n: int = 30) -> list[dict]:
    roles = ("user", "assistant", "user", "assistant")
    texts = [(f"hello {i}", "Yes?", ticket(i)["message"], ticket(i)["reply"]) for i in range(n)]
    return [{"messages": [{"role": r, "content": c} for r, c in zip(roles, t, strict=True)]} for t in texts]


def test_messages(tmp_path):
    path = jsonl(tmp_path / "chat.jsonl", chats())
    splits = load(path)
    assert [turn["role"] for turn in splits.train[0].prompt] == ["user", "assistant", "user"]
    assert splits.train[0].target is None and splits.schema.targets == ("answer",)
    assert splits.schema.kinds == {"answer": "text"} and splits.train[0].value("answer").startswith("Thank")
    assert load(path, instruction="Be kind.").train[0].prompt[0]["content"] == "Be kind."


def test_prompt_completion_strings_and_lists(tmp_path):
    strings = [{"prompt": row["message"], "completion": row["intent"]} for row in tickets()]
    lists = [
        {
            "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in strings
    ]
    one, two = (
        load(jsonl(tmp_path / "s.jsonl", strings)),
        load(jsonl(tmp_path / "l.jsonl", lists), instruction="I"),
    )
    assert one.train[0].prompt == [{"role": "user", "content": one.train[0].text}]
    assert one.schema.kinds == {"answer": "label"} and one.schema.labels["answer"] == tuple(sorted(LABELS))
    assert two.train[0].prompt[0]["content"] == "S" and two.train[0].completion == one.train[0].completion


def test_json_completions_are_parsed(tmp_path):
    answers = [{"prompt": r["message"], "completion": json.dumps(without(r, "message"))} for r in tickets()]
    splits = load(jsonl(tmp_path / "a.jsonl", answers))
    assert splits.schema.kinds == {"intent": "label", "reply": "text"}
    mixed = load(jsonl(tmp_path / "b.jsonl", answers, line_3={"prompt": "one more", "completion": "no JSON"}))
    assert mixed.schema.targets == ("answer",) and mixed.train[0].target is None
    assert any("JSON" in line for line in mixed.report)


def write_csv(path: Path, rows: list[dict], encoding: str = "utf-8", **options: str) -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n", **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_csv_parquet_jsonl_agree(tmp_path):
    rows = tickets()
    rows[4]["message"] += '\nsecond "quoted" line, with a comma'
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    files = [jsonl(tmp_path / "a.jsonl", rows), write_csv(tmp_path / "a.csv", rows), tmp_path / "a.parquet"]
    files += [
        write_csv(tmp_path / "bom.csv", rows, "utf-8-sig"),
        write_csv(tmp_path / "e.csv", rows, delimiter=";"),
    ]
    assert len({load(file).fingerprint for file in files}) == 1
    bom = tmp_path / "bom.jsonl"
    bom.write_bytes(b"\xef\xbb\xbf" + files[0].read_bytes())
    assert load(bom).fingerprint == load(files[0]).fingerprint


def test_folder_and_data_card(tmp_path):
    folder = tmp_path / "shop"
    jsonl(folder / "train.jsonl", tickets(30))
    write_csv(folder / "val.csv", tickets(40)[30:])
    jsonl(folder / "test.jsonl", tickets(60)[40:])
    (folder / "README.md").write_text("# Card\n\n- **Licence:** CC0-1.0\n", "utf-8")
    splits = load(folder)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [30, 10, 20]
    assert splits.licence == "CC0-1.0" and splits.test[2].source == "shop/test.jsonl:3"
    assert str(tmp_path) not in splits.source
    (folder / "val.csv").unlink()
    splits = load(folder)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [26, 4, 20]
    jsonl(folder / "train.json", tickets(30))
    refused(folder, "more than one file for train", "train.json,")


def test_folder_with_only_a_test_file(tmp_path):
    jsonl(tmp_path / "shop" / "train.jsonl", tickets(40))
    jsonl(tmp_path / "shop" / "test.jsonl", tickets(44)[40:])
    theirs = jsonl(tmp_path / "theirs" / "test.jsonl", tickets(60)[50:]).parent
    refused(theirs, "no training file", "fallback")
    splits = load(theirs, fallback=tmp_path / "shop")
    assert len(splits.test) == 10 and splits.test[0].source == "theirs/test.jsonl:1"
    assert len(splits.train) + len(splits.validation) == 40
    assert "theirs has no training rows: these come from shop." in splits.report
    jsonl(theirs / "test.jsonl", [{**without(row, "intent"), "intnet": "late"} for row in tickets(10)])
    refused(theirs, "theirs/test.jsonl:1", "no column 'intent'", "'intnet'", fallback=tmp_path / "shop")


def test_labels_that_training_never_shows_are_reported(tmp_path):
    jsonl(tmp_path / "d" / "train.jsonl", tickets(40))
    jsonl(tmp_path / "d" / "test.jsonl", [{**row, "intent": "refnd"} for row in tickets(50)[40:]])
    assert "test: intent has labels that training never shows: refnd." in load(tmp_path / "d").report


# --- refusals ----------------------------------------------------------------------------------------

ROW = ticket(200)
COLUMN_FAULTS = {
    "invalid JSON": ('{"message": "a", ', "invalid JSON"),
    "not a number": ('{"message": "a", "intent": NaN, "reply": "b"}', "invalid JSON"),
    "lone surrogate": ('{"message": "\\ud83d", "intent": "late", "reply": "b"}', "invalid JSON"),
    "not an object": ('["message", "intent"]', "is a list, not an object"),
    "missing column": (without(ROW, "reply"), "column 'reply' is missing"),
    "misnamed column": ({**without(ROW, "intent"), "intnet": "late"}, "did you mean 'intnet'"),
    "column in one row": ({**ROW, "colour": "red"}, "column 'colour' is in 1 of 60 rows only"),
    "number for text": ({**ROW, "intent": 3}, "column 'intent' holds a number (3); the others hold text"),
    "bool for text": ({**ROW, "intent": True}, "holds a true/false"),
    "list for text": ({**ROW, "reply": ["a"]}, "wrong type"),
    "number for message": ({**ROW, "message": 5}, "column 'message' holds a number; it must be text"),
    "empty answer": ({**ROW, "intent": " "}, "empty answer (column 'intent')"),
    "all null": ({**ROW, "intent": None, "reply": None}, "empty answer"),
    "one null label": ({**ROW, "intent": None}, "empty answer"),
    "empty message": ({**ROW, "message": ""}, "empty message (column 'message')"),
    "null message": ({**ROW, "message": None}, "empty message"),
    "mixed shapes": ({"messages": []}, "mixed row shapes"),
}


@pytest.mark.parametrize(("line", "words"), COLUMN_FAULTS.values(), ids=COLUMN_FAULTS)
def test_faults_in_columns(tmp_path, line, words):
    text = refused(jsonl(tmp_path / "tickets.jsonl", tickets(), line_17=line), "tickets.jsonl:17: ", words)
    assert str(tmp_path) not in text and "\n" not in text


def chat(*turns: object) -> dict:
    return {"messages": [{"role": r, "content": c} for r, c in zip(turns[::2], turns[1::2], strict=True)]}


CHAT_FAULTS = {
    "unknown role": (chat("usr", "a", "assistant", "b"), "unknown role 'usr'", "did you mean 'user'"),
    "late system": (chat("user", "a", "system", "b", "user", "c", "assistant", "d"), "unknown role 'system'"),
    "no answer": (chat("user", "a"), "the last two messages"),
    "empty answer": (chat("user", "a", "assistant", " "), "empty answer (message 2"),
    "null answer": (chat("user", "a", "assistant", None), "empty answer"),
    "empty message": (chat("user", "", "assistant", "b"), "empty message (message 1"),
    "number": (chat("user", 1, "assistant", "b"), "wrong type: message 1 holds a number"),
    "text": ({"messages": "hello"}, "wrong type: 'messages' holds a text"),
    "no content": ({"messages": [{"role": "user"}]}, "wrong type: message 1"),
    "misnamed": ({"mesages": []}, "column 'messages' is missing", "did you mean 'mesages'"),
    "mixed": ({"prompt": "a", "completion": "b"}, "mixed row shapes"),
}


@pytest.mark.parametrize("fault", CHAT_FAULTS.values(), ids=CHAT_FAULTS)
def test_faults_in_chats(tmp_path, fault):
    refused(jsonl(tmp_path / "chat.jsonl", chats(), line_9=fault[0]), "chat.jsonl:9: ", *fault[1:])


def test_faults_in_prompt_and_completion(tmp_path):
    rows = [{"prompt": row["message"], "completion": row["intent"]} for row in tickets()]
    for row, words in (
        ({"prompt": "a", "completion": ""}, "empty answer"),
        ({"prompt": "a"}, "column 'completion' is missing"),
        ({"prompt": 4, "completion": "b"}, "wrong type: 'prompt' holds a number"),
    ):
        refused(jsonl(tmp_path / "a.jsonl", rows, line_5=row), "a.jsonl:5: ", words)


def test_up_to_five_problems_at_once(tmp_path):
    faults = {f"line_{n}": {**ROW, "intent": ""} for n in (3, 5, 8, 13, 21, 34)} | {"line_2": "{"}
    text = refused(jsonl(tmp_path / "a.jsonl", tickets(), **faults), "a.jsonl: 7 problems", "and 2 more")
    assert [part in text for part in ("a.jsonl:2:", "a.jsonl:3:", "a.jsonl:13:", "a.jsonl:21:")] == [True] * 3 + [
        False
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_invalid_utf8(tmp_path, name):
    path = (write_csv if name.endswith("csv") else jsonl)(tmp_path / name, tickets())
    lines = path.read_bytes().splitlines(keepends=True)
    lines[6] = lines[6][:14] + b"\xe9" + lines[6][14:]
    path.write_bytes(b"".join(lines))
    refused(path, f"{name}:7: ", "invalid UTF-8 at byte 15", "0xe9")


def test_csv_faults_are_at_true_lines(tmp_path):
    rows = tickets()
    rows[2]["message"] += "\ntwo\nthree"
    path = write_csv(tmp_path / "a.csv", rows)  # row index 3 starts on line 4 + 1 + 2 = 7
    good = path.read_text("utf-8").splitlines(keepends=True)

    def fault(line: str) -> Path:
        path.write_text("".join([*good[:6], line, *good[7:]]), "utf-8")
        return path

    refused(fault("a message,late\n"), "a.csv:7: 2 cells, not 3")
    refused(fault('"a message"x,late,b\n'), "a.csv:7: invalid CSV")
    refused(fault(",late,b\n"), "a.csv:7: empty message")
    refused(fault("a message,,b\n"), "a.csv:7: empty answer")
    path.write_text("".join(["message,intent,\n", *good[1:]]), "utf-8")
    refused(path, "a.csv:1: columns need names")


def test_csv_column_missing_in_a_whole_file(tmp_path):
    jsonl(tmp_path / "d" / "train.jsonl", tickets(40))
    write_csv(tmp_path / "d" / "test.csv", [without(row, "reply") for row in tickets(10)])
    refused(tmp_path / "d", "d/test.csv:1: no column 'reply'; it has message, intent")


def test_empty_short_and_unreadable(tmp_path):
    for name, text in (("a.jsonl", ""), ("b.jsonl", "\n \n"), ("a.csv", ""), ("b.csv", "message,intent\n")):
        (tmp_path / name).write_text(text, "utf-8")
        refused(tmp_path / name, f"{name}: the file is empty")
    refused(jsonl(tmp_path / "c.jsonl", tickets(10)), "c.jsonl: train has 2 rows (of 10", "needs 8")
    jsonl(tmp_path / "d" / "train.jsonl", tickets(40))
    jsonl(tmp_path / "d" / "test.jsonl", tickets(3))
    refused(tmp_path / "d", "d/test.jsonl: test has 3 rows and needs 4")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    refused(tmp_path / "bad.parquet", "bad.parquet: cannot be read as parquet")
    (tmp_path / "notes.docx").write_bytes(b"x")
    refused(tmp_path / "notes.docx", "unknown kind of file", ".jsonl")
    refused(
        jsonl(tmp_path / "one.jsonl", [{"message": "a"}] * 20),
        "one.jsonl:1",
        "no column to ask or none to answer",
    )


def test_paths_that_do_not_exist(tmp_path, monkeypatch):
    jsonl(tmp_path / "data" / "tickets.jsonl", tickets())
    refused(tmp_path / "data" / "tikets.jsonl", "no such file or folder", "did you mean 'tickets.jsonl'")
    refused(tmp_path / "data", "holds tickets.jsonl; name files train")
    monkeypatch.chdir(tmp_path)
    refused("data/nothing", "data/nothing: no such file", "beside it: tickets.jsonl")  # no request to the Hub


def test_hub(monkeypatch):
    import datasets

    def unreachable(name):
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    refused("someone/tickets", "someone/tickets: no such file", "Couldn't reach the Hub", "check name and network")
    columns = {"text": [row["message"] for row in tickets()], "label": [i % 3 for i in range(60)]}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(LABELS))})
    found = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: found)
    splits = load("someone/tickets")
    assert splits.schema.labels["label"] == tuple(sorted(LABELS)) and "someone/tickets" in splits.train[0].source


# --- cut, fingerprint, lengths -----------------------------------------------------------------------


def test_cut_follows_the_seed_and_the_labels(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", tickets())
    first, again, other = load(path), load(path), load(path, seed=1)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert [len(first.train), len(first.validation), len(first.test)] == [42, 6, 12]
    assert {label: sum(e.value("intent") == label for e in first.test) for label in LABELS} == dict.fromkeys(
        LABELS, 4
    )
    sources = [e.source for split in (first.train, first.validation, first.test) for e in split]
    assert len(set(sources)) == 60


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_stay_together(tmp_path, seed):
    rows = tickets(40)
    rows += [{**row, "message": row["message"].upper().replace("37", "91") + " !"} for row in rows[:20]]
    splits = load(jsonl(tmp_path / "a.jsonl", rows), seed=seed)
    home = {e.source: split for split in data.SPLITS for e in getattr(splits, split)}
    assert len(splits.test) == 12
    assert all(home[f"a.jsonl:{i + 1}"] == home[f"a.jsonl:{i + 41}"] for i in range(20))


def test_cut_looks_past_a_shared_prompt_template(tmp_path):
    head = "Below is a customer's message. Name the problem it is about in one word.\n\n"
    rows = [{**row, "message": head + row["message"]} for row in tickets()]
    assert "near-duplicates stay in one split" in load(jsonl(tmp_path / "a.jsonl", rows)).report[0]


def test_fingerprint_changes_with_one_character(tmp_path):
    rows = tickets()
    before = load(jsonl(tmp_path / "a.jsonl", rows)).fingerprint
    rows[30]["reply"] = rows[30]["reply"][:-1] + "!"
    after = load(jsonl(tmp_path / "a.jsonl", rows)).fingerprint
    assert before != after and len(before) == 16


class Words:
    """A tokenizer of words."""

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict:
        return {"input_ids": [list(range(len(text.split()))) for text in texts]}

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool = True) -> str:
        return " ".join(t["content"] for t in messages)


@pytest.fixture
def words():
    return Words()


def test_report(tmp_path, words):
    rows = tickets(40)
    jsonl(tmp_path / "d" / "train.jsonl", [*rows[:30], {**rows[0], "message": rows[0]["message"].upper()}])
    jsonl(tmp_path / "d" / "validation.jsonl", rows[30:35])
    jsonl(tmp_path / "d" / "test.jsonl", [*rows[35:], {**rows[1], "reply": "word " * 100}])
    tables = data.report(load(tmp_path / "d"), words, 60)
    assert list(tables) == ["splits", "intent"]
    assert tables["splits"].loc["train", ["rows", "duplicates"]].tolist() == [31, 1]
    assert tables["splits"].loc["test", ["rows", "seen_before", "too_long"]].tolist() == [6, 1, 1]
    assert tables["intent"].sum().tolist() == [31, 5, 6]


def test_fit_length(tmp_path, words):
    rows = [*tickets(), {**ROW, "reply": "word " * 100}]
    uncut = {"min_rows": (8, 0, 0), "test_share": 0, "validation_share": 0}
    examples = load(jsonl(tmp_path / "a.jsonl", rows), **uncut).train
    with pytest.raises(DataError, match=r"1 of 61 rows .* 60 tokens: a.jsonl:61 \(\d+\).*drop.*truncate"):
        data.fit_length(examples, words, 60, "error")
    kept, line = data.fit_length(examples, words, 60, "drop")
    assert len(kept) == 60 and "a.jsonl:61" in line and "dropped" in line
    kept, line = data.fit_length(examples, words, 60, "truncate")
    assert len(kept) == 61 and "cut" in line
    assert data.fit_length(examples, words, 500, "error") == (examples, "")
    with pytest.raises(ValueError, match="on_long"):
        data.fit_length(examples, words, 60, "cut")


def test_only_asks_for_some_columns(tmp_path: Path) -> None:
    target = {"intent": "late", "order_id": None, "reply": "Sorry."}
    system = {"role": "system", "content": rows.default_instruction(tuple(target))}
    turns = [system, {"role": "user", "content": "where is it"}]
    whole = data.Example(turns, json.dumps(target), target, "t.jsonl:1")
    brief = data.only(whole, ["intent", "order_id"])
    assert json.loads(brief.completion) == brief.target == {"intent": "late", "order_id": None}
    assert whole.completion.startswith(brief.completion[:-1])
    assert brief.prompt[0]["content"] == "Answer with one JSON object with the keys intent and order_id."
    assert brief.prompt[1:] == whole.prompt[1:] and whole.prompt[0] == system
    own = data.only(data.Example([{"role": "user", "content": "x"}], "{}", target, "t.jsonl:2"), ["reply"])
    assert own.prompt[0] == {"role": "system", "content": "Answer with one JSON object with the key reply."}
    with pytest.raises(DataError, match="t.jsonl:1.*colour"):
        data.only(whole, ["colour"])


def test_spread_and_take_keep_order() -> None:
    assert data.spread(list(range(10)), 3) == [0, 3, 6]
    assert data.spread([1, 2], 5) == data.spread([1, 2], 0) == [1, 2]
