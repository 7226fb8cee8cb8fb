"""Retrieval against a plain loop: aggregation, fusion, ties, k above what there is, repeated names, empty memories."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from rarvision.errors import MemoryEmptyError, OptionError
from rarvision.memory import LocalMemory, NewEntry
from rarvision.retrieval import Retriever
from rarvision.testing import FakeEncoder
from rarvision.types import Sample

DIM = 12
AGGREGATES = ("blend", "nearest", "sum", "vote", "prototype")


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def entries(categories, modality):
    return [
        NewEntry(category=name, modality=modality, source=f"{i}", content=f"{modality} {i}".encode())
        for i, name in enumerate(categories)
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Eight categories: six with images and texts, one with images only, one with a text only."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((8, DIM))
    image_names = [f"c{i}" for i in (*range(6), 6) for _ in range(3 + i)]
    text_names = [f"c{i}" for i in (*range(6), 7)] + ["c2"]
    images = unit(
        np.stack([centres[int(n[1])] for n in image_names]) + 1.3 * generator.standard_normal((len(image_names), DIM))
    )
    texts = unit(
        np.stack([centres[int(n[1])] for n in text_names]) + 1.0 * generator.standard_normal((len(text_names), DIM))
    )
    texts = unit(texts + 2.0 * generator.standard_normal((1, DIM)))  # CLIP's texts lie apart from its images
    queries = unit(centres[generator.integers(0, 8, 25)] + 1.5 * generator.standard_normal((25, DIM)))
    place = tmp_path_factory.mktemp("world") / "memory"
    memory = LocalMemory.create_unbound(place, dim=DIM, fingerprint="imported:test")
    memory.append(entries(image_names, "image"), images)
    memory.append(entries(text_names, "text"), texts)
    yield memory, (image_names, images), (text_names, texts), queries
    memory.close()


def plain_image_score(aggregate, query, category, names, vectors, neighbours, weight=0.8, sharpness=50.0):
    similarities = [float(query @ v) for v in vectors]
    order = sorted(range(len(names)), key=lambda i: -similarities[i])
    own = [similarities[i] for i in order if names[i] == category]
    if not own:
        return None
    mean = np.mean([vectors[i] for i in range(len(names)) if names[i] == category], axis=0)
    prototype = float(query @ mean) / float(np.linalg.norm(mean))
    near = [similarities[i] for i in order[:neighbours] if names[i] == category]
    if aggregate == "nearest":
        return own[0]
    if aggregate == "prototype":
        return prototype
    if aggregate == "blend":
        return weight * prototype + (1 - weight) * own[0]
    if aggregate == "vote":
        return (len(near) + (own[0] + 1) / 4) / neighbours
    if not near:
        return own[0]
    return max(own[0], math.log(sum(math.exp(sharpness * s) for s in near)) / sharpness)


def plain_text_score(query, category, names, vectors):
    own = [v for name, v in zip(names, vectors, strict=True) if name == category]
    if not own:
        return None
    mean = np.mean(own, axis=0)
    return float(query @ mean) / float(np.linalg.norm(mean))


def best(scores, k):
    return sorted((name for name, score in scores.items() if score is not None), key=lambda n: (-scores[n], n))[:k]


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("k", [1, 4, 100])
def test_image_scores_equal_a_plain_loop(world, aggregate, k):
    memory, (names, vectors), _, queries = world
    neighbours = 9 if aggregate in ("vote", "sum") else 10_000
    found = Retriever(memory, k=k, source="image", aggregate=aggregate, neighbours=neighbours).retrieve(queries)
    for query, candidates in zip(queries, found, strict=True):
        scores = {f"c{i}": plain_image_score(aggregate, query, f"c{i}", names, vectors, neighbours) for i in range(8)}
        assert [c.category for c in candidates] == best(scores, k)
        assert [c.similarity for c in candidates] == pytest.approx([scores[c.category] for c in candidates], abs=1e-5)


def test_text_scores_equal_a_plain_loop(world):
    memory, _, (names, vectors), queries = world
    for query, candidates in zip(queries, Retriever(memory, source="text", k=5).retrieve(queries), strict=True):
        scores = {f"c{i}": plain_text_score(query, f"c{i}", names, vectors) for i in range(8)}
        assert [c.category for c in candidates] == best(scores, 5)
        assert all(entry.modality == "text" for c in candidates for entry in memory.entries(ids=c.exemplars))


def plain_scale(aggregate, images, texts, neighbours):
    """Mean and spread of both scores, over the categories that each image does not belong to."""
    (names, vectors), (text_names, text_vectors) = images, texts
    means = {"image": [], "text": []}
    deviations = {"image": [], "text": []}
    for own, query in zip(names, vectors, strict=True):
        for which in ("image", "text"):
            scores = []
            for category in (f"c{i}" for i in range(8)):
                if category == own:
                    continue
                if which == "text":
                    score = plain_text_score(query, category, text_names, text_vectors)
                else:
                    kind = aggregate if aggregate == "vote" else "prototype"
                    score = plain_image_score(kind, query, category, names, vectors, neighbours)
                scores += [] if score is None else [score]
            means[which].append(np.mean(scores))
            deviations[which] += [(score - np.mean(scores)) ** 2 for score in scores]
    spread = {which: math.sqrt(np.mean(values)) for which, values in deviations.items()}
    return np.mean(means["image"]), np.mean(means["text"]), spread["image"] / spread["text"]


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("text_weight", [0.0, 0.3, 1.0])
def test_fusion_equals_a_plain_loop(world, aggregate, text_weight):
    memory, images, texts, queries = world
    neighbours = 9 if aggregate in ("vote", "sum") else 10_000
    retriever = Retriever(memory, k=8, aggregate=aggregate, neighbours=neighbours, text_weight=text_weight)
    image_mean, text_mean, ratio = plain_scale(aggregate, images, texts, neighbours)
    for query, candidates in zip(queries, retriever.retrieve(queries), strict=True):
        scores = {}
        for category in (f"c{i}" for i in range(8)):
            image = plain_image_score(aggregate, query, category, *images, neighbours)
            text = plain_text_score(query, category, *texts)
            mapped = None if text is None else image_mean + ratio * (text - text_mean)
            both = image is not None and mapped is not None
            scores[category] = (
                (1 - text_weight) * image + text_weight * mapped if both else mapped if image is None else image
            )
        assert [c.category for c in candidates] == best(scores, 8)
        assert [c.similarity for c in candidates] == pytest.approx([scores[c.category] for c in candidates], abs=1e-4)


def test_fusion_is_better_than_either(tmp_path):
    """Images and texts whose errors are independent: together they must be right more often."""
    generator = np.random.default_rng(5)
    centres = generator.standard_normal((60, 64))
    names = [f"c{i}" for i in range(60)]
    with LocalMemory.create_unbound(tmp_path / "m", dim=64, fingerprint="imported:test") as memory:
        shots = np.repeat(centres, 2, axis=0) + 2.2 * generator.standard_normal((120, 64))
        memory.append(entries([n for n in names for _ in range(2)], "image"), unit(shots))
        memory.append(entries(names, "text"), unit(0.3 * (centres + 1.6 * generator.standard_normal((60, 64))) + 0.8))
        queries = unit(np.repeat(centres, 5, axis=0) + 1.7 * generator.standard_normal((300, 64)))
        right = {
            source: np.mean(
                [
                    found[0].category == names[i // 5]
                    for i, found in enumerate(Retriever(memory, source=source).retrieve(queries))
                ]
            )
            for source in ("image", "text", "fused")
        }
    assert right["fused"] > max(right["image"], right["text"]) + 0.05, right


def test_repeated_names_are_the_nearest_entries(world):
    memory, (names, vectors), _, queries = world
    found = Retriever(memory, k=5, source="image", distinct=False).retrieve(queries)
    repeated = 0
    for query, candidates in zip(queries, found, strict=True):
        order = sorted(range(len(names)), key=lambda i: -float(query @ vectors[i]))[:5]
        assert [c.category for c in candidates] == [names[i] for i in order]
        assert [c.exemplars for c in candidates] == [(i + 1,) for i in order]
        repeated += len({c.category for c in candidates}) < 5
    assert repeated > 0, "the case must show repeats"


def test_candidates_are_distinct_even_where_one_category_crowds_the_neighbours(tmp_path):
    crowd = unit(np.array([[1.0, 0.0]]) + 0.01 * np.random.default_rng(0).standard_normal((200, 2)))
    others = unit(np.array([[0.2, 1.0], [0.1, 1.0], [0.0, 1.0]]))
    with LocalMemory.create_unbound(tmp_path / "m", dim=2, fingerprint="imported:test") as memory:
        names = ["crowd"] * 200 + ["near", "far", "farther"]
        memory.append(entries(names, "image"), np.concatenate((crowd, others)))
        for aggregate in AGGREGATES:
            found = Retriever(memory, k=3, aggregate=aggregate, neighbours=4).retrieve(crowd[:1])[0]
            assert [c.category for c in found] == ["crowd", "near", "far"], aggregate


def test_exemplars_are_the_closest_first(world):
    memory, (names, vectors), _, queries = world
    for query, candidates in zip(queries, Retriever(memory, k=8).retrieve(queries), strict=True):
        for candidate in candidates:
            own = [i for i, name in enumerate(names) if name == candidate.category]
            if own:
                order = sorted(own, key=lambda i: -float(query @ vectors[i]))
                assert candidate.exemplars == tuple(i + 1 for i in order)[:16]
            else:
                assert [e.modality for e in memory.entries(ids=candidate.exemplars)] == ["text"]


def test_a_category_beyond_the_neighbours_still_has_exemplars(world):
    memory, _, _, queries = world
    for candidates in Retriever(memory, k=8, aggregate="prototype", neighbours=2).retrieve(queries):
        assert len(candidates) == 8
        assert all(candidate.exemplars for candidate in candidates)


def test_blocks_do_not_change_the_answer(world, monkeypatch):
    memory, _, _, queries = world
    whole = Retriever(memory, k=3).retrieve(queries)
    monkeypatch.setattr("rarvision.retrieval.retriever._SCORES_AT_ONCE", 1)
    single = Retriever(memory, k=3).retrieve(queries)
    assert [[c.category for c in row] for row in whole] == [[c.category for c in row] for row in single]
    assert Retriever(memory).retrieve(queries[:0]) == []


def test_it_follows_the_memory(tmp_path):
    encoder = FakeEncoder()
    query = encoder.encode_images([Image.new("RGB", (8, 8), "navy")])
    with LocalMemory.create(tmp_path / "m", encoder=encoder) as memory:
        retriever = Retriever(memory)
        with pytest.raises(MemoryEmptyError, match="holds 0 images and 0 texts"):
            retriever.retrieve(query)
        memory.add_texts(["red", "yellow"])
        assert {c.category for c in retriever.retrieve(query)[0]} == {"red", "yellow"}
        memory.add([Sample(source="n", image=Image.new("RGB", (9, 9), "navy"), label="navy")])
        assert retriever.retrieve(query)[0][0].category == "navy"
        memory.remove(category="navy")
        with pytest.raises(MemoryEmptyError, match="no images"):
            Retriever(memory, source="image").retrieve(query)
        memory.add_texts(["navy"])
        assert retriever.retrieve(query)[0][0].category == "navy"


def test_one_entry_is_enough(tmp_path):
    for modality in ("image", "text"):
        with LocalMemory.create_unbound(tmp_path / modality, dim=DIM, fingerprint="imported:test") as memory:
            memory.append(entries(["only"], modality), np.eye(DIM, dtype=np.float32)[:1])
            for aggregate in AGGREGATES:
                (found,) = Retriever(memory, aggregate=aggregate).retrieve(np.eye(DIM, dtype=np.float32)[1:2])
                assert [c.category for c in found] == ["only"]


def test_opposite_images_have_no_mean_but_are_found(tmp_path):
    with LocalMemory.create_unbound(tmp_path / "m", dim=2, fingerprint="imported:test") as memory:
        vectors = np.array([[1, 0], [-1, 0], [0, 1]], dtype=np.float32)
        memory.append(entries(["split", "split", "other"], "image"), vectors)
        for aggregate in ("blend", "nearest", "prototype"):
            found = Retriever(memory, aggregate=aggregate).retrieve(vectors[:1])[0]
            assert all(math.isfinite(c.similarity) for c in found)
            assert {c.category for c in found} == {"split", "other"}


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"source": "sound"},
        {"aggregate": "median"},
        {"neighbours": 0},
        {"text_weight": 1.5},
        {"text_ratio": 0.0},
        {"prototype_weight": -0.1},
        {"sharpness": 0.0},
        {"distinct": False},
    ],
    ids=str,
)
def test_options_are_checked(world, options):
    with pytest.raises(OptionError):
        Retriever(world[0], **options)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"aggregate": "vote"}, "by 'vote'; leave aggregate out, or choose distinct=True"),
        ({"aggregate": "sum"}, "by 'sum'"),
        ({"aggregate": "prototype"}, "by 'prototype'"),
        ({"neighbours": 20}, "neighbours=20 says; leave neighbours out"),
    ],
    ids=str,
)
@pytest.mark.parametrize("source", ["image", "text"])
def test_repeats_refuse_what_they_would_not_heed(world, source, options, advice):
    with pytest.raises(OptionError, match=advice):
        Retriever(world[0], source=source, distinct=False, **options)
    Retriever(world[0], source=source, **options)


def test_repeats_are_by_the_nearest_entries_and_say_so(world):
    memory, _, _, queries = world
    plain = Retriever(memory, source="image", distinct=False)
    named = Retriever(memory, source="image", distinct=False, aggregate="nearest")
    assert plain.aggregate == named.aggregate == "nearest"
    assert plain.retrieve(queries) == named.retrieve(queries)


def test_a_given_ratio_replaces_the_estimate(world):
    memory, _, _, queries = world
    weak = Retriever(memory, k=8, text_ratio=1e-6).retrieve(queries)
    image = Retriever(memory, k=8, source="image").retrieve(queries)
    for fused, alone in zip(weak, image, strict=True):
        both = [c.category for c in alone if c.category != "c6"]
        assert [c.category for c in fused if c.category not in ("c6", "c7")] == both
