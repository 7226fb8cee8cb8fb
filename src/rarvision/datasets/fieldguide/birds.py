"""Birds on a branch: head, breast, wing panel, tail, bill and build."""

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

__all__ = ["paint_bird"]

_TAIL = (0.30, 0.24, 0.24)
_BILL = (0.98, 0.66, 0.16)


def _fantail(u: Field, v: Field) -> Field:
    wedge = np.maximum(np.abs(v - 0.12) + 0.78 * (u + 0.24), circle(u, v, -0.18, 0.12, 0.74))
    return intersect(wedge, u + 0.30)


_TAILS = (
    _fantail,
    lambda u, v: union(
        capsule(u, v, -0.30, 0.12, -0.95, -0.16, 0.10, 0.035), capsule(u, v, -0.30, 0.14, -0.95, 0.44, 0.10, 0.035)
    ),
    lambda u, v: capsule(u, v, -0.30, 0.12, -1.08, 0.22, 0.10, 0.012),
    lambda u, v: union(capsule(u, v, -0.30, 0.12, -0.80, 0.16, 0.045), circle(u, v, -0.86, 0.16, 0.155)),
    lambda u, v: polygon(u, v, (-0.25, -0.04), (-0.62, 0.0), (-0.62, 0.26), (-0.25, 0.28)),
)


def _hooked(u: Field, v: Field) -> Field:
    return cut(circle(u, v, 0.62, -0.14, 0.25), circle(u, v, 0.50, 0.10, 0.20))


_BILLS = (
    lambda u, v: polygon(u, v, (0.50, -0.40), (0.82, -0.25), (0.50, -0.14)),
    lambda u, v: polygon(u, v, (0.48, -0.68), (1.08, -0.55), (0.48, -0.50)),
    _hooked,
    lambda u, v: intersect(
        ellipse(u, v, 0.62, -0.16, 0.46, 0.25), -(v + 0.50), cut(u * 0 - 1.0, ellipse(u, v, 0.60, 0.10, 0.44, 0.18))
    ),
    lambda u, v: union(
        capsule(u, v, 0.50, -0.30, 0.72, -0.29, 0.070, 0.058),
        capsule(u, v, 0.72, -0.29, 0.86, -0.22, 0.058, 0.050),
        capsule(u, v, 0.86, -0.22, 0.95, -0.09, 0.050, 0.042),
        capsule(u, v, 0.95, -0.09, 0.98, 0.12, 0.042, 0.022),
    ),
)


def _round_head(u: Field, v: Field) -> Field:
    return smooth_union(circle(u, v, 0.36, -0.27, 0.26), circle(u, v, 0.22, -0.47, 0.09), 0.16)


def _heron_head(u: Field, v: Field) -> Field:
    neck = capsule(u, v, 0.28, -0.06, 0.30, -0.52, 0.15, 0.13)
    head = smooth_union(circle(u, v, 0.36, -0.60, 0.185), neck, 0.10)
    return union(head, capsule(u, v, 0.28, -0.68, -0.02, -0.62, 0.07, 0.015))


def _parrot_head(u: Field, v: Field) -> Field:
    return smooth_union(circle(u, v, 0.36, -0.24, 0.30), capsule(u, v, 0.30, -0.50, 0.10, -0.68, 0.10, 0.03), 0.1)


_HEADS = (
    _round_head,
    _heron_head,
    _parrot_head,
    lambda u, v: circle(u, v, 0.34, -0.26, 0.28),
    lambda u, v: smooth_union(circle(u, v, 0.38, -0.30, 0.23), capsule(u, v, 0.22, -0.05, 0.34, -0.25, 0.18), 0.1),
)
_BODIES = (
    lambda u, v: ellipse(u, v, 0.03, 0.12, 0.48, 0.39, -0.25),
    lambda u, v: ellipse(u, v, 0.02, 0.13, 0.48, 0.35, -0.15),
    lambda u, v: ellipse(u, v, 0.04, 0.11, 0.47, 0.39, -0.45),
    lambda u, v: ellipse(u, v, 0.03, 0.12, 0.48, 0.39, -0.30),
    lambda u, v: ellipse(u, v, 0.03, 0.13, 0.50, 0.36, -0.15),
)


def paint_bird(canvas: Canvas, u: Field, v: Field, codes: Int[np.ndarray, "n 5"]) -> None:
    """Paint the subject in its own frame u, v."""
    kind = codes[:, 4]
    legs = union(capsule(u, v, 0.02, 0.36, 0.00, 0.66, 0.022), capsule(u, v, 0.16, 0.34, 0.16, 0.66, 0.022))
    canvas.paint(legs - 0.012, (0.30, 0.18, 0.08))
    barbs = 1.0 + 0.22 * np.sin((v - 0.12) * 9.0 / (0.22 + np.abs(u + 0.2)))
    canvas.part(choose(codes[:, 3], _TAILS, u, v), _TAIL, texture=barbs)
    body = choose(kind, _BODIES, u, v)
    canvas.part(
        body,
        palette(canvas, codes[:, 1], 210),
        puff=0.25,
        texture=1.0 + 0.06 * np.sin(u * 26.0 + 3.0 * np.sin(v * 26.0)),
    )
    canvas.part(choose(kind, _BILLS, u, v), _BILL, puff=0.08)
    head = choose(kind, _HEADS, u, v)
    canvas.part(head, palette(canvas, codes[:, 0], 200), puff=0.22)
    tall = (kind == 1).astype(np.float32)[:, None, None]
    eye(canvas, u, v, 0.44 - 0.02 * tall, -0.32 - 0.31 * tall, 0.07)
    gloss(canvas, ellipse(u, v, 0.30 + 0.02 * tall, -0.42 - 0.28 * tall, 0.10, 0.05, -0.4))
    c, s = 0.976, -0.219
    p, q = u + 0.13, v - 0.05
    a, b = (c * p + s * q) / 0.38, (c * q - s * p) / 0.25
    wing = np.sqrt(a * a + b * b)
    panel(canvas, (wing - 1.0) * 0.27, a / 0.92, b / 0.92, 0.27, codes[:, 2])
