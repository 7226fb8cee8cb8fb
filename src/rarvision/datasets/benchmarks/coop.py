"""The splits of CoOp: ``split_zhou_*.json``, or the same splits as CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rarvision.datasets.benchmarks.names import spaces
from rarvision.datasets.benchmarks.spec import Listing, Splits, first_of
from rarvision.datasets.files import csv_rows, missing, read_json
from rarvision.errors import DatasetError

__all__ = ["COOP_PAGE", "coop"]

COOP_PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
"""Says where CoOp's splits are, and what else they have prepared."""

_SPLITS = ("train", "val", "test")


def coop(
    file: str,
    *,
    train: int,
    val: int,
    test: int,
    images: tuple[str, ...],
    below: str = "",
    clean: Callable[[str], str] = spaces,
    from_csv: Callable[[str], str] = str,
    classes: int | None = None,
) -> Splits:
    """The splits of CoOp for one dataset.

    ``file`` holds ``{"train": [[path, number, name], …], "val": …, "test": …}``. Where it is not there,
    ``split_coop.csv`` (``split,filename``) is read, with ``metadata.csv`` (``idx,folder_name,class_name``) and, where
    folders do not tell the class, ``labels.csv`` (``filename,class_idx``).

    Args:
        file: The JSON file's name.
        train: Images in the split ``train``.
        val: Images in the split ``val``.
        test: Images in the split ``test``.
        images: The folders of images, below the dataset's.
        below: Where the paths in the JSON file start, below the dataset's folder; ``a|b``: the first that is there.
        clean: Turns a class's name into the category's.
        from_csv: Turns a path in the CSV file into one as the JSON file has it.
        classes: Where it differs from the benchmark's.

    Source: CoOp's DATASETS.md describes the files.
    """

    def read(folder: Path, split: str) -> Listing:
        if (folder / file).exists():
            rows, names = _read_json(folder / file, split)
        elif (folder / "split_coop.csv").exists():
            rows, names = _read_csv(folder, split)
            rows = [(from_csv(path), key) for path, key in rows]
        else:
            raise DatasetError(
                f"{missing(folder / file, 'file')}; the splits of CoOp are in it (or in split_coop.csv and "
                f"metadata.csv): {COOP_PAGE}"
            )
        base = f"{first_of(folder, below).relative_to(folder).as_posix()}/" if below else ""
        return Listing(
            rows=[(base + path, key) for path, key in rows],
            names={key: clean(name) for key, name in names.items()},
        )

    return Splits(
        counts={"train": train, "val": val, "test": test},
        files=(f"{file}|split_coop.csv",),
        images=images,
        read=read,
        classes=classes,
        about="the fixed splits of CoOp, on which few-shot methods are compared",
    )


_Rows = tuple[list[tuple[str, str]], dict[str, str]]


def _read_json(path: Path, split: str) -> _Rows:
    content = read_json(path)
    if not isinstance(content, dict) or not set(_SPLITS) <= set(content):
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise DatasetError(f"{path}: expected an object with the keys train, val and test, got {got}")
    names: dict[int, str] = {}
    for each in _SPLITS:
        for number, row in enumerate(content[each]):
            label, name = _check_row(path, each, number, row)
            other = names.setdefault(label, name)
            if other != name:
                raise DatasetError(f"{path}, {each} {number}: class {label} is named {name!r}, and {other!r} before")
    return [(row[0], str(row[1])) for row in content[split]], {str(key): names[key] for key in sorted(names)}


def _check_row(path: Path, split: str, number: int, row: Any) -> tuple[int, str]:
    kinds = [type(value) for value in row] if isinstance(row, list) else None
    if kinds != [str, int, str]:
        raise DatasetError(f"{path}, {split} {number}: expected [path, number, name], got {row!r:.80}")
    return row[1], row[2]


def _read_csv(folder: Path, split: str) -> _Rows:
    names: dict[str, str] = {}
    folders: dict[str, str] = {}
    for number, row in csv_rows(folder / "metadata.csv"):
        where = folder / "metadata.csv"
        key = _field(row, "idx", where, number)
        if key in names:
            raise DatasetError(f"{where}, line {number}: the class {key} is there twice")
        names[key] = _field(row, "class_name", where, number)
        if row.get("folder_name"):
            folders[row["folder_name"]] = key
    labels: dict[str, str] = {}
    if (folder / "labels.csv").exists():
        where = folder / "labels.csv"
        for number, row in csv_rows(where):
            labels[_field(row, "filename", where, number)] = _field(row, "class_idx", where, number)
    rows: list[tuple[str, str]] = []
    where = folder / "split_coop.csv"
    for number, row in csv_rows(where):
        path = _field(row, "filename", where, number)
        if _field(row, "split", where, number) == split:
            known = labels.get(path) or folders.get(path.rpartition("/")[0])
            if known is None:
                raise DatasetError(
                    f"{where}, line {number}: neither labels.csv nor metadata.csv has a class for {path!r}"
                )
            rows.append((path, known))
    return rows, names


def _field(row: Mapping[str, Any], column: str, where: Path, number: int) -> str:
    if not row.get(column):
        raise DatasetError(f"{where}, line {number}: no value in the column {column!r}; it has {', '.join(row)}")
    return str(row[column])
