"""Tables of images as the `datasets` library keeps them: saved to disk, or the Parquet files of a hub copy."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from PIL.Image import Image

from rarvision.datasets.base import Dataset, Item
from rarvision.datasets.files import LABEL_COLUMNS
from rarvision.errors import DatasetError, MissingExtraError

__all__ = ["HubDataset", "is_table", "load_table", "table_splits"]

_SCALARS = ("string", "large_string", "bool", "int", "uint", "float")
_HIDDEN = -1  # what the library writes for a label that is kept secret


@final
class HubDataset(Dataset):
    """One split of a dataset of the `datasets` library: a column of images, and one of labels.

    The table stays where it is (on disk, memory-mapped): listing reads the labels and never an image. Numbers of a
    ``ClassLabel`` become its names; a hidden label (-1) is none. Other columns of single values become metadata.

    Args:
        table: A ``datasets.Dataset``.
        image_column: Its column of images; by default the only one of the type ``Image``.
        label_column: Its column of labels; by default the only ``ClassLabel``, else the first of ``label``,
            ``category``, ``class``, …, if any.
        name: For reports, and the start of every source: row 7 is ``name#7``. By default as the table calls itself.
        rename: Turns the name of a class into the category's name.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DatasetError: It is no ``datasets.Dataset``, has no rows, no such column, or the choice is not clear; or two
            classes get one name.
    """

    def __init__(
        self,
        table: Any,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        name: str | None = None,
        rename: Callable[[str], str] | None = None,
    ) -> None:
        library = _library()
        if not isinstance(table, library.Dataset):
            splits = f"; choose one of its splits: {', '.join(table)}" if isinstance(table, library.DatasetDict) else ""
            raise DatasetError(f"expected a datasets.Dataset, got {type(table).__name__}{splits}")
        self._name = name or ":".join(filter(None, (table.info.dataset_name or "table", str(table.split or ""))))
        if not len(table):
            raise DatasetError(f"{self._name}: no rows in it; expected at least one image")
        features = table.features
        self._image_column = _image_column(self._name, features, image_column, library)
        column = _label_column(self._name, features, label_column, library)
        self._table = table.cast_column(self._image_column, library.Image(decode=False)).with_format(None)
        labels = _labels(self._name, self._table, column, rename, library)
        kept = [each for each in features if each not in (self._image_column, column) and _is_scalar(features[each])]
        more = self._table.select_columns(kept).to_dict() if kept else {}
        self._items = tuple(
            Item(source=f"{self._name}#{row}", label=label, metadata=_metadata(more, row))
            for row, label in enumerate(labels)
        )

    @property
    def name(self) -> str:
        """As given, or as the table calls itself."""
        return self._name

    @property
    def items(self) -> Sequence[Item]:
        """One item a row, in the table's order."""
        return self._items

    def _image(self, index: int) -> Path | bytes | Image:
        stored = self._table[index][self._image_column]
        if isinstance(stored, Mapping) and stored.get("bytes") is not None:
            return bytes(stored["bytes"])
        if isinstance(stored, Mapping) and stored.get("path"):
            return Path(stored["path"])
        return b""  # a row without an image: whoever opens it is told, as of a file that is empty


def is_table(path: Path) -> bool:
    """Whether a path looks like what the `datasets` library saves, or like Parquet files of a hub copy."""
    if path.is_dir():
        names = ("state.json", "dataset_dict.json")
        return any((path / name).is_file() for name in names) or bool(_shards(path))
    return path.suffix.lower() == ".parquet"


def table_splits(path: Path) -> list[str]:
    """The splits of a folder of tables, by its ``dataset_dict.json`` or by its files' names; [] for a single table."""
    index = path / "dataset_dict.json"
    if index.is_file():
        try:
            return [str(split) for split in json.loads(index.read_text(encoding="utf-8"))["splits"]]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DatasetError(f"{index}: not an index of the datasets library: {error}; copy it again") from error
    return list(_shards(path)) if path.is_dir() else []


def load_table(path: Path, split: str | None = None) -> Any:
    """Open a table: what ``save_to_disk`` wrote, a Parquet file, or a folder of Parquet files by split.

    Nothing is fetched. Parquet files are converted once, into the cache of the `datasets` library.

    Args:
        path: A file or a folder.
        split: Which of its splits; may be left out where there is only one.

    Returns:
        A ``datasets.Dataset``.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DatasetError: There is no such split, the split is not said, or the files are damaged.
    """
    library = _library()
    splits = table_splits(path)
    if split is None and len(splits) == 1:
        split = splits[0]
    if splits and split not in splits:
        asked = "which of its splits is not said" if split is None else f"no split {split!r}"
        raise DatasetError(f"{path}: {asked}; it has {', '.join(splits)}")
    try:
        if not path.is_dir():
            return library.Dataset.from_parquet(str(path))
        if (path / "dataset_dict.json").is_file():
            return library.load_from_disk(str(path / str(split)))
        if (path / "state.json").is_file():
            return library.load_from_disk(str(path))
        return library.Dataset.from_parquet([str(shard) for shard in _shards(path)[str(split)]])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, library.exceptions.DatasetsError) as error:
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{path}: not a table that datasets can read: {reason}; copy it again") from error


def _library() -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise MissingExtraError("tables of the datasets library need it: pip install 'rarvision[hub]'")
    import datasets

    return datasets


def _shards(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of a hub copy by split: ``data/train-00000-of-00002.parquet`` or ``train.parquet``."""
    found: dict[str, list[Path]] = {}
    for place in (folder / "data", folder):
        for path in sorted(place.glob("*.parquet")):
            found.setdefault(path.stem.split("-")[0], []).append(path)
        if found:
            break
    for split, paths in found.items():
        _, _, count = paths[0].stem.partition("-of-")
        if count.isdecimal() and int(count) != len(paths):
            raise DatasetError(
                f"{folder}: the split {split!r} has {len(paths)} of its {int(count)} Parquet files; fetch the others, "
                f"{paths[0].parent}/{split}-NNNNN-of-{count}.parquet"
            )
    return found


def _image_column(name: str, features: Mapping[str, Any], given: str | None, library: Any) -> str:
    images = [column for column, kind in features.items() if isinstance(kind, library.Image)]
    if given is not None:
        if given not in images:
            raise DatasetError(f"{name}: no column of images {given!r}; it has {_listed(images)}")
        return given
    if len(images) != 1:
        raise DatasetError(
            f"{name}: expected one column of images, got {_listed(images)} among {_listed(features)}; "
            "choose it with image_column"
        )
    return images[0]


def _label_column(name: str, features: Mapping[str, Any], given: str | None, library: Any) -> str | None:
    if given is not None:
        if given not in features:
            raise DatasetError(f"{name}: no column {given!r}; it has {_listed(features)}")
        return given
    classes = [column for column, kind in features.items() if isinstance(kind, library.ClassLabel)]
    usual = [column for column in LABEL_COLUMNS if column in (classes or features)]
    if len(classes) > 1 and not usual:
        raise DatasetError(f"{name}: several columns of labels, {_listed(classes)}; choose one with label_column")
    return usual[0] if usual else classes[0] if classes else None


def _labels(
    name: str, table: Any, column: str | None, rename: Callable[[str], str] | None, library: Any
) -> list[str | None]:
    if column is None:
        return [None] * len(table)
    kind, values = table.features[column], list(table[column])
    if isinstance(kind, library.ClassLabel):
        values = [None if value in (None, _HIDDEN) else kind.names[value] for value in values]
        known = list(kind.names)
    else:
        odd = next((value for value in values if value is not None and not isinstance(value, str)), None)
        if odd is not None:
            raise DatasetError(
                f"{name}: the labels in {column!r} have no names, such as {odd!r}; expected a ClassLabel or texts: "
                f"cast_column({column!r}, ClassLabel(names=[…])), or choose another with label_column"
            )
        known = list(dict.fromkeys(value for value in values if value is not None))
    names: dict[str, str] = {each: rename(each) if rename else each for each in known}
    taken: dict[str, str] = {}
    for each, renamed in names.items():
        other = taken.setdefault(renamed.casefold(), each)
        if other != each:
            raise DatasetError(f"{name}: the classes {other!r} and {each!r} are both named {renamed!r}; rename one")
    return [None if value is None else names[value] for value in values]


def _is_scalar(kind: Any) -> bool:
    return str(getattr(kind, "dtype", "")).startswith(_SCALARS) and hasattr(kind, "pa_type")


def _metadata(columns: Mapping[str, Sequence[Any]], row: int) -> dict[str, Any]:
    """JSON values only: what is missing, infinite or no number is left out."""
    values = {column: column_values[row] for column, column_values in columns.items()}
    return {
        column: value
        for column, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
