"""Images, texts and names become unit vectors: the `Encoder` interface, CLIP and SigLIP models from transformers."""

from __future__ import annotations

from rarvision.encoders.base import (
    Encoder,
    Prepared,
    ordered_map,
    probe_matches,
    same_encoder,
    worker_pool,
)
from rarvision.encoders.names import NameEncoder, SentenceEncoder, SpellingEncoder, TextTower, open_name_encoder
from rarvision.encoders.templates import TEMPLATE_SETS, check_templates, short_templates
from rarvision.encoders.text_cache import TextCache, cache_folder
from rarvision.encoders.transformers import TransformersEncoder
from rarvision.encoders.views import Views, check_views

__all__ = [
    "TEMPLATE_SETS",
    "Encoder",
    "NameEncoder",
    "Prepared",
    "SentenceEncoder",
    "SpellingEncoder",
    "TextCache",
    "TextTower",
    "TransformersEncoder",
    "Views",
    "cache_folder",
    "check_templates",
    "check_views",
    "open_name_encoder",
    "ordered_map",
    "probe_matches",
    "same_encoder",
    "short_templates",
    "worker_pool",
]
