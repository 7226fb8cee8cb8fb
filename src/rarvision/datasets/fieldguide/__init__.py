"""The field guide: a procedural, fine-grained benchmark of five domains, drawn on the fly."""

from rarvision.datasets.fieldguide.dataset import FieldGuide, Role
from rarvision.datasets.fieldguide.rendering import illustrate, render
from rarvision.datasets.fieldguide.scene_dataset import FieldGuideScenes
from rarvision.datasets.fieldguide.scene_layout import SceneCategory, SceneSplit
from rarvision.datasets.fieldguide.scenes import Drawn, SceneObject
from rarvision.datasets.fieldguide.vocabulary import (
    COLOURS,
    DOMAINS,
    HELD_OUT_DOMAIN,
    PATTERNS,
    SPLITS,
    Attribute,
    Domain,
    sample_vocabulary,
    split_codes,
    split_of,
    vocabulary,
)

__all__ = [
    "COLOURS",
    "DOMAINS",
    "HELD_OUT_DOMAIN",
    "PATTERNS",
    "SPLITS",
    "Attribute",
    "Domain",
    "Drawn",
    "FieldGuide",
    "FieldGuideScenes",
    "Role",
    "SceneCategory",
    "SceneObject",
    "SceneSplit",
    "illustrate",
    "render",
    "sample_vocabulary",
    "split_codes",
    "split_of",
    "vocabulary",
]
