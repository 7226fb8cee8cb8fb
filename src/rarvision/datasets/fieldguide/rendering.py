"""From category codes to pixels: pose, habitat, subject, mishaps; the same on any machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Int, UInt8, UInt64

from rarvision.datasets.fieldguide import backdrops
from rarvision.datasets.fieldguide.aircraft import paint_aircraft
from rarvision.datasets.fieldguide.birds import paint_bird
from rarvision.datasets.fieldguide.butterflies import paint_butterfly
from rarvision.datasets.fieldguide.drawing import Canvas, Field
from rarvision.datasets.fieldguide.fish import paint_fish
from rarvision.datasets.fieldguide.flowers import paint_flower
from rarvision.datasets.fieldguide.hashing import Rolls, fold, mix, pixel_noise
from rarvision.datasets.fieldguide.vocabulary import domain_of
from rarvision.errors import OptionError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["PAINTERS", "expose", "illustrate", "pose", "render"]

Painter: TypeAlias = Callable[[Canvas, Field, Field, Int[np.ndarray, "n 5"]], None]

_CHUNK = 32


def render(
    domain: str,
    codes: Int[np.ndarray, "n 5"],
    instances: UInt64[np.ndarray, " n"],
    *,
    size: int = 48,
    seed: int = 0,
    nuisance: float = 1.0,
) -> UInt8[np.ndarray, "n size size 3"]:
    """Draw images; each depends on (domain, code, instance, seed) alone, not on its batch.

    Args:
        domain: A key of `DOMAINS`.
        codes: The category of each image.
        instances: Which of the category's images; any 64-bit numbers.
        size: Side in pixels; the same scene at any size.
        seed: Another seed, other images of the same categories.
        nuisance: Strength of all that does not belong to the category: 0 none, 1 the benchmark's.

    Returns:
        Red, green, blue, 0 to 255.

    Raises:
        OptionError: Unknown domain, codes out of range, lengths that differ, or a size below 8.
    """
    known = domain_of(domain)
    codes = known.check(codes)
    numbers = np.asarray(instances).astype(np.uint64)
    if numbers.shape != (len(codes),):
        raise OptionError(f"instances must be one number a code, shape ({len(codes)},), got {numbers.shape}")
    if size < 8:
        raise OptionError(f"size must be at least 8 pixels, got {size}")
    keys = fold(seed, known.number, known.numbers(codes), numbers)
    out = np.empty((len(codes), size, size, 3), dtype=np.uint8)
    chunk = max(1, min(_CHUNK, _CHUNK * 48 * 48 * 4 // (size * size)))
    for start in range(0, len(codes), chunk):
        rows = slice(start, start + chunk)
        out[rows] = _draw(domain, codes[rows], keys[rows], size, float(nuisance))
    return out


def illustrate(  # noqa: PLR0917 - the order is part of the interface
    domain: str, code: Int[np.ndarray, " 5"], instance: int, size: int = 240, seed: int = 0, nuisance: float = 1.0
) -> Picture:
    """Draw one image larger: the very same scene as `render` gives at 48 pixels."""
    from PIL import Image

    codes = np.asarray(code, dtype=np.int64).reshape(1, -1)
    instances = np.array([instance], dtype=np.uint64)
    return Image.fromarray(render(domain, codes, instances, size=size, seed=seed, nuisance=nuisance)[0])


def pose(canvas: Canvas, domain: str) -> tuple[Field, Field]:
    """Return the subject's own coordinates: turned, tilted, mirrored, scaled, moved."""
    rolls, strength = canvas.rolls, np.float32(canvas.nuisance)
    turn = rolls(2, -0.22, 0.22) * strength
    if domain == "butterflies":
        turn = turn * np.float32(1.8)
    scale = np.float32(0.82) * (1.0 + rolls(3, -0.14, 0.12) * strength)
    dx, dy = rolls(4, -0.10, 0.10) * strength, rolls(5, -0.10, 0.10) * strength
    mirror = np.where((rolls(6) < 0.5) & (canvas.nuisance > 0), np.float32(-1.0), np.float32(1.0))
    p, q = (canvas.x - dx) / scale, (canvas.y - dy) / scale
    c, s = np.cos(turn), np.sin(turn)
    squash = 1.0 + rolls(7, -0.08, 0.08) * strength
    return (c * p + s * q) * mirror * squash, c * q - s * p


PAINTERS: dict[str, Painter] = {
    "birds": paint_bird,
    "fish": paint_fish,
    "flowers": paint_flower,
    "butterflies": paint_butterfly,
    "aircraft": paint_aircraft,
}
"""What paints the subjects of each domain, in their own frame."""


def _draw(
    domain: str, codes: Int[np.ndarray, "n 5"], keys: UInt64[np.ndarray, " n"], size: int, nuisance: float
) -> UInt8[np.ndarray, "n size size 3"]:
    canvas = Canvas(Rolls(keys), size, nuisance)
    u, v = pose(canvas, domain)
    habitat = backdrops.HABITAT_OF[domain]
    backdrops.lay(canvas, habitat, v - 0.70 - canvas.rolls(8, -0.25, 0.25) * u)
    PAINTERS[domain](canvas, u, v, codes)
    backdrops.veil_of(canvas, habitat)
    return expose(canvas, keys, size)


def expose(canvas: Canvas, keys: UInt64[np.ndarray, " n"], size: int) -> UInt8[np.ndarray, "n size size 3"]:
    """Light, colour cast, contrast and grain; then to 8 bits."""
    rolls, strength = canvas.rolls, np.float32(canvas.nuisance)
    rgb = canvas.rgb
    light = 1.0 + strength * (
        rolls(10, -0.22, 0.16) + rolls(11, -0.16, 0.16) * canvas.x + rolls(12, -0.16, 0.16) * canvas.y
    )
    rgb *= light[:, None]
    for channel in range(3):
        rgb[:, channel] *= 1.0 + strength * rolls(13 + channel, -0.16, 0.16)
    contrast = 1.0 + strength * rolls(16, -0.28, 0.12)[..., None]
    rgb -= np.float32(0.55)
    rgb *= contrast
    rgb += np.float32(0.55)
    grain = np.maximum(rolls(17, -0.03, 0.075), 0.0)[..., None] * strength
    noise = pixel_noise(mix(keys), size)
    noise *= grain
    rgb += noise
    np.clip(rgb, 0.0, 1.0, out=rgb)
    rgb *= np.float32(255.0)
    rgb += np.float32(0.5)
    return rgb.astype(np.uint8).transpose(0, 2, 3, 1)
