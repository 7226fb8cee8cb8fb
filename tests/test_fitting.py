"""Fitting on a memory: what is asked, what is fitted, where it is kept, and what becomes of bad rankers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import rarvision as rv
from rarvision.calibration import (
    Calibration,
    Evidence,
    fit_gate,
    fit_mix,
    fit_unknown,
    logistic_regression,
    mixed_log_probs,
)
from rarvision.errors import ImageError, InputError, MemoryEmptyError, OptionError
from rarvision.memory import LocalMemory
from rarvision.ranking import BaseRanker
from rarvision.retrieval import Retriever
from rarvision.testing import FakeEncoder
from rarvision.types import Ranking, Sample

K = 5


# Mathematics ----------------------------------------------------------------------------------------------------------


def world(n, *, scale, weight, seed=0, foreign=0):
    """Answers that a known mix would be the best reading of."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n + foreign):
        similarities = np.sort(0.6 + 0.03 * rng.standard_normal(K))[::-1]
        scores = rng.standard_normal(K) * 3
        logits = scale * similarities / Calibration().prior_temperature + weight * scores
        shares = np.exp(logits - logits.max())
        truth = int(rng.choice(K, p=shares / shares.sum()))
        order = tuple(int(j) for j in np.argsort(-scores))
        found.append(
            Evidence(
                similarities=tuple(similarities.tolist()),
                order=order,
                log_scores=tuple(scores.tolist()),
                truth=truth if i < n else None,
                foreign=i >= n,
            )
        )
    return found


@pytest.mark.parametrize(("scale", "weight"), [(1.0, 1.0), (0.3, 0.5), (2.0, 0.0), (0.1, 2.0)])
def test_the_mix_that_made_the_answers_is_found(scale, weight):
    fit = fit_mix(world(3_000, scale=scale, weight=weight), Calibration())
    assert fit.status == "fitted"
    assert fit.scale == pytest.approx(scale, rel=0.3, abs=0.05)
    assert fit.weight == pytest.approx(weight, rel=0.15, abs=0.05)
    assert fit.log_loss <= fit.default_log_loss + 0.01
    mixed, alone = fit.applied(Calibration())
    assert mixed.ranker_weight == fit.weight
    assert mixed.prior_temperature == pytest.approx(Calibration().prior_temperature / fit.scale)
    assert alone.fitted
    assert mixed.fitted


def test_few_answers_change_little_and_none_nothing():
    strange = world(4, scale=0.1, weight=3.0)
    few, many = (fit_mix(strange * times, Calibration()) for times in (1, 200))
    assert abs(few.weight - 1.0) < abs(many.weight - 1.0)
    nothing = fit_mix([], Calibration())
    assert (nothing.status, nothing.weight, nothing.scale) == ("unfitted", 1.0, 1.0)
    assert nothing.applied(Calibration())[0] == Calibration()


def test_placed_answers_tell_of_the_ranker_alone():
    placed = [
        Evidence(similarities=e.similarities, order=e.order, log_scores=e.log_scores, truth=e.truth, placed=True)
        for e in world(2_000, scale=0.0, weight=0.4)
    ]
    fit = fit_mix(placed, Calibration())
    assert (fit.status, fit.scale) == ("partial", 1.0)
    assert fit.weight == pytest.approx(0.4, rel=0.15)


def test_logistic_regression_agrees_with_a_slow_rewrite():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 3)) * [1.0, 5.0, 0.1] + [0.0, 3.0, -1.0]
    outcomes = rng.random(400) < 1 / (1 + np.exp(-(0.5 + rows @ [1.0, -0.3, 4.0])))
    weights = rng.random(400) + 0.1
    got = logistic_regression(rows, outcomes, weights)
    weights = weights * (400 / weights.sum())
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    beta = np.zeros(4)
    for _ in range(20_000):  # plain gradient ascent
        shares = 1 / (1 + np.exp(-(beta[0] + standard @ beta[1:])))
        error = weights * (outcomes - shares)
        beta += 0.005 * np.concatenate(([error.sum()], standard.T @ error - beta[1:]))
    slopes = beta[1:] / rows.std(axis=0)
    np.testing.assert_allclose(got, [beta[0] - slopes @ rows.mean(axis=0), *slopes], rtol=1e-3)


def test_a_column_that_does_not_vary_is_harmless():
    rows = np.stack([np.ones(50), np.linspace(-1, 1, 50)], axis=1)
    found = logistic_regression(rows, rows[:, 1] > 0.1)
    assert found[1] == 0.0
    assert np.isfinite(found).all()


def test_unknown_is_calibrated_for_the_share_that_is_expected():
    rng = np.random.default_rng(1)
    evidence = []
    for foreign in (False, True):
        for _ in range(1_000):
            top = (0.6 if foreign else 0.8) + 0.06 * rng.standard_normal()
            rest = 0.5 + 0.02 * rng.standard_normal(4)
            evidence.append(
                Evidence(
                    similarities=(top, *np.sort(rest)[::-1].tolist()),
                    order=None,
                    log_scores=None,
                    truth=None if foreign else 0,
                    foreign=foreign,
                )
            )
    for share in (0.1, 0.5):
        fitted, stated = fit_unknown(evidence, Calibration(), use_ranker=False, foreign_share=share)
        flags = np.array([e.foreign for e in evidence])
        mean = share * stated[flags].mean() + (1 - share) * stated[~flags].mean()
        assert mean == pytest.approx(share, abs=0.03), "stated on average as often as it happens"
        assert fitted.reject_above is not None
        assert (stated[~flags] < fitted.reject_above).mean() == pytest.approx(0.95, abs=0.01)
    with pytest.raises(OptionError, match="foreign_share"):
        fit_unknown(evidence, Calibration(), use_ranker=False, foreign_share=0.0)


def test_the_gate_asks_where_retrieval_is_unsure():
    rng = np.random.default_rng(2)
    evidence = []
    for i in range(600):
        sure = i % 2 == 0
        margin = 0.2 if sure else 0.005
        truth = 0 if sure or rng.random() < 0.4 else int(rng.integers(1, K))
        scores = np.full(K, -6.0)
        scores[truth] = 0.0
        similarities = (0.8, *(0.8 - margin - 0.01 * np.arange(K - 1)).tolist())
        evidence.append(
            Evidence(
                similarities=similarities,
                order=tuple(int(j) for j in np.argsort(-scores)),
                log_scores=tuple(scores.tolist()),
                truth=truth,
            )
        )
    mixed = alone = Calibration()
    gate, curve, reason = fit_gate(evidence, mixed, alone, target=0.99)
    assert reason is None
    assert gate.call_rate == pytest.approx(0.5, abs=0.02)
    assert gate.gain_kept >= 0.99
    assert curve.call_rate[0] == 0.0
    assert curve.call_rate[-1] == 1.0
    assert curve.accuracy[-1] == 1.0
    for each, asked in ((evidence[0], False), (evidence[1], True)):
        prior = mixed_log_probs(each.similarities, None, None, alone)
        assert (gate.sureness(each.similarities, prior) < gate.threshold) is asked
    gate, curve, reason = fit_gate([replace(e, log_scores=(0.0,) * K) for e in evidence], mixed, alone)
    assert reason == "asking the ranker gains nothing here"
    assert (gate.threshold, gate.call_rate) == (0.0, 0.0)
    assert fit_gate(evidence[:20], mixed, alone)[2] == "20 images, of which retrieval knows 14, are too few to tell"


# On a memory ----------------------------------------------------------------------------------------------------------


class Oracle(BaseRanker):
    """Knows a colour when it sees it, as often as it is told to; else any other."""

    def __init__(self, right=1.0, name="oracle"):
        self._right = right
        self._name = name
        self.asked = 0

    name = property(lambda self: self._name)

    def _rank_distinct(self, images, names):
        rankings = []
        for image, candidates in zip(images, names, strict=True):
            self.asked += 1
            seen = "c" + str(image.getpixel((0, 0))[2])
            rng = np.random.default_rng(image.getpixel((0, 0)))
            scores = rng.standard_normal(len(candidates))
            if seen in candidates and rng.random() < self._right:
                scores[candidates.index(seen)] += 8.0
            order = tuple(int(i) for i in np.argsort(-scores))
            rankings.append(Ranking(order=order, log_scores=tuple(scores.tolist()), strategy="oracle"))
        return rankings


def pictures(classes, shots, folder):
    samples = []
    for c in range(classes):
        for n in range(shots):
            rng = np.random.default_rng([c, n])
            pixels = np.random.default_rng(c).integers(0, 256, (12, 12, 3)).astype(np.int64)
            pixels = np.clip(pixels + rng.integers(-110, 110, (12, 12, 3)), 0, 255).astype(np.uint8)
            pixels[0, 0] = (n, 7, c)
            path = folder / f"{c}-{n}.png"
            Image.fromarray(pixels).save(path)
            samples.append(Sample(source=str(path), image=path, label=f"c{c}"))
    return samples


@pytest.fixture
def memory(tmp_path):
    (tmp_path / "images").mkdir()
    with LocalMemory.create(tmp_path / "memory", encoder=FakeEncoder(dim=24)) as made:
        made.add(pictures(12, 5, tmp_path / "images"))
        yield made


def test_a_fit_is_kept_and_found_again(memory, tmp_path):
    recognizer = rv.Recognizer(memory, ranker=Oracle(0.9), k=4)
    assert recognizer.fit == "unfitted"
    done = []
    fit = rv.fit_recognizer(recognizer, images=40, progress=lambda *counts: done.append(counts))
    assert done[-1] == (60, 60)
    assert fit.mix.status == "fitted"
    assert fit.mix.images <= 40
    assert recognizer.fit == "fitted"
    again = rv.Recognizer(memory, ranker=Oracle(0.9), k=4)
    assert (again.fit, again.settings["ranker_weight"]) == ("fitted", fit.mixed.ranker_weight)
    assert again.recognize(tmp_path / "images" / "3-1.png").fit == "fitted"
    for other in (
        rv.Recognizer(memory, ranker=Oracle(0.9, name="another"), k=4),
        rv.Recognizer(memory, ranker=Oracle(0.9), k=3),
        rv.Recognizer(memory, ranker=Oracle(0.9), retriever=Retriever(memory, k=4, aggregate="nearest")),
        rv.Recognizer(memory, ranker=Oracle(0.9), k=4, views="flip"),
        rv.Recognizer(memory, ranker=Oracle(0.9), k=4, fit=None),
    ):
        assert other.fit == "unfitted"
    assert rv.Recognizer(memory, ranker=Oracle(0.9), k=4, calibration=Calibration()).fit == "given"
    assert rv.RankerFit.from_dict(json.loads(json.dumps(fit.to_dict()))) == fit
    with pytest.raises(OptionError, match="other settings"):
        rv.Recognizer(memory, k=4, fit=fit)
    memory.add_texts(["something new"])
    assert again.fit == "stale"
    assert again.recognize(tmp_path / "images" / "3-1.png").fit == "stale"
    rv.fit_recognizer(again, images=40)
    assert again.fit == "fitted"
    memory.close()
    with LocalMemory.open(tmp_path / "memory", encoder=FakeEncoder(dim=24)) as opened:
        assert opened.verify() == ()
        assert rv.Recognizer(opened, ranker=Oracle(0.9), k=4).fit == "fitted"


def test_a_ranker_that_answers_at_random_is_not_listened_to(memory):
    fit = rv.fit_recognizer(rv.Recognizer(memory, ranker=Oracle(0.0), k=4), images=60)
    assert fit.mixed.ranker_weight < 0.2
    assert fit.mix.mixed >= fit.mix.retrieval - 0.05


def test_one_image_a_category_tells_of_the_ranker(tmp_path):
    (tmp_path / "images").mkdir()
    with LocalMemory.create(tmp_path / "memory", encoder=FakeEncoder(dim=24)) as memory:
        memory.add(pictures(40, 1, tmp_path / "images"))
        good, bad = (
            rv.fit_recognizer(rv.Recognizer(memory, ranker=Oracle(right, name=str(right)), k=4)) for right in (1.0, 0.0)
        )
    assert good.mix.status == bad.mix.status == "partial"
    assert good.mix.placed == 40
    assert good.mixed.ranker_weight > 0.5
    assert bad.mixed.ranker_weight < 0.3


def test_one_image_a_category_and_names_tell_of_retrieval_too(tmp_path):
    (tmp_path / "images").mkdir()
    with LocalMemory.create(tmp_path / "memory", encoder=FakeEncoder(dim=24)) as memory:
        memory.add(pictures(40, 1, tmp_path / "images"))
        memory.add_texts([f"c{n}" for n in range(40)])
        fit = rv.fit_recognizer(rv.Recognizer(memory, ranker=Oracle(1.0), k=4))
    assert fit.mix.status == "partial"
    assert fit.mix.placed == 0
    assert 0 < fit.mix.images < 40, "those whose name is among the four nearest to a random vector"
    assert fit.mix.retrieval < 0.6
    assert fit.mix.ranker == 1.0
    assert fit.gate is None
    assert "one image" in fit.gate_reason


def test_a_memory_of_names_gives_the_shipped_parameters(tmp_path):
    with LocalMemory.create(tmp_path / "memory", encoder=FakeEncoder(dim=24)) as memory:
        with pytest.raises(MemoryEmptyError, match="empty"):
            rv.fit_recognizer(rv.Recognizer(memory, k=4))
        memory.add_texts(["a", "b", "c"])
        recognizer = rv.Recognizer(memory, ranker=Oracle(), k=2)
        fit = rv.fit_recognizer(recognizer)
        assert fit.mix.status == "unfitted"
        assert fit.mixed == Calibration()
        assert recognizer.fit == "unfitted"


def test_answers_are_kept_and_gone_on_with(memory, tmp_path):
    ranker = Oracle(0.9)
    recognizer = rv.Recognizer(memory, ranker=ranker, k=4)

    def stop(done, _all):
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rv.fit_recognizer(recognizer, images=40, out=tmp_path / "answers.jsonl", progress=stop)
    asked = ranker.asked
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"question": "cut o')
    fit = rv.fit_recognizer(recognizer, images=40, out=tmp_path / "answers.jsonl")
    assert ranker.asked == asked + 60 - 32
    assert fit == rv.fit_recognizer(recognizer, images=40, keep=False)
    with pytest.raises(InputError, match="another ranker"):
        rv.fit_recognizer(rv.Recognizer(memory, ranker=ranker, k=3), out=tmp_path / "answers.jsonl")
    (tmp_path / "wrong.jsonl").write_text("hello\n")
    with pytest.raises(InputError, match="not the answers"):
        rv.fit_recognizer(recognizer, out=tmp_path / "wrong.jsonl")


def test_answers_to_other_lists_are_not_taken(tmp_path):
    (tmp_path / "images").mkdir()
    with LocalMemory.create(tmp_path / "memory", encoder=FakeEncoder(dim=24)) as memory:
        memory.add(pictures(40, 1, tmp_path / "images"))
        recognizer = rv.Recognizer(memory, ranker=Oracle(1.0), k=4)
        rv.fit_recognizer(recognizer, out=tmp_path / "answers.jsonl", seed=0)
        again = rv.fit_recognizer(recognizer, out=tmp_path / "answers.jsonl", seed=1)  # other places of the true name
    assert again.mix.ranker == 1.0


def test_a_file_that_is_something_else_is_left_alone(memory, tmp_path):
    for content in (b"my precious notes", b"one\ntwo\n", b"\xff\xfe\n"):
        (tmp_path / "notes").write_bytes(content)
        with pytest.raises(InputError, match="not the answers"):
            rv.fit_recognizer(rv.Recognizer(memory, ranker=Oracle(), k=4), out=tmp_path / "notes")
        assert (tmp_path / "notes").read_bytes() == content


@pytest.mark.parametrize("wrong", [{"foreign_share": 0.0}, {"accepted": 95}, {"target": 2.0}, {"images": 0}])
def test_options_are_checked_before_anything_is_asked(memory, wrong):
    ranker = Oracle()
    with pytest.raises(OptionError):
        rv.fit_recognizer(rv.Recognizer(memory, ranker=ranker, k=4), **wrong)
    assert ranker.asked == 0


def test_an_image_that_the_mllm_refuses_costs_itself(memory):
    class Picky(BaseRanker):
        name = "picky"

        def _rank_distinct(self, images, names):
            if any(image.getpixel((0, 0))[0] == 2 for image in images):
                raise ImageError("too odd")
            return Oracle(0.9)._rank_distinct(images, names)

    fit = rv.fit_recognizer(rv.Recognizer(memory, ranker=Picky(), k=4), images=60)
    assert fit.missing > 0
    assert fit.asked + fit.missing == 90
    assert fit.mix.status == "fitted"


def test_a_few_pairs_among_many_singles(tmp_path):
    (tmp_path / "images").mkdir()
    samples = pictures(40, 1, tmp_path / "images")
    samples += [s for s in pictures(1, 2, tmp_path / "images") if s.source.endswith("0-1.png")]
    with LocalMemory.create(tmp_path / "memory", encoder=FakeEncoder(dim=24)) as memory:
        memory.add(samples)
        fit = rv.fit_recognizer(rv.Recognizer(memory, ranker=Oracle(0.0), k=4))
    assert fit.mix.status == "partial"
    assert fit.mixed.ranker_weight < 0.3


def test_categories_without_a_name_are_no_trouble(memory):
    memory.add_texts([f"c{n}" for n in range(11)])
    found = Retriever(memory, k=4, source="text").retrieve_left_out(memory.table("image")[0], foreign=True)
    own = [entry.category for entry in memory.entries(modality="image")]
    assert all(name not in {c.category for c in each} for name, each in zip(own, found, strict=True))
    fit = rv.fit_recognizer(rv.Recognizer(memory, ranker=Oracle(), retriever=Retriever(memory, k=4, source="text")))
    assert fit.mix.status == "fitted"


def test_without_a_ranker_the_unknown_is_fitted(memory, tmp_path):
    fit = rv.fit_recognizer(rv.Recognizer(memory, k=4), images=60)
    assert json.loads(json.dumps(fit.to_dict(), allow_nan=False))["mix"]["ranker"] is None
    assert rv.Recognizer(memory, k=4, reject=True).recognize(tmp_path / "images" / "3-1.png").answer == "c3"


def test_a_kept_fit_that_cannot_be_read_is_none(memory, caplog):
    recognizer = rv.Recognizer(memory, ranker=Oracle(0.9), k=4)
    rv.fit_recognizer(recognizer, images=40)
    (name,) = memory.notes()
    for text in ("not JSON", json.dumps({"key": 1})):
        memory.set_note(name, text)
        assert rv.Recognizer(memory, ranker=Oracle(0.9), k=4).fit == "unfitted"
        assert "cannot be read" in caplog.text
        caplog.clear()
    rv.fit_recognizer(recognizer, images=40)
    assert recognizer.fit == "fitted"


def test_what_was_asked_is_what_was_fitted_on(memory, tmp_path):
    recognizer = rv.Recognizer(memory, ranker=Oracle(0.9), k=4)
    rv.fit_recognizer(
        recognizer, images=40, progress=lambda done, _all: done == 32 and memory.add_texts(["added meanwhile"])
    )
    assert recognizer.fit == "stale"


def test_a_gate_stays_when_the_memory_gets_a_fit_without_one(memory, tmp_path, caplog):
    ranker = Oracle(0.95)
    rv.fit_recognizer(rv.Recognizer(memory, ranker=ranker, k=4), images=60)
    gated = rv.Recognizer(memory, ranker=ranker, k=4, gate=True, reject=True)
    for name in memory.notes():
        memory.set_note(name, None)
    assert gated.recognize(tmp_path / "images" / "3-1.png").fit == "stale"
    assert "is not taken" in caplog.text


def test_images_come_from_their_source_or_the_thumbnail(memory, tmp_path):
    bare = LocalMemory.create(tmp_path / "bare", encoder=FakeEncoder(dim=24), thumbnails=None)
    bare.add(pictures(12, 5, tmp_path / "images"))
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"something else")
    assert rv.fit_recognizer(rv.Recognizer(memory, ranker=Oracle(0.9), k=4), images=40, keep=False).mix.images > 30
    recognizer = rv.Recognizer(bare, ranker=Oracle(0.9), k=4)
    with pytest.raises(ImageError, match="no thumbnails"):
        rv.fit_recognizer(recognizer, images=40)
    given = rv.fit_recognizer(
        recognizer, images=40, open_image=lambda entry: Image.new("RGB", (4, 4), (0, 7, int(entry.category[1:])))
    )
    assert given.mix.images > 30


def test_gate_and_unknown_need_a_fit(memory, tmp_path):
    photo = tmp_path / "images" / "3-1.png"
    with pytest.raises(OptionError, match="rarvision fit"):
        rv.Recognizer(memory, ranker=Oracle(0.9), k=4, gate=True)
    with pytest.raises(OptionError, match="rarvision fit"):
        rv.Recognizer(memory, ranker=Oracle(0.9), k=4, reject=True)
    for wrong in ({"gate": 1.5}, {"reject": 0.0}, {"gate": -1.0}):
        with pytest.raises(OptionError, match="above 0 and at most 1"):
            rv.Recognizer(memory, ranker=Oracle(0.9), k=4, **wrong)
    assert rv.Recognizer(memory, ranker=Oracle(0.9), k=4, reject=1e-9).recognize(photo).answer is None
    assert rv.Recognizer(memory, ranker=Oracle(0.9), k=4).recognize(photo).answer == "c3"
    ranker = Oracle(0.95)
    fit = rv.fit_recognizer(rv.Recognizer(memory, ranker=ranker, k=4), images=60)
    assert fit.gate is not None, fit.gate_reason
    gated = rv.Recognizer(memory, ranker=ranker, k=4, gate=True, reject=True)
    ranker.asked = 0
    outcomes = gated.recognize_batch(sorted((tmp_path / "images").iterdir()))
    skipped = [o for o in outcomes if o.ranking.status == "skipped"]
    assert len(outcomes) - ranker.asked == len(skipped) > 0
    assert "the ranker is asked below" in skipped[0].ranking.reason
    assert skipped[0].label == skipped[0].retrieved[0]
    always = rv.Recognizer(memory, ranker=ranker, k=4, gate=1.0).settings["gate"]["call_rate"]
    assert always >= fit.gate.call_rate
