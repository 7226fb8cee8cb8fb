"""Indexes: the contract, agreement with a plain NumPy search, ties, k above n, one row, files."""

from __future__ import annotations

import json

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from index_world import DIM, KINDS, ROWS, clustered, empty, grown
from rarvision.errors import OptionError
from rarvision.index import (
    EXACT_UP_TO,
    LISTS_UP_TO,
    ExactIndex,
    HNSWIndex,
    IndexSpec,
    choose_index,
    graph_spec,
    make_index,
    top_k,
    wrap_faiss,
)
from rarvision.index.tuning import recall_at
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


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("exact", "hnsw", "graph")])
def test_contract_of_shortlists(name):
    check_index(lambda dim: empty(name, dim), recall=0.9, tolerance=5e-3)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_filters_are_exact_in_their_semantics(name, share, monkeypatch):
    monkeypatch.setattr("rarvision.index.base.EXACT_BELOW", 20)  # so that the filtered walk is tried at this size
    index, queries = grown(name), clustered(25, seed=4)
    allowed = np.zeros(ROWS, dtype=bool)
    allowed[np.random.default_rng(2).permutation(ROWS)[: max(1, int(share * ROWS))]] = True
    similarities, rows = index.search(queries, 8, allowed=allowed)
    expected = min(8, int(allowed.sum()))
    assert (rows[:, expected:] == -1).all()
    assert allowed[rows[:, :expected]].all()
    assert all(len(set(row)) == expected for row in rows[:, :expected].tolist())
    truth = grown("exact").search(queries, 8, allowed=allowed)
    assert recall_at(rows[:, :expected], truth[1][:, :expected]) >= (1.0 if name == "exact" else 0.9)
    np.testing.assert_allclose(similarities[:, :expected], truth[0][:, :expected], atol=0.03)


@pytest.mark.parametrize("name", KINDS)
def test_indexes_agree_with_exact(name):
    queries = clustered(50, seed=6)
    truth, found = grown("exact").search(queries, 10), grown(name).search(queries, 10)
    assert recall_at(found[1], truth[1]) >= 0.95
    agree = truth[1] == found[1]
    np.testing.assert_allclose(truth[0][agree], found[0][agree], atol=5e-3)


@pytest.mark.parametrize("name", KINDS)
def test_equal_rows_come_in_the_order_of_their_numbers(name):
    index = empty(name)
    index.add(np.repeat(clustered(300, seed=8), 4, axis=0))
    similarities, rows = index.search(clustered(300, seed=8)[:20], 4)
    assert rows.tolist() == [[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(20)]
    assert (similarities == similarities[:, :1]).all()


@pytest.mark.parametrize("name", KINDS)
def test_the_same_is_built_again(name):
    again = empty(name)
    again.add(clustered(ROWS))
    for a, b in zip(again.search(clustered(20, seed=1), 5), grown(name).search(clustered(20, seed=1), 5), strict=True):
        np.testing.assert_array_equal(a, b)
    assert IndexSpec.from_json(json.loads(json.dumps(again.spec.to_json()))) == again.spec
    assert again.spec.make(DIM).spec == again.spec


@pytest.mark.parametrize("name", KINDS)
def test_search_parameters_are_set(name):
    index = empty(name)
    for parameter in index.search_parameters:
        index.set_search(**{parameter: 3})
        assert index.search_parameters[parameter] == index.spec.parameters[parameter] == 3
        with pytest.raises(OptionError, match="at least 1"):
            index.set_search(**{parameter: 0})
    with pytest.raises(OptionError, match="no search parameter nothing"):
        index.set_search(nothing=3)


def test_more_effort_finds_more():
    index, truth = own_lists(), grown("exact").search(clustered(100, seed=7), 5)[1]
    recalls = []
    for probes in (1, 8, 128):
        index.set_search(nprobe=probes)
        recalls.append(recall_at(index.search(clustered(100, seed=7), 5)[1], truth))
    assert recalls[0] < recalls[1] <= recalls[2]
    assert recalls[2] >= 0.99


def own_lists():
    index = empty("lists")
    index.add(clustered(ROWS))
    return index


def test_a_shortlist_shorter_than_k_is_filled_exactly():
    index = own_lists()
    index.set_search(nprobe=1, k_factor=1)
    queries = clustered(10, seed=7)
    found, truth = index.search(queries, 400), grown("exact").search(queries, 400)
    assert (found[1] >= 0).all()
    assert recall_at(found[1], truth[1]) > 0.98


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**20), st.floats(0.0, 1.0))
def test_exact_search_equals_a_sort_under_any_filter(rows, k, seed, share):
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-1, 2, (rows, 4)).astype(np.float32)
    queries = generator.integers(-1, 2, (3, 4)).astype(np.float32)
    allowed = generator.random(rows) < share
    found = ExactIndex(4, vectors=vectors).search(queries, k, allowed=allowed)[1]
    for query, got in zip(queries, found.tolist(), strict=True):
        expected = sorted(np.flatnonzero(allowed).tolist(), key=lambda r: (-float(vectors[r] @ query), r))[:k]
        assert got == expected + [-1] * (k - len(expected))


def test_bytes_are_those_of_the_parts():
    assert grown("exact").bytes_per_vector == 4 * DIM
    assert 4 * DIM < grown("hnsw").bytes_per_vector < 4 * DIM + 200
    assert DIM + 12 <= grown("graph").bytes_per_vector < DIM + 12 + 220
    assert "3,000 rows of 16 dimensions" in grown("lists").describe()
    assert all(empty(name).bytes_per_vector == 0 for name in KINDS)


def test_the_choice_by_size_says_why():
    below, reason = choose_index(EXACT_UP_TO, 512)
    assert below.kind == "exact"
    assert f"{EXACT_UP_TO:,}" in reason
    above, reason = choose_index(EXACT_UP_TO + 1, 512)
    assert above.make(512).kind == above.kind != "exact"
    assert f"{EXACT_UP_TO + 1:,} rows" in reason
    large, reason = choose_index(LISTS_UP_TO + 1, 512)
    assert large == graph_spec(512)
    assert f"above {LISTS_UP_TO:,}" in reason
    with pytest.raises(OptionError, match="at least 0 rows"):
        choose_index(-1, 512)


@pytest.mark.parametrize("dim", [3, 8, 60, 120, 121, 512])
def test_the_large_choice_suits_any_dimension(dim):
    vectors = unit(3_000, dim)
    index = graph_spec(dim).make(dim)
    index.add(vectors)
    found = index.search(vectors[:50], 1)[1]
    assert (found[:, 0] == np.arange(50)).mean() > 0.95


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 130])
def test_the_default_suits_any_dimension(dim):
    index = make_index("rescored", dim)
    index.add(clustered(1_100, dim))
    assert index.search(clustered(5, dim), 3)[1].min() >= 0


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
    for wrong, message in (
        ({"store": "int4"}, "sq8, fp16, fp32"),
        ({"factory": "PCA99,HNSW8"}, "PCA99"),
        ({"factory": "Nothing7"}, "Nothing7"),
        ({"factory": "HNSW8,Refine(SQ8)"}, "store says"),
        ({"k_factor": 0}, "k_factor must be a whole number of at least 1"),
        ({"k_factor": "many"}, "whole number, got 'many'"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(OptionError, match=message):
            make_index("rescored", 16, **wrong)
    with pytest.raises(OptionError, match="did you mean 'hnsw'"):
        make_index("hnws", 4)
    with pytest.raises(OptionError, match=r"row 1 has 2\.0000"):
        make_index("rescored", 2).add(np.array([[1, 0], [0, 2]], dtype=np.float32))
    with pytest.raises(OptionError, match="read from a file"):
        IndexSpec(kind="faiss").make(4)
    for stored in ({}, {"kind": "exact"}, {"kind": "exact", "parameters": 3}, {"kind": "gone", "parameters": {}}):
        with pytest.raises(OptionError):
            IndexSpec.from_json(stored)
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
