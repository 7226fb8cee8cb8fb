"""Scoring formulas against plain loops, what the memory tells about itself, and what does not change an answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rarvision.errors import MemoryEmptyError, OptionError
from rarvision.memory import LocalMemory, NewEntry
from rarvision.retrieval import Retriever
from rarvision.retrieval.statistics import best_weight, hub_offsets

DIM = 10
NAMES = [f"c{i}" for i in range(6)]
CASES = (
    *({"aggregate": name} for name in ("blend", "nearest", "sum", "vote", "weighted", "tip", "prototype")),
    *({"hubness": name} for name in ("mean", "csls", "softmax")),
    {"text_weight": "auto"},
)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def store(place, images=(), texts=()):
    memory = LocalMemory.create_unbound(place, dim=DIM, fingerprint="imported:test")
    for modality, rows in (("image", images), ("text", texts)):
        if rows:
            entries = [
                NewEntry(category=name, modality=modality, source=str(i), content=f"{modality}{vector}".encode())
                for i, (name, vector) in enumerate(rows)
            ]
            memory.append(entries, np.stack([vector for _, vector in rows]))
    return memory


def world(shots=3, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((len(NAMES), DIM))
    images = [
        (name, unit(centres[i] + 1.1 * generator.standard_normal(DIM)))
        for i, name in enumerate(NAMES)
        for _ in range(shots)
    ]
    texts = [(name, unit(centres[i] + 2.0 + generator.standard_normal(DIM))) for i, name in enumerate(NAMES)]
    return images, texts, unit(centres[[0, 1, 2, 3, 4, 5, 0, 1]] + generator.standard_normal((8, DIM)))


def order_of(scores):
    return sorted(scores, key=lambda name: -scores[name])


def scores_of(candidates):
    return {candidate.category: candidate.similarity for candidate in candidates}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    images, texts, queries = world()
    with store(tmp_path_factory.mktemp("small") / "m", images, texts) as memory:
        yield memory, images, texts, queries


def mean_cosine(query, rows):
    mean = np.mean(rows, axis=0)
    return float(query @ mean) / float(np.linalg.norm(mean))


def of(name, rows):
    return [vector for own, vector in rows if own == name]


@pytest.mark.parametrize("beta", [None, 2.0])
def test_tip_equals_a_plain_loop(small, beta):
    memory, images, texts, queries = small
    used = 5.5 if beta is None else beta
    retriever = Retriever(memory, k=6, aggregate="tip", source="image", sharpness=beta)
    fused = Retriever(memory, k=6, aggregate="tip", sharpness=beta, text_weight=0.25)
    for query, alone, both in zip(queries, retriever.retrieve(queries), fused.retrieve(queries), strict=True):
        cache = {n: sum(math.exp(-used * (1 - float(query @ v))) for v in of(n, images)) for n in NAMES}
        assert scores_of(alone) == pytest.approx(cache, abs=1e-4)
        assert [c.category for c in alone] == order_of(cache)
        alpha = 0.75 / 0.25
        logits = {n: 0.25 * (alpha * cache[n] + 100 * mean_cosine(query, of(n, texts))) for n in NAMES}
        assert scores_of(both) == pytest.approx(logits, abs=1e-3)


def test_weighted_votes_equal_a_plain_loop(small):
    memory, images, _, queries = small
    for query, found in zip(
        queries,
        Retriever(memory, k=6, source="image", aggregate="weighted", neighbours=7).retrieve(queries),
        strict=True,
    ):
        nearest = sorted(images, key=lambda pair: -float(query @ pair[1]))[:7]
        votes = {n: sum(max(0.0, float(query @ v)) for own, v in nearest if own == n) / 7 for n in NAMES}
        assert scores_of(found) == pytest.approx(votes, abs=1e-5)
        voted = [n for n in order_of(votes) if votes[n]]
        assert [c.category for c in found][: len(voted)] == voted


def plain_offsets(method, scores, own):
    """By loops; scores: list of lists, own: column of each row."""
    found = []
    for column in range(len(scores[0])):
        others = [row[column] for row, mine in zip(scores, own, strict=True) if mine != column]
        if method == "mean":
            found.append(sum(others) / len(others))
        elif method == "csls":
            top = sorted(others, reverse=True)[:10]
            found.append(sum(top) / len(top) / 2)
        else:
            found.append(math.log(sum(math.exp(30 * s) for s in others) / len(others)) / 30)
    return [value - sum(found) / len(found) for value in found]


@pytest.mark.parametrize("method", ["mean", "csls", "softmax"])
@pytest.mark.parametrize("source", ["image", "text"])
def test_hubness_equals_a_plain_loop(small, method, source):
    memory, images, texts, queries = small
    rows = images if source == "image" else texts
    scores = [[mean_cosine(v, of(n, rows)) for n in NAMES] for _, v in images]
    offsets = plain_offsets(method, scores, [NAMES.index(own) for own, _ in images])
    plain = Retriever(memory, k=6, source=source).retrieve(queries)
    corrected = Retriever(memory, k=6, source=source, hubness=method).retrieve(queries)
    for before, after in zip(plain, corrected, strict=True):
        known = scores_of(before)
        expected = {name: known[name] - offsets[i] for i, name in enumerate(NAMES)}
        assert scores_of(after) == pytest.approx(expected, abs=1e-5)
        assert [c.category for c in after] == order_of(expected)


@pytest.mark.parametrize("method", ["mean", "csls", "softmax"])
def test_a_hub_is_held_back(tmp_path, method):
    """One category lies in the middle of everything and takes what is another's."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((20, DIM)) + 1.0
    images = [
        (f"c{i}", unit(c + 0.7 * generator.standard_normal(DIM))) for i, c in enumerate(centres) for _ in range(3)
    ]
    images += [("hub", unit(np.ones(DIM) + 0.02 * generator.standard_normal(DIM))) for _ in range(3)]
    queries = unit(np.repeat(centres, 5, axis=0) + 1.2 * generator.standard_normal((100, DIM)))
    with store(tmp_path / "m", images) as memory:
        taken = [
            sum(f[0].category == "hub" for f in Retriever(memory, hubness=h).retrieve(queries))
            for h in ("none", method)
        ]
    assert taken[1] < taken[0], taken


def test_offsets_where_there_is_nothing_to_learn():
    scores = np.array([[0.5, -np.inf], [0.4, -np.inf]])
    for method in ("none", "mean", "csls", "softmax"):
        np.testing.assert_array_equal(hub_offsets(scores, np.ones((2, 2), dtype=bool), method), [0, 0])
        np.testing.assert_array_equal(hub_offsets(scores, np.zeros((2, 2), dtype=bool), method), [0, 0])


@pytest.mark.parametrize("aggregate", ["blend", "nearest", "prototype", "vote", "tip"])
def test_left_out_scores_equal_those_of_a_memory_without_the_image(tmp_path, aggregate):
    images, _, _ = world(shots=3)
    options = {"k": 6, "source": "image", "aggregate": aggregate}
    with store(tmp_path / "all", images) as memory:
        ids, _ = memory.table("image")
        codes, scores, texts = Retriever(memory, **options).left_out(ids)
        names = [memory.category_names()[code] for code in codes.tolist()]
        assert np.isneginf(texts).all()
    for row in (0, 7, 17):
        rest = images[:row] + images[row + 1 :]
        with store(tmp_path / f"without {row}", rest) as memory:
            (found,) = Retriever(memory, **options).retrieve(images[row][1][None])
        assert dict(zip(names, scores[row].tolist(), strict=True)) == pytest.approx(scores_of(found), abs=1e-5)


def test_an_image_left_out_is_no_disadvantage_where_that_is_asked_for(small):
    memory, images, _, _ = small
    ids, _ = memory.table("image")
    for aggregate in ("prototype", "vote", "tip", "weighted"):
        retriever = Retriever(memory, k=6, source="image", aggregate=aggregate)
        codes, plain, _ = retriever.left_out(ids)
        _, even, _ = retriever.left_out(ids, even=True)
        names = [memory.category_names()[code] for code in codes.tolist()]
        for row, (own, vector) in enumerate(images):
            column = names.index(own)
            expected = plain[row].copy()
            rows = of(own, images)
            if aggregate == "prototype":
                others = [v for v in rows if v is not vector]
                expected[column] = float(vector @ np.mean(others, axis=0)) / float(
                    np.linalg.norm(np.mean(rows, axis=0))
                )
            else:
                expected[column] *= len(rows) / (len(rows) - 1)
            np.testing.assert_allclose(even[row], expected, atol=1e-5)


def test_the_fitted_weight_equals_a_plain_loop(small):
    memory, images, _, _ = small
    fit = Retriever(memory, k=6, text_weight="auto").fit_text_weight()
    assert fit.images == len(images)
    assert len(fit.curve) == 21
    codes, by_image, by_text = Retriever(memory).left_out(memory.table("image")[0], even=True)
    names = [memory.category_names()[code] for code in codes.tolist()]
    right = {}
    for step in range(21):
        weight = step / 20
        count = 0
        for (own, _), a, b in zip(images, by_image.tolist(), by_text.tolist(), strict=True):
            totals = [(1 - weight) * x + weight * y for x, y in zip(a, b, strict=True)]
            count += names[totals.index(max(totals))] == own
        right[round(weight, 2)] = count / len(images)
    assert dict(fit.curve) == pytest.approx(right)
    assert right[fit.weight] == max(right.values())
    assert fit == Retriever(memory, text_weight="auto").fit_text_weight(), "deterministic"
    assert fit.to_dict()["weight"] == fit.weight


def test_the_fitted_weight_follows_what_is_worth_more(tmp_path):
    images, texts, queries = world(shots=4)
    generator = np.random.default_rng(3)
    noise = [(name, unit(generator.standard_normal(DIM))) for name, _ in texts]
    with store(tmp_path / "noisy texts", images, noise) as memory:
        retriever = Retriever(memory, k=6, text_weight="auto")
        assert retriever.fit_text_weight().weight < 0.5
        weight = retriever.fit_text_weight().weight
        assert retriever.retrieve(queries) == Retriever(memory, k=6, text_weight=weight).retrieve(queries)
    rubbish = [(name, unit(generator.standard_normal(DIM))) for name, _ in images]
    middles = [(name, unit(np.mean(of(name, rubbish), axis=0))) for name in NAMES]
    with store(tmp_path / "noisy images", rubbish, middles) as memory:
        assert Retriever(memory, text_weight="auto").fit_text_weight().weight > 0.5


def test_of_equal_weights_the_one_nearest_the_middle():
    fit = best_weight(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]), np.array([0]))
    assert (fit.weight, fit.images) == (0.5, 1)


def test_one_shot_cannot_be_fitted(tmp_path):
    images, texts, queries = world(shots=1)
    with store(tmp_path / "m", images, texts) as memory:
        fit = Retriever(memory, text_weight="auto").fit_text_weight()
        assert (fit.weight, fit.curve, fit.images) == (0.5, (), 0)
        assert Retriever(memory, text_weight="auto").retrieve(queries) == Retriever(memory).retrieve(queries)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_order_of_entries_does_not_matter(tmp_path, options):
    images, texts, queries = world()
    results = []
    for name, step in (("forth", 1), ("back", -1)):
        with store(tmp_path / name, images[::step], texts[::step]) as memory:
            results.append([scores_of(f) for f in Retriever(memory, k=6, **options).retrieve(queries)])
    for first, second in zip(*results, strict=True):
        assert first == pytest.approx(second, abs=1e-5)


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("held", ["images", "texts", "one of each"])
def test_more_candidates_than_there_are_and_a_missing_modality(tmp_path, options, held):
    images, texts, queries = world(shots=1)
    memory = store(
        tmp_path / "m",
        [] if held == "texts" else images[:1] if held == "one of each" else images,
        [] if held == "images" else texts[1:2] if held == "one of each" else texts,
    )
    with memory:
        retriever = Retriever(memory, k=100, **options)
        if "hubness" in options and held == "texts":
            with pytest.raises(MemoryEmptyError, match="choose hubness='none'"):
                retriever.retrieve(queries)
            return
        if options.get("text_weight") == "auto" and held != "one of each":
            with pytest.raises(MemoryEmptyError, match="images and texts"):
                retriever.fit_text_weight()
        expected = 2 if held == "one of each" else 6
        for candidates in retriever.retrieve(queries):
            assert len(candidates) == expected
            assert all(math.isfinite(c.similarity) for c in candidates)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text_weight": "best"}, "from 0 to 1, or 'auto', got 'best'"),
        ({"text_weight": -0.1}, "between 0 and 1, got -0.1"),
        ({"hubness": "strong"}, "one of none, mean, csls, softmax, got 'strong'"),
        ({"hubness": "csls", "aggregate": "vote"}, "gives none; choose aggregate='blend'"),
        ({"hubness": "mean", "aggregate": "tip"}, "hubness='none'"),
        ({"hubness": "mean", "source": "image", "distinct": False}, "leave hubness out"),
        ({"sharpness": -1.0, "aggregate": "tip"}, "must be positive"),
    ],
    ids=str,
)
def test_options_say_what_to_do(small, options, says):
    with pytest.raises(OptionError, match=says):
        Retriever(small[0], **options)


def test_only_images_of_the_memory_can_be_left_out(small):
    with pytest.raises(OptionError, match="some of these ids are none"):
        Retriever(small[0]).left_out(np.array([1, 10_000]))


@pytest.mark.data
def test_real_vectors_left_out(data_dir, tmp_path):
    """The retriever's own leaving out agrees with `leave_one_out`; the figure for means stands in the docs."""
    from rarvision.memory import import_faiss
    from rarvision.retrieval import leave_one_out

    folder = data_dir / "rar-memory" / "cub200"
    files = (folder / "cub200_database.index", folder / "cub200_database.txt")
    with import_faiss(*files, tmp_path / "m", classnames=folder / "classnames.txt") as memory:
        ids, own = memory.table("image")
        right = {}
        for aggregate in ("nearest", "blend"):
            codes, scores, _ = Retriever(memory, source="image", aggregate=aggregate).left_out(ids)
            right[aggregate] = float((codes[scores.argmax(axis=1)] == own).mean())
        assert right["nearest"] == pytest.approx(leave_one_out(memory).top1, abs=1e-9)
        assert round(100 * right["blend"], 1) == 37.8
