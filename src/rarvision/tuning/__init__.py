"""Tuning an MLLM for ranking: ranking examples from labelled images, other formats of them, a guard against leakage."""

from __future__ import annotations

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

__all__ = [
    "FORMATS",
    "MANIFEST_VERSION",
    "FormatName",
    "ImageSet",
    "LeakageReport",
    "TuningExample",
    "TuningReport",
    "build_tuning_data",
    "check_leakage",
    "convert_manifest",
    "image_set",
    "is_manifest",
    "iter_manifest",
    "normalised_name",
    "read_manifest",
    "read_settings",
    "to_record",
]
