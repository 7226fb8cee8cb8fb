"""Flowers in a meadow: petals, centre, corolla pattern, leaves and kind of bloom."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int

from rarvision.datasets.fieldguide.drawing import (
    Canvas,
    Field,
    Shape,
    capsule,
    choose,
    circle,
    ellipse,
    lens,
    polygon,
    union,
)
from rarvision.datasets.fieldguide.subjects import gloss, palette, panel

__all__ = ["paint_flower"]

_LEAF = (0.16, 0.42, 0.18)
_HEIGHT = -0.24


def _petals(count: int, shape: Shape, turn: float = 0.0) -> Shape:
    """Repeat a petal (pointing up from the origin) around the centre."""

    def around(u: Field, v: Field) -> Field:
        fields = []
        for k in range(count):
            angle = turn + 2.0 * math.pi * k / count
            c, s = math.cos(angle), math.sin(angle)
            fields.append(shape(c * u + s * v, c * v - s * u))
        return union(*fields)

    return around


def _daisy(u: Field, v: Field) -> Field:
    # Fold the plane into one of 14 sectors by rotation: cheaper than 14 petals.
    r = np.sqrt(u * u + v * v)
    angle = np.arctan2(v, u)
    step = 2.0 * math.pi / 13.0
    fold = angle - step * np.round(angle / step)
    a, b = r * np.cos(fold), r * np.sin(fold)
    return capsule(a, b, 0.30, 0.0, 0.56, 0.0, 0.05, 0.085)


_BLOOMS: tuple[Shape, ...] = (
    _daisy,
    _petals(4, lambda a, b: ellipse(a, b, 0.0, -0.36, 0.34, 0.30), 0.3),
    _petals(6, lambda a, b: lens(a, b, 0.0, -0.40, 0.0, 1.0, 0.40, 0.48)),
    _petals(
        5,
        lambda a, b: union(
            circle(a, b, -0.12, -0.46, 0.165),
            circle(a, b, 0.12, -0.46, 0.165),
            capsule(a, b, 0.0, -0.1, 0.0, -0.36, 0.1, 0.2),
        ),
    ),
    _petals(3, lambda a, b: lens(a, b, 0.0, -0.40, 0.0, 1.0, 0.44, 0.80)),
)


_UP = -0.5 * math.pi
_FOLDS = ((13.0, 0.0), (4.0, _UP + 0.3), (6.0, _UP), (5.0, _UP), (3.0, _UP))
"""Petals of each bloom and the direction of one of them."""


def _broad(a: Field, b: Field) -> Field:
    return ellipse(a, b, 0.42, 0.66, 0.36, 0.17, -0.35)


def _needles(a: Field, b: Field) -> Field:
    return union(
        capsule(a, b, 0.0, 0.86, 0.62, 0.34, 0.045, 0.008),
        capsule(a, b, 0.0, 0.90, 0.76, 0.62, 0.045, 0.008),
        capsule(a, b, 0.0, 0.94, 0.74, 0.90, 0.045, 0.008),
    )


def _fern(a: Field, b: Field) -> Field:
    stem = capsule(a, b, 0.0, 0.84, 0.80, 0.56, 0.03)
    leaflets = [stem]
    for k in range(4):
        x = 0.20 + 0.17 * k
        y = 0.84 - 0.35 * x
        h = 0.20 - 0.025 * k
        leaflets.append(capsule(a, b, x, y, x + 0.08, y - h, 0.045, 0.02))
        leaflets.append(capsule(a, b, x, y, x + 0.10, y + h * 0.9, 0.045, 0.02))
    return union(*leaflets)


def _heart(a: Field, b: Field) -> Field:
    return union(
        circle(a, b, 0.38, 0.56, 0.145),
        circle(a, b, 0.38, 0.80, 0.145),
        polygon(a, b, (0.36, 0.42), (0.80, 0.68), (0.36, 0.94)),
        capsule(a, b, 0.0, 0.74, 0.3, 0.68, 0.03),
    )


def _fork(a: Field, b: Field) -> Field:
    return union(
        capsule(a, b, 0.0, 0.86, 0.34, 0.72, 0.05, 0.07),
        capsule(a, b, 0.34, 0.72, 0.56, 0.36, 0.09, 0.05),
        capsule(a, b, 0.34, 0.72, 0.80, 0.80, 0.09, 0.05),
    )


_LEAVES: tuple[Shape, ...] = (_broad, _fork, _needles, _fern, _heart)


def paint_flower(canvas: Canvas, u: Field, v: Field, codes: Int[np.ndarray, "n 5"]) -> None:
    """Paint the subject in its own frame u, v."""
    stem = capsule(u, v, 0.0, 0.0, 0.0, 1.3, 0.035)
    canvas.part(stem, _LEAF, outline=0.02)
    leaves = choose(codes[:, 3], _LEAVES, np.abs(u), v)
    canvas.paint(leaves - 0.02, (0.05, 0.14, 0.06))
    canvas.paint(leaves, (0.26, 0.58, 0.26), shade=0.85 + np.clip(leaves * -3.0, 0.0, 0.3))
    p, q = u, v - _HEIGHT
    spin = canvas.rolls(220, -0.3, 0.3) * canvas.nuisance
    c, s = np.cos(spin), np.sin(spin)
    p, q = c * p + s * q, c * q - s * p
    bloom = choose(codes[:, 4], _BLOOMS, p, q)
    r = np.sqrt(p * p + q * q)
    petal = palette(canvas, codes[:, 0], 200)
    folds = np.array(_FOLDS, dtype=np.float32)[codes[:, 4]][:, :, None, None]
    angle = np.arctan2(q, p)
    veins = 0.94 + 0.10 * np.cos(folds[:, 0] * (angle - folds[:, 1])) + 0.03 * np.cos(5.0 * folds[:, 0] * angle)
    canvas.paint(bloom - 0.035, (0.10, 0.08, 0.10))
    canvas.paint(bloom, petal, shade=(0.72 + 0.45 * np.clip(r, 0.0, 0.7) + np.clip(bloom * -1.0, 0.0, 0.1)) * veins)
    panel(canvas, r - 0.36, p / 0.36, q / 0.36, 0.36, codes[:, 2] * 0)
    _corolla(canvas, angle, r, codes[:, 2])
    heart = palette(canvas, codes[:, 1], 210)
    canvas.part(r - 0.17, heart, outline=0.03, puff=0.15)
    gloss(canvas, ellipse(p, q, -0.05, -0.07, 0.06, 0.035, -0.5))


def _corolla(canvas: Canvas, angle: Field, r: Field, patterns: Int[np.ndarray, " n"]) -> None:
    """Paint the marks on the ring between centre and petals."""

    def radial(count: float, width: float) -> Shape:
        step = 2.0 * math.pi / count
        return lambda a, b: (np.abs(a - step * np.round(a / step)) - width) * b

    def dots(a: Field, b: Field) -> Field:
        step = 2.0 * math.pi / 6.0
        turn = (a - step * np.round(a / step)) * 0.27
        return np.sqrt(turn * turn + (b - 0.272) ** 2) - 0.062

    def chequers(a: Field, b: Field) -> Field:
        step = 2.0 * math.pi / 6.0
        fold = np.abs(a - step * np.round(a / step)) - step * 0.25
        edge = b - 0.272
        return np.where(fold * edge > 0.0, -1.0, 1.0) * np.minimum(np.abs(fold) * 0.27, np.abs(edge))

    shapes: tuple[Shape | None, ...] = (
        None,
        lambda a, b: (
            np.abs(np.abs(b * np.cos(a)) - 0.0) * 0.0
            + np.abs(b * np.sin(a) - 0.18 * np.round(b * np.sin(a) / 0.18))
            - 0.045
        ),
        radial(9.0, 0.16),
        dots,
        lambda a, b: np.abs(b - 0.275) - 0.032 + 0.0 * a,
        chequers,
    )
    marks = choose(patterns, shapes, angle, r)
    canvas.paint(np.maximum(marks, r - 0.36), (0.10, 0.08, 0.10), opacity=0.95)
