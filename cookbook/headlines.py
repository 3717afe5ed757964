"""What the notebooks have measured so far: one line each, from the records of their committed runs."""

from __future__ import annotations

from collections.abc import Iterator

from cookbook import publish, recipes, results


def published() -> Iterator[tuple[recipes.Recipe, results.Results | None]]:
    """Every notebook in order, and the record of its committed run if there is one."""
    for recipe in recipes.recipes():
        file = publish.record_of(recipe.path)
        yield recipe, results.read(file) if file.is_file() else None


def table(*, without: str = "") -> str:
    """All notebooks but `without` as a Markdown table: headline, its interval, minutes, memory."""
    lines = [
        "| notebook | headline | before | good prompt | after | change, 95 % interval | n | minutes | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for recipe, record in published():
        if recipe.name == without:
            continue
        cells = ["not published yet", *[""] * 7]
        if record:
            metric, spent = record.metrics[record.headline], record.resources
            (low, high), lower = metric.ci95, "" if metric.higher_is_better else " (less is better)"
            cells = [
                record.headline.replace("_", " ") + lower,
                f"{metric.before:.3f}",
                "" if metric.prompted is None else f"{metric.prompted:.3f}",
                f"{metric.after:.3f}",
                f"{metric.change:+.3f} [{low:+.3f}, {high:+.3f}]",
                str(metric.n),
                f"{spent.seconds.total / 60:.0f}",
                f"{spent.peak_memory_bytes.measured / 1e9:.1f} GB",
            ]
        lines.append(f"| [{recipe.title}]({recipe.path.name}) | {' | '.join(cells)} |")
    return "\n".join(lines)
