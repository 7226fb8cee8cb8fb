"""A namer: from images to guesses of what they are called, without any list of categories."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from rarvision.errors import OptionError

__all__ = ["Guess", "Namer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """What a namer says of one image.

    Attributes:
        names: Distinct names, the likeliest first; empty where it has none.
        raw: The answers that they were read from, or the captions that they were found in.
        reason: Why there are none; None where there are.
    """

    names: tuple[str, ...]
    raw: tuple[str, ...] = ()
    reason: str | None = None

    def __post_init__(self) -> None:
        if bool(self.names) == (self.reason is not None):
            raise OptionError(f"a reason goes with having no names: {self.names!r}, {self.reason!r}")


class Namer(abc.ABC):
    """Guesses names of images. An author writes `name` and `_guess`."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """For reports."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes a guess, JSON values."""
        return {"namer": self.name}

    @abc.abstractmethod
    def _guess(self, images: list[Image]) -> list[Guess]:
        """A guess for each RGB image."""

    def guess(self, images: Sequence[Image]) -> list[Guess]:
        """A guess for each image, in order.

        Raises:
            ChatError: An MLLM that is asked does not answer.
        """
        rgb = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
        found = self._guess(rgb) if rgb else []
        if len(found) != len(rgb):
            raise OptionError(f"{self.name}: expected {len(rgb)} guesses, got {len(found)}")
        return found
