"""What an experiment is: which methods on which datasets, what is varied, what is measured, what the paper claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rarvision.errors import OptionError

__all__ = ["Axis", "Claim", "Column", "Kind", "Metric", "Plot", "Row", "Spec"]

Kind = Literal["classification", "naming", "regions", "crops", "facts"]
"""What carries a cell out, see `rarvision.experiments.kinds`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A dataset of a table.

    Attributes:
        key: Its benchmark's name, such as ``oxford_pets``; in the field guide's edition a domain's, such as ``birds``.
        title: What heads the column.
        group: What stands above several columns, such as ``Fine-grained``.
        options: What the world needs to know of it: ``reference`` of a benchmark, ``categories`` of a domain.
    """

    key: str
    title: str
    group: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A method of a table.

    Attributes:
        key: What results call it.
        title: What people read.
        method: The preset that carries it out, a key of `rarvision.experiments.METHODS`, or of the kind's own.
        options: What differs from the preset.
        extra: Whether the paper has no such row: it is here since a comparison without it would mislead.
        once: Whether the axis does not matter to it: it is measured once, at the axis' first value.
    """

    key: str
    title: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    extra: bool = False
    once: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """What is varied, such as the number of shots.

    Attributes:
        key: The setting's name: ``shots``, ``k``, ``categories``, ``scale``.
        title: For people and plots.
        values: In order.
    """

    key: str
    title: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is measured.

    Attributes:
        key: Its name in `rarvision.experiments.Outcome.values`.
        title: For people.
        share: Whether it is a share, 0 to 1, shown in percent; else it is shown as it is.
        unit: Of what is no share, such as ``ms``.
    """

    key: str
    title: str
    share: bool = True
    unit: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A statement of the paper that the outcomes can bear out or not.

    Attributes:
        text: The statement.
        kind: ``gain``: row ``first`` is better than row ``second``; ``rises``, ``falls``: the metric of row ``first``
            does so along the axis; ``flat``: it changes along the axis by no more than ``margin``; ``alike``: rows
            ``first`` and ``second`` differ by no more than that.
        first: A row's key.
        second: Another's.
        metric: A metric's key; for ``rises`` without an axis, several metrics joined by ``,`` in order.
        margin: For ``flat`` and ``alike``, a share.
    """

    text: str
    kind: Literal["gain", "rises", "falls", "flat", "alike"]
    first: str
    second: str = ""
    metric: str = "top1"
    margin: float = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A figure of the outcomes: a line a row, a panel a column (or one of the means, or one a metric).

    Attributes:
        x: ``axis``, or ``metrics``: each metric is a place, such as recall at 1, 5, 10.
        panels: ``columns``, ``mean`` or ``metrics``.
        metric: What is drawn, where ``x`` and ``panels`` do not say; the first metric by default.
        log: Whether x is logarithmic.
    """

    x: Literal["axis", "metrics"] = "axis"
    panels: Literal["columns", "mean", "metrics"] = "mean"
    metric: str = ""
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One table or figure of the paper, or one of ours.

    Attributes:
        name: Such as ``table-7``; what `rarvision reproduce` is given.
        title: One line.
        question: What it asks, a sentence or two.
        kind: What carries its cells out.
        columns: Datasets.
        rows: Methods.
        metrics: The first is the one that counts.
        axis: What is varied; None for nothing.
        settings: What holds for all cells: ``shots``, ``k``, ….
        claims: What the paper says of it.
        plot: Its figure, if any.
        source: Where in the paper; empty for ours.
        paper: Under which name the paper's figures are kept, where it is another than ``name``; empty for none.
    """

    name: str
    title: str
    question: str
    kind: Kind
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    metrics: tuple[Metric, ...]
    axis: Axis | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    plot: Plot | None = None
    source: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        for what, keys in (
            ("columns", [column.key for column in self.columns]),
            ("rows", [row.key for row in self.rows]),
            ("metrics", [metric.key for metric in self.metrics]),
        ):
            if not keys or len(set(keys)) < len(keys):
                raise OptionError(f"{self.name}: {what} must be some, of different keys; got {keys}")

    def row(self, key: str) -> Row:
        """The row of that key."""
        return next(row for row in self.rows if row.key == key)

    def column(self, key: str) -> Column:
        """The column of that key."""
        return next(column for column in self.columns if column.key == key)

    def metric(self, key: str) -> Metric:
        """The metric of that key."""
        return next(metric for metric in self.metrics if metric.key == key)

    @property
    def places(self) -> tuple[Mapping[str, Any], ...]:
        """Where on the axis cells lie: ``({"shots": 1}, {"shots": 2}, …)``; ``({},)`` without an axis."""
        return ({},) if self.axis is None else tuple({self.axis.key: value} for value in self.axis.values)
