"""Habitats and mishaps: what surrounds the subject, and what happens to the picture afterwards."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float32

from rarvision.datasets.fieldguide.drawing import Canvas, Field, Number, capsule, circle, ellipse, lens
from rarvision.datasets.fieldguide.hashing import Rolls

__all__ = ["HABITAT_OF", "Habitat", "lay", "twig", "veil_of"]

# Slots of the rolls: 1-39 pose and mishaps, 40-199 backdrop, 200-299 subject, 300+ what lies over it.


Tone: TypeAlias = tuple[float, float, float]
Habitat = Literal["wood", "water", "meadow", "garden", "air"]

HABITAT_OF: dict[str, Habitat] = {
    "birds": "wood",
    "fish": "water",
    "flowers": "meadow",
    "butterflies": "garden",
    "aircraft": "air",
}
"""Where the subjects of each domain are drawn when they are alone."""


def lay(canvas: Canvas, habitat: Habitat, perch: Field) -> None:
    """Paint a habitat over all of the picture; ``perch`` is the distance to the branch in a wood."""
    if habitat == "wood":
        _wood(canvas, perch)
    else:
        {"water": _water, "meadow": _meadow, "garden": _garden, "air": _air}[habitat](canvas)


_VEILS: dict[Habitat, tuple[Tone, Tone, float]] = {
    "wood": ((0.30, 0.52, 0.22), (0.62, 0.66, 0.26), 0.05),
    "water": ((0.20, 0.46, 0.34), (0.46, 0.52, 0.26), 0.05),
    "meadow": ((0.62, 0.76, 0.40), (0.80, 0.80, 0.50), 0.05),
    "garden": ((0.40, 0.62, 0.30), (0.66, 0.72, 0.36), 0.05),
    "air": ((0.94, 0.95, 0.98), (0.90, 0.91, 0.94), 0.16),
}


def veil_of(canvas: Canvas, habitat: Habitat) -> None:
    """Paint what may hang before the lens in a habitat."""
    _veil(canvas, *_VEILS[habitat])


def twig(canvas: Canvas, u: Field, v: Field) -> None:
    """Paint the short branch that a bird sits on, in the bird's own frame."""
    slope = canvas.rolls(8, -0.25, 0.25)
    perch = capsule(u, v, -0.75, 0.70 - 0.75 * slope, 0.95, 0.70 + 0.95 * slope, 0.06, 0.035)
    canvas.paint(perch, (0.24, 0.17, 0.13))
    canvas.paint(perch + 0.025, (0.47, 0.35, 0.25))


def _mixed(rolls: Rolls, slot: int, a: Tone, b: Tone, spread: float = 0.06) -> Float32[np.ndarray, "n 3"]:
    """Return (n, 3): a random mix of two colours, with a little jitter a channel."""
    t = rolls.flat(slot)[:, None]
    jitter = np.stack([rolls.flat(slot + 1 + c, -spread, spread) for c in range(3)], axis=1)
    low, high = np.array(a, dtype=np.float32), np.array(b, dtype=np.float32)
    return np.asarray(np.clip(low + t * (high - low) + jitter, 0.0, 1.0), dtype=np.float32)


def _gradient(canvas: Canvas, top: Float32[np.ndarray, "n 3"], bottom: Float32[np.ndarray, "n 3"]) -> None:
    lean = canvas.rolls(40, -0.35, 0.35) * canvas.nuisance
    t = np.clip(0.5 + 0.5 * (canvas.y + lean * canvas.x), 0.0, 1.0)
    for channel in range(3):
        a, b = top[:, channel, None, None], bottom[:, channel, None, None]
        canvas.rgb[:, channel] = a + t * (b - a)


def _blobs(
    canvas: Canvas,
    slot: int,
    count: int,
    a: Tone,
    b: Tone,
    *,
    low: float = 0.1,
    high: float = 0.3,
    opacity: float = 0.5,
    top: float = -1.0,
    bottom: float = 1.0,
) -> None:
    """Scatter out-of-focus discs."""
    rolls = canvas.rolls
    for k in range(count):
        s = slot + 8 * k
        radius = rolls(s, low, high)
        d = circle(canvas.x, canvas.y, rolls(s + 1, -1.1, 1.1), rolls(s + 2, top, bottom), radius)
        shown = rolls(s + 3) < 0.4 + 0.5 * canvas.nuisance
        canvas.paint(d, _mixed(rolls, s + 4, a, b), opacity=opacity * shown.astype(np.float32), soft=0.10)


def _leaf(  # noqa: PLR0917 - place, pose and look of one leaf
    canvas: Canvas,
    cx: Number,
    cy: Number,
    lean: Field,
    half: Number,
    tint: Float32[np.ndarray, "n 3"],
    opacity: Number,
    soft: float = 0.05,
) -> None:
    """Paint a leaf with its midrib."""
    c, s = np.cos(lean), np.sin(lean)
    d = lens(canvas.x, canvas.y, cx, cy, c, s, half)
    across = c * (canvas.y - cy) - s * (canvas.x - cx)
    edge = soft + canvas.blur
    canvas.paint(d, tint, shade=0.95 + 0.20 * np.clip(across * 40.0, -0.5, 0.5), opacity=opacity, soft=edge)


def _wood(canvas: Canvas, perch: Field) -> None:
    """Sky through foliage, and the branch that the bird sits on."""
    rolls = canvas.rolls
    _gradient(
        canvas,
        _mixed(rolls, 41, (0.62, 0.80, 0.95), (0.98, 0.86, 0.74)),
        _mixed(rolls, 45, (0.72, 0.86, 0.70), (0.93, 0.92, 0.78)),
    )
    _blobs(canvas, 60, 5, (0.50, 0.70, 0.42), (0.82, 0.86, 0.52), low=0.16, high=0.42)
    _blobs(canvas, 110, 2, (1.0, 0.95, 0.75), (0.95, 0.85, 0.85), low=0.05, high=0.14, opacity=0.7)
    for k in range(4):
        s = 130 + 8 * k
        side = np.where(rolls(s) < 0.5, np.float32(-1.0), np.float32(1.0))
        cx = side * rolls(s + 1, 0.55, 1.0)
        hang = 0.78 + rolls(s + 2, -0.05, 0.22)
        tint = _mixed(rolls, s + 3, (0.44, 0.66, 0.30), (0.72, 0.76, 0.36))
        _leaf(canvas, cx, hang, rolls(s + 7, 0.4, 2.7), 0.17, tint, 0.9)
    canvas.paint(np.abs(perch) - 0.055, (0.24, 0.17, 0.13))
    canvas.paint(np.abs(perch + 0.012) - 0.030, (0.47, 0.35, 0.25))


def _water(canvas: Canvas) -> None:
    """Light shafts, sand, weed and bubbles."""
    rolls, x, y = canvas.rolls, canvas.x, canvas.y
    _gradient(
        canvas,
        _mixed(rolls, 41, (0.66, 0.90, 0.94), (0.78, 0.93, 0.84)),
        _mixed(rolls, 45, (0.34, 0.62, 0.80), (0.42, 0.70, 0.66)),
    )
    shaft = np.sin((x + y * rolls(50, 0.2, 0.7)) * rolls(51, 3.0, 6.0) + rolls(52, 0.0, 6.28))
    canvas.rgb += (np.maximum(shaft, 0.0) * (0.10 - 0.10 * np.clip(y, -1.0, 1.0)) * 0.8)[:, None]
    sand = 0.72 + 0.06 * np.sin(x * rolls(53, 2.0, 5.0) + rolls(54, 0.0, 6.28)) - y
    canvas.paint(sand, _mixed(rolls, 55, (0.86, 0.78, 0.58), (0.78, 0.76, 0.66)), soft=0.06)
    for k in range(4):
        s = 60 + 10 * k
        root = rolls(s, -1.0, 1.0)
        sway = 0.07 * np.sin(y * rolls(s + 1, 4.0, 7.0) + rolls(s + 2, 0.0, 6.28))
        height = rolls(s + 3, -0.1, 0.65)
        width = rolls(s + 4, 0.025, 0.06) * np.clip((y - height) * 4.0, 0.0, 1.0)
        tint = _mixed(rolls, s + 5, (0.20, 0.50, 0.36), (0.46, 0.56, 0.26))
        canvas.paint(np.abs(x - root - sway) - width, tint, opacity=0.75, soft=0.05)
    for k in range(4):
        s = 110 + 6 * k
        d = circle(x, y, rolls(s, -1.0, 1.0), rolls(s + 1, -1.0, 0.4), rolls(s + 2, 0.03, 0.08))
        canvas.paint(np.abs(d) - 0.012, (0.95, 1.0, 1.0), opacity=0.7)


def _meadow(canvas: Canvas) -> None:
    """Sky over grass with other flowers far off."""
    rolls, x, y = canvas.rolls, canvas.x, canvas.y
    _gradient(
        canvas,
        _mixed(rolls, 41, (0.70, 0.86, 0.97), (0.97, 0.90, 0.84)),
        _mixed(rolls, 45, (0.86, 0.92, 0.80), (0.94, 0.94, 0.84)),
    )
    hill = rolls(50, 0.0, 0.4) + 0.1 * np.sin(x * rolls(51, 1.0, 3.0) + rolls(52, 0.0, 6.28)) - y
    canvas.paint(hill, _mixed(rolls, 53, (0.66, 0.82, 0.52), (0.80, 0.86, 0.58)), soft=0.15)
    _blobs(canvas, 60, 5, (0.95, 0.75, 0.80), (0.98, 0.93, 0.66), low=0.05, high=0.13, top=0.0, bottom=0.95)
    for k in range(6):
        s = 110 + 6 * k
        root, bend = rolls(s, -1.1, 1.1), rolls(s + 1, -0.3, 0.3)
        tip = rolls(s + 2, 0.45, 0.85)
        d = capsule(x, y, root, 1.05, root + bend, tip, 0.035, 0.004)
        canvas.paint(d, _mixed(rolls, s + 3, (0.46, 0.68, 0.34), (0.62, 0.78, 0.40)), opacity=0.8)


def _garden(canvas: Canvas) -> None:
    """Soft foliage and blossom, out of focus."""
    rolls = canvas.rolls
    _gradient(
        canvas,
        _mixed(rolls, 41, (0.84, 0.93, 0.78), (0.97, 0.92, 0.84)),
        _mixed(rolls, 45, (0.66, 0.82, 0.60), (0.80, 0.88, 0.74)),
    )
    _blobs(canvas, 60, 6, (0.56, 0.76, 0.48), (0.86, 0.90, 0.62), low=0.15, high=0.40)
    _blobs(canvas, 120, 3, (0.98, 0.82, 0.86), (1.0, 0.95, 0.75), low=0.08, high=0.2, opacity=0.7)
    for k in range(5):
        s = 150 + 8 * k
        cx, cy = rolls(s, -1.0, 1.0), rolls(s + 1, 0.55, 1.0)
        tint = _mixed(rolls, s + 3, (0.42, 0.64, 0.36), (0.62, 0.76, 0.42))
        _leaf(canvas, cx, cy, rolls(s + 2, 0.9, 2.2), rolls(s + 7, 0.28, 0.5), tint, 0.8, 0.08)


def _air(canvas: Canvas) -> None:
    """A sky with clouds over a hazy horizon."""
    rolls, x, y = canvas.rolls, canvas.x, canvas.y
    _gradient(
        canvas,
        _mixed(rolls, 41, (0.48, 0.70, 0.94), (0.70, 0.82, 0.96)),
        _mixed(rolls, 45, (0.84, 0.92, 0.98), (0.99, 0.88, 0.76)),
    )
    hill = rolls(50, 0.62, 1.05) + 0.08 * np.sin(x * rolls(51, 2.0, 5.0) + rolls(52, 0.0, 6.28)) - y
    canvas.paint(hill, _mixed(rolls, 53, (0.56, 0.68, 0.60), (0.66, 0.70, 0.78)), opacity=0.8, soft=0.05)
    glow = np.sqrt((x - rolls(57, -0.9, 0.9)) ** 2 + (y + 0.75) ** 2)
    glow = np.exp(glow * glow * -9.0)
    for channel, gain in enumerate((0.26, 0.20, 0.06)):
        canvas.rgb[:, channel] += gain * glow
    for k in range(3):
        s = 60 + 20 * k
        cx, cy, r = rolls(s, -1.0, 1.0), rolls(s + 1, -0.9, 0.8), rolls(s + 2, 0.12, 0.22)
        d = ellipse(x, y, cx, cy, r * 2.2, r * 0.7)
        d = np.minimum(d, circle(x, y, cx - 0.5 * r, cy - 0.5 * r, r * 0.8))
        d = np.minimum(d, circle(x, y, cx + 0.7 * r, cy - 0.3 * r, r * 0.65))
        canvas.paint(
            d, (0.98, 0.98, 1.0), shade=0.97 - 0.25 * np.clip((y - cy) / r, -0.2, 1.0), opacity=0.85, soft=0.10
        )


def _veil(canvas: Canvas, tint_a: Tone, tint_b: Tone, soft: float = 0.05) -> None:
    """A leaf (or a wisp) before the lens, near the subject, in about half of the images."""
    rolls = canvas.rolls
    turn = rolls(300, 0.0, 6.28)
    distance = rolls(301, 0.45, 0.95)
    cx, cy = distance * np.cos(turn), distance * np.sin(turn)
    lean = rolls(302, 0.0, 6.28)
    shown = (rolls(304) < 0.55 * min(canvas.nuisance, 1.0)).astype(np.float32)
    _leaf(canvas, cx, cy, lean, rolls(303, 0.14, 0.28), _mixed(rolls, 305, tint_a, tint_b), 0.92 * shown, soft)
