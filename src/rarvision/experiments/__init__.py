"""The paper's experiments: a declarative spec a table, one runner, and their rendering beside the paper's figures."""

from __future__ import annotations

from rarvision.experiments.claims import Verdict, judge
from rarvision.experiments.drawing import draw
from rarvision.experiments.gallery import Card, make_gallery, read_gallery
from rarvision.experiments.kinds import carry_out
from rarvision.experiments.lab import Cell, Lab, embedded_lab
from rarvision.experiments.methods import METHODS, Method
from rarvision.experiments.outcomes import Outcome, append_outcome, mean_over_seeds, read_outcomes
from rarvision.experiments.paper import Published, published
from rarvision.experiments.reports import Rebuilt, rebuild_report, write_report
from rarvision.experiments.running import (
    EXPERIMENT,
    OUTCOMES,
    cells_of,
    check_folder,
    read_configuration,
    run_experiment,
)
from rarvision.experiments.spec import Axis, Claim, Column, Kind, Metric, Plot, Row, Spec
from rarvision.experiments.specs import ALIASES, EXPERIMENTS, Edition, spec_of
from rarvision.experiments.tables import Table, measured_part, speed_table
from rarvision.experiments.worlds import BenchmarkWorld, FieldGuideWorld, Task, World

__all__ = [
    "ALIASES",
    "EXPERIMENT",
    "EXPERIMENTS",
    "METHODS",
    "OUTCOMES",
    "Axis",
    "BenchmarkWorld",
    "Card",
    "Cell",
    "Claim",
    "Column",
    "Edition",
    "FieldGuideWorld",
    "Kind",
    "Lab",
    "Method",
    "Metric",
    "Outcome",
    "Plot",
    "Published",
    "Rebuilt",
    "Row",
    "Spec",
    "Table",
    "Task",
    "Verdict",
    "World",
    "append_outcome",
    "carry_out",
    "cells_of",
    "check_folder",
    "draw",
    "embedded_lab",
    "judge",
    "make_gallery",
    "mean_over_seeds",
    "measured_part",
    "published",
    "read_configuration",
    "read_gallery",
    "read_outcomes",
    "rebuild_report",
    "run_experiment",
    "spec_of",
    "speed_table",
    "write_report",
]
