"""From a name such as ``flowers102:test`` and the folder of all datasets to labelled images."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from PIL.Image import Image

from rarvision.datasets.base import Dataset, Item
from rarvision.datasets.benchmarks.fine_grained import FINE_GRAINED
from rarvision.datasets.benchmarks.general import GENERAL
from rarvision.datasets.benchmarks.names import distinct
from rarvision.datasets.benchmarks.spec import Benchmark, Splits, Table, first_of
from rarvision.datasets.hub import HubDataset, is_table, load_table
from rarvision.errors import DatasetError, OptionError

__all__ = [
    "BENCHMARKS",
    "DATA_ROOT",
    "BenchmarkDataset",
    "Reference",
    "benchmark",
    "class_names",
    "data_folder",
    "data_root",
    "names_benchmark",
    "open_benchmark",
    "table_folder",
    "table_names",
]

BENCHMARKS: Mapping[str, Benchmark] = {each.name: each for each in (*FINE_GRAINED, *GENERAL)}
"""Every benchmark that is known here, by name."""

DATA_ROOT = "RARVISION_DATA_ROOT"
"""The environment variable that names the folder of all datasets."""

HUB = "hub"
_REFERENCE = re.compile(r"(?P<name>[A-Za-z][\w-]*)(@(?P<way>[\w-]+))?(:(?P<splits>[\w-]+(\+[\w-]+)*))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A benchmark, a way of dividing it, and splits of it: ``flowers102@coop:train+val``.

    Attributes:
        benchmark: Which.
        way: Its splits' name, or ``hub`` for its copy from the hub.
        splits: Which of the splits; empty where none are named.
    """

    benchmark: Benchmark
    way: str
    splits: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Reference:
        """Read ``NAME``, ``NAME@WAY``, ``NAME:SPLIT``, ``NAME@WAY:SPLIT+SPLIT``.

        Raises:
            OptionError: There is no such benchmark, way or split, or a split is named twice.
        """
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise OptionError(f"expected NAME, NAME:SPLIT or NAME@SPLITS:SPLIT, such as flowers102:test, got {text!r}")
        known = benchmark(match["name"])
        way = match["way"] or known.default
        counts = known.counts()
        if known.task != "classification" and (match["way"] or match["splits"]):
            raise OptionError(f"{known.name} is a benchmark of boxes: it has no splits of labelled images here")
        if known.task == "classification" and way not in counts:
            raise OptionError(f"{known.name}: no splits {way!r}; it has {', '.join(counts)}")
        splits = tuple(match["splits"].split("+")) if match["splits"] else ()
        for split in splits:
            if split not in counts.get(way, {}):
                raise OptionError(f"{known.name}@{way}: no split {split!r}; it has {', '.join(counts[way])}")
        if len(set(splits)) < len(splits):
            raise OptionError(f"{text}: a split is named twice")
        return cls(benchmark=known, way=way, splits=splits)

    @property
    def table(self) -> Table | None:
        """The copy on the hub, where that is meant."""
        return self.benchmark.table if self.way == HUB else None

    @property
    def division(self) -> Splits:
        """The splits, where lists are meant."""
        return self.benchmark.splits[self.way]

    def __str__(self) -> str:
        return f"{self.benchmark.name}@{self.way}" + (f":{'+'.join(self.splits)}" if self.splits else "")


def benchmark(name: str) -> Benchmark:
    """The benchmark of a name; case does not matter, and ``-`` is ``_``.

    Raises:
        OptionError: There is none; the message names the nearest.
    """
    key = name.lower().replace("-", "_")
    if key in BENCHMARKS:
        return BENCHMARKS[key]
    near = difflib.get_close_matches(key, BENCHMARKS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise OptionError(f"no benchmark {name!r} among {', '.join(BENCHMARKS)}{hint}")


def names_benchmark(text: str) -> bool:
    """Whether a text is meant to name a benchmark: it begins with the name of one, or nearly, before ``:`` or ``@``."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return False
    key = match["name"].lower().replace("-", "_")
    says_more = match["splits"] is not None or match["way"] is not None
    return key in BENCHMARKS or (says_more and bool(difflib.get_close_matches(key, BENCHMARKS, n=1, cutoff=0.5)))


def data_root(given: str | Path | None) -> Path:
    """The folder of all datasets: as given, else as the environment says.

    Raises:
        DatasetError: Neither says, or there is no such folder.
    """
    text = given if given is not None else os.environ.get(DATA_ROOT)
    if not text:
        raise DatasetError(
            f"where are the datasets? Say their folder: --data-root DIR, data_root=…, or the environment variable "
            f"{DATA_ROOT}"
        )
    root = Path(text).expanduser()
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; --data-root (or {DATA_ROOT}) names the folder of all datasets")
    return root


def data_folder(known: Benchmark, division: Splits, root: Path) -> Path:
    """The benchmark's folder below that of all datasets: of the customary names, the one that holds the lists.

    Raises:
        DatasetError: There is none, or several hold the lists and the images.
    """
    there = [root / name for name in known.folders if (root / name).is_dir()]
    if not there:
        raise DatasetError(
            f"{root}: no folder of {known.title} in it; expected one of {', '.join(known.folders)}; "
            f"`rarvision datasets info {known.name}` says where to get it"
        )
    listed = [each for each in there if all(first_of(each, file).exists() for file in division.files)]
    full = [each for each in listed if all(first_of(each, images).is_dir() for images in division.images)]
    several = _different(full)
    if len(several) > 1:
        raise DatasetError(f"{known.title} is there twice: {', '.join(map(str, several))}; move or rename all but one")
    return (full or listed or there)[0]


def table_folder(known: Benchmark, root: Path) -> Path:
    """The folder of a benchmark's copy from the hub: ``NAME-hub``, or one of the customary names.

    Raises:
        DatasetError: There is none, or there are several.
    """
    names = (f"{known.name}-hub", *known.folders)
    there = _different([root / name for name in names if is_table(root / name)])
    if len(there) != 1:
        found = "; it is there twice: " + ", ".join(map(str, there)) if there else ""
        repository = known.table.repository if known.table else "…"
        raise DatasetError(
            f"{root}: expected one copy of {known.title} from the hub, as {root / names[0]}{found}; fetch it with "
            f"`hf download --repo-type dataset {repository} --local-dir {root / names[0]}`"
        )
    return there[0]


def _different(folders: Sequence[Path]) -> list[Path]:
    """Without links to one another, and without names that differ in case only where that is one folder."""
    return list({(each.stat().st_dev, each.stat().st_ino): each for each in reversed(folders)}.values())[::-1]


@final
class BenchmarkDataset(Dataset):
    """Splits of a public benchmark, as its files lie on disk.

    The lists are read at once, the images when they are asked for; whether these are there is what
    `rarvision.datasets.check_benchmark` finds out.

    Args:
        reference: Such as ``flowers102:test`` or ``dtd@official-2:train+val``.
        root: The folder of all datasets.

    Attributes:
        reference: What was opened.
        folder: Where it lies.
        class_names: The names of all classes, in the benchmark's order, with or without images here.
        notes: What was done to names that two classes have.

    Raises:
        OptionError: There is no such benchmark, or it does not say which split.
        DatasetError: Files are missing or not as described, or an image is in two of the splits.
        MissingExtraError: The lists are MATLAB files, and scipy is not installed.

    Source: the paper, section 4.1 and Table 6.
    """

    def __init__(self, reference: Reference | str, root: str | Path) -> None:
        self.reference = Reference.of(reference) if isinstance(reference, str) else reference
        known = self.reference.benchmark
        if not self.reference.splits:
            raise OptionError(_which_split(self.reference))
        division = self.reference.division
        self.folder = data_folder(known, division, Path(root))
        names: dict[str, str] = {}
        rows: list[tuple[str, str]] = []
        for split in self.reference.splits:
            listing = division.read(self.folder, split)
            rows += listing.rows
            names |= listing.names
        if not rows:
            raise DatasetError(f"{self.folder}: the lists of {self.reference} name no images; fetch them again")
        if len({path for path, _ in rows}) < len(rows):
            twice = Counter(path for path, _ in rows).most_common(1)[0][0]
            raise DatasetError(f"{self.folder}: {twice} is listed twice in {self.reference}")
        names, self.notes = distinct(names, known.renamed)
        self.class_names = tuple(names.values())
        metadata = {"dataset": str(self.reference)}
        start = f"{self.folder}{os.sep}"  # a million paths: not joined one by one
        self._items = tuple(
            Item(source=start + path.replace("/", os.sep), label=names[key], metadata=metadata) for path, key in rows
        )

    @property
    def name(self) -> str:
        """The full reference: ``flowers102@coop:test``."""
        return str(self.reference)

    @property
    def items(self) -> Sequence[Item]:
        """One item an image, in the lists' order; split after split."""
        return self._items

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """How CLIP is asked for a name of this benchmark."""
        return self.reference.benchmark.templates

    def _image(self, index: int) -> Path | bytes | Image:
        return Path(self._items[index].source)


def open_benchmark(reference: Reference | str, root: str | Path | None = None) -> BenchmarkDataset | HubDataset:
    """Open splits of a public benchmark.

    Args:
        reference: ``NAME:SPLIT``, ``NAME@SPLITS:SPLIT``, several splits with ``+`` between: ``flowers102:test``,
            ``sun397@official-2:train``, ``food101@hub:validation``. Without ``@`` the splits that the paper's tables
            use.
        root: The folder of all datasets; by default the environment variable ``RARVISION_DATA_ROOT``.

    Raises:
        OptionError: There is no such benchmark, or it does not say which split.
        DatasetError: The folder or files of it are missing or not as described.
        MissingExtraError: An optional dependency is needed to read it.

    Source: the paper, section 4.1 and Table 6; `rarvision datasets info NAME` tells what is read from where.
    """
    asked = Reference.of(reference) if isinstance(reference, str) else reference
    known = asked.benchmark
    if known.task != "classification":
        raise OptionError(f"{known.name} is a benchmark of boxes, not of whole images with labels")
    folder = data_root(root)
    if asked.table is None:
        return BenchmarkDataset(asked, folder)
    if len(asked.splits) != 1:
        raise OptionError(_which_split(asked))
    place = table_folder(known, folder)
    table = load_table(place, asked.splits[0])
    rename = table_names(asked, table)
    return HubDataset(table, name=str(asked), label_column=asked.table.label_column, rename=rename.__getitem__)


def class_names(asked: Reference, root: str | Path | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of all classes of a benchmark, in its own order, and what was done to names that two classes have.

    Args:
        asked: Its splits may be left out.
        root: As of `open_benchmark`.

    Raises:
        OptionError: It is a benchmark of boxes.
        DatasetError: As of `open_benchmark`; the names stand in its files.
    """
    known, folder = asked.benchmark, data_root(root)
    if known.task != "classification":
        raise OptionError(f"{known.name} is a benchmark of boxes; there is no reader of its names here")
    splits = asked.splits or tuple(known.counts()[asked.way])
    if asked.table is not None:
        return tuple(table_names(asked, load_table(table_folder(known, folder), splits[0])).values()), ()
    names: dict[str, str] = {}
    place = data_folder(known, asked.division, folder)
    for split in splits:
        names |= asked.division.read(place, split).names
    told_apart, notes = distinct(names, known.renamed)
    return tuple(told_apart.values()), notes


def table_names(asked: Reference, table: object) -> Mapping[str, str]:
    """The categories' names by the names of classes in a copy from the hub.

    Raises:
        DatasetError: It has another number of classes, or numbers instead of names.
    """
    known, copy = asked.benchmark, asked.table
    assert copy is not None  # noqa: S101 - for the type checker
    features = getattr(table, "features", {})
    column = copy.label_column or ("label" if "label" in features else "labels")
    own = getattr(features.get(column), "names", None)
    if own is None:
        raise DatasetError(f"{asked}: expected a column {column!r} of the type ClassLabel, got {', '.join(features)}")
    if len(own) != known.classes:
        raise DatasetError(
            f"{asked}: expected {known.classes} classes, the copy has {len(own)}; is it another dataset?"
        )
    if all(name.isdecimal() for name in own):
        raise DatasetError(f"{asked}: the copy has numbers instead of the classes' names; use another copy")
    names, _ = distinct({str(number): copy.rename(name) for number, name in enumerate(own)}, {})
    return dict(zip(own, names.values(), strict=True))


def _which_split(asked: Reference) -> str:
    splits = ", ".join(asked.benchmark.counts().get(asked.way, {}))
    hint = " one of" if asked.table is not None else ""
    return f"{asked}: say{hint} which split, as {asked}:SPLIT; it has {splits}"
