"""Masks as COCO and LVIS write them: polygons, and run lengths both plain and compressed."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, final

import numpy as np
from jaxtyping import Bool, Int64
from PIL import Image, ImageDraw

from rarvision.errors import ImageError, InputError
from rarvision.types import Box

__all__ = ["Mask", "PolygonMask", "RunLengthMask", "read_mask"]

_FINER: Final = 4  # polygons are drawn this many times larger, so that their edges are soft
_FINER_BELOW: Final = 1 << 20  # pixels; half of it above, where edges are a small part
_LARGEST: Final = 1 << 40


class Mask(abc.ABC):
    """Which pixels of an image are the object."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def box_xyxy(self) -> Box:
        """The smallest box around it; whole pixels for run lengths."""

    @abc.abstractmethod
    def part(self, window: tuple[int, int, int, int], size: tuple[int, int], *, reduced: int = 1) -> Image.Image:
        """The part inside a window of whole pixels that lies in the image.

        Args:
            window: Left, upper, right, lower; pixels of the image.
            size: Width and height of the image.
            reduced: How many pixels become one, in both directions; at the right and lower end fewer may.

        Returns:
            Mode ``L``: 255 the object, 0 not, between them where a pixel is partly of it.

        Raises:
            ImageError: The mask is of an image of another size.
        """


@final
@dataclass(frozen=True, kw_only=True)
class PolygonMask(Mask):
    """One or more polygons; their union is the object.

    Attributes:
        polygons: Each x1, y1, x2, y2, …: at least three corners, in pixels of the upright image. The middle of the
            upper left pixel is (0.5, 0.5).

    >>> PolygonMask(polygons=((1, 1, 5, 1, 5, 4),)).box_xyxy
    (1.0, 1.0, 5.0, 4.0)
    """

    polygons: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.polygons:
            raise InputError("a polygon mask needs at least one polygon, got none")
        for number, polygon in enumerate(self.polygons):
            corners = np.array(polygon, dtype=np.float64)
            if corners.ndim != 1 or corners.size < 6 or corners.size % 2 or not np.isfinite(corners).all():
                raise InputError(
                    f"polygon {number} must be x1, y1, x2, y2, … with at least three corners, got "
                    f"{len(polygon)} numbers: {polygon!r:.80}"
                )

    @cached_property
    def box_xyxy(self) -> Box:
        """The smallest box around all corners."""
        xs = [x for polygon in self.polygons for x in polygon[::2]]
        ys = [y for polygon in self.polygons for y in polygon[1::2]]
        return float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))

    def part(self, window: tuple[int, int, int, int], size: tuple[int, int], *, reduced: int = 1) -> Image.Image:
        """As `Mask.part`: drawn larger, then reduced."""
        del size  # polygons do not know their image's
        left, upper, right, lower = window
        width, height = -(-(right - left) // reduced), -(-(lower - upper) // reduced)
        finer = _FINER if width * height <= _FINER_BELOW else _FINER // 2
        drawn = Image.new("L", (width * finer, height * finer))
        pen, factor = ImageDraw.Draw(drawn), finer / reduced
        for polygon in self.polygons:  # Pillow's whole numbers are the middles of pixels, and it draws the edge too
            xs = [(x - left) * factor - 0.5 for x in polygon[::2]]
            ys = [(y - upper) * factor - 0.5 for y in polygon[1::2]]
            pen.polygon(list(zip(xs, ys, strict=True)), fill=255)
        return drawn.reduce(finer)


@final
@dataclass(frozen=True, kw_only=True)
class RunLengthMask(Mask):
    """COCO's run lengths: columns from left to right, each from top to bottom; not-object first, then in turn.

    Attributes:
        size: Width and height of the image. (COCO's ``size`` is height and width: `read_mask` turns it round.)
        counts: Lengths of the runs; their sum is width times height.

    >>> RunLengthMask(size=(3, 2), counts=(2, 1, 3)).box_xyxy
    (1.0, 0.0, 2.0, 1.0)
    """

    size: tuple[int, int]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        width, height = self.size
        if width < 1 or height < 1 or width * height > _LARGEST:
            raise InputError(f"a mask's size must be width and height of its image, got {self.size!r}")
        if any(count < 0 for count in self.counts) or sum(self.counts) != width * height:
            raise InputError(
                f"the run lengths of a mask of {width} x {height} pixels must add up to {width * height}, got "
                f"{sum(self.counts)}" + (", some negative" if min(self.counts, default=0) < 0 else "")
            )
        if not any(self.counts[1::2]):
            raise InputError("the mask is empty: none of its run lengths is of the object")

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " runs"]:
        return np.cumsum(np.array(self.counts, dtype=np.int64))

    @cached_property
    def box_xyxy(self) -> Box:
        """The smallest box of whole pixels around it."""
        _, height = self.size
        counts = np.array(self.counts, dtype=np.int64)
        ends, lengths = self._ends[1::2], counts[1::2]
        ends, lengths = ends[lengths > 0], lengths[lengths > 0]
        first, last = ends - lengths, ends - 1
        across = first // height != last // height  # a run over a column's end holds its lowest and the uppermost pixel
        upper = 0 if across.any() else int((first % height).min())
        lower = height if across.any() else int((last % height).max()) + 1
        return float(first.min() // height), float(upper), float(last.max() // height + 1), float(lower)

    def pixels(self, left: int, right: int) -> Bool[np.ndarray, "h w"]:
        """Whether each pixel of the columns from ``left`` up to ``right`` is of the object."""
        _, height = self.size
        start, end = left * height, right * height
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, end, side="left"))
        edges = np.clip(np.concatenate(([start], self._ends[first : last + 1])), start, end)
        runs = np.arange(first, first + len(edges) - 1) % 2 == 1
        return np.repeat(runs, np.diff(edges)).reshape(right - left, height).T

    def part(self, window: tuple[int, int, int, int], size: tuple[int, int], *, reduced: int = 1) -> Image.Image:
        """As `Mask.part`; only the columns of the window are decoded."""
        if size != self.size:
            raise ImageError(
                f"the mask is of an image of {self.size[0]} x {self.size[1]} pixels, this one has {size[0]} x {size[1]}"
            )
        left, upper, right, lower = window
        inside = self.pixels(left, right)[upper:lower]
        image = Image.fromarray(np.ascontiguousarray(inside).view(np.uint8) * np.uint8(255))
        return image if reduced == 1 else image.reduce(reduced)


def read_mask(segmentation: object, *, size: tuple[int, int] | None = None) -> Mask:
    """Read what COCO and LVIS have under the key ``segmentation``.

    Args:
        segmentation: A list of polygons; or ``{"size": [height, width], "counts": …}``, the counts a list of numbers,
            or the compressed text (also as bytes).
        size: Width and height of the image, pixels; a mask of another size is refused. None does not ask here.

    Raises:
        InputError: It is none of them, is damaged or empty, or of another size.

    >>> read_mask([[0, 0, 4, 0, 4, 4]]).box_xyxy
    (0.0, 0.0, 4.0, 4.0)
    >>> read_mask({"size": [2, 3], "counts": "213"})
    RunLengthMask(size=(3, 2), counts=(2, 1, 3))
    """
    if isinstance(segmentation, Mapping):
        return _read_runs(segmentation, size)
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, str | bytes):
        try:
            polygons = tuple(tuple(float(number) for number in polygon) for polygon in segmentation)
        except (TypeError, ValueError) as error:
            raise InputError(f"a polygon mask is a list of lists of numbers, got {segmentation!r:.80}") from error
        return PolygonMask(polygons=polygons)
    raise InputError(f"a mask is a list of polygons, or size and counts, got {segmentation!r:.80}")


def _read_runs(given: Mapping[Any, Any], size: tuple[int, int] | None) -> RunLengthMask:
    try:
        height, width = map(int, given["size"])
        counts = given["counts"]
        if isinstance(counts, str | bytes):
            numbers = _decompressed(counts.encode("ascii") if isinstance(counts, str) else counts)
        else:
            numbers = tuple(int(number) for number in counts)
    except (KeyError, TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise InputError(
            f"run lengths are {{'size': [height, width], 'counts': …}}, got {dict(given)!r:.80}: {error!r:.80}"
        ) from error
    if size is not None and size != (width, height):
        raise InputError(f"the mask is of {width} x {height} pixels, the image has {size[0]} x {size[1]}")
    return RunLengthMask(size=(width, height), counts=numbers)


def _decompressed(text: bytes) -> tuple[int, ...]:
    """COCO's text: five bits a character, least first, signed; from the fourth count on, differences to two before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 50:
            raise ValueError(f"character {chr(character)!r} of the compressed counts")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the compressed counts end in the middle of a number")
    return tuple(counts)
