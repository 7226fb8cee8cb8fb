"""What a memory can show of candidate categories: images of theirs, and what it was told about them."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import final

from PIL import Image

from rarvision.errors import ImageError
from rarvision.images import load_image
from rarvision.memory.adding import open_entry
from rarvision.memory.base import Memory
from rarvision.ranking import Showing, Shown
from rarvision.types import Candidate

__all__ = ["Exemplars", "entry_image"]

_KEPT = 1_024  # decoded images, of thumbnails' size for the most part


def entry_image(memory: Memory, entry_id: int) -> Image.Image | None:
    """An entry's image: its source where that is still the file that was added, else its thumbnail, else None."""
    (record,) = memory.records([entry_id])
    if record.modality != "image":
        return None
    image = open_entry(record)
    if image is None and record.thumbnail is not None:
        image = load_image(Image.open(io.BytesIO(record.thumbnail)))
    return image


@final
class Exemplars:
    """Gives what a ranker asks for of each candidate; the latest images are kept.

    Args:
        memory: Where from.
        showing: What is asked for.
    """

    def __init__(self, memory: Memory, showing: Showing) -> None:
        self._memory = memory
        self._showing = showing
        self._lock = threading.Lock()
        self._revision = -1
        self._images: OrderedDict[int, Image.Image | None] = OrderedDict()
        self._descriptions: dict[str, str | None] = {}

    def of(
        self, candidates: Sequence[Sequence[Candidate]], *, without: Sequence[int | None] | None = None
    ) -> list[list[Shown]] | None:
        """What may be shown of each image's candidates; None where nothing is asked for.

        Args:
            candidates: Of n images.
            without: For each image an entry that must not be shown, since it is the image itself.
        """
        if not self._showing:
            return None
        with self._lock:
            if self._memory.revision != self._revision:
                self._revision = self._memory.revision
                self._images.clear()
                self._descriptions.clear()
            left_out = [None] * len(candidates) if without is None else without
            return [
                [self._shown(candidate, entry) for candidate in each]
                for each, entry in zip(candidates, left_out, strict=True)
            ]

    def _shown(self, candidate: Candidate, without: int | None) -> Shown:
        images: list[Image.Image] = []
        for entry in candidate.exemplars if self._showing.exemplars else ():
            if entry != without and (image := self._image(entry)) is not None:
                images.append(image)
                if len(images) == self._showing.exemplars:
                    break
        description = self._description(candidate.category) if self._showing.descriptions else None
        return Shown(exemplars=tuple(images), description=description)

    def _image(self, entry: int) -> Image.Image | None:
        if entry in self._images:
            self._images.move_to_end(entry)
            return self._images[entry]
        try:
            image = entry_image(self._memory, entry)
        except ImageError:
            image = None
        self._images[entry] = image
        if len(self._images) > _KEPT:
            self._images.popitem(last=False)
        return image

    def _description(self, category: str) -> str | None:
        """The category's first text that says more than its name."""
        if category not in self._descriptions:
            texts = (entry.source for entry in self._memory.entries(category=category, modality="text"))
            self._descriptions[category] = next((text for text in texts if text != category), None)
        return self._descriptions[category]
