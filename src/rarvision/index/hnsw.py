"""A navigable graph over full vectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from jaxtyping import Bool, Float, Int

from rarvision.errors import MemoryCorruptError
from rarvision.index.base import Index, positive
from rarvision.index.blocks import exact_search
from rarvision.index.engine import faiss_library, fetcher, owned, search_parameters, serialized_bytes, threads_for
from rarvision.index.files import read_faiss, write_faiss
from rarvision.index.spec import IndexSpec

__all__ = ["HNSWIndex"]


@final
class HNSWIndex(Index):
    """Hierarchical navigable small worlds over full vectors (faiss): approximate, logarithmic in the rows.

    Args:
        dim: Number of dimensions.
        m: Links of a row in the graph; more is better and larger.
        ef_construction: Breadth of the search while building.
        ef_search: Breadth of the search; at least k is used. May be set later.
    """

    kind = "hnsw"

    def __init__(self, dim: int, *, m: int = 32, ef_construction: int = 80, ef_search: int = 128) -> None:
        faiss = faiss_library()
        graph = faiss.IndexHNSWFlat(positive("dim", dim), positive("m", m), faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = positive("ef_construction", ef_construction)
        graph.hnsw.efSearch = self._ef_search = positive("ef_search", ef_search)
        self._graph = graph
        self._mapped = False

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self._graph.d)

    @property
    def spec(self) -> IndexSpec:
        """Links, and the breadths of building and searching."""
        hnsw = self._graph.hnsw
        return IndexSpec(
            kind="hnsw",
            parameters={
                "m": int(hnsw.nb_neighbors(1)),
                "ef_construction": int(hnsw.efConstruction),
                "ef_search": self._ef_search,
            },
        )

    @property
    def search_parameters(self) -> Mapping[str, int]:
        """The breadth of the search."""
        return {"ef_search": self._ef_search}

    @property
    def bytes_per_vector(self) -> float:
        """Four bytes a dimension and the links; 0 when empty."""
        return serialized_bytes(self._graph) / len(self) if len(self) else 0.0

    def __len__(self) -> int:
        return int(self._graph.ntotal)

    def _add(self, vectors: Float[np.ndarray, "n dim"]) -> None:
        if self._mapped:
            self._graph, self._mapped = owned(self._graph), False
        self._graph.add(vectors)

    def _search(
        self, queries: Float[np.ndarray, "n dim"], k: int, allowed: Bool[np.ndarray, " rows"] | None
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        fetch = fetcher(self._graph)
        if allowed is not None and self._few(allowed, k):
            return exact_search(fetch, len(self), queries, k, allowed)
        breadth = max(self._ef_search, k)
        if allowed is not None:  # as many allowed rows on the way as without the filter
            breadth = int(breadth * len(self) / np.count_nonzero(allowed))
        parameters = search_parameters(self._graph, allowed, ef_search=min(breadth, len(self)))
        with threads_for(len(queries)):
            similarities, found = self._graph.search(queries, k, params=parameters)
        short = np.flatnonzero((found < 0).any(axis=1))
        if len(short):  # the walk got stuck with fewer than k rows, though there are more
            similarities[short], found[short] = exact_search(fetch, len(self), queries[short], k, allowed)
        return similarities, found

    def _save(self, path: Path) -> None:
        self._graph.hnsw.efSearch = self._ef_search
        write_faiss(self._graph, path)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Self:
        """Map a faiss index file into memory, ours or another program's; see `Index.load`."""
        faiss = faiss_library()
        graph: Any = read_faiss(Path(path), verify=verify)[0]
        if not isinstance(graph, faiss.IndexHNSWFlat) or graph.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise MemoryCorruptError(f"{path}: expected an IndexHNSWFlat by inner product, got {type(graph).__name__}")
        index = cls.__new__(cls)
        index._graph, index._mapped = graph, True  # noqa: SLF001 - its own class
        index._ef_search = int(graph.hnsw.efSearch)  # noqa: SLF001
        return index
