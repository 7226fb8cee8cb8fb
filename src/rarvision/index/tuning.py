"""Which index and which search parameters suit some vectors: measured on the vectors themselves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rarvision.errors import OptionError
from rarvision.index.base import Index, positive
from rarvision.index.blocks import exact_search
from rarvision.index.engine import faiss_library
from rarvision.index.spec import IndexSpec, graph_spec

__all__ = ["Trial", "Tuning", "candidates_for", "efforts", "recall_at", "tune"]

_PROBED = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
_BREADTHS = (16, 32, 64, 128, 256, 512, 1024)
_SHORTLISTS = (8, 16)
_GRAPH_UP_TO = 200_000  # beyond, a graph over full vectors is built too slowly to be tried
_ENOUGH = 0.9995  # more effort than what reaches this finds nothing that matters


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One index with one setting of its search, measured.

    Attributes:
        spec: Makes the index again, search parameters included.
        recall: Share of the true k nearest that were found, mean over the queries.
        queries_per_s: In batches of `Tuning.batch`.
        queries_per_s_single: One query at a time.
        bytes_per_vector: Of the index in memory, its copy for scoring again included.
        build_s: Seconds of training and adding.
    """

    spec: IndexSpec
    recall: float
    queries_per_s: float
    queries_per_s_single: float
    bytes_per_vector: float
    build_s: float


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What `tune` measured and chose.

    Attributes:
        trials: In the order of measuring; the first is the exact index.
        chosen: The fastest in batches that reaches the recall.
        reason: Why, in one line.
        k: Neighbours.
        batch: Queries searched at once.
        queries: How many were asked.
        rows: How many vectors were searched.
    """

    trials: tuple[Trial, ...]
    chosen: Trial
    reason: str
    k: int
    batch: int
    queries: int
    rows: int


def candidates_for(rows: int, dim: int) -> tuple[IndexSpec, ...]:
    """The approximate indexes worth trying for so many rows; none up to 1,000."""
    if rows <= 1_000:
        return ()
    lists = IndexSpec(kind="rescored", parameters={"store": "sq8"})
    exacter = IndexSpec(kind="rescored", parameters={"store": "fp16"})
    full = (IndexSpec(kind="hnsw"),) if rows <= _GRAPH_UP_TO else ()
    return (lists, exacter, graph_spec(dim), *full)


def efforts(index: Index) -> list[dict[str, int]]:
    """Settings of an index's search parameters, from little to much."""
    known = index.search_parameters
    if not known:
        return [{}]
    shortlists = _SHORTLISTS if "k_factor" in known else (0,)
    main = "nprobe" if "nprobe" in known else "ef_search" if "ef_search" in known else ""
    if not main:
        return [{"k_factor": length} for length in (4, 8, 16, 32, 64)]
    if main == "ef_search":
        steps: tuple[int, ...] = _BREADTHS
    else:
        index.set_search(nprobe=2**30)
        lists = index.search_parameters["nprobe"]
        steps = tuple(sorted({max(1, round(share * lists)) for share in _PROBED}))
    return [{main: step, **({"k_factor": length} if length else {})} for step in steps for length in shortlists]


def recall_at(found: Int[np.ndarray, "n k"], truth: Int[np.ndarray, "n k"]) -> float:
    """Share of the true rows that were found, mean over the queries.

    Example:
        >>> recall_at(np.array([[3, 1]]), np.array([[1, 2]]))
        0.5
    """
    return float((found[:, :, None] == truth[:, None, :]).any(axis=1).mean())


def tune(
    vectors: Float[np.ndarray, "rows dim"],
    queries: Float[np.ndarray, "n dim"] | None = None,
    *,
    recall: float = 0.99,
    k: int = 5,
    candidates: Sequence[IndexSpec] | None = None,
    sample: int = 1_000,
    batch: int = 256,
    threads: int | None = None,
    repeats: int = 3,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Tuning:
    """Build the candidates, search with growing effort, and choose the fastest that reaches the recall.

    Args:
        vectors: Unit length, float32; memory-mapped or not.
        queries: Unit length, float32. None takes a sample of the vectors; a vector is then not its own neighbour.
        recall: What the choice must reach, 0 to 1; higher finds more.
        k: Neighbours asked for.
        candidates: Approximate indexes to try; None for `candidates_for`. The exact one is always measured.
        sample: How many queries are taken from the vectors.
        batch: Queries searched at once.
        threads: Of faiss while measuring; None leaves them. (NumPy's follow the environment variables of its BLAS.)
        repeats: Each time is the median of so many.
        seed: Of the sample.
        progress: Told a line before each step that takes long.

    Returns:
        The table and the choice; the exact index where nothing else is faster at that recall.

    Raises:
        OptionError: No vectors, a recall outside 0 to 1, or a number below 1.
    """
    if not 0 < recall <= 1:
        raise OptionError(f"recall must be above 0 and at most 1, got {recall}")
    for name, value in (("k", k), ("sample", sample), ("batch", batch), ("repeats", repeats)):
        positive(name, value)
    if len(vectors) < 2 or (queries is not None and not len(queries)):
        raise OptionError("tuning needs at least 2 vectors and a query; add to the memory first")
    tell = progress or (lambda _: None)
    rows: Int[np.ndarray, " n"] | None = None
    if queries is None:
        chosen = np.random.default_rng(seed).choice(len(vectors), min(sample, len(vectors)), replace=False)
        rows = np.sort(chosen)
        queries = np.ascontiguousarray(vectors[rows])
    k = min(k, len(vectors) - (rows is not None))
    measure = _Measure(queries, rows, k=k, batch=batch, repeats=repeats)
    specs = candidates_for(len(vectors), vectors.shape[1]) if candidates is None else tuple(candidates)
    with _threads(threads):
        tell(f"exact search of {len(queries):,} queries in {len(vectors):,} vectors")
        exact = IndexSpec(kind="exact")
        measure.truth = measure.found(_exact(vectors))
        trials = [measure.trial(_exact(vectors), exact, 4.0 * vectors.shape[1], build_s=0.0)]
        for spec in specs:
            tell(f"building {spec}")
            start = time.perf_counter()
            index = spec.make(vectors.shape[1])
            index.add(vectors)
            build_s = time.perf_counter() - start
            size = index.bytes_per_vector
            for setting in efforts(index):
                index.set_search(**setting)
                tell(f"searching {index.spec}")
                trials.append(measure.trial(_search(index), index.spec, size, build_s=build_s))
                if trials[-1].recall >= max(recall, _ENOUGH):
                    break
    reaching = [trial for trial in trials if trial.recall >= recall]
    best = max(reaching, key=lambda trial: trial.queries_per_s)
    reason = (
        f"{best.spec}: recall@{k} {best.recall:.4f} >= {recall:g}, {best.queries_per_s:,.0f} queries/s; "
        f"exact {trials[0].queries_per_s:,.0f}"
    )
    return Tuning(
        trials=tuple(trials),
        chosen=best,
        reason=reason,
        k=k,
        batch=batch,
        queries=len(queries),
        rows=len(vectors),
    )


_Search = Callable[[Float[np.ndarray, "n dim"], int], Int[np.ndarray, "n k"]]


def _search(index: Index) -> _Search:
    return lambda queries, k: index.search(queries, k)[1]


def _exact(vectors: Float[np.ndarray, "rows dim"]) -> _Search:
    return lambda queries, k: exact_search(vectors.__getitem__, len(vectors), queries, k)[1]


class _Measure:
    """Asks the same queries of any index."""

    def __init__(
        self,
        queries: Float[np.ndarray, "n dim"],
        rows: Int[np.ndarray, " n"] | None,
        *,
        k: int,
        batch: int,
        repeats: int,
    ) -> None:
        self._queries, self._rows = queries, rows
        self._k, self._batch, self._repeats = k, batch, repeats
        self.truth: Int[np.ndarray, "n k"] = np.empty((0, k), dtype=np.int64)

    def found(self, search: _Search) -> Int[np.ndarray, "n k"]:
        """The k nearest rows of each query, itself left out."""
        one_more = self._rows is not None
        starts = range(0, len(self._queries), self._batch)
        found = np.concatenate([search(self._queries[s : s + self._batch], self._k + one_more) for s in starts])
        if self._rows is None:
            return found
        other = found != self._rows[:, None]
        other[other.all(axis=1), -1] = False  # it was not among them: leave the last one out
        kept: Int[np.ndarray, "n k"] = found[other].reshape(-1, self._k)
        return kept

    def trial(self, search: _Search, spec: IndexSpec, size: float, *, build_s: float) -> Trial:
        """Recall, and the median speeds."""
        recall = recall_at(self.found(search), self.truth)
        many = self._queries[: self._batch]
        ones = [self._queries[i : i + 1] for i in range(min(20, len(self._queries)))]
        batched, single = [], []
        for _ in range(self._repeats):
            start = time.perf_counter()
            search(many, self._k)
            batched.append(time.perf_counter() - start)
            start = time.perf_counter()
            for one in ones:
                search(one, self._k)
            single.append(time.perf_counter() - start)
        return Trial(
            spec=spec,
            recall=recall,
            queries_per_s=len(many) / statistics.median(batched),
            queries_per_s_single=len(ones) / statistics.median(single),
            bytes_per_vector=size,
            build_s=build_s,
        )


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    if threads is None:
        yield
        return
    faiss = faiss_library()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(positive("threads", threads))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
