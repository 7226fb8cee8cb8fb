"""Tuning: the table, the choice, and that a vector is not its own neighbour."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from index_world import clustered
from rarvision.errors import OptionError
from rarvision.index import IndexSpec, tune
from rarvision.index.tuning import candidates_for, efforts, recall_at

LISTS = IndexSpec(kind="rescored", parameters={"store": "sq8", "k_factor": 8})
GRAPH = IndexSpec(kind="hnsw", parameters={"m": 8})


@pytest.fixture(scope="module")
def tuning():
    told = []
    result = tune(clustered(1_500), candidates=[LISTS, GRAPH], sample=300, repeats=1, recall=0.95, progress=told.append)
    return result, told


def test_the_table_holds_every_setting_and_the_choice_is_the_fastest_that_reaches(tuning):
    result, told = tuning
    assert (result.rows, result.queries, result.k) == (1_500, 300, 5)
    assert result.trials[0].spec.kind == "exact"
    assert result.trials[0].recall == 1.0
    assert {trial.spec.kind for trial in result.trials} == {"exact", "rescored", "hnsw"}
    reaching = [trial for trial in result.trials if trial.recall >= 0.95]
    assert result.chosen == max(reaching, key=lambda trial: trial.queries_per_s)
    assert str(result.chosen.spec) in result.reason
    assert all(trial.bytes_per_vector > 0 and trial.queries_per_s_single > 0 for trial in result.trials)
    assert any(line.startswith("building") for line in told)


def test_the_effort_grows_until_the_recall_is_reached(tuning):
    graphs = [trial for trial in tuning[0].trials if trial.spec.kind == "hnsw"]
    breadths = [trial.spec.parameters["ef_search"] for trial in graphs]
    assert breadths == sorted(breadths)
    assert graphs[-1].recall >= 0.95
    assert all(trial.recall < 0.9995 for trial in graphs[:-1])


def test_a_chosen_index_is_made_with_its_search_parameters(tuning):
    for trial in tuning[0].trials:
        assert trial.spec.make(16).spec == trial.spec


def test_a_vector_is_not_its_own_neighbour():
    vectors = clustered(400)
    far = tune(vectors, candidates=[], sample=50, k=3)
    assert far.trials[0].recall == 1.0
    twins = np.repeat(vectors[:100], 2, axis=0)  # each has its equal under another number
    assert tune(twins, candidates=[GRAPH], sample=100, k=1, repeats=1).trials[-1].recall > 0.9


def test_given_queries_are_asked_as_they_are():
    result = tune(clustered(300), clustered(7, seed=1), candidates=[GRAPH], repeats=1, recall=0.9)
    assert result.queries == 7


def test_where_nothing_reaches_the_recall_the_exact_index_is_chosen():
    poor = IndexSpec(kind="rescored", parameters={"factory": "PQ1x4fs", "k_factor": 1})
    assert tune(clustered(2_000), candidates=[poor], sample=50, recall=1.0, repeats=1).chosen.spec.kind == "exact"


def test_threads_are_put_back():
    before = faiss.omp_get_max_threads()
    tune(clustered(50), candidates=[], threads=1, repeats=1)
    assert faiss.omp_get_max_threads() == before


def test_candidates_can_be_made():
    assert candidates_for(1_000, 512) == ()
    for rows, dim in ((5_000, 512), (10_000_000, 512), (5_000, 64), (5_000, 24)):
        for spec in candidates_for(rows, dim):
            assert efforts(spec.make(dim))


def test_recall_counts_each_true_row_once():
    assert recall_at(np.array([[1, 2], [3, 4]]), np.array([[2, 9], [4, 3]])) == 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [({"recall": 0.0}, "above 0"), ({"k": 0}, "k must be"), ({"sample": 0}, "sample"), ({"repeats": 0}, "repeats")],
)
def test_wrong_options_are_refused(change, message):
    with pytest.raises(OptionError, match=message):
        tune(clustered(20), **change)


def test_nothing_to_tune_is_said():
    with pytest.raises(OptionError, match="at least 2 vectors"):
        tune(clustered(1))
