"""Finding in a memory in Milvus: entries by what they are, and neighbours, by its own search or one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rarvision.errors import OptionError
from rarvision.memory.milvus_rows import condition_of
from rarvision.memory.milvus_server import MAX_RESULTS
from rarvision.memory.milvus_store import MODALITIES, MilvusStore
from rarvision.memory.records import Hits, Where
from rarvision.types import Modality

__all__ = ["filled", "nearest", "places_of", "stored_vectors", "unknown_id"]

_SCAN = 4_096  # vectors that are compared at once


def unknown_id(store: MilvusStore, entry: int) -> OptionError:
    """The error for an id that is not there."""
    return OptionError(f"no entry with the id {entry} in {store.name} in {store.server.uri}")


def stored_vectors(
    store: MilvusStore, ids: Sequence[int] | Int[np.ndarray, " n"], dim: int
) -> Float[np.ndarray, "n dim"]:
    """The entries' vectors, float32, in the order of the ids; raises `OptionError` for an id that is not there."""
    wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
    unique, inverse = np.unique(wanted, return_inverse=True)
    stored = np.empty((len(unique), dim), dtype=np.float32)
    missing = np.ones(len(unique), dtype=bool)
    there = unique < store.state.next_id if len(unique) else missing
    for modality in MODALITIES:
        for row in store.rows(modality, unique[missing & there], ["vector"]):
            place = int(np.searchsorted(unique, row["id"]))
            stored[place] = row["vector"]
            missing[place] = False
    if missing.any():
        raise unknown_id(store, int(unique[missing][0]))
    return stored[inverse]


def places_of(
    store: MilvusStore,
    *,
    ids: Sequence[int] | None,
    category: str | None,
    modality: Modality | None,
    source: str | None,
    metadata: Mapping[str, Any] | None,
) -> list[tuple[int, tuple[Modality, ...]]]:
    """Ids, ascending, that may meet the conditions, and where they may be; without conditions all ids given."""
    Where(metadata=metadata or {})  # refuses what cannot be asked for
    wanted = MODALITIES if modality is None else (modality,)
    asked = None if ids is None else sorted({int(each) for each in ids})
    state = store.state
    if asked is not None and category is None and source is None and not metadata:
        return [(each, wanted) for each in asked if 0 < each < state.next_id]
    names = {name: code for code, name in store.names(state).items()}
    found: list[tuple[int, tuple[Modality, ...]]] = []
    for each in wanted:
        condition = condition_of(source=source, metadata=metadata)
        if condition is None or (category is not None and category not in names):
            continue
        some = store.matching(each, condition)
        if category is not None:
            held, codes = store.table(each)
            some = some[np.isin(some, held[codes == names[category]])]
        if asked is not None:
            some = some[np.isin(some, asked)]
        found += [(entry, (each,)) for entry in some.tolist()]
    return sorted(found)


def nearest(
    store: MilvusStore,
    settings: Mapping[str, Any],
    queries: Float[np.ndarray, "n dim"],
    k: int,
    *,
    modality: Modality,
    condition: str,
) -> Hits:
    """The k entries closest to each query among those that meet an expression; all of them where they are fewer."""
    state = store.state
    if k > MAX_RESULTS:
        return _scan(store, queries, k, modality, store.matching(modality, condition))
    visible = f"id < {state.next_id}"
    limited = f"({condition}) and {visible}" if condition else visible
    rows: list[list[tuple[float, int, int]]] = []
    for asked in ([] if state.pending else [condition]) + [limited]:
        rows = store.server.search(
            store.entries[modality], queries, k, condition=asked, field="category", parameters=_asked(settings, k)
        )
        if all(entry < state.next_id for row in rows for _, entry, _ in row):
            break  # else another process is adding just now
    if min(map(len, rows)) < k:  # few meet the condition, or an approximate index has missed some
        ids = store.matching(modality, condition)
        if min(map(len, rows)) < min(k, len(ids)):
            return _scan(store, queries, k, modality, ids)
    return filled(rows, k)


def _asked(settings: Mapping[str, Any], k: int) -> dict[str, int]:
    asked: dict[str, int] = dict(settings["asked_with"])
    if settings["index_kind"] == "hnsw":
        asked["ef"] = max(asked.get("ef", 128), k)
    elif settings["index_kind"] == "ivf":
        asked.setdefault("nprobe", 32)
    return asked


def _scan(
    store: MilvusStore, queries: Float[np.ndarray, "n dim"], k: int, modality: Modality, ids: Int[np.ndarray, " m"]
) -> Hits:
    """Compare with all these entries, here."""
    held, codes = store.table(modality)
    similarities = np.empty((len(queries), 0), dtype=np.float32)
    entries = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(ids), _SCAN):
        part = ids[start : start + _SCAN]
        vectors = stored_vectors(store, part, queries.shape[1])
        similarities = np.concatenate((similarities, queries @ vectors.T), axis=1)
        entries = np.concatenate((entries, np.broadcast_to(part, (len(queries), len(part)))), axis=1)
        order = np.lexsort((entries, -similarities), axis=-1)[:, :k]
        similarities = np.take_along_axis(similarities, order, axis=1)
        entries = np.take_along_axis(entries, order, axis=1)
    found = codes[np.searchsorted(held, entries)] if len(held) else entries
    columns = zip(similarities.tolist(), entries.tolist(), found.tolist(), strict=True)
    return filled([list(zip(*row, strict=True)) for row in columns], k)


def filled(rows: Sequence[Sequence[tuple[float, int, int]]], k: int) -> Hits:
    """Hits as arrays, closest first, ties by id."""
    similarities = np.full((len(rows), k), -np.inf, dtype=np.float32)
    ids = np.full((len(rows), k), -1, dtype=np.int64)
    codes = np.full((len(rows), k), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        for place, (similarity, entry, code) in enumerate(sorted(row, key=lambda hit: (-hit[0], hit[1]))):
            similarities[number, place], ids[number, place], codes[number, place] = similarity, entry, code
    return Hits(similarities=similarities, ids=ids, categories=codes)
