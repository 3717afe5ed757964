"""What is committed of an executed notebook: its outputs, and nothing of the machine that ran it."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from conftest import RECORD
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cookbook import publish, results

VIEW = "application/vnd.jupyter.widget-view+json"


def notebook(*outputs: Any) -> Any:
    cells = [
        new_markdown_cell("# Title", id="title"),
        new_code_cell("print(1)", id="one"),
        new_code_cell("2", id="two"),
    ]
    made = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    made.cells[1].outputs = list(outputs)
    return made


def stream(text: str, name: str = "stdout") -> Any:
    return new_output("stream", name=name, text=text)


def test_sources_hash_follows_sources_alone() -> None:
    first, second = notebook(), notebook(stream("1"))
    second.metadata["x"], second.cells[1].execution_count = 1, 5
    assert publish.sources_hash(first) == publish.sources_hash(second) and len(publish.sources_hash(first)) == 16
    prose = notebook()
    prose.cells[0].source = "# Other"
    assert publish.sources_hash(prose) == publish.sources_hash(first)
    changed = notebook()
    changed.cells[1].source = "print(1) "
    assert publish.sources_hash(changed) != publish.sources_hash(first)
    changed.cells[1].metadata["tags"], first.cells[1].metadata["tags"] = ["setup"], ["setup"]
    assert publish.sources_hash(changed) == publish.sources_hash(first)  # it does nothing where notebooks are run


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("saved to /home/anna/runs/x", "/home/anna"),
        ("'/root/cookbook'", "/root/cookbook"),
        ("in /tmp/a-b/c", "/tmp/a-b"),
        ("(/Users/anna)", "/Users/anna"),
        ("/work/main/cookbook/x.py:3", "/work/main"),
        ("/content/drive", "/content/drive"),
        ("PYTHONPATH=/usr/lib:/home/anna/lib", "/home/anna"),
        ("model:/mnt/models/a", "/mnt/models"),
        ("file:///srv/data/x", "file:///srv"),
        (r"C:\Users\anna\x", r"C:\Users"),
        (r"'C:\\Users\\anna'", r"C:\\Users"),
    ],
)
def test_planted_paths_are_found(text: str, path: str) -> None:
    html = new_output("display_data", {"text/html": f"<b>{text}</b>", "image/png": "x"})
    assert publish.machine_paths(notebook(stream(f"ok\n{text}\n"))) == [path]
    assert publish.machine_paths(notebook(html)) == [path]
    in_source = notebook()
    in_source.cells[0].source = text
    assert publish.machine_paths(in_source) == [path]


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/anna",
        "see https://huggingface.co/tmp/model and http://work/main",
        "https://home/anna and //tmp/x",
        "./work/main ../home/x runs/tmp/x",
        "and/or 1/2 </home> /home",
        "~/models",
        "Q:\\nA:\\n",
    ],
)
def test_urls_and_relative_paths_are_no_finding(text: str) -> None:
    assert publish.machine_paths(notebook(stream(text))) == []


def test_pictures_are_not_searched() -> None:
    assert publish.machine_paths(notebook(new_output("display_data", {"image/png": " /tmp/abc"}))) == []


def executed_notebook() -> Any:
    widget = new_output("display_data", {VIEW: {"model_id": "1"}, "text/plain": "VBox()"}, metadata={"papermill": {}})
    ran = notebook(stream("hello"), stream("a warning", "stderr"), widget)
    ran.cells[1].execution_count = 7
    ran.cells[1].metadata = {"papermill": {"duration": 1}, "tags": ["parameters"]}
    ran.cells.insert(1, new_code_cell("PROFILE = 'cpu'", id="injected", metadata={"tags": ["injected-parameters"]}))
    ran.metadata |= {"papermill": {"output_path": "/tmp/x"}, "widgets": {"state": {}}}
    return ran


def test_clean_takes_outputs_and_leaves_the_rest() -> None:
    source = notebook(stream("old"))
    source.cells[1].metadata = {"tags": ["parameters"], "papermill": {}, "execution": {}, "ExecuteTime": {}}
    source.cells[2].outputs = [stream("stale")]
    source.metadata |= {"widgets": {"state": {}}, "cookbook": {"publish": {"SEED": 1}}}
    before = publish.sources_hash(source)
    cleaned = publish.clean(executed_notebook(), copy.deepcopy(source))
    assert [c["id"] for c in cleaned.cells] == ["title", "one", "two"] and publish.sources_hash(cleaned) == before
    one, two = cleaned.cells[1:]
    assert one.metadata == {"tags": ["parameters"]} and one.execution_count == 7
    assert [o.get("text") or o["data"] for o in one.outputs] == ["hello", {"text/plain": "VBox()"}]
    assert two.outputs == [] and two.execution_count is None
    assert set(cleaned.metadata) == {"kernelspec", "cookbook"}
    again = nbformat.reads(nbformat.writes(cleaned), as_version=4)
    nbformat.validate(again)
    assert "papermill" not in nbformat.writes(cleaned) and "widget" not in nbformat.writes(cleaned)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A recipe on disk and a launcher that "runs" it; set `status` and `executed`, then call `publish`."""
    path = tmp_path / "01_test.ipynb"
    source = notebook()
    source.metadata["cookbook"] = {"publish": {"CURVE": True}}
    nbformat.write(source, path)
    monkeypatch.setattr(publish.project, "repository", lambda: "https://github.com/a/b")
    fake = SimpleNamespace(path=path, status="ok", executed=executed_notebook(), wanted=None, pages={})
    fake.record = results.Results.model_validate(RECORD)

    def run_one(notebook: Path, folder: Path, parameters: dict, progress: Any) -> Any:
        fake.wanted = parameters
        folder.mkdir(parents=True)
        nbformat.write(fake.executed, folder / "executed.ipynb")
        results.write(folder, fake.record)
        for name, text in fake.pages.items():
            (folder / "compare").mkdir(exist_ok=True)
            (folder / "compare" / name).write_text(text.format(folder=folder), encoding="utf-8")
        progress({"event": "end", "stage": "train", "seconds": 3})
        return SimpleNamespace(status=fake.status, error="why")

    monkeypatch.setattr(publish.batch, "run_one", run_one)
    monkeypatch.setattr(publish.recipes, "ROOT", tmp_path)
    monkeypatch.setattr(publish.recipes, "check_parameters", lambda path, wanted: wanted)
    monkeypatch.setattr(publish.recipes, "find", lambda name: fake.path)
    return fake


def test_publish_writes_outputs_and_says_what_they_belong_to(run: SimpleNamespace) -> None:
    assert publish.publish(run.path) == run.path
    assert run.wanted == {"PROFILE": "cpu", "CURVE": True}
    written = nbformat.read(run.path, as_version=4)
    note = written.metadata["cookbook"]
    assert written.cells[1].outputs[0]["text"] == "hello" and note["publish"] == {"CURVE": True}
    assert written.cells[0].source.startswith("# Title\n\n[![Open in Colab](")
    assert note["sources"] == publish.sources_hash(written) and note["profile"] == "cpu"
    assert note["minutes"] == 8.5  # the record's 512 seconds
    assert publish.record_of(run.path) == run.path.parent / "records" / "01_test.json"
    assert results.read(publish.record_of(run.path)) == run.record
    assert [file.name for file in run.path.with_name("records").iterdir()] == ["01_test.json"]


def test_pages_that_a_run_wrote_are_published_beside_its_record(run: SimpleNamespace) -> None:
    run.pages = {"compare.csv": "path\n{folder}/arms/one\n", "compare.html": "<html>"}
    publish.publish(run.path)
    beside = publish.record_of(run.path).with_suffix("")
    assert {file.name: file.read_text() for file in beside.iterdir()} == {
        "compare.csv": "path\narms/one\n",
        "compare.html": "<html>",
    }


def test_publish_refuses_pages_with_paths(run: SimpleNamespace) -> None:
    run.pages = {"compare.md": "see /home/anna/runs"}
    with pytest.raises(publish.PublishError, match="/home/anna"):
        publish.publish(run.path)
    assert not publish.record_of(run.path).parent.exists()


def test_what_is_published_comes_into_the_gallery(run: SimpleNamespace) -> None:
    (run.path.parent / "notebooks" / "records").mkdir(parents=True)
    marks = [f"<!-- {name} -->\n\n<!-- end of {name} -->" for name in ("gallery", "scores of 01")]
    (run.path.parent / "README.md").write_text("\n".join(marks))
    run.path = run.path.rename(run.path.parent / "notebooks" / run.path.name)
    assert publish.main(["01"]) == 0
    text = (run.path.parents[1] / "README.md").read_text()
    assert "**[Title](notebooks/01_test.ipynb)**" in text and "→ **0.900**" in text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        ("cell_error", "", "cell_error: why"),
        ("ok", "in /home/anna/x", "paths of this machine: /home/anna"),
        ("ok", "x" * 400_001, "kB with outputs"),
    ],
)
def test_publish_refuses_and_writes_nothing(
    run: SimpleNamespace, status: str, text: str, words: str, capsys: pytest.CaptureFixture
) -> None:
    before = run.path.read_bytes()
    run.status = status
    run.executed.cells[2].outputs[0]["text"] = text or "hello"
    assert publish.main(["01"]) == 1
    assert words in capsys.readouterr().err and run.path.read_bytes() == before
    assert not publish.record_of(run.path).exists()


def test_publish_refuses_a_record_with_paths(run: SimpleNamespace) -> None:
    run.record.parameters["DATA"] = "/home/anna/tickets"
    with pytest.raises(publish.PublishError, match="/home/anna"):
        publish.publish(run.path)
