"""Fish in the water: head, fins, flank panel, tail and build."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from rarvision.datasets.fieldguide.drawing import (
    Canvas,
    Field,
    capsule,
    choose,
    circle,
    cut,
    ellipse,
    intersect,
    polygon,
    smooth_union,
    union,
)
from rarvision.datasets.fieldguide.subjects import eye, gloss, palette, panel

__all__ = ["paint_fish"]


def _fantail(u: Field, v: Field) -> Field:
    return intersect(np.abs(v) + 0.95 * (u + 0.32), circle(u, v, -0.34, 0.0, 0.58), u + 0.38)


_TAILS = (
    _fantail,
    lambda u, v: polygon(u, v, (-0.42, 0.0), (-0.98, -0.46), (-0.72, 0.0), (-0.98, 0.46)),
    lambda u, v: capsule(u, v, -0.40, 0.0, -1.08, 0.0, 0.10, 0.015),
    lambda u, v: union(
        circle(u, v, -0.72, 0.0, 0.19),
        polygon(u, v, (-0.74, -0.18), (-1.04, 0.0), (-0.74, 0.18)),
        capsule(u, v, -0.4, 0.0, -0.7, 0.0, 0.08),
    ),
    lambda u, v: cut(intersect(circle(u, v, -0.78, 0.0, 0.40), u + 0.46), ellipse(u, v, -0.98, 0.0, 0.36, 0.24)),
)
_BODIES = (
    lambda u, v: ellipse(u, v, 0.08, 0.0, 0.62, 0.36),
    lambda u, v: circle(u, v, 0.10, 0.0, 0.47),
    lambda u, v: smooth_union(
        ellipse(u, v, 0.04, 0.02, 0.62, 0.29), capsule(u, v, 0.3, -0.02, 0.84, -0.06, 0.20, 0.05), 0.12
    ),
    lambda u, v: smooth_union(
        ellipse(u, v, 0.10, 0.0, 0.48, 0.38), polygon(u, v, (0.1, -0.4), (0.62, 0.0), (0.1, 0.4)), 0.1
    ),
    lambda u, v: ellipse(u, v, 0.04, 0.04, 0.62, 0.30),
)


def _puffer_fins(u: Field, v: Field) -> Field:
    r = np.sqrt((u - 0.10) ** 2 + v * v)
    spikes = [
        capsule(u, v, 0.10 + 0.40 * c, 0.40 * s, 0.10 + 0.64 * c, 0.64 * s, 0.06, 0.008)
        for c, s in (
            (0.0, -1.0),
            (0.5, -0.87),
            (-0.5, -0.87),
            (0.0, 1.0),
            (0.5, 0.87),
            (-0.5, 0.87),
            (-0.87, -0.5),
            (-0.87, 0.5),
        )
    ]
    return union(*spikes, r - 0.40)


_FINS = (
    lambda u, v: union(ellipse(u, v, 0.02, -0.30, 0.46, 0.17), ellipse(u, v, -0.10, 0.32, 0.26, 0.14)),
    _puffer_fins,
    lambda u, v: union(
        polygon(u, v, (-0.16, -0.18), (-0.14, -0.70), (0.26, -0.18)),
        polygon(u, v, (0.0, 0.2), (-0.12, 0.58), (0.26, 0.2)),
    ),
    lambda u, v: union(
        polygon(u, v, (0.34, -0.22), (-0.42, -0.88), (-0.16, -0.10)),
        polygon(u, v, (0.34, 0.22), (-0.42, 0.88), (-0.16, 0.10)),
    ),
    lambda u, v: union(
        intersect(ellipse(u, v, 0.02, -0.18, 0.48, 0.56), v + 0.05),
        polygon(u, v, (0.1, 0.24), (-0.10, 0.52), (0.2, 0.2)),
    ),
)


def paint_fish(canvas: Canvas, u: Field, v: Field, codes: Int[np.ndarray, "n 5"]) -> None:
    """Paint the subject in its own frame u, v."""
    kind = codes[:, 4]
    fins = palette(canvas, codes[:, 1], 210)
    rays = 1.0 + 0.16 * np.sin(v * 13.0 / (0.25 + np.abs(u + 0.3)))
    canvas.part(choose(codes[:, 3], _TAILS, u, v), fins, puff=0.12, texture=rays)
    canvas.part(choose(kind, _FINS, u, v), fins, puff=0.12, texture=1.0 + 0.14 * np.sin((u + 0.25 * np.abs(v)) * 36.0))
    bill = choose(kind, (None, None, None, None, lambda a, b: capsule(a, b, 0.5, 0.02, 1.06, -0.04, 0.07, 0.01)), u, v)
    canvas.part(bill, palette(canvas, codes[:, 0], 200))
    body = choose(kind, _BODIES, u, v)
    scales = 1.0 + 0.07 * np.sin((u + v) * 30.0) * np.sin((u - v) * 30.0)
    canvas.part(body, fins, puff=0.24, texture=scales)
    head = np.maximum(body, 0.26 - u - 0.35 * v * v)
    canvas.paint(head, palette(canvas, codes[:, 0], 200), shade=1.0 + np.clip(body * 1.2, -0.25, 0.0) + 0.14 - 0.12 * v)
    canvas.paint(np.maximum(np.abs(0.26 - u - 0.35 * v * v) - 0.02, body), (0.10, 0.08, 0.10))
    eye(canvas, u, v, 0.47, -0.08, 0.075)
    gloss(canvas, ellipse(u, v, 0.10, -0.27, 0.22, 0.035))
    a, b = (u + 0.06) / 0.30, v / 0.22
    k = (a * a * a * a + b * b * b * b) ** 0.25
    panel(canvas, (k - 1.0) * 0.22, a * 0.98, b * 0.98, 0.24, codes[:, 2])
