"""One state of a memory's vectors of one modality: segments grouped for searching. Immutable, shared by threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from rarvision.errors import MemoryCorruptError
from rarvision.index import ExactIndex, HNSWIndex, Index

__all__ = ["Segment", "View"]

_GATHER_BELOW = 65_536  # smaller segments without an index are searched as one array in memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Vectors of one file, and the entries that they belong to.

    Attributes:
        key: Segment id and number of live rows: equal keys, equal content.
        vectors: Memory-mapped.
        ids: Entry ids by row, ascending; -1 where the entry has been removed.
        categories: Category codes by row; -1 likewise.
        index_path: Its index, where it has one.
        checksums: Of its files, as they were written.
    """

    key: tuple[int, int]
    vectors: Float[np.ndarray, "rows dim"]
    ids: Int[np.ndarray, " rows"]
    categories: Int[np.ndarray, " rows"]
    index_path: Path | None
    checksums: tuple[str | None, ...] = ()

    @classmethod
    def open(
        cls,
        path: Path,
        key: tuple[int, int],
        shape: tuple[int, int],
        entries: Sequence[tuple[int, int, int]],
        *,
        index_path: Path | None,
        checksums: tuple[str | None, ...],
    ) -> Segment:
        """Map a segment's file.

        Args:
            path: The ``.npy`` file.
            key: Of the segment.
            shape: What the file must hold.
            entries: Row, id and category code of its live rows.
            index_path: Its index's file.
            checksums: Of both files.

        Raises:
            MemoryCorruptError: The file holds something else.
            FileNotFoundError: It is gone.
        """
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise MemoryCorruptError(f"{path} is damaged: {error}; restore it from a copy") from error
        if vectors.shape != shape or vectors.dtype != np.float32:
            raise MemoryCorruptError(f"{path}: expected float32 {shape}, got {vectors.dtype} {vectors.shape}")
        ids = np.full(shape[0], -1, dtype=np.int64)
        codes = np.full(shape[0], -1, dtype=np.int64)
        if entries:
            table = np.array(entries, dtype=np.int64)
            ids[table[:, 0]] = table[:, 1]
            codes[table[:, 0]] = table[:, 2]
        return cls(key=key, vectors=vectors, ids=ids, categories=codes, index_path=index_path, checksums=checksums)

    @cached_property
    def index(self) -> Index:
        """The index over the rows; opened on first use."""
        if self.index_path is None:
            return ExactIndex(int(self.vectors.shape[1]), vectors=self.vectors)
        index = HNSWIndex.load(self.index_path)
        if len(index) != len(self.vectors):
            raise MemoryCorruptError(
                f"{self.index_path}: the index has {len(index)} rows, its segment {len(self.vectors)}"
            )
        return index

    @cached_property
    def allowed(self) -> Bool[np.ndarray, " rows"] | None:
        """Flags of the live rows; None where all are."""
        live: Bool[np.ndarray, " rows"] = self.ids >= 0
        return None if bool(live.all()) else live


class View:
    """Segments in the order of their entries' ids."""

    def __init__(self, segments: list[Segment], *, dim: int, revision: int) -> None:
        self.segments = {segment.key: segment for segment in segments}
        self.revision = revision
        self._dim = dim

    @cached_property
    def ids(self) -> Int[np.ndarray, " n"]:
        """Ids of all live entries, ascending."""
        ids = self._joined([segment.ids for segment in self.segments.values()])
        live: Int[np.ndarray, " n"] = ids[ids >= 0]
        return live

    @cached_property
    def categories(self) -> Int[np.ndarray, " n"]:
        """Category codes in the order of `ids`."""
        codes = self._joined([segment.categories for segment in self.segments.values()])
        live: Int[np.ndarray, " n"] = codes[codes >= 0]
        return live

    def __len__(self) -> int:
        return sum(live for _, live in self.segments)

    def content(self) -> Iterator[bytes]:
        """What tells this state's vectors from others: the files' checksums, and whose the rows are."""
        for segment in self.segments.values():
            yield repr(segment.checksums).encode()
            yield segment.ids.tobytes()

    def gather(self, ids: Int[np.ndarray, " n"], into: Float[np.ndarray, "n dim"]) -> Bool[np.ndarray, " n"]:
        """Copy the vectors of those ids that are here; returns which they are."""
        found = np.zeros(len(ids), dtype=bool)
        for segment in self.segments.values():
            rows = np.flatnonzero(segment.ids >= 0)
            if not len(rows):
                continue
            live = segment.ids[rows]
            place = np.minimum(np.searchsorted(live, ids), len(live) - 1)
            here = live[place] == ids
            into[here] = segment.vectors[rows[place[here]]]
            found |= here
        return found

    def search(
        self, queries: Float[np.ndarray, "n dim"], k: int
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        """Similarities, ids and category codes of the k closest live entries, ties by id."""
        parts = []
        for group in self._groups:
            similarities, rows = group.index.search(queries, k, allowed=group.allowed)
            missing = rows < 0
            ids, codes = group.ids[rows], group.categories[rows]
            ids[missing] = codes[missing] = -1
            parts.append((similarities, ids, codes))
        if len(parts) == 1:
            return parts[0]
        similarities, ids, codes = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
        order = np.lexsort((ids, -similarities), axis=-1)[:, :k]
        return (
            np.take_along_axis(similarities, order, axis=1),
            np.take_along_axis(ids, order, axis=1),
            np.take_along_axis(codes, order, axis=1),
        )

    @cached_property
    def _groups(self) -> list[Segment]:
        """What is searched: large or indexed segments as they are, the small ones gathered into one array."""
        segments = [segment for segment in self.segments.values() if segment.key[1]]
        small = [s for s in segments if s.index_path is None and len(s.vectors) < _GATHER_BELOW]
        if len(small) < 2:
            return segments
        gathered = Segment(
            key=(-1, sum(segment.key[1] for segment in small)),
            vectors=np.concatenate([segment.vectors for segment in small]),
            ids=self._joined([segment.ids for segment in small]),
            categories=self._joined([segment.categories for segment in small]),
            index_path=None,
        )
        return [*(segment for segment in segments if segment not in small), gathered]

    @staticmethod
    def _joined(arrays: list[Int[np.ndarray, " _"]]) -> Int[np.ndarray, " n"]:
        return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
