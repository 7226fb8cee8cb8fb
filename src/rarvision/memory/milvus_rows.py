"""An entry as a row in Milvus, and the expressions that find rows by what entries are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rarvision.errors import InputError
from rarvision.memory.milvus_server import MAX_TEXT
from rarvision.memory.records import NewEntry, alternatives
from rarvision.memory.sql import storable, to_json
from rarvision.types import Modality

__all__ = ["ENTRY_FIELDS", "condition_of", "entry_key", "row_of", "row_size"]

_MAX_TERMS = 4_096  # Milvus' own limit of an array
ENTRY_FIELDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "id": ("INT64", {}),
    "category": ("INT64", {}),
    "source": ("VARCHAR", {"max_length": MAX_TEXT}),
    "content": ("VARCHAR", {"max_length": 1_024}),
    "metadata": ("VARCHAR", {"max_length": MAX_TEXT}),
    "terms": ("ARRAY", {"element_type": "INT64", "max_capacity": _MAX_TERMS}),
}


def row_of(entry_id: int, code: int, entry: NewEntry) -> dict[str, Any]:
    """The entry as a row, but for its vector; raises `InputError` where Milvus cannot hold it."""
    source, metadata, content = storable(entry.source), to_json(entry.metadata), entry.content.hex()
    for what, value, most in (
        ("source", source, MAX_TEXT),
        ("metadata", metadata, MAX_TEXT),
        ("content", content, 1_024),
    ):
        if len(value.encode()) > most:
            raise InputError(f"{source[:200]}: its {what} has {len(value.encode()):,} bytes; Milvus takes {most:,}")
    return {
        "id": entry_id,
        "category": code,
        "source": source,
        "content": content,
        "metadata": metadata,
        "terms": _terms(source, entry.metadata),
    }


def row_size(row: Mapping[str, Any]) -> int:
    """About how many bytes a row takes in a request."""
    texts = sum(len(value) for value in row.values() if isinstance(value, str))
    return texts + 4 * len(row.get("vector", ())) + 8 * len(row.get("terms", ()))


def entry_key(content: str, code: int, modality: Modality) -> bytes:
    """Equal for entries that a memory holds once."""
    return hashlib.blake2b(f"{content} {code} {modality}".encode(), digest_size=16).digest()


def condition_of(
    *, codes: Sequence[int] | None = None, source: str | None = None, metadata: Mapping[str, Any] | None = None
) -> str | None:
    """A Milvus expression without any text of the caller's; None where nothing can meet it, empty for no condition."""
    found = []
    if codes is not None:
        found.append(f"category in {sorted(int(code) for code in codes)}")
    if source is not None:
        found.append(f"array_contains(terms, {_hashed('source', storable(source))})")
    for key, value in (metadata or {}).items():
        wanted = [_term(key, one) for one in alternatives(value)]
        if not wanted:
            return None
        found.append(f"array_contains_any(terms, {wanted})")
    return None if codes is not None and not len(codes) else " and ".join(found)


def _hashed(*values: str) -> int:
    """63 bits: Milvus' expressions know no negative numbers everywhere."""
    digest = hashlib.sha256(json.dumps(values).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _term(key: str, value: Any) -> int:
    """Equal for values that `Where` takes as equal: 1 and 1.0, but not True."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _hashed("metadata", key, json.dumps(value))


def _terms(source: str, metadata: Mapping[str, Any]) -> list[int]:
    simple = [(key, value) for key, value in metadata.items() if value is None or isinstance(value, (str, int, float))]
    if len(simple) >= _MAX_TERMS:
        raise InputError(f"{source}: {len(simple)} metadata values; a memory in Milvus takes {_MAX_TERMS - 1:,}")
    return [_hashed("source", source), *(_term(key, value) for key, value in simple)]
