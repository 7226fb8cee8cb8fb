"""The index that compares every row with every query."""

from __future__ import annotations

from pathlib import Path
from typing import Self, final

import numpy as np
from jaxtyping import Bool, Float, Int

from rarvision.errors import MemoryCorruptError, OptionError
from rarvision.index.base import Index, positive
from rarvision.index.blocks import exact_search
from rarvision.index.files import read_seal
from rarvision.index.spec import IndexSpec

__all__ = ["ExactIndex"]


@final
class ExactIndex(Index):
    """Every row is compared with every query, by blocked float32 matrix products. The reference for all others."""

    kind = "exact"

    def __init__(self, dim: int, *, vectors: Float[np.ndarray, "rows dim"] | None = None) -> None:
        """Start empty, or over an existing float32 array, memory-mapped or not, which is not copied."""
        self._dim = positive("dim", dim)
        if vectors is not None and (vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype != np.float32):
            raise OptionError(f"vectors must be float32 of shape (n, {dim}), got {vectors.dtype} {vectors.shape}")
        self._vectors = np.empty((0, dim), dtype=np.float32) if vectors is None else vectors

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._dim

    @property
    def spec(self) -> IndexSpec:
        """``exact``, without parameters."""
        return IndexSpec(kind="exact")

    @property
    def bytes_per_vector(self) -> float:
        """Four bytes a dimension; 0 when empty."""
        return 4.0 * self._dim if len(self) else 0.0

    def __len__(self) -> int:
        return len(self._vectors)

    def _add(self, vectors: Float[np.ndarray, "n dim"]) -> None:
        self._vectors = np.concatenate((self._vectors, vectors))

    def _search(
        self, queries: Float[np.ndarray, "n dim"], k: int, allowed: Bool[np.ndarray, " rows"] | None
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        return exact_search(self._vectors.__getitem__, len(self), queries, k, allowed)

    def _save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, self._vectors, allow_pickle=False)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Self:
        """Map what `save` wrote, or any ``.npy`` of float32 rows, into memory; see `Index.load`."""
        read_seal(Path(path), verify=verify)
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
            return cls(int(vectors.shape[1]), vectors=vectors)
        except (ValueError, EOFError, IndexError, OptionError) as error:
            raise MemoryCorruptError(f"{path} is not an exact index (.npy, float32, 2 dimensions): {error}") from error
