"""Boxes from the command line and from files; how a crop is made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from rarvision.cli.output import say
from rarvision.errors import DatasetError, InputError, OptionError

if TYPE_CHECKING:
    from rarvision.regions import CropRule
    from rarvision.types import Box

__all__ = ["CropOptions", "Notation", "RegionView", "read_boxes"]

_LARGEST = 1_000_000_000
_ADVICE = (
    "expected a list of four numbers each, of objects with bbox or box_xyxy, a COCO or LVIS annotation file, or a "
    "detector's results"
)


class Notation(StrEnum):
    """`rarvision.regions.BoxNotation` for the command line."""

    XYXY = "xyxy"
    XYWH = "xywh"
    CXCYWH = "cxcywh"


class RegionView(StrEnum):
    """`rarvision.queries.RegionView` for the command line."""

    CROP = "crop"
    IMAGE = "image"
    BOTH = "both"


class Shape(StrEnum):
    """Of a crop."""

    SQUARE = "square"
    BOX = "box"


@dataclass(frozen=True, kw_only=True)
class CropOptions:
    """How a box becomes a crop; see `rarvision.regions.CropRule`."""

    scale: Annotated[
        str,
        typer.Option(
            "--scale",
            metavar="S|SMALL,MEDIUM,LARGE",
            help="How much around the box is seen: the crop's side over the box's longer one, for all boxes, or by "
            "their size.",
        ),
    ] = "2.7,1.6,1.0"
    size_limits: Annotated[
        str,
        typer.Option(
            "--size-limits",
            metavar="SIDE,SIDE",
            help="Where medium and large boxes begin: sides of squares of their area, pixels.",
        ),
    ] = "32,96"
    shape: Annotated[Shape, typer.Option("--shape", help="Crops are squares, or have their box's shape.")] = (
        Shape.SQUARE
    )
    blur: Annotated[
        str,
        typer.Option(
            "--blur",
            metavar="off|SHARE|PIXELSpx",
            help="Blur what is not the object: standard deviation as a share of the image's longer side, or in pixels "
            "(100px).",
        ),
    ] = "0.15"
    padding: Annotated[
        str,
        typer.Option(
            "--padding",
            metavar="mean|edge|clip|RRGGBB",
            help="What a crop shows outside the image: CLIP's mean grey, the edge drawn out, nothing (it ends there), "
            "or a colour in hexadecimal.",
        ),
    ] = "mean"
    grey: Annotated[bool, typer.Option("--grey", help="Take the colours from what is not the object.")] = False
    outline: Annotated[bool, typer.Option("--outline", help="Draw a red line around the box.")] = False
    region_view: Annotated[
        RegionView,
        typer.Option(
            "--region-view",
            help="What the MLLM sees of a box: its crop, the whole image with the box drawn on it, or both side by "
            "side.",
        ),
    ] = RegionView.CROP

    def rule(self) -> CropRule:
        """The rule that the options say."""
        from rarvision.regions import AdaptiveScale, Blur, CropRule, Outline

        scales = _numbers("--scale", self.scale)
        sides = _numbers("--size-limits", self.size_limits)
        if len(scales) == 1:
            scale: float | AdaptiveScale = scales[0]
        else:
            scale = AdaptiveScale(limits=tuple(side**2 for side in sides), scales=scales)
        blur = None
        if self.blur != "off":
            pixels = self.blur.endswith("px")
            (value,) = _numbers("--blur", self.blur.removesuffix("px"), count=1)
            blur = Blur(pixels=value) if pixels else Blur(share=value)
        more: dict[str, Any] = {} if self.padding == "mean" else {"padding": _padding(self.padding)}
        return CropRule(
            scale=scale,
            shape=cast("Any", self.shape.value),
            blur=blur,
            grey=self.grey,
            outline=Outline() if self.outline else None,
            **more,
        )

    def settings(self) -> dict[str, Any]:
        """For `rarvision.Recognizer`."""
        return {"crop": self.rule(), "region_view": self.region_view.value}


def _numbers(option: str, text: str, *, count: int | None = None) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} must be a number, or numbers between commas, got {text!r}") from None
    if count is not None and len(found) != count:
        raise OptionError(f"{option} must be {count} number{'s' if count > 1 else ''}, got {text!r}")
    return found


def _padding(text: str) -> Any:
    if text in ("edge", "clip"):
        return text
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError:
        raise OptionError(f"--padding must be mean, edge, clip or a colour such as 7a7468, got {text!r}") from None
    return red, green, blue


def read_boxes(
    given: Sequence[str],
    *,
    image: Path,
    size: tuple[int, int],
    notation: Notation = Notation.XYXY,
    normalised: bool = False,
    image_id: int | None = None,
) -> list[Box]:
    """Boxes in pixels of an upright image.

    Args:
        given: Each four numbers between commas, or the name of a JSON file.
        image: By whose name an annotation file knows it.
        size: Its width and height, pixels, upright.
        notation: What the numbers are, but in COCO's own formats, which have xywh.
        normalised: Whether they are shares of the image, again but for these.
        image_id: The image's number in an annotation or results file.

    Raises:
        InputError: A file or a box is not as it should be; says which.
    """
    from rarvision.regions import to_xyxy

    boxes: list[Box] = []
    for text in given:
        try:
            numbers, own = [[float(part) for part in text.split(",")]], None
        except ValueError:
            numbers, own = _from_file(Path(text), image, size, image_id)
        form = cast("Any", own or notation.value)
        try:
            found = to_xyxy(numbers, notation=form, normalised_to=size if normalised and own is None else None)
        except InputError as error:
            raise InputError(f"--boxes {text}: {error}") from error
        boxes += [cast("Box", tuple(row)) for row in found.tolist()]
    if not boxes:
        raise InputError(f"{image}: --boxes gives no box: {', '.join(given)}")
    return boxes


def _from_file(
    path: Path, image: Path, size: tuple[int, int], image_id: int | None
) -> tuple[list[list[float]], str | None]:
    """Rows of four numbers, and their notation where the file's kind has its own."""
    if not path.is_file():
        raise InputError(f"--boxes {path}: neither four numbers between commas nor a file")
    if path.stat().st_size > _LARGEST:
        raise InputError(f"--boxes {path}: is larger than 1 GB; give the boxes of this image alone")
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"{"):
        return _annotated(path, image, size, image_id), "xyxy"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"--boxes {path}: is no JSON ({error})") from error
    if not isinstance(content, list):
        raise InputError(f"--boxes {path}: {_ADVICE}; got {type(content).__name__}")
    if content and all(isinstance(row, dict) and "image_id" in row for row in content):
        return _of_image(path, content, image_id), "xywh"
    return [_row(path, number, row) for number, row in enumerate(content)], None


def _annotated(path: Path, image: Path, size: tuple[int, int], image_id: int | None) -> list[list[float]]:
    """The boxes with an inside of one image of an annotation file, by its number or its name."""
    from rarvision.detection import read_annotations

    annotations = read_annotations(path)
    names = [str(annotations.file(place) or "") for place in range(len(annotations))]
    if image_id is not None:
        if image_id not in annotations.image_ids:
            raise DatasetError(
                f"--image-id {image_id}: {path} has no such image; it has {len(names):,}, such as "
                f"{annotations.image_ids[:3].tolist()}"
            )
        found = annotations.by_id(image_id)
    else:
        places = [place for place, name in enumerate(names) if Path(name).name == image.name]
        if len(places) != 1:
            raise DatasetError(
                f"--boxes {path}: {len(places)} of its {len(names):,} images are called {image.name}; say which with "
                "--image-id"
            )
        found = annotations[places[0]]
    if found.width is not None and found.height is not None and (found.width, found.height) != size:
        raise DatasetError(
            f"--boxes {path}: annotates an image of {found.width} x {found.height} pixels, {image} has {size[0]} x "
            f"{size[1]}: give the original, or boxes of this one"
        )
    rows = found.boxes_xyxy[~found.crowd]
    inside = (rows[:, :2] < rows[:, 2:]).all(axis=1)
    _say_left_out(path, len(found.crowd) - int(inside.sum()))
    return [list(map(float, row)) for row in rows[inside].tolist()]


def _say_left_out(path: Path, count: int) -> None:
    if count:
        say(f"--boxes {path}: {count:,} left out: crowds, or without an inside")


def _of_image(path: Path, rows: Sequence[dict[str, Any]], image_id: int | None) -> list[list[float]]:
    for number, row in enumerate(rows):
        if type(row["image_id"]) is not int:
            raise InputError(f"--boxes {path}: item {number}: image_id must be a whole number, got {row['image_id']!r}")
    ids = sorted({row["image_id"] for row in rows})
    if image_id is None and len(ids) > 1:
        raise InputError(f"--boxes {path}: has boxes of {len(ids):,} images; say which is this one with --image-id")
    wanted = ids[0] if image_id is None else image_id
    kept = [_row(path, number, row) for number, row in enumerate(rows) if row["image_id"] == wanted]
    if not kept:
        raise InputError(f"--boxes {path}: has no box of image {wanted}; it has images such as {ids[:3]}")
    every = dict.fromkeys(map(tuple, kept))  # detectors write a box once for each category
    inside = [list(row) for row in every if row[2] != 0.0 and row[3] != 0.0]
    _say_left_out(path, len(every) - len(inside))
    return inside


def _row(path: Path, number: int, row: object) -> list[float]:
    found = row
    if isinstance(row, dict):
        found = next((row[key] for key in ("box_xyxy", "bbox", "box") if key in row), None)
    if not isinstance(found, list) or len(found) != 4 or any(type(v) not in (int, float) for v in found):
        raise InputError(f"--boxes {path}: item {number} is no box: {str(row)[:80]}; {_ADVICE}")
    return [float(value) for value in found]
