"""Which image of the memory is the worked example, and what is said where none serves."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import rarvision as rv
from rarvision.errors import OptionError
from rarvision.memory import LocalMemory
from rarvision.ranking import NoExample, Ranker, WorkedExample
from rarvision.retrieval import Retriever
from rarvision.testing import FakeChat, FakeEncoder
from rarvision.types import Sample
from rarvision.worked import WorkedExamples


def plain(colour, size=(8, 8)):
    return Image.new("RGB", size, colour)


def samples(*, mistaken=2, each=3):
    """Plain colours; in the first categories one image that looks like the next one's."""
    rgb = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "yellow": (250, 250, 0)}
    names = list(rgb)
    for place, name in enumerate(names):
        for shot in range(each):
            wrong = place < mistaken and shot == each - 1
            colour = rgb[names[(place + 1) % len(names)] if wrong else name]
            yield Sample(source=f"{name} {shot}", image=plain(colour, (8 + shot, 9 + place)), label=name)


def made(path, found, texts=()):
    memory = LocalMemory.create(path, encoder=FakeEncoder(dim=24), thumbnails=16)
    memory.add(found)
    if texts:
        memory.add_texts(texts)
    return memory


@pytest.fixture
def memory(tmp_path):
    with made(tmp_path / "memory", samples()) as found:
        yield found


def entry_of(memory, example):
    """The entry whose thumbnail an example shows: all differ in size."""
    pictures = [(e, Image.open(io.BytesIO(memory.thumbnail(e.id)))) for e in memory.entries(modality="image")]
    (entry,) = [entry for entry, picture in pictures if picture.size == example.image.size]
    return entry


def test_examples_teach_more_than_copying(memory):
    retriever = Retriever(memory, k=4)
    entries = list(memory.entries())
    ids = [entry.id for entry in entries]
    found = dict(zip(ids, retriever.retrieve_left_out(np.array(ids)), strict=True))
    mistaken = [entry.id for entry in entries if found[entry.id][0].category != entry.category]
    assert 2 <= len(mistaken) < len(entries)
    examples = WorkedExamples(retriever)
    (first,) = examples.of([None])
    (second,) = examples.of([entry_of(memory, first).id])
    for example in (first, second):
        entry = entry_of(memory, example)
        assert entry.id in mistaken
        assert example.truth == entry.category
        assert example.candidates == tuple(candidate.category for candidate in found[entry.id])
    assert first is not second
    assert examples.of([None, entry_of(memory, second).id]) == [first, first], "the same object for all"


def test_else_what_retrieval_puts_first_serves(tmp_path):
    with made(tmp_path / "memory", samples(mistaken=0)) as memory:
        (example,) = WorkedExamples(Retriever(memory, k=3)).of([None])
        assert example.candidates[0] == example.truth


def test_the_choice_is_the_same_each_time_and_the_place_tells_nothing(memory):
    retriever = Retriever(memory, k=4)
    found = [WorkedExamples(retriever, seed=seed).of([None])[0] for seed in (*range(40), *range(40))]
    for one, again in zip(found[:40], found[40:], strict=True):
        assert (one.shown, one.truth, one.image.tobytes()) == (again.shown, again.truth, again.image.tobytes())
    assert {example.shown.index(example.truth) for example in found} == {0, 1, 2, 3}


def test_at_most_64_are_left_out_and_two_opened(tmp_path, monkeypatch):
    many = [Sample(source=f"{i}", image=plain((i, 0, 250 * (i % 2))), label="ab"[i % 2]) for i in range(200)]
    with made(tmp_path / "memory", many) as memory:
        retriever, asked_for, opened = Retriever(memory, k=2), [], []
        retrieve, entry_image = retriever.retrieve_left_out, rv.exemplars.entry_image
        monkeypatch.setattr(retriever, "retrieve_left_out", lambda ids: asked_for.append(len(ids)) or retrieve(ids))
        monkeypatch.setattr("rarvision.worked.entry_image", lambda *given: opened.append(given) or entry_image(*given))
        WorkedExamples(retriever).of([None])
        assert (asked_for, len(opened)) == ([64], 2)


def test_a_new_revision_is_a_new_choice(memory):
    examples = WorkedExamples(Retriever(memory, k=3))
    (first,) = examples.of([None])
    assert examples.of([None]) == [first]
    memory.remove(ids=[entry_of(memory, first).id])
    (second,) = examples.of([None])
    assert second.image.size != first.image.size
    assert examples.of([None]) == [second]


def test_threads_get_the_same_example(memory):
    examples = WorkedExamples(Retriever(memory, k=3))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: examples.of([None])[0], range(32)))
    assert len(set(map(id, found))) == 1


def test_an_image_that_is_gone_does_not_serve(tmp_path):
    files = []
    for number, name in enumerate(["red", "red", "green", "green"]):
        path = tmp_path / f"{number}.png"
        plain(name, (8 + number, 8)).save(path)
        files.append(Sample(source=str(path), image=path, label=name))
    with LocalMemory.create(tmp_path / "memory", encoder=FakeEncoder(dim=24), thumbnails=None) as memory:
        memory.add(files)
        for number in range(4):
            (example,) = WorkedExamples(Retriever(memory, k=2)).of([None])
            assert isinstance(example, WorkedExample), number
            (tmp_path / f"{example.image.width - 8}.png").unlink()
        (example,) = WorkedExamples(Retriever(memory, k=2)).of([None])
        assert "of 4 images of the memory none can still be opened" in example.reason


@pytest.mark.parametrize(
    ("found", "texts", "reason"),
    [
        ([], ["red", "green"], "the memory holds no images; add some"),
        (list(samples(each=1, mistaken=0)), [], "each of the memory's images is all that tells of its category"),
        (list(samples(each=1, mistaken=0)), ["red", "green", "blue", "yellow"], None),
        ([next(samples()), *list(samples(mistaken=0))[3:]], [], None),
    ],
)
def test_where_nothing_serves_rankings_say_why(tmp_path, found, texts, reason):
    with made(tmp_path / "memory", found, texts) as memory:
        chat = FakeChat({"red": -0.1, "green": -1.0})
        recognizer = rv.Recognizer(memory, ranker=Ranker(chat, strategy="choice", worked_example=True), k=3)
        ranking = recognizer.recognize(plain("red")).ranking
        if reason is None:
            assert (ranking.status, len(chat.calls[-1][1].messages)) == ("ranked", 3)
            return
        assert (ranking.status, len(chat.calls[-1][1].messages)) == ("repaired", 1)
        assert ranking.reason.startswith(f"asked without a worked example: {reason}")


@pytest.mark.parametrize("source", ["image", "text", "fused"])
def test_every_source_has_them(tmp_path, source):
    with made(tmp_path / "memory", samples(), ["red", "green", "blue", "yellow"]) as memory:
        (example,) = WorkedExamples(Retriever(memory, k=3, source=source)).of([None])
        assert example.candidates[0] != example.truth


def test_repeated_categories_cannot_be_left_out(memory):
    ranker = Ranker(FakeChat(), strategy="choice", worked_example=True)
    with pytest.raises(OptionError, match="distinct=True"):
        rv.Recognizer(memory, ranker=ranker, retriever=Retriever(memory, distinct=False, source="image"))


def test_the_memory_gives_the_example(memory):
    chat = FakeChat({"green": 0.0})
    recognizer = rv.Recognizer(memory, ranker=Ranker(chat, strategy="choice", permutations=2, worked_example=True), k=3)
    recognizer.recognize_batch([plain("red"), plain("blue")])
    assert len(chat.calls) == 4
    assert all(request.messages[0] == chat.calls[-1][1].messages[0] for _, request in chat.calls)
    example, answer = chat.calls[-1][1].messages[0].parts[-1], chat.calls[-1][1].messages[1].parts[0]
    assert re.search(rf"^{answer}\. (red|green)$", example, re.MULTILINE)
    list(recognizer.iter_reordered([plain("red")], lambda _source, n: [range(n), range(n)[::-1]]))
    assert len({tuple(map(id, request.images)) for _, request in chat.calls[4:]}) == 1
    prior = recognizer.estimate_bias([plain("red"), plain("green")])
    assert prior.asked["worked_example"] is True
    assert {len(request.messages) for _, request in chat.calls} == {3}


def test_fitting_never_shows_the_image_itself(memory):
    chat = FakeChat({"green": 0.0})
    recognizer = rv.Recognizer(memory, ranker=Ranker(chat, strategy="choice", worked_example=True), k=3)
    fit = rv.fit_recognizer(recognizer, images=12)
    examples = {request.images[0].size for _, request in chat.calls}
    assert len(examples) == 2, "the images that are the first example get the second"
    for _, request in chat.calls:
        assert len(request.images) == 2
        assert request.images[0].size != request.images[1].size
    assert recognizer.fit == "fitted"
    assert fit.settings["ranker"]["worked_example"] is True
    assert recognizer.with_ranker(Ranker(chat, strategy="choice")).fit == "unfitted", "it is another key"


def test_the_only_one_that_serves_is_not_shown_to_itself(tmp_path):
    found = [*list(samples(mistaken=0, each=2))[:2], *list(samples(mistaken=0, each=1))[1:]]
    with made(tmp_path / "memory", found) as memory:
        examples = WorkedExamples(Retriever(memory, k=3))
        (first,) = examples.of([None])
        memory.remove(ids=[entry_of(memory, examples.of([entry_of(memory, first).id])[0]).id])
        (alone,) = examples.of([None])
        assert isinstance(alone, NoExample), "one image a category is left"
    with made(tmp_path / "other", [found[0], *found[2:]], ["red"]) as memory:
        examples = WorkedExamples(Retriever(memory, k=3))
        (first,) = examples.of([None])
        (none,) = examples.of([entry_of(memory, first).id])
        assert "the one image of the memory that serves is the one that is asked about" in none.reason
