"""A comparison to look at: the table's cells, sentences made from its numbers, and the figures they stand under."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cookbook.compare import COSTS, Comparison, Group, Interval
from cookbook.runs import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a cost is called, its unit, and that unit in the units of the record.
UNITS = {
    "memory": ("peak memory", "GB", 1e9),
    "seconds": ("training time", "s", 1),
    "size": ("artifact size", "MB", 1e6),
    "cost": ("cost", "", 1),
}
OWN, FRONT = "*", "◆"  # mark an interval that is of one seed, and a cost in which no other group beats this one


class Cell(NamedTuple):
    """One cell: a line or two, and what a table is sorted by."""

    text: str
    second: str = ""
    order: float | None = None


class Drawing(NamedTuple):
    """A figure, its title, and the sentence that stands under it."""

    figure: Figure
    title: str
    sentence: str


def cells(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """The table for reading: the head, and a row a group, best first; columns without content are left out."""
    head = ["runs", "seeds", comparison.metric, "change", "forgetting", "memory", "training", "cost", "size"]
    known = [group for group in comparison.groups if group.after]
    rows = [_row(group, marked=len(known) > 1) for group in comparison.groups]
    kept = [i for i in range(len(head)) if any(row[i].text for row in rows)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _row(group: Group, *, marked: bool) -> list[Cell]:
    failed = f"{len(group.failed)} failed" if group.failed else ""
    name = Cell("\n".join(f"{name} {shown(value)}" for name, value in group.parameters.items()) or "all runs")
    if not group.after or not group.change:
        return [name, Cell("0", failed, 0), Cell("none finished"), *[Cell("")] * 6]
    lost = Cell("") if group.forgotten is None else Cell(number(group.forgotten, "+"), group.probe, group.forgotten)

    def cost(name: str, second: str = "") -> Cell:
        mark = f"{FRONT} " if marked and name in group.fronts else ""
        return Cell(mark + _amount(name, group), second, getattr(group, COSTS[name]))

    return [
        name,
        Cell(str(group.seeds), failed, group.seeds),
        Cell(number(group.after.mean), _range(group.after), group.after.mean),
        Cell(number(group.change.mean, "+"), _range(group.change, "+"), group.change.mean),
        lost,
        cost("memory"),
        cost("seconds", f"of {group.total_seconds:.0f} s"),
        cost("cost") if group.amount else Cell(""),
        cost("size"),
    ]


def number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.{3 if abs(value) < 10 else 1}f}"


def _range(interval: Interval, sign: str = "") -> str:
    return f"{number(interval.low, sign)} to {number(interval.high, sign)}{OWN * (interval.seeds == 1)}"


def _amount(cost: str, group: Group) -> str:
    """What a group costs, with its unit."""
    _, unit, scale = UNITS[cost]
    value = getattr(group, COSTS[cost]) / scale
    digits = 2 if cost in ("memory", "cost") or value < 1 else 1 if cost == "size" and value < 100 else 0
    return f"{value:.{digits}f} {unit or group.currency or '?'}"


def legend(comparisons: Sequence[Comparison]) -> list[str]:
    """What the tables' signs mean, as far as they have them."""
    known = [group for comparison in comparisons for group in comparison.groups if group.after]
    lines = ["The score is a mean over seeds with its 95 % interval (Student's t); so is its change against before."]
    if any(group.seeds == 1 for group in known):
        lines.append(f"{OWN} one seed: the run's own interval of the change, over its test rows.")
    if any(group.probe for group in known):
        lines.append("forgetting: mean change of the probe that lost the largest share of its score.")
    lines.append("memory: the highest peak. training: mean seconds, of the whole run's.")
    if len(known) > len(comparisons):
        lines.append(f"{FRONT} no other row is as good and lower in this, or better and as low, going by the means.")
    return lines


def conclusion(comparison: Comparison) -> str:
    """The best group, and whether its interval stands clear of the next one's."""
    best, *rest = [group for group in comparison.groups if group.after]
    direction = "higher" if comparison.higher_is_better else "lower"
    score = f"{number(best.after.mean)}, {_said(best.after)}"
    text = f"Best {comparison.metric} ({direction} is better): {score}, {best.label}"
    if not rest:
        return f"{text}."
    apart = best.after.low > rest[0].after.high or best.after.high < rest[0].after.low
    how = "their intervals do not overlap" if apart else "their intervals overlap"
    return f"{text}; next: {number(rest[0].after.mean)}, {rest[0].label}; {how}."


def _said(interval: Interval) -> str:
    over = "its test rows" if interval.seeds == 1 else f"{interval.seeds} seeds"
    return f"95 % interval {number(interval.low)} to {number(interval.high)} over {over}"


def front_sentence(comparison: Comparison, cost: str) -> str:
    """What the front of a cost says, in numbers."""
    groups = [group for group in comparison.groups if group.after]
    edge = sorted((g for g in groups if cost in g.fronts), key=lambda g: (getattr(g, COSTS[cost]), g.after.mean))
    title, first, last = UNITS[cost][0], edge[0], edge[-1]
    if len({(getattr(group, COSTS[cost]), group.after.mean) for group in edge}) == 1:
        return (
            f"None is better than {first.label}, and none lower in {title}: {comparison.metric} "
            f"{number(first.after.mean)} at {_amount(cost, first)}."
        )
    gain = abs(last.after.mean - first.after.mean)
    more = _ratio(getattr(last, COSTS[cost]), getattr(first, COSTS[cost]))
    return (
        f"In {comparison.metric} and {title} {len(edge)} of {len(groups)} are not beaten, from {first.label} "
        f"({number(first.after.mean)} at {_amount(cost, first)}) to {last.label} ({number(last.after.mean)} at "
        f"{_amount(cost, last)}): {number(gain)} better for {more}."
    )


def _ratio(larger: float, smaller: float) -> str:
    if not smaller:
        return "more than nothing"
    ratio = larger / smaller
    return f"{ratio:.2g} times as much" if ratio >= 2 else f"{100 * (ratio - 1):.2g} % more"


def _numeric(comparison: Comparison) -> list[Group]:
    """The groups in order of the one number that they differ in; none if it is something else."""
    known = [group for group in comparison.groups if group.after]
    values = [value for group in known for value in group.parameters.values()]
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if len(comparison.by) != 1 or not plain or len(known) < 2:
        return []
    return sorted(known, key=lambda group: group.parameters[comparison.by[0]])


def over_sentence(comparison: Comparison) -> str:
    """How the metric went with the one number that was varied."""
    ordered, name = _numeric(comparison), comparison.by[0]
    first, last, best = ordered[0], ordered[-1], next(group for group in comparison.groups if group.after)
    text = (
        f"{comparison.metric} goes from {number(first.after.mean)} at {first.label} to {number(last.after.mean)} at "
        f"{name} {shown(last.parameters[name])}"
    )
    where = "there" if best is last else f"at {shown(best.parameters[name])}"
    return f"{text}; it is best {where} ({number(best.after.mean)})."


def drawings(comparison: Comparison) -> Iterator[Drawing]:
    """Figures with a sentence each: the metric over what was varied, if a number, and against each cost.

    A single group has nothing to be drawn against: no figure.
    """
    from cookbook import plots

    groups = [group for group in comparison.groups if group.after]
    if len(groups) < 2:
        return
    if ordered := _numeric(comparison):
        x = [group.parameters[comparison.by[0]] for group in ordered]
        heading = f"{comparison.recipe}: {comparison.metric} over {comparison.by[0]}"
        figure = plots.over(
            x,
            [group.after.mean for group in ordered],
            intervals=[group.after[1:3] for group in ordered],
            before=sum(group.before for group in ordered) / len(ordered),
            title=heading,
            xlabel=comparison.by[0],
            ylabel=comparison.metric,
            log=_wide(x),
        )
        yield Drawing(figure, heading, over_sentence(comparison))
    names = [", ".join(map(shown, group.parameters.values())) or "all runs" for group in groups]
    for cost, attribute in COSTS.items():
        if not any(cost in group.fronts for group in groups):
            continue
        title, unit, scale = UNITS[cost]
        heading = f"{comparison.recipe}: {comparison.metric} against {title}"
        costs = [getattr(group, attribute) / scale for group in groups]
        figure = plots.trade_off(
            [group.after.mean for group in groups],
            costs,
            names,
            named=", ".join(comparison.by),
            front=[i for i, group in enumerate(groups) if cost in group.fronts],
            intervals=[group.after[1:3] for group in groups],
            title=heading,
            xlabel=f"{title} ({unit or groups[0].currency})",
            ylabel=f"{comparison.metric} ({'higher' if comparison.higher_is_better else 'lower'} is better)",
            log=_wide(costs),
        )
        yield Drawing(figure, heading, front_sentence(comparison, cost))


def _wide(numbers: Sequence[float]) -> bool:
    return min(numbers) > 0 and max(numbers) / min(numbers) > 20
