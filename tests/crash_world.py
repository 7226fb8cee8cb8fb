"""A writer that is stopped at random moments, and what its memory must hold afterwards.

``python crash_world.py FOLDER FIRST`` changes the memory in FOLDER step by step, from step FIRST on, and says each step
that has returned; the steps are the same in every run. ``expected(n)`` is what the memory holds after n of them.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys

import numpy as np

DIM = 16
STEPS = 2_000


def vector_of(source):
    """A unit vector that only this source has."""
    seed = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def step(number):
    """What step ``number`` does: a kind and its arguments."""
    generator = random.Random(f"step {number}")
    kind = generator.choices(("append", "remove", "merge", "rename", "compact"), (12, 4, 1, 1, 2))[0]
    names = [f"class {generator.randrange(6)}", f"class {generator.randrange(6)}"]
    if kind == "append":
        count = generator.choice((1, 3, 9, 30))
        return kind, [(f"{number}-{i}", f"class {generator.randrange(6)}") for i in range(count)]
    return kind, names


_EXPECTED = [{}]


def expected(steps):
    """Category by source after so many steps; each of them is whole or not at all."""
    while len(_EXPECTED) <= steps:
        held, (kind, what) = _EXPECTED[-1], step(len(_EXPECTED) - 1)
        if kind == "append":
            held = held | dict(what)
        elif kind == "remove":
            held = {source: category for source, category in held.items() if category != what[0]}
        elif kind in ("merge", "rename") and applies(held, kind, what):
            held = {source: what[1] if category == what[0] else category for source, category in held.items()}
        _EXPECTED.append(held)
    return _EXPECTED[steps]


def applies(held, kind, what):
    """Whether a step finds the categories that it wants."""
    there = set(held.values())
    return what[0] in there and what[0] != what[1] and (kind == "merge" or what[1] not in there)


def prepare():
    """Small steps, so that sealing, joining and indexing happen all the time."""
    from rarvision.memory import local_settings, writing

    writing._SEAL, writing._MERGE = 16, 3
    local_settings._INDEX_FROM = 40


def apply(memory, number):
    """Take one step."""
    from rarvision.memory import NewEntry

    held, (kind, what) = expected(number), step(number)
    if kind == "append":
        entries = [NewEntry(category=c, modality="image", source=s, content=s.encode()) for s, c in what]
        memory.append(entries, np.stack([vector_of(source) for source, _ in what]))
    elif kind == "remove":
        memory.remove(category=what[0])
    elif kind == "compact":
        memory.compact()
    elif kind == "merge" and applies(held, kind, what):
        memory.merge_categories([what[0]], what[1])
    elif kind == "rename" and applies(held, kind, what):
        known = set(memory.category_names().values())
        if what[1] in known:  # a category without entries keeps its name
            memory.merge_categories([what[0]], what[1])
        else:
            memory.rename_category(what[0], what[1])


def write(folder, first, acknowledge):
    """Step after step, until somebody stops it."""
    from rarvision.memory import LocalMemory

    prepare()
    if os.environ.get("CRASH_WITHOUT_SYNC"):  # what the tests must find out
        os.fsync = lambda _: None
    with LocalMemory.open(folder) as memory:
        for number in range(first, STEPS):
            apply(memory, number)
            acknowledge(number)


def steps_held(folder, acknowledged):
    """How many steps the memory in the folder holds: those acknowledged, or one more; what is wrong raises."""
    from rarvision.memory import LocalMemory

    prepare()
    with LocalMemory.open(folder) as memory:
        problems = memory.verify()
        assert problems == (), problems
        entries = list(memory.entries())
        held = {entry.source: entry.category for entry in entries}
        vectors = memory.vectors([entry.id for entry in entries])
        for entry, vector in zip(entries, vectors, strict=True):
            assert np.array_equal(vector, vector_of(entry.source)), f"{entry.source}: another's vector"
        if entries:
            sample = entries[:: max(1, len(entries) // 20)]
            hits = memory.nearest(np.stack([vector_of(entry.source) for entry in sample]), 1)
            assert hits.ids[:, 0].tolist() == [entry.id for entry in sample]
        repairs = memory.repairs
        files = {path.name for path in (memory.path / "segments").iterdir()}
    for steps in (acknowledged, acknowledged + 1):
        if held == expected(steps):
            return steps, repairs, len(files)
    wanted = len(expected(acknowledged))
    raise AssertionError(f"{len(held)} entries fit neither {acknowledged} steps ({wanted} entries) nor one more")


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]), lambda number: print(number, flush=True))  # noqa: T201 - it is read
