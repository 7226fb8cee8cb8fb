"""Samples that are a part of an image: read from files, encoded as the part, told apart by their boxes."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from rarvision import Recognizer
from rarvision.datasets import open_dataset
from rarvision.errors import DatasetError, ImageError, InputError
from rarvision.images import Picture
from rarvision.memory import LocalMemory
from rarvision.testing import FakeEncoder
from rarvision.types import Sample

ENCODER = FakeEncoder(dim=16)
LEFT, RIGHT = (0, 0, 20, 24), (20, 0, 40, 24)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def memory(tmp_path):
    with LocalMemory.create(tmp_path / "memory", encoder=ENCODER, thumbnails=64) as made:
        yield made


def part(photo, box):
    return Image.open(photo).convert("RGB").crop(box)


def test_each_box_is_an_entry_of_its_own(memory, photo):
    samples = [Sample(source="photo", image=photo, label=name, box_xyxy=box) for name in "ab" for box in (LEFT, RIGHT)]
    whole = Sample(source="photo", image=photo, label="a")
    assert memory.add([*samples, whole]).added == 5
    report = memory.add([*samples, whole])
    assert (report.added, report.skipped) == (0, 5)
    expected = ENCODER.encode_images([part(photo, LEFT), part(photo, RIGHT), photo])
    np.testing.assert_array_equal(memory.vectors([1, 2, 3, 4, 5]), expected[[0, 1, 0, 1, 2]])
    assert [e.metadata for e in memory.entries(ids=[2, 5])] == [{"box_xyxy": list(RIGHT)}, {}]
    assert Image.open(BytesIO(memory.thumbnail(2))).size == (20, 24)


def test_boxes_from_files(memory, photo, tmp_path):
    rows = [{"image": "photo.png", "label": "left", "box_xyxy": list(LEFT)}, {"image": "photo.png", "label": "whole"}]
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "boxes.csv").write_text('image,label,box_xyxy\nphoto.png,left,"[0, 0, 20, 24]"\nphoto.png,whole,\n')
    for name in ("boxes.jsonl", "boxes.csv"):
        left, whole = open_dataset(tmp_path / name)
        assert (left.box_xyxy, whole.box_xyxy) == (LEFT, None)
        assert (left.source, whole.source) == (f"{photo}#xyxy=0,0,20,24", str(photo))
        assert left.metadata == {}
        memory.add([left, whole])
    assert len(memory) == 2, "the same boxes in both files"
    for wrong in ("1 2 3", "1 2 3 x", "5 5 5 9", "[1, 2, nan, 4]"):
        (tmp_path / "wrong.csv").write_text(f"image,label,box_xyxy\nphoto.png,left,{json.dumps(wrong)}\n")
        with pytest.raises(DatasetError, match="line 2: 'box_xyxy' must be four numbers"):
            open_dataset(tmp_path / "wrong.csv")


def test_a_box_is_cut_to_the_image_or_refused(memory, photo):
    wide = Sample(source="wide", image=photo, label="a", box_xyxy=(20, -5, 400, 100))
    outside = Sample(source="outside", image=photo, label="a", box_xyxy=(50, 0, 60, 10))
    told = []
    report = memory.add([wide, outside], on_error=lambda sample, error: told.append((sample.source, str(error))))
    assert (report.added, report.failed) == (1, 1)
    assert told[0][0] == "outside"
    assert "outside the image, which has 40 x 24 pixels" in told[0][1]
    np.testing.assert_array_equal(memory.vectors([1]), ENCODER.encode_images([part(photo, RIGHT)]))
    for wrong in ((1, 2, 3), (3, 0, 1, 5), (0, 0, float("inf"), 1)):
        with pytest.raises(InputError, match="four numbers"):
            Sample(source="wrong", image=photo, box_xyxy=wrong)
    with pytest.raises(ImageError, match="outside"):
        Picture.of(Image.new("RGB", (4, 4))).cropped((-9, 0, 0, 4))


def test_encoding_anew_encodes_the_part(memory, photo, tmp_path):
    (tmp_path / "boxes.csv").write_text("image,label,box_xyxy\nphoto.png,a,20 0 40 24\n")
    memory.add(open_dataset(tmp_path / "boxes.csv"))
    other = FakeEncoder(dim=8, seed=3)
    assert memory.reencode(other).published
    np.testing.assert_allclose(memory.vectors([1]), other.encode_images([part(photo, RIGHT)]), atol=1e-6)


def test_the_pipeline_recognises_the_part(memory, photo):
    memory.add([Sample(source=name, image=part(photo, box), label=name) for name, box in (("l", LEFT), ("r", RIGHT))])
    recognizer = Recognizer(memory, k=2)
    queries = [Sample(source="q", image=photo, box_xyxy=box) for box in (RIGHT, LEFT)]
    assert [outcome.label for outcome in recognizer.iter_recognize(queries)] == ["r", "l"]
    (failure,) = recognizer.iter_recognize([Sample(source="q", image=photo, box_xyxy=(90, 0, 99, 9))])
    assert "outside the image" in str(failure.error)
