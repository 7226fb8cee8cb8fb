"""The bare index beside the authors': queries/s at equal recall, bytes a vector, time to build, in one run.

    python benchmarks/index.py                                   # 20,000 vectors, a few minutes
    python benchmarks/index.py --rows 100000 1000000 --json index.json
    python benchmarks/index.py --crossover                       # from which size an approximate index is faster
    python benchmarks/index.py --fit FOLDER                      # the vectors' numbers again, from faiss memories

Vectors are drawn by `clip_like.py`; queries are other images of the same classes. Every index is brought to each
recall by its search parameters; then all are timed in turn, several rounds over, so that a busy machine slows all
alike. Given are medians. On one thread the time is the processor's, which other programs do not stretch, unless
`--wall` is given; on more it is the clock's. Threads are faiss's; matrix products stay on one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy and faiss are imported

import faiss
import numpy as np
from clip_like import RAR_MEMORY, fit
from jaxtyping import Float, Int

from rarvision.index import ExactIndex, HNSWIndex, Index, IndexSpec, graph_spec, load_index
from rarvision.index.tuning import efforts, recall_at

AUTHORS = IndexSpec(kind="hnsw", parameters={"m": 64, "ef_construction": 40})
"""`IndexHNSWFlat(512, 64)` by inner product, efConstruction 40."""

CANDIDATES = {
    "authors": AUTHORS,
    "lists": IndexSpec(kind="rescored", parameters={"store": "sq8"}),
    "lists-fp16": IndexSpec(kind="rescored", parameters={"store": "fp16"}),
    "graph": IndexSpec(
        kind="rescored", parameters={"factory": "PCA128,HNSW32_SQ8", "store": "sq8", "ef_construction": 40}
    ),
    "graph-fp16": graph_spec(512),
    "exact": IndexSpec(kind="exact"),
}
TARGETS = (0.95, 0.99, 0.999)
BREADTHS = (16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024)
K = 5
BATCH = 256
SINGLE = 32  # single queries a timing


@dataclass
class Built:
    """An index, and what was measured on it."""

    name: str
    index: Index
    build_s: float
    build_cpu_s: float
    size: float = 0.0
    settings: list[tuple[dict[str, int], float, float]] = field(default_factory=list)  # setting, recall, seconds


def build(name: str, vectors: Float[np.ndarray, "rows dim"], cache: Path | None) -> Built:
    """Build, or take from the cache with the times of when it was built."""
    dim = vectors.shape[1]
    if name == "exact":
        return Built(name, ExactIndex(dim, vectors=vectors), 0.0, 0.0)
    path = cache / f"{name}-{len(vectors)}.index" if cache else None
    notes = path.with_suffix(".json") if path else None
    if path and notes and notes.is_file():
        times = json.loads(notes.read_text())
        return Built(name, load_index(path, verify=False), times["build_s"], times["build_cpu_s"])
    index = CANDIDATES[name].make(dim)
    start, used = time.perf_counter(), time.process_time()
    index.add(vectors)
    built = Built(name, index, time.perf_counter() - start, time.process_time() - used)
    if path and notes:
        index.save(path)
        notes.write_text(json.dumps({"build_s": built.build_s, "build_cpu_s": built.build_cpu_s}))
    return built


def settings(index: Index) -> list[dict[str, int]]:
    """Steps as fine for one kind of index as for the other, so that none is timed at a recall that nobody asked for."""
    if isinstance(index, HNSWIndex):
        return [{"ef_search": ef} for ef in BREADTHS]
    known = index.search_parameters
    if "ef_search" in known:
        return [{"ef_search": ef, "k_factor": length} for ef in BREADTHS for length in (6, 8, 12, 16)]
    steps = [{key: value for key, value in step.items() if key != "k_factor"} for step in efforts(index)]
    distinct = [dict(pairs) for pairs in dict.fromkeys(tuple(step.items()) for step in steps)]
    if "k_factor" not in known:
        return distinct
    return [{**step, "k_factor": length} for step in distinct for length in (4, 8, 16, 32)]


def climb(built: Built, queries: Float[np.ndarray, "n dim"], truth: Int[np.ndarray, "n k"]) -> None:
    """Recall and time of each setting, until the highest target is passed for certain."""
    built.size = built.index.bytes_per_vector
    passed = 0
    for setting in settings(built.index):
        built.index.set_search(**setting)
        start = time.process_time()
        parts = [built.index.search(queries[s : s + BATCH], K)[1] for s in range(0, len(queries), BATCH)]
        seconds = time.process_time() - start
        recall = recall_at(np.concatenate(parts), truth)
        built.settings.append((setting, recall, seconds))
        passed += recall >= TARGETS[-1]
        if passed >= 3:
            return


def timed(built: Built, queries: Float[np.ndarray, "n dim"], *, single: bool, clock: str) -> float:
    """Seconds a query."""
    now = getattr(time, clock)
    blocks = [queries[i : i + 1] for i in range(SINGLE)] if single else [queries[:BATCH], queries[BATCH : 2 * BATCH]]
    start = now()
    for block in blocks:
        built.index.search(block, K)
    return float(now() - start) / sum(map(len, blocks))


def run(rows: int, options: argparse.Namespace, cache: Path | None) -> list[dict[str, object]]:
    """All indexes at one size."""
    vectors, _ = RAR_MEMORY.draw(rows, classes=options.classes, seed=options.seed)
    queries, _ = RAR_MEMORY.draw(options.queries, classes=options.classes, seed=options.seed, stream=1)
    truth = ExactIndex(vectors.shape[1], vectors=vectors).search(queries, K)[1]
    built = []
    for name in options.index:
        faiss.omp_set_num_threads(max(options.threads))
        built.append(build(name, vectors, cache))
        say(f"{name}: built in {built[-1].build_s:.0f} s, {built[-1].build_cpu_s:.0f} s of processor")
        faiss.omp_set_num_threads(1)
        climb(built[-1], queries, truth)
        for setting, recall, seconds in built[-1].settings:
            say(f"  {name:12s} {setting!s:36s} recall {recall:.4f}  {len(queries) / seconds:8.0f} q/cpu-s")
    found: list[dict[str, object]] = []
    for target in TARGETS:
        ready = []
        for one in built:
            reaching = [s for s in one.settings if s[1] >= target]
            if reaching:
                setting, recall, _ = min(reaching, key=lambda s: s[2])
                ready.append((one, setting, recall))
            else:
                best = max(recall for _, recall, _ in one.settings)
                found.append({"rows": rows, "target": target, "index": one.name, "reached": best})
        for threads in options.threads:
            found += compare(ready, queries, threads, options, {"rows": rows, "target": target})
    return found


def compare(
    ready: list[tuple[Built, dict[str, int], float]],
    queries: Float[np.ndarray, "n dim"],
    threads: int,
    options: argparse.Namespace,
    about: dict[str, object],
) -> list[dict[str, object]]:
    """Speeds of indexes that reach the same recall, timed in turn."""
    faiss.omp_set_num_threads(threads)
    clock = "process_time" if threads == 1 and not options.wall else "perf_counter"
    times: dict[tuple[str, bool], list[float]] = {}
    for _ in range(options.rounds):
        for one, setting, _ in ready:
            one.index.set_search(**setting)
            for single in (False, True):
                seconds = timed(one, queries, single=single, clock=clock)
                times.setdefault((one.name, single), []).append(seconds)
    found = []
    for one, setting, recall in ready:
        one.index.set_search(**setting)
        batch_s, single_s = (statistics.median(times[one.name, single]) for single in (False, True))
        found.append(
            {
                **about,
                "index": one.name,
                "spec": str(one.index.spec),
                "setting": setting,
                "recall": recall,
                "threads": threads,
                "clock": clock,
                "queries_per_s": 1 / batch_s,
                "queries_per_s_single": 1 / single_s,
                "bytes_per_vector": one.size,
                "build_s": one.build_s,
                "build_cpu_s": one.build_cpu_s,
            }
        )
    return found


def markdown(found: list[dict[str, object]]) -> str:
    """One table; ratios are to the authors' index at the same recall, rows and threads."""
    head = ["vectors", "recall@5", "threads", "index", "found", "queries/s, 256", "x", "queries/s, 1", "x", "bytes"]
    head += ["build, processor s", "front"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in found:
        start = f"| {row['rows']:,} | {row['target']} |"
        if "reached" in row:
            lines.append(f"{start} | {row['index']} | at most {row['reached']:.4f} | | | | | | | |")
            continue
        same = [r for r in found if all(r.get(k) == row[k] for k in ("rows", "target", "threads"))]
        theirs = next((r for r in same if r["index"] == "authors"), None)
        many, one = (f"{row[k] / theirs[k]:.2f}" if theirs else "" for k in ("queries_per_s", "queries_per_s_single"))
        beaten = any(
            r["queries_per_s"] >= row["queries_per_s"]
            and r["bytes_per_vector"] <= row["bytes_per_vector"]
            and r["index"] != row["index"]
            for r in same
        )
        lines.append(
            f"{start} {row['threads']} | {row['index']} | {row['recall']:.4f} | {row['queries_per_s']:,.0f} | {many} "
            f"| {row['queries_per_s_single']:,.0f} | {one} | {row['bytes_per_vector']:,.0f} "
            f"| {row['build_cpu_s']:,.0f} | {'' if beaten else '*'} |"
        )
    return "\n".join(lines)


def crossover(options: argparse.Namespace) -> list[dict[str, object]]:
    """Exact beside approximate at recall 0.99, by size, batches and single queries, on one thread."""
    faiss.omp_set_num_threads(1)
    found: list[dict[str, object]] = []
    names = [name for name in options.index if name not in ("exact", "authors")]
    for rows in options.sizes:
        vectors, _ = RAR_MEMORY.draw(rows, classes=options.classes, seed=options.seed)
        queries, _ = RAR_MEMORY.draw(2 * BATCH, classes=options.classes, seed=options.seed, stream=1)
        exact = build("exact", vectors, None)
        truth = exact.index.search(queries, K)[1]
        for name in names:
            other = build(name, vectors, None)
            climb(other, queries, truth)
            reaching = [s for s in other.settings if s[1] >= 0.99]
            if not reaching:
                found.append({"rows": rows, "index": name, "reached": max(s[1] for s in other.settings)})
                continue
            setting, recall, _ = min(reaching, key=lambda s: s[2])
            other.index.set_search(**setting)
            times: dict[tuple[str, bool], list[float]] = {}
            for _ in range(options.rounds):
                for one in (exact, other):
                    for single in (False, True):
                        seconds = timed(one, queries, single=single, clock="process_time")
                        times.setdefault((one.name, single), []).append(seconds)
            per_s = {key: 1 / statistics.median(value) for key, value in times.items()}
            found.append(
                {
                    "rows": rows,
                    "index": name,
                    "recall": recall,
                    "setting": setting,
                    "exact": per_s["exact", False],
                    "approximate": per_s[name, False],
                    "exact_single": per_s["exact", True],
                    "approximate_single": per_s[name, True],
                    "build_cpu_s": other.build_cpu_s,
                    "bytes_per_vector": other.size,
                }
            )
            say(str(found[-1]))
    return found


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000])
    parser.add_argument("--classes", type=int, default=5_000)
    parser.add_argument("--queries", type=int, default=1_024, help="at least 512")
    parser.add_argument("--index", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wall", action="store_true", help="the clock's time on one thread too")
    parser.add_argument("--cache", type=Path, help="keep built indexes here (default: nowhere)")
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    parser.add_argument("--crossover", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 5_000, 10_000, 20_000, 50_000])
    parser.add_argument("--fit", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.queries < 2 * BATCH:
        parser.error(f"--queries must be at least {2 * BATCH}")
    if options.fit:
        say(str(fit(options.fit)))
        return
    if options.cache:
        options.cache.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, object]] = []
    if options.crossover:
        found = crossover(options)
        say(json.dumps(found, indent=1))
    else:
        for rows in options.rows:
            found += run(rows, options, options.cache)
            say(markdown([row for row in found if row["rows"] == rows]))
            if options.json:  # each size as it is done
                options.json.write_text(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
