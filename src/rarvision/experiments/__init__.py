"""The paper's experiments: a declarative spec a table, one runner, and their rendering beside the paper's figures."""

from __future__ import annotations

from rarvision.experiments.outcomes import Outcome, append_outcome, mean_over_seeds, read_outcomes
from rarvision.experiments.spec import Axis, Claim, Column, Kind, Metric, Plot, Row, Spec

__all__ = [
    "Axis",
    "Claim",
    "Column",
    "Kind",
    "Metric",
    "Outcome",
    "Plot",
    "Row",
    "Spec",
    "append_outcome",
    "mean_over_seeds",
    "read_outcomes",
]
