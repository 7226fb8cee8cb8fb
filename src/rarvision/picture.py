"""Pictures of what the recogniser saw, retrieved and decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from rarvision.errors import OptionError
from rarvision.types import Prediction

__all__ = ["Panel", "draw_panels"]

_INK, _SOFT, _LINE, _PAPER = (33, 37, 41), (108, 117, 125), (222, 226, 230), (255, 255, 255)
_RIGHT, _WRONG, _BAR, _BAR_BACK = (25, 135, 84), (200, 45, 60), (13, 110, 253), (233, 236, 239)
_QUERY, _TILE, _GAP, _TEXT = 168, 116, 14, 96


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One row of the picture.

    Attributes:
        query: The image asked about, RGB.
        truth: Its true category, None where unknown.
        exemplars: One image of each candidate, in retrieval's order.
        prediction: The answer.
    """

    query: UInt8[np.ndarray, "h w 3"]
    truth: str | None
    exemplars: Sequence[UInt8[np.ndarray, "eh ew 3"]]
    prediction: Prediction


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _wrapped(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int
) -> str:
    """Break a name into at most ``lines`` lines; what does not fit ends in an ellipsis."""
    done: list[str] = []
    for word in text.split():
        if done and draw.textlength(f"{done[-1]} {word}", font=font) <= width:
            done[-1] += f" {word}"
        else:
            done.append(word)
    if len(done) > lines:
        done = [*done[: lines - 1], done[lines - 1] + "…"]
    return "\n".join(done)


def draw_panels(panels: Sequence[Panel], path: Path) -> None:
    """Write a picture with a row a query: the query, then its candidates as ranked, with an exemplar and a probability.

    A candidate's caption says where retrieval had put it; a green frame marks the true category, red a wrong answer.

    Args:
        panels: At least one.
        path: PNG; its folder is made.

    Raises:
        OptionError: No panel.
    """
    if not panels:
        raise OptionError(f"{path}: expected at least one panel to draw, got none; recognise an image first")
    columns = max(len(panel.exemplars) for panel in panels)
    row_height = max(_QUERY, _TILE + _TEXT) + 2 * _GAP
    head = 58
    width = _GAP + _QUERY + 2 * _GAP + 150 + columns * (_TILE + _GAP) + _GAP
    canvas = Image.new("RGB", (width, head + row_height * len(panels)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, 12), "query", fill=_INK, font=_font(18))
    left = _GAP + _QUERY + 2 * _GAP + 150
    draw.text((left, 12), "candidates from the memory, as the MLLM ranked them", fill=_INK, font=_font(18))
    for number, panel in enumerate(panels):
        top = head + number * row_height
        draw.line([(0, top - _GAP // 2), (width, top - _GAP // 2)], fill=_LINE, width=1)
        _row(canvas, draw, panel, top, left)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def _row(canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, top: int, left: int) -> None:
    prediction, truth = panel.prediction, panel.truth
    canvas.paste(Image.fromarray(panel.query).resize((_QUERY, _QUERY), Image.Resampling.LANCZOS), (_GAP, top))
    at = _GAP + _QUERY + _GAP
    if truth is not None:
        draw.text((at, top), "truth", fill=_SOFT, font=_font(12))
        draw.multiline_text((at, top + 16), _wrapped(draw, truth, _font(14), 150, 4), fill=_INK, font=_font(14))
        first = prediction.retrieved[0]
        for line, (what, name) in enumerate((("retrieval", first), ("RAR", prediction.label))):
            verdict, colour = ("right", _RIGHT) if name == truth else ("wrong", _WRONG)
            draw.text((at, top + 100 + 22 * line), f"{what}: {verdict}", fill=colour, font=_font(15))
    places = {category: place for place, category in enumerate(prediction.retrieved)}
    for column, candidate in enumerate(prediction.candidates):
        x = left + column * (_TILE + _GAP)
        place = places[candidate.category]
        tile = Image.fromarray(panel.exemplars[place]).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
        canvas.paste(tile, (x, top))
        if candidate.category == truth:
            draw.rectangle([x - 3, top - 3, x + _TILE + 2, top + _TILE + 2], outline=_RIGHT, width=3)
        elif column == 0 and truth is not None:
            draw.rectangle([x - 3, top - 3, x + _TILE + 2, top + _TILE + 2], outline=_WRONG, width=3)
        share = candidate.probability or 0.0
        bar = top + _TILE + 8
        draw.rectangle([x, bar, x + _TILE - 1, bar + 6], fill=_BAR_BACK)
        draw.rectangle([x, bar, x + max(1, round((_TILE - 1) * share)), bar + 6], fill=_BAR)
        caption = f"{share:.0%}   retrieved {_ordinal(place + 1)}"
        draw.text((x, bar + 10), caption, fill=_SOFT, font=_font(11))
        name = _wrapped(draw, candidate.category, _font(13), _TILE, 3)
        draw.multiline_text((x, bar + 26), name, fill=_INK, font=_font(13), spacing=2)


def _ordinal(n: int) -> str:
    return f"{n}{'th' if 10 <= n % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"
