"""An experiment's outcomes as a table: our figure, the paper's, their difference; means over data sets recomputed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from rarvision.experiments.outcomes import Outcome, mean_over_seeds
from rarvision.experiments.paper import Published
from rarvision.experiments.spec import Metric, Row, Spec

__all__ = ["Entry", "Line", "Table", "measured_part"]

MEAN = "mean"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One cell of a table.

    Attributes:
        metric: What is measured.
        ours: Mean over seeds, in the metric's unit (shares from 0 to 1); None where there is none.
        spread: Half of the range over seeds; 0 for one seed.
        paper: The paper's figure; None where it has none.
        why: Why there is no figure of ours; empty where it was not measured yet, or is there.
        comparable: Whether the paper's figure is of the same images; else there is no difference.
    """

    metric: Metric
    ours: float | None = None
    spread: float = 0.0
    paper: float | None = None
    why: str = ""
    comparable: bool = True

    @property
    def difference(self) -> float | None:
        """Ours less the paper's; None where they are of other images."""
        return None if self.ours is None or self.paper is None or not self.comparable else self.ours - self.paper

    def figure(self, value: float | None, *, sign: bool = False) -> str:
        """A value for people: percent with a decimal, counts as they are."""
        if value is None:
            return ""
        if self.metric.share:
            return f"{100 * value:{'+' if sign else ''}.1f}"
        return f"{value:{'+' if sign else ''},.{1 if self.metric.unit else 0}f}"

    def text(self) -> str:
        """Ours, ± where seeds differ, and in brackets the paper's and the difference."""
        if self.ours is None:
            mine = "-" if self.why else ""
        else:
            mine = self.figure(self.ours) + (f" ± {self.figure(self.spread)}" if self.spread else "")
        if self.paper is None:
            return mine
        told = f"paper {self.figure(self.paper)}"
        if self.difference is not None:
            told += f", {self.figure(self.difference, sign=True)}"
        return f"{mine} ({told})".strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a table: a method at a place of the axis."""

    row: Row
    at: Mapping[str, Any]
    entries: tuple[Entry, ...]

    @property
    def place(self) -> str:
        """Where on the axis, for people."""
        return ", ".join(str(value) for value in self.at.values())


@final
class Table:
    """All cells of an experiment.

    Args:
        spec: What was to be measured.
        outcomes: What came of it, any part of it.
        published: The paper's figures, if any.
    """

    def __init__(self, spec: Spec, outcomes: Sequence[Outcome], published: Published | None = None) -> None:
        self.spec, self.published = spec, published
        self._by_cell: dict[tuple[str, str, tuple[tuple[str, Any], ...]], list[Outcome]] = {}
        for outcome in outcomes:
            key = (outcome.column, outcome.row, tuple(outcome.at.items()))
            self._by_cell.setdefault(key, []).append(outcome)
        self.columns = [(column, metric) for column in spec.columns for metric in spec.metrics]
        self.has_mean = len(spec.columns) > 1
        self.lines = list(self._lines())

    @property
    def heads(self) -> list[str]:
        """Of the columns of figures."""
        several = len(self.spec.metrics) > 1
        if not self.has_mean:
            return [metric.title for metric in self.spec.metrics]
        heads = [f"{column.title} {metric.title}" if several else column.title for column, metric in self.columns]
        return heads + [f"{MEAN} {metric.title}" if several else MEAN for metric in self.spec.metrics]

    @property
    def missing(self) -> int:
        """Cells that were not measured yet."""
        width = len(self.columns)
        return sum(entry.ours is None and not entry.why for line in self.lines for entry in line.entries[:width])

    @property
    def reasons(self) -> dict[str, int]:
        """Why there is no figure, and in how many cells."""
        found: dict[str, int] = {}
        for line in self.lines:
            for entry in line.entries[: len(self.columns)]:
                if entry.ours is None and entry.why:
                    found[entry.why] = found.get(entry.why, 0) + 1
        return found

    def _lines(self) -> Iterator[Line]:
        once = [row for row in self.spec.rows if row.once]
        places = self.spec.places
        for row in once:
            yield self._line(row, {})
        for at in places:
            for row in self.spec.rows:
                if not row.once:
                    yield self._line(row, at)

    def _line(self, row: Row, at: Mapping[str, Any]) -> Line:
        entries = [self._entry(column.key, row, at, metric) for column, metric in self.columns]
        if self.has_mean:
            entries += [self._mean(row, at, metric) for metric in self.spec.metrics]
        return Line(row=row, at=at, entries=tuple(entries))

    def _found(self, column: str, row: Row, at: Mapping[str, Any]) -> list[Outcome]:
        return self._by_cell.get((column, row.key, tuple(at.items())), [])

    def _entry(self, column: str, row: Row, at: Mapping[str, Any], metric: Metric) -> Entry:
        found = self._found(column, row, at)
        paper = None if self.published is None else self.published.value(row.key, column, at, metric.key)
        mean = mean_over_seeds(found, metric.key) if found else None
        if mean is None:
            why = next((each.why for each in found if each.why), "no such figure" if found else "")
            return Entry(metric=metric, paper=paper, why=why)
        return Entry(metric=metric, ours=mean[0], spread=mean[1], paper=paper)

    def _mean(self, row: Row, at: Mapping[str, Any], metric: Metric) -> Entry:
        """Over all columns; where one has no figure there is no mean. Spread: half of the range of the seeds' means."""
        keys = [column.key for column in self.spec.columns]
        found = [self._found(key, row, at) for key in keys]
        seeds = sorted({outcome.seed for outcomes in found for outcome in outcomes})
        by_seed = []
        for seed in seeds:
            values = [o.values.get(metric.key) for outcomes in found for o in outcomes if o.seed == seed]
            known = [value for value in values if value is not None]
            if len(known) == len(keys):
                by_seed.append(sum(known) / len(known))
        paper = self._paper_mean(keys, row, at, metric) if metric.share else None
        same = not self.foreign
        if not by_seed or len(by_seed) < len(seeds):
            why = "not all data sets have a figure" if any(found) else ""
            return Entry(metric=metric, paper=paper, why=why, comparable=same)
        ours, spread = sum(by_seed) / len(by_seed), (max(by_seed) - min(by_seed)) / 2
        return Entry(metric=metric, ours=ours, spread=spread, paper=paper, comparable=same)

    def _paper_mean(self, keys: Sequence[str], row: Row, at: Mapping[str, Any], metric: Metric) -> float | None:
        """Over the same columns; over the paper's own where these are of another world."""
        if self.published is None:
            return None
        shared = [key for key in keys if key in self.published.columns]
        if not shared:
            return self.published.mean(row.key, at, metric.key)
        known = [key for key in shared if self.published.value(row.key, key, at, metric.key) is not None]
        if not known and set(shared) == set(self.published.columns):
            return self.published.mean(row.key, at, metric.key)
        return self.published.mean(row.key, at, metric.key, keys) if len(shared) == len(keys) else None

    @property
    def foreign(self) -> bool:
        """Whether the paper's figures are of other images than ours."""
        if self.published is None or not self.published.rows:
            return False
        return not {column.key for column in self.spec.columns} & set(self.published.columns)

    @property
    def notes(self) -> list[str]:
        """What stands below the table."""
        notes = [f"`-` in {count} {'cell' if count == 1 else 'cells'}: {why}." for why, count in self.reasons.items()]
        if self.missing:
            notes.append(f"{self.missing} cells are not measured yet; the same command goes on with them.")
        if self.foreign:
            notes.append("The paper's means are of its own data sets and models: for the shape, not to be compared.")
        if self.published is not None:
            notes += self.published.notes
        extra = [row.title for row in self.spec.rows if row.extra]
        if extra:
            notes.append(f"Not in the paper: {', '.join(extra)}.")
        return notes

    def rows(self) -> list[list[str]]:
        """Cells as text; the place on the axis first, where there is an axis."""
        return [
            [*([line.place] if self.spec.axis else []), line.row.title, *(entry.text() for entry in line.entries)]
            for line in self.lines
        ]

    @property
    def head(self) -> list[str]:
        """Of `rows`."""
        return [*([self.spec.axis.title] if self.spec.axis else []), "method", *self.heads]

    def to_markdown(self) -> str:
        """The table and its notes."""
        cells = [[text.replace("|", "\\|") for text in row] for row in (self.head, *self.rows())]
        rule = "|".join(["---"] * (len(cells[0]) - len(self.heads)) + ["---:"] * len(self.heads))
        lines = [f"| {' | '.join(cells[0])} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in cells[1:])]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])

    def to_csv(self) -> str:
        """A line a cell: axis, method, data set, metric, ours, spread, paper, difference, why; shares as shares."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = ("experiment", "at", "row", "column", "metric", "ours", "spread", "paper", "difference", "why")
        writer.writerow(names)
        keys = [column.key for column, _ in self.columns] + [MEAN] * (len(self.spec.metrics) if self.has_mean else 0)
        for line in self.lines:
            for key, entry in zip(keys, line.entries, strict=True):
                numbers = (entry.ours, entry.spread, entry.paper, entry.difference)
                shown = ["" if value is None else f"{value:.6g}" for value in numbers]
                writer.writerow([self.spec.name, line.place, line.row.key, key, entry.metric.key, *shown, entry.why])
        return text.getvalue()


def measured_part(spec: Spec, outcomes: Sequence[Outcome]) -> Spec:
    """The spec without the columns, rows and places of which nothing is there: of a part that was asked for."""
    if not outcomes:
        return spec
    columns = {outcome.column for outcome in outcomes}
    rows = {outcome.row for outcome in outcomes}
    changed = replace(
        spec,
        columns=tuple(each for each in spec.columns if each.key in columns) or spec.columns,
        rows=tuple(each for each in spec.rows if each.key in rows) or spec.rows,
    )
    if spec.axis is None:
        return changed
    there = {outcome.at[spec.axis.key] for outcome in outcomes if spec.axis.key in outcome.at}
    more = sorted(there - set(spec.axis.values), key=float)
    values = [value for value in spec.axis.values if value in there] + more
    return replace(changed, axis=replace(spec.axis, values=tuple(values or spec.axis.values)))
