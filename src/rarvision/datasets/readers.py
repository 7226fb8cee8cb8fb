"""Datasets on disk: a folder per category, CSV, JSON lines; and plain lists of names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final, overload

from PIL.Image import Image

from rarvision.datasets.base import Dataset, Item
from rarvision.datasets.files import IMAGE_COLUMNS, LABEL_COLUMNS, Row, csv_rows, jsonl_rows, missing, read_text
from rarvision.datasets.hub import is_table
from rarvision.errors import DatasetError, InputError
from rarvision.images import iter_image_paths
from rarvision.types import Box, box_suffix, check_box

__all__ = ["CSVDataset", "ImageFiles", "ImageFolder", "JSONLDataset", "NameList", "open_dataset"]

_BOX_COLUMN = "box_xyxy"


@final
class ImageFolder(Dataset):
    """A folder per category: ``root/category/…/image.jpg``; the first level names the category.

    Args:
        root: The folder.
        rename: Turns a folder's name into the category's name, for example ``lambda name: name.replace("_", " ")``.

    Raises:
        DatasetError: There is no such folder, it holds no images, images lie outside a category's folder, or ``rename``
            gives two folders one name.
    """

    def __init__(self, root: str | Path, *, rename: Callable[[str], str] | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DatasetError(missing(self.root, "folder"))
        self._paths: list[Path] = []
        items: list[Item] = []
        folders: dict[str, str] = {}
        for path in iter_image_paths([self.root]):
            if path == self.root:
                raise DatasetError(f"{self.root}: no images in it; expected {self.root}/CATEGORY/IMAGE.jpg")
            parts = path.relative_to(self.root).parts
            if len(parts) == 1:
                raise DatasetError(
                    f"{path}: lies in no category's folder; expected {self.root}/CATEGORY/{path.name}, "
                    "or a CSV file with the columns image,label"
                )
            label = rename(parts[0]) if rename else parts[0]
            if not label.strip():
                raise DatasetError(f"{path.parent}: the category's name is blank")
            other = folders.setdefault(label, parts[0])
            if other != parts[0]:
                raise DatasetError(f"{self.root}: the folders {other!r} and {parts[0]!r} are both named {label!r}")
            self._paths.append(path)
            items.append(Item(source=str(path), label=label))
        self._items = tuple(items)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name

    @property
    def items(self) -> Sequence[Item]:
        """One item an image, sorted by category folder, then by path."""
        return self._items

    def _image(self, index: int) -> Path | Image:
        return self._paths[index]


@final
class ImageFiles(Dataset):
    """Images without labels: those of a folder and its subfolders, whatever these are called, or some files.

    Args:
        given: Files, folders and patterns; see `rarvision.images.iter_image_paths`.

    Raises:
        DatasetError: There are no images.
    """

    def __init__(self, given: str | Path | Sequence[str | Path]) -> None:
        several = [given] if isinstance(given, (str, Path)) else list(given)
        self._paths = [path for path in iter_image_paths(several) if not path.is_dir()]
        self._name = Path(several[0]).resolve().name if len(several) == 1 else f"{len(several)} places"
        missed = [each for each in several if not Path(each).exists() and Path(each) in self._paths]
        if missed or not self._paths:
            what = missed[0] if missed else ", ".join(map(str, several)) or "nothing"
            raise DatasetError(f"{what}: no images there; expected image files, or a folder of them")
        self._items = tuple(Item(source=str(path), label=None) for path in self._paths)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._name

    @property
    def items(self) -> Sequence[Item]:
        """One item an image, in the order in which they were found."""
        return self._items

    def _image(self, index: int) -> Path | bytes | Image:
        return self._paths[index]


@final
class CSVDataset(Dataset):
    r"""A CSV file with a header: a column of image paths, one of labels (optional), others become metadata.

    A column ``box_xyxy`` (four numbers, pixels: left, upper, right, lower) makes the sample that part of the image.

    Comma, semicolon or tab; UTF-8. Relative paths start at ``root``, by default the file's folder. Quoted fields may
    hold commas, quotes and line breaks.

    Args:
        path: The file.
        image_column: Its column of paths; by default the first of ``image``, ``path``, ``file``, ``filename``, ….
        label_column: Its column of labels; by default the first of ``label``, ``category``, ``class``, …, if any.
        root: Where relative paths start.

    Raises:
        DatasetError: The file is missing, not UTF-8, has no rows or no such column; the message names the line.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        root: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        self._paths, self._items = _collect(
            self.path,
            csv_rows(self.path),
            image_column=image_column,
            label_column=label_column,
            root=self.path.parent if root is None else Path(root),
        )

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def items(self) -> Sequence[Item]:
        """One item a row, in file order."""
        return self._items

    def _image(self, index: int) -> Path | Image:
        return self._paths[index]


@final
class JSONLDataset(Dataset):
    """A file with one JSON object a line: an image path, a label (optional); other keys become metadata.

    A key ``box_xyxy`` with a list of four numbers makes the sample that part of the image, as in `CSVDataset`.

    The keys and ``root`` are as for `CSVDataset`; a key ``metadata`` that holds an object is merged.

    Raises:
        DatasetError: The file is missing, not UTF-8, a line is not an object or lacks the image; names the line.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_key: str | None = None,
        label_key: str | None = None,
        root: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        self._paths, self._items = _collect(
            self.path,
            jsonl_rows(self.path),
            image_column=image_key,
            label_column=label_key,
            root=self.path.parent if root is None else Path(root),
        )

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def items(self) -> Sequence[Item]:
        """One item a line, in file order."""
        return self._items

    def _image(self, index: int) -> Path | Image:
        return self._paths[index]


@final
class NameList(Sequence[str]):
    """Category names, one a line: a vocabulary without images.

    Blank lines are left out, space around names is cut off, a repeated name counts once. A ``#`` is part of a name.

    Args:
        source: A text file (UTF-8), or the names themselves.

    Raises:
        DatasetError: The file is missing, not UTF-8, or holds no name.
    """

    def __init__(self, source: str | Path | Iterable[str]) -> None:
        if isinstance(source, (str, Path)):
            self.name = Path(source).stem
            lines: Iterable[str] = read_text(Path(source)).split("\n")
        else:
            self.name = "names"
            lines = source
        self._names = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not self._names:
            raise DatasetError(f"{source}: no names in it; expected one category a line")

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self._names[index]


def open_dataset(path: str | Path, *, data_root: str | Path | None = None) -> Dataset | NameList:
    """Open what a path looks like, or a public benchmark by its name.

    A folder tree, ``.csv``/``.tsv``, ``.jsonl``/``.ndjson``, ``.txt`` of names; a table that the `datasets` library
    saved, or Parquet files of it (a folder with several splits: its path with ``:SPLIT``). What is there under a path
    comes before a benchmark of that name.

    Args:
        path: The path, or a name such as ``flowers102:test``; see `rarvision.datasets.open_benchmark`.
        data_root: The folder of all benchmarks; by default the environment variable ``RARVISION_DATA_ROOT``.

    Raises:
        DatasetError: It is none of these, or not as documented.
        OptionError: A benchmark without such a split.
        MissingExtraError: An optional dependency is needed to read it.
    """
    text, path = str(path), Path(path)
    if path.is_dir():
        return _open_table(path) if is_table(path) else ImageFolder(path)
    if not path.exists():
        place, _, split = text.rpartition(":")
        if place and Path(place).is_dir() and is_table(Path(place)):
            return _open_table(Path(place), split)
        from rarvision.datasets.benchmarks import names_benchmark, open_benchmark

        if not names_benchmark(text):
            raise DatasetError(missing(path, "file or folder"))
        return open_benchmark(text, data_root)
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        json = path.suffix.lower() == ".json"
        hint = "; the categories of an annotation file go into a memory with --vocabulary" if json else ""
        raise DatasetError(
            f"{path}: expected a folder with a subfolder a category, a .csv/.tsv or .jsonl file of images and labels, "
            f"a .parquet file or a folder that datasets saved, or a .txt file of names{hint}"
        )
    return opener(path)


def _open_table(path: Path, split: str | None = None) -> Dataset:
    from rarvision.datasets.hub import HubDataset, load_table

    return HubDataset(load_table(path, split), name=str(path) if split is None else f"{path}:{split}")


_OPENERS: Mapping[str, Callable[[Path], Dataset | NameList]] = {
    ".csv": CSVDataset,
    ".tsv": CSVDataset,
    ".jsonl": JSONLDataset,
    ".ndjson": JSONLDataset,
    ".txt": NameList,
    ".parquet": _open_table,
}


def _column(path: Path, keys: Iterable[str], given: str | None, usual: Sequence[str], *, what: str) -> str | None:
    keys = list(keys)
    if given is not None:
        if given not in keys:
            raise DatasetError(f"{path}: no {what} column {given!r}; it has {', '.join(map(repr, keys))}")
        return given
    by_lower = {key.strip().lower(): key for key in reversed(keys)}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _collect(
    path: Path, rows: Iterable[Row], *, image_column: str | None, label_column: str | None, root: Path
) -> tuple[list[Path], tuple[Item, ...]]:
    paths: list[Path] = []
    items: list[Item] = []
    for number, row in rows:
        where = f"{path}, line {number}"
        image = _column(path, row, image_column, IMAGE_COLUMNS, what="image")
        if image is None:
            raise DatasetError(f"{where}: no image path; name it one of {', '.join(IMAGE_COLUMNS)}; got {list(row)}")
        label = label_column if label_column in row else _column(path, row, None, LABEL_COLUMNS, what="label")
        if label_column is not None and label_column not in row:
            raise DatasetError(f"{where}: no label column {label_column!r}; it has {', '.join(map(repr, row))}")
        paths.append(root / _text(row[image], where=where, what=image))
        metadata = {key: value for key, value in row.items() if key not in (image, label)}
        nested = metadata.get("metadata")
        if isinstance(nested, dict):
            metadata = {key: value for key, value in metadata.items() if key != "metadata"} | nested
        box = _box(metadata.pop(_BOX_COLUMN, None), where=where)
        name = None if label is None or row[label] in (None, "") else _text(row[label], where=where, what=label)
        try:
            source = f"{paths[-1]}{box_suffix(box)}"
            items.append(Item(source=source, label=name, metadata=metadata, box_xyxy=box))
        except InputError as error:
            raise DatasetError(f"{where}: {error}") from error
    if not items:
        raise DatasetError(f"{path}: no rows in it; expected at least one image")
    return paths, tuple(items)


def _box(value: object, *, where: str) -> Box | None:
    """Four numbers: a list, or a text with spaces, commas or semicolons between them."""
    if value is None or value == "":
        return None
    try:
        parts: Any = re.split(r"[\s,;]+", value.strip(" []()")) if isinstance(value, str) else value
        left, upper, right, lower = (float(part) for part in parts)
        check_box((left, upper, right, lower), where)
    except (TypeError, ValueError, InputError) as error:
        raise DatasetError(
            f"{where}: {_BOX_COLUMN!r} must be four numbers, left, upper, right and lower in pixels, got {value!r}"
        ) from error
    return left, upper, right, lower


def _text(value: object, *, where: str, what: str) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise DatasetError(f"{where}: {what!r} must be a non-empty text, got {value!r}")
    return value
