"""Indexes that other programs made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, final

import numpy as np
from jaxtyping import Bool, Float, Int

from rarvision.errors import OptionError
from rarvision.index.base import Index
from rarvision.index.blocks import exact_search
from rarvision.index.engine import faiss_library, serialized_bytes
from rarvision.index.files import read_faiss, write_faiss
from rarvision.index.spec import IndexSpec

__all__ = ["FaissIndex", "wrap_faiss"]


@final
class FaissIndex(Index):
    """Any faiss index over unit vectors, by inner product or by squared Euclidean distance.

    It searches as its maker set it up, and may find fewer than k rows; under a filter it is searched exactly, over the
    vectors that it keeps.
    """

    kind = "faiss"

    def __init__(self, index: Any) -> None:
        faiss = faiss_library()
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
    def spec(self) -> IndexSpec:
        """``faiss``: it can be read again, not made."""
        return IndexSpec(kind="faiss")

    @property
    def bytes_per_vector(self) -> float:
        """Of the whole index; 0 when empty."""
        return serialized_bytes(self._index) / len(self) if len(self) else 0.0

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
            return exact_search(self.vectors.__getitem__, len(self), queries, k, allowed)
        values, found = self._index.search(queries, k)
        return (1.0 - values / 2.0 if self._distances else values), found

    def _save(self, path: Path) -> None:
        write_faiss(self._index, path)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Self:
        """Map any faiss index file into memory; see `Index.load`."""
        return cls(read_faiss(Path(path), verify=verify)[0])


def wrap_faiss(index: Any) -> FaissIndex:
    """Put a faiss index over unit vectors behind `Index`; it is not copied."""
    return FaissIndex(index)
