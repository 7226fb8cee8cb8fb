"""A canvas for batches of scenes: signed distances, soft edges, layers of colour.

Coordinates: x to the right, y down, the picture spans -1 to 1 both ways. A *shape* maps fields x, y of shape (n, h, w)
to signed distances (negative inside). Everything is float32 and elementwise over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import numpy as np
from jaxtyping import Float32, Int

from rarvision.datasets.fieldguide.hashing import Rolls

__all__ = [
    "INK",
    "Canvas",
    "Colour",
    "Field",
    "Number",
    "Shape",
    "capsule",
    "choose",
    "circle",
    "cut",
    "ellipse",
    "intersect",
    "lens",
    "marking",
    "polygon",
    "smooth_union",
    "union",
]

Field: TypeAlias = Float32[np.ndarray, "n h w"]
Colour: TypeAlias = "Float32[np.ndarray, 'n 3'] | tuple[float, float, float]"
Number: TypeAlias = "float | Float32[np.ndarray, 'n 1 1']"
Shape: TypeAlias = Callable[[Field, Field], Field]

INK = (0.10, 0.08, 0.10)
"""The colour of outlines and markings."""

FAR = 9.0


def circle(x: Field, y: Field, cx: Number, cy: Number, r: Number) -> Field:
    """Distance to a circle."""
    u, v = x - cx, y - cy
    return np.sqrt(u * u + v * v) - r


def ellipse(x: Field, y: Field, cx: Number, cy: Number, rx: Number, ry: Number, angle: float = 0.0) -> Field:  # noqa: PLR0917 - a formula
    """Approximate distance to an ellipse, turned clockwise on the screen by ``angle`` radians."""
    u, v = x - cx, y - cy
    if angle:
        c, s = math.cos(angle), math.sin(angle)
        u, v = c * u + s * v, c * v - s * u
    u, v = u / rx, v / ry
    k = np.sqrt(u * u + v * v)
    u, v = u / rx, v / ry
    return k * (k - 1.0) / (np.sqrt(u * u + v * v) + 1e-4)


def capsule(  # noqa: PLR0917 - a formula
    x: Field, y: Field, ax: Number, ay: Number, bx: Number, by: Number, ra: Number, rb: Number | None = None
) -> Field:
    """Distance to a thick line from a to b whose half-width goes from ``ra`` to ``rb``."""
    u, v = x - ax, y - ay
    dx, dy = bx - ax, by - ay
    h = np.clip((u * dx + v * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    u, v = u - h * dx, v - h * dy
    return np.sqrt(u * u + v * v) - (ra if rb is None else ra + h * (rb - ra))


def polygon(x: Field, y: Field, *points: tuple[float, float]) -> Field:
    """Distance to a simple polygon, concave ones included."""
    best = np.full_like(x, 1e3)
    inside = np.zeros(x.shape, dtype=bool)
    px, py = points[-1]
    for qx, qy in points:
        ex, ey = px - qx, py - qy
        u, v = x - qx, y - qy
        h = np.clip((u * ex + v * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        du, dv = u - h * ex, v - h * ey
        best = np.minimum(best, du * du + dv * dv)
        if ey:
            inside ^= ((y < qy) != (y < py)) & (u < ex * v / ey)
        px, py = qx, qy
    best = np.sqrt(best)
    return cast("Field", np.where(inside, -best, best))


def lens(  # noqa: PLR0917 - a formula
    x: Field, y: Field, cx: Number, cy: Number, cos: Number, sin: Number, half: Number, width: float = 0.45
) -> Field:
    """Approximate distance to a leaf: pointed at both ends of its axis (cos, sin), ``width`` times as wide as long."""
    u, v = x - cx, y - cy
    a, b = (cos * u + sin * v) / half, cos * v - sin * u
    return (np.abs(b) - width * half * (1.0 - a * a)) * 0.8


def union(*fields: Field) -> Field:
    """Inside any."""
    best = fields[0]
    for other in fields[1:]:
        best = np.minimum(best, other)
    return best


def intersect(*fields: Field) -> Field:
    """Inside all."""
    best = fields[0]
    for other in fields[1:]:
        best = np.maximum(best, other)
    return best


def cut(field: Field, hole: Field) -> Field:
    """Inside the first, outside the second."""
    return cast("Field", np.maximum(field, -hole))


def smooth_union(a: Field, b: Field, k: float) -> Field:
    """Union with the crease filled over a width k."""
    h = np.maximum(k - np.abs(a - b), 0.0)
    return cast("Field", np.minimum(a, b) - h * h * (0.25 / k))


def choose(values: Int[np.ndarray, " n"], shapes: Sequence[Shape | None], x: Field, y: Field) -> Field:
    """Evaluate for each image the shape that its attribute's value selects; None is nowhere."""
    out = np.full_like(x, FAR)
    for value, shape in enumerate(shapes):
        if shape is not None:
            rows = np.flatnonzero(values == value)
            if len(rows):
                out[rows] = shape(x[rows], y[rows])
    return out


def _spots(s: Field, t: Field) -> Field:
    return union(
        circle(s, t, -0.50, -0.34, 0.25),
        circle(s, t, 0.12, -0.42, 0.25),
        circle(s, t, -0.20, 0.36, 0.25),
        circle(s, t, 0.46, 0.26, 0.25),
    )


def _ring(s: Field, t: Field) -> Field:
    r = np.sqrt(s * s + t * t)
    return union(np.abs(r - 0.56) - 0.13, r - 0.17)


def _chequers(s: Field, t: Field) -> Field:
    u, v = s / 0.5 + 0.5, t / 0.5 + 0.5
    a = np.abs(u - 2.0 * np.round(u * 0.5)) - 0.5
    b = np.abs(v - 2.0 * np.round(v * 0.5)) - 0.5
    m = np.minimum(np.abs(a), np.abs(b)) * 0.5
    sign: Field = np.where(a * b > 0.0, np.float32(-1.0), np.float32(1.0))
    return sign * m


_MARKINGS: tuple[Shape | None, ...] = (
    None,
    lambda s, t: np.abs(s - 0.58 * np.round(s / 0.58)) - 0.15 + 0.0 * t,
    lambda s, t: np.abs(t - 0.25 - 0.5 * np.round((t - 0.25) / 0.5)) - 0.125 + 0.0 * s,
    _spots,
    _ring,
    _chequers,
)


def marking(values: Int[np.ndarray, " n"], s: Field, t: Field) -> Field:
    """Distance (in panel units) to the dark marks of a pattern word on a panel whose s, t span -1 to 1."""
    return choose(values, _MARKINGS, s, t)


class Canvas:
    """A batch of pictures in the making.

    Attributes:
        rgb: Linear-ish colour, (n, 3, h, w), 0 to 1.
        x: Picture coordinate of each pixel centre, (n, h, w).
        y: The same, down.
        soft: Width of an edge in picture units, (n, 1, 1): one pixel and the image's blur.
        rolls: The images' random numbers.
        nuisance: Strength of everything that does not belong to the category, 0 to 1 and beyond.
        cover: How much of each pixel is painted over, 0 to 1, (n, h, w), where it is asked for; what is painted on an
            empty canvas is then a cut-out: colours multiplied by their cover.
    """

    def __init__(self, rolls: Rolls, size: int, nuisance: float, *, span: float = 1.0, cutout: bool = False) -> None:
        n = len(rolls)
        line = ((np.arange(size, dtype=np.float32) + 0.5) * (2.0 * span / size) - span).astype(np.float32)
        self.x: Field = np.ascontiguousarray(np.broadcast_to(line[None, None, :], (n, size, size)))
        self.y: Field = np.ascontiguousarray(np.broadcast_to(line[None, :, None], (n, size, size)))
        self.rgb: Float32[np.ndarray, "n 3 h w"] = np.zeros((n, 3, size, size), dtype=np.float32)
        self.rolls = rolls
        self.nuisance = nuisance
        blur = np.maximum(rolls(1, -0.35, 1.0), 0.0) * (0.085 * nuisance)
        self.blur = blur
        self.soft: Float32[np.ndarray, "n 1 1"] = np.sqrt((2.2 * span / size) ** 2 + blur * blur)
        self.cover: Field | None = np.zeros((n, size, size), dtype=np.float32) if cutout else None

    def fill(self, colour: Float32[np.ndarray, "n 3 h w"]) -> None:
        """Replace the whole picture."""
        self.rgb[...] = colour

    def paint(
        self,
        distance: Field,
        colour: Colour,
        *,
        shade: Field | None = None,
        opacity: Number = 1.0,
        soft: Number | None = None,
    ) -> None:
        """Lay a colour over the inside of a shape.

        Args:
            distance: Signed distance.
            colour: One for all images, or one each.
            shade: Factor of the colour at each pixel.
            opacity: 0 to 1.
            soft: Width of the edge; the canvas's own by default.
        """
        cover = np.clip(0.5 - distance / (self.soft if soft is None else soft), 0.0, 1.0)
        if not (isinstance(opacity, float) and opacity == 1.0):
            cover *= opacity
        if self.cover is not None:
            self.cover += (1.0 - self.cover) * cover
        for channel in range(3):
            plane = self.rgb[:, channel]
            tone: Number = colour[channel] if isinstance(colour, tuple) else colour[:, channel, None, None]
            delta = (tone * shade if shade is not None else tone) - plane
            delta *= cover
            plane += delta

    def part(
        self,
        distance: Field,
        colour: Colour,
        *,
        outline: float = 0.035,
        puff: float = 0.16,
        texture: Field | float = 1.0,
    ) -> None:
        """Paint a part of the subject: dark outline, then the colour, rounded by shading towards its rim, textured."""
        self.paint(distance - outline, INK)
        depth = np.clip(distance * (-1.0 / puff), 0.0, 1.0)
        self.paint(distance, colour, shade=(0.72 + 0.36 * depth * (2.0 - depth) - 0.10 * self.y) * texture)
