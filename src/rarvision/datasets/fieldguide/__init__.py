"""The field guide: a procedural, fine-grained benchmark of five domains, drawn on the fly."""

from rarvision.datasets.fieldguide.dataset import FieldGuide, Role
from rarvision.datasets.fieldguide.rendering import illustrate, render
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
    "FieldGuide",
    "Role",
    "illustrate",
    "render",
    "sample_vocabulary",
    "split_codes",
    "split_of",
    "vocabulary",
]
