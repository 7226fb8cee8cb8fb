"""The figures that the paper printed, as data: what tables are set beside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Published", "published"]

_COUNTS = ("categories",)  # no shares


@dataclass(frozen=True, kw_only=True)
class Published:
    """The figures of one table or figure of the paper.

    Figures are shares from 0 to 1 (AP and sACC too), counts as they are.

    Attributes:
        columns: The datasets, by benchmark's name.
        notes: What to know of them: contradictions, and what is not known.
        rows: As in the file: row, at, metric, values (percent, None for ``-`` and what is not known), why they are
            None, printed_mean.
    """

    columns: tuple[str, ...]
    notes: tuple[str, ...]
    rows: Sequence[Mapping[str, Any]] = field(repr=False)

    def value(self, row: str, column: str, at: Mapping[str, Any], metric: str) -> float | None:
        """A figure; None where there is none, see `reason`.

        A row that is printed once holds at every place of the axis.
        """
        found = self._find(row, at, metric)
        if found is None or column not in self.columns:
            return None
        value = found["values"][self.columns.index(column)]
        return None if value is None else value if metric in _COUNTS else value / 100

    def reason(self, row: str, column: str, at: Mapping[str, Any], metric: str) -> str | None:
        """Why a figure of a row that the paper has is not there; None where it is, or there is no such row."""
        found = self._find(row, at, metric)
        if found is None or column not in self.columns or self.value(row, column, at, metric) is not None:
            return None
        return str(found["why"])

    def mean(self, row: str, at: Mapping[str, Any], metric: str, columns: Sequence[str] | None = None) -> float | None:
        """The mean over columns (all by default), recomputed; None where one has no figure."""
        values = [self.value(row, column, at, metric) for column in columns or self.columns]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def printed_mean(self, row: str, at: Mapping[str, Any], metric: str) -> float | None:
        """The mean as the paper prints it, which `mean` never uses; None where it prints none."""
        found = self._find(row, at, metric)
        value = None if found is None else found.get("printed_mean")
        return None if value is None else value / 100

    def _find(self, row: str, at: Mapping[str, Any], metric: str) -> Mapping[str, Any] | None:
        mine = [each for each in self.rows if each["row"] == row and each["metric"] == metric]
        exact = [each for each in mine if each["at"] == dict(at)]
        once = [each for each in mine if not each["at"]]
        return next(iter(exact or once), None)


@cache
def published(name: str) -> Published | None:
    """What the paper printed under that name, such as ``table-7``; None where it has no such table or figure."""
    known = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
    if name not in known:
        return None
    found = known[name]
    part: Mapping[str, Sequence[Any]] = found.get("at", {})  # of a table that repeats rows of another
    found = known[found.get("of", name)]
    rows = [row for row in found["rows"] if all(row["at"].get(key) in values for key, values in part.items())]
    return Published(columns=tuple(found["columns"]), notes=tuple(found["notes"]), rows=rows)
