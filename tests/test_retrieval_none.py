"""An MLLM without retrieval: every category is shown, in an order that tells nothing."""

from __future__ import annotations

import pytest

from colour_world import ScriptedRanker, make_memory, picture
from rarvision.errors import MemoryEmptyError, OptionError
from rarvision.memory import LocalMemory
from rarvision.pipeline import Recognizer
from rarvision.retrieval import Retriever
from rarvision.testing.encoders import FakeEncoder


@pytest.fixture
def memory(tmp_path):
    with make_memory(tmp_path / "memory") as made:
        yield made


def test_the_ranker_sees_every_name_sorted_and_decides_alone(memory):
    names = sorted(memory.categories())
    ranker = ScriptedRanker("blue")
    retriever = Retriever(memory, k=len(names), source="none")
    prediction = Recognizer(memory, ranker=ranker, retriever=retriever, ranker_weight="replace").recognize(
        picture("red")
    )
    assert list(prediction.retrieved) == names
    assert prediction.label == "blue"
    assert {candidate.similarity for candidate in prediction.candidates} == {0.0}


def test_exemplars_are_the_categories_own(memory):
    (found,) = Retriever(memory, k=99, source="none").retrieve(
        memory.encoder.encode_images([picture("red")], batch_size=1)
    )
    entries = {entry.id: entry.category for entry in memory.entries()}
    for candidate in found:
        assert candidate.exemplars
        assert {entries[each] for each in candidate.exemplars} == {candidate.category}


def test_too_small_a_k_is_refused(memory):
    with pytest.raises(OptionError, match=f"k must be at least {len(memory.categories())}, got 2"):
        Recognizer(memory, retriever=Retriever(memory, k=2, source="none")).recognize(picture("red"))


def test_nothing_is_scored(memory):
    with pytest.raises(OptionError, match="scores nothing"):
        Retriever(memory, k=99, source="none").retrieve_scored(memory.encoder.encode_images([picture("red")]))
    with pytest.raises(OptionError, match="leave aggregate"):
        Retriever(memory, k=99, source="none", aggregate="tip")


def test_an_empty_memory_has_nothing_to_show(tmp_path):
    encoder = FakeEncoder()
    with (
        LocalMemory.create(tmp_path / "empty", encoder=encoder) as empty,
        pytest.raises(MemoryEmptyError, match="holds nothing"),
    ):
        Recognizer(empty, retriever=Retriever(empty, k=9, source="none")).recognize(picture("red"))
