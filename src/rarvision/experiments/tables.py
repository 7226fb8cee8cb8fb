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

__all__ = ["Entry", "Line", "Table", "measured_part", "speed_table"]

MEAN = "mean"
_PAPER_NAMES = "all-mpnet-base-v2"  # what compares names in the paper


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
        over: Of a mean: how many data sets it is over, of ours and the paper's alike; None of what is no mean.
        of: How many there are.
        mark: Of the reason below the table, where there are several.
    """

    metric: Metric
    ours: float | None = None
    spread: float = 0.0
    paper: float | None = None
    why: str = ""
    comparable: bool = True
    over: int | None = None
    of: int = 0
    mark: str = ""

    @property
    def partial(self) -> bool:
        """Whether it is a mean over some of the data sets."""
        return self.over is not None and 0 < self.over < self.of

    @property
    def whose(self) -> str:
        """What stands before the paper's figure; marked where it is of other data."""
        return "paper" if self.comparable else "paper†"

    @property
    def difference(self) -> float | None:
        """Ours less the paper's; None where they are of other images."""
        return None if self.ours is None or self.paper is None or not self.comparable else self.ours - self.paper

    def figure(self, value: float | None, *, sign: bool = False) -> str:
        """A value for people: percent with a decimal, counts as they are."""
        if value is None:
            return ""
        if self.metric.share:
            return f"{100 * value:{'+' if sign else ''}z.1f}"
        return f"{value:{'+' if sign else ''}z,.{1 if self.metric.unit else 0}f}"

    def text(self) -> str:
        """Ours, ± where seeds differ, and in brackets the paper's, the difference, and over how many data sets."""
        if self.ours is None:
            mine = f"-{self.mark}" if self.why else ""
        else:
            mine = self.figure(self.ours) + (f" ± {self.figure(self.spread)}" if self.spread else "")
        told = []
        if self.paper is not None:
            told.append(f"{self.whose} {self.figure(self.paper)}")
        if self.difference is not None:
            told.append(self.figure(self.difference, sign=True))
        if self.partial:
            told.append(f"over {self.over} of {self.of}")
        return f"{mine} ({', '.join(told)})".strip() if told else mine


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
        remarks: What else is to stand below the table.
    """

    def __init__(
        self,
        spec: Spec,
        outcomes: Sequence[Outcome],
        published: Published | None = None,
        *,
        remarks: Sequence[str] = (),
    ) -> None:
        self._remarks = tuple(remarks)
        self.spec, self.published = spec, published
        self._outcomes = tuple(outcomes)
        self._by_cell: dict[tuple[str, str, tuple[tuple[str, Any], ...]], list[Outcome]] = {}
        for outcome in outcomes:
            key = (outcome.column, outcome.row, tuple(outcome.at.items()))
            self._by_cell.setdefault(key, []).append(outcome)
        self.columns = [(column, metric) for column in spec.columns for metric in spec.metrics]
        self.means = tuple(each for each in spec.metrics if each.share or each.unit) if len(spec.columns) > 1 else ()
        self.lines = list(self._lines())
        several = len(self.reasons) > 1
        self.marks = {why: _raised(place) if several else "" for place, why in enumerate(self.reasons, start=1)}
        self.lines = [
            replace(line, entries=tuple(replace(each, mark=self.marks.get(each.why, "")) for each in line.entries))
            for line in self.lines
        ]

    @property
    def heads(self) -> list[str]:
        """Of the columns of figures."""
        several = len(self.spec.metrics) > 1
        if len(self.spec.columns) == 1:
            return [metric.title for metric in self.spec.metrics]
        heads = [f"{column.title} {metric.title}" if several else column.title for column, metric in self.columns]
        return heads + [f"{MEAN} {metric.title}" if several else MEAN for metric in self.means]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """What stands above `heads`, and above how many of them; empty where no column has a group."""
        found: list[tuple[str, int]] = []
        for column in self.spec.columns:
            width = len(self.spec.metrics)
            if found and found[-1][0] == column.group:
                width += found.pop()[1]
            found.append((column.group, width))
        if not any(title for title, _ in found):
            return []
        return [*found, ("", len(self.means))] if self.means else found

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
        entries += [self._mean(row, at, metric) for metric in self.means]
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
        return Entry(metric=metric, ours=mean[0], spread=mean[1], paper=paper, comparable=self._alike(metric))

    def _alike(self, metric: Metric) -> bool:
        """Whether what is measured is what the paper measures: likenesses of names depend on what compares them."""
        return metric.key != "sacc" or not self.name_encoders

    @property
    def name_encoders(self) -> list[str]:
        """What the likeness of names was computed with, other than the paper's."""
        found = {str(each.settings["name_encoder"]) for each in self._outcomes if "name_encoder" in each.settings}
        return sorted(name for name in found if _PAPER_NAMES not in name)

    def _mean(self, row: Row, at: Mapping[str, Any], metric: Metric) -> Entry:
        """Over the data sets that have a figure, of the paper's row as well where it has one; see `Entry.over`.

        Where ours has none, the paper's is over all of them. The spread is half of the range of the seeds' means.
        """
        keys = [column.key for column in self.spec.columns]
        found = {key: {o.seed: o.values.get(metric.key) for o in self._found(key, row, at)} for key in keys}
        seeds = sorted({seed for values in found.values() for seed in values})
        known = [key for key in keys if seeds and all(found[key].get(seed) is not None for seed in seeds)]
        paper, shared = self._paper_mean(known or keys, row, at, metric)
        used = [key for key in known if key in shared] if shared else known
        common: dict[str, Any] = {"metric": metric, "paper": paper, "of": len(keys)}
        if not used:
            why = "no data set has a figure" if seeds else ""
            paper = None if 0 < len(shared) < len(keys) else paper
            alike = not self.foreign and self._alike(metric)
            return Entry(why=why, comparable=alike, **{**common, "paper": paper})
        by_seed = [sum(float(found[key][seed] or 0.0) for key in used) / len(used) for seed in seeds]
        return Entry(
            ours=sum(by_seed) / len(by_seed),
            spread=(max(by_seed) - min(by_seed)) / 2,
            comparable=self._alike(metric) and not self.foreign and (bool(shared) or len(used) == len(keys)),
            over=len(used),
            **common,
        )

    def _paper_mean(
        self, keys: Sequence[str], row: Row, at: Mapping[str, Any], metric: Metric
    ) -> tuple[float | None, Sequence[str]]:
        """The paper's mean and the data sets of ``keys`` that it is over.

        Over all of the paper's own, none of ``keys``, where these are of another world, or where no figure but the
        printed mean is known.
        """
        if self.published is None:
            return None, ()
        place = row.key, at, metric.key
        shared = [key for key in keys if self.published.value(row.key, key, at, metric.key) is not None]
        if shared:
            return self.published.mean(*place, shared), shared
        mean = self.published.mean(*place) if self.foreign else None
        same = {column.key for column in self.spec.columns} == set(self.published.columns)
        if mean is None and (self.foreign or same):
            mean = self.published.printed_mean(*place)
        return mean, ()

    @property
    def foreign(self) -> bool:
        """Whether the paper's figures are of other images than ours."""
        if self.published is None or not self.published.rows:
            return False
        return not {column.key for column in self.spec.columns} & set(self.published.columns)

    @property
    def notes(self) -> list[str]:
        """What stands below the table."""
        notes = [f"`-{self.marks[why]}` in {_cells(count)}: {why}." for why, count in self.reasons.items()]
        if self.missing:
            notes.append(f"Not measured yet: {_cells(self.missing)}; the same command goes on with them.")
        if any(entry.partial for line in self.lines for entry in line.entries):
            notes.append("A mean over some of the data sets is over those of which both sides have a figure.")
        apart = [e for line in self.lines for e in line.entries if e.paper is not None and not e.comparable]
        if any(self._alike(entry.metric) for entry in apart):
            notes.append("† The paper's mean is of other data sets than ours: for the shape, not to be compared.")
        if any(metric.key == "sacc" for metric in self.spec.metrics) and self.name_encoders:
            notes.append(
                f"sACC is by {', '.join(self.name_encoders)}; the paper's is by {_PAPER_NAMES}: not to be compared †."
            )
        notes += _shortfalls(self._outcomes)
        notes += self._remarks
        if self.published is not None:
            notes += [f"No figure of the paper in {_cells(n)}: {why}." for why, n in self._paper_reasons().items()]
            notes += self.published.notes
        extra = [row.title for row in self.spec.rows if row.extra]
        if extra:
            notes.append(f"Not in the paper: {', '.join(extra)}.")
        return notes

    def _paper_reasons(self) -> dict[str, int]:
        """Why the paper's rows have gaps, and in how many cells of ours."""
        found: dict[str, int] = {}
        for line in self.lines if self.published is not None else ():
            for column, metric in self.columns:
                why = self.published.reason(line.row.key, column.key, line.at, metric.key)  # type: ignore[union-attr]  # as said
                if why:
                    found[why] = found.get(why, 0) + 1
        return found

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

    def to_dicts(self) -> list[dict[str, Any]]:
        """A record a cell, JSON values: place, method, data set (or ``mean``), metric and the fields of `Entry`."""
        keys = [column.key for column, _ in self.columns] + [MEAN] * len(self.means)
        return [
            {
                "experiment": self.spec.name,
                "at": dict(line.at),
                "row": line.row.key,
                "column": key,
                "metric": entry.metric.key,
                "ours": entry.ours,
                "spread": entry.spread,
                "paper": entry.paper,
                "difference": entry.difference,
                "over": entry.over,
                "why": entry.why,
            }
            for line in self.lines
            for key, entry in zip(keys, line.entries, strict=True)
        ]

    def to_csv(self) -> str:
        """The records of `to_dicts`, a line each; shares as shares."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for number, record in enumerate(self.to_dicts()):
            if number == 0:
                writer.writerow(record)
            values = {**record, "at": ", ".join(str(value) for value in record["at"].values())}
            writer.writerow(_csv_value(value) for value in values.values())
        return text.getvalue()


def _csv_value(value: float | str | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _shortfalls(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Images without an answer, and rankings that are retrieval's."""
    failed = [each for each in outcomes if each.failures]
    if failed:
        count = sum(each.failures for each in failed)
        yield f"Without an answer, and counted as wrong: {count:,} images in {_cells(len(failed))}."
    fallen = [each for each in outcomes if each.statuses.get("fallback")]
    if fallen:
        count = sum(each.statuses["fallback"] for each in fallen)
        of = sum(sum(each.statuses.values()) for each in fallen)
        yield f"Retrieval's order for want of a usable answer: {count:,} of {of:,} rankings in {_cells(len(fallen))}."


def _raised(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _cells(count: int) -> str:
    return f"{count:,} {'cell' if count == 1 else 'cells'}"


def speed_table(spec: Spec, outcomes: Sequence[Outcome]) -> Table:
    """Milliseconds an image instead of figures: of encoding and search, of ranking, and of both.

    Cells without a value have no time either, and say why.
    """
    metrics = tuple(
        Metric(key=key, title=title, share=False, unit="ms")
        for key, title in (("retrieval", "retrieval, ms"), ("ranking", "ranking, ms"), ("both", "both, ms"))
    )

    def timed(outcome: Outcome) -> Outcome:
        parts = outcome.retrieval_ms, outcome.ranking_ms
        known = outcome.why is None and sum(parts) > 0
        values = {"retrieval": parts[0], "ranking": parts[1], "both": sum(parts)} if known else {}
        return replace(outcome, values=values)

    return Table(replace(spec, metrics=metrics, plot=None, claims=()), [timed(each) for each in outcomes])


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
    values = sorted(there or spec.axis.values, key=float)  # in order, which trends go along
    return replace(changed, axis=replace(spec.axis, values=tuple(values)))
