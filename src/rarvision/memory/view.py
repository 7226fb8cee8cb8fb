"""One state of a memory's vectors of one modality: segments grouped for searching. Immutable, shared by threads."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rarvision.errors import MemoryCorruptError
from rarvision.index import ExactIndex, Index, load_index

__all__ = ["Segment", "SegmentFiles", "View", "replaced"]

_MASKS = 8
_GATHER_BELOW = 65_536  # smaller segments without an index are searched as one array in memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Vectors of one file, and the entries that they belong to; or the tail, whose vectors are in memory.

    Attributes:
        key: Segment id and version: equal keys, equal content.
        vectors: Memory-mapped.
        ids: Entry ids by row, ascending; -1 where the entry has been removed.
        categories: Category codes by row; -1 likewise.
        live: Rows that have not been removed.
        index: Over the rows.
        indexed: Whether the index is more than the vectors themselves.
        checksums: Of its files, as they were written.
    """

    key: tuple[int, int]
    vectors: Float[np.ndarray, "rows dim"]
    ids: Int[np.ndarray, " rows"]
    categories: Int[np.ndarray, " rows"]
    live: int
    index: Index
    indexed: bool = False
    checksums: tuple[str | None, ...] = ()

    @cached_property
    def allowed(self) -> Bool[np.ndarray, " rows"] | None:
        """Flags of the live rows; None where all are."""
        return None if self.live == len(self.ids) else self.ids >= 0


@dataclass(frozen=True, kw_only=True)
class SegmentFiles:
    """What the database says about a segment."""

    key: tuple[int, int]
    rows: int
    live: int
    vectors: Path
    row_table: Path
    index: Path | None
    checksums: tuple[str, str, str | None]

    def open(self, dim: int, *, removed: Sequence[int], merged: Mapping[int, int]) -> Segment:
        """Map the files.

        Args:
            dim: Number of dimensions.
            removed: Rows whose entries have been removed.
            merged: Category codes that have become others.

        Raises:
            MemoryCorruptError: A file holds something else.
            FileNotFoundError: One is gone.
        """
        vectors = _mapped(self.vectors, (self.rows, dim), np.float32)
        table = _mapped(self.row_table, (2, self.rows), np.int64)
        ids, codes = (np.asarray(row) for row in table)
        if merged:
            codes = replaced(codes, merged)
        if len(removed):
            ids, codes = ids.copy(), codes.copy()
            ids[removed] = codes[removed] = -1
        if self.index is None:
            index: Index = ExactIndex(dim, vectors=vectors)
        else:
            if not self.index.exists():
                raise FileNotFoundError(errno.ENOENT, "the segment's index is missing", str(self.index))
            index = load_index(self.index, verify=False)  # `verify` reads all of it
            if len(index) != self.rows:
                raise MemoryCorruptError(f"{self.index}: the index has {len(index)} rows, its segment {self.rows}")
        return Segment(
            key=self.key,
            vectors=vectors,
            ids=ids,
            categories=codes,
            live=self.live,
            index=index,
            indexed=self.index is not None,
            checksums=self.checksums,
        )


def _mapped(path: Path, shape: tuple[int, int], dtype: type) -> Any:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise MemoryCorruptError(f"{path} is damaged: {error}; restore it from a copy") from error
    if array.shape != shape or array.dtype != dtype:
        raise MemoryCorruptError(
            f"{path}: expected {np.dtype(dtype).name} {shape}, got {array.dtype} {array.shape}; restore it from a copy"
        )
    return array


def replaced(codes: Int[np.ndarray, " n"], merged: Mapping[int, int]) -> Int[np.ndarray, " n"]:
    """The codes, those that have become others replaced."""
    places = np.arange(max(int(codes.max(initial=0)), *merged) + 1)
    places[list(merged)] = list(merged.values())
    found: Int[np.ndarray, " n"] = places[codes]
    return found


class View:
    """Segments in the order of their entries' ids."""

    def __init__(self, segments: list[Segment], *, tail: Segment | None, revision: int) -> None:
        self.segments = {segment.key: segment for segment in segments}
        self.revision = revision
        self._all = segments if tail is None else [*segments, tail]
        self._masks: OrderedDict[str, list[Bool[np.ndarray, " rows"]]] = OrderedDict()

    @cached_property
    def ids(self) -> Int[np.ndarray, " n"]:
        """Ids of all live entries, ascending."""
        ids = self._joined([segment.ids for segment in self._all])
        live: Int[np.ndarray, " n"] = ids[ids >= 0]
        return live

    @cached_property
    def categories(self) -> Int[np.ndarray, " n"]:
        """Category codes in the order of `ids`."""
        codes = self._joined([segment.categories for segment in self._all])
        live: Int[np.ndarray, " n"] = codes[codes >= 0]
        return live

    def __len__(self) -> int:
        return sum(segment.live for segment in self._all)

    def content(self) -> Iterator[bytes]:
        """What tells this state's vectors from others: the files' checksums, and whose the rows are."""
        for segment in self._all:
            yield repr(segment.checksums).encode() if segment.checksums else segment.vectors.tobytes()
            yield segment.ids.tobytes()

    def gather(self, ids: Int[np.ndarray, " n"], into: Float[np.ndarray, "n dim"]) -> Bool[np.ndarray, " n"]:
        """Copy the vectors of those ids that are here; returns which they are."""
        found = np.zeros(len(ids), dtype=bool)
        for segment in self._all:
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
        self,
        queries: Float[np.ndarray, "n dim"],
        k: int,
        *,
        key: str | None = None,
        codes: Int[np.ndarray, " c"] | None = None,
        ids: Callable[[], Int[np.ndarray, " m"]] | None = None,
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        """Similarities, ids and category codes of the k closest live entries, ties by id.

        Args:
            queries: Unit vectors.
            k: At least 1.
            key: Names the conditions that follow; None where there are none.
            codes: Only entries of these categories.
            ids: Gives the ids (ascending) among which alone is searched; asked once for each key.
        """
        parts = []
        masks = [group.allowed for group in self._groups] if key is None else self._masks_of(key, codes, ids)
        for group, allowed in zip(self._groups, masks, strict=True):
            similarities, rows = group.index.search(queries, k, allowed=allowed)
            missing = rows < 0
            found, categories = group.ids[rows], group.categories[rows]
            if missing.any():
                found[missing] = categories[missing] = -1
            parts.append((similarities, found, categories))
        if len(parts) == 1:
            return parts[0]
        similarities, found, categories = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
        order = np.lexsort((found, -similarities), axis=-1)[:, :k]
        return (
            np.take_along_axis(similarities, order, axis=1),
            np.take_along_axis(found, order, axis=1),
            np.take_along_axis(categories, order, axis=1),
        )

    def _masks_of(
        self,
        key: str,
        codes: Int[np.ndarray, " c"] | None,
        ids: Callable[[], Int[np.ndarray, " m"]] | None,
    ) -> list[Bool[np.ndarray, " rows"]]:
        """Flags of the rows that may be returned, a group; the last few conditions are kept."""
        masks = self._masks.get(key)
        if masks is None:
            wanted = None if ids is None else ids()
            masks = []
            for group in self._groups:
                mask = group.ids >= 0
                if codes is not None:
                    mask &= np.isin(group.categories, codes)
                if wanted is not None:
                    mask &= np.isin(group.ids, wanted)
                masks.append(mask)
            self._masks[key] = masks
            if len(self._masks) > _MASKS:
                with suppress(KeyError):  # another thread was faster
                    self._masks.popitem(last=False)
        return masks

    @cached_property
    def _groups(self) -> list[Segment]:
        """What is searched: large or indexed segments as they are, the small ones gathered into one array."""
        segments = [segment for segment in self._all if segment.live]
        small = [s for s in segments if not s.indexed and len(s.vectors) < _GATHER_BELOW]
        if len(small) < 2:
            return segments
        vectors = np.concatenate([segment.vectors for segment in small])
        gathered = Segment(
            key=(-1, 0),
            vectors=vectors,
            ids=self._joined([segment.ids for segment in small]),
            categories=self._joined([segment.categories for segment in small]),
            live=sum(segment.live for segment in small),
            index=ExactIndex(vectors.shape[1], vectors=vectors),
        )
        return [*(segment for segment in segments if segment not in small), gathered]

    @staticmethod
    def _joined(arrays: list[Int[np.ndarray, " _"]]) -> Int[np.ndarray, " n"]:
        return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
