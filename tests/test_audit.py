"""The audit of the order: figures worked out by hand, files that resume, and corrections that it sees."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from colour_world import COLOURS, Pictures, ScriptedRanker, make_memory
from rarvision.audit import audit_order, random_orders
from rarvision.errors import ChatUnavailableError, DatasetError, InputError, OptionError
from rarvision.pipeline import RecognitionFailure, Recognizer
from rarvision.ranking import BaseRanker, Ranker
from rarvision.testing import FakeChat
from rarvision.types import Ranking

ORDERS = [[0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 2, 1]]


class FirstShownForRed(BaseRanker):
    """Takes the first that is shown for red pictures, and the name "b" for others."""

    name = "first for red"

    def __init__(self):
        self.asked = []

    def _rank_distinct(self, images, names):
        self.asked.append(len(images))
        out = []
        for image, shown in zip(images, names, strict=True):
            best = 0 if image.getpixel((0, 0)) == (255, 0, 0) else shown.index("b")
            order = (best, *(i for i in range(len(shown)) if i != best))
            out.append(Ranking(order=order, strategy=self.name))
        return out


@pytest.fixture
def memory(tmp_path):
    with make_memory(tmp_path / "memory") as made:
        yield made


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_figures_by_hand(monkeypatch):
    """Red: answers are the places 0 1 2 0, right in two orders; blue: always "b", which is right."""
    monkeypatch.setattr("rarvision.audit.random_orders", lambda *_, **__: ORDERS)
    audit = audit_order(
        FirstShownForRed(),
        Pictures(["red", "blue"], ["a", "b"]),
        candidates=[("a", "b", "c"), ("c", "b", "a")],
        orders=4,
    )
    assert (audit.n, audit.failures, audit.orders, audit.seed) == (2, 0, 4, 0)
    assert (audit.top1_mean, audit.top1_min, audit.top1_max) == (0.75, 0.5, 1.0)
    assert audit.changing == 0.5
    assert audit.agreement == pytest.approx((2 / 12 + 1) / 2)
    assert audit.picked == pytest.approx([5 / 8, 2 / 8, 1 / 8])
    assert audit.truth == pytest.approx([3 / 8, 3 / 8, 2 / 8])
    assert audit.right_at == pytest.approx([1.0, 2 / 3, 1 / 2])
    assert audit.statuses == {"ranked": 8, "repaired": 0, "fallback": 0}
    assert (audit.ranker, audit.dataset) == ("first for red", "pictures")


def test_a_truth_that_is_no_candidate_and_lists_of_different_lengths(monkeypatch):
    monkeypatch.setattr("rarvision.audit.random_orders", lambda _, n, **__: [list(range(n)), list(range(n))[::-1]])
    audit = audit_order(
        FirstShownForRed(), Pictures(["red", "blue"], ["z", "b"]), candidates=[("a", "c"), ("c", "b", "a")], orders=2
    )
    assert (audit.top1_mean, audit.changing, audit.agreement) == (0.5, 0.5, 0.5)
    assert audit.truth == pytest.approx([0.0, 0.5, 0.0])
    assert audit.right_at == (None, 1.0, None)
    assert audit.picked == pytest.approx([0.5, 0.5, 0.0])


def test_orders_are_drawn_from_seed_source_and_length():
    first = random_orders("a.png", 5, orders=20, seed=0)
    assert first == random_orders("a.png", 5, orders=20, seed=0)
    assert all(sorted(order) == list(range(5)) for order in first)
    assert len(first) == 20
    assert len({tuple(order) for order in first}) > 10
    others = [random_orders("b.png", 5, orders=20, seed=0), random_orders("a.png", 5, orders=20, seed=1)]
    assert all(other != first for other in others)
    places = np.array([order for number in range(200) for order in random_orders(f"{number}", 4, orders=20, seed=0)])
    assert np.abs((places[:, :, None] == np.arange(4)).mean(axis=0) - 0.25).max() < 0.03


def test_fallbacks_are_the_first_candidate_in_every_order():
    ranker = ScriptedRanker(status="fallback")
    audit = audit_order(ranker, Pictures(["red"], ["a"]), candidates=[("a", "b", "c")], orders=5)
    assert (audit.top1_mean, audit.changing, audit.statuses["fallback"]) == (1.0, 0.0, 5)


def test_a_recognizer_is_audited_with_what_retrieval_thinks(memory):
    class FirstShown(BaseRanker):
        name = "first shown"

        def _rank_distinct(self, images, names):
            return [
                Ranking(order=tuple(range(len(n))), log_scores=(1.0, *(0.0,) * (len(n) - 1)), strategy=self.name)
                for n in names
            ]

    pictures = Pictures(COLOURS)
    alone = audit_order(Recognizer(memory, ranker=FirstShown(), k=4, ranker_weight="replace"), pictures)
    assert alone.picked == (1.0, 0.0, 0.0, 0.0)
    assert alone.changing == 1.0
    assert alone.truth == pytest.approx([0.25] * 4, abs=0.12)
    assert alone.top1_min < 0.6
    ignored = audit_order(Recognizer(memory, ranker=FirstShown(), k=4, ranker_weight=0.0), pictures)
    assert (ignored.top1_mean, ignored.top1_min, ignored.changing, ignored.agreement) == (1.0, 1.0, 0.0, 1.0)


def test_an_image_is_opened_and_encoded_once(memory, monkeypatch):
    encoder, seen = memory.encoder, []
    encode = encoder.encode_images
    monkeypatch.setattr(encoder, "encode_images", lambda images, **options: seen.append(len(images)) or
                        encode(images, **options))  # fmt: skip
    pictures, ranker = Pictures(COLOURS), ScriptedRanker()
    audit_order(Recognizer(memory, ranker=ranker, k=4, batch_size=4), pictures, orders=7)
    assert pictures.opened == list(range(6))
    assert seen == [4, 2]
    assert ranker.batches == [28, 14]


def test_reordered_predictions_say_what_was_shown(memory):
    recognizer = Recognizer(memory, ranker=ScriptedRanker("white"), k=3)
    asked = []

    def turn(source, n):
        asked.append((source, n))
        return [range(n), range(n)[::-1]]

    ((first, second),) = recognizer.iter_reordered(Pictures(["red"]), turn)
    assert asked == [("0:red", 3)]
    assert second.retrieved == first.retrieved[::-1]
    assert (first.label, second.label) == (recognizer.recognize(Pictures(["red"])[0]).label,) * 2
    failed, good = recognizer.iter_reordered([b"no image", *Pictures(["red"])], turn)
    assert isinstance(failed, RecognitionFailure)
    assert len(good) == 2


@pytest.mark.parametrize("strategy", ["choice", "likelihood"])
def test_both_corrections_take_the_bias_out(memory, strategy):
    """A model that knows what it sees, by less than it prefers the first letter."""

    def score(request, name):
        return -20.0 + (1.0 if request.images[0].getpixel((0, 0)) == Pictures([name])[0].image.getpixel((0, 0)) else 0)

    chat = FakeChat(score, place_bias=(3.0, 0.0, 0.0, 1.0))

    def audit(**options):
        ranker = options.pop("ranker", None) or Ranker(chat, strategy=strategy, **options)
        return audit_order(Recognizer(memory, ranker=ranker, k=4, ranker_weight="replace"), Pictures(COLOURS))

    plain = audit()
    assert plain.changing == 1.0
    assert plain.picked[0] > 0.9
    recognizer = Recognizer(memory, ranker=Ranker(chat, strategy=strategy), k=4)
    prior = recognizer.estimate_bias(Pictures(["red", "blue"], broken=[1]))
    assert prior.images == {4: 1}
    for corrected in (audit(permutations="all"), audit(bias=prior)):
        assert (corrected.changing, corrected.top1_mean, corrected.agreement) == (0.0, 1.0, 1.0)
        np.testing.assert_allclose(corrected.picked, corrected.truth)


def test_estimating_needs_a_ranker_with_a_chat(memory):
    for ranker in (None, ScriptedRanker()):
        with pytest.raises(OptionError, match="is a Ranker's"):
            Recognizer(memory, ranker=ranker).estimate_bias(Pictures(["red"]))


def test_another_ranker_keeps_all_else(memory):
    first = Recognizer(memory, ranker=ScriptedRanker(), k=3, ranker_weight=0.5, allow_fallback=True, views="flip")
    other = first.with_ranker(None)
    assert other.settings == {**first.settings, "ranker": None}


def test_forms_of_the_audit(memory):
    audit = audit_order(Recognizer(memory, ranker=ScriptedRanker(), k=3), Pictures(COLOURS), orders=3, seed=5)
    values = json.loads(audit.to_json())
    assert values == json.loads(json.dumps(audit.to_dict()))
    assert values["configuration"]["audit"] == {"orders": 3, "seed": 5}
    assert values["picked"] == list(audit.picked)
    rows = dict(audit.table())
    assert rows["orders"] == "3 (seed 5)"
    assert rows["ranker"] == "scripted"
    assert {"place 1", "place 3", "answers that change", "agreement"} <= set(rows)
    assert len(audit.to_markdown().splitlines()) == len(rows) + 2


class StopError(Exception):
    pass


def test_an_interrupted_audit_resumes(memory, tmp_path):
    out = tmp_path / "deep" / "audit.jsonl"
    recognizer = Recognizer(memory, ranker=ScriptedRanker(), k=3, batch_size=2, ranker_weight="replace")
    whole = audit_order(recognizer, Pictures(COLOURS), orders=4)

    def stop(done, _):
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        audit_order(recognizer, Pictures(COLOURS), orders=4, out=out, progress=stop)
    assert len(lines(out)) == 4
    with out.open("a") as file:
        file.write('{"source": "3:ye')
    again, seen = Pictures(COLOURS), []
    resumed = audit_order(recognizer, again, orders=4, out=out, progress=lambda *done: seen.append(done))
    assert seen == [(3, 6), (4, 6), (5, 6), (6, 6)]
    assert again.opened == [3, 4, 5]
    assert resumed == whole
    header, first, *_ = lines(out)
    assert header["configuration"]["audit"] == {"orders": 4, "seed": 0}
    assert first["orders"] == random_orders("0:red", 3, orders=4, seed=0)
    assert len(set(first["answers"])) > 1 or "blue" in first["retrieved"]
    with pytest.raises(InputError, match="audit: "):
        audit_order(recognizer, Pictures(COLOURS), orders=5, out=out)
    assert audit_order(recognizer, Pictures(COLOURS), orders=5, out=out, resume=False).orders == 5


def test_a_bare_ranker_resumes_and_other_candidates_are_refused(tmp_path):
    out, pictures = tmp_path / "audit.jsonl", Pictures(["red", "blue"], ["a", "b"])
    names = [("a", "b", "c"), ("c", "b", "a")]
    first = audit_order(FirstShownForRed(), pictures, candidates=names, out=out)
    ranker = FirstShownForRed()
    assert audit_order(ranker, pictures, candidates=names, out=out) == first
    assert ranker.asked == []
    with pytest.raises(InputError, match="candidates: "):
        audit_order(ranker, pictures, candidates=[("a", "b"), ("c", "b", "a")], out=out)


def test_failures_and_silence_are_told_and_tried_again(memory, tmp_path):
    out = tmp_path / "audit.jsonl"

    def run(ranker, broken=()):
        pictures = Pictures(COLOURS, broken=broken)
        recognizer = Recognizer(memory, k=3, ranker=ranker, allow_fallback=True, batch_size=1)
        return audit_order(recognizer, pictures, orders=3, out=out), pictures.opened

    audit, _ = run(ScriptedRanker(failing=["red"], error=ChatUnavailableError), broken=[1])
    assert (audit.n, audit.failures) == (6, 1)
    assert lines(out)[1]["unanswered"] is True
    assert lines(out)[2]["error"].startswith("ImageError")
    audit, opened = run(ScriptedRanker())
    assert 0 in opened
    assert 1 in opened
    assert (audit.failures, audit.statuses["fallback"]) == (0, 0)


def test_a_broken_image_of_a_bare_ranker():
    audit = audit_order(
        FirstShownForRed(), Pictures(["red", "blue"], ["a", "b"], broken=[0]), candidates=[("a", "b")] * 2, orders=2
    )
    assert (audit.n, audit.failures, audit.top1_mean, audit.changing) == (2, 1, 0.5, 0.0)
    nothing = audit_order(FirstShownForRed(), Pictures(["red"], ["a"], broken=[0]), candidates=[("a", "b")], orders=2)
    assert (nothing.top1_mean, nothing.picked, nothing.agreement) == (0.0, (), 0.0)


def test_a_box_is_what_a_bare_ranker_sees():
    class Boxed(Pictures):
        @property
        def items(self):
            return [replace(item, box_xyxy=(0.0, 0.0, 8.0, 4.0)) for item in super().items]

    class Sizes(FirstShownForRed):
        def _rank_distinct(self, images, names):
            self.asked += [image.size for image in images]
            return super()._rank_distinct(images, names)

    ranker = Sizes()
    audit_order(ranker, Boxed(["red"], ["a"]), candidates=[("a", "b")], orders=2)
    assert (8, 4) in ranker.asked
    assert (16, 16) not in ranker.asked


def test_wrong_options(memory):
    pictures = Pictures(COLOURS)
    recognizer = Recognizer(memory, ranker=ScriptedRanker())
    with pytest.raises(OptionError, match="at least 2"):
        audit_order(recognizer, pictures, orders=1)
    with pytest.raises(OptionError, match="with a ranker"):
        audit_order(Recognizer(memory), pictures)
    with pytest.raises(OptionError, match="go with a bare ranker"):
        audit_order(recognizer, pictures, candidates=[COLOURS] * 6)
    with pytest.raises(OptionError, match="go with a bare ranker"):
        audit_order(ScriptedRanker(), pictures)
    with pytest.raises(InputError, match="6 images, 1 lists"):
        audit_order(ScriptedRanker(), pictures, candidates=[COLOURS])
    with pytest.raises(DatasetError, match="no images"):
        audit_order(recognizer, Pictures([]))
