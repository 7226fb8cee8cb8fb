"""The public benchmarks of the paper: what they are, how they lie on disk, and whether they are complete there."""

from __future__ import annotations

from rarvision.datasets.benchmarks.checking import BenchmarkCheck, Problem, SplitCheck, check_benchmark
from rarvision.datasets.benchmarks.opening import (
    BENCHMARKS,
    DATA_ROOT,
    BenchmarkDataset,
    Reference,
    benchmark,
    class_names,
    names_benchmark,
    open_benchmark,
)
from rarvision.datasets.benchmarks.spec import Benchmark, Listing, Splits, Table

__all__ = [
    "BENCHMARKS",
    "DATA_ROOT",
    "Benchmark",
    "BenchmarkCheck",
    "BenchmarkDataset",
    "Listing",
    "Problem",
    "Reference",
    "SplitCheck",
    "Splits",
    "Table",
    "benchmark",
    "check_benchmark",
    "class_names",
    "names_benchmark",
    "open_benchmark",
]
