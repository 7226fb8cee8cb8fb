"""Memories with all that upkeep has to deal with: segments, a tail, removed rows, a merged category."""

from __future__ import annotations

import numpy as np
from PIL import Image

from rarvision.memory import NewEntry
from rarvision.testing import FakeEncoder

ENCODER = FakeEncoder(dim=16)


def unit(rows, dim=16, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def new_entries(numbers, *, categories=4, modality="image"):
    return [
        NewEntry(
            category=f"class {i % categories}",
            modality=modality,
            source=f"{i}.png",
            content=f"{modality} {i}".encode(),
            metadata={"n": i, "even": i % 2 == 0, "kind": "ab"[i % 2], "none": None},
            thumbnail=b"\xff\xd8 jpeg %d" % i,
        )
        for i in numbers
    ]


def picture(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8))


def filled(memory, n=40):
    """A memory with sealed segments, a tail, removed rows and a merged category."""
    vectors = unit(n + 9)
    for start in range(0, n, 5):
        memory.append(new_entries(range(start, start + 5)), vectors[start : start + 5])
    memory.append(new_entries(range(9), modality="text"), vectors[n:])
    memory.remove(ids=[2, 17])
    memory.merge_categories(["class 3"], "class 1")
    return vectors


def state(memory):
    """All that a memory holds, without the numbers of categories."""
    entries = list(memory.entries())
    ids = [entry.id for entry in entries]
    return [
        (entry.id, entry.category, entry.modality, entry.source, dict(entry.metadata), vector.tobytes(), record.content)
        for entry, vector, record in zip(entries, memory.vectors(ids), memory.records(ids), strict=True)
    ]
