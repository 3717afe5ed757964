"""Comparisons as files: CSV for a program, Markdown for a report, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cookbook import results
from cookbook.compare import Comparison, Fault, Interval, Run
from cookbook.compare_view import Cell, cells, conclusion, drawings, legend
from cookbook.recipes import RequestError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_FAILED = 50  # failed runs listed on a page; runs.csv has all
STYLE = """
:root { color-scheme: light; }
body { background: #fff; color: #1c2733; font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 75rem;
  padding: 0 1rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, button:focus-visible { outline: 3px solid #1f6fb2; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { border-bottom: 1px solid #d5dbe1; padding: .35rem .6rem; text-align: right; vertical-align: top;
  white-space: nowrap; }
th:first-child { text-align: left; }
tbody th { font-weight: normal; white-space: pre-line; min-width: 11rem; }
tr.best > * { background: #eaf3fb; }
small { color: #4a5763; display: block; }
button { background: none; border: 0; color: inherit; cursor: pointer; font: inherit; font-weight: bold; padding: 0;
  text-decoration: underline; }
figure { margin: 1.5rem 0; }
figure img { display: block; height: auto; max-width: 100%; }
"""
# Without a script the table stands as it is, best first.
SCRIPT = """
for (const table of document.querySelectorAll("table")) table.querySelectorAll("thead th").forEach((head, column) => {
  const button = document.createElement("button"); button.type = "button";
  button.append(...head.childNodes); head.append(button);
  button.onclick = () => {
    const up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
    const key = row => row.cells[column].dataset.order ?? row.cells[column].textContent;
    const compare = (a, b) => (a === "") - (b === "") || (up ? 1 : -1) * (a - b || a.localeCompare(b) || 0);
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
    table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  };
});
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write(folder: Path, done: Sequence[Comparison], runs: Sequence[Run], faults: Sequence[Fault]) -> list[Path]:
    """Write compare.csv, runs.csv, compare.md and compare.html, each whole or not at all.

    Raises:
        RequestError: the folder cannot be written.
    """
    pages = [
        (comparison, [(data_uri(d.figure), d.title, d.sentence) for d in drawings(comparison)]) for comparison in done
    ]
    texts = {
        "compare.csv": groups_table(done).to_csv(index=False, lineterminator="\n"),
        "runs.csv": runs_table(runs).to_csv(index=False, lineterminator="\n"),
        "compare.md": _markdown(pages, runs, faults),
        "compare.html": _html(pages, runs, faults),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [results.write_text(folder / name, text) for name, text in texts.items()]
    except OSError as error:
        raise RequestError(f"{folder}: cannot be written ({error.strerror}); choose another") from error


def groups_table(done: Iterable[Comparison]) -> pd.DataFrame:
    """A row a group, best first within its recipe: parameters, scores, bytes, seconds, money; full precision."""
    rows = []
    for comparison in done:
        for group in comparison.groups:
            row = {"recipe": comparison.recipe, "metric": comparison.metric, **group.parameters}
            row |= {
                "seeds": group.seeds,
                "runs": len(group.runs),
                "failed": len(group.failed),
                "before": group.before,
            }
            for name, interval in (("after", group.after), ("change", group.change)):
                mean, low, high, _ = interval or Interval(None, None, None, 0)
                row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
            row["interval_over"] = {0: "", 1: "test rows"}.get(group.seeds, "seeds")
            row |= {"worst_probe": group.probe, "worst_probe_change": group.forgotten}
            row |= {"probe_accuracy_change": group.accuracy_change, "peak_memory_bytes": group.memory_bytes}
            row |= {"train_seconds": group.train_seconds, "total_seconds": group.total_seconds}
            row |= {"artifact_bytes": group.artifact_bytes, "cost": group.amount, "currency": group.currency}
            rows.append(row | {"best_in": " ".join(group.fronts)})
    return pd.DataFrame(rows)


def runs_table(runs: Iterable[Run]) -> pd.DataFrame:
    """A row a run: where it lies, how it ended, all parameters, every metric and the resources."""
    rows = []
    for run in runs:
        row = {"recipe": run.recipe, "path": str(run.path), "status": run.status, "error": run.error}
        row |= {**run.parameters, "headline": run.headline, "data": run.data, "device": run.device}
        for name, score in run.metrics.items():
            row |= {f"{name}_{part}": getattr(score, part) for part in ("before", "after", "change")}
            row |= {f"{name}_change_low": score.ci95[0], f"{name}_change_high": score.ci95[1], f"{name}_n": score.n}
        row |= {f"forgetting_{probe.probe}_change": probe.change for probe in run.probes}
        if used := run.resources:
            row |= {"peak_memory_bytes": used.peak_memory_bytes.measured, "train_seconds": used.seconds.train}
            row |= {"total_seconds": used.seconds.total, "artifact_bytes": used.artifact_bytes}
            row |= {"cost": used.cost.amount, "currency": used.cost.currency}
        rows.append(row)
    return pd.DataFrame(rows)


def data_uri(figure: Figure) -> str:
    """A data URI: as an image of its own, the SVG's ids cannot clash with another's."""
    import matplotlib.pyplot as plt

    file = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "cookbook"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


Pages = Sequence[tuple[Comparison, Sequence[tuple[str, str, str]]]]


def _left_out(runs: Iterable[Run], faults: Sequence[Fault]) -> Iterator[tuple[str, list[str]]]:
    """Headings and lists of what the tables do not show."""
    if faults:
        yield "Records that could not be read", [f"{path}: {why}" for path, why in faults]
    failed = [f"{run.path}: {run.status.replace('_', ' ')}: {run.error}" for run in runs if run.status != "ok"]
    if failed:
        more = [f"and {len(failed) - MOST_FAILED} more, see runs.csv"] if len(failed) > MOST_FAILED else []
        yield "Failed runs", failed[:MOST_FAILED] + more


def _markdown(pages: Pages, runs: Sequence[Run], faults: Sequence[Fault]) -> str:
    lines = ["# Runs compared", ""]
    for comparison, figures in pages:
        head, rows = cells(comparison)
        lines += [f"## {_plain(comparison.recipe)}", "", _plain(conclusion(comparison)), ""]
        for row in (head, ["---"] * len(head), *([_joined(cell) for cell in row] for row in rows)):
            lines.append(f"| {' | '.join(text if text == '---' else _plain(text) for text in row)} |")
        lines += ["", *(f"- {_plain(line)}" for line in comparison.notes)]
        lines += [f"- {_plain(sentence)}" for _, _, sentence in figures] + [""]
    lines += ["## How to read this", "", *(f"- {_plain(line)}" for line in legend([c for c, _ in pages])), ""]
    for title, items in _left_out(runs, faults):
        lines += [f"## {title}", "", *(f"- {_plain(item)}" for item in items), ""]
    return "\n".join(lines)


def _joined(cell: Cell) -> str:
    text = cell.text.replace("\n", ", ")
    return f"{text} ({cell.second})" if cell.second else text


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(text.split()))


def _html(pages: Pages, runs: Sequence[Run], faults: Sequence[Fault]) -> str:
    parts = []
    for comparison, figures in pages:
        name = escape(comparison.recipe)
        parts += [f"<section><h2>{name}</h2>", f"<p>{escape(conclusion(comparison))}</p>", table_html(comparison)]
        parts += [list_html(comparison.notes)] if comparison.notes else []
        for source, title, sentence in figures:
            image = f'<img src="{source}" alt="{escape(title)}">'
            parts.append(f"<figure>{image}<figcaption>{escape(sentence)}</figcaption></figure>")
        parts.append("</section>")
    more = [("How to read this", legend([comparison for comparison, _ in pages])), *_left_out(runs, faults)]
    parts += [f"<section><h2>{title}</h2>{list_html(items)}</section>" for title, items in more]
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Runs compared</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>Runs compared</h1>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def list_html(items: Iterable[str]) -> str:
    """Lines of text as a list."""
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def table_html(comparison: Comparison) -> str:
    """The comparison's table, best group first; it scrolls sideways where room is short."""
    head, rows = cells(comparison)
    title = escape(f"{comparison.recipe}: groups of runs, best first", quote=True)
    lines = [f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table><thead><tr>']
    lines += [f'<th scope="col">{escape(name)}</th>' for name in head] + ["</tr></thead><tbody>"]
    for i, row in enumerate(rows):
        lines.append('<tr class="best">' if i == 0 else "<tr>")
        for j, cell in enumerate(row):
            order = f' data-order="{cell.order!r}"' if cell.order is not None else ""
            more = f"<small>{escape(cell.second)}</small>" if cell.second else ""
            tag, scope = ("td", "") if j else ("th", ' scope="row"')
            lines.append(f"<{tag}{scope}{order}>{escape(cell.text)}{more}</{tag}>")
        lines.append("</tr>")
    return "".join(lines) + "</tbody></table></div>"
