"""What is computed from all entries of a memory: mean directions, and what tells its content from another's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from rarvision.memory.records import Prototypes
from rarvision.types import Modality

if TYPE_CHECKING:
    from rarvision.memory.base import Memory

__all__ = ["content_digest", "mean_directions", "vector_bytes"]

_VECTORS_AT_ONCE = 65_536


def mean_directions(memory: Memory, modality: Modality) -> Prototypes:
    """Each category's mean direction."""
    ids, codes = memory.table(modality)
    categories, position, counts = np.unique(codes, return_inverse=True, return_counts=True)
    sums = np.zeros((len(categories), memory.dim), dtype=np.float64)
    for start in range(0, len(ids), _VECTORS_AT_ONCE):
        part = position[start : start + _VECTORS_AT_ONCE]
        order = np.argsort(part, kind="stable")
        present, starts = np.unique(part[order], return_index=True)
        vectors = memory.vectors(ids[start : start + _VECTORS_AT_ONCE])[order]
        sums[present] += np.add.reduceat(vectors, starts, axis=0, dtype=np.float64)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    means = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 1e-12)
    return Prototypes(categories=categories, vectors=means.astype(np.float32), counts=counts)


def content_digest(memory: Memory, content: Callable[[Modality], Iterator[bytes]]) -> str:
    """SHA-256 of a memory's encoder, entries and categories, and of ``content``, which stands for the vectors."""
    digest = hashlib.sha256(memory.encoder_fingerprint.encode())
    modalities: tuple[Modality, ...] = ("image", "text")
    for modality in modalities:
        ids, codes = memory.table(modality)
        known = memory.category_names()
        names = {code: known[code] for code in np.unique(codes).tolist()}
        digest.update(json.dumps([modality, len(ids), names]).encode())
        digest.update(ids.tobytes())
        digest.update(codes.tobytes())
        for part in content(modality):
            digest.update(part)
    return digest.hexdigest()


def vector_bytes(memory: Memory, modality: Modality) -> Iterator[bytes]:
    """The vectors themselves, by ascending id."""
    ids, _ = memory.table(modality)
    for start in range(0, len(ids), _VECTORS_AT_ONCE):
        yield memory.vectors(ids[start : start + _VECTORS_AT_ONCE]).tobytes()
