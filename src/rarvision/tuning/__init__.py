"""Tuning an MLLM for ranking: ranking examples from labelled images, other formats of them, a guard against leakage."""

from __future__ import annotations

from rarvision.tuning.manifest import (
    MANIFEST_VERSION,
    TuningExample,
    iter_manifest,
    read_manifest,
    read_settings,
)

__all__ = ["MANIFEST_VERSION", "TuningExample", "iter_manifest", "read_manifest", "read_settings"]
