"""Datasets: readers for what lies on disk, public benchmarks, few-shot sampling, and the procedural field guide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rarvision.datasets.base import Dataset, Item, Subset
from rarvision.datasets.hub import HubDataset
from rarvision.datasets.readers import CSVDataset, ImageFolder, JSONLDataset, NameList, open_dataset

if TYPE_CHECKING:
    from rarvision.datasets.benchmarks import (
        BENCHMARKS,
        Benchmark,
        BenchmarkCheck,
        BenchmarkDataset,
        benchmark,
        check_benchmark,
        open_benchmark,
    )
    from rarvision.datasets.fieldguide import FieldGuide

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkCheck",
    "BenchmarkDataset",
    "CSVDataset",
    "Dataset",
    "FieldGuide",
    "HubDataset",
    "ImageFolder",
    "Item",
    "JSONLDataset",
    "NameList",
    "Subset",
    "benchmark",
    "check_benchmark",
    "open_benchmark",
    "open_dataset",
]

_BENCHMARKS = {
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkCheck",
    "BenchmarkDataset",
    "benchmark",
    "check_benchmark",
    "open_benchmark",
}


def __getattr__(name: str) -> Any:
    if name == "FieldGuide":
        from rarvision.datasets.fieldguide import FieldGuide

        return FieldGuide
    if name in _BENCHMARKS:
        from rarvision.datasets import benchmarks

        return getattr(benchmarks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
