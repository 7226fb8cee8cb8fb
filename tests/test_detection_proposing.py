"""Detectors of any kind as proposals: what is kept, how a run goes on, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from needs import need
from rarvision.detection import (
    RegionDataset,
    detect_proposals,
    iter_proposals,
    one_by_one,
    read_annotations,
    read_proposals,
)
from rarvision.errors import DatasetError, ImageError, InputError, OptionError

SIZES = {5: (40, 30), 2: (64, 48), 9: (20, 20), 7: (33, 44), 11: (50, 10)}


@pytest.fixture
def images(tmp_path):
    need("msgspec", group="detection")
    folder = tmp_path / "images"
    folder.mkdir()
    for id_, size in SIZES.items():
        Image.new("RGB", size, (id_, 0, 0)).save(folder / f"{id_}.png")
    truth = {
        "images": [{"id": id_, "file_name": f"{id_}.png"} for id_ in SIZES],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return read_annotations(tmp_path / "truth.json", images=folder)


class Corners:
    """Finds two boxes in an image, one beyond its edge, one outside; the image of id 9 has none."""

    def __init__(self):
        self.asked = []

    def __call__(self, images):
        self.asked.append([image.getpixel((0, 0))[0] for image in images])
        return [self.found(image) for image in images]

    def found(self, image):
        if image.getpixel((0, 0))[0] == 9:
            return np.zeros((0, 4)), np.zeros(0)
        width, height = image.size
        boxes = np.array([[1, 2, 5, 8.5], [width - 4, height - 3, width + 9, height + 9], [width, 0, width + 5, 5]])
        return boxes, np.array([0.25, 0.75, 0.5])


def test_boxes_of_all_images_in_batches(images, tmp_path):
    detector, seen = Corners(), []
    path = tmp_path / "found.json"
    report = detect_proposals(images, detector, name="corners", path=path, batch_size=2, progress=seen.append)
    assert detector.asked == [[2, 5], [7, 9], [11]]
    assert seen == [1, 2, 3, 4, 5]
    assert (report.images, report.resumed, report.without_boxes, report.left_out) == (5, 0, 1, 4)
    assert report.proposals.of(2).boxes_xyxy.tolist() == [[60, 45, 64, 48], [1, 2, 5, 8.5]]
    assert report.proposals.of(2).objectness.tolist() == [0.75, 0.25]
    assert len(report.proposals.of(9).objectness) == 0
    assert set(json.loads(path.read_text())[0]) == {"image_id", "category_id", "bbox", "score"}
    read = read_proposals(path, annotations=images)
    assert {i: read[i].boxes_xyxy.tolist() for i in read} == {
        i: report.proposals[i].boxes_xyxy.tolist() for i in report.proposals
    }
    assert len(RegionDataset(images, read)) == 8
    again = detect_proposals(images, detector, name="corners", path=path, batch_size=3)
    assert (len(detector.asked), again.resumed, again.left_out, again.without_boxes) == (3, 5, 4, 1)


def test_nothing_runs_before_it_is_asked_for_and_a_cut_run_goes_on(images, tmp_path):
    detector, path = Corners(), tmp_path / "found.json"
    run = iter_proposals(images, detector, name="corners", path=path, batch_size=2)
    assert detector.asked == []
    assert next(run).image_id == 2
    assert detector.asked == [[2, 5]]
    run.close()
    assert not path.exists()
    journal = path.with_suffix(".jsonl")
    with journal.open("a") as file:
        file.write('{"source": "7", "boxes')  # cut while it was written
    assert [found.image_id for found in iter_proposals(images, detector, name="corners", path=path)] == [2, 5, 7, 9, 11]
    assert detector.asked == [[2, 5], [7], [9], [11]]
    straight = detect_proposals(images, Corners(), name="corners").proposals
    read = read_proposals(path)
    assert {i: read[i].objectness.tolist() for i in read} == {i: straight[i].objectness.tolist() for i in straight}


def test_a_detector_that_fails_loses_nothing_of_what_was_done(images, tmp_path):
    def fails(image):
        if image.size == SIZES[7]:
            raise MemoryError
        return np.array([[0.0, 0, 5, 5]])

    path = tmp_path / "found.json"
    with pytest.raises(MemoryError):
        detect_proposals(images, one_by_one(fails), name="x", path=path)
    report = detect_proposals(images, one_by_one(lambda _: np.array([[0.0, 0, 6, 6]])), name="x", path=path)
    assert report.resumed == 2
    assert [report.proposals[i].boxes_xyxy[0, 2] for i in (2, 5, 7)] == [5, 5, 6]
    assert report.proposals[2].objectness.tolist() == [1]


def test_the_best_boxes_are_kept(images):
    report = detect_proposals(images, Corners(), name="corners", per_image=1)
    assert all(len(image.objectness) == 1 for image in report.proposals.values())
    report = detect_proposals(images, Corners(), name="corners", min_objectness=0.75)
    assert report.without_boxes == 5


def test_images_that_cannot_be_read_are_asked_for_again(images, tmp_path):
    path = tmp_path / "found.json"
    image = images.path(1)
    content = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(ImageError):
        detect_proposals(images, Corners(), name="corners", path=path)
    told = []
    report = detect_proposals(images, Corners(), name="corners", path=path, on_error=lambda i, _: told.append(i.id))
    assert told == [5] == [id_ for id_, _ in report.failed]
    assert 5 not in report.proposals
    image.write_bytes(content)
    report = detect_proposals(images, Corners(), name="corners", path=path)
    assert (report.resumed, report.failed, 5 in report.proposals) == (4, (), True)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.array([[5.0, 0, 1, 5]]), r"detector 'x', image 2: box 0 is of negative size"),
        (np.array([[np.nan, 0, 1, 5]]), "is no number"),
        (np.zeros((1, 3)), "n x 4 numbers"),
        ((np.array([[0.0, 0, 1, 5]]), np.array([0.5, 0.5])), "finite objectness of each of 1 boxes"),
        ((np.array([[0.0, 0, 1, 5]]), np.array([np.nan])), "finite objectness"),
    ],
)
def test_answers_that_are_no_boxes_are_told(images, answer, message):
    with pytest.raises(InputError, match=message):
        detect_proposals(images, one_by_one(lambda _: answer), name="x")


def test_what_does_not_fit_is_refused(images, tmp_path):
    path = tmp_path / "found.json"
    with pytest.raises(InputError, match="boxes of each of 2 images, got 0"):
        detect_proposals(images, lambda _: [], name="x", batch_size=2)
    for options in ({"batch_size": 0}, {"name": " "}, {"per_image": 0}, {"path": tmp_path / "found.csv"}):
        with pytest.raises(OptionError, match=r"batch_size|name|per_image|\.json"):
            detect_proposals(images, Corners(), **({"name": "x"} | options))
    detect_proposals(images, Corners(), name="corners", path=path)
    for options in ({"name": "other"}, {"name": "corners", "per_image": 3}):
        with pytest.raises(InputError, match="another configuration"):
            detect_proposals(images, Corners(), path=path, **options)
    path.with_suffix(".jsonl").unlink()
    with pytest.raises(InputError, match=r"found\.jsonl.*resume=False"):
        detect_proposals(images, Corners(), name="corners", path=path)
    assert detect_proposals(images, Corners(), name="other", path=path, resume=False).resumed == 0
    without = read_annotations(tmp_path / "truth.json")
    with pytest.raises(DatasetError, match="images='FOLDER'"):
        detect_proposals(without, Corners(), name="x")
