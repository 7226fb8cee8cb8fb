"""Crops of one image: decoded once, blurred once, and each crop composed of what it shows alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast, final

import numpy as np
from PIL import Image, ImageDraw

from rarvision.errors import ImageError, InputError
from rarvision.images import Picture, load_image
from rarvision.regions.blurring import BlurredCopy
from rarvision.regions.boxes import clipped_box
from rarvision.regions.masks import Mask
from rarvision.regions.rules import CropRule, Outline
from rarvision.types import Box

__all__ = ["Crop", "ImageSource", "Scene", "crops"]

ImageSource = Path | str | bytes | Image.Image
"""Whatever `rarvision.images.load_image` opens."""

_Window = tuple[int, int, int, int]
_DEFAULT: Final = CropRule()
_MARK: Final = Outline(share=0.006)
_NO_MASKS: Final = "there must be as many masks as boxes (None for a box without)"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Crop:
    """What an encoder or an MLLM is shown of a box.

    Attributes:
        box_xyxy: The part of the box that lies in the image, at least a pixel; pixels of the upright image.
        window_xyxy: What part of the plane the crop shows; it may leave the image.
        scale: The crop's size over the box's, before anything was cut off.
        picture: The crop, for `rarvision.Encoder.prepare`.
    """

    box_xyxy: Box
    window_xyxy: Box
    scale: float
    picture: Picture

    @property
    def image(self) -> Image.Image:
        """The crop as an image of its own, to whole pixels."""
        return self.picture.whole()


def crops(
    image: ImageSource,
    boxes_xyxy: Iterable[Box],
    rule: CropRule = _DEFAULT,
    *,
    masks: Iterable[Mask | None] | None = None,
    on_error: Callable[[int, InputError], None] | None = None,
) -> Iterator[Crop]:
    """Make the crops of one image, one after another; it is decoded once, and blurred once.

    Only the crop that is asked for is in memory beside the image and its blurred copy, which is smaller: boxes may be a
    generator of any length.

    Args:
        image: A path, the bytes of a file, or a PIL image.
        boxes_xyxy: Pixels of the upright image; a row of `to_xyxy` is one. What lies outside the image is cut off; less
            than a pixel is widened to one, see `clipped_box`.
        rule: How a crop is made.
        masks: One for each box, or None for those without: what stays sharp instead of the box.
        on_error: Called with the position and the error of a box of which no crop can be made; it is left out, and the
            others are not affected. Without it the error is raised.

    Yields:
        The crops, in the boxes' order.

    Raises:
        ImageError: The image cannot be read; or a box lies outside, or a mask is another image's, without ``on_error``.
        InputError: A box is NaN, infinite or without an inside, without ``on_error``; or there are not as many masks
            as boxes.

    >>> picture = Image.new("RGB", (640, 480), "green")
    >>> [(crop.scale, crop.picture.size) for crop in crops(picture, [(100, 100, 120, 110), (0, 0, 200, 300)])]
    [(2.7, (54, 54)), (1.0, (300, 300))]
    """
    scene = Scene(image, rule)
    _ = scene.image
    every = iter(masks) if masks is not None else None
    for position, box in enumerate(boxes_xyxy):
        mask = None
        if every is not None:
            try:
                mask = next(every)
            except StopIteration:
                raise InputError(f"{_NO_MASKS}; got {position}, and more boxes") from None
        try:
            crop = scene.crop(cast("Box", tuple(map(float, box))), mask=mask, name=f"box {position}")
        except InputError as error:
            if on_error is None:
                raise
            on_error(position, error)
            continue
        yield crop
    if every is not None and next(every, every) is not every:
        raise InputError(f"{_NO_MASKS}; got more masks")


@final
class Scene:
    """One image of which crops are made by any number of threads; read when the first is asked for.

    Args:
        source: The image.
        rule: How crops are made.
    """

    def __init__(self, source: ImageSource, rule: CropRule) -> None:
        self._source: ImageSource | None = source
        self._rule = rule
        self._lock = threading.Lock()
        self._image: Image.Image | None = None
        self._error: ImageError | None = None
        self._blurred: BlurredCopy | None = None

    @property
    def image(self) -> Image.Image:
        """The upright image; raises `ImageError` where it cannot be read, each time."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._image is None and self._source is not None:
                try:
                    self._image = load_image(self._source)
                except ImageError as error:
                    self._error = error
                    raise
                self._source = None  # encoded bytes are not needed any more
            assert self._image is not None  # noqa: S101 - for the type checker: one of the two is set
            return self._image

    def _blur(self, image: Image.Image, sigma: float) -> BlurredCopy:
        with self._lock:
            if self._blurred is None:
                self._blurred = BlurredCopy(image, sigma)
            return self._blurred

    def crop(self, box_xyxy: Box, *, mask: Mask | None = None, name: str = "box") -> Crop:
        """The crop of one box; see `crops`."""
        image, rule = self.image, self._rule
        box = clipped_box(box_xyxy, image.size, name=name)
        window = rule.window(box, image.size)
        sides = (window[2] - window[0], window[3] - window[1]) if rule.padding == "clip" else rule.sides(box)
        size = max(1, round(sides[0])), max(1, round(sides[1]))
        inside = window[0] >= 0 and window[1] >= 0 and window[2] <= image.width and window[3] <= image.height
        if inside and not rule.changes_surroundings and rule.outline is None:
            picture = Picture(image=image, size=size, box=window)  # nothing to compose: a view of the image
        else:
            picture = self._composed(image, box, window, size, mask)
        return Crop(box_xyxy=box, window_xyxy=window, scale=rule.scale_of(box), picture=picture)

    def marked(
        self, box_xyxy: Box, *, outline: Outline = _MARK, keep_side: int = 1024, name: str = "box"
    ) -> Image.Image:
        """The whole image, reduced to ``keep_side`` pixels of its longer side, with a box drawn on it; see `crops`."""
        image = self.image
        box = clipped_box(box_xyxy, image.size, name=name)
        share = min(1.0, keep_side / max(image.size))
        size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
        whole = image.copy() if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        across, down = size[0] / image.width, size[1] / image.height
        place = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        _draw(outline, on=whole, box=place, width=max(2, round(outline.share * max(size))))
        return whole

    def _composed(self, image: Image.Image, box: Box, window: Box, size: tuple[int, int], mask: Mask | None) -> Picture:
        patch = _Patch.of(window, image.size, keep_side=self._rule.keep_side)
        inner = patch.cut(image)
        if self._rule.changes_surroundings:
            inner = self._surrounded(image, inner, box, patch, mask)
        whole = patch.padded(inner, self._rule)
        left, upper, right, lower = patch.placed(window)
        if self._rule.outline is not None:
            whole = whole.copy() if whole is image else whole
            width = self._rule.outline.share * max(right - left, lower - upper)
            _draw(self._rule.outline, on=whole, box=patch.placed(box), width=max(1, round(width)))
        # Only rounding leads beyond.
        return Picture(image=whole, size=size, box=(left, upper, min(right, whole.width), min(lower, whole.height)))

    def _surrounded(
        self, image: Image.Image, sharp: Image.Image, box: Box, patch: _Patch, mask: Mask | None
    ) -> Image.Image:
        """The patch's part of the image, with the object as it is and the rest as the rule has it."""
        rule, part, reduced = self._rule, patch.part, patch.reduced
        if rule.blur is None:
            around = sharp.copy()
        else:
            around = self._blur(image, rule.blur.sigma(image.size)).part(part, reduced=reduced)
        if rule.grey:
            around = around.convert("L").convert("RGB")
        if rule.darkening:
            around = around.point([round(value * (1.0 - rule.darkening)) for value in range(256)] * 3)
        if mask is not None:
            around.paste(sharp, mask=mask.part(part, image.size, reduced=reduced))
            return around
        left, upper, right, lower = _on_grid(box, reduced)  # every pixel that the box touches
        x, y = max(left - part[0], 0) // reduced, max(upper - part[1], 0) // reduced
        right, lower = min(right, part[2]) - part[0], min(lower, part[3]) - part[1]
        around.paste(sharp.crop((x, y, -(-right // reduced), -(-lower // reduced))), (x, y))
        return around


@dataclass(frozen=True, slots=True)
class _Patch:
    """What is composed of pixels for one crop.

    Attributes:
        canvas: All that is shown: pixels of the image, and beyond it; multiples of ``reduced``.
        part: What of it lies in the image.
        reduced: How many pixels become one, both ways.
    """

    canvas: _Window
    part: _Window
    reduced: int

    @classmethod
    def of(cls, window: Box, size: tuple[int, int], *, keep_side: int) -> _Patch:
        reduced = max(1, int(max(window[2] - window[0], window[3] - window[1]) // keep_side))
        canvas = _on_grid(window, reduced)
        part = max(canvas[0], 0), max(canvas[1], 0), min(canvas[2], size[0]), min(canvas[3], size[1])
        return cls(canvas, part, reduced)

    def placed(self, box: Box) -> Box:
        """A box of the image in pixels of the patch."""
        x, y, n = self.canvas[0], self.canvas[1], self.reduced
        return (box[0] - x) / n, (box[1] - y) / n, (box[2] - x) / n, (box[3] - y) / n

    def cut(self, image: Image.Image) -> Image.Image:
        """The part of the image."""
        if self.reduced > 1:
            return image.reduce(self.reduced, box=self.part)
        return image if self.part == (0, 0, *image.size) else image.crop(self.part)

    def padded(self, inner: Image.Image, rule: CropRule) -> Image.Image:
        """The part laid on the canvas."""
        x, y = (self.part[0] - self.canvas[0]) // self.reduced, (self.part[1] - self.canvas[1]) // self.reduced
        width, height = (
            (end - start) // self.reduced for start, end in zip(self.canvas[:2], self.canvas[2:], strict=True)
        )
        if (width, height) == inner.size or rule.padding == "clip":
            return inner
        if rule.padding == "edge":
            sides = ((y, height - y - inner.height), (x, width - x - inner.width), (0, 0))
            return Image.fromarray(np.pad(np.asarray(inner), sides, mode="edge"))
        whole = Image.new("RGB", (width, height), rule.padding)
        whole.paste(inner, (x, y))
        return whole


def _on_grid(box: Box, step: int) -> _Window:
    """The smallest box around another whose edges are multiples of ``step``; at least one step wide and high."""
    left, upper = (int(edge // step) for edge in box[:2])
    right, lower = (math.ceil(edge / step) for edge in box[2:])
    return left * step, upper * step, max(right, left + 1) * step, max(lower, upper + 1) * step


def _draw(outline: Outline, *, on: Image.Image, box: Box, width: int) -> None:
    left, upper = int(box[0]), int(box[1])
    edges = (left, upper, max(left, math.ceil(box[2]) - 1), max(upper, math.ceil(box[3]) - 1))
    pen = ImageDraw.Draw(on)
    (pen.rectangle if outline.shape == "box" else pen.ellipse)(edges, outline=outline.colour, width=width)
