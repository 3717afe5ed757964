"""The notebooks at a glance, from their committed outputs and records: `python -m cookbook.gallery` rewrites it.

What is written: the gallery and the first notebook's scores between the marks in README.md, the figures in
`docs/gallery`, and how each notebook opens (`opening.furnish`).
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import nbformat

from cookbook import opening, project, recipes, results

TAG = "gallery"  # marks the cell whose first figure stands for the notebook
FIGURES = Path("docs", "gallery")


@dataclass(frozen=True)
class Entry:
    """A notebook of the gallery; no record if none is committed, no figure (PNG) if no cell is tagged for it."""

    path: Path
    title: str
    about: str
    record: results.Results | None
    figure: bytes | None

    @property
    def number(self) -> str:
        """The beginning of its file name: 01, 19b."""
        return self.path.stem.partition("_")[0]


def record_of(notebook: Path) -> Path:
    """Where the record of a notebook's committed run stands."""
    return notebook.parent / "records" / f"{notebook.stem}.json"


def entries(folder: Path) -> list[Entry]:
    """The notebooks of a folder, by name."""
    return [_entry(path) for path in sorted(folder.glob("*.ipynb"))]


def _entry(path: Path) -> Entry:
    notebook = nbformat.read(path, as_version=4)
    title, _, text = opening.BADGE.sub("", notebook.cells[0].source).partition("\n")
    figures = [
        output.data["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if TAG in cell.metadata.get("tags", []) and "image/png" in output.get("data", {})
    ]
    record = record_of(path)
    return Entry(
        path=path,
        title=title.lstrip("# "),
        about=_first_sentence(text.strip().split("\n\n")[0]),
        record=results.read(record) if record.is_file() else None,
        figure=base64.b64decode(figures[0]) if figures else None,
    )


def _first_sentence(text: str) -> str:
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)  # its links lead from another folder
    return " ".join(re.split(r"(?<=[.!?])\s", plain, maxsplit=1)[0].split())


def table(shown: Iterable[Entry], repository: str = "") -> str:
    """The gallery in Markdown, as it stands in README.md: a row a notebook, its links relative to the project."""
    lines = ["| before → after training | notebook |", "|---|---|"]
    for entry in shown:
        left, told = [], [f"**[{entry.title}](notebooks/{entry.path.name})**", entry.about.replace("|", "\\|")]
        if entry.figure:
            alt = escape(f"A figure of {entry.title}")
            left.append(f'<img src="{(FIGURES / entry.number).as_posix()}.png" width="280" alt="{alt}">')
        if entry.record:
            headline, rest = _measured(entry.record)
            # A page makes a picture as narrow as its column; lines that do not break keep that wide.
            left.append(headline.replace(" ", "\N{NO-BREAK SPACE}"))
            told.append(rest)
        told.append(opening.badges(entry.path.name, repository))
        lines.append(f"| {'<br>'.join(left)} | {'<br>'.join(filter(None, told))} |")
    return "\n".join(lines)


def _measured(record: results.Results) -> tuple[str, str]:
    """The headline before and after; and its interval, the prompt's score, and what the run took."""
    metric, used = record.metrics[record.headline], record.resources
    name = record.headline.replace("_", " ") + " (lower is better)" * (not metric.higher_is_better)
    change, low, high = (f"{x:+.3f}".replace("-", "\N{MINUS SIGN}") for x in (metric.change, *metric.ci95))
    minutes = used.seconds.total / 60
    parts = [f"change {change}, 95 % interval [{low}, {high}], n = {metric.n}"]
    parts += [] if metric.prompted is None else [f"only prompted {metric.prompted:.3f}"]
    parts.append(f"{minutes:.0f} min" if minutes >= 1 else "under 1 min")
    parts.append(f"{used.peak_memory_bytes.measured / 1e9:.1f} GB")
    return f"{name}: {metric.before:.3f} → **{metric.after:.3f}**", f"*{'; '.join(parts)}*"


def scores(record: results.Results) -> str:
    """All metrics of a record in Markdown."""
    lines = ["| metric | before | prompted | after | change | 95 % interval | n | verdict |", f"|{'---|' * 8}"]
    for name, m in record.metrics.items():
        prompted = "" if m.prompted is None else f"{m.prompted:.3f}"
        lines.append(
            f"| {name} | {m.before:.3f} | {prompted} | {m.after:.3f} | {m.change:+.3f} | "
            f"[{m.ci95[0]:+.3f}, {m.ci95[1]:+.3f}] | {m.n} | {m.verdict} |"
        )
    return "\n".join(lines)


def between(text: str, mark: str, content: str) -> str:
    """The text with `content` between `<!-- MARK -->` and `<!-- end of MARK -->`.

    Raises:
        ValueError: the marks are not there, once each and in this order.
    """
    begin, end = f"<!-- {mark} -->\n", f"\n<!-- end of {mark} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if (text.count(begin), text.count(end), len(pattern.findall(text))) != (1, 1, 1):
        raise ValueError(f"not one pair of the marks {begin.strip()} and {end.strip()}")
    return pattern.sub(lambda _: f"{begin}{content}{end}", text)


def files(root: Path) -> dict[Path, bytes]:
    """What README.md and the figures must hold, by path relative to the project."""
    shown = entries(root / "notebooks")
    text = (root / "README.md").read_text(encoding="utf-8")
    text = between(text, "gallery", table(shown, project.repository()))
    first = next((entry.record for entry in shown if entry.number == "01" and entry.record), None)
    text = between(text, "scores of 01", scores(first)) if first else text
    pictures = {FIGURES / f"{entry.number}.png": entry.figure for entry in shown if entry.figure}
    return {Path("README.md"): text.encode()} | pictures


def write(root: Path) -> list[Path]:
    """Bring the notebooks' openings, README.md and the figures up to date; returns the files that changed."""
    changed = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        opening.furnish(notebook, path.name, project.repository())
        changed += _put(path, (nbformat.writes(notebook) + "\n").encode())
    wanted = files(root)
    for stale in (root / FIGURES).glob("*.png"):
        if stale.relative_to(root) not in wanted:
            stale.unlink()
            changed.append(stale)
    for path, content in wanted.items():
        changed += _put(root / path, content)
    return [path.relative_to(root) for path in changed]


def _put(path: Path, content: bytes) -> list[Path]:
    if path.is_file() and path.read_bytes() == content:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return [path]


def main() -> int:
    """Rewrite what is out of date and name it."""
    for path in write(recipes.ROOT):
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
