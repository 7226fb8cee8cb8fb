"""Tuning an MLLM for ranking: examples from labelled images, a guard against leakage, training, adapters."""

from __future__ import annotations

from rarvision.tuning.adapters import merge_adapter
from rarvision.tuning.baseline import BaselineReport, few_shot_baseline
from rarvision.tuning.data import TuningReport, build_tuning_data
from rarvision.tuning.formats import FORMATS, FormatName, convert_manifest, to_record
from rarvision.tuning.leakage import ImageSet, LeakageReport, check_leakage, image_set, normalised_name
from rarvision.tuning.manifest import (
    MANIFEST_VERSION,
    TuningExample,
    is_manifest,
    iter_manifest,
    read_manifest,
    read_settings,
)
from rarvision.tuning.recipes import PRESETS, Recipe, recipe
from rarvision.tuning.training import TrainingReport, train

__all__ = [
    "FORMATS",
    "MANIFEST_VERSION",
    "PRESETS",
    "BaselineReport",
    "FormatName",
    "ImageSet",
    "LeakageReport",
    "Recipe",
    "TrainingReport",
    "TuningExample",
    "TuningReport",
    "build_tuning_data",
    "check_leakage",
    "convert_manifest",
    "few_shot_baseline",
    "image_set",
    "is_manifest",
    "iter_manifest",
    "merge_adapter",
    "normalised_name",
    "read_manifest",
    "read_settings",
    "recipe",
    "to_record",
    "train",
]
