"""What every index promises: checks, padding, the order of ties, and what a filter means."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from rarvision.errors import OptionError

if TYPE_CHECKING:
    from rarvision.index.spec import IndexSpec

__all__ = ["EXACT_BELOW", "Index", "positive"]

EXACT_BELOW = 2_048  # a filter that leaves so few rows is searched exactly: a graph walk would miss most of them
_EXACT_SHARE = 0.02  # the same for a filter that leaves so small a share


class Index(abc.ABC):
    """Rows of float32 vectors, searched by inner product (the cosine, for unit vectors).

    Rows are numbered from 0 in the order in which they were added, and stay: there is no removing, search with a mask
    instead. Implementers write `_add`, `_search`, `_save`, `spec` and `bytes_per_vector`; checks, padding and the
    order of ties live here.

    A filter is exact in its semantics on every index: only allowed rows come back, and k of them wherever k are
    allowed. Where few rows are allowed (2,048, or 2 %), or an approximate search comes back short, the allowed rows are
    searched exactly. An index's recall under a filter is the share of the k nearest *allowed* rows that it finds; it
    is 1 in those two cases, and close to the recall without a filter otherwise.
    """

    kind: str = "index"

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of dimensions."""

    @property
    @abc.abstractmethod
    def spec(self) -> IndexSpec:
        """What `IndexSpec.make` needs to make another one like it, search-time parameters included."""

    @property
    @abc.abstractmethod
    def bytes_per_vector(self) -> float:
        """Bytes that a row takes, in memory or mapped into it, with all that belongs to it; 0 when empty."""

    @property
    def search_parameters(self) -> Mapping[str, int]:
        """The parameters that may change after building, and their values."""
        return {}

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
    def _save(self, path: Path) -> None:
        """Write what `load` needs, without the seal."""

    @classmethod
    @abc.abstractmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Self:
        """Open what `save` wrote, memory-mapped where the format allows.

        Args:
            path: The file.
            verify: Read all of it and compare its checksum. Without this, opening takes milliseconds, and a flipped
                bit may go unseen.

        Raises:
            MemoryCorruptError: The file is damaged or holds something else; names it.
        """

    def save(self, path: str | Path) -> None:
        """Write the index to one file, sealed with a checksum."""
        from rarvision.index.files import seal

        self._save(Path(path))
        seal(Path(path), self.spec, rows=len(self), dim=self.dim)

    def set_search(self, **parameters: int) -> None:
        """Change search-time parameters, those of `search_parameters`.

        Raises:
            OptionError: Another name, or a value below 1.
        """
        known = self.search_parameters
        if unknown := sorted(set(parameters) - set(known)):
            raise OptionError(
                f"the index {self.kind!r} has no search parameter {', '.join(unknown)}; "
                f"it has: {', '.join(sorted(known)) or 'none'}"
            )
        for name, value in parameters.items():
            setattr(self, f"_{name}", positive(name, value))

    def describe(self) -> str:
        """One line for people: kind, parameters, rows, size."""
        return f"{self.spec}: {len(self):,} rows of {self.dim} dimensions, {self.bytes_per_vector:,.0f} bytes each"

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

    @staticmethod
    def _few(allowed: Bool[np.ndarray, " rows"], k: int) -> bool:
        """Whether so few rows are allowed that they are searched exactly."""
        count = int(np.count_nonzero(allowed))
        return count <= max(EXACT_BELOW, 2 * k, int(_EXACT_SHARE * len(allowed)))


def positive(name: str, value: int) -> int:
    """The value, which must be at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise OptionError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)
