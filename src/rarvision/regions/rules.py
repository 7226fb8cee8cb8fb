"""How a crop is made of a box: how much around it is shown, and what is done to all that is not the object."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final, Literal

from rarvision.errors import OptionError
from rarvision.types import Box

__all__ = ["SIZE_LIMITS", "AdaptiveScale", "Blur", "Colour", "CropRule", "Outline", "Padding"]

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

Padding = Colour | Literal["edge", "clip"]
"""What a crop shows where it leaves the image: a colour; ``edge``, the image's outermost pixels drawn out; ``clip``,
nothing, the crop ends there and may lose its shape."""

SIZE_LIMITS: Final = (32.0**2, 96.0**2)
"""COCO's and LVIS's limits between small, medium and large objects: areas, pixels."""

_CLIP_MEAN: Final = (122, 116, 104)  # the mean that CLIP's preprocessing subtracts: padding becomes zero
_LARGEST_SCALE: Final = 100.0


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - it reads as an assertion
    if not condition:
        raise OptionError(message)


def _check_scale(scale: float, name: str) -> None:
    _require(
        math.isfinite(scale) and 0.0 < scale <= _LARGEST_SCALE,
        f"{name} must be above 0, at most {_LARGEST_SCALE:g}, got {scale!r}",
    )


def _check_colour(colour: object, name: str) -> None:
    _require(
        isinstance(colour, tuple) and len(colour) == 3 and all(type(v) is int and 0 <= v <= 255 for v in colour),
        f"{name} must be red, green and blue, three whole numbers of 0 to 255, got {colour!r}",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveScale:
    """The crop's scale by the object's size: small objects need more around them than large ones.

    Attributes:
        limits: Areas between the classes of size, pixels, ascending; an object of exactly a limit's area belongs to the
            larger class.
        scales: One for each class, smallest objects first: one more than ``limits``.

    Source: Table 12 of the paper, with blur: the best AP of small objects lies at 2.6 to 2.8 (47.4), of medium ones at
    1.6 (68.3), of large ones at 1.0 (72.4).

    >>> [AdaptiveScale().of((0, 0, side, side)) for side in (16, 32, 100)]
    [2.7, 1.6, 1.0]
    """

    limits: tuple[float, ...] = SIZE_LIMITS
    scales: tuple[float, ...] = (2.7, 1.6, 1.0)

    def __post_init__(self) -> None:
        _require(
            len(self.scales) == len(self.limits) + 1,
            f"there must be one scale more than limits, got {len(self.scales)} and {len(self.limits)}",
        )
        _require(
            all(map(math.isfinite, self.limits))
            and all(a < b for a, b in zip((0.0, *self.limits), self.limits, strict=False)),
            f"limits must be ascending areas above 0, got {self.limits!r}",
        )
        for scale in self.scales:
            _check_scale(scale, "a scale")

    def size_class(self, box_xyxy: Box) -> int:
        """Number of the box's class of size by its area, 0 the smallest."""
        left, upper, right, lower = box_xyxy
        return bisect_right(self.limits, (right - left) * (lower - upper))

    def of(self, box_xyxy: Box) -> float:
        """The scale for a box."""
        return self.scales[self.size_class(box_xyxy)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Blur:
    """A Gaussian blur of what is not the object; exactly one of the two says how strong.

    Attributes:
        share: Standard deviation over the image's longer side.
        pixels: Standard deviation, pixels of the stored image; what Pillow calls the radius.

    >>> Blur(share=0.05).sigma((640, 480))
    32.0
    """

    share: float | None = None
    pixels: float | None = None

    def __post_init__(self) -> None:
        _require((self.share is None) != (self.pixels is None), "give a Blur either share or pixels")
        value = self.pixels if self.share is None else self.share
        limit = 1.0 if self.pixels is None else 10_000.0
        _require(
            value is not None and math.isfinite(value) and 0.0 < value <= limit,
            f"the {'share' if self.pixels is None else 'pixels'} of a Blur must be above 0, at most {limit:g}, "
            f"got {value!r}",
        )

    def sigma(self, size: tuple[int, int]) -> float:
        """The standard deviation in pixels of an image of this width and height."""
        return self.share * max(size) if self.share is not None else self.pixels or 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """A line around the box, drawn on the crop.

    Attributes:
        colour: Its colour.
        share: Its width over the crop's longer side; at least one pixel.
        shape: ``box`` along the box's edges, inside it; ``ellipse``, the one inscribed in the box.
    """

    colour: Colour = (255, 0, 0)
    share: float = 0.02
    shape: Literal["box", "ellipse"] = "box"

    def __post_init__(self) -> None:
        _check_colour(self.colour, "an outline's colour")
        _require(0.0 < self.share <= 0.5, f"an outline's share must be above 0, at most 0.5, got {self.share!r}")
        _require(self.shape in ("box", "ellipse"), f"an outline's shape must be box or ellipse, got {self.shape!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CropRule:
    """How a crop is made of a box. The defaults are the rule that the paper's Table 12 supports.

    Attributes:
        scale: The crop's size over the box's, or a rule that tells it by the box's area.
        shape: ``square``, with a side of ``scale`` times the box's longer side; or ``box``, the box's own shape. Both
            are centred on the box.
        padding: What is shown outside the image.
        blur: How strongly what is not the object is blurred; None for not at all. The paper does not tell its own: this
            is about the radius of 100 on images of 640 pixels that related work uses.
        grey: Whether what is not the object loses its colours.
        darkening: How much light what is not the object loses, 0 to 1 (black).
        outline: A line around the box.
        keep_side: Pixels that a crop's longer side keeps: a crop of n times as many is reduced n times, n whole. So
            what has to be composed is never larger than twice this, however large the box and the scale.

    Source: section 3.2, Figure 3 and Table 12.

    >>> CropRule().window((100, 100, 120, 110), (640, 480))
    (83.0, 78.0, 137.0, 132.0)
    """

    scale: float | AdaptiveScale = AdaptiveScale()
    shape: Literal["square", "box"] = "square"
    padding: Padding = _CLIP_MEAN
    blur: Blur | None = Blur(share=0.15)
    grey: bool = False
    darkening: float = 0.0
    outline: Outline | None = None
    keep_side: int = 1024

    def __post_init__(self) -> None:
        if not isinstance(self.scale, AdaptiveScale):
            _check_scale(self.scale, "a crop's scale")
        _require(self.shape in ("square", "box"), f"a crop's shape must be square or box, got {self.shape!r}")
        if self.padding not in ("edge", "clip"):
            _check_colour(self.padding, "padding that is neither edge nor clip")
        _require(0.0 <= self.darkening <= 1.0, f"darkening must lie between 0 and 1, got {self.darkening!r}")
        _require(self.keep_side >= 1, f"keep_side must be at least 1 pixel, got {self.keep_side!r}")

    @property
    def changes_surroundings(self) -> bool:
        """Whether what is not the object looks other than in the image."""
        return self.blur is not None or self.grey or self.darkening > 0.0

    def scale_of(self, box_xyxy: Box) -> float:
        """The scale for a box (the part of it that lies in the image)."""
        return self.scale.of(box_xyxy) if isinstance(self.scale, AdaptiveScale) else self.scale

    def sides(self, box_xyxy: Box) -> tuple[float, float]:
        """Width and height of the crop of a box before anything is cut off, pixels."""
        scale, (left, upper, right, lower) = self.scale_of(box_xyxy), box_xyxy
        width, height = scale * (right - left), scale * (lower - upper)
        return (width, height) if self.shape == "box" else (max(width, height),) * 2

    def window(self, box_xyxy: Box, size: tuple[int, int]) -> Box:
        """What part of the plane is shown: pixels of the image, and beyond it unless ``padding`` is ``clip``.

        Args:
            box_xyxy: A box inside the image, see `rarvision.regions.clipped_box`.
            size: Width and height of the image, pixels.
        """
        left, upper, right, lower = box_xyxy
        (x, y), (width, height) = ((left + right) / 2, (upper + lower) / 2), self.sides(box_xyxy)
        window = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if self.padding != "clip":
            return window
        return max(window[0], 0.0), max(window[1], 0.0), min(window[2], size[0]), min(window[3], size[1])
