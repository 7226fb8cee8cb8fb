"""Conditions of queries, and Python values as what SQLite keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rarvision.errors import InputError
from rarvision.types import Modality

__all__ = ["conditions", "id_parts", "storable", "to_json"]

_IDS_AT_ONCE = 500


def conditions(*, category: str | None, modality: Modality | None, source: str | None) -> tuple[str, list[str]]:
    """An SQL condition and its parameters."""
    given = {"name": category, "modality": modality, "source": None if source is None else storable(source)}
    used = {column: value for column, value in given.items() if value is not None}
    return " AND ".join(["1", *(f"{column} = ?" for column in used)]), list(used.values())


def id_parts(ids: Sequence[int] | None) -> Iterator[tuple[str, list[int]]]:
    """Conditions that together ask for all ids: SQLite limits the number of parameters."""
    if ids is None:
        yield "", []
        return
    unique = sorted({int(each) for each in ids})
    for start in range(0, len(unique), _IDS_AT_ONCE):
        part = unique[start : start + _IDS_AT_ONCE]
        yield f" AND entries.id IN ({','.join('?' * len(part))})", part


def storable(source: str) -> str:
    """A path whose bytes are not UTF-8 is stored with escapes: SQLite keeps text only."""
    try:
        source.encode()
    except UnicodeEncodeError:
        return source.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return source


def to_json(values: Mapping[str, Any]) -> str:
    """Metadata as text; raises `InputError` where it holds more than JSON values."""
    try:
        return json.dumps(dict(values), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"metadata must hold JSON values only, got {values!r}: {error}") from error
