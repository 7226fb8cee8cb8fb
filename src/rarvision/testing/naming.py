"""The contract of a namer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from rarvision.naming.base import Guess, Namer

__all__ = ["check_namer"]


def check_namer(namer: Namer, images: Sequence[Image.Image] | None = None) -> None:
    """Assert what every namer must hold: a guess an image, alone as in a batch, and settings that can be kept.

    Args:
        namer: The namer; asked a dozen times.
        images: Images to name; plain colours, one with an alpha channel and one grey, by default.

    Raises:
        AssertionError: With what was expected and what came.
    """
    colours = [Image.new("RGB", (32, 24), colour) for colour in ("red", "green", "blue")]
    chosen = list(images or [*colours, colours[0].convert("RGBA"), colours[1].convert("L")])
    _require(bool(namer.name), "name must not be empty")
    kept = json.dumps(dict(namer.settings), sort_keys=True)
    together = namer.guess(chosen)
    _require(len(together) == len(chosen), f"expected {len(chosen)} guesses, got {len(together)}")
    for guess in together:
        _check_guess(guess)
    alone = [namer.guess([image])[0] for image in chosen]
    _require(alone == together, f"alone and in a batch must agree: {alone} against {together}")
    backwards = namer.guess(chosen[::-1])[::-1]
    _require(backwards == together, f"the order of a batch must not matter: {backwards} against {together}")
    _require(namer.guess([]) == [], "an empty batch must give an empty list")
    again = json.dumps(dict(namer.settings), sort_keys=True)
    _require(again == kept, f"settings must not change by asking: {kept} before, {again} now")


def _check_guess(guess: Guess) -> None:
    _require(all(name == name.strip() != "" for name in guess.names), f"names must not be blank, got {guess.names!r}")
    _require(len(set(guess.names)) == len(guess.names), f"names must be distinct, got {guess.names!r}")
    _require(bool(guess.names) or bool(guess.reason), "a guess without names must say why")


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - it reads as an assertion
    if not condition:
        raise AssertionError(message)
