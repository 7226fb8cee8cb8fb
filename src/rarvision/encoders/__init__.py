"""Images and texts become unit vectors: the `Encoder` interface, and CLIP and SigLIP models from transformers."""

from __future__ import annotations

from rarvision.encoders.base import (
    Encoder,
    check_templates,
    ordered_map,
    probe_matches,
    same_encoder,
    worker_pool,
)
from rarvision.encoders.transformers import TransformersEncoder

__all__ = [
    "Encoder",
    "TransformersEncoder",
    "check_templates",
    "ordered_map",
    "probe_matches",
    "same_encoder",
    "worker_pool",
]
