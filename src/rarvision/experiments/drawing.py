"""An experiment's outcomes drawn: a line a method, a band over seeds, the paper's figures dashed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rarvision.experiments.outcomes import Outcome
from rarvision.experiments.paper import Published
from rarvision.experiments.spec import Metric, Row, Spec
from rarvision.experiments.tables import Entry, Table
from rarvision.plots import save_figure, subplots

__all__ = ["draw"]

_PANEL, _ONE = (4.2, 3.4), (6.8, 4.8)
"""Inches, of one of several panels, and of one alone."""
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f")
"""Told apart by people who see colours differently (after Okabe and Ito)."""
_MARKERS = "osD^vPX*"


def draw(spec: Spec, outcomes: Sequence[Outcome], published: Published | None, paths: Sequence[Path]) -> list[str]:
    """Write a figure to all these files (.png, .svg), each whole or not at all.

    What is a mean over some of the data sets is left out: along a line it would not be of the same ones. The files
    depend on the arguments only.

    Args:
        spec: With a plot.
        outcomes: What is drawn.
        published: The paper's figures; drawn where they are of the same data sets.
        paths: Files.

    Returns:
        The titles of methods of which something was left out.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    assert spec.plot is not None  # noqa: S101 - callers ask for specs with one
    table = Table(spec, outcomes, published)
    panels = _panels(spec, table)
    wide = 2 if len(panels) in (2, 4) else 3
    figure, axes = subplots(len(panels), size=_PANEL if len(panels) > 1 else _ONE, wrap=wide)
    handles: dict[str, Any] = {}
    left_out: list[str] = []
    for number, ((title, metric, pick), axis) in enumerate(zip(panels, axes, strict=True)):
        for place, row in enumerate(spec.rows):
            found = _series(spec, table, row, pick)
            series = [(x, entry) for x, entry in found if not entry.partial]
            if len(series) < len(found) and row.title not in left_out:
                left_out.append(row.title)
            _line(axis, series, row, place=place, handles=handles, scale=100 if metric.share else 1)
        axis.set(title=title, xlabel=_x_title(spec))
        what = metric.title.rstrip("@0123456789") if spec.plot.x == "metrics" else metric.title
        if metric.share:
            axis.set_ylabel("%" if number % wide else f"{what}, %")
        else:
            axis.set_ylabel(metric.unit or metric.title)
            axis.set_yscale("log")
        if spec.plot.log:
            axis.set_xscale("log")
        _ticks(axis, spec)
        axis.grid(alpha=0.3)
    if handles:
        columns = min(len(handles), 4 if len(panels) > 2 else 2)
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize="small"
        )
    for path in paths:
        fresh = path.with_name(f"{path.stem}.part{path.suffix}")
        save_figure(figure, fresh)
        fresh.replace(path)
    return left_out


Pick = Any
"""Of a line's entries: which one; for metrics along x, several."""


def _panels(spec: Spec, table: Table) -> list[tuple[str, Metric, Pick]]:
    """Title, what y is, and which entries of a line it shows."""
    assert spec.plot is not None  # noqa: S101 - `draw` is asked for specs with one
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
    means = table.means or spec.metrics  # of one column, its figures themselves
    start = len(spec.columns) * width if table.means else 0
    what = f"\nmean of {len(spec.columns)} data sets" if table.means else ""
    shown = means if spec.plot.panels == "metrics" else (first,)
    return [(f"{metric.title}{what}", metric, start + means.index(metric)) for metric in shown]


def _series(spec: Spec, table: Table, row: Row, pick: Pick) -> list[tuple[Any, Entry]]:
    """X and the entry there."""
    assert spec.plot is not None  # noqa: S101 - `draw` is asked for specs with one
    lines = [line for line in table.lines if line.row.key == row.key]
    if spec.plot.x == "metrics":
        entries = lines[0].entries if lines else ()
        return [(_number(entry.metric.key), entry) for entry in entries[pick.start : pick.stop]]
    if row.once:
        values: Sequence[Any] = spec.axis.values if spec.axis else (0,)
        return [(value, lines[0].entries[pick]) for value in values] if lines else []
    return [(next(iter(line.at.values()), 0), line.entries[pick]) for line in lines]


def _line(
    axis: Any, series: Sequence[tuple[Any, Entry]], row: Row, *, place: int, handles: dict[str, Any], scale: float
) -> None:
    """A row's line, its band over seeds, and the paper's beside it."""
    colour = _COLOURS[place % len(_COLOURS)]
    known = [(x, scale * entry.ours, scale * entry.spread) for x, entry in series if entry.ours is not None]
    if known:
        xs, ys, spreads = zip(*known, strict=True)
        style = {"linestyle": ":"} if row.once else {"marker": _MARKERS[place % len(_MARKERS)], "markersize": 4.5}
        (line,) = axis.plot(xs, ys, color=colour, label=row.title, **style)
        handles.setdefault(row.title, line)
        if any(spreads):
            low, high = ([y + sign * s for y, s in zip(ys, spreads, strict=True)] for sign in (-1, 1))
            axis.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    paper = [(x, scale * entry.paper) for x, entry in series if entry.paper is not None and entry.comparable]
    if paper:
        name = f"{row.title}, paper"
        (line,) = axis.plot(*zip(*paper, strict=True), color=colour, linestyle="--", alpha=0.5, linewidth=1, label=name)
        handles.setdefault(name, line)


def _x_title(spec: Spec) -> str:
    assert spec.plot is not None  # noqa: S101 - `draw` is asked for specs with one
    if spec.plot.x == "metrics":
        return "retrieved categories"
    return spec.axis.title if spec.axis else ""


def _ticks(axis: Any, spec: Spec) -> None:
    """At the places that were measured."""
    from matplotlib.ticker import NullLocator

    assert spec.plot is not None  # noqa: S101 - `draw` is asked for specs with one
    if spec.plot.x == "metrics":
        values = [_number(metric.key) for metric in spec.metrics]
    else:
        values = list(spec.axis.values) if spec.axis else []
    if all(isinstance(value, (int, float)) for value in values):
        axis.set_xticks(values, [f"{value:,}" for value in values])
        axis.xaxis.set_minor_locator(NullLocator())


def _number(key: str) -> int:
    return int("".join(character for character in key if character.isdigit()) or 0)
