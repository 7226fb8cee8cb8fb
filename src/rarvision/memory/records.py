"""What goes into a memory and comes out of it: frozen, keyword-only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rarvision.errors import OptionError
from rarvision.types import Modality

__all__ = ["AddReport", "Hits", "MemoryInfo", "NewEntry", "Prototypes", "Where", "closest_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AddReport:
    """What an addition did.

    Attributes:
        added: Entries stored.
        skipped: Samples that the memory had already (same content, box, category and modality).
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


def closest_of(parts: Sequence[Hits], k: int) -> Hits:
    """The k closest of several searches with the same queries; ties by id."""
    similarities = np.concatenate([each.similarities for each in parts], axis=1)
    ids = np.concatenate([each.ids for each in parts], axis=1)
    codes = np.concatenate([each.categories for each in parts], axis=1)
    order = np.lexsort((ids, -similarities), axis=-1)[:, :k]
    return Hits(
        similarities=np.take_along_axis(similarities, order, axis=1),
        ids=np.take_along_axis(ids, order, axis=1),
        categories=np.take_along_axis(codes, order, axis=1),
    )


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """Which entries a search may return: all conditions that are given must hold.

    Attributes:
        categories: Names of categories; an empty one lets nothing pass. None for all.
        metadata: For each key the value that an entry's metadata must have, or several (a list) of which it must have
            one. Values are text, numbers, True, False or None; numbers are equal where they are (1 and 1.0), True is
            not 1. A key that an entry does not have equals nothing, None included.

    Example:
        >>> Where(metadata={"year": [2019, 2020], "checked": True}).metadata["year"]
        [2019, 2020]
    """

    categories: Sequence[str] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.categories, str):
            raise OptionError(f"categories must be a sequence of names, got the text {self.categories!r}")
        for key, value in self.metadata.items():
            for one in alternatives(value):
                bad = not (one is None or isinstance(one, (str, int, float))) or (
                    isinstance(one, float) and not math.isfinite(one)
                )
                if not isinstance(key, str) or bad:
                    raise OptionError(
                        f"metadata conditions are text keys with text, numbers, True, False, None, or a list of them; "
                        f"got {key!r}: {value!r}"
                    )

    def __bool__(self) -> bool:
        return self.categories is not None or bool(self.metadata)

    @property
    def key(self) -> str:
        """Equal conditions have equal keys; for caches."""
        names = None if self.categories is None else sorted(set(self.categories))
        return json.dumps([names, {key: self.metadata[key] for key in sorted(self.metadata)}])

    def meets(self, metadata: Mapping[str, Any]) -> bool:
        """Whether an entry's metadata meet the conditions on metadata."""
        return all(
            key in metadata and any(_same(metadata[key], one) for one in alternatives(value))
            for key, value in self.metadata.items()
        )


def alternatives(value: Any) -> list[Any]:
    """The values of a condition, one of which must be there."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _same(value: Any, wanted: Any) -> bool:
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)
