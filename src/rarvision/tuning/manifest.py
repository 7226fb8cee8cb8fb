"""Ranking examples on disk: JSON lines, the first one a header with the settings that made the others.

::

    {"rarvision_tuning": 1, "k": 5, "neighbours": 20, "seed": 0, …}
    {"id": "17-3", "image": "train/A320/4.jpg", "label": "A320", "candidates": ["A319", "A320", "A321"],
     "target": ["A320", "A321", "A319"], "retrieved": ["A321", "A320", "A319"]}

Each object stands on one line. A relative ``image`` starts at the manifest's folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rarvision.errors import DatasetError, InputError

__all__ = [
    "MANIFEST_VERSION",
    "VERSION_KEY",
    "TuningExample",
    "example_line",
    "header_line",
    "is_manifest",
    "iter_manifest",
    "read_manifest",
    "read_settings",
]

VERSION_KEY = "rarvision_tuning"
"""The header's key for the version of the format, which tells manifests from other JSON lines."""
MANIFEST_VERSION = 1

_TEXTS = ("id", "image", "label")
_LISTS = ("candidates", "target", "retrieved")


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningExample:
    """One question to learn from: an image, the names that are shown with it, and their right order.

    Attributes:
        id: Unique in its manifest: the image's number and its window's, ``17-3``.
        image: The image's file.
        label: The true name.
        candidates: The names as they are shown.
        target: The same names in the order that is to be answered: the true one first (with its repeats, where there
            are any), then the others as they were retrieved.
        retrieved: The same names as they were retrieved, most similar first.

    Raises:
        InputError: A text is blank, the label is no candidate or does not come first in ``target``, or the three lists
            do not hold the same names equally often.
    """

    id: str
    image: Path
    label: str
    candidates: tuple[str, ...]
    target: tuple[str, ...]
    retrieved: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.id.strip():
            raise InputError("a tuning example's id must not be blank")
        if not all(name.strip() for name in (self.label, *self.candidates)):
            raise InputError(f"example {self.id!r}: names must not be blank")
        if self.label not in self.candidates:
            raise InputError(
                f"example {self.id!r}: the label {self.label!r} is not among the candidates {list(self.candidates)}"
            )
        for what, names in (("target", self.target), ("retrieved", self.retrieved)):
            if sorted(names) != sorted(self.candidates):
                raise InputError(
                    f"example {self.id!r}: {what} must hold the candidates {list(self.candidates)} in another order, "
                    f"got {list(names)}"
                )
        if self.target[0] != self.label:
            raise InputError(
                f"example {self.id!r}: target must begin with the label {self.label!r}, got {self.target[0]!r}"
            )


def header_line(settings: Mapping[str, Any]) -> str:
    """A manifest's first line, without its line break."""
    return _json({VERSION_KEY: MANIFEST_VERSION, **settings})


def example_line(example: TuningExample, *, folder: Path) -> str:
    """An example's line, without its line break.

    Args:
        example: Its image is written relative to the manifest's folder, so that both may move together.
        folder: The manifest's.
    """
    return _json(
        {
            "id": example.id,
            "image": _relative(example.image, folder),
            "label": example.label,
            "candidates": list(example.candidates),
            "target": list(example.target),
            "retrieved": list(example.retrieved),
        }
    )


def is_manifest(path: str | Path) -> bool:
    """Whether a file begins as a manifest does; False where it cannot be read, too."""
    try:
        read_settings(path)
    except DatasetError:
        return False
    return True


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a manifest's header.

    Raises:
        DatasetError: There is no such file, or it is no manifest.
    """
    path = Path(path)
    for number, line in _lines(path):
        return _header(path, number, line)
    raise DatasetError(f"{path}: the manifest is empty; write it again (rarvision tune data)")


def read_manifest(path: str | Path, *, check_images: bool = True) -> list[TuningExample]:
    """All examples of a manifest; see `iter_manifest`."""
    return list(iter_manifest(path, check_images=check_images))


def iter_manifest(path: str | Path, *, check_images: bool = True) -> Iterator[TuningExample]:
    """The examples of a manifest, in its order, one line at a time.

    Args:
        path: The file.
        check_images: Whether each image's file must exist; the images are not opened.

    Raises:
        DatasetError: There is no such file; it is no manifest, or a newer rarvision's; a line is not JSON, cut short,
            lacks a field, repeats an id, names a file that is not there, has candidates without the label or, unless
            the header says ``paper_compat``, repeated ones; or there is no example. The message names the line.
    """
    path = Path(path)
    settings: dict[str, Any] | None = None
    seen: set[str] = set()
    found: set[Path] = set()
    for number, line in _lines(path):
        if settings is None:
            settings = _header(path, number, line)
            continue
        where = f"{path}, line {number}"
        example = _example(_object(where, line), where=where, folder=path.parent)
        if not settings.get("paper_compat") and len(set(example.candidates)) < len(example.candidates):
            raise DatasetError(
                f"{where}: the candidates {list(example.candidates)} hold a name twice; expected distinct names"
            )
        if example.id in seen:
            raise DatasetError(f"{where}: the id {example.id!r} occurs twice; ids must be unique")
        seen.add(example.id)
        if check_images and example.image not in found:
            if not os.path.isfile(example.image):  # noqa: PTH113 - Path.is_file raises where a folder is closed to us
                raise DatasetError(
                    f"{where}: there is no image {example.image}; relative paths start at the manifest's folder: move "
                    "the two together, or write the manifest again (rarvision tune data)"
                )
            found.add(example.image)
        yield example
    if not seen:
        raise DatasetError(f"{path}: no examples in it; write it again (rarvision tune data)")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; expected a manifest that `rarvision tune data` wrote") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error


def _object(where: str, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            raise DatasetError(
                f"{where}: the last line is cut short: whatever wrote or copied the file was interrupted; copy it "
                "again, or write it again (rarvision tune data)"
            ) from error
        raise DatasetError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _header(path: Path, number: int, line: bytes) -> dict[str, Any]:
    settings = _object(f"{path}, line {number}", line)
    version = settings.pop(VERSION_KEY, None)
    if isinstance(version, bool) or not isinstance(version, int):
        raise DatasetError(
            f"{path}, line {number}: not a tuning manifest: expected a header with '{VERSION_KEY}': "
            f"{MANIFEST_VERSION}, got the keys {', '.join(map(repr, settings)) or 'none'}"
        )
    if version > MANIFEST_VERSION:
        raise DatasetError(
            f"{path}: written by a newer rarvision (version {version} of the manifest, this one reads "
            f"{MANIFEST_VERSION}); upgrade rarvision"
        )
    return settings


def _example(values: Mapping[str, Any], *, where: str, folder: Path) -> TuningExample:
    missing = [key for key in (*_TEXTS, *_LISTS) if key not in values]
    if missing:
        raise DatasetError(f"{where}: lacks {', '.join(map(repr, missing))}; it has {', '.join(map(repr, values))}")
    for key in _TEXTS:
        if not isinstance(values[key], str) or not values[key].strip() or "\0" in values[key]:
            raise DatasetError(f"{where}: {key!r} must be a non-empty text, got {values[key]!r}")
    for key in _LISTS:
        if not isinstance(values[key], list) or not all(isinstance(name, str) for name in values[key]):
            raise DatasetError(f"{where}: {key!r} must be a list of names, got {values[key]!r}")
    try:
        return TuningExample(
            id=values["id"],
            image=folder / values["image"],
            label=values["label"],
            candidates=tuple(values["candidates"]),
            target=tuple(values["target"]),
            retrieved=tuple(values["retrieved"]),
        )
    except InputError as error:
        raise DatasetError(f"{where}: {error}") from error


def _relative(image: Path, folder: Path) -> str:
    """Links in the way to the two are followed, since ``..`` is; the image itself may be one."""
    absolute = Path(os.path.realpath(image.parent), image.name)
    try:
        return Path(os.path.relpath(absolute, os.path.realpath(folder))).as_posix()
    except ValueError:  # another drive
        return absolute.as_posix()


def _json(record: Mapping[str, Any]) -> str:
    """Readable where it can be, ASCII where a file name is not Unicode."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(record, allow_nan=False)
    return text
