"""The image files that ranking examples name: those that are there, else written from what the source holds."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import final

from PIL import Image

from rarvision.datasets.base import Dataset
from rarvision.errors import ImageError
from rarvision.images import Picture, load_image
from rarvision.memory import Memory
from rarvision.memory.adding import box_of
from rarvision.types import Box, Entry, box_suffix

__all__ = ["DatasetImages", "MemoryImages"]


@final
class DatasetImages:
    """A dataset's own files; what it draws, cuts out or holds in a table is written to a folder as PNG.

    Args:
        dataset: Its samples' sources are the entries'.
        folder: Made when something is written.

    Attributes:
        thumbnails: 0, as `MemoryImages` counts them.
    """

    thumbnails = 0

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self._dataset = dataset
        self._folder = folder
        self._indices = {item.source: index for index, item in enumerate(dataset.items)}

    def path_of(self, entry: Entry) -> Path:
        """The file; raises `ImageError` where the image cannot be read."""
        sample = self._dataset[self._indices[entry.source]]
        if isinstance(sample.image, Path) and sample.box_xyxy is None:
            return sample.image
        return _write(self._folder, _png(sample.image, sample.box_xyxy), ".png")


@final
class MemoryImages:
    """The files that a memory's images came from; where they are gone, its thumbnails, written to a folder.

    Attributes:
        thumbnails: Images taken from their thumbnails so far.
    """

    def __init__(self, memory: Memory, folder: Path) -> None:
        self._memory = memory
        self._folder = folder
        self.thumbnails = 0

    def path_of(self, entry: Entry) -> Path:
        """The file.

        Raises:
            ImageError: The file is gone, and there is no thumbnail; or it cannot be read.
        """
        box = box_of(entry.metadata)
        path = Path(entry.source.removesuffix(box_suffix(box)))
        if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a folder is closed to us
            return path if box is None else _write(self._folder, _png(path, box), ".png")
        jpeg = self._memory.thumbnail(entry.id)
        if jpeg is None:
            raise ImageError(
                f"{entry.source}: the file is gone, and the memory keeps no thumbnail of it; put the images back, or "
                "make the memory again with thumbnails"
            )
        self.thumbnails += 1
        return _write(self._folder, jpeg, ".jpg")


def _png(image: Path | bytes | Image.Image, box: Box | None) -> bytes:
    loaded = load_image(image)
    part = loaded if box is None else Picture.of(loaded).cropped(box).whole()
    buffer = io.BytesIO()
    part.save(buffer, format="PNG")
    return buffer.getvalue()


def _write(folder: Path, content: bytes, suffix: str) -> Path:
    """Named by its content, so that a file that is there already is the right one."""
    path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.part")
        fresh.write_bytes(content)
        fresh.replace(path)
    return path
