"""Nearest vectors: row numbers and similarities only; what a row means is the memory's business.

`ExactIndex` is the reference that every other index is tested against; `HNSWIndex` answers approximately and fast;
`wrap_faiss` puts any faiss index behind the same interface.
"""

from __future__ import annotations

import abc
import importlib
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Bool, Float, Int

from rarvision.errors import MemoryCorruptError, OptionError

__all__ = ["ExactIndex", "FaissIndex", "HNSWIndex", "Index", "IndexKind", "make_index", "top_k", "wrap_faiss"]

IndexKind = Literal["exact", "hnsw"]

_ROW_BLOCK = 16_384  # rows scored at once: 16,384 x 256 similarities are 16 MB
_QUERY_BLOCK = 256
_EXACT_BELOW = 2_048  # a filter that leaves so few rows is searched exactly: a graph walk would miss most of them


def top_k(scores: Float[np.ndarray, "n m"], k: int) -> Int[np.ndarray, "n k"]:
    """Columns of the k highest scores of each row, highest first, ties by the lower column.

    Args:
        scores: No NaN; ``-inf`` is allowed and comes last.
        k: At most m columns are returned.

    Example:
        >>> top_k(np.array([[0.1, 0.9, 0.9, 0.5]]), 2).tolist()
        [[1, 2]]
    """
    columns = scores.shape[1]
    k = min(k, columns)
    if k == 0:
        return np.empty((scores.shape[0], 0), dtype=np.int64)
    if k * 4 >= columns:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64, copy=False)
    chosen = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    worst = np.take_along_axis(scores, chosen, axis=1).min(axis=1, keepdims=True)
    for row in np.flatnonzero((scores >= worst).sum(axis=1) > k):  # a tie across the cut: keep the lower columns
        chosen[row] = np.argsort(-scores[row], kind="stable")[:k]
    chosen.sort(axis=1)
    order = np.argsort(-np.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1).astype(np.int64, copy=False)


class Index(abc.ABC):
    """Rows of float32 vectors, searched by inner product (the cosine, for unit vectors).

    Rows are numbered from 0 in the order in which they were added. Implementers write `_add`, `_search`, `save` and
    `load`; checks, padding and the order of ties live here.
    """

    kind: str = "index"

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of dimensions."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def _add(self, vectors: Float[np.ndarray, "n dim"]) -> None: ...

    @abc.abstractmethod
    def _search(
        self, queries: Float[np.ndarray, "n dim"], k: int, allowed: Bool[np.ndarray, " rows"] | None
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        """Similarities and rows, in any order, row -1 where there is none; ``1 <= k <= allowed rows``."""

    @abc.abstractmethod
    def save(self, path: str | Path) -> None:
        """Write the index to one file."""

    @classmethod
    @abc.abstractmethod
    def load(cls, path: str | Path) -> Index:
        """Open what `save` wrote; memory-mapped where the format allows."""

    def add(self, vectors: Float[np.ndarray, "n dim"]) -> None:
        """Append rows.

        Raises:
            OptionError: The vectors do not have `dim` dimensions or are not finite.
        """
        array = self._checked(vectors, "vectors")
        if len(array):
            self._add(array)

    def search(
        self, queries: Float[np.ndarray, "n dim"], k: int, *, allowed: Bool[np.ndarray, " rows"] | None = None
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        """The k rows most similar to each query.

        Args:
            queries: float32.
            k: At least 1; may exceed the number of rows.
            allowed: One flag a row; rows that are False are not returned.

        Returns:
            Similarities (float32, descending) and rows (int64, ties by row). Where fewer than k rows exist, the rest
            holds similarity ``-inf`` and row -1.

        Raises:
            OptionError: k below 1, or queries or flags of the wrong shape.
        """
        if k < 1:
            raise OptionError(f"k must be at least 1, got {k}")
        array = self._checked(queries, "queries")
        available = len(self)
        if allowed is not None:
            if allowed.shape != (len(self),):
                raise OptionError(f"allowed must have one flag for each of {len(self)} rows, got {allowed.shape}")
            available = int(np.count_nonzero(allowed))
            if available == len(self):
                allowed = None
        similarities = np.full((len(array), k), -np.inf, dtype=np.float32)
        rows = np.full((len(array), k), -1, dtype=np.int64)
        found = min(k, available)
        if found and len(array):
            found_similarities, found_rows = self._search(array, found, allowed)
            keys = np.where(found_rows < 0, np.inf, -found_similarities)
            order = np.lexsort((found_rows, keys), axis=-1)
            rows[:, :found] = np.take_along_axis(found_rows, order, axis=1)
            similarities[:, :found] = np.take_along_axis(found_similarities, order, axis=1)
            similarities[rows < 0] = -np.inf
        return similarities, rows

    def _checked(self, vectors: Float[np.ndarray, "n dim"], what: str) -> Float[np.ndarray, "n dim"]:
        array = np.ascontiguousarray(vectors, dtype=np.float32)
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise OptionError(f"{what} must have the shape (n, {self.dim}), got {array.shape}")
        if not np.isfinite(array).all():
            raise OptionError(f"{what} must be finite; rows of images that could not be read must be left out")
        return array


def _exact_search(
    vectors: Float[np.ndarray, "rows dim"],
    queries: Float[np.ndarray, "n dim"],
    k: int,
    allowed: Bool[np.ndarray, " rows"] | None,
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Blocked float32 matrix products; the best k are carried from block to block."""
    similarities = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), _QUERY_BLOCK):
        block = queries[start : start + _QUERY_BLOCK]
        best = np.empty((len(block), 0), dtype=np.float32)
        best_rows = np.empty((len(block), 0), dtype=np.int64)
        for offset in range(0, len(vectors), _ROW_BLOCK):
            scores = block @ vectors[offset : offset + _ROW_BLOCK].T
            if allowed is not None:
                scores[:, ~allowed[offset : offset + _ROW_BLOCK]] = -np.inf
            columns = top_k(scores, k)
            best = np.concatenate((best, np.take_along_axis(scores, columns, axis=1)), axis=1)
            best_rows = np.concatenate((best_rows, columns + offset), axis=1)
            if best.shape[1] > k:
                keep = top_k(best, k)
                best = np.take_along_axis(best, keep, axis=1)
                best_rows = np.take_along_axis(best_rows, keep, axis=1)
        similarities[start : start + len(block)] = best
        rows[start : start + len(block)] = best_rows
    return similarities, rows


@final
class ExactIndex(Index):
    """Every row is compared with every query. The reference for all other indexes."""

    kind = "exact"

    def __init__(self, dim: int, *, vectors: Float[np.ndarray, "rows dim"] | None = None) -> None:
        """Start empty, or over an existing float32 array, memory-mapped or not, which is not copied."""
        self._dim = _positive("dim", dim)
        if vectors is not None and (vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype != np.float32):
            raise OptionError(f"vectors must be float32 of shape (n, {dim}), got {vectors.dtype} {vectors.shape}")
        self._vectors = np.empty((0, dim), dtype=np.float32) if vectors is None else vectors

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._dim

    def __len__(self) -> int:
        return len(self._vectors)

    def _add(self, vectors: Float[np.ndarray, "n dim"]) -> None:
        self._vectors = np.concatenate((self._vectors, vectors))

    def _search(
        self, queries: Float[np.ndarray, "n dim"], k: int, allowed: Bool[np.ndarray, " rows"] | None
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        return _exact_search(self._vectors, queries, k, allowed)

    def save(self, path: str | Path) -> None:
        """Write the vectors as one ``.npy`` file."""
        with Path(path).open("wb") as file:
            np.save(file, self._vectors, allow_pickle=False)

    @classmethod
    def load(cls, path: str | Path) -> ExactIndex:
        """Map what `save` wrote into memory."""
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise MemoryCorruptError(f"{path} is not an exact index (.npy, float32, 2 dimensions): {error}") from error
        return cls(int(vectors.shape[1]), vectors=vectors)


@final
class HNSWIndex(Index):
    """Hierarchical navigable small worlds over full vectors (faiss): approximate, logarithmic in the rows.

    Args:
        dim: Number of dimensions.
        m: Links of a row in the graph; more is better and larger.
        ef_construction: Breadth of the search while building.
        ef_search: Breadth of the search; at least k is used.
    """

    kind = "hnsw"

    def __init__(self, dim: int, *, m: int = 32, ef_construction: int = 80, ef_search: int = 128) -> None:
        faiss = _faiss()
        graph = faiss.IndexHNSWFlat(_positive("dim", dim), _positive("m", m), faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = _positive("ef_construction", ef_construction)
        graph.hnsw.efSearch = _positive("ef_search", ef_search)
        self._graph = graph

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self._graph.d)

    def __len__(self) -> int:
        return int(self._graph.ntotal)

    def _add(self, vectors: Float[np.ndarray, "n dim"]) -> None:
        self._graph.add(vectors)

    def _search(
        self, queries: Float[np.ndarray, "n dim"], k: int, allowed: Bool[np.ndarray, " rows"] | None
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        faiss = _faiss()
        if allowed is not None and (count := int(np.count_nonzero(allowed))) <= max(_EXACT_BELOW, 2 * k):
            rows = np.flatnonzero(allowed)
            vectors = self._graph.reconstruct_batch(rows)
            similarities, columns = _exact_search(vectors, queries, min(k, count), None)
            return similarities, rows[columns]
        selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        parameters = faiss.SearchParametersHNSW(
            sel=selector, efSearch=min(max(int(self._graph.hnsw.efSearch), k), len(self))
        )
        similarities, found = self._graph.search(queries, k, params=parameters)
        short = np.flatnonzero((found < 0).any(axis=1))
        if len(short):  # the walk got stuck with fewer than k rows, though there are more
            everything = self._graph.reconstruct_n(0, len(self))
            similarities[short], found[short] = _exact_search(everything, queries[short], k, allowed)
        return similarities, found

    def save(self, path: str | Path) -> None:
        """Write a faiss index file."""
        faiss = _faiss()
        faiss.write_index(self._graph, str(path))

    @classmethod
    def load(cls, path: str | Path) -> HNSWIndex:
        """Read a faiss index file."""
        faiss = _faiss()
        graph = _read_faiss(path)
        if not isinstance(graph, faiss.IndexHNSWFlat) or graph.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise MemoryCorruptError(f"{path}: expected an IndexHNSWFlat by inner product, got {type(graph).__name__}")
        index = cls.__new__(cls)
        index._graph = graph  # noqa: SLF001 - its own class
        return index


@final
class FaissIndex(Index):
    """Any faiss index over unit vectors, by inner product or by squared Euclidean distance."""

    kind = "faiss"

    def __init__(self, index: Any) -> None:
        faiss = _faiss()
        if index.metric_type not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
            raise OptionError(
                f"a faiss index must search by inner product or L2, got metric type {index.metric_type}; rebuild it"
            )
        self._index = index
        self._distances = index.metric_type == faiss.METRIC_L2

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self._index.d)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def vectors(self) -> Float[np.ndarray, "rows dim"]:
        """The stored vectors, as far as the index keeps them (quantised ones are approximate).

        Raises:
            OptionError: The index cannot give its vectors back.
        """
        try:
            if hasattr(self._index, "make_direct_map"):
                self._index.make_direct_map()
            if len(self):  # one row first: where it is not supported, asking for all ends the process
                self._index.reconstruct(0)
            return np.asarray(self._index.reconstruct_n(0, len(self)), dtype=np.float32)
        except RuntimeError as error:
            raise OptionError(
                f"this faiss index ({type(self._index).__name__}) cannot give its vectors back, so it cannot be "
                f"imported; use one that stores them (Flat, HNSWFlat, IVFFlat): {error}"
            ) from error

    def _add(self, vectors: Float[np.ndarray, "n dim"]) -> None:
        self._index.add(vectors)

    def _search(
        self, queries: Float[np.ndarray, "n dim"], k: int, allowed: Bool[np.ndarray, " rows"] | None
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        if allowed is not None:
            rows = np.flatnonzero(allowed)
            similarities, columns = _exact_search(self.vectors[rows], queries, k, None)
            return similarities, rows[columns]
        values, found = self._index.search(queries, k)
        return (1.0 - values / 2.0 if self._distances else values), found

    def save(self, path: str | Path) -> None:
        """Write a faiss index file."""
        faiss = _faiss()
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: str | Path) -> FaissIndex:
        """Read any faiss index file."""
        return cls(_read_faiss(path))


def wrap_faiss(index: Any) -> FaissIndex:
    """Put a faiss index over unit vectors behind `Index`; it is not copied."""
    return FaissIndex(index)


def make_index(kind: IndexKind, dim: int, **parameters: int) -> Index:
    """An empty index.

    Args:
        kind: ``exact`` or ``hnsw``.
        dim: Number of dimensions.
        **parameters: Those of the index's constructor.

    Raises:
        OptionError: Unknown kind or parameter.
    """
    kinds: dict[str, set[str]] = {"exact": set(), "hnsw": {"m", "ef_construction", "ef_search"}}
    if kind not in kinds:
        raise OptionError(f"unknown index {kind!r}; there are: {', '.join(kinds)}")
    known = kinds[kind]
    if unknown := sorted(set(parameters) - known):
        raise OptionError(
            f"the index {kind!r} has no parameter {', '.join(unknown)}; it has: {', '.join(sorted(known)) or 'none'}"
        )
    return HNSWIndex(dim, **parameters) if kind == "hnsw" else ExactIndex(dim)


def _faiss() -> Any:
    """The library, loaded on first use; its type stubs do not match what it accepts."""
    return importlib.import_module("faiss")


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise OptionError(f"{name} must be at least 1, got {value}")
    return int(value)


def _read_faiss(path: str | Path) -> Any:
    faiss = _faiss()
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise MemoryCorruptError(f"{path} is not a readable faiss index: {reason}") from error
