"""Datasets: readers for what lies on disk, public benchmarks, few-shot sampling, and the procedural field guide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rarvision.datasets.base import Dataset, Item, Subset
from rarvision.datasets.hub import HubDataset
from rarvision.datasets.readers import CSVDataset, ImageFiles, ImageFolder, JSONLDataset, NameList, open_dataset
from rarvision.datasets.taxonomies import field_guide_taxonomy, open_taxonomy, taxonomy_of_metadata

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
    from rarvision.datasets.fieldguide import FieldGuide, FieldGuideScenes

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkCheck",
    "BenchmarkDataset",
    "CSVDataset",
    "Dataset",
    "FieldGuide",
    "FieldGuideScenes",
    "HubDataset",
    "ImageFiles",
    "ImageFolder",
    "Item",
    "JSONLDataset",
    "NameList",
    "Subset",
    "benchmark",
    "check_benchmark",
    "field_guide_taxonomy",
    "open_benchmark",
    "open_dataset",
    "open_taxonomy",
    "taxonomy_of_metadata",
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
    if name in ("FieldGuide", "FieldGuideScenes"):
        from rarvision.datasets import fieldguide

        return getattr(fieldguide, name)
    if name in _BENCHMARKS:
        from rarvision.datasets import benchmarks

        return getattr(benchmarks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
