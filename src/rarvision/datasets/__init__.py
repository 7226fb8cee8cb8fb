"""Datasets: readers for what lies on disk, few-shot sampling, and the procedural field guide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rarvision.datasets.base import Dataset, Item, Subset
from rarvision.datasets.readers import CSVDataset, ImageFolder, JSONLDataset, NameList, open_dataset

if TYPE_CHECKING:
    from rarvision.datasets.fieldguide import FieldGuide, FieldGuideScenes

__all__ = [
    "CSVDataset",
    "Dataset",
    "FieldGuide",
    "FieldGuideScenes",
    "ImageFolder",
    "Item",
    "JSONLDataset",
    "NameList",
    "Subset",
    "open_dataset",
]


def __getattr__(name: str) -> Any:
    if name in ("FieldGuide", "FieldGuideScenes"):
        from rarvision.datasets import fieldguide

        return getattr(fieldguide, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
