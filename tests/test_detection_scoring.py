"""Scores, suppression and presets against slow rewrites."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarvision.detection import (
    EVALUATOR_PRESETS,
    Category,
    Detections,
    Vocabulary,
    class_probabilities,
    evaluator_preset,
    nms_per_category,
    ranked_scores,
    top_pairs,
    top_scores,
)
from rarvision.errors import DatasetError, InputError, OptionError
from rarvision.regions import box_iou, to_xywh, to_xyxy


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def slow_nms(boxes, scores, iou, limit, min_score):
    kept = []
    for column in range(scores.shape[1]):
        alive = [r for r in np.argsort(-scores[:, column], kind="stable").tolist() if scores[r, column] > min_score]
        while alive:
            best = alive.pop(0)
            kept.append((-scores[best, column], best, column))
            alive = [r for r in alive if slow_iou(boxes[best], boxes[r]) <= iou]
    return [(row, column) for _, row, column in sorted(kept)][:limit]


def random_boxes(rng, n):
    corner = rng.integers(0, 12, (n, 2)).astype(float)
    return np.concatenate((corner, corner + rng.integers(0, 12, (n, 2))), axis=1)


@given(st.integers(0, 10_000), st.integers(0, 12), st.integers(1, 5), st.sampled_from([None, 1, 3, 7]))
def test_suppression_is_that_of_the_slow_loop(seed, n, c, limit):
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, n), rng.choice([0.0, 0.1, 0.5, 0.5, 0.9], (n, c))
    for iou in (0.0, 0.5, 1.0):
        rows, columns = nms_per_category(boxes, scores, iou=iou, limit=limit, min_score=0.05)
        assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == slow_nms(boxes, scores, iou, limit, 0.05)


def test_suppression_in_blocks():
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 60), rng.random((60, 150))
    rows, columns = nms_per_category(boxes, scores, iou=0.3)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == slow_nms(boxes, scores, 0.3, None, 0.0)


@given(st.integers(0, 10_000), st.sampled_from([None, 1, 5, 100]))
def test_top_pairs_break_ties_by_place(seed, limit):
    scores = np.random.default_rng(seed).choice([0.0, 0.25, 0.5, 0.75], (5, 4))
    expected = sorted((-scores[r, c], r, c) for r in range(5) for c in range(4) if scores[r, c] > 0.0)[:limit]
    rows, columns = top_pairs(scores, limit=limit)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(r, c) for _, r, c in expected]


def test_overlaps_and_forms():
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 20), random_boxes(rng, 9)
    assert box_iou(a, b) == pytest.approx(np.array([[slow_iou(x, y) for y in b] for x in a]))
    assert to_xyxy(to_xywh(a), notation="xywh", allow_empty=True).tolist() == a.tolist()


@pytest.mark.parametrize("background", [None, 0.0, 0.4])
def test_probabilities(background):
    similarities = np.random.default_rng(0).uniform(-0.2, 0.4, (6, 5))
    weights = np.exp(similarities / 0.05)
    total = weights.sum(1) + (0 if background is None else np.exp(background / 0.05))
    found = class_probabilities(similarities, temperature=0.05, background=background)
    assert found == pytest.approx(weights / total[:, None])
    assert np.isfinite(class_probabilities(similarities * 1000, background=background)).all()


@given(st.integers(0, 10_000))
def test_the_rankers_order_takes_retrievals_probabilities(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(8), 5)
    ranked = np.full((5, 4), -1)
    for row in range(5):
        length = rng.integers(0, 5)
        ranked[row, :length] = rng.permutation(8)[:length]
    before = probabilities.copy()
    scores, only = ranked_scores(probabilities, ranked), top_scores(probabilities, ranked)
    for row in range(5):
        names = [c for c in ranked[row].tolist() if c >= 0]
        expected = before[row].copy()
        for name, value in zip(names, sorted(before[row][names].tolist(), reverse=True), strict=True):
            expected[name] = value
        assert scores[row].tolist() == expected.tolist()
        best = names[0] if names else int(before[row].argmax())
        assert np.flatnonzero(only[row]).tolist() == [best]
        assert only[row, best] == expected[best]
    assert probabilities.tolist() == before.tolist()


def world(c=7, n=6, seed=0):
    rng = np.random.default_rng(seed)
    vocabulary = Vocabulary(Category(id=10 * i + 3, name=f"thing {i}") for i in range(c))
    return vocabulary, random_boxes(rng, n) + np.array([0, 0, 1, 1]), rng.uniform(0.1, 0.3, (n, c))


@pytest.mark.parametrize("name", EVALUATOR_PRESETS)
def test_presets_do_what_their_source_says(name):
    vocabulary, boxes, similarities = world()
    preset = replace(evaluator_preset(name), per_image=9)
    scores = preset.probabilities(similarities)
    found = preset.detections(5, boxes, scores, vocabulary=vocabulary)
    if name in ("lvis", "regionspot"):
        expected = sorted((-scores[r, c], r, c) for r in range(6) for c in range(7) if scores[r, c] > 0)[:9]
        expected = [(r, c) for _, r, c in expected]
    else:
        expected = slow_nms(boxes, scores, 0.5, 9, {"regionclip": 1e-4, "tokenize-anything": 1e-3}[name])
    assert found.category_ids.tolist() == [10 * c + 3 for _, c in expected]
    assert found.boxes_xyxy == pytest.approx(np.array([boxes[r] for r, _ in expected]))
    assert found.scores.tolist() == [scores[r, c] for r, c in expected]
    assert set(found.image_ids.tolist()) == {5}
    assert (scores.sum(1) < 1.0 - 1e-12).any() or name != "regionclip"


def test_presets_by_name():
    assert {name: preset.per_image for name, preset in EVALUATOR_PRESETS.items()} == {
        "lvis": 300,
        "regionclip": 300,
        "regionspot": 900,
        "tokenize-anything": 300,
    }
    with pytest.raises(OptionError, match="there are lvis, regionclip"):
        evaluator_preset("voc")


def test_objectness_weighs_scores():
    vocabulary, boxes, similarities = world()
    objectness = np.linspace(0.1, 0.9, 6)
    plain = evaluator_preset("lvis")
    scores = plain.probabilities(similarities)
    for how, expected in (
        ("product", scores * objectness[:, None]),
        ("geometric-mean", np.sqrt(scores * objectness[:, None])),
    ):
        preset = replace(plain, objectness=how)
        found = preset.detections(1, boxes, scores, vocabulary=vocabulary, objectness=objectness)
        assert found.scores == pytest.approx(np.sort(expected.ravel())[::-1])
        with pytest.raises(InputError, match="needs the objectness"):
            preset.detections(1, boxes, scores, vocabulary=vocabulary)


def test_no_boxes_no_detections():
    vocabulary, _, _ = world()
    for preset in EVALUATOR_PRESETS.values():
        scores = preset.probabilities(np.zeros((0, 7)))
        ranked = ranked_scores(scores, np.zeros((0, 5), dtype=np.int64))
        assert len(preset.detections(1, np.zeros((0, 4)), ranked, vocabulary=vocabulary)) == 0


def test_bad_input():
    vocabulary, boxes, similarities = world()
    preset = evaluator_preset("lvis")
    with pytest.raises(InputError, match="6 boxes x 7 categories"):
        preset.detections(1, boxes, similarities[:, :5], vocabulary=vocabulary)
    with pytest.raises(InputError, match="finite"):
        preset.detections(1, boxes, similarities * np.nan, vocabulary=vocabulary)
    with pytest.raises(InputError, match="finite"):
        class_probabilities(similarities * np.nan)
    with pytest.raises(OptionError, match="temperature"):
        class_probabilities(similarities, temperature=0.0)
    with pytest.raises(InputError, match="twice"):
        ranked_scores(similarities, np.full((6, 2), 3))
    with pytest.raises(InputError, match="lie in 0 to 6"):
        ranked_scores(similarities, np.full((6, 1), 7))
    with pytest.raises(InputError, match="after -1"):
        ranked_scores(similarities, np.tile([-1, 2], (6, 1)))
    with pytest.raises(InputError, match="as many rows"):
        ranked_scores(similarities, np.zeros((5, 1), dtype=np.int64))
    with pytest.raises(OptionError, match="iou"):
        nms_per_category(boxes, similarities, iou=1.5)
    with pytest.raises(OptionError, match="limit"):
        top_pairs(similarities, limit=0)
    fine = {"image_ids": np.array([1]), "category_ids": np.array([3]), "boxes_xywh": np.ones((1, 4))}
    with pytest.raises(DatasetError, match="score must be finite"):
        Detections(**fine, scores=np.array([np.inf]))
    with pytest.raises(DatasetError, match="no category has id 3"):
        Detections(**fine, scores=np.ones(1), vocabulary=Vocabulary([Category(id=1, name="x")]))
