"""What the animals have in common: the palette, and the panel that carries the pattern."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int

from rarvision.datasets.fieldguide.drawing import INK, Canvas, Field, circle, marking

__all__ = ["PALETTE", "eye", "gloss", "palette", "panel"]

PALETTE = np.array(
    [
        [0.80, 0.08, 0.14],  # crimson
        [0.96, 0.52, 0.06],  # amber
        [0.98, 0.84, 0.14],  # golden
        [0.12, 0.60, 0.22],  # emerald
        [0.08, 0.68, 0.68],  # teal
        [0.12, 0.36, 0.92],  # azure
        [0.48, 0.20, 0.70],  # violet
        [0.96, 0.52, 0.70],  # rose
        [0.98, 0.96, 0.90],  # ivory
        [0.17, 0.16, 0.20],  # ebony
    ],
    dtype=np.float32,
)
"""Red, green, blue of each of `COLOURS`."""

CREAM = (0.97, 0.93, 0.82)


def palette(canvas: Canvas, values: Int[np.ndarray, " n"], slot: int) -> Float32[np.ndarray, "n 3"]:
    """Return each image's colour of a part: the word's, a little lighter or darker, a little off."""
    jitter = np.stack([canvas.rolls.flat(slot + c, -0.05, 0.05) for c in range(3)], axis=1) * canvas.nuisance
    value = 1.0 + canvas.rolls.flat(slot + 3, -0.12, 0.10)[:, None] * canvas.nuisance
    return np.asarray(np.clip(PALETTE[values] * value + jitter, 0.02, 1.0), dtype=np.float32)


def panel(canvas: Canvas, outline: Field, s: Field, t: Field, unit: float, patterns: Int[np.ndarray, " n"]) -> None:  # noqa: PLR0917 - a formula
    """Paint the pale panel and its dark marks.

    Args:
        canvas: Where.
        outline: Signed distance of the panel, picture units.
        s: Panel coordinate along, -1 to 1.
        t: Panel coordinate across, -1 to 1.
        unit: Picture units per panel unit, for the softness of the marks.
        patterns: Which of `PATTERNS`.
    """
    canvas.paint(outline - 0.03, INK)
    depth = np.clip(outline * -8.0, 0.0, 1.0)
    canvas.paint(outline, CREAM, shade=0.86 + 0.16 * depth)
    canvas.paint(np.maximum(marking(patterns, s, t) * unit, outline), INK, opacity=0.95)


def eye(canvas: Canvas, u: Field, v: Field, cx: Field | float, cy: Field | float, r: float = 0.075) -> None:  # noqa: PLR0917 - a formula
    """Paint a bright eye with a dark pupil and a glint."""
    d = circle(u, v, cx, cy, r)
    canvas.paint(d - 0.02, INK)
    canvas.paint(d, (1.0, 0.98, 0.92))
    canvas.paint(d + r * 0.42, INK)
    canvas.paint(circle(u, v, cx + 0.25 * r, cy - 0.3 * r, r * 0.25), (1.0, 1.0, 1.0))


def gloss(canvas: Canvas, distance: Field, opacity: float = 0.35) -> None:
    """Paint a soft highlight."""
    canvas.paint(distance, (1.0, 1.0, 1.0), opacity=opacity, soft=0.12)
