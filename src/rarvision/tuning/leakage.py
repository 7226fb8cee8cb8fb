"""The guard against leakage: what a test set shares with what was learnt from and with the memory."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from rarvision.datasets.base import Dataset
from rarvision.encoders import ordered_map, worker_pool
from rarvision.errors import ImageError, InputError, LeakageError, OptionError
from rarvision.images import Picture, load_image, load_picture
from rarvision.memory import Memory
from rarvision.memory.adding import box_of, content_hash
from rarvision.tuning.looks import BITS, THRESHOLD, look_alikes, look_of
from rarvision.tuning.manifest import iter_manifest
from rarvision.types import Box, Sample, box_suffix

__all__ = ["ImagePair", "ImageSet", "LeakageReport", "Overlap", "Role", "check_leakage", "image_set", "normalised_name"]

Role = Literal["memory", "tuning", "test"]
"""What a set is for."""

_AHEAD = 256
_ENTRIES = 1_024
_SHORTEST = 128  # pixels of a JPEG's shorter side that are decoded for its look


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """What is compared of a set of images; made by `image_set`.

    Attributes:
        role: What it is for.
        sources: One an image.
        content: SHA-256 of each image's bytes (of its pixels, where it is no file), and of its box where it has one.
        looks: See `rarvision.tuning.looks`; one row for each of ``seen``.
        seen: The images whose look is known, as places in ``sources``.
        categories: The names that the set knows.
        unreadable: Source and message of each image that could not be read.
    """

    role: Role
    sources: tuple[str, ...]
    content: tuple[bytes, ...]
    looks: UInt8[np.ndarray, "m 200"]
    seen: Int[np.ndarray, " m"]
    categories: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePair:
    """One image in two sets.

    Attributes:
        first: Its source in the first set.
        second: Its source in the second.
        kind: ``exact``: the same bytes; ``near``: they look the same.
        bits: Bits of their perceptual hashes that differ, of 64; 0 for ``exact``.
    """

    first: str
    second: str
    kind: Literal["exact", "near"]
    bits: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What two sets share.

    Attributes:
        first: The first set's role.
        second: The second's.
        exact: Images of the second set that are, byte for byte, in the first.
        near: Further images of the second set that look like one of the first.
        categories: Names of the second set that the first knows too, as the second spells them.
        examples: Some of the images.
        leaks: Which of these must not be: ``images``, ``categories``.
    """

    first: Role
    second: Role
    exact: int
    near: int
    categories: tuple[str, ...]
    examples: tuple[ImagePair, ...]
    leaks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakageReport:
    """What the sets are, and what each two of them share.

    Attributes:
        images: Number of images by role.
        categories: Number of category names by role.
        unreadable: Number of images that could not be read, by role; they were compared by their bytes at most.
        threshold: Bits of 64 in which look-alikes may differ; None: only equal bytes were looked for.
        overlaps: One for each two sets.
    """

    images: dict[Role, int]
    categories: dict[Role, int]
    unreadable: dict[Role, int]
    threshold: int | None
    overlaps: tuple[Overlap, ...]

    @property
    def leaked(self) -> bool:
        """Whether the test set shares what it must not."""
        return any(overlap.leaks for overlap in self.overlaps)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with ``leaked``."""
        return {**asdict(self), "leaked": self.leaked}

    def table(self) -> list[tuple[str, str, str, str]]:
        """Rows for people: the two sets, equal images, look-alikes, categories; ``!`` marks what must not be."""
        rows = []
        for overlap in self.overlaps:
            marks = {what: " !" if what in overlap.leaks else "" for what in ("images", "categories")}
            rows.append(
                (
                    f"{overlap.first} and {overlap.second}",
                    f"{overlap.exact:,}{marks['images'] if overlap.exact else ''}",
                    f"{overlap.near:,}{marks['images'] if overlap.near else ''}",
                    f"{len(overlap.categories):,}{marks['categories']}",
                )
            )
        return rows

    def summary(self) -> str:
        """One sentence that says what leaks; empty where nothing does."""
        parts = []
        for overlap in self.overlaps:
            if "images" in overlap.leaks:
                found = overlap.exact + overlap.near
                such = "".join(f", such as {pair.second} ({pair.first})" for pair in overlap.examples[:1])
                parts.append(
                    f"{found:,} of {self.images[overlap.second]:,} {overlap.second} images are in the {overlap.first} "
                    f"set ({overlap.exact:,} the same bytes, {overlap.near:,} look-alikes){such}"
                )
            if "categories" in overlap.leaks:
                parts.append(
                    f"{len(overlap.categories):,} of {self.categories[overlap.second]:,} {overlap.second} categories "
                    f"are in the {overlap.first} set, such as {overlap.categories[0]!r}"
                )
        return "; ".join(parts)


def normalised_name(name: str) -> str:
    """A category's name as it is compared: without case, with one space for underscores, hyphens and spaces.

    Example:
        >>> normalised_name(" American_Pit-Bull  Terrier")
        'american pit bull terrier'
    """
    return re.sub(r"[\s_\-\u2010-\u2015\u2212]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()


def image_set(
    source: Dataset | Memory | str | Path,
    role: Role,
    *,
    looks: bool = True,
    on_error: Callable[[str, InputError], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImageSet:
    """Read what is compared of a set of images; images are read in a few threads, and none is kept.

    Args:
        source: A dataset, labelled or not; a memory, whose thumbnails serve for the look and whose names are known
            categories, too; or a tuning manifest, of which every name shown is a known category.
        role: What the set is for.
        looks: Whether look-alikes are to be found: each image is decoded for that. False reads its bytes only.
        on_error: Called with the source and the error of an image that cannot be read; it is compared by its bytes,
            if these are known, and not by its look. Without it the error is raised.
        progress: Called with the number of images done.

    Raises:
        DatasetError: The manifest cannot be read.
        ImageError: An image cannot be read, and there is no ``on_error``.
        OptionError: An unknown role.
    """
    if role not in get_args(Role):
        raise OptionError(f"role must be one of {', '.join(get_args(Role))}, got {role!r}")
    reading = _Reading(role, looks=looks, on_error=on_error, progress=progress)
    if isinstance(source, Memory):
        with source.snapshot():
            return reading.of(_memory_images(source), source.categories())
    if isinstance(source, Dataset):
        return reading.of(map(_waiting, source), source.categories)
    images: dict[Path, None] = {}
    names: dict[str, None] = {}
    for example in iter_manifest(source):
        images.setdefault(example.image)
        names.update(dict.fromkeys(example.candidates))
    return reading.of((_Waiting(str(path), image=path) for path in images), names)


def _waiting(sample: Sample) -> _Waiting:
    """A dataset's sample; bytes are a file's own here, unlike a memory's thumbnail, and are compared as such."""
    given = isinstance(sample.image, bytes)
    content = content_hash(sample.image, sample.box_xyxy) if given else None
    return _Waiting(sample.source, image=sample.image, box=sample.box_xyxy, content=content)


def check_leakage(
    *sets: ImageSet,
    threshold: int | None = THRESHOLD,
    examples: int = 10,
    shared_categories: bool = False,
    allow_leakage: bool = False,
) -> LeakageReport:
    """Compare sets of images, and refuse where the test set is not apart from the others.

    Test images in the memory find themselves; test images and categories in the tuning set were learnt. What may be
    shared is only counted: the memory's categories with the other two sets', its images with the tuning set's.

    Args:
        sets: At least two of `image_set`, of different roles.
        threshold: Bits of 64 in which the perceptual hashes of look-alikes may differ; None looks for equal bytes only.
        examples: At most so many pairs of images are named for each two sets.
        shared_categories: Tuning and test set are meant to have categories in common.
        allow_leakage: Report only.

    Raises:
        LeakageError: There is leakage, and ``allow_leakage`` is False.
        OptionError: Fewer than two sets, a role twice, or a threshold outside 0 to 64.
    """
    roles = [each.role for each in sets]
    if len(sets) < 2 or len(set(roles)) < len(roles):
        raise OptionError(f"expected two or three sets of different roles, got {', '.join(roles) or 'none'}")
    if threshold is not None and not 0 <= threshold <= BITS:
        raise OptionError(f"threshold must lie between 0 and {BITS} bits, or be None, got {threshold}")
    ordered = sorted(sets, key=lambda each: get_args(Role).index(each.role))
    report = LeakageReport(
        images={each.role: len(each.sources) for each in ordered},
        categories={each.role: len(each.categories) for each in ordered},
        unreadable={each.role: len(each.unreadable) for each in ordered},
        threshold=threshold,
        overlaps=tuple(
            _overlap(first, second, threshold, examples, shared_categories=shared_categories)
            for place, second in enumerate(ordered)
            for first in ordered[:place]
        ),
    )
    if report.leaked and not allow_leakage:
        raise LeakageError(
            f"leakage: {report.summary()}. Take them out of one of the sets; or say that categories are meant to be "
            "shared by new images (shared_categories=True, --shared-categories); or allow it all (allow_leakage=True, "
            "--allow-leakage) where the result is not to be taken for a test"
        )
    return report


def _overlap(
    first: ImageSet, second: ImageSet, threshold: int | None, examples: int, *, shared_categories: bool
) -> Overlap:
    where: dict[bytes, int] = {}
    for place, content in enumerate(first.content):
        where.setdefault(content, place)
    exact = {place: where[content] for place, content in enumerate(second.content) if content in where}
    pairs = [
        ImagePair(first=first.sources[theirs], second=second.sources[ours], kind="exact", bits=0)
        for ours, theirs in list(exact.items())[:examples]
    ]
    near = 0
    if threshold is not None:
        for look, other, bits in look_alikes(first.looks, second.looks, threshold=threshold):
            ours, theirs = int(second.seen[look]), int(first.seen[other])
            if ours in exact:
                continue
            near += 1
            if len(pairs) < examples:
                pairs.append(
                    ImagePair(first=first.sources[theirs], second=second.sources[ours], kind="near", bits=bits)
                )
    known = {normalised_name(name) for name in first.categories}
    shared = tuple(sorted(name for name in second.categories if normalised_name(name) in known))
    leaks = []
    if second.role == "test":
        if exact or near:
            leaks.append("images")
        if shared and first.role == "tuning" and not shared_categories:
            leaks.append("categories")
    return Overlap(
        first=first.role,
        second=second.role,
        exact=len(exact),
        near=near,
        categories=shared,
        examples=tuple(pairs),
        leaks=tuple(leaks),
    )


@dataclass(frozen=True)
class _Waiting:
    """An image that is to be read: a file, a decoded image, or a thumbnail's bytes with the content known."""

    source: str
    image: Path | Image.Image | bytes
    box: Box | None = None
    content: bytes | None = None


def _memory_images(memory: Memory) -> Iterator[_Waiting]:
    ids, _ = memory.table("image")
    for start in range(0, len(ids), _ENTRIES):
        for entry in memory.records(ids[start : start + _ENTRIES]):
            box = box_of(entry.metadata)
            if entry.thumbnail is not None:
                yield _Waiting(entry.source, image=entry.thumbnail, content=entry.content)
            else:
                path = Path(entry.source.removesuffix(box_suffix(box)))
                yield _Waiting(entry.source, image=path, box=box, content=entry.content)


class _Reading:
    """Reads a set; an image whose content is known without it is kept where its look cannot be read."""

    def __init__(
        self,
        role: Role,
        *,
        looks: bool,
        on_error: Callable[[str, InputError], None] | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._role = role
        self._looks = looks
        self._on_error = on_error
        self._progress = progress

    def of(self, images: Iterable[_Waiting], categories: Iterable[str]) -> ImageSet:
        sources: list[str] = []
        content: list[bytes] = []
        looks: list[np.ndarray] = []
        seen: list[int] = []
        unreadable: list[tuple[str, str]] = []
        with worker_pool() as pool:
            for done, (waiting, found, look) in enumerate(
                ordered_map(self._read, images, pool=pool, ahead=_AHEAD), start=1
            ):
                if found is not None:
                    if isinstance(look, np.ndarray):
                        seen.append(len(sources))
                        looks.append(look)
                    sources.append(waiting.source)
                    content.append(found)
                if isinstance(look, ImageError):
                    if self._on_error is None:
                        raise look
                    unreadable.append((waiting.source, str(look)))
                    self._on_error(waiting.source, look)
                if self._progress is not None:
                    self._progress(done)
        return ImageSet(
            role=self._role,
            sources=tuple(sources),
            content=tuple(content),
            looks=np.stack(looks) if looks else np.empty((0, 200), dtype=np.uint8),
            seen=np.array(seen, dtype=np.int64),
            categories=tuple(categories),
            unreadable=tuple(unreadable),
        )

    def _read(self, waiting: _Waiting) -> tuple[_Waiting, bytes | None, np.ndarray | ImageError | None]:
        content = waiting.content
        try:
            if content is None and not isinstance(waiting.image, bytes):
                content = content_hash(waiting.image, waiting.box)
            return waiting, content, self._look(waiting) if self._looks else None
        except ImageError as error:
            return waiting, content, error

    @staticmethod
    def _look(waiting: _Waiting) -> UInt8[np.ndarray, " 200"]:
        if waiting.box is not None:  # at its full size: how much of it the box is, is not known yet
            image = load_image(waiting.image)
            return look_of(Picture.of(image).cropped(waiting.box))
        return look_of(load_picture(waiting.image, shortest=_SHORTEST))
