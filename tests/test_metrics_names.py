"""Clustering accuracy and similarity of names against independent rewrites, and on published lists of guessed names."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from rarvision.errors import InputError
from rarvision.metrics import cluster_hits, clustering_accuracy, name_similarities

CASES = st.lists(st.tuples(st.sampled_from(["u", "v", "w", "x", "y", None]), st.sampled_from("abcd")), min_size=1)


def best_of_all_pairings(predicted, labels):
    """By trying every way to give each category a name of its own, or none."""
    names = sorted({name for name in predicted if name is not None})
    categories = sorted(set(labels))
    names += [None] * len(categories)
    most = 0
    for chosen in set(itertools.permutations(names, len(categories))):
        stands = {c: n for c, n in zip(categories, chosen, strict=True) if n is not None}
        most = max(most, sum(p is not None and stands.get(t) == p for p, t in zip(predicted, labels, strict=True)))
    return most / len(labels)


def as_published(predicted, labels):
    """The evaluators' way: a square matrix of counts, Hungarian assignment of its complement."""
    names = {name: i for i, name in enumerate(dict.fromkeys(predicted))}
    categories = {name: i for i, name in enumerate(dict.fromkeys(labels))}
    size = max(len(names), len(categories))
    counts = np.zeros((size, size), dtype=np.int64)
    for name, label in zip(predicted, labels, strict=True):
        counts[names[name], categories[label]] += 1
    rows, columns = linear_sum_assignment(counts.max() - counts)
    return counts[rows, columns].sum() / len(labels)


@settings(deadline=None, max_examples=60)
@given(CASES)
def test_clustering_accuracy_is_the_best_of_all_pairings(cases):
    predicted, labels = zip(*cases, strict=True)
    assert clustering_accuracy(predicted, labels) == pytest.approx(best_of_all_pairings(predicted, labels))
    hits, stands = cluster_hits(predicted, labels)
    assert len(set(stands.values())) == len(stands), "a category is one name's alone"
    expected = [p is not None and stands.get(p) == t for p, t in zip(predicted, labels, strict=True)]
    assert hits.tolist() == expected


@pytest.mark.parametrize(("names", "categories", "right"), [(40, 40, 0.5), (90, 30, 0.3), (20, 60, 0.7), (50, 50, 0.0)])
def test_clustering_accuracy_agrees_with_the_published_way(names, categories, right):
    rng = np.random.default_rng(names)
    labels = rng.integers(0, categories, 700)
    predicted = np.where(rng.random(700) < right, labels % names, rng.integers(0, names, 700))
    predicted, labels = [f"n{i}" for i in predicted], [f"c{i}" for i in labels]
    assert clustering_accuracy(predicted, labels) == pytest.approx(as_published(predicted, labels))


def test_names_do_not_count_for_clusters_and_no_answer_is_never_right():
    assert clustering_accuracy(["b", "b", "a"], ["a", "a", "b"]) == 1.0
    assert clustering_accuracy([None, None], ["a", "b"]) == 0.0
    assert clustering_accuracy([None, "a"], ["a", "a"]) == 0.5


def test_similarity_is_the_cosine_of_both_names():
    vectors = {"a": np.array([1.0, 0.0]), "b": np.array([0.6, 0.8]), "c": np.array([0.0, 1.0])}
    found = name_similarities(["a", "b", None, "a"], ["a", "c", "a", "c"], vectors)
    np.testing.assert_allclose(found, [1.0, 0.8, 0.0, 0.0])


def test_bad_input():
    with pytest.raises(InputError, match="2 and 1"):
        clustering_accuracy(["a", "b"], ["a"])
    with pytest.raises(InputError, match="at least one"):
        cluster_hits([], [])
    with pytest.raises(InputError, match=r"no.* for 'b' \(1 in all\)"):
        name_similarities(["b"], ["a"], {"a": np.ones(1)})


def published(data: Path, name: str, kind: str):
    """First guesses of the naming stage for each discovery image, and the true names."""
    lines = (data / "rar-memory" / name / f"paired_data_{kind}.txt").read_text().splitlines()
    pairs = [line.split(" [", 1) for line in lines if line.strip()]
    return [ast.literal_eval("[" + names)[0] for _, names in pairs], [key.rpartition("_")[0] for key, _ in pairs]


@pytest.mark.data
@pytest.mark.parametrize(("name", "kind", "images"), [("cub200", "birds", 600), ("pets37", "pets", 111)])
def test_published_guesses(data_dir, name, kind, images):
    predicted, labels = published(data_dir, name, kind)
    assert len(labels) == images
    assert clustering_accuracy(predicted, labels) == pytest.approx(as_published(predicted, labels))
