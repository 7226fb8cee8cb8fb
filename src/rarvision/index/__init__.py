"""Nearest vectors: row numbers and similarities only; what a row means is the memory's business.

`ExactIndex` is the reference that every other index is tested against; `HNSWIndex` walks a graph over full vectors;
`RescoredIndex` makes shortlists from compressed vectors and scores them again; `wrap_faiss` puts any faiss index behind
the same interface. `choose_index` says which suits a size, `tune` measures which suits the vectors.
"""

from __future__ import annotations

from pathlib import Path

from rarvision.index.base import Index
from rarvision.index.blocks import exact_search, top_k
from rarvision.index.exact import ExactIndex
from rarvision.index.files import read_seal
from rarvision.index.foreign import FaissIndex, wrap_faiss
from rarvision.index.hnsw import HNSWIndex
from rarvision.index.rescored import RescoredIndex
from rarvision.index.spec import EXACT_UP_TO, LISTS_UP_TO, IndexKind, IndexSpec, choose_index, graph_spec, make_index
from rarvision.index.tuning import Trial, Tuning, tune

__all__ = [
    "EXACT_UP_TO",
    "LISTS_UP_TO",
    "ExactIndex",
    "FaissIndex",
    "HNSWIndex",
    "Index",
    "IndexKind",
    "IndexSpec",
    "RescoredIndex",
    "Trial",
    "Tuning",
    "choose_index",
    "exact_search",
    "graph_spec",
    "load_index",
    "make_index",
    "top_k",
    "tune",
    "wrap_faiss",
]


def load_index(path: str | Path, *, verify: bool = True) -> Index:
    """Open any index that `Index.save` wrote; a faiss file of another program comes back as a `FaissIndex`.

    Raises:
        MemoryCorruptError: The file is damaged or no index; names it.
    """
    seal = read_seal(Path(path), verify=False)
    kind = "faiss" if seal is None else seal.spec.kind
    classes: dict[str, type[Index]] = {
        "exact": ExactIndex,
        "hnsw": HNSWIndex,
        "rescored": RescoredIndex,
        "faiss": FaissIndex,
    }
    return classes[kind].load(path, verify=verify)
