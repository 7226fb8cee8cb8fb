"""Several views of one image, mirrored and cut, whose vectors are averaged: slower, and a little surer."""

from __future__ import annotations

from typing import Final, Literal, cast, get_args

from rarvision.errors import OptionError
from rarvision.images import Picture

__all__ = ["Views", "check_views", "smallest_view", "views_of"]

Views = Literal["whole", "flip", "crops", "flip+crops"]
"""``whole``: the image, 1 forward pass. ``flip``: and its mirror image, 2. ``crops``: the image, its four corners and
its middle at 80 % of both sides, 6. ``flip+crops``: those and their mirror images, 12."""

_CROP: Final = 0.8
_REST: Final = 1.0 - _CROP
_CORNERS: Final = ((0.0, 0.0), (_REST, 0.0), (0.0, _REST), (_REST, _REST), (_REST / 2, _REST / 2))


def check_views(views: str) -> Views:
    """The value; raises `OptionError` where it names no views."""
    if views not in get_args(Views):
        raise OptionError(f"views must be one of {', '.join(get_args(Views))}, got {views!r}; whole is the image alone")
    return cast("Views", views)


def smallest_view(views: Views) -> float:
    """Side of the smallest view over the image's, above 0, at most 1."""
    return _CROP if "crops" in views else 1.0


def views_of(picture: Picture, views: Views) -> list[Picture]:
    """The views of one picture, itself first."""
    found = [picture]
    if "crops" in views:
        found += [picture.cut(x, y, x + _CROP, y + _CROP) for x, y in _CORNERS]
    if "flip" in views:
        found += [view.mirrored() for view in found]
    return found
