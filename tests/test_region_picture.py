"""The picture of an image's regions."""

from __future__ import annotations

import pytest
from PIL import Image

import rarvision.region_picture as pictures
from rarvision.errors import OptionError
from rarvision.region_picture import RegionLabel, draw_regions

GREY = (128, 128, 128)


def drawn(monkeypatch, path, boxes, size=(960, 720)):
    """The picture, and where labels were put."""
    places = []
    original = pictures._place

    def watched(*arguments):
        found = original(*arguments)
        places.append(found)
        return found

    monkeypatch.setattr(pictures, "_place", watched)
    labels = [RegionLabel(box_xyxy=box, text=f"kind {i} 90%", category=f"kind {i}") for i, box in enumerate(boxes)]
    draw_regions(Image.new("RGB", size, GREY), labels, path)
    with Image.open(path) as written:
        return written.convert("RGB"), places


def test_labels_cover_neither_each_other_nor_boxes(tmp_path, monkeypatch):
    boxes = [(100.0, 100, 200, 200), (100.0, 230, 200, 330), (400.0, 100, 700, 400), (500.0, 0, 560, 40)]
    picture, places = drawn(monkeypatch, tmp_path / "a.png", boxes)
    assert picture.size == (960, 720)
    assert len(places) == len(boxes)
    for number, place in enumerate(places):
        others = places[:number] + places[number + 1 :]
        assert not any(pictures._overlap(place, other) for other in others)
        assert sum(pictures._overlap(place, box) for box in boxes) <= 1  # its own large one
    assert picture.getpixel((100, 150)) != GREY  # the frame
    assert picture.getpixel((150, 150)) == GREY  # what is in it


def test_boxes_without_room_are_numbered_below(tmp_path, monkeypatch):
    boxes = [(4.0 * i, 4.0 * i, 4.0 * i + 240, 4.0 * i + 240) for i in range(40)]
    picture, _ = drawn(monkeypatch, tmp_path / "a.jpg", boxes, size=(400, 400))
    assert picture.width == 960
    assert picture.height > 960
    assert picture.getpixel((950, picture.height - 4)) == (255, 255, 255)


@pytest.mark.parametrize(
    "box", [(-50.0, -50, 2000, 2000), (395.0, 395, 405, 410), (0.0, 0, 1, 1), (0.0, 390, 400, 400)]
)
def test_boxes_at_the_edges(tmp_path, monkeypatch, box):
    picture, _ = drawn(monkeypatch, tmp_path / "a.png", [box], size=(400, 400))
    assert picture.size[0] == 960


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(OptionError, match="at least one box"):
        draw_regions(Image.new("RGB", (9, 9)), [], tmp_path / "a.png")
    label = RegionLabel(box_xyxy=(0, 0, 5, 5), text="a", category="a")
    with pytest.raises(OptionError, match=r"\.png or \.jpg"):
        draw_regions(Image.new("RGB", (9, 9)), [label], tmp_path / "a.webp")
