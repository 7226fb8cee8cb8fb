"""Tuning an MLLM for ranking: ranking examples from labelled images, other formats of them, a guard against leakage."""

from __future__ import annotations

from rarvision.tuning.adapters import merge_adapter
from rarvision.tuning.baseline import BaselineReport, few_shot_baseline
from rarvision.tuning.manifest import (
    MANIFEST_VERSION,
    TuningExample,
    iter_manifest,
    read_manifest,
    read_settings,
)
from rarvision.tuning.recipes import PRESETS, Recipe, recipe
from rarvision.tuning.training import TrainingReport, train

__all__ = [
    "MANIFEST_VERSION",
    "PRESETS",
    "BaselineReport",
    "Recipe",
    "TrainingReport",
    "TuningExample",
    "few_shot_baseline",
    "iter_manifest",
    "merge_adapter",
    "read_manifest",
    "read_settings",
    "recipe",
    "train",
]
