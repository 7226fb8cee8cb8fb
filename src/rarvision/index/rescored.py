"""Shortlists from a compressed index, scored again from a better copy of the vectors kept beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from jaxtyping import Bool, Float, Int

from rarvision.errors import MemoryCorruptError, OptionError
from rarvision.index.base import Index, positive
from rarvision.index.blocks import exact_search
from rarvision.index.engine import (
    faiss_library,
    fetcher,
    owned,
    search_parameters,
    serialized_bytes,
    threads_for,
    unwrapped,
)
from rarvision.index.files import read_faiss, write_faiss
from rarvision.index.spec import IndexSpec

__all__ = ["STORES", "RescoredIndex", "default_factory"]

STORES = {"sq8": "QT_8bit", "fp16": "QT_fp16", "fp32": None}
"""Names of the copies that are scored again, one, two and four bytes a dimension, and faiss's name of each."""

_TRAIN_FROM = 1_024  # fewer rows are kept as they are, and searched exactly
_CHUNK = 65_536  # rows added at once: transforms copy them
_UNIT = 1e-3


@final
class RescoredIndex(Index):
    """A compressed faiss index makes a shortlist; its rows are scored again from a better copy kept in the index.

    For unit vectors only. Shortlists are made by Euclidean distance, which orders unit vectors as their inner product
    does, and still does after a reduction that centres the data, where an inner product is wrong.

    What is trained (reduction, lists, codes) is trained on a seeded sample of the first rows that come once there are
    1,024; until then, rows are kept whole and searched exactly. So add the bulk at once, or first.

    Args:
        dim: Number of dimensions.
        factory: A faiss factory string without a refinement; ``IVF*`` stands for as many lists as suit the rows. None
            takes `default_factory`.
        store: The copy that is scored again: ``sq8`` (a byte a dimension; similarities within about 1e-3), ``fp16``
            (within about 1e-4), ``fp32``.
        k_factor: The shortlist holds so many times the neighbours asked for. May be set later.
        nprobe: Inverted lists looked through for a query; None for three eighths of them. May be set later.
        ef_search: Breadth of the search where the shortlist comes from a graph. May be set later.
        ef_construction: Breadth of building such a graph.
        train_on: At most so many rows are trained on.
        seed: Of the sample and of k-means.

    Raises:
        OptionError: A factory string that faiss does not know, or a value out of range.

    Source: the paper's dimension reduction before HNSW (3.2), made real, with the exact scores that it leaves out.
    """

    kind = "rescored"

    def __init__(
        self,
        dim: int,
        *,
        factory: str | None = None,
        store: str = "fp16",
        k_factor: int = 8,
        nprobe: int | None = None,
        ef_search: int = 64,
        ef_construction: int = 80,
        train_on: int = 65_536,
        seed: int = 0,
    ) -> None:
        self._dim = positive("dim", dim)
        if store not in STORES:
            raise OptionError(f"store must be one of {', '.join(STORES)}, got {store!r}")
        if seed < 0:
            raise OptionError(f"seed must be at least 0, got {seed}")
        self._factory, self._store_name, self._seed = factory, store, seed
        self._k_factor = positive("k_factor", k_factor)
        self._nprobe = None if nprobe is None else positive("nprobe", nprobe)
        self._ef_search = positive("ef_search", ef_search)
        self._ef_construction = positive("ef_construction", ef_construction)
        self._train_on = max(positive("train_on", train_on), _TRAIN_FROM)
        self._pending = np.empty((0, dim), dtype=np.float32)
        self._index: Any = None  # IndexRefine over the two below, once trained
        self._parts: tuple[Any, Any] = (None, None)
        self._selects = True
        self._mapped = False
        self._made(2 * _TRAIN_FROM)  # refuses a wrong factory string now

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._dim

    @property
    def spec(self) -> IndexSpec:
        """Everything that was given, and what a search looks through."""
        parameters: dict[str, int | str] = {} if self._factory is None else {"factory": self._factory}
        parameters |= {"store": self._store_name, **self.search_parameters}
        if "nprobe" in parameters and self._nprobe is None:
            del parameters["nprobe"]
        elif "nprobe" in parameters and self._nprobe is not None:
            parameters["nprobe"] = self._nprobe
        if "ef_search" in parameters:
            parameters["ef_construction"] = self._ef_construction
        return IndexSpec(kind="rescored", parameters={**parameters, "train_on": self._train_on, "seed": self._seed})

    @property
    def search_parameters(self) -> Mapping[str, int]:
        """Length of the shortlist; lists looked through, or breadth of the graph's search."""
        faiss = faiss_library()
        last = self._last
        found = {"k_factor": self._k_factor}
        if isinstance(last, faiss.IndexIVF):
            found["nprobe"] = self._probes(last)
        elif isinstance(last, faiss.IndexHNSW):
            found["ef_search"] = self._ef_search
        return found

    @property
    def trained(self) -> bool:
        """Whether there have been enough rows to train on."""
        return self._index is not None

    @property
    def factory(self) -> str:
        """The factory string in use."""
        return self._factory or default_factory(self._dim)

    @property
    def bytes_per_vector(self) -> float:
        """The compressed index and the copy that is scored again; 0 when empty."""
        if self._index is None:
            return 4.0 * self._dim if len(self) else 0.0
        return serialized_bytes(self._index) / len(self)

    def __len__(self) -> int:
        return len(self._pending) if self._index is None else int(self._index.ntotal)

    # Building ---------------------------------------------------------------------------------------------------

    def _add(self, vectors: Float[np.ndarray, "n dim"]) -> None:
        away = np.abs(np.linalg.norm(vectors, axis=1) - 1.0)
        if float(away.max()) > _UNIT:
            row = int(away.argmax())
            length = float(np.linalg.norm(vectors[row]))
            raise OptionError(f"vectors must have the length 1, row {row} has {length:.4f}; divide them by it")
        if self._index is None:
            self._pending = np.concatenate((self._pending, vectors)) if len(self._pending) else vectors
            if len(self._pending) < _TRAIN_FROM:
                self._pending = self._pending.copy()
                return
            self._train(self._pending)
            vectors, self._pending = self._pending, self._pending[:0].copy()
        elif self._mapped:
            self._use(owned(self._index), mapped=False)
        for start in range(0, len(vectors), _CHUNK):
            self._index.add(vectors[start : start + _CHUNK])

    def _train(self, vectors: Float[np.ndarray, "rows dim"]) -> None:
        faiss = faiss_library()
        base, store = self._made(len(vectors))
        if len(vectors) > self._train_on:
            rows = np.random.default_rng(self._seed).choice(len(vectors), self._train_on, replace=False)
            vectors = vectors[np.sort(rows)]
        try:
            base.train(vectors)
            store.train(vectors)
        except RuntimeError as error:
            raise OptionError(
                f"{self.factory!r} cannot be trained on {len(vectors)} rows: {str(error).strip().splitlines()[-1]}"
            ) from error
        self._use(faiss.IndexRefine(base, store), mapped=False)
        self._parts = (base, store)  # IndexRefine points at them

    def _made(self, rows: int) -> tuple[Any, Any]:
        """Both parts, untrained."""
        faiss = faiss_library()
        text = self.factory.replace("IVF*", f"IVF{_lists(rows)}")
        if re.search(r"Refine|RFlat|IDMap", text):
            raise OptionError(f"factory must be without {text.split(',')[-1]!r}: store says what is scored again")
        try:
            base = faiss.index_factory(self._dim, text, faiss.METRIC_L2)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise OptionError(f"faiss cannot make {text!r} for {self._dim} dimensions: {reason}") from error
        *transforms, last = unwrapped(base)
        for transform in (t.chain.at(i) for t in transforms for i in range(t.chain.size())):
            if transform.d_out > transform.d_in:
                raise OptionError(
                    f"{text!r} reduces {transform.d_in} dimensions to more, {transform.d_out}; take fewer"
                )
        for part in (last, getattr(last, "pq", None)):
            clustering = getattr(part, "cp", None)
            if clustering is not None:
                clustering.seed = 1 + self._seed
                clustering.min_points_per_centroid = 1
                clustering.max_points_per_centroid = max(self._train_on // getattr(last, "nlist", 16), 16)
        if isinstance(last, faiss.IndexIVF):
            last.cp.niter = 10
        if isinstance(last, faiss.IndexHNSW):
            last.hnsw.efConstruction = self._ef_construction
        kind = STORES[self._store_name]
        if kind is None:
            return base, faiss.IndexFlatL2(self._dim)
        return base, faiss.IndexScalarQuantizer(self._dim, getattr(faiss.ScalarQuantizer, kind), faiss.METRIC_L2)

    def _use(self, index: Any, *, mapped: bool) -> None:
        self._index, self._mapped = index, mapped
        self._parts = (None, None)

    # Searching --------------------------------------------------------------------------------------------------

    @property
    def _last(self) -> Any:
        base = self._made(2 * _TRAIN_FROM)[0] if self._index is None else self._index.base_index
        return unwrapped(base)[-1]

    def _probes(self, last: Any) -> int:
        lists = int(last.nlist)
        return min(lists, max(3 * lists // 8, 1) if self._nprobe is None else self._nprobe)

    def _search(
        self, queries: Float[np.ndarray, "n dim"], k: int, allowed: Bool[np.ndarray, " rows"] | None
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        if self._index is None:
            return exact_search(self._pending.__getitem__, len(self), queries, k, allowed)
        if allowed is not None and (self._few(allowed, k) or not self._selects):
            return self._exact(queries, k, allowed)
        try:
            similarities, found = self._shortlisted(queries, k, allowed)
        except RuntimeError:
            if allowed is None:
                raise
            self._selects = False  # this kind of index takes no filter
            return self._exact(queries, k, allowed)
        short = np.flatnonzero((found < 0).any(axis=1))
        if len(short):
            similarities[short], found[short] = self._exact(queries[short], k, allowed)
        return similarities, found

    def _shortlisted(
        self, queries: Float[np.ndarray, "n dim"], k: int, allowed: Bool[np.ndarray, " rows"] | None
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        faiss = faiss_library()
        rows, last = len(self), self._last
        scarce = 1.0 if allowed is None else rows / np.count_nonzero(allowed)
        wanted = min(self._k_factor * k, rows)
        breadth = int(max(self._ef_search, wanted) * scarce)
        probes = min(int(last.nlist), int(self._probes(last) * scarce**0.5)) if hasattr(last, "nlist") else 1
        inner = search_parameters(self._index.base_index, allowed, ef_search=min(max(breadth, k), rows), probes=probes)
        parameters = faiss.IndexRefineSearchParameters(k_factor=wanted / k)
        if inner is not None:
            parameters = faiss.IndexRefineSearchParameters(k_factor=wanted / k, base_index_params=inner)
        with threads_for(len(queries)):
            distances, found = self._index.search(queries, k, params=parameters)
        length = np.einsum("ij,ij->i", queries, queries)[:, None]
        similarities = ((length + np.float32(1.0)) - distances) / np.float32(2.0)
        return similarities, found

    def _exact(
        self, queries: Float[np.ndarray, "n dim"], k: int, allowed: Bool[np.ndarray, " rows"] | None
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
        """The same scores over all allowed rows: half of what a stored row misses to length 1 comes on top."""
        fetch = fetcher(faiss_library().downcast_index(self._index.refine_index))

        def extended(rows: Int[np.ndarray, " n"] | slice) -> Float[np.ndarray, "n m"]:
            vectors = fetch(rows)
            missing = (1.0 - np.einsum("ij,ij->i", vectors, vectors)) / 2.0
            return np.concatenate((vectors, missing[:, None].astype(np.float32)), axis=1)

        ones = np.ones((len(queries), 1), dtype=np.float32)
        return exact_search(extended, len(self), np.concatenate((queries, ones), axis=1), k, allowed)

    # Files ------------------------------------------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        if self._index is not None:
            write_faiss(self._index, path)
            return
        faiss = faiss_library()
        flat = faiss.IndexFlatIP(self._dim)
        flat.add(self._pending)
        write_faiss(flat, path)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Self:
        """Open what `save` wrote; see `Index.load`."""
        faiss = faiss_library()
        found, seal = read_faiss(Path(path), verify=verify)
        if seal is None or seal.spec.kind != cls.kind or not isinstance(found, faiss.IndexRefine | faiss.IndexFlatIP):
            raise MemoryCorruptError(f"{path}: expected an index of the kind 'rescored', got {type(found).__name__}")
        parameters: Any = seal.spec.parameters
        index = cls(seal.dim, **parameters)
        if isinstance(found, faiss.IndexRefine):
            index._use(found, mapped=True)
        else:
            index._pending = found.reconstruct_n(0, found.ntotal)
        return index


def default_factory(dim: int) -> str:
    """Reduction to 128 dimensions, turned so that all carry alike; inverted lists; 4-bit codes of each dimension.

    Example:
        >>> default_factory(512), default_factory(64)
        ('PCAR128,IVF*,PQ128x4fs', 'PCAR64,IVF*,PQ64x4fs')
    """
    reduced = min(dim, 128)
    return f"PCAR{reduced},IVF*,PQ{reduced}x4fs"


def _lists(rows: int) -> int:
    """About twice the root of the rows, a power of two: finer lists cost more to look up than they save in reading."""
    return max(int(2 ** np.round(np.log2(2 * rows**0.5))), 1)
