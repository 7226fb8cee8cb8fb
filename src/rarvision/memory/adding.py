"""From samples and names to entries that are about to be stored: identity, decoding, counting, skipping."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from PIL import Image

from rarvision.encoders import Encoder, Prepared, short_templates
from rarvision.errors import ImageError, InputError, OptionError
from rarvision.images import Picture, load_image, thumbnail
from rarvision.memory.records import AddReport, NewEntry
from rarvision.types import Box, Modality, Sample, box_suffix

__all__ = [
    "Adding",
    "Decode",
    "batches",
    "box_of",
    "check_category",
    "content_hash",
    "hash_sample",
    "new_texts",
    "open_entry",
    "unit_vectors",
]

_BOX = "box_xyxy"  # key of an entry's metadata: the part of its image that it is, where it is not all of it
_UNIT_WITHIN = 0.01


class Adding:
    """Counts of one addition, and what it has taken so far, so that doubles within it are seen."""

    def __init__(
        self, *, on_error: Callable[[Sample, InputError], None] | None, progress: Callable[[int], None] | None
    ) -> None:
        self._on_error = on_error
        self._progress = progress
        self._added = 0
        self._skipped = 0
        self._failures: list[tuple[str, str]] = []
        self._failure: InputError | None = None
        self._taken: set[tuple[bytes, str, Modality]] = set()

    def is_fresh(self, entry: NewEntry, contains: Callable[[bytes, str, Modality], bool]) -> bool:
        """Whether it is neither stored nor taken yet; takes it, or counts it as skipped."""
        key = (entry.content, entry.category, entry.modality)
        if key in self._taken or contains(entry.content, entry.category, entry.modality):
            self._skipped += 1
            self._report_progress()
            return False
        self._taken.add(key)
        return True

    def fresh(
        self, entries: Iterable[NewEntry], contains: Callable[[bytes, str, Modality], bool]
    ) -> Iterator[NewEntry]:
        """Those that are neither stored nor taken yet."""
        return (entry for entry in entries if self.is_fresh(entry, contains))

    def unknown(
        self,
        hashed: Iterable[tuple[Sample, NewEntry | InputError]],
        contains: Callable[[bytes, str, Modality], bool],
    ) -> Iterator[tuple[Sample, NewEntry]]:
        """Samples that are neither stored nor taken yet; ends where a bad one ends the addition."""
        for sample, entry in hashed:
            if self.failed:
                return
            if isinstance(entry, InputError):
                self.fail(sample, entry)
            elif self.is_fresh(entry, contains):
                yield sample, entry

    def readable(
        self, decoded: Iterable[tuple[Sample, NewEntry, Prepared | InputError]]
    ) -> Iterator[tuple[NewEntry, Prepared]]:
        """Decoded samples; ends where a bad one ends the addition."""
        for sample, entry, image in decoded:
            if isinstance(image, InputError):
                self.untake(entry)
                self.fail(sample, image)
                if self.failed:
                    return
            else:
                yield entry, image

    def untake(self, entry: NewEntry) -> None:
        """It was not stored after all, so that another of the same content is no double."""
        self._taken.discard((entry.content, entry.category, entry.modality))

    def fail(self, sample: Sample, error: InputError) -> None:
        """Count and tell a bad sample, or let it end the addition."""
        if self._on_error is None:
            self._failure = self._failure or error
            return
        self._failures.append((sample.source, str(error)))
        self._on_error(sample, error)
        self._report_progress()

    @property
    def is_told(self) -> bool:
        """Somebody is told of bad samples, which then cost themselves only."""
        return self._on_error is not None

    @property
    def failed(self) -> bool:
        """A bad sample has come that ends the addition."""
        return self._failure is not None

    def raise_failure(self) -> None:
        """The first bad sample's error, where nobody else is told of it."""
        if self._failure is not None:
            raise self._failure

    def stored(self, count: int) -> None:
        """Count entries that are safe now."""
        self._added += count
        self._report_progress()

    def _report_progress(self) -> None:
        if self._progress is not None:
            self._progress(self._added + self._skipped + len(self._failures))

    def report(self) -> AddReport:
        """The counts so far."""
        return AddReport(
            added=self._added, skipped=self._skipped, failed=len(self._failures), failures=tuple(self._failures)
        )


_Item = TypeVar("_Item")


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Lists of ``size`` items; the last may be shorter."""
    batch: list[_Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def hash_sample(sample: Sample) -> tuple[Sample, NewEntry | InputError]:
    """The sample as an entry, or why it cannot be one."""
    try:
        if sample.label is None:
            raise InputError(f"{sample.source}: has no label; a memory's entries need a category")  # noqa: TRY301
        check_category(sample.label)
        if sample.box_xyxy is None and _BOX in sample.metadata:
            raise InputError(  # noqa: TRY301
                f"{sample.source}: the key {_BOX!r} of the metadata is taken: give the sample a box_xyxy, or rename it"
            )
        return sample, NewEntry(
            category=sample.label,
            modality="image",
            source=sample.source,
            content=content_hash(sample.image, sample.box_xyxy),
            metadata=dict(sample.metadata) | ({} if sample.box_xyxy is None else {_BOX: list(sample.box_xyxy)}),
        )
    except InputError as error:
        return sample, error


def content_hash(image: Path | bytes | Image.Image, box: Box | None) -> bytes:
    """SHA-256 of a file's bytes, or of a decoded image's mode, size and pixels; and of the box, where there is one."""
    whole = _image_hash(image)
    return whole if box is None else hashlib.sha256(whole + struct.pack("<4d", *box)).digest()


def _image_hash(image: Path | bytes | Image.Image) -> bytes:
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    if isinstance(image, Image.Image):
        head = f"{image.mode} {image.size}".encode()
        return hashlib.sha256(head + image.tobytes()).digest()
    path = Path(image)
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where the folder is closed to us
        load_image(path)  # raises the error that says what is wrong with it
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}; check its permissions") from error


def box_of(metadata: Mapping[str, Any]) -> Box | None:
    """The part of its image that an entry is, None for all of it."""
    box = metadata.get(_BOX)
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(edge, (int, float)) for edge in box):
        return None
    left, upper, right, lower = map(float, box)
    return left, upper, right, lower


def open_entry(entry: NewEntry) -> Image.Image | None:
    """An image entry's picture, from its source; None where that is no file, or no longer the one that was added."""
    box = box_of(entry.metadata)
    path = Path(entry.source.removesuffix(box_suffix(box)))
    try:
        if content_hash(path, box) != entry.content:
            return None
        image = load_image(path)
        return image if box is None else Picture.of(image).cropped(box).whole()
    except ImageError:
        return None


class Decode:
    """Opens a sample's image for an encoder and makes its thumbnail; runs in a pool."""

    def __init__(self, encoder: Encoder, thumbnail_size: int | None) -> None:
        self._encoder = encoder
        self._thumbnail_size = thumbnail_size

    def __call__(self, item: tuple[Sample, NewEntry]) -> tuple[Sample, NewEntry, Prepared | InputError]:
        """Decode one sample; an image that cannot be read comes back as its error."""
        sample, entry = item
        try:
            if sample.box_xyxy is None:
                picture = self._encoder.load(sample.image, longest=self._thumbnail_size)
            else:  # at its full size: how much of it the box is, is not known yet
                image = load_image(sample.image)
                sample.check_size(image.size)
                part = Picture.of(image).cropped(sample.box_xyxy).whole()
                picture = Picture.of(part)
        except ImageError as error:
            return sample, entry, error
        if self._thumbnail_size is not None:
            entry = replace(entry, thumbnail=thumbnail(picture.whole(), self._thumbnail_size))
        return sample, entry, self._encoder.prepare(picture)


def check_category(name: str) -> None:
    """Raise `InputError` where a name cannot be a category: blank, or not encodable as UTF-8."""
    if not name.strip():
        raise InputError("a category's name must not be blank")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the category {name!r} is not valid Unicode; rename it (its folder is not UTF-8)") from error


def unit_vectors(vectors: Float[np.ndarray, "n dim"], count: int, dim: int) -> Float[np.ndarray, "n dim"]:
    """Vectors as they are stored, float32: as they are to within half precision of unit length, else normalised.

    Raises `OptionError` unless there are ``count`` of ``dim`` dimensions, finite and with a direction.
    """
    array = np.asarray(vectors, dtype=np.float32)
    if array.shape != (count, dim):
        raise OptionError(f"expected vectors of shape ({count}, {dim}), got {array.shape}")
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    if not np.isfinite(array).all() or not (norms > 0).all():
        raise OptionError("every vector must be finite and have a direction")
    norms[np.abs(norms - 1.0) < _UNIT_WITHIN] = 1.0
    units: Float[np.ndarray, "n dim"] = array / norms
    return units


def new_texts(rows: Iterable[tuple[str, str, Mapping[str, Any]]], templates: tuple[str, ...]) -> Iterator[NewEntry]:
    """Text entries of names, texts and metadata; raises `InputError` where a name or text is blank."""
    told = {} if templates == ("{}",) else {"templates": short_templates(templates)}
    return (_new_text(name, text, templates, {**metadata, **told}) for name, text, metadata in rows)


def _new_text(name: str, text: str, templates: tuple[str, ...], metadata: Mapping[str, Any]) -> NewEntry:
    check_category(name)
    check_category(text)
    content = hashlib.sha256(json.dumps([text, *templates]).encode()).digest()
    return NewEntry(category=name, modality="text", source=text, content=content, metadata=metadata)
