"""A picture of an image's regions: each box, and beside it what it was recognised as."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from rarvision.errors import OptionError
from rarvision.types import Box

__all__ = ["RegionLabel", "draw_regions"]

_Rectangle = tuple[float, float, float, float]

_LEAST_SIDE: Final = 960  # smaller images are enlarged, so that labels fit
_LARGEST: Final = 2_400
_PALETTE: Final = (
    (31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 170, 190), (227, 77, 160),
    (140, 86, 75), (110, 120, 20), (60, 60, 60),
)  # fmt: skip
_PAPER, _INK = (255, 255, 255), (33, 37, 41)
_MARGIN: Final = 14
_ROOMY: Final = 8.0  # areas of the label that a box must have to carry it inside


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionLabel:
    """A box and what stands beside it.

    Attributes:
        box_xyxy: Pixels of the upright image; the part that lies in it is drawn.
        text: Such as a name and its probability.
        category: What its colour is chosen by: one colour a category.
        number: What stands beside the box where there is no room for the text; by default its place, from 0.
    """

    box_xyxy: Box
    text: str
    category: str
    number: int | None = None


def draw_regions(image: Image.Image, labels: Sequence[RegionLabel], path: Path) -> None:
    """Write the image with boxes and labels; labels do not cover each other.

    A label stands above its box, else below, beside or, in a large one, inside it, where it covers neither a label
    nor another box; where there is no such place, the box has its number, which the list under the picture
    explains. Images are brought to 960 to 2,400 pixels of their longer side.

    Args:
        image: Upright RGB.
        labels: At least one.
        path: PNG or JPEG by its ending; its folder is made.

    Raises:
        OptionError: No label, or another ending.
    """
    if not labels:
        raise OptionError(f"{path}: expected at least one box to draw, got none")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise OptionError(f"{path}: a picture must end in .png or .jpg")
    share = min(max(_LEAST_SIDE / max(image.size), 1.0), _LARGEST / max(image.size))
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    canvas = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
    canvas = canvas.copy() if canvas is image else canvas
    font = ImageFont.load_default(size=max(14, round(max(size) / 60)))
    numbered = _draw(canvas, labels, share, font)
    canvas = _with_list(canvas, [(_number(labels, i), labels[i].text) for i in sorted(numbered)], font)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def _draw(
    canvas: Image.Image,
    labels: Sequence[RegionLabel],
    share: float,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> list[int]:
    """Draw on the canvas; returns which labels found no room, so that their boxes have their numbers."""
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(max(canvas.size) / 400))
    boxes = [_inside(label.box_xyxy, share, canvas.size) for label in labels]
    order = sorted(range(len(labels)), key=lambda i: -_area(boxes[i]))
    for i in order:
        pen.rectangle(boxes[i], outline=_colour(labels[i].category), width=width)
    taken: list[_Rectangle] = []
    numbered: list[int] = []
    for i in sorted(order, key=lambda i: _area(boxes[i])):  # small boxes have the fewest places to choose from
        text = labels[i].text
        others = [box for other, box in enumerate(boxes) if other != i and not _contains(box, boxes[i])]
        place = _place(boxes[i], _text_size(pen, text, font), canvas.size, [*taken, *others])
        if place is None:
            numbered.append(i)
            text = str(_number(labels, i))
            wanted = _text_size(pen, text, font)
            place = (
                _place(boxes[i], wanted, canvas.size, [*taken, *others])
                or _place(boxes[i], wanted, canvas.size, taken)
                or (*boxes[i][:2], *_end(boxes[i][:2], wanted))
            )
        taken.append(place)
        pen.rectangle(place, fill=_colour(labels[i].category))
        pen.text((place[0] + 4, place[1] + 2), text, fill=_PAPER, font=font)
    return numbered


def _number(labels: Sequence[RegionLabel], place: int) -> int:
    number = labels[place].number
    return place if number is None else number


def _place(
    box: _Rectangle, wanted: tuple[float, float], size: tuple[int, int], taken: Sequence[_Rectangle]
) -> _Rectangle | None:
    """A rectangle beside, or in, the box that lies in the image and covers none that is taken."""
    left, upper, right, lower = box
    across, down = wanted
    starts: tuple[tuple[float, float], ...] = (
        (left, upper - down), (right - across, upper - down), (left, lower), (right - across, lower),
        (right, upper), (left - across, upper), (right, lower - down), (left - across, lower - down),
    )  # fmt: skip
    if _area(box) > _ROOMY * across * down:
        starts += ((left, upper), (left, lower - down))
    for x, y in starts:
        start = min(max(x, 0.0), size[0] - across), min(max(y, 0.0), size[1] - down)
        if abs(start[0] - x) > across / 2 or abs(start[1] - y) > 1 or start[0] < 0:
            continue
        found = (*start, *_end(start, wanted))
        if not any(_overlap(found, other) for other in taken):
            return found
    return None


def _with_list(
    canvas: Image.Image, rows: Sequence[tuple[int, str]], font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
    """The picture with a list under it, in as many columns as fit."""
    if not rows:
        return canvas
    pen = ImageDraw.Draw(canvas)
    texts = [f"{number}  {text}" for number, text in rows]
    sizes = [_text_size(pen, text, font) for text in texts]
    across, down = max(size[0] for size in sizes) + _MARGIN, max(size[1] for size in sizes)
    columns = max(1, int((canvas.width - _MARGIN) // across))
    lines = -(-len(texts) // columns)
    whole = Image.new("RGB", (canvas.width, canvas.height + round(lines * down) + 2 * _MARGIN), _PAPER)
    whole.paste(canvas, (0, 0))
    pen = ImageDraw.Draw(whole)
    for i, text in enumerate(texts):
        at = _MARGIN + (i // lines) * across, canvas.height + _MARGIN + (i % lines) * down
        pen.text(at, text, fill=_INK, font=font)
    return whole


def _text_size(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> tuple[float, float]:
    left, upper, right, lower = pen.textbbox((0, 0), text, font=font)
    return right - min(left, 0) + 8, lower - min(upper, 0) + 6


def _end(start: tuple[float, float], size: tuple[float, float]) -> tuple[float, float]:
    return start[0] + size[0], start[1] + size[1]


def _inside(box: Box, share: float, size: tuple[int, int]) -> _Rectangle:
    left, upper = max(0.0, box[0] * share), max(0.0, box[1] * share)
    right, lower = min(size[0] - 1.0, box[2] * share), min(size[1] - 1.0, box[3] * share)
    return min(left, size[0] - 1.0), min(upper, size[1] - 1.0), max(left, right), max(upper, lower)


def _area(box: _Rectangle) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(one: _Rectangle, other: _Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _contains(one: _Rectangle, other: _Rectangle) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one[2] >= other[2] and one[3] >= other[3]


def _colour(category: str) -> tuple[int, int, int]:
    return _PALETTE[hashlib.blake2b(category.encode(), digest_size=1).digest()[0] % len(_PALETTE)]
