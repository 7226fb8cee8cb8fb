"""Whether a benchmark on disk is complete: folders, lists, counts, files, images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rarvision.datasets.base import Dataset
from rarvision.datasets.benchmarks.names import distinct
from rarvision.datasets.benchmarks.opening import (
    Reference,
    data_folder,
    data_root,
    open_benchmark,
    table_folder,
)
from rarvision.datasets.benchmarks.spec import Listing, first_of
from rarvision.errors import DatasetError, ImageError, OptionError
from rarvision.images import load_image

__all__ = ["BenchmarkCheck", "Problem", "SplitCheck", "check_benchmark"]

Kind = Literal["folder", "list", "count", "missing", "empty", "unreadable", "overlap", "classes"]

_EXAMPLES = 5
_ROUND = 256
_WORKERS = 4
_ARCHIVES = (".tar", ".tgz", ".gz", ".zip")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is missing or wrong.

    Attributes:
        kind: ``folder`` or ``list``: nothing can be read; ``count``: another number of images than is published;
            ``missing``, ``empty``, ``unreadable``: files of images; ``overlap``: images in two splits; ``classes``.
        message: A sentence that says what was expected, what came, and what to do.
        count: How many files, images or classes it is about.
        examples: Some of them.
    """

    kind: Kind
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCheck:
    """One split: images expected, listed, missing or empty on disk, and unreadable (None: not opened)."""

    split: str
    expected: int | None
    listed: int | None
    classes: int | None = None
    missing: int | None = None
    unreadable: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkCheck:
    """What `check_benchmark` found.

    Attributes:
        dataset: The full reference.
        folder: Where it lies; None where it was not found.
        splits: One each.
        problems: What is wrong; empty for a benchmark that is complete.
        notes: What is worth knowing and not wrong.
        opened: Images that were opened.
    """

    dataset: str
    folder: str | None
    splits: tuple[SplitCheck, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    opened: int

    @property
    def ok(self) -> bool:
        """Nothing is wrong, as far as was looked."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "dataset": self.dataset,
            "ok": self.ok,
            "folder": self.folder,
            "opened": self.opened,
            "splits": [{name: getattr(each, name) for name in SplitCheck.__slots__} for each in self.splits],
            "problems": [
                {"kind": p.kind, "message": p.message, "count": p.count, "examples": list(p.examples)}
                for p in self.problems
            ],
            "notes": list(self.notes),
        }


@dataclass(kw_only=True)
class _Found:
    """What is collected on the way."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: Kind, message: str, examples: Sequence[str] = (), count: int | None = None) -> None:
        shown = tuple(examples[:_EXAMPLES])
        self.problems.append(Problem(kind=kind, message=message, count=count or max(1, len(examples)), examples=shown))


def check_benchmark(
    reference: Reference | str,
    root: str | Path | None = None,
    *,
    quick: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> BenchmarkCheck:
    """Find out what of a benchmark is missing or wrong on disk.

    The folder, the lists, the number of images and classes of each split against the published ones, images in two
    splits, files that are missing or empty, and, unless ``quick``, images that cannot be read.

    Args:
        reference: ``NAME``, ``NAME@SPLITS`` or ``NAME@SPLITS:SPLIT``; without a split, all of them.
        root: The folder of all datasets; by default the environment variable ``RARVISION_DATA_ROOT``.
        quick: Open no image.
        progress: Called with the number of images opened, and of all.

    Returns:
        What was found; nothing on disk is changed.

    Raises:
        OptionError: There is no such benchmark, or it is one of boxes.
        DatasetError: There is no folder of datasets.
        MissingExtraError: An optional dependency is needed to read it.
    """
    asked = Reference.of(reference) if isinstance(reference, str) else reference
    if asked.benchmark.task != "classification":
        raise OptionError(f"{asked.benchmark.name} is a benchmark of boxes; there is no check of its files here yet")
    start = data_root(root)
    found = _Found()
    if asked.table is not None:
        return _check_table(asked, start, found, quick=quick, progress=progress)
    return _check_lists(asked, start, found, quick=quick, progress=progress)


def _check_lists(
    asked: Reference, root: Path, found: _Found, *, quick: bool, progress: Callable[[int, int], None] | None
) -> BenchmarkCheck:
    known, division = asked.benchmark, asked.division
    try:
        folder = data_folder(known, division, root)
    except DatasetError as error:
        found.add("folder", str(error))
        return _report(asked, None, [], found, 0)
    _check_images_folders(asked, folder, found)
    listings: dict[str, Listing] = {}
    for split in asked.splits or tuple(division.counts):
        try:
            listings[split] = division.read(folder, split)
        except DatasetError as error:
            found.add("list", str(error))
    _check_overlap(listings, found)
    _check_names(asked, listings, found)
    there = _Disk(folder)
    absent: dict[str, set[str]] = {}
    for split, listing in listings.items():
        absent[split] = _check_files(asked, split, listing, there, found)
    paths = {path: None for split, listing in listings.items() for path, _ in listing.rows if path not in absent[split]}
    bad: set[str] = set()
    if not quick:
        bad = _check_images((folder / path for path in paths), list(paths), found, progress)
    checks = [
        SplitCheck(
            split=split,
            expected=division.counts[split],
            listed=len(listings[split].rows) if split in listings else None,
            classes=len({key for _, key in listings[split].rows}) if split in listings else None,
            missing=len(absent[split]) if split in listings else None,
            unreadable=sum(path in bad for path, _ in listings[split].rows)
            if split in listings and not quick
            else None,
        )
        for split in asked.splits or tuple(division.counts)
    ]
    for check in checks:
        if check.listed is not None and check.listed != check.expected:
            found.add(
                "count",
                f"{check.split}: expected {check.expected:,} images, the lists name {check.listed:,}; "
                "fetch the lists again",
                count=abs(check.listed - (check.expected or 0)),
            )
    return _report(asked, folder, checks, found, 0 if quick else len(paths))


def _check_images_folders(asked: Reference, folder: Path, found: _Found) -> None:
    for images in asked.division.images:
        place = first_of(folder, images)
        if not place.is_dir():
            packed = sorted(each.name for each in folder.iterdir() if each.name.endswith(_ARCHIVES))
            hint = f"; unpack {', '.join(packed[:_EXAMPLES])} there?" if packed else ""
            found.add("folder", f"{place}: no such folder; the images lie in it{hint}")


def _check_overlap(listings: Mapping[str, Listing], found: _Found) -> None:
    """`trainval` and the like hold the others on purpose."""
    seen: dict[str, str] = {}
    for split, listing in listings.items():
        paths = [path for path, _ in listing.rows]
        twice = [path for path, count in Counter(paths).items() if count > 1]
        if twice:
            found.add("overlap", f"{split}: {len(twice):,} images are listed twice", twice)
        if split == "trainval":
            continue
        for other in dict.fromkeys(seen[path] for path in paths if path in seen):
            shared = [path for path in paths if seen.get(path) == other]
            found.add("overlap", f"{split}: {len(shared):,} images are in {other} as well", shared)
        seen |= dict.fromkeys(paths, split)


def _check_names(asked: Reference, listings: Mapping[str, Listing], found: _Found) -> None:
    if not listings:
        return
    known = asked.benchmark
    expected = asked.division.classes or known.classes
    names: dict[str, str] = {}
    for listing in listings.values():
        names |= listing.names
    if len(names) != expected:
        found.add(
            "classes",
            f"expected {expected:,} classes, the lists have {len(names):,}",
            count=abs(len(names) - expected),
        )
    for split, listing in listings.items():
        bare = sorted(names[key] for key in names.keys() - {key for _, key in listing.rows})
        if bare:
            found.add("classes", f"{split}: {len(bare):,} classes have no image", bare)
    try:
        found.notes += distinct(names, known.renamed)[1]
    except DatasetError as error:
        found.add("classes", str(error))


class _Disk:
    """The files of folders and their sizes, each folder listed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[str, dict[str, int]] = {}

    def size(self, path: str) -> int | None:
        """Bytes; None where there is no such file."""
        place, _, name = path.rpartition("/")
        if place not in self._listed:
            self._listed[place] = self._list(self._folder / place)
        return self._listed[place].get(name)

    @staticmethod
    def _list(place: Path) -> dict[str, int]:
        try:
            with os.scandir(place) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):  # all its files are missing, which is what is told
            return {}
        except OSError as error:
            raise DatasetError(f"{place}: cannot be listed: {error.strerror or error}") from error


def _check_files(asked: Reference, split: str, listing: Listing, there: _Disk, found: _Found) -> set[str]:
    sizes = {path: there.size(path) for path, _ in listing.rows}
    missing = [path for path, size in sizes.items() if size is None]
    empty = [path for path, size in sizes.items() if size == 0]
    if missing:
        found.add(
            "missing",
            f"{split}: {len(missing):,} of {len(sizes):,} images are not there; `rarvision datasets info "
            f"{asked.benchmark.name}` says where to get them",
            missing,
        )
    if empty:
        found.add(
            "empty",
            f"{split}: {len(empty):,} of {len(sizes):,} images are empty files (0 bytes); fetch them again",
            empty,
        )
    return {*missing, *empty}


def _check_images(
    images: Iterable[Path | bytes], names: Sequence[str], found: _Found, progress: Callable[[int, int], None] | None
) -> set[str]:
    """Open every image; returns the names of those that cannot be read."""
    bad: dict[str, str] = {}
    left = zip(names, images, strict=True)
    done = 0
    with ThreadPoolExecutor(max_workers=min(_WORKERS, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(left, _ROUND)):  # rounds, so that a million images are not all queued
            for (name, _), error in zip(chunk, pool.map(_open, (image for _, image in chunk)), strict=True):
                done += 1
                if error is not None:
                    bad[name] = error
                if progress is not None:
                    progress(done, len(names))
    if bad:
        first = next(iter(bad.values()))
        found.add(
            "unreadable", f"{len(bad):,} of {len(names):,} images cannot be read, the first because: {first}", list(bad)
        )
    return set(bad)


def _open(image: Path | bytes) -> str | None:
    try:
        load_image(image)
    except ImageError as error:
        return str(error)
    return None


def _check_table(
    asked: Reference, root: Path, found: _Found, *, quick: bool, progress: Callable[[int, int], None] | None
) -> BenchmarkCheck:
    counts = asked.benchmark.counts()[asked.way]
    try:
        folder = table_folder(asked.benchmark, root)
    except DatasetError as error:
        found.add("folder", str(error))
        return _report(asked, None, [], found, 0)
    opened: dict[str, Dataset] = {}
    for split in asked.splits or tuple(counts):
        try:
            opened[split] = open_benchmark(Reference(benchmark=asked.benchmark, way=asked.way, splits=(split,)), root)
        except DatasetError as error:
            found.add("list", str(error))
    checks: list[SplitCheck] = []
    total = 0
    for split, dataset in opened.items():
        expected = counts[split]
        if expected is None:
            found.notes.append(f"{split}: {len(dataset):,} images; there is no published number to compare with")
        elif expected != len(dataset):
            found.add(
                "count",
                f"{split}: expected {expected:,} images, the copy has {len(dataset):,}",
                count=abs(expected - len(dataset)),
            )
        bare = [item.source for item in dataset.items if item.label is None]
        if bare:
            found.add("classes", f"{split}: {len(bare):,} images have no label", bare)
        bad: set[str] = set()
        if not quick:
            sources = [item.source for item in dataset.items]
            bad = _check_images(_stored(dataset), sources, found, progress)
            total += len(dataset)
        checks.append(
            SplitCheck(
                split=split,
                expected=expected,
                listed=len(dataset),
                classes=len(dataset.categories),
                missing=0,
                unreadable=None if quick else len(bad),
            )
        )
    return _report(asked, folder, checks, found, total)


def _stored(dataset: Dataset) -> Iterator[Path | bytes]:
    for index in range(len(dataset)):
        image = dataset[index].image
        yield image if isinstance(image, (Path, bytes)) else b""


def _report(
    asked: Reference, folder: Path | None, checks: Sequence[SplitCheck], found: _Found, opened: int
) -> BenchmarkCheck:
    return BenchmarkCheck(
        dataset=str(asked),
        folder=None if folder is None else str(folder),
        splits=tuple(checks),
        problems=tuple(found.problems),
        notes=tuple(found.notes),
        opened=opened,
    )
