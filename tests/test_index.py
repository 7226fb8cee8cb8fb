"""Indexes: the contract, agreement with a plain NumPy search, ties, k above n, one row, files."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rarvision.errors import MemoryCorruptError, OptionError
from rarvision.index import ExactIndex, FaissIndex, HNSWIndex, make_index, top_k, wrap_faiss
from rarvision.testing import check_index


def unit(rows, dim=16, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def naive(vectors, queries, k):
    """One query, one row at a time; ties by row."""
    rows = []
    for query in queries:
        scored = sorted((-float(np.dot(query.astype(np.float64), v)), row) for row, v in enumerate(vectors))
        rows.append([row for _, row in scored[:k]])
    return rows


@pytest.mark.parametrize(
    ("make", "recall"),
    [
        (ExactIndex, 1.0),
        (lambda dim: HNSWIndex(dim, m=16), 0.95),
        (lambda dim: wrap_faiss(faiss.IndexFlatIP(dim)), 1.0),
        (lambda dim: wrap_faiss(faiss.IndexFlatL2(dim)), 1.0),
        (lambda dim: make_index("hnsw", dim, ef_search=64), 0.95),
    ],
    ids=["exact", "hnsw", "faiss-ip", "faiss-l2", "made-hnsw"],
)
def test_contract(make, recall):
    check_index(make, recall=recall)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.sampled_from([0.0, 0.5, 1.0])),
    st.integers(1, 45),
)
def test_top_k_equals_a_stable_sort(scores, k):
    expected = [sorted(range(scores.shape[1]), key=lambda c: (-row[c], c))[:k] for row in scores]
    assert top_k(scores, k).tolist() == expected


def test_top_k_puts_minus_infinity_last():
    assert top_k(np.array([[-np.inf, 1.0, -np.inf, 2.0]]), 3).tolist() == [[3, 1, 0]]


def test_ties_go_to_the_lower_row_also_across_blocks(monkeypatch):
    monkeypatch.setattr("rarvision.index.blocks._FIRST", 3)
    monkeypatch.setattr("rarvision.index.blocks._ROWS", 7)
    monkeypatch.setattr("rarvision.index.blocks._QUERIES", 2)
    vectors = np.eye(4, dtype=np.float32)[np.random.default_rng(1).integers(0, 4, 50)]
    queries = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    index = ExactIndex(4)
    index.add(vectors)
    for k in (1, 3, 20, 50):
        assert index.search(queries, k)[1].tolist() == naive(vectors, queries, k)


def test_exact_equals_naive_across_blocks(monkeypatch):
    monkeypatch.setattr("rarvision.index.blocks._FIRST", 16)
    monkeypatch.setattr("rarvision.index.blocks._ROWS", 64)
    vectors, queries = unit(300), unit(9, seed=1)
    index = ExactIndex(16)
    index.add(vectors[:100])
    index.add(vectors[100:])
    similarities, rows = index.search(queries, 12)
    assert rows.tolist() == naive(vectors, queries, 12)
    np.testing.assert_allclose(similarities, np.take_along_axis(queries @ vectors.T, rows, axis=1), atol=1e-6)


def test_hnsw_agrees_with_exact_on_clustered_vectors():
    centres = unit(60, 32)
    vectors = np.repeat(centres, 50, axis=0) + 0.1 * unit(3000, 32, seed=2)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact, graph = ExactIndex(32), HNSWIndex(32)
    for index in (exact, graph):
        index.add(vectors)
    queries = unit(50, 32, seed=3)
    truth, found = exact.search(queries, 10), graph.search(queries, 10)
    same = [len(set(a) & set(b)) for a, b in zip(truth[1].tolist(), found[1].tolist(), strict=True)]
    assert np.mean(same) / 10 > 0.98
    agree = truth[1] == found[1]
    np.testing.assert_allclose(truth[0][agree], found[0][agree], atol=1e-5)


@pytest.mark.parametrize("kind", [ExactIndex, HNSWIndex, FaissIndex])
def test_saving_and_loading(kind, tmp_path):
    index = wrap_faiss(faiss.IndexFlatIP(16)) if kind is FaissIndex else kind(16)
    vectors = unit(200)
    index.add(vectors)
    index.save(tmp_path / "ünd ex")
    loaded = kind.load(tmp_path / "ünd ex")
    assert (len(loaded), loaded.dim) == (200, 16)
    for before, after in zip(index.search(vectors[:5], 3), loaded.search(vectors[:5], 3), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("kind", [ExactIndex, HNSWIndex, FaissIndex])
def test_a_damaged_file_is_named(kind, tmp_path):
    path = tmp_path / "bad.index"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(MemoryCorruptError, match=r"bad\.index"):
        kind.load(path)


def test_an_index_of_another_type_is_refused(tmp_path):
    faiss.write_index(faiss.IndexFlatIP(8), str(tmp_path / "flat"))
    with pytest.raises(MemoryCorruptError, match="IndexHNSWFlat"):
        HNSWIndex.load(tmp_path / "flat")


def test_options_are_checked():
    with pytest.raises(OptionError, match="exact, hnsw, rescored"):
        make_index("annoy", 4)
    with pytest.raises(OptionError, match="ef_construction"):
        make_index("hnsw", 4, links=3)
    with pytest.raises(OptionError, match="at least 1"):
        HNSWIndex(4, m=0)
    with pytest.raises(OptionError, match=r"shape \(n, 4\)"):
        ExactIndex(4).add(np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(OptionError, match="float32"):
        ExactIndex(4, vectors=np.zeros((2, 4)))
    with pytest.raises(OptionError, match="flag"):
        ExactIndex(4).search(np.zeros((1, 4), dtype=np.float32), 1, allowed=np.ones(3, dtype=bool))
    with pytest.raises(OptionError, match="metric"):
        wrap_faiss(faiss.IndexFlat(4, faiss.METRIC_L1))


def test_vectors_come_back_from_faiss_and_not_from_what_forgets_them():
    vectors = unit(30)
    kept = wrap_faiss(faiss.IndexHNSWFlat(16, 8, faiss.METRIC_INNER_PRODUCT))
    kept.add(vectors)
    np.testing.assert_array_equal(kept.vectors, vectors)
    lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(16), 16, 4, faiss.METRIC_INNER_PRODUCT)
    lists.train(np.repeat(vectors, 10, axis=0))
    lists.add(vectors)
    np.testing.assert_array_equal(wrap_faiss(lists).vectors, vectors)
    mapped = faiss.IndexIDMap(faiss.IndexFlatIP(16))
    mapped.add_with_ids(vectors, np.arange(30) + 7)
    with pytest.raises(OptionError, match="IndexIDMap"):
        _ = wrap_faiss(mapped).vectors
