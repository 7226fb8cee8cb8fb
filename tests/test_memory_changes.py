"""Renaming, merging, moving and filtering entries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarvision.errors import EncoderMismatchError, OptionError
from rarvision.memory import LocalMemory, Where
from rarvision.testing import FakeEncoder
from upkeep_world import ENCODER, filled, new_entries, state, unit


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr("rarvision.memory.writing._SEAL", 8)
    monkeypatch.setattr("rarvision.memory.writing._MERGE", 3)


@pytest.fixture
def memory(tmp_path):
    with LocalMemory.create(tmp_path / "memory", encoder=ENCODER) as made:
        yield made


@pytest.mark.usefixtures("small_steps")
def test_renaming_and_merging(memory):
    filled(memory)
    assert "class 3" not in memory.categories()
    codes = {name: code for code, name in memory.category_names().items()}
    ids, table = memory.table("image")
    named = {e.id: e.category for e in memory.entries(modality="image")}
    assert [named[i] for i in ids.tolist()] == [memory.category_names()[c] for c in table.tolist()]
    assert memory.rename_category("class 0", "zero 'quoted'\n[x]") == len(
        list(memory.entries(category="zero 'quoted'\n[x]"))
    )
    with pytest.raises(OptionError, match="merge"):
        memory.rename_category("class 1", "class 2")
    with pytest.raises(OptionError, match="did you mean 'class 1'"):
        memory.rename_category("clas 1", "x")
    assert memory.rename_category("class 2", "class 2") > 0
    memory.append(new_entries(range(3, 4)), unit(1, seed=8))  # class 3 comes again, as another category
    assert memory.category_names()[codes["class 1"]] == "class 1"
    assert "class 3" in memory.categories()
    assert memory.merge_categories(["class 3"], "class 1") == 0, "its only image is in class 1 already"
    assert len(list(memory.entries(source="3.png", modality="image"))) == 1
    assert memory.merge_categories(["class 1", "class 2"], "all") > 20
    memory.close()
    with LocalMemory.open(memory.path) as again:
        assert again.categories() == ["zero 'quoted'\n[x]", "all"]
        hits = again.nearest(unit(3, seed=2), 50)
        assert {again.category_names()[c] for c in hits.categories.ravel().tolist() if c >= 0} == set(
            again.categories()
        )
        assert again.verify() == ()
        again.compact()
        assert again.verify() == ()


@pytest.mark.usefixtures("small_steps")
def test_moving_and_copying_carry_everything_along(memory, tmp_path):
    filled(memory)
    everything = {row[1:] for row in map(hashable, state(memory))}
    with LocalMemory.create(tmp_path / "other", encoder=ENCODER) as other:
        report = memory.copy_to(other, metadata={"even": True})
        assert report.added == len(list(memory.entries(metadata={"even": True})))
        assert memory.copy_to(other, metadata={"even": True}).skipped == report.added
        done = []
        memory.move_to(other, progress=done.append)
        assert len(memory) == 0
        assert {row[1:] for row in map(hashable, state(other))} == everything
        assert other.thumbnail(1) is not None
        assert memory.verify() == other.verify() == ()
        with pytest.raises(OptionError, match="itself"):
            other.move_to(other)
    with (
        LocalMemory.create(tmp_path / "foreign", encoder=FakeEncoder(dim=16, seed=5)) as foreign,
        LocalMemory.open(other.path) as other,
        pytest.raises(EncoderMismatchError),
    ):
        other.copy_to(foreign)


def hashable(row):
    return (*row[:4], repr(row[4]), *row[5:])


@settings(max_examples=60, deadline=None)
@given(
    where=st.builds(
        lambda categories, metadata: (categories, metadata),
        st.one_of(st.none(), st.lists(st.sampled_from([f"class {i}" for i in range(5)]), max_size=3)),
        st.dictionaries(
            st.sampled_from(["n", "even", "kind", "none", "absent"]),
            st.one_of(
                st.sampled_from([1, 1.0, True, False, None, "a", 7]),
                st.lists(st.one_of(st.integers(0, 40), st.sampled_from(["a", "b", True, None])), max_size=3),
            ),
            max_size=2,
        ),
    ),
    k=st.integers(1, 60),
)
def test_filters_mean_the_same_as_leaving_entries_out(shared_memory, where, k):
    memory, vectors = shared_memory
    categories, metadata = where
    query = Where(categories=categories, metadata=metadata)
    entries = [
        entry
        for entry in memory.entries(modality="image")
        if (categories is None or entry.category in categories) and query.meets(entry.metadata)
    ]
    assert [e.id for e in memory.entries(modality="image", metadata=metadata) if e in entries] == [
        e.id for e in entries
    ]
    hits = memory.nearest(vectors[:4], k, modality="image", where=query)
    scores = vectors[:4] @ memory.vectors([entry.id for entry in entries]).T
    for row in range(4):
        found = [i for i in hits.ids[row].tolist() if i >= 0]
        assert set(found) <= {entry.id for entry in entries}
        assert len(found) == min(k, len(entries))
        np.testing.assert_allclose(
            hits.similarities[row, : len(found)], np.sort(scores[row])[::-1][: len(found)], atol=1e-5
        )


@pytest.fixture(scope="module")
def shared_memory(tmp_path_factory):
    with LocalMemory.create(tmp_path_factory.mktemp("shared") / "memory", encoder=ENCODER) as memory:
        vectors = filled(memory)
        yield memory, vectors


@pytest.mark.parametrize("wrong", [{"n": [1, {"a": 2}]}, {"n": float("nan")}, {1: 2}, {"n": {"from": 3}}], ids=repr)
def test_conditions_that_cannot_be_asked_are_refused(memory, wrong):
    with pytest.raises(OptionError, match="metadata conditions"):
        list(memory.entries(metadata=wrong))
    with pytest.raises(OptionError, match="sequence of names"):
        Where(categories="birds")
