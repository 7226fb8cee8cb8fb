"""Memories of odd names, sources and metadata, for tests that give them to other tools and take them back."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from rarvision.memory import LocalMemory, NewEntry
from rarvision.testing import FakeEncoder

ENCODER = FakeEncoder(dim=16)

ODD = "quote \" ' back\\slash\nline\ttab 図 é [b]x[/b] \u2028 \U0001f426"

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


def unit(rows, dim=16, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def new(number, *, category=None, modality="image", source=None, **metadata):
    return NewEntry(
        category=category or f"class {number % 3}",
        modality=modality,
        source=source or f"images/{number} a.jpg",
        content=f"{modality} {number}".encode(),
        metadata={"n": number, **metadata},
        thumbnail=b"\xff\xd8 jpeg %d" % number if number % 2 else None,
    )


def memory_of(path, entries, *, seed=0):
    memory = LocalMemory.create(path, encoder=ENCODER, metadata={"from": ODD})
    memory.append(entries, unit(len(entries), seed=seed))
    return memory


def ids_of(memory):
    return [entry.id for entry in memory.entries()]


def state(memory):
    """All that must survive: entries in order, vectors to the bit, thumbnails."""
    ids = ids_of(memory)
    vectors = memory.vectors(ids)
    return [(entry, vectors[row].tobytes()) for row, entry in enumerate(memory.records(ids))]
