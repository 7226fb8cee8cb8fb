"""Reading the files that datasets consist of, with errors that name the file and the line."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rarvision.errors import DatasetError

__all__ = ["IMAGE_COLUMNS", "LABEL_COLUMNS", "Row", "csv_rows", "jsonl_rows", "missing", "read_json", "read_text"]

IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "filepath", "image_path", "source")
"""What a column of images is called, the likeliest first."""

LABEL_COLUMNS = ("label", "category", "class", "class_name", "classname", "name")
"""What a column of labels is called, the likeliest first."""


def missing(path: Path, kind: str) -> str:
    """What to say of a file or folder that is not there; names its neighbour of a similar name."""
    message = f"{path}: no such {kind}"
    try:
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    except OSError:
        return message
    return f"{message}; did you mean {path.parent / near[0]}?" if near else message


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        DatasetError: It is not there, not UTF-8 or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DatasetError(missing(path, "file")) from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DatasetError: As `read_text`, or it is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON: {error}; is it complete?") from error


Row = tuple[int, Mapping[str, Any]]
"""The number of a line, from 1, and its fields."""


def csv_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header; comma, semicolon or tab, whichever the header has most of.

    Raises:
        DatasetError: As `read_text`, or it is no CSV, or a row has another number of fields than the header.
    """
    text = read_text(path)
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)  # the first of equals: a comma
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DatasetError(
                    f"{path}, line {reader.line_num}: the row has another number of fields than the header "
                    f"({', '.join(reader.fieldnames or ())}); quote fields that hold {delimiter!r}"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def jsonl_rows(path: Path) -> Iterator[Row]:
    """The objects of a file with one JSON object a line; blank lines are left out.

    Raises:
        DatasetError: As `read_text`, or a line holds something else.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DatasetError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        yield number, row
