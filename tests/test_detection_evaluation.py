"""Average precision must be what the official evaluators say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from detection_world import official_coco, official_lvis, write_world
from needs import need
from rarvision.detection import (
    Detections,
    Vocabulary,
    evaluate_detections,
    evaluation,
    evaluator_preset,
    read_annotations,
    read_detections,
    write_detections,
)
from rarvision.errors import DatasetError, MissingExtraError, OptionError


@pytest.fixture(autouse=True, scope="module")
def _extra():
    need("faster_coco_eval", "msgspec", "pycocotools", "lvis", group="detection")


def assert_agrees(report, official, annotations):
    means, by_category = official
    ours = {name: -1.0 if value is None else value for name, value in report.metrics.items()}
    assert ours == pytest.approx(means, abs=1e-5)
    ids = annotations.vocabulary.ids.tolist()
    known = {id_: ap for id_, ap in zip(ids, by_category.tolist(), strict=True) if ap > -1}
    assert report.category_ap == pytest.approx(known, abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_lvis(seed, tmp_path, monkeypatch):
    truth, results = write_world(tmp_path, seed=seed)
    annotations = read_annotations(truth)
    report = evaluate_detections(annotations, read_detections(results))
    assert_agrees(report, official_lvis(monkeypatch, truth, results), annotations)
    assert 0.02 < report.ap < 0.98
    assert report.max_detections == 300


def test_agrees_with_lvis_where_its_limit_cuts_through_ties(tmp_path, monkeypatch):
    truth, results = write_world(tmp_path, seed=3, images=8, detections=900)
    rows = json.loads(results.read_text())
    for place, row in enumerate(rows):
        if place % 20:
            row["bbox"] = [600.0, 400.0, 5.0, 5.0]  # few hits, so that each counts that is cut off
    results.write_text(json.dumps(rows))
    annotations = read_annotations(truth)
    detections = read_detections(results)
    report = evaluate_detections(annotations, detections)
    assert_agrees(report, official_lvis(monkeypatch, truth, results), annotations)
    unlimited = evaluate_detections(annotations, detections, max_detections=10_000)
    assert unlimited.category_ap != report.category_ap


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("rules", "limit"), [("coco", 100), ("v3det", 300), ("coco", 3)])
def test_agrees_with_pycocotools(seed, rules, limit, tmp_path):
    truth, results = write_world(tmp_path, seed=seed, crowd=True)
    annotations = read_annotations(truth)
    assert annotations.crowd.any()
    report = evaluate_detections(annotations, read_detections(results), rules=rules, max_detections=limit)
    assert_agrees(report, official_coco(truth, results, limit=limit), annotations)
    assert report.ap_rare is None
    assert report == evaluate_detections(annotations, read_detections(results), rules=rules, max_detections=limit)


def test_limits_are_those_of_the_rules(tmp_path):
    truth, results = write_world(tmp_path, seed=1)
    annotations, detections = read_annotations(truth), read_detections(results)
    limits = [evaluate_detections(annotations, detections, rules=r).max_detections for r in ("lvis", "coco", "v3det")]
    assert limits == [300, 100, 300]


@pytest.mark.parametrize("rules", ["lvis", "coco"])
def test_parts_do_not_matter(rules, tmp_path, monkeypatch):
    truth, results = write_world(tmp_path, seed=5)
    annotations, detections = read_annotations(truth), read_detections(results)
    whole = evaluate_detections(annotations, detections, rules=rules)
    for rows, pairs in ((1, 1), (60, 400_000), (200_000, 20)):
        monkeypatch.setattr(evaluation, "_ROWS", rows)
        monkeypatch.setattr(evaluation, "_PAIRS", pairs)
        assert evaluate_detections(annotations, detections, rules=rules) == whole


@pytest.mark.parametrize("rules", ["lvis", "v3det"])
def test_no_detections_find_nothing(rules, tmp_path, monkeypatch):
    truth, results = write_world(tmp_path, seed=2)
    annotations = read_annotations(truth)
    results.write_text("[]")
    report = evaluate_detections(annotations, read_detections(results), rules=rules)
    lost = {"image_id": int(annotations.image_ids[0]), "category_id": int(annotations.vocabulary.ids[0])}
    results.write_text(json.dumps([lost | {"bbox": [0, 0, 1, 1], "score": 0.0}]))  # they cannot read an empty list
    official = (
        official_lvis(monkeypatch, truth, results) if rules == "lvis" else official_coco(truth, results, limit=300)
    )
    assert_agrees(report, official, annotations)
    assert report.ap == 0.0
    assert report.detections == 0


def test_perfect_detections_find_everything(tmp_path):
    truth, _ = write_world(tmp_path, seed=4)
    annotations = read_annotations(truth)
    detections = Detections(
        image_ids=annotations.image_ids[annotations.box_images],
        category_ids=annotations.category_ids,
        boxes_xywh=annotations.boxes_xywh,
        scores=np.ones(len(annotations.category_ids)),
        vocabulary=annotations.vocabulary,
    )
    report = evaluate_detections(annotations, detections, rules="coco", preset="ground truth")
    assert report.ap == pytest.approx(1.0)
    assert report.to_json()["preset"] == "ground truth"
    assert json.loads(json.dumps(report.to_json()))["category_ap"].keys() == {str(i) for i in report.category_ap}
    assert report.evaluator.startswith("faster-coco-eval 1")


@pytest.mark.data
def test_a_real_file_agrees_with_lvis(data_dir, tmp_path, monkeypatch):
    truth = data_dir / "lvis" / "lvis_v0.5_val_100.json"
    annotations = read_annotations(truth)
    rng = np.random.default_rng(0)
    rows = rng.integers(len(annotations.category_ids), size=3000)
    ids = np.where(rng.random(3000) < 0.8, annotations.category_ids[rows], rng.choice(annotations.vocabulary.ids, 3000))
    moved = annotations.boxes_xywh[rows] + rng.normal(size=(3000, 4)) * 10 * rng.random((3000, 1))
    detections = Detections(
        image_ids=annotations.image_ids[annotations.box_images[rows]],
        category_ids=ids,
        boxes_xywh=np.abs(moved),
        scores=rng.random(3000).round(2),
        vocabulary=annotations.vocabulary,
    )
    write_detections(tmp_path / "results.json", detections)
    report = evaluate_detections(annotations, detections)
    assert_agrees(report, official_lvis(monkeypatch, truth, tmp_path / "results.json"), annotations)
    assert report.images == 100
    assert 0.3 < report.ap < 0.9


@pytest.mark.data
def test_results_of_another_vocabulary_are_refused(data_dir):
    from rarvision.detection import read_vocabulary

    annotations = read_annotations(data_dir / "lvis" / "lvis_v0.5_val_100.json")
    other = read_vocabulary(data_dir / "lvis" / "lvis_v1_train_cat_info.json")
    detections = Detections(
        image_ids=annotations.image_ids[:1],
        category_ids=other.ids[:1],
        boxes_xywh=np.ones((1, 4)),
        scores=np.ones(1),
        vocabulary=other,
    )
    with pytest.raises(DatasetError, match=r"mixed: category 1 is 'aerosol_can'.*LVIS v1.*'acorn'.*LVIS v0\.5"):
        evaluate_detections(annotations, detections)
    with pytest.raises(DatasetError, match="mixed"):
        read_annotations(data_dir / "lvis" / "lvis_v0.5_val_100.json", vocabulary=other)


def test_bad_input(tmp_path, monkeypatch):
    truth, results = write_world(tmp_path, seed=0)
    annotations, detections = read_annotations(truth), read_detections(results)
    with pytest.raises(OptionError, match="rules"):
        evaluate_detections(annotations, detections, rules="voc")
    with pytest.raises(OptionError, match="at least 1"):
        evaluate_detections(annotations, detections, max_detections=0)

    def one(image_id, category_id):
        return Detections(
            image_ids=np.array([image_id]),
            category_ids=np.array([category_id]),
            boxes_xywh=np.ones((1, 4)),
            scores=np.ones(1),
        )

    with pytest.raises(DatasetError, match="image 7, which is not among the 12"):
        evaluate_detections(annotations, one(7, int(annotations.vocabulary.ids[0])))
    with pytest.raises(DatasetError, match="no category has id 9999"):
        evaluate_detections(annotations, one(int(annotations.image_ids[0]), 9999))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faster_coco_eval" else find(name))
    with pytest.raises(MissingExtraError, match=r"rarvision\[detection\]"):
        evaluate_detections(annotations, detections)


def test_from_similarities_to_a_report(tmp_path):
    """The whole way: similarities, the ranker's order, a preset, a results file, the average precision."""
    from rarvision.detection import Proposals, ranked_scores

    truth, _ = write_world(tmp_path, seed=6)
    annotations = read_annotations(truth)
    vocabulary: Vocabulary = annotations.vocabulary
    preset = evaluator_preset("regionclip")
    proposals = Proposals.from_annotations(annotations)
    rng = np.random.default_rng(0)
    aps = []
    for ranked_right in (False, True):
        parts = []
        for image in annotations:
            boxes = proposals.of(image.id).boxes_xyxy
            true = {tuple(box): column for box, column in zip(image.boxes_xyxy.tolist(), vocabulary.columns(image.category_ids), strict=True)}  # fmt: skip  # noqa: E501
            similarities = 0.2 + 0.02 * rng.random((len(boxes), len(vocabulary)))
            probabilities = preset.probabilities(similarities)
            ranked = np.argsort(-probabilities, axis=1)[:, :5]
            if ranked_right:
                for row, box in enumerate(boxes.tolist()):
                    rest = [c for c in ranked[row].tolist() if c != true[tuple(box)]]
                    ranked[row] = [true[tuple(box)], *rest][:5]
            scores = ranked_scores(probabilities, ranked)
            parts.append(preset.detections(image.id, boxes, scores, vocabulary=vocabulary))
        write_detections(tmp_path / "ours.json", Detections.concatenate(parts))
        detections = read_detections(tmp_path / "ours.json", vocabulary=vocabulary)
        aps.append(evaluate_detections(annotations, detections, preset=preset.name).ap)
    assert aps[1] > 0.6 > aps[0] + 0.1


def test_the_benchmark_runs_small(monkeypatch, capsys):
    path = Path(__file__).parent.parent / "benchmarks" / "detection.py"
    spec = importlib.util.spec_from_file_location("benchmark_detection", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(np, "float", float, raising=False)
    module.main(["--images", "200", "--categories", "60", "--detections", "30"])
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["difference"] < 1e-5
    assert figures["times faster, processor"] > 1
