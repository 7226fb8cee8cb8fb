"""Butterflies with spread wings: forewings, hindwings, wing panels, tails and build."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from rarvision.datasets.fieldguide.drawing import (
    INK,
    Canvas,
    Field,
    Shape,
    capsule,
    choose,
    circle,
    ellipse,
    polygon,
    smooth_union,
    union,
)
from rarvision.datasets.fieldguide.subjects import gloss, palette, panel

__all__ = ["paint_butterfly"]


def _rounded(radius: float, *points: tuple[float, float]) -> Shape:
    return lambda a, b: polygon(a, b, *points) - radius


_FOREWINGS: tuple[Shape, ...] = (
    _rounded(0.08, (0.06, -0.08), (0.40, -0.62), (0.80, -0.66), (0.70, -0.10), (0.10, 0.05)),
    _rounded(0.04, (0.05, -0.10), (0.62, -0.74), (0.62, -0.02), (0.10, 0.05)),
    _rounded(0.10, (0.06, -0.08), (0.78, -0.42), (0.90, -0.28), (0.70, -0.06), (0.10, 0.05)),
    _rounded(0.04, (0.05, -0.10), (0.36, -0.64), (0.92, -0.72), (0.66, -0.40), (0.80, -0.02), (0.10, 0.05)),
    _rounded(0.03, (0.05, -0.34), (0.98, -0.46), (0.62, 0.04), (0.10, 0.10)),
)


def _round(a: Field, b: Field) -> Field:
    return ellipse(a, b, 0.36, 0.30, 0.36, 0.34, 0.5)


def _scallops(a: Field, b: Field) -> Field:
    base = ellipse(a, b, 0.34, 0.28, 0.30, 0.28, 0.5)
    teeth = [circle(a, b, x, y, 0.12) for x, y in ((0.66, 0.24), (0.62, 0.48), (0.42, 0.64), (0.18, 0.62))]
    return union(base, *teeth)


_HINDWINGS: tuple[Shape, ...] = (
    _round,
    lambda a, b: union(
        _round(a, b),
        polygon(a, b, (0.10, 0.4), (0.22, 0.98), (0.34, 0.5)),
        polygon(a, b, (0.38, 0.5), (0.72, 0.90), (0.66, 0.3)),
    ),
    lambda a, b: smooth_union(_round(a, b), capsule(a, b, 0.30, 0.5, 0.22, 1.10, 0.09, 0.015), 0.12),
    lambda a, b: union(_round(a, b), capsule(a, b, 0.40, 0.5, 0.54, 0.84, 0.06), circle(a, b, 0.57, 0.88, 0.125)),
    _scallops,
)


def paint_butterfly(canvas: Canvas, u: Field, v: Field, codes: Int[np.ndarray, "n 5"]) -> None:
    """Paint the subject in its own frame u, v: wings mirror at u = 0."""
    a, b = np.abs(u), v + 0.10
    angle = np.arctan2(b, a + 0.02)
    veins = 1.0 - 0.16 * np.clip(np.cos(angle * 17.0) * 4.0 - 3.0, 0.0, 1.0)
    hind = choose(codes[:, 3], _HINDWINGS, a, b)
    canvas.part(hind, palette(canvas, codes[:, 1], 210), texture=veins)
    fore = choose(codes[:, 4], _FOREWINGS, a, b)
    canvas.part(fore, palette(canvas, codes[:, 0], 200), texture=veins)
    canvas.paint(np.maximum(fore, -0.06 - fore), INK, opacity=0.32)
    gloss(canvas, ellipse(a, b, 0.46, -0.38, 0.20, 0.04, -0.6), 0.25)
    p, q = (a - 0.36) / 0.26, (b - 0.06) / 0.26
    panel(canvas, (np.sqrt(p * p + q * q) - 1.0) * 0.26, p, q, 0.26, codes[:, 2])
    moth = (codes[:, 4] == 4).astype(np.float32)[:, None, None]
    canvas.paint(capsule(a, b, 0.02, -0.30, 0.24, -0.66, 0.02) - 0.03 * moth, (0.12, 0.08, 0.08))
    canvas.paint(circle(a, b, 0.25, -0.68, 0.045), (0.12, 0.08, 0.08))
    body = smooth_union(ellipse(u, b, 0.0, 0.12, 0.075, 0.42), circle(u, b, 0.0, -0.30, 0.10), 0.08)
    canvas.part(body, (0.36, 0.26, 0.22), outline=0.025, puff=0.08)
