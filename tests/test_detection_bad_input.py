"""Annotated sets as they come: images and boxes that do not fit, ids that changed, files that are cut short or huge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("faster_coco_eval")
pytest.importorskip("msgspec")

from colour_world import ScriptedRanker
from rarvision.detection import (
    RETRIEVAL,
    Proposals,
    RegionDataset,
    evaluate_regions,
    evaluator_preset,
    read_annotations,
    read_detections,
    read_proposals,
)
from rarvision.errors import DatasetError, ImageError, InputError, OptionError
from rarvision.memory import LocalMemory
from rarvision.pipeline import RecognitionFailure, Recognizer
from rarvision.regions import CropRule, iter_crops
from rarvision.retrieval import Retriever
from rarvision.testing import FakeEncoder
from rarvision.tuning.lessons import picture_of
from rarvision.types import Sample

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 220)}
PLAIN = CropRule(scale=1.0, shape="box", blur=None, padding="clip")
RED, BLUE = (10, 10, 30, 20), (50, 40, 30, 20)
ROTATED = 0x0112


def scene():
    picture = Image.new("RGB", (96, 72), (128, 128, 128))
    for name, (x, y, w, h) in (("red", RED), ("blue", BLUE)):
        picture.paste(COLOURS[name], (x, y, x + w, y + h))
    return picture


@pytest.fixture
def folder(tmp_path):
    scene().save(tmp_path / "1.png")
    exif = Image.Exif()
    exif[ROTATED] = 6  # to be turned by 90 degrees clockwise
    scene().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    return tmp_path


@pytest.fixture
def memory(tmp_path):
    with LocalMemory.create(tmp_path / "memory", encoder=FakeEncoder()) as made:
        made.add([Sample(source=name, image=Image.new("RGB", (24, 24), c), label=name) for name, c in COLOURS.items()])
        yield made


def image(**changed):
    nothing = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return {"id": 1, "file_name": "1.png", "width": 96, "height": 72, **nothing, **changed}


def box(number=1, bbox=RED, name="red", **changed):
    return {
        "id": number,
        "image_id": 1,
        "category_id": [*COLOURS].index(name) + 1,
        "bbox": list(bbox),
        "area": bbox[2] * bbox[3],
        **changed,
    }


def annotated(folder, images, boxes, *, names=COLOURS, at="here"):
    categories = [{"id": number, "name": name, "frequency": "f"} for number, name in enumerate(names, start=1)]
    path = folder / "truth.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return read_annotations(path, images=folder if at == "here" else at)


def recognizer(memory, ranker=None, **options):
    return Recognizer(
        memory, retriever=Retriever(memory, k=3, source="image"), ranker=ranker, **{"crop": PLAIN, **options}
    )


def proposals(*rows):
    ids, boxes, objectness = zip(*rows, strict=True)
    return Proposals(np.array(ids), np.array(boxes, dtype=float), np.array(objectness, dtype=float))


def test_images_without_boxes_and_boxes_without_images(memory, folder):
    images = [image(), image(id=2, file_name="not there.png"), image(id=3)]
    report = evaluate_regions(recognizer(memory), RegionDataset(annotated(folder, images, [box()])))
    assert (report.images, report.regions, report.failures) == (1, 1, 0)
    assert report.rows[RETRIEVAL].images == 3
    with pytest.raises(DatasetError, match="image 9, which is not among the 1 images"):
        annotated(folder, [image()], [box(image_id=9)])
    with pytest.raises(DatasetError, match="image 9, which is not among"):
        RegionDataset(annotated(folder, [image()], [box()]), proposals((9, RED, 0.5)))


@pytest.mark.parametrize(
    ("boxes", "left_out"),
    [([], 0), ([box(bbox=(10, 10, 0, 5)), box(2, (3, 3, 8, 0))], 2), ([box(iscrowd=1)], 1)],
    ids=["none", "without an inside", "crowds"],
)
def test_a_set_without_a_box_to_recognise_is_told(memory, folder, boxes, left_out):
    regions = RegionDataset(annotated(folder, [image()], boxes))
    with pytest.raises(DatasetError, match=rf"truth: no box to recognise \({left_out} left out"):
        evaluate_regions(recognizer(memory), regions)


def test_no_proposals_are_told(memory, folder):
    nothing = Proposals(np.zeros(0, dtype=int), np.zeros((0, 4)), np.zeros(0))
    with pytest.raises(DatasetError, match=r"truth \(proposals\): no box to recognise"):
        evaluate_regions(recognizer(memory), RegionDataset(annotated(folder, [image()], [box()]), nothing))


@pytest.mark.parametrize("view", ["crop", "image", "both"])
def test_boxes_of_a_rotated_image_are_those_of_the_upright_one(memory, folder, view):
    class Watching(ScriptedRanker):
        def _rank_distinct(self, images, names):
            seen.extend(images)
            return super()._rank_distinct(images, names)

    def shown(file):
        seen.clear()
        regions = RegionDataset(annotated(folder, [image(file_name=file)], [box(), box(2, BLUE, "blue")]))
        report = evaluate_regions(recognizer(memory, Watching("red"), region_view=view), regions)
        assert (report.failures, report.top1[RETRIEVAL]) == (0, 1.0)
        return [np.asarray(each) for each in seen]

    seen = []
    for plain, rotated in zip(shown("1.png"), shown("turned.png"), strict=True):
        np.testing.assert_array_equal(plain, rotated)


def test_an_image_of_another_size_than_annotated_is_refused_everywhere(memory, folder):
    """Its boxes would show something else."""
    smaller = annotated(folder, [image(width=192, height=144), image(id=2)], [box(), box(2, image_id=2)])
    report = evaluate_regions(recognizer(memory), RegionDataset(smaller))
    assert (report.regions, report.failures, report.top1[RETRIEVAL]) == (2, 1, 0.5)
    assert "the box was given for an image of 192 x 144 pixels, and the upright image has 96 x 72" in report.errors[0]

    turned = RegionDataset(annotated(folder, [image(file_name="turned.png", width=72, height=96)], [box()]))
    assert turned[0].image_size == turned.items[0].image_size == (72, 96)
    assert turned.select([0])[0].image_size == (72, 96)
    with pytest.raises(ImageError, match="annotated without its EXIF orientation"):
        recognizer(memory).recognize(turned[0])
    with pytest.raises(ImageError, match="EXIF"):
        next(iter_crops([turned[0]]))
    with pytest.raises(ImageError, match="EXIF"):
        picture_of(turned, 0)
    told = []
    assert memory.add([turned[0]], on_error=lambda _sample, error: told.append(str(error))).added == 0
    assert "EXIF" in told[0]

    unsaid = RegionDataset(annotated(folder, [image(file_name="turned.png", width=None, height=None)], [box()]))
    assert unsaid[0].image_size is None
    assert evaluate_regions(recognizer(memory), unsaid).failures == 0


@pytest.mark.parametrize("side", [0, -96])
def test_images_of_no_size_are_refused(folder, side):
    with pytest.raises(DatasetError, match=rf"image 1: width and height must be at least 1 pixel.*{side} x 72"):
        annotated(folder, [image(width=side)], [box()])


def test_a_folder_that_has_none_of_the_images(memory, folder, tmp_path):
    two = [image(), image(id=2, file_name="val2017/2.png")]
    boxes = [box(), box(2, image_id=2)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"none of its 2 images is there, such as .*empty/1.png; say from which"):
        evaluate_regions(recognizer(memory), RegionDataset(annotated(folder, two, boxes, at=tmp_path / "empty")))
    with pytest.raises(DatasetError, match=r"say where they are: read_annotations\(…, images='FOLDER'\)"):
        evaluate_regions(recognizer(memory), RegionDataset(annotated(folder, two, boxes, at=None)))


def test_missing_images_fail_alone_also_when_a_run_goes_on(memory, folder):
    images = [image(id=number, file_name=f"{number}.png") for number in (1, 2, 3)]
    regions = RegionDataset(annotated(folder, images, [box(number, image_id=number) for number in (1, 2, 3)]))
    for _ in range(2):  # the second time, only the missing ones are left
        report = evaluate_regions(recognizer(memory), regions, out=folder / "run.jsonl")
        assert (report.regions, report.failures) == (3, 2)
        assert "2.png: no such file" in report.errors[0]
    only = RegionDataset(annotated(folder, images[1:2], [box(image_id=2)]))
    assert evaluate_regions(recognizer(memory), only).failures == 1


@pytest.mark.parametrize("crop", [None, CropRule(), PLAIN], ids=["none", "default", "plain"])
def test_boxes_at_the_edge_beyond_it_and_below_a_pixel(memory, folder, crop):
    boxes = [
        box(1, (-20, -20, 60, 50)),  # partly outside
        box(2, (200, 10, 30, 20)),  # outside
        box(3, (20.2, 15.1, 0.01, 0.02)),  # less than a pixel
        box(4, (12, 12, 0, 9)),  # without an inside
        box(5, (0, 0, 5_000, 5_000)),  # all of it, and more
    ]
    regions = RegionDataset(annotated(folder, [image()], boxes))
    report = evaluate_regions(recognizer(memory, crop=crop), regions)
    assert (report.regions, report.left_out, report.failures) == (4, 1, 1)
    assert "lies outside the image, which has 96 x 72 pixels" in report.errors[0]
    outcomes = recognizer(memory, crop=crop).recognize_batch(regions)
    assert [isinstance(outcome, RecognitionFailure) for outcome in outcomes] == [False, True, False, False]
    if crop is PLAIN:
        assert outcomes[2].label == "red"


def test_objectness_that_cannot_weigh_is_told_before_anything_is_encoded(memory, folder, monkeypatch):
    found = proposals((1, RED, 2.5), (1, BLUE, -0.25))
    regions = RegionDataset(annotated(folder, [image()], [box()]), found)
    weighing = replace(evaluator_preset("lvis"), name="product", objectness="product")
    with monkeypatch.context() as patched:
        patched.setattr(FakeEncoder, "_encode_images", None)
        with pytest.raises(DatasetError, match=r"image 1: objectness -0.25 is negative \(1 such boxes\).*sigmoid"):
            evaluate_regions(recognizer(memory), regions, preset=weighing)
    assert evaluate_regions(recognizer(memory), regions).regions == 2


@pytest.mark.parametrize("changed", ["objectness", "image ids", "vocabulary", "boxes", "nothing"])
def test_results_of_other_boxes_are_refused(memory, folder, changed):
    """What has no trace in the names of images counts, too."""
    out, number = folder / "run.jsonl", 2 if changed == "image ids" else 1
    first = RegionDataset(annotated(folder, [image()], []), proposals((1, RED, 0.5)))
    evaluate_regions(recognizer(memory), first, out=out, rules="coco")
    second = RegionDataset(
        annotated(
            folder, [image(id=number)], [], names=["blue", "green", "red"] if changed == "vocabulary" else COLOURS
        ),
        proposals((number, BLUE if changed == "boxes" else RED, 0.6 if changed == "objectness" else 0.5)),
    )
    if changed == "nothing":
        again = recognizer(memory)
        assert evaluate_regions(again, second, out=out, rules="coco").regions == 1
        return
    with pytest.raises(InputError, match="boxes_fingerprint: the boxes changed since"):
        evaluate_regions(recognizer(memory), second, out=out, rules="coco")


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, [7]), (0, [-1]), (0, [0, 0]), (1, [99]), (2, [])],
    ids=["box", "below", "long", "id", "short"],
)
def test_a_damaged_line_of_an_earlier_run_is_told(memory, folder, place, value):
    out, regions = folder / "run.jsonl", RegionDataset(annotated(folder, [image()], [box()]))
    evaluate_regions(recognizer(memory), regions, out=out)
    head, line = out.read_text().splitlines()
    values = json.loads(line)
    column = values["rows"][RETRIEVAL][place]
    values["rows"][RETRIEVAL][place] = value if len(value) != 1 else value + column[1:]
    out.write_text(f"{head}\n{json.dumps(values)}\n")
    with pytest.raises(
        InputError, match=r"run.jsonl: .*image 1.*(is damaged \(CLIP\); delete it|CLIP differ in length)"
    ):
        evaluate_regions(recognizer(memory), regions, out=out)
    out.write_text(f"{head}\n")
    assert evaluate_regions(recognizer(memory), regions, out=out).failures == 0


def test_where_results_cannot_be_written(memory, folder):
    regions = RegionDataset(annotated(folder, [image()], [box()]))
    with pytest.raises(InputError, match="is a folder; expected the name of a file"):
        evaluate_regions(recognizer(memory), regions, out=folder)


@pytest.mark.parametrize("rule", [1.6, "adaptive", {"scale": 2.0}])
def test_what_is_no_rule_of_crops_is_told(memory, rule):
    with pytest.raises(OptionError, match=r"crop must be a CropRule, such as CropRule\(scale=1.6\), or None"):
        Recognizer(memory, crop=rule)


def test_one_box_of_two_categories_and_one_file_of_two_images(memory, folder):
    images = [image(), image(id=2)]
    boxes = [box(), box(2, name="green"), box(3, BLUE, "blue", image_id=2)]
    report = evaluate_regions(recognizer(memory), RegionDataset(annotated(folder, images, boxes)))
    assert (report.images, report.regions) == (2, 3)
    assert report.top1[RETRIEVAL] == pytest.approx(2 / 3)
    assert set(report.detections[RETRIEVAL].image_ids) == {1, 2}


@pytest.mark.parametrize("read", [read_annotations, read_detections, read_proposals])
def test_files_that_are_cut_short_or_nothing_like_it(folder, read):
    path = folder / "file.json"
    good = {"image_id": 1, "category_id": 1, "bbox": list(RED), "score": 0.5}
    content = json.dumps(
        {"images": [image()], "annotations": [box()], "categories": [{"id": 1, "name": "red"}]}
        if read is read_annotations
        else [good] * 3
    )
    for length in range(1, len(content), 17):
        path.write_text(content[:length])
        with pytest.raises(
            DatasetError, match=r"file.json: not valid JSON: .*is the download complete|file.json: not "
        ):
            read(path)
    for other in (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xfe[\x00]\x00",
        b"[" * 100_000,
        b"image_id,bbox\n",
        b"null",
        b"\0" * 4096,
    ):
        path.write_bytes(other)
        with pytest.raises(DatasetError, match=r"file.json: not "):
            read(path)


def test_a_large_file_is_not_held_in_memory(folder):
    """What is held are the records; masks, which make most of a file, are passed over."""
    path, count, mask = folder / "large.json", 2_000, [[round(x * 1.37, 2) for x in range(3_000)]]
    with path.open("w") as file:
        file.write(
            json.dumps({"images": [image()], "categories": [{"id": 1, "name": "red"}]})[:-1] + ', "annotations": ['
        )
        row = json.dumps(box(id=0, segmentation=mask)).replace('"id": 0', '"id": %d')
        file.writelines((", " if number else "") + row % number for number in range(count))
        file.write("]}")
    size = path.stat().st_size
    assert size > 40_000_000
    tracemalloc.start()
    try:
        annotations = read_annotations(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(annotations.boxes_xywh) == count
    assert peak < count * 2_000, f"{peak:,} bytes for a file of {size:,}"


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_detection_bad_input as world
from rarvision.memory import LocalMemory

class Slow(world.ScriptedRanker):
    def _rank_distinct(self, images, names):
        time.sleep(0.05)
        return super()._rank_distinct(images, names)

world.killable(Path({folder!r}), Slow("green"))
"""


def killable(folder, ranker):
    regions = RegionDataset(read_annotations(folder / "truth.json", images=folder))
    with LocalMemory.open(folder / "memory", encoder=FakeEncoder()) as memory:
        return evaluate_regions(recognizer(memory, ranker, batch_size=2), regions, out=folder / "run.jsonl")


def test_a_killed_run_goes_on(memory, folder):
    images = [image(id=number) for number in range(1, 61)]
    annotated(folder, images, [box(number, image_id=number) for number in range(1, 61)])
    memory.close()
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder))
    child = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    out, deadline = folder / "run.jsonl", time.monotonic() + 120
    while (not out.exists() or out.read_bytes().count(b"\n") < 8) and time.monotonic() < deadline:
        assert child.poll() is None, "it ended by itself"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    lines = out.read_bytes().count(b"\n") - 1
    assert 7 <= lines < 60

    asked = ScriptedRanker("green")
    report = killable(folder, asked)
    assert sum(asked.batches) == 60 - lines
    assert (report.images, report.regions, report.statuses["ranked"]) == (60, 60, 60)
    assert out.read_bytes().count(b"\n") == 61
    assert killable(folder, ScriptedRanker("green")).to_dict() == report.to_dict()


@pytest.mark.slow
def test_tens_of_thousands_of_boxes_of_one_image(memory, folder):
    count, rng = 20_000, np.random.default_rng(0)
    boxes = np.column_stack([rng.uniform(0, 60, (count, 2)), rng.uniform(4, 12, (count, 2))])
    many = Proposals(np.ones(count, dtype=int), boxes, rng.random(count))
    regions = RegionDataset(annotated(folder, [image()], [box()]), many)
    report = evaluate_regions(recognizer(memory, batch_size=256), regions, out=folder / "run.jsonl")
    assert (report.regions, report.failures, len(report.detections[RETRIEVAL])) == (count, 0, 300)
    assert (folder / "run.jsonl").stat().st_size < 100_000, "a line holds what was kept"
