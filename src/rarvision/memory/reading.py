"""The current state of a memory's folder as arrays, and searching it; taken over from the last one where unchanged."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from rarvision.errors import MemoryCorruptError, MemoryStoreError
from rarvision.index import ExactIndex
from rarvision.memory.records import Hits, Where
from rarvision.memory.sql import Conditions
from rarvision.memory.store import Store, unpack_vectors
from rarvision.memory.view import Segment, View
from rarvision.types import Modality

__all__ = ["Reader"]

_ATTEMPTS = 3


class Reader:
    """Views, names and counts, each read once for a revision of the folder, and searches in them."""

    def __init__(self, store: Store, *, dim: int, fingerprint: str) -> None:
        self._store = store
        self._dim = dim
        self._fingerprint = fingerprint
        self._views: dict[Modality, View] = {}
        self._names: tuple[int, dict[int, str]] = (-1, {})
        self._counts: tuple[int, dict[Modality, int]] = (-1, {})

    def close(self) -> None:
        """Let the files go."""
        self._views = {}

    def names(self) -> dict[int, str]:
        """Names of the categories by code."""
        with self._store.snapshot():
            revision = self._store.revision
            if self._names[0] != revision:
                found = self._store.rows("SELECT id, name FROM categories WHERE name IS NOT NULL")
                self._names = (revision, dict(found))
            return self._names[1]

    def counts(self) -> dict[Modality, int]:
        """Entries of each modality."""
        with self._store.snapshot():
            revision = self._store.revision
            if self._counts[0] != revision:
                self._counts = (revision, self._store.counts())
            return self._counts[1]

    def view(self, modality: Modality) -> View:
        """The current state, taken over from the last one where nothing changed."""
        for attempt in range(3):
            try:
                with self._store.snapshot():
                    revision = self._store.revision
                    view = self._views.get(modality)
                    if view is None or view.revision != revision:
                        view = self._read_view(modality, revision, view)
                        self._views[modality] = view
                    return view
            except FileNotFoundError as error:  # a writer merged segments between the query and the opening
                if attempt == 2:
                    raise MemoryCorruptError(
                        f"{error.filename} is missing; restore the memory's folder from a copy"
                    ) from error
        raise AssertionError("unreachable")

    def nearest(self, vectors: Float[np.ndarray, "n dim"], k: int, modality: Modality, where: Where | None) -> Hits:
        """Closest entries that meet the conditions."""
        if where is None:
            similarities, ids, codes = self.view(modality).search(vectors, k)
            return Hits(similarities=similarities, ids=ids, categories=codes)
        with self._store.snapshot():
            view = self.view(modality)
            names = {name: code for code, name in self.names().items()}
            wanted = None
            if where.categories is not None:
                wanted = np.array(sorted({names[name] for name in where.categories if name in names}), dtype=np.int64)
            conditions = Conditions(modality=modality, metadata=where.metadata)

            def matching() -> Int[np.ndarray, " m"]:
                return np.array([row[0] for row in self._store.select("entries.id", conditions)], dtype=np.int64)

            similarities, ids, codes = view.search(
                vectors, k, key=where.key, codes=wanted, ids=matching if where.metadata else None
            )
        return Hits(similarities=similarities, ids=ids, categories=codes)

    def _read_view(self, modality: Modality, revision: int, before: View | None) -> View:
        fingerprint = self._store.rows("SELECT value FROM meta WHERE key = 'encoder_fingerprint'")[0][0]
        if fingerprint != self._fingerprint:
            raise MemoryStoreError(
                f"{self._store.folder} has been encoded anew, by another encoder ({fingerprint}), since it was opened; "
                "open it again"
            )
        known = {} if before is None else before.segments
        merged = dict(self._store.rows("SELECT id, merged_into FROM categories WHERE merged_into IS NOT NULL"))
        segments = []
        for files in self._store.segments(modality):
            segment = known.get(files.key)
            if segment is None:
                removed = self._store.rows("SELECT row FROM removed WHERE segment = ?", (files.key[0],))
                segment = files.open(self._dim, removed=[row for (row,) in removed], merged=merged)
            segments.append(segment)
        return View(segments, tail=self._tail(modality), revision=revision)

    def _tail(self, modality: Modality) -> Segment | None:
        found = self._store.rows(
            "SELECT entry, category, vector FROM tail JOIN entries ON entries.id = tail.entry WHERE modality = ? "
            "ORDER BY entry",
            (modality,),
        )
        if not found:
            return None
        ids, codes = np.array([row[:2] for row in found], dtype=np.int64).T
        vectors = unpack_vectors(b"".join(row[2] for row in found), self._dim)
        index = ExactIndex(self._dim, vectors=vectors)
        return Segment(key=(0, 0), vectors=vectors, ids=ids, categories=codes, live=len(ids), index=index)
