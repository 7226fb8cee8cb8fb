"""What the faiss indexes share: the library, parameters of one search, rows given back, sizes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["faiss_library", "fetcher", "owned", "search_parameters", "serialized_bytes", "threads_for", "unwrapped"]


def faiss_library() -> Any:
    """The library, loaded on first use; its type stubs do not match what it accepts."""
    return importlib.import_module("faiss")


@contextmanager
def threads_for(queries: int) -> Iterator[None]:
    """One thread for a single query, the library's own number for more.

    Sharing one query out gains nothing on idle cores, and where cores are busy its threads wait for one another. The
    number is the calling thread's own: searches in other threads keep theirs.
    """
    faiss = faiss_library()
    before = faiss.omp_get_max_threads()
    if queries > 1 or before == 1:
        yield
        return
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def unwrapped(index: Any) -> list[Any]:
    """The index, and what it wraps: transforms first, the one that searches last."""
    faiss = faiss_library()
    layers = [faiss.downcast_index(index)]
    while isinstance(layers[-1], faiss.IndexPreTransform):
        layers.append(faiss.downcast_index(layers[-1].index))
    return layers


def search_parameters(index: Any, allowed: Bool[np.ndarray, " rows"] | None, *, ef_search: int, probes: int = 1) -> Any:
    """Parameters for one search of a graph, inverted lists or a plain index, behind any transforms."""
    faiss = faiss_library()
    *transforms, last = unwrapped(index)
    selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    if isinstance(last, faiss.IndexHNSW):
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=ef_search)
    elif isinstance(last, faiss.IndexIVF):
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
    elif selector is not None:
        parameters = faiss.SearchParameters(sel=selector)
    else:
        return None
    for _ in transforms:
        parameters = faiss.SearchParametersPreTransform(index_params=parameters)
    return parameters


def fetcher(index: Any) -> Callable[[Int[np.ndarray, " n"] | slice], Float[np.ndarray, "n dim"]]:
    """Rows by slice or row numbers from an index that can give them back."""

    def fetch(rows: Int[np.ndarray, " n"] | slice) -> Float[np.ndarray, "n dim"]:
        if isinstance(rows, slice):
            found = index.reconstruct_n(rows.start, rows.stop - rows.start)
        else:
            found = index.reconstruct_batch(np.ascontiguousarray(rows, dtype=np.int64))
        return np.asarray(found, dtype=np.float32)

    return fetch


def owned(index: Any) -> Any:
    """A copy of a memory-mapped index that may grow."""
    faiss = faiss_library()
    return faiss.deserialize_index(faiss.serialize_index(index))


def serialized_bytes(index: Any) -> int:
    """Bytes of the index as written, counted without keeping them."""
    faiss = faiss_library()
    total = 0

    def count(block: bytes) -> int:
        nonlocal total
        total += len(block)
        return len(block)

    writer = faiss.PyCallbackIOWriter(count, 1 << 20)
    faiss.write_index(index, writer)
    return total
