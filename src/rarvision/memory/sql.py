"""Conditions of queries, and Python values as what SQLite keeps."""

# ruff: noqa: S608 - what is put into SQL text are constants and placeholders; values are parameters

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from rarvision.errors import InputError
from rarvision.memory.records import Where, alternatives
from rarvision.types import Modality

__all__ = ["Conditions", "storable", "to_json"]

_IDS_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Which entries; all that are given must hold."""

    ids: Sequence[int] | Int[np.ndarray, " n"] | None = None
    category: str | None = None
    modality: Modality | None = None
    source: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Where(metadata=self.metadata)  # refuses what cannot be asked for

    def __bool__(self) -> bool:
        given = (self.ids, self.category, self.modality, self.source)
        return any(value is not None for value in given) or bool(self.metadata)

    def parts(self) -> Iterator[tuple[str, list[Any]]]:
        """SQL over ``entries`` joined with ``categories``, with parameters; together they ask for all.

        There are several where ids are given, in ascending order of them: SQLite limits the number of parameters.
        """
        texts, values = ["1"], []
        named = {
            "name": self.category,
            "modality": self.modality,
            "source": None if self.source is None else storable(self.source),
        }
        for column, value in named.items():
            if value is not None:
                texts.append(f"{column} = ?")
                values.append(value)
        for key, wanted in self.metadata.items():
            text, more = _metadata(key, alternatives(wanted))
            texts.append(text)
            values += more
        text = " AND ".join(texts)
        if self.ids is None:
            yield text, values
            return
        unique = sorted({int(each) for each in self.ids})
        for start in range(0, len(unique), _IDS_AT_ONCE):
            part = unique[start : start + _IDS_AT_ONCE]
            yield f"{text} AND entries.id IN ({','.join('?' * len(part))})", [*values, *part]


def _metadata(key: str, wanted: Sequence[Any]) -> tuple[str, list[Any]]:
    """One of these values under the key; JSON's types are told apart, but for whole and other numbers."""
    texts, values = [], []
    for value in wanted:
        if value is None or isinstance(value, bool):
            texts.append(f"each.type = '{json.dumps(value)}'")
        elif isinstance(value, str):
            texts.append("each.type = 'text' AND each.value = ?")
            values.append(value)
        else:
            texts.append("each.type IN ('integer', 'real') AND each.value = ?")
            values.append(value)
    either = " OR ".join(f"({text})" for text in texts) or "0"
    return (
        f"EXISTS (SELECT 1 FROM json_each(entries.metadata) AS each WHERE each.key = ? AND ({either}))",
        [key, *values],
    )


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
