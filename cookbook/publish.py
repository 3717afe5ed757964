"""Run notebooks at the cpu profile and write their outputs back, cleaned: `python -m cookbook.publish [RECIPE…]`.

The run's record goes to `notebooks/records/`, pages that compare several runs to a folder of that name there.
Parameters that the committed run sets apart from the defaults stand in the notebook's metadata, under
`cookbook.publish`. A notebook that fails, shows a path of this machine, or is too large is not written.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

from cookbook import batch, gallery, opening, project, recipes, results
from cookbook.gallery import record_of

PROFILE = "cpu"
MOST_BYTES = 400_000
PATHS = re.compile(
    r"(?<![\w./])/(?:home|root|Users|tmp|var|work|mnt|opt|content)/[\w.-]+|file:///[\w.-]+|\b[A-Za-z]:\\{1,2}Users\b"
)
PAGES = "compare"  # folder of a run: what it wrote for readers, beside the notebook
RUN_ONLY = ("papermill", "widgets", "execution", "ExecuteTime")


class PublishError(RuntimeError):
    """The notebook was not written; the message says why."""


def sources_hash(notebook: Any) -> str:
    """16 hex digits over the sources of the code cells, `setup` apart: outputs belong to exactly these."""
    return recipes.code_hash(notebook.cells)[:16]


def machine_paths(notebook: Any) -> list[str]:
    """Paths of one machine in any text output or source of the notebook."""
    texts = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts += [output.get("text", ""), *(str(v) for k, v in data.items() if not k.startswith("image/"))]
    return sorted({found[0] for text in texts for found in PATHS.finditer(text)})


def clean(executed: Any, source: Any) -> Any:
    """The source notebook with the outputs of the executed one, and nothing that belongs to one run or machine."""
    outputs = {cell.get("id"): cell for cell in executed.cells if cell.cell_type == "code"}
    for cell in source.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k not in RUN_ONLY}
        if cell.cell_type != "code":
            continue
        ran = outputs.get(cell["id"], {})
        cell.execution_count = ran.get("execution_count")
        cell.outputs = [o for o in ran.get("outputs", []) if not _is_noise(o)]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            output.get("metadata", {}).pop("papermill", None)
    source.metadata = {k: v for k, v in source.metadata.items() if k not in RUN_ONLY}
    return source


def publish(notebook: Path) -> Path:
    """Run one notebook and write it back with its outputs, and its record beside it.

    Raises:
        PublishError: the run failed, or its outputs may not be committed.
    """
    source = nbformat.read(notebook, as_version=4)
    wanted = {"PROFILE": PROFILE, **source.metadata.get("cookbook", {}).get("publish", {})}
    folder = recipes.ROOT / "runs" / "publish" / notebook.stem
    status = batch.run_one(notebook, folder, recipes.check_parameters(notebook, wanted), progress=_tell)
    if status.status != "ok":
        raise PublishError(f"{notebook.name}: {status.status}: {status.error}")
    cleaned = clean(nbformat.read(folder / "executed.ipynb", as_version=4), source)
    record = results.read(folder).model_dump(mode="json")
    pages = {page.name: page.read_text(encoding="utf-8") for page in sorted((folder / PAGES).glob("*"))}
    pages = {name: text.replace(f"{folder}{os.sep}", "") for name, text in pages.items()}
    if paths := machine_paths(cleaned) + PATHS.findall(json.dumps([record, pages])):
        raise PublishError(f"{notebook.name}: outputs show paths of this machine: {', '.join(paths[:5])}")
    opening.furnish(cleaned, notebook.name, project.repository())
    cleaned.metadata["cookbook"] = dict(source.metadata.get("cookbook", {})) | {
        "profile": PROFILE,
        "executed": datetime.now(UTC).date().isoformat(),
        "minutes": round(record["resources"]["seconds"]["total"] / 60, 1),
        "sources": sources_hash(cleaned),
        "versions": results.versions(),
    }
    text = nbformat.writes(cleaned) + "\n"
    if len(text.encode()) > MOST_BYTES:
        raise PublishError(f"{notebook.name}: {len(text.encode()) / 1e3:.0f} kB with outputs, over 400 kB")
    notebook.write_text(text, encoding="utf-8")
    beside = record_of(notebook).with_suffix("")
    (beside if pages else beside.parent).mkdir(parents=True, exist_ok=True)
    results.write_json(record_of(notebook), record)
    for name, text in pages.items():
        results.write_text(beside / name, text)
    return notebook


def _smaller(png: str) -> str:
    """A figure (base64) in 64 colours: it looks the same in a third of the bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(64)
    image.save(packed := io.BytesIO(), format="PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def _is_noise(output: Any) -> bool:
    return output.get("output_type") == "stream" and output.get("name") == "stderr"


def _tell(event: dict[str, Any]) -> None:
    if event.get("event") == "end":
        print(f"  {event['stage']}: {event['seconds']:.0f} s", flush=True)


def main(names: list[str]) -> int:
    """Publish the named recipes, or all; 1 if any could not be written."""
    failed, paths = 0, [recipes.find(name) for name in names] or [r.path for r in recipes.recipes()]
    for path in paths:
        print(path.stem, flush=True)
        try:
            publish(path)
        except PublishError as error:
            failed += 1
            print(f"  not written: {error}", file=sys.stderr)
    if failed < len(paths):
        gallery.main()
    return int(bool(failed))


if __name__ == "__main__":
    asked = argparse.ArgumentParser(prog="python -m cookbook.publish", description=(__doc__ or "").splitlines()[0])
    asked.add_argument("recipe", nargs="*", help="number, name or path of a notebook; none: all of them")
    try:
        sys.exit(main(asked.parse_args().recipe))
    except recipes.RequestError as error:
        sys.exit(str(error))
