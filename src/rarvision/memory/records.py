"""What goes into a memory and comes out of it: frozen, keyword-only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rarvision.types import Modality

__all__ = ["AddReport", "Hits", "MemoryInfo", "NewEntry", "Prototypes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AddReport:
    """What an addition did.

    Attributes:
        added: Entries stored.
        skipped: Samples that the memory had already (same content, category and modality).
        failed: Samples that could not be read or stored.
        failures: Source and message of each failed sample.
    """

    added: int
    skipped: int = 0
    failed: int = 0
    failures: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryInfo:
    """What a memory is and holds; sizes in bytes."""

    kind: str
    location: str
    dim: int
    encoder_name: str
    encoder_fingerprint: str
    entries: int
    images: int
    texts: int
    categories: int
    index: str
    thumbnails: int
    bytes: int
    details: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "details": dict(self.details), "metadata": dict(self.metadata)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Hits:
    """Neighbours of n queries as arrays, closest first; where there are fewer than k: ``-inf``, -1, -1.

    Attributes:
        similarities: Cosine, float32.
        ids: Entry ids.
        categories: Category codes (see `Memory.category_names`).
    """

    similarities: Float[np.ndarray, "n k"]
    ids: Int[np.ndarray, "n k"]
    categories: Int[np.ndarray, "n k"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prototypes:
    """The mean direction of each category's vectors of one modality.

    Attributes:
        categories: Category codes, ascending.
        vectors: float32 unit vectors, one row a category; a zero row where the mean vanishes.
        counts: Entries in each mean.
    """

    categories: Int[np.ndarray, " c"]
    vectors: Float[np.ndarray, "c dim"]
    counts: Int[np.ndarray, " c"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NewEntry:
    """An entry that is about to be stored; ``content`` identifies what was encoded (SHA-256)."""

    category: str
    modality: Modality
    source: str
    content: bytes
    metadata: Mapping[str, Any] = field(default_factory=dict)
    thumbnail: bytes | None = None
