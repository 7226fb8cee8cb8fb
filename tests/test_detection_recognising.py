"""All regions of an annotated set through the one pipeline: rows from one run, resuming, what fails."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("faster_coco_eval")
pytest.importorskip("msgspec")

import rarvision as rv
from colour_world import ScriptedRanker
from rarvision.detection import (
    RANKED,
    RANKED_TOP,
    RETRIEVAL,
    Proposals,
    RegionDataset,
    class_probabilities,
    evaluate_detections,
    evaluate_regions,
    evaluator_preset,
    ranked_scores,
    read_annotations,
    read_detections,
    top_scores,
    write_detections,
)
from rarvision.errors import ChatUnavailableError, DatasetError, InputError, OptionError
from rarvision.fitting import fit_recognizer
from rarvision.judging import fit_key
from rarvision.memory import LocalMemory
from rarvision.pipeline import Recognizer
from rarvision.regions import CropRule
from rarvision.retrieval import Retriever
from rarvision.testing import FakeEncoder
from rarvision.types import Sample

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 220), "black": (8, 8, 8), "white": (250,) * 3}
BOXES = [("red", (2, 2, 20, 18)), ("blue", (40, 5, 30, 30)), ("green", (5, 40, 24, 12)), ("black", (50, 50, 9, 9))]
PLAIN = CropRule(scale=1.0, shape="box", blur=None, padding="clip")


@pytest.fixture
def folder(tmp_path):
    """Four images, each with coloured boxes, annotated as LVIS is."""
    images, rows = [], []
    for number in range(4):
        picture = Image.new("RGB", (96, 72), (128, 128, 128))
        for name, (x, y, w, h) in BOXES[number:] + BOXES[: number // 2]:
            picture.paste(COLOURS[name], (x, y, x + w, y + h))
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": number + 10,
                    "category_id": [*COLOURS].index(name) + 3,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h]],
                }
            )
        picture.save(tmp_path / f"{number}.png")
        images.append(
            {
                "id": number + 10,
                "width": 96,
                "height": 72,
                "file_name": f"{number}.png",
                "neg_category_ids": [7],
                "not_exhaustive_category_ids": [],
            }
        )
    names = [{"id": i, "name": name, "frequency": "rcf"[i % 3]} for i, name in enumerate(COLOURS, start=3)]
    (tmp_path / "truth.json").write_text(json.dumps({"images": images, "annotations": rows[::-1], "categories": names}))
    return tmp_path


@pytest.fixture
def regions(folder):
    return RegionDataset(read_annotations(folder / "truth.json", images=folder))


@pytest.fixture
def memory(tmp_path):
    with LocalMemory.create(tmp_path / "memory", encoder=FakeEncoder()) as made:
        made.add([Sample(source=name, image=Image.new("RGB", (24, 24), c), label=name) for name, c in COLOURS.items()])
        yield made


def recognizer(memory, ranker=None, **options):
    return Recognizer(memory, retriever=Retriever(memory, k=3, source="image"), ranker=ranker, crop=PLAIN, **options)


def test_all_rows_come_from_one_run_and_equal_what_is_computed_by_hand(memory, regions):
    ranker = ScriptedRanker("black")
    report = evaluate_regions(recognizer(memory, ranker, ranker_weight="replace"), regions)
    assert list(report.rows) == [RETRIEVAL, RANKED, RANKED_TOP]
    assert report.regions == len(regions) == 4 + 3 + 3 + 2
    assert report.rows[RETRIEVAL].ap == pytest.approx(1.0)
    assert report.top1[RETRIEVAL] == 1.0
    assert report.top1[RANKED] < 1.0
    assert report.statuses["ranked"] == report.regions

    # by hand: every box on its own
    preset, vocabulary = evaluator_preset("lvis"), regions.annotations.vocabulary
    by_hand = {RETRIEVAL: [], RANKED: [], RANKED_TOP: []}
    for image_id, places in regions.by_image():
        boxes, similarities, ranked = [], [], []
        for place in places:
            prediction = recognizer(memory, ranker, ranker_weight="replace", keep_scores=True).recognize(regions[place])
            boxes.append(regions[place].box_xyxy)
            scores = dict(zip(prediction.scores.names, prediction.scores.values, strict=True))
            similarities.append([scores[name] for name in vocabulary.names])
            ranked.append(vocabulary.columns_of_names(candidate.category for candidate in prediction.candidates))
        probabilities, ranked = class_probabilities(np.array(similarities)), np.array(ranked)
        for name, scored in (
            (RETRIEVAL, probabilities),
            (RANKED, ranked_scores(probabilities, ranked)),
            (RANKED_TOP, top_scores(probabilities, ranked)),
        ):
            by_hand[name].append(preset.detections(image_id, np.array(boxes), scored, vocabulary=vocabulary))
    for name, parts in by_hand.items():
        found = report.detections[name]
        expected = type(found).concatenate(parts)
        np.testing.assert_array_equal(found.category_ids, expected.category_ids)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
        np.testing.assert_allclose(found.boxes_xywh, expected.boxes_xywh)
        assert evaluate_detections(regions.annotations, expected).ap == pytest.approx(report.rows[name].ap)
    assert (report.rows[RANKED].ap, report.rows[RANKED_TOP].ap) != (1.0, 1.0)


def test_what_is_written_is_read_again_by_the_evaluator(memory, regions, tmp_path):
    report = evaluate_regions(recognizer(memory), regions)
    assert list(report.rows) == [RETRIEVAL]
    write_detections(tmp_path / "clip.json", report.detections[RETRIEVAL])
    again = read_detections(tmp_path / "clip.json", vocabulary=regions.annotations.vocabulary)
    assert evaluate_detections(regions.annotations, again).metrics == report.rows[RETRIEVAL].metrics


def test_proposals_weigh_by_objectness(memory, folder):
    annotations = read_annotations(folder / "truth.json", images=folder)
    truth = Proposals.from_annotations(annotations)
    boxes = np.concatenate([truth[i].boxes_xyxy for i in truth] + [np.array([[60.0, 5, 90, 40]] * len(truth))])
    images = np.concatenate([np.repeat(i, len(truth[i].objectness)) for i in truth] + [np.array(list(truth))])
    boxes[:, 2:] -= boxes[:, :2]
    objectness = np.where(np.arange(len(images)) < len(images) - len(truth), 0.9, 0.01)
    proposals = RegionDataset(annotations, Proposals(images, boxes, objectness))
    plain = evaluate_regions(recognizer(memory), proposals)
    product = evaluator_preset("lvis").__class__(name="mine", source="test", objectness="product")
    weighed = evaluate_regions(recognizer(memory), proposals, preset=product)
    assert plain.top1 == {}
    assert weighed.detections[RETRIEVAL].scores.max() <= 0.9
    assert weighed.rows[RETRIEVAL].ap >= plain.rows[RETRIEVAL].ap
    assert weighed.rows[RETRIEVAL].preset == "mine"


@pytest.mark.parametrize("preset", ["lvis", "regionclip", "regionspot", "tokenize-anything"])
def test_blocks_of_boxes_change_nothing(memory, regions, preset, monkeypatch):
    ranker = ScriptedRanker("white")
    whole = evaluate_regions(recognizer(memory, ranker), regions, preset=preset)
    monkeypatch.setattr("rarvision.detection.recognising._BLOCK", 2)
    parts = evaluate_regions(recognizer(memory, ranker), regions, preset=preset)
    for name, found in whole.detections.items():
        np.testing.assert_array_equal(found.category_ids, parts.detections[name].category_ids)
        np.testing.assert_array_equal(found.scores, parts.detections[name].scores)
        np.testing.assert_array_equal(found.boxes_xywh, parts.detections[name].boxes_xywh)


class Breaking(ScriptedRanker):
    """Answers so many questions, then is gone, or is interrupted."""

    def __init__(self, first, *, answers, error):
        super().__init__(first)
        self.left, self.error = answers, error

    def _rank_distinct(self, images, names):
        self.left -= len(images)
        if self.left < 0:
            raise self.error
        return super()._rank_distinct(images, names)


def test_a_run_goes_on_where_it_was_interrupted(memory, regions, tmp_path):
    out = tmp_path / "run.jsonl"
    whole = evaluate_regions(recognizer(memory, ScriptedRanker("black"), batch_size=2), regions)
    breaking = Breaking("black", answers=8, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        evaluate_regions(recognizer(memory, breaking, batch_size=2), regions, out=out)
    done = [json.loads(line)["source"] for line in out.read_text().splitlines()[1:]]
    assert done == ["10", "11"]
    out.write_text(out.read_text() + '{"source": "12", "reg')  # a line cut short
    seen, again = [], Breaking("black", answers=6, error=AssertionError("asked again"))
    report = evaluate_regions(
        recognizer(memory, again, batch_size=2), regions, out=out, progress=lambda *at: seen.append(at)
    )
    assert seen == [(7, 12), (10, 12), (12, 12)]
    for name, found in whole.detections.items():
        np.testing.assert_allclose(found.scores, report.detections[name].scores, rtol=1e-4)  # other batches
    assert report.to_dict()["rows"] == whole.to_dict()["rows"]


def test_another_configuration_is_refused(memory, regions, tmp_path):
    out = tmp_path / "run.jsonl"
    evaluate_regions(recognizer(memory), regions, out=out)
    with pytest.raises(InputError, match="preset"):
        evaluate_regions(recognizer(memory), regions, out=out, preset="regionspot")
    other = Recognizer(memory, retriever=Retriever(memory, k=3, source="image"), crop=CropRule())
    with pytest.raises(InputError, match="crop"):
        evaluate_regions(other, regions, out=out)


def test_unanswered_boxes_are_asked_about_again(memory, regions, tmp_path):
    out = tmp_path / "run.jsonl"
    gone = Breaking("black", answers=0, error=ChatUnavailableError("nobody there"))
    first = evaluate_regions(recognizer(memory, gone, allow_fallback=True), regions, out=out)
    assert first.unanswered == first.statuses["fallback"] == 12
    assert "unanswered" in first.to_markdown()
    assert first.rows[RANKED].metrics == first.rows[RETRIEVAL].metrics
    second = evaluate_regions(recognizer(memory, ScriptedRanker("black"), allow_fallback=True), regions, out=out)
    assert (second.unanswered, second.statuses["ranked"]) == (0, 12)


def test_a_broken_image_fails_alone_and_is_tried_again(memory, folder, tmp_path):
    regions, out = RegionDataset(read_annotations(folder / "truth.json", images=folder)), tmp_path / "run.jsonl"
    good = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(good[:60])
    report = evaluate_regions(recognizer(memory), regions, out=out)
    assert report.failures == 3
    assert "1.png" in report.errors[0]
    assert 11 not in report.detections[RETRIEVAL].image_ids
    assert report.rows[RETRIEVAL].ap < 1.0
    (folder / "1.png").write_bytes(good)
    assert evaluate_regions(recognizer(memory), regions, out=out).rows[RETRIEVAL].ap == pytest.approx(1.0)


def test_vocabularies_that_do_not_meet(regions, tmp_path):
    with LocalMemory.create(tmp_path / "other", encoder=FakeEncoder()) as memory:
        memory.add([Sample(source=n, image=Image.new("RGB", (8, 8), n), label=n) for n in ("pink", "orange")])
        with pytest.raises(DatasetError, match=r"none of the 5 categories.*'orange'|'pink'"):
            evaluate_regions(recognizer(memory), regions)
        memory.add([Sample(source=n, image=Image.new("RGB", (8, 8), n), label=n) for n in ("red", "blue")])
        report = evaluate_regions(recognizer(memory), regions)
    assert (report.not_in_memory, report.foreign) == (3, 2)
    assert set(report.detections[RETRIEVAL].category_ids) <= {3, 5}
    assert "3 of the vocabulary" in report.to_markdown()


def test_very_many_boxes_in_one_image(memory, folder, monkeypatch):
    """In bounded memory, whatever their number; presets that compare all with all say so before they begin."""
    annotations = read_annotations(folder / "truth.json", images=folder)
    n = 5_100
    rng = np.random.default_rng(0)
    boxes = np.column_stack([rng.uniform(0, 60, (n, 2)), rng.uniform(4, 12, (n, 2))])
    many = RegionDataset(annotations, Proposals(np.full(n, 10), boxes, rng.random(n)))
    held = []
    original = class_probabilities

    def watched(similarities, **options):
        held.append(similarities.shape)
        return original(similarities, **options)

    monkeypatch.setattr("rarvision.detection.scoring.class_probabilities", watched)
    report = evaluate_regions(recognizer(memory, batch_size=256), many)
    assert report.regions == sum(rows for rows, _ in held) == n
    assert max(held) == (256, 5)
    assert len(report.detections[RETRIEVAL]) == 300
    with pytest.raises(InputError, match=r"5,100 boxes.*lvis"):
        evaluate_regions(recognizer(memory), many, preset="regionclip")


def test_the_ranker_sees_the_crop_the_image_or_both(memory, folder):
    class Watching(ScriptedRanker):
        def _rank_distinct(self, images, names):
            seen.extend(images)
            return super()._rank_distinct(images, names)

    sample = Sample(source="a", image=folder / "0.png", box_xyxy=(40.0, 5.0, 70.0, 35.0))
    sizes = {}
    for view in ("crop", "image", "both"):
        seen = []
        rv.Recognizer(memory, ranker=Watching("blue"), crop=PLAIN, region_view=view).recognize(sample)
        sizes[view] = seen[0]
    assert sizes["crop"].size == (30, 30)
    assert sizes["crop"].getpixel((15, 15)) == COLOURS["blue"]
    assert sizes["image"].size == (96, 72)
    assert sizes["image"].getpixel((40, 20)) == (255, 0, 0)
    assert sizes["image"].getpixel((55, 20)) == COLOURS["blue"]
    assert sizes["both"].size == (72 + 8 + 96, 72)
    with pytest.raises(OptionError, match="region_view"):
        rv.Recognizer(memory, region_view="everything")


def test_a_box_that_fails_does_not_open_its_file_to_other_settings(memory, folder, tmp_path):
    annotations, out = read_annotations(folder / "truth.json", images=folder), tmp_path / "run.jsonl"
    ids = annotations.image_ids
    boxes = np.array([[2.0, 2, 20, 18], [500.0, 500, 9, 9]] * len(ids))
    regions = RegionDataset(annotations, Proposals(np.repeat(ids, 2), boxes, np.ones(len(boxes))))
    first = evaluate_regions(recognizer(memory), regions, out=out)
    assert first.failures == len(ids)
    other = Recognizer(memory, retriever=Retriever(memory, k=2, source="image"), crop=PLAIN)
    with pytest.raises(InputError, match="retriever"):
        evaluate_regions(other, regions, out=out)
    again = evaluate_regions(recognizer(memory), regions, out=out)  # tried again, counted once
    assert (again.failures, again.regions) == (first.failures, first.regions)
    assert again.rows[RETRIEVAL].metrics == first.rows[RETRIEVAL].metrics


def test_a_fit_of_whole_images_is_not_taken_for_crops(memory):
    plain, cropping = Recognizer(memory, k=3), Recognizer(memory, k=3, crop=PLAIN)
    marked = Recognizer(memory, k=3, region_view="image")
    assert len({fit_key(each.settings) for each in (plain, cropping, marked)}) == 3
    with pytest.raises(OptionError, match="not regions"):
        fit_recognizer(cropping.with_ranker(ScriptedRanker("red")))


def test_a_thin_crop_beside_the_whole_image_stays_small(memory, folder):
    class Watching(ScriptedRanker):
        def _rank_distinct(self, images, names):
            seen.extend(images)
            return super()._rank_distinct(images, names)

    seen = []
    sample = Sample(source="a", image=folder / "0.png", box_xyxy=(0.0, 5.0, 96.0, 6.0))
    rv.Recognizer(memory, ranker=Watching("blue"), region_view="both").recognize(sample)
    assert seen[0].size == (144 + 8 + 96, 72)
