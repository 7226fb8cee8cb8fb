"""Scenes of the field guide: many subjects in one picture, small and large, beside and before one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64, UInt64
from PIL.Image import Image, fromarray

from rarvision.datasets.fieldguide import backdrops
from rarvision.datasets.fieldguide.backdrops import Habitat
from rarvision.datasets.fieldguide.drawing import Canvas
from rarvision.datasets.fieldguide.hashing import Rolls, fold
from rarvision.datasets.fieldguide.rendering import PAINTERS, expose, pose
from rarvision.datasets.fieldguide.scene_layout import unit
from rarvision.errors import DatasetError
from rarvision.types import Box

__all__ = ["HEIGHT", "WIDTH", "Cast", "Drawn", "SceneObject", "draw_scene"]

WIDTH, HEIGHT = 640, 480
_SPAN: Final = 1.25  # of a subject's own canvas: it may lean out of the picture that it has alone
_FILL: Final = 0.66  # the longer side of a subject over that canvas's, about
_SIZES: Final = ((13.0, 30.0, 0.38), (34.0, 92.0, 0.42), (100.0, 230.0, 0.20))  # least, most pixels; share
_TRIES: Final = 24
_COVERED: Final = 0.35  # of the smaller of two, at most, if it can be had
_LEAST_VISIBLE: Final = 0.2  # of a subject, if it can be had
_ROUNDS: Final = 4
_NUISANCE: Final = 1.0  # of a subject: as where it is alone
_LIGHT: Final = 0.6  # the same of the scene's light and grain
_SPECK: Final = 9.0  # pixels: too far off to be annotated


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """One annotated object.

    Attributes:
        row: Its category's place in the world's categories.
        box_xyxy: Around what is visible of it, whole pixels.
        area: How many pixels are visible.
        visible: Which share of it is, 0 to 1.
    """

    row: int
    box_xyxy: Box
    area: int
    visible: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """A drawn scene.

    Attributes:
        image: RGB, 640 x 480 pixels.
        objects: What is annotated, in the order in which it was dealt.
        not_exhaustive_rows: Categories of which there are more than are annotated: specks, too far off.
    """

    image: Image
    objects: tuple[SceneObject, ...]
    not_exhaustive_rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A subject's canvas: which subject, its upper left corner in the picture, its side; pixels."""

    which: int
    left: int
    upper: int
    side: int
    speck: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cast:
    """All that a scene depends on.

    Attributes:
        habitat: What is behind.
        domains: Of each subject.
        codes: Their categories.
        rows: What these are called in the result.
        key: Chooses places, poses, light.
    """

    habitat: Habitat
    domains: tuple[str, ...]
    codes: Int[np.ndarray, "n 5"]
    rows: Int64[np.ndarray, " n"]
    key: int


def draw_scene(cast: Cast) -> Drawn:
    """Draw a scene; it depends on its cast alone.

    Returns:
        The picture; every subject is visible in part, and annotated, in the order given.

    Raises:
        DatasetError: A subject is hidden by others whatever the order.
    """
    order, veiled = _places(len(cast.rows), cast.key), True
    for attempt in range(_ROUNDS):
        drawn, hidden = _attempt(cast, order, veiled=veiled)
        if not hidden:
            break
        # What would be hidden comes to the front; in the end the smallest stand before all others.
        last = attempt == _ROUNDS - 2
        order = sorted(order, key=lambda place: -place.side if last else place.which in hidden)
        veiled = False
    if len(drawn.objects) < len(cast.rows):
        raise DatasetError(f"scene {cast.key}: {len(cast.rows) - len(drawn.objects)} subjects are hidden by others")
    return drawn


def _attempt(cast: Cast, order: list[_Placed], *, veiled: bool) -> tuple[Drawn, set[int]]:
    """The scene with its subjects drawn in an order, and those of which hardly anything is visible."""
    rows, key = cast.rows, cast.key
    canvas = Canvas(Rolls(fold(key, 1)), WIDTH, _LIGHT)
    backdrops.lay(canvas, cast.habitat, canvas.y - 0.45 - canvas.rolls(8, -0.25, 0.25) * canvas.x)
    offset = (WIDTH - HEIGHT) // 2  # the canvas is square, the picture is its middle
    owner = np.full((WIDTH, WIDTH), -1, dtype=np.int64)
    whole = np.zeros(len(rows), dtype=np.int64)
    specks = _specks(len(rows), key)
    for number, place in enumerate([*specks, *order]):
        instance = number if place.speck else len(specks) + place.which
        colours, cover, mask = _cutout(
            cast.domains[place.which], cast.codes[place.which], fold(key, 2, instance), place.side
        )
        top, left = place.upper + offset, place.left
        (r0, r1), (c0, c1) = (max(0, top), min(WIDTH, top + place.side)), (max(0, left), min(WIDTH, left + place.side))
        cut = (slice(r0 - top, r1 - top), slice(c0 - left, c1 - left))
        target = canvas.rgb[0, :, r0:r1, c0:c1]
        target *= 1.0 - cover[cut]
        target += colours[(slice(None), *cut)]
        shown = owner[r0:r1, c0:c1]
        shown[cover[cut] > 0.5] = -1
        if not place.speck:
            shown[mask[cut]] = place.which
            whole[place.which] = int(mask.sum())
    if veiled:
        canvas.cover = np.zeros_like(canvas.x)
        backdrops.veil_of(canvas, cast.habitat)
        owner[canvas.cover[0] > 0.5] = -1
    pixels = expose(canvas, fold(key, 1), WIDTH)[0, offset : offset + HEIGHT]
    owner = owner[offset : offset + HEIGHT]
    found = [_object(owner == which, int(rows[which]), int(whole[which])) for which in range(len(rows))]
    hidden = {which for which, each in enumerate(found) if each is None or each.visible < _LEAST_VISIBLE}
    drawn = Drawn(
        image=fromarray(pixels),
        objects=tuple(each for each in found if each is not None),
        not_exhaustive_rows=tuple(sorted({int(rows[place.which]) for place in specks})),
    )
    return drawn, hidden


def _object(mask: Bool[np.ndarray, "h w"], row: int, whole: int) -> SceneObject | None:
    """The annotation of what is visible; None where nothing is."""
    down, across = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(down):
        return None
    box = (float(across[0]), float(down[0]), float(across[-1] + 1), float(down[-1] + 1))
    area = int(mask.sum())
    return SceneObject(row=row, box_xyxy=box, area=area, visible=area / max(whole, area))


def _places(count: int, key: int) -> list[_Placed]:
    """Sizes and places: the large ones first, where they cover each other least of a few tries; then in any order."""
    keys = fold(key, 4, np.arange(count))
    kind, size = unit(keys), unit(fold(keys, 1))
    edges = np.cumsum([share for _, _, share in _SIZES])[:-1]
    classes = np.searchsorted(edges, kind, side="right")
    bounds = np.array([(low, high) for low, high, _ in _SIZES])[classes]
    sides = bounds[:, 0] * (bounds[:, 1] / bounds[:, 0]) ** size  # evenly on a logarithmic scale
    taken: list[tuple[float, float, float]] = []
    placed: list[_Placed] = []
    for which in np.argsort(-sides, kind="stable").tolist():
        tries = unit(fold(key, 5, which, np.arange(2 * _TRIES))).reshape(-1, 2)
        half = sides[which] / 2
        margin = min(half * 0.8, 60.0)
        centres = margin + tries * (np.array([WIDTH, HEIGHT]) - 2 * margin)
        costs = [max((_covered(c, half, other) for other in taken), default=0.0) for c in centres]
        good = [i for i, cost in enumerate(costs) if cost <= _COVERED]
        x, y = centres[good[0] if good else int(np.argmin(costs))]
        taken.append((float(x), float(y), float(half)))
        side = max(8, round(sides[which] / _FILL))
        placed.append(_Placed(which, round(x - side / 2), round(y - side / 2), side))
    order = np.argsort(fold(key, 6, np.arange(count)), kind="stable")
    return sorted(placed, key=lambda place: (-place.side + 60 * unit(fold(key, 7, place.which))[0], order[place.which]))


def _covered(centre: Float32[np.ndarray, " 2"], half: float, other: tuple[float, float, float]) -> float:
    """Which share of the smaller of two squares lies in the other."""
    x, y, far = other
    across = min(centre[0] + half, x + far) - max(centre[0] - half, x - far)
    down = min(centre[1] + half, y + far) - max(centre[1] - half, y - far)
    return float(max(across, 0.0) * max(down, 0.0) / (4 * min(half, far) ** 2))


def _specks(count: int, key: int) -> list[_Placed]:
    """In a third of the scenes one to three more of a category that is there, too far off to be annotated."""
    rolls = unit(fold(key, 8, np.arange(8)))
    if rolls[0] > 1 / 3:
        return []
    which, side = int(rolls[1] * count), round(_SPECK / _FILL)
    spots = rolls[2 : 2 + 2 * (1 + int(rolls[0] * 9))].reshape(-1, 2)
    return [_Placed(which, int(x * (WIDTH - side)), int(y * (HEIGHT - side)), side, speck=True) for x, y in spots]


def _cutout(
    domain: str, code: Int[np.ndarray, " 5"], key: UInt64[np.ndarray, " 1"], side: int
) -> tuple[Float32[np.ndarray, "3 s s"], Float32[np.ndarray, "s s"], Bool[np.ndarray, "s s"]]:
    """A subject alone: its colours multiplied by their cover, the cover, and which pixels are its own."""
    canvas = Canvas(Rolls(key), side, _NUISANCE, span=_SPAN, cutout=True)
    assert canvas.cover is not None  # noqa: S101 - it was asked for
    u, v = pose(canvas, domain)
    behind = np.zeros_like(canvas.cover)
    if domain == "birds":
        backdrops.twig(canvas, u, v)
        behind, canvas.cover = canvas.cover, np.zeros_like(canvas.cover)
    PAINTERS[domain](canvas, u, v, code[None])
    own = canvas.cover
    return canvas.rgb[0], (1.0 - (1.0 - behind) * (1.0 - own))[0], own[0] > 0.5
