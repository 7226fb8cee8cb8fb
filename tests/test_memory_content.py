"""A memory's content hash: what tells two memories, or two states of one, apart."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from rarvision.memory import LocalMemory, Memory, NewEntry
from rarvision.testing import FakeEncoder
from rarvision.types import Sample


def unit(seed):
    vectors = np.random.default_rng(seed).standard_normal((3, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def imported(tmp_path):
    """Make a memory of three given vectors."""
    opened = []

    def make(vectors, categories=("a", "b", "b")):
        memory = LocalMemory.create_unbound(tmp_path / f"memory {len(opened)}", dim=16, fingerprint="imported:x")
        opened.append(memory)
        memory.append(
            [
                NewEntry(category=category, modality="image", source=f"{i}", content=b"%d" % i)
                for i, category in enumerate(categories)
            ],
            vectors,
        )
        return memory

    yield make
    for memory in opened:
        memory.close()


def samples(numbers):
    colours = np.random.default_rng(0).integers(0, 256, (9, 3)).tolist()
    return [Sample(source=f"{i}", image=Image.new("RGB", (5, 5), tuple(colours[i])), label="all") for i in numbers]


def test_a_copy_has_the_same_and_other_vectors_or_categories_another(imported, tmp_path):
    first = imported(unit(0))
    shutil.copytree(first.path, tmp_path / "copy")
    with LocalMemory.open(tmp_path / "copy") as copy:
        assert copy.content_hash == first.content_hash
    hashes = {first.content_hash, imported(unit(1)).content_hash, imported(unit(0), "abc").content_hash}
    assert len(hashes) == 3


def test_without_checksums_the_vectors_are_read(imported, monkeypatch):
    memory = imported(unit(0))
    monkeypatch.setattr("rarvision.memory.summaries._VECTORS_AT_ONCE", 2)
    assert b"".join(Memory._content(memory, "image")) == unit(0).tobytes()


def test_every_change_shows_in_every_handle(tmp_path):
    with (
        LocalMemory.create(tmp_path / "memory", encoder=FakeEncoder(dim=16)) as memory,
        LocalMemory.open(memory.path) as reader,
    ):
        seen = [memory.content_hash]
        for change in (
            lambda: memory.add(samples([0, 1, 2])),
            lambda: memory.add_texts(["all"]),
            lambda: memory.remove(ids=[1]),
            lambda: memory.add(samples([3])),  # as many entries as before, and of the same category
            lambda: memory.remove(ids=[2]),
        ):
            change()
            seen.append(memory.content_hash)
            assert reader.content_hash == seen[-1]
        assert len(set(seen)) == len(seen)
        memory.add(samples([2]))  # is there already
        assert memory.content_hash == seen[-1]
        memory.add(samples([4]))
        memory.remove(ids=[6])
        assert memory.content_hash == seen[-1]
