"""Aircraft in the sky: nose, fin, fuselage panel, tail and kind."""

from __future__ import annotations

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
    polygon,
    smooth_union,
    union,
)
from rarvision.datasets.fieldguide.subjects import gloss, palette, panel

__all__ = ["paint_aircraft"]

_METAL = (0.40, 0.43, 0.48)


def _ring(u: Field, v: Field) -> Field:
    return union(np.abs(circle(u, v, -0.78, -0.30, 0.20)) - 0.07, capsule(u, v, -0.7, 0.0, -0.78, -0.1, 0.08))


_TAILS: tuple[Shape, ...] = (
    lambda u, v: np.maximum(np.maximum(circle(u, v, -0.60, -0.06, 0.46), u + 0.50), v - 0.02),
    lambda u, v: union(
        polygon(u, v, (-0.50, -0.05), (-0.56, -0.68), (-0.72, -0.68), (-0.74, 0.0)),
        polygon(u, v, (-0.62, 0.0), (-1.04, -0.44), (-0.98, -0.56), (-0.56, -0.16)),
    ),
    lambda u, v: union(
        polygon(u, v, (-0.50, -0.05), (-0.72, -0.58), (-0.88, -0.58), (-0.80, 0.0)),
        capsule(u, v, -1.04, -0.60, -0.52, -0.60, 0.065),
    ),
    lambda u, v: union(
        capsule(u, v, -1.0, -0.08, -0.5, -0.08, 0.06),
        polygon(u, v, (-0.48, 0.0), (-0.56, -0.52), (-0.68, -0.52), (-0.70, 0.0)),
        polygon(u, v, (-0.82, 0.0), (-0.90, -0.52), (-1.02, -0.52), (-1.04, 0.0)),
    ),
    _ring,
)
_HULLS: tuple[Shape, ...] = (
    lambda u, v: smooth_union(
        ellipse(u, v, 0.20, 0.02, 0.62, 0.24), capsule(u, v, 0.0, 0.02, -0.86, -0.04, 0.16, 0.06), 0.1
    ),
    lambda u, v: capsule(u, v, 0.52, 0.02, -0.80, -0.02, 0.27, 0.10),
    lambda u, v: capsule(u, v, 0.66, 0.02, -0.82, -0.02, 0.24, 0.12),
    lambda u, v: smooth_union(
        capsule(u, v, 0.58, 0.04, -0.80, -0.06, 0.25, 0.09), ellipse(u, v, 0.3, 0.2, 0.5, 0.12), 0.1
    ),
    lambda u, v: smooth_union(
        ellipse(u, v, 0.22, 0.04, 0.52, 0.34), capsule(u, v, 0.0, 0.0, -0.86, -0.06, 0.13, 0.06), 0.12
    ),
)
_BEHIND: tuple[Shape | None, ...] = (
    None,
    lambda u, v: union(
        capsule(u, v, -0.34, -0.52, 0.56, -0.52, 0.07),
        capsule(u, v, 0.40, -0.5, 0.34, 0.5, 0.025),
        capsule(u, v, -0.18, -0.5, -0.12, 0.5, 0.025),
    ),
    None,
    lambda u, v: union(capsule(u, v, -0.2, 0.2, -0.16, 0.56, 0.03), capsule(u, v, 0.3, 0.2, 0.34, 0.56, 0.03)),
    lambda u, v: union(
        capsule(u, v, 0.26, -0.60, 0.24, -0.2, 0.05),
        capsule(u, v, 0.0, 0.3, -0.06, 0.6, 0.025),
        capsule(u, v, 0.36, 0.3, 0.42, 0.6, 0.025),
    ),
)
_BEFORE: tuple[Shape | None, ...] = (
    lambda u, v: union(
        capsule(u, v, -0.10, -0.28, 0.96, -0.62, 0.075, 0.015), capsule(u, v, 0.0, -0.28, -0.5, -0.40, 0.06, 0.015)
    ),
    lambda u, v: union(capsule(u, v, -0.34, 0.42, 0.56, 0.42, 0.075), capsule(u, v, 0.86, -0.34, 0.86, 0.40, 0.035)),
    lambda u, v: union(
        polygon(u, v, (0.34, 0.20), (-0.02, 0.20), (-0.42, 0.74), (-0.22, 0.74)),
        capsule(u, v, 0.08, 0.50, 0.30, 0.50, 0.10),
    ),
    lambda u, v: union(capsule(u, v, -0.40, 0.62, 0.62, 0.60, 0.085), capsule(u, v, -0.26, -0.34, 0.46, -0.34, 0.07)),
    lambda u, v: union(capsule(u, v, -0.42, -0.62, 0.98, -0.62, 0.045), capsule(u, v, -0.26, 0.62, 0.62, 0.62, 0.035)),
)


def paint_aircraft(canvas: Canvas, u: Field, v: Field, codes: Int[np.ndarray, "n 5"]) -> None:
    """Paint the subject in its own frame u, v."""
    kind = codes[:, 4]
    fin = palette(canvas, codes[:, 1], 210)
    nose = palette(canvas, codes[:, 0], 200)
    canvas.part(choose(kind, _BEHIND, u, v), _METAL, outline=0.025, puff=0.08)
    canvas.part(choose(codes[:, 3], _TAILS, u, v), fin, puff=0.12)
    hull = choose(kind, _HULLS, u, v)
    canvas.part(hull, fin, puff=0.22)
    front = np.maximum(hull, 0.24 - u)
    canvas.paint(front, nose, shade=1.12 + np.clip(hull, -0.2, 0.0) - 0.3 * np.clip(v + 0.1, 0.0, 0.5))
    canvas.paint(np.maximum(np.abs(u - 0.24) - 0.02, hull), (0.10, 0.08, 0.10))
    window = ellipse(u, v, 0.52, -0.08, 0.15, 0.075, 0.25)
    canvas.paint(window - 0.02, (0.10, 0.08, 0.10))
    canvas.paint(window, (0.66, 0.86, 0.96))
    gloss(canvas, ellipse(u, v, 0.1, -0.14, 0.4, 0.03))
    a, b = (u + 0.10) / 0.29, (v - 0.02) / 0.20
    k = (a * a * a * a + b * b * b * b) ** 0.25
    panel(canvas, (k - 1.0) * 0.20, a * 0.98, b * 0.98, 0.22, codes[:, 2])
    canvas.part(choose(kind, _BEFORE, u, v), _METAL, outline=0.025, puff=0.08)
