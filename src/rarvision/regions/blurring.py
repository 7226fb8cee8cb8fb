"""The Gaussian blur of a whole image, kept as small as its lack of detail allows."""

from __future__ import annotations

import math
from typing import Final, final

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image, ImageFilter

__all__ = ["BlurredCopy"]

_PASSES: Final = 3  # Pillow's Gaussian blur is as many box filters, one after another
_SIGMA_KEPT: Final = 4.0  # of the blocks that an image is reduced to; a box filter is then eight blocks long
_MOST_BLOCKS: Final = 64  # along the longer side; with more, blurring at full size is no slower


@final
class BlurredCopy:
    """An image as Pillow's `GaussianBlur` makes it, any part of it on demand.

    From a standard deviation of a sixteenth of the longer side on, an image of more than 128 pixels is reduced to its
    outermost pixels and blocks of a quarter of the standard deviation. Any pixel of the blurred image follows from them
    by two small matrices: Pillow's box filters, applied to the blocks. Else it is blurred at full size. On drawings,
    noise, stripes and frames no value differs from the blur at full size by more than 2 of 255, nor the mean by more
    than 0.6 (`tests/test_regions.py` holds both).

    Args:
        image: RGB.
        sigma: Standard deviation, pixels.
    """

    def __init__(self, image: Image.Image, sigma: float) -> None:
        self._whole: Image.Image | None = None
        longest = max(image.size)
        if longest <= 2 * _MOST_BLOCKS or longest * _SIGMA_KEPT > sigma * _MOST_BLOCKS:
            self._whole = image.filter(ImageFilter.GaussianBlur(sigma))
            return
        blocks = [_blocks(side, sigma) for side in image.size]
        self._across, self._down = (_operator(side, n, sigma) for side, n in zip(image.size, blocks, strict=True))
        wide = _reduced_across(image, blocks[0])
        self._small: Float32[np.ndarray, "down across 3"] = np.asarray(
            _reduced_across(wide.transpose(Image.Transpose.TRANSPOSE), blocks[1]).transpose(Image.Transpose.TRANSPOSE)
        ).astype(np.float32)

    def part(self, window: tuple[int, int, int, int], *, reduced: int = 1) -> Image.Image:
        """The part inside a window of whole pixels that lies in the image; ``reduced`` pixels become one, both ways."""
        if self._whole is not None:
            return self._whole.crop(window) if reduced == 1 else self._whole.reduce(reduced, box=window)
        left, upper, right, lower = window
        down, across = _averaged(self._down[upper:lower], reduced), _averaged(self._across[left:right], reduced)
        columns = np.matmul(across, self._small).reshape(self._small.shape[0], -1)  # down x (across, 3)
        pixels = np.matmul(down, columns)
        pixels += 0.5  # rounded where the fraction is cut off; every value is a mean of values of 0 to 255
        return Image.fromarray(pixels.astype(np.uint8).reshape(len(down), len(across), 3))


def _blocks(side: int, sigma: float) -> int | None:
    """How many blocks lie between the outermost pixels; None where every pixel is its own."""
    return None if side <= _MOST_BLOCKS else max(1, math.ceil(side * _SIGMA_KEPT / sigma))


def _reduced_across(image: Image.Image, blocks: int | None) -> Image.Image:
    """The outermost columns as they are, the blocks between them averaged along the rows."""
    if blocks is None:
        return image
    width, height = image.size
    small = Image.new("RGB", (blocks + 2, height))
    small.paste(image.crop((0, 0, 1, height)), (0, 0))
    small.paste(image.resize((blocks, height), Image.Resampling.BOX, box=(1, 0, width - 1, height)), (1, 0))
    small.paste(image.crop((width - 1, 0, width, height)), (blocks + 1, 0))
    return small


def _operator(side: int, blocks: int | None, sigma: float) -> Float32[np.ndarray, "side blocks"]:
    """What each pixel of a blurred row has of each block, and of the outermost pixels."""
    if blocks is None:
        shares = np.eye(side)
    else:
        shares = np.zeros((side, blocks + 2))
        shares[0, 0] = shares[-1, -1] = 1.0
        inner = np.arange(side - 2)
        shares[inner + 1, 1 + ((inner + 0.5) * blocks / (side - 2)).astype(np.int64)] = 1.0
    radius = _box_radius(sigma)
    for _ in range(_PASSES):
        shares = _box_filtered(shares, radius)
    return shares.astype(np.float32)


def _box_radius(sigma: float) -> float:
    """Of the box filters whose variances add up to the Gaussian's, as Pillow computes it (Gwosdek et al., 2011)."""
    variance = sigma * sigma / _PASSES
    whole = math.floor((math.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + rest / (6 * (variance - (whole + 1) ** 2))


def _box_filtered(rows: Float[np.ndarray, "side blocks"], radius: float) -> Float[np.ndarray, "side blocks"]:
    """Each row becomes the mean of those within the radius, its fraction weighing the last; the ends go on for ever."""
    whole = int(radius)
    padded = np.pad(rows, ((whole + 1, whole + 1), (0, 0)), mode="edge")
    sums = np.concatenate((np.zeros((1, rows.shape[1])), np.cumsum(padded, axis=0)))
    count = len(rows)
    inside = sums[2 * whole + 2 : 2 * whole + 2 + count] - sums[1 : 1 + count]
    ends = padded[:count] + padded[2 * whole + 2 :]
    filtered: Float[np.ndarray, "side blocks"] = (inside + (radius - whole) * ends) / (2 * radius + 1)
    return filtered


def _averaged(rows: Float32[np.ndarray, "n blocks"], reduced: int) -> Float32[np.ndarray, "m blocks"]:
    """The mean of every ``reduced`` rows; the last ones may be fewer."""
    if reduced == 1:
        return rows
    starts = np.arange(0, len(rows), reduced)
    counts = np.minimum(reduced, len(rows) - starts).astype(np.float32)
    return np.add.reduceat(rows, starts, axis=0) / counts[:, None]
