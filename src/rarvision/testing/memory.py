"""The contracts that every index and every memory meets."""

# ruff: noqa: S101 - a contract check asserts

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from rarvision.encoders import Encoder
from rarvision.errors import EncoderMismatchError, InputError, MemoryEmptyError, OptionError
from rarvision.index import Index
from rarvision.memory import Memory, NewEntry, Where
from rarvision.testing.encoders import FakeEncoder
from rarvision.types import Sample

__all__ = ["check_index", "check_memory"]


def check_index(
    make: Callable[[int], Index], *, rows: int = 1_500, recall: float = 0.95, tolerance: float = 1e-5
) -> None:
    """Assert what every index promises, against a plain NumPy search.

    Args:
        make: Gives an empty index of so many dimensions.
        rows: How many vectors are tried.
        recall: Least share of the true 10 nearest that must be found.
        tolerance: Largest error of a similarity.
    """
    generator = np.random.default_rng(7)
    vectors, queries = _unit(generator, rows, 24), _unit(generator, 40, 24)
    index = make(24)
    assert index.dim == 24
    empty_similarities, empty_rows = index.search(queries, 3)
    assert (empty_rows == -1).all()
    assert np.isneginf(empty_similarities).all()

    index.add(vectors[:1])
    assert index.search(vectors[:1], 4)[1].tolist() == [[0, -1, -1, -1]]
    index.add(vectors[1:])
    assert len(index) == rows

    _check_search(index, vectors, queries, recall, np.ones(rows, dtype=bool), tolerance=tolerance)
    for share in (0.9, 0.3, 0.01):
        _check_search(index, vectors, queries, recall, generator.random(rows) < share, tolerance=tolerance)
    everything = index.search(queries[:2], rows + 5)[1]
    assert (np.sort(everything[:, :rows], axis=1) == np.arange(rows)).all(), "k above the rows must give every row"
    assert (everything[:, rows:] == -1).all()
    assert (index.search(queries, 2, allowed=np.zeros(rows, dtype=bool))[1] == -1).all()
    for wrong in (queries[:, :5], np.full((1, 24), np.nan, dtype=np.float32)):
        with _raises(OptionError):
            index.search(wrong, 1)
    with _raises(OptionError):
        index.search(queries, 0)


def _check_search(
    index: Index,
    vectors: Float[np.ndarray, "rows dim"],
    queries: Float[np.ndarray, "n dim"],
    recall: float,
    allowed: Bool[np.ndarray, " rows"],
    *,
    tolerance: float,
) -> None:
    k = min(10, int(allowed.sum()))
    similarities, found = index.search(queries, k, allowed=allowed)
    scores = np.where(allowed, queries.astype(np.float64) @ vectors.astype(np.float64).T, -np.inf)
    truth = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    hits = np.mean([len(set(a) & set(b)) / k for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    assert hits >= recall, f"recall@{k} is {hits:.3f}, expected at least {recall}"
    assert allowed[found].all(), "a row was returned that was not allowed"
    assert (np.diff(similarities, axis=1) <= 0).all(), "similarities must descend"
    np.testing.assert_allclose(similarities, np.take_along_axis(scores, found, axis=1), atol=tolerance)


def check_memory(make: Callable[[Encoder], Memory], reopen: Callable[[Memory], Memory] | None = None) -> None:
    """Assert what every memory promises.

    Args:
        make: Gives an empty memory bound to the encoder, another one at each call.
        reopen: Closes a memory and opens what it stored, without an encoder.
    """
    encoder = FakeEncoder(dim=24)
    memory = make(encoder)
    _check_empty(memory, encoder)
    names = ["red", "Ünïcode 'quoted' [x]\nline", "navy"]
    samples = [
        Sample(source=f"{i}.png", image=_picture(i), label=names[i % 3], metadata={"n": i, "ü": ["x", None]})
        for i in range(60)
    ]
    report = memory.add(samples[:40])
    assert (report.added, report.skipped, report.failed) == (40, 0, 0), report
    report = memory.add(samples)
    assert (report.added, report.skipped) == (20, 40), report
    assert memory.add([Sample(source="other", image=_picture(0), label="navy")]).added == 1, "another category"
    assert memory.add_texts([*names, "violet"]).added == 4
    assert memory.add_texts(["violet"]).skipped == 1
    if reopen is not None:
        memory = reopen(memory)
        memory.bind(encoder)

    assert (len(memory), memory.count("image"), memory.count("text")) == (65, 61, 4)
    assert memory.categories() == [*names, "violet"]
    assert memory.categories("image") == names
    entries = list(memory.entries())
    assert [entry.id for entry in entries] == sorted({entry.id for entry in entries})
    assert [(e.category, e.source, dict(e.metadata)) for e in entries[:60]] == [
        (s.label, s.source, dict(s.metadata)) for s in samples
    ]
    _check_searches(memory, encoder)
    _check_bad_samples(memory)
    _check_notes(memory)
    _check_removal(memory, encoder)
    with _raises(EncoderMismatchError):
        memory.bind(FakeEncoder(dim=24, seed=1))
    with _raises(EncoderMismatchError):
        memory.add(samples, encoder=FakeEncoder(dim=8))
    memory.close()
    memory.close()
    _check_conditions(make, encoder)
    _check_categories(make, encoder)


def _check_empty(memory: Memory, encoder: Encoder) -> None:
    assert len(memory) == 0
    assert memory.categories() == []
    assert (memory.dim, memory.encoder_fingerprint) == (encoder.dim, encoder.fingerprint)
    assert memory.encoder is encoder
    with _raises(MemoryEmptyError):
        memory.search(encoder.encode_texts(["red"]), 1)
    assert memory.vectors([]).shape == (0, encoder.dim)
    assert len(memory.prototypes("image").categories) == 0


def _check_searches(memory: Memory, encoder: Encoder) -> None:
    """All results equal those of a plain search over the stored vectors."""
    queries = np.concatenate((encoder.encode_images([_picture(7), _picture(100)]), encoder.encode_texts(["navy"])))
    stored = {"image": list(memory.entries(modality="image")), "text": list(memory.entries(modality="text"))}
    stored["both"] = sorted(stored["image"] + stored["text"], key=lambda entry: entry.id)
    for which, entries in stored.items():
        modality = None if which == "both" else entries[0].modality
        ids = np.array([entry.id for entry in entries])
        scores = queries @ memory.vectors(ids).T
        for k in (1, 5, 500):
            found = memory.search(queries, k, modality=modality)
            expected = np.sort(scores, axis=1)[:, ::-1][:, :k]
            got = np.array([[neighbour.similarity for neighbour in row] for row in found])
            np.testing.assert_allclose(got, expected, atol=1e-5)
            for row, neighbours in enumerate(found):
                place = np.searchsorted(ids, [neighbour.entry.id for neighbour in neighbours])
                np.testing.assert_allclose(scores[row, place], expected[row], atol=1e-5)
                assert all(n.entry == entries[p] for n, p in zip(neighbours, place, strict=True))
    assert memory.search(encoder.encode_images([_picture(7)]), 1)[0][0].entry.source == "7.png"
    prototypes = memory.prototypes("image")
    names = memory.category_names()
    for code, vector, count in zip(prototypes.categories, prototypes.vectors, prototypes.counts, strict=True):
        own = memory.vectors([e.id for e in stored["image"] if e.category == names[int(code)]])
        assert len(own) == count
        np.testing.assert_allclose(vector, own.mean(axis=0) / np.linalg.norm(own.mean(axis=0)), atol=1e-5)
    with _raises(OptionError):
        memory.vectors([10**9])
    with _raises(OptionError):
        memory.search(queries[:, :3], 1)


def _check_notes(memory: Memory) -> None:
    before = memory.notes()
    content = memory.content_hash
    memory.set_note("fit:1", '{"ü": "it\'s\\n"}')
    memory.set_note("fit:2", "x" * 100_000)
    memory.set_note("fit:1", '{"ü": 2}')
    assert memory.notes() == {**before, "fit:1": '{"ü": 2}', "fit:2": "x" * 100_000}, "a note is replaced"
    assert memory.content_hash == content, "notes are no content"
    for name in ("fit:1", "fit:2", "never there"):
        memory.set_note(name, None)
    assert memory.notes() == before


def _check_bad_samples(memory: Memory) -> None:
    """A bad sample costs itself only, and is told; without a listener it is raised, after the good ones are safe."""
    before = len(memory)
    good = Sample(source="good", image=_picture(200), label="new")
    late = Sample(source="late", image=_picture(201), label="new")
    unlabelled = Sample(source="unlabelled", image=_picture(202))
    told: list[str] = []
    done: list[int] = []
    report = memory.add([unlabelled, good], on_error=lambda sample, _: told.append(sample.source), progress=done.append)
    assert (report.added, report.failed, report.failures[0][0]) == (1, 1, "unlabelled"), report
    assert (told, done[-1]) == (["unlabelled"], 2)
    with _raises(InputError):
        memory.add([late, unlabelled])
    assert len(memory) == before + 2
    own = memory.vectors([next(memory.entries(source="late")).id])
    again = NewEntry(category="elsewhere", modality="image", source="late", content=b"late")
    assert memory.append([again], 3.0 * own).added == 1
    assert memory.append([again], own).skipped == 1
    np.testing.assert_allclose(memory.vectors([next(memory.entries(category="elsewhere")).id]), own, atol=1e-6)
    for wrong in (own[:, :2], np.zeros_like(own), np.full_like(own, np.nan)):
        with _raises(OptionError):
            memory.append([again], wrong)
    memory.remove(category="new")
    memory.remove(category="elsewhere")
    assert len(memory) == before


def _check_removal(memory: Memory, encoder: Encoder) -> None:
    last = max(entry.id for entry in memory.entries())
    revision = memory.revision
    with _raises(OptionError):
        memory.remove()
    assert memory.remove(category="no such category") == 0
    assert memory.remove(source="7.png") == 1
    assert memory.remove(ids=[10**9]) == 0
    assert memory.revision > revision
    query = encoder.encode_images([_picture(7)])
    assert all(hit.entry.source != "7.png" for hit in memory.search(query, 100)[0])
    assert memory.remove(category="navy") == 20 + 1 + 1
    assert "navy" not in memory.categories()
    assert all(hit.entry.category != "navy" for hit in memory.search(query, 100)[0])
    assert memory.add([Sample(source="7.png", image=_picture(7), label="red")]).added == 1
    assert max(entry.id for entry in memory.entries()) > last, "ids must not be used twice"


def _check_conditions(make: Callable[[Encoder], Memory], encoder: Encoder) -> None:
    """Filters of searches, listings and removals give exactly what a plain comparison gives."""
    memory = make(encoder)
    values: list[Mapping[str, Any]] = [
        {"year": 2019, "checked": True, "who": 'O\'Brien "x" \\ %_'},
        {"year": 2019.0, "checked": 1, "who": None},
        {"year": "2019", "checked": False, "nested": {"year": 2019}, "list": [2019]},
        {"year": 2020.5, "checked": 0, "ü.'$": "größer"},
        {"year": -3, "true": "true", "year ": 2019},
        {},
    ]
    generator = np.random.default_rng(3)
    entries = [
        NewEntry(
            category=f"c{number % 4}",
            modality="text" if number % 6 == 5 else "image",
            source=f"s{number % 9}",
            content=str(number).encode(),
            metadata=values[number % 7 % 6],
        )
        for number in range(42)
    ]
    assert memory.append(entries, _unit(generator, len(entries), encoder.dim)).added == len(entries)
    stored = list(memory.entries())
    queries = _unit(generator, 3, encoder.dim)
    scores = queries @ memory.vectors([entry.id for entry in stored]).T
    wheres = [
        Where(),
        *(Where(categories=names) for names in (["c1"], ["c3", "c0", "c3"], ["nothing"], [])),
        *(Where(metadata={"year": value}) for value in (2019, 2019.0, "2019", 2020.5, -3, None, 2021, [2019, -3], [])),
        *(Where(metadata={"checked": value}) for value in (True, 1, False, 0, [True, 0], "true")),
        *(Where(metadata={"who": value}) for value in (None, 'O\'Brien "x" \\ %_', "o'brien")),
        Where(metadata={"ü.'$": "größer"}),
        Where(metadata={"list": 2019}),
        Where(metadata={"year": 2019, "checked": True}),
        Where(categories=["c0", "c2"], metadata={"year": [2019, 2020.5]}),
    ]
    for where in wheres:
        for modality in ("image", "text", None):
            met = [
                (where.categories is None or entry.category in where.categories)
                and where.meets(entry.metadata)
                and modality in (None, entry.modality)
                for entry in stored
            ]
            expected = np.sort(scores[:, met], axis=1)[:, ::-1]
            for k in (2, 100):
                found = memory.search(queries, k, modality=modality, where=where)
                got = [[neighbour.similarity for neighbour in row] for row in found]
                np.testing.assert_allclose(np.array(got), expected[:, :k], atol=1e-5, err_msg=f"{where} {modality}")
                allowed = {entry.id for entry, good in zip(stored, met, strict=True) if good}
                assert {neighbour.entry.id for row in found for neighbour in row} <= allowed, where
        if where.categories is None:
            listed = list(memory.entries(metadata=where.metadata))
            assert listed == [entry for entry in stored if where.meets(entry.metadata)], where
    ids = [entry.id for entry in stored]
    both = list(memory.entries(ids=ids[::2], category="c2", source="s4", modality="image"))
    assert both == [e for e in stored[::2] if (e.category, e.source, e.modality) == ("c2", "s4", "image")], (
        "all conditions must hold"
    )
    with _raises(OptionError):
        list(memory.entries(metadata={"year": float("nan")}))
    gone = [
        entry for entry in stored if Where(metadata={"year": 2019}).meets(entry.metadata) and entry.category == "c1"
    ]
    assert memory.remove(category="c1", metadata={"year": 2019}) == len(gone) > 0
    assert list(memory.entries()) == [entry for entry in stored if entry not in gone]
    memory.close()


def _check_categories(make: Callable[[Encoder], Memory], encoder: Encoder) -> None:
    """Renaming, merging, copying and moving lose nothing and double nothing."""
    memory, other = make(encoder), make(encoder)
    samples = [
        Sample(source=f"{n}.png", image=_picture(n % 8), label="abc"[n // 4], metadata={"n": n}) for n in range(12)
    ]  # a: pictures 0 to 3, b: 4 to 7, c: 0 to 3
    memory.add(samples)
    memory.add_texts(["a", "c"])
    codes = {name: code for code, name in memory.category_names().items()}
    before, revision = list(memory.entries()), memory.revision
    assert memory.rename_category("b", "B 'ß'") == 4
    assert memory.revision > revision
    assert memory.categories() == ["a", "B 'ß'", "c"]
    assert memory.category_names()[codes["b"]] == "B 'ß'", "a category keeps its code"
    assert [e.id for e in memory.entries(category="B 'ß'")] == [e.id for e in before if e.category == "b"]
    for old, new in (("b", "x"), ("a", "c")):
        with _raises(OptionError):
            memory.rename_category(old, new)
    with _raises(InputError):
        memory.rename_category("a", " ")
    records = list(memory.records([e.id for e in reversed(before)]))
    assert [(r.category, r.source, dict(r.metadata), r.modality) for r in reversed(records)] == [
        ("B 'ß'" if e.category == "b" else e.category, e.source, dict(e.metadata), e.modality) for e in before
    ]
    thumbnails = [memory.thumbnail(entry.id) for entry in reversed(before)]
    assert [record.thumbnail for record in records] == thumbnails
    with _raises(OptionError):
        list(memory.records([10**9]))

    _check_copying(memory, other)
    _check_merging(memory, other, samples[0])
    strange = make(FakeEncoder(dim=encoder.dim, seed=1))
    with _raises(EncoderMismatchError):
        other.copy_to(strange)
    for each in (memory, other, strange):
        each.close()


def _check_copying(memory: Memory, other: Memory) -> None:
    """All entries of one of 14, five of them of category a, in an empty one."""
    done: list[int] = []
    report = memory.copy_to(other, category="a", progress=done.append)
    assert (report.added, report.skipped, done[-1]) == (5, 0, 5), report
    report = memory.copy_to(other)
    assert (report.added, report.skipped) == (9, 5), report
    key = operator.attrgetter("category", "modality", "source")
    ours, theirs = sorted(memory.entries(), key=key), sorted(other.entries(), key=key)
    assert [(*key(e), dict(e.metadata)) for e in ours] == [(*key(e), dict(e.metadata)) for e in theirs]
    np.testing.assert_allclose(memory.vectors([e.id for e in ours]), other.vectors([e.id for e in theirs]), atol=1e-6)
    assert [memory.thumbnail(e.id) for e in ours] == [other.thumbnail(e.id) for e in theirs]
    with _raises(OptionError):
        memory.copy_to(memory)


def _check_merging(memory: Memory, other: Memory, sample: Sample) -> None:
    """Of what `_check_categories` made; ``other`` holds a copy."""
    before = list(memory.entries())
    vectors = memory.vectors([entry.id for entry in before])
    assert memory.merge_categories(["c", "B 'ß'"], "a") == 4 + 1, "c's four images are a's already, its text is not"
    assert memory.categories() == ["a"]
    assert memory.count("image") == 8
    kept = {entry.id: row for row, entry in enumerate(before)}
    left = list(memory.entries())
    np.testing.assert_allclose(memory.vectors([e.id for e in left]), vectors[[kept[e.id] for e in left]], atol=1e-6)
    assert memory.search(vectors[:1], 50, where=Where(categories=["B 'ß'"])) == [[]]
    assert len(memory.search(vectors[:1], 50, modality="image", where=Where(categories=["a"]))[0]) == 8
    assert memory.merge_categories(["a"], "new") == len(left)
    assert memory.categories() == ["new"]
    for names in (["a"], []):
        with _raises(OptionError):
            memory.merge_categories(names, "new")
    assert memory.add([replace(sample, label="new")]).skipped == 1
    assert memory.add([replace(sample, label="a")]).added == 1, "a name that is free again"

    report = memory.move_to(other, category="new")
    assert (report.added, report.skipped, memory.count(), memory.categories()) == (len(left), 0, 1, ["a"]), report
    assert other.categories() == ["a", "B 'ß'", "c", "new"]


@contextmanager
def _raises(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"expected {kind.__name__}")


def _picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _unit(generator: np.random.Generator, rows: int, dim: int) -> Float[np.ndarray, "rows dim"]:
    vectors = generator.standard_normal((rows, dim)).astype(np.float32)
    unit: Float[np.ndarray, "rows dim"] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
