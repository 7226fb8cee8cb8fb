"""An experiment's outcomes drawn: a line a method, a band over seeds, the paper's figures dashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rarvision.experiments.outcomes import Outcome
from rarvision.experiments.paper import Published
from rarvision.experiments.spec import Metric, Row, Spec
from rarvision.experiments.tables import Entry, Table
from rarvision.plots import save_figure, subplots

__all__ = ["draw"]

_PANEL = (4.2, 3.4)


def draw(spec: Spec, outcomes: Sequence[Outcome], published: Published | None, paths: Sequence[Path]) -> None:
    """Write a figure to all these files (.png, .svg).

    Args:
        spec: With a plot.
        outcomes: What is drawn.
        published: The paper's figures; drawn where they are of the same data sets.
        paths: Files.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    assert spec.plot is not None  # noqa: S101 - callers ask for specs with one
    table = Table(spec, outcomes, published)
    panels = _panels(spec, table)
    figure, axes = subplots(len(panels), size=_PANEL)
    handles: dict[str, Any] = {}
    for number, ((title, metric, pick), axis) in enumerate(zip(panels, axes, strict=True)):
        for place, row in enumerate(spec.rows):
            series = _series(spec, table, row, pick)
            _line(axis, series, row, colour=f"C{place % 10}", handles=handles, scale=100 if metric.share else 1)
        axis.set(title=title, xlabel=_x_title(spec))
        if metric.share:
            axis.set_ylabel("%" if number else f"{metric.title}, %")
        else:
            axis.set_ylabel(metric.unit or metric.title)
            axis.set_yscale("log")
        if spec.plot.log:
            axis.set_xscale("log")
            _ticks(axis, spec)
        axis.grid(alpha=0.3)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), frameon=False
    )
    for path in paths:
        save_figure(figure, path)


Pick = Any
"""Of a line's entries: which one; for metrics along x, several."""


def _panels(spec: Spec, table: Table) -> list[tuple[str, Metric, Pick]]:
    """Title, what y is, and which entries of a line it shows."""
    assert spec.plot is not None  # noqa: S101
    width = len(spec.metrics)
    first = next((m for m in spec.metrics if m.key == spec.plot.metric), spec.metrics[0])
    at = spec.metrics.index(first)
    if spec.plot.x == "metrics":
        found = [
            (column.title, first, slice(number * width, (number + 1) * width))
            for number, column in enumerate(spec.columns)
        ]
        return found if spec.plot.panels == "columns" else found[:1]
    if spec.plot.panels == "columns":
        return [(column.title, first, number * width + at) for number, column in enumerate(spec.columns)]
    start = len(spec.columns) * width if table.means else 0
    what = f"\nmean of {len(spec.columns)} data sets" if table.means else ""
    if spec.plot.panels == "metrics":
        return [(f"{metric.title}{what}", metric, start + number) for number, metric in enumerate(spec.metrics)]
    return [(f"{first.title}{what}", first, start + at)]


def _series(spec: Spec, table: Table, row: Row, pick: Pick) -> list[tuple[Any, Entry]]:
    """X and the entry there."""
    assert spec.plot is not None  # noqa: S101
    lines = [line for line in table.lines if line.row.key == row.key]
    if spec.plot.x == "metrics":
        entries = lines[0].entries if lines else ()
        return [(_number(entry.metric.key), entry) for entry in entries[pick.start : pick.stop]]
    if row.once:
        values: Sequence[Any] = spec.axis.values if spec.axis else (0,)
        return [(value, lines[0].entries[pick]) for value in values] if lines else []
    return [(next(iter(line.at.values()), 0), line.entries[pick]) for line in lines]


def _line(
    axis: Any,
    series: Sequence[tuple[Any, Entry]],
    row: Row,
    *,
    colour: str,
    handles: dict[str, Any],
    scale: float,
) -> None:
    known = [(x, entry) for x, entry in series if entry.ours is not None]
    if known:
        xs, ys = [x for x, _ in known], [scale * float(entry.ours or 0.0) for _, entry in known]
        style = {"linestyle": ":"} if row.once else {"marker": "o", "markersize": 4}
        (line,) = axis.plot(xs, ys, color=colour, **style)
        handles.setdefault(row.title, line)
        spread = [scale * entry.spread for _, entry in known]
        if any(spread):
            low, high = ([y + sign * s for y, s in zip(ys, spread, strict=True)] for sign in (-1, 1))
            axis.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    paper = [(x, scale * entry.paper) for x, entry in series if entry.paper is not None and entry.comparable]
    if paper:
        (line,) = axis.plot(*zip(*paper, strict=True), color=colour, linestyle="--", alpha=0.5, linewidth=1)
        handles.setdefault(f"{row.title}, paper", line)


def _x_title(spec: Spec) -> str:
    assert spec.plot is not None  # noqa: S101
    if spec.plot.x == "metrics":
        return "retrieved categories"
    return spec.axis.title if spec.axis else ""


def _ticks(axis: Any, spec: Spec) -> None:
    from matplotlib.ticker import NullLocator

    values: Mapping[Any, str] = {value: f"{value:,}" for value in (spec.axis.values if spec.axis else ())}
    axis.set_xticks(list(values), list(values.values()))
    axis.xaxis.set_minor_locator(NullLocator())


def _number(key: str) -> int:
    return int("".join(character for character in key if character.isdigit()) or 0)
