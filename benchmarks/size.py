"""What an index costs as it grows: ``python benchmarks/size.py --plot size.svg`` for 1,000 to 1,000,000 vectors.

For each size the index that `choose_index` takes, with the search parameters that it has by itself: time to build,
queries/s in batches and one at a time, recall@5, bytes a vector, peak of resident memory; beside it the exact index of
the same vectors (up to 1,000,000, where they fit comfortably). ``--rows 10000000`` is possible, and takes about half an
hour: vectors are drawn and added a part at a time and never held together. Each size is measured in a process of its
own. Medians; all threads that faiss takes, matrix products on one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy is imported

import numpy as np
from clip_like import RAR_MEMORY

from rarvision.index import ExactIndex, IndexSpec, choose_index
from rarvision.index.blocks import exact_search
from rarvision.index.tuning import recall_at

DIM, BATCH, SINGLE, K = 512, 256, 64, 5
EXACT_UP_TO = 1_000_000


def queries_per_s(search: Callable[[np.ndarray], object], queries: np.ndarray, *, rounds: int) -> tuple[float, float]:
    """In batches, and one at a time."""
    search(queries[:1])
    batch, single = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        search(queries[:BATCH])
        batch.append((time.perf_counter() - start) / BATCH)
        start = time.perf_counter()
        for row in range(SINGLE):
            search(queries[row : row + 1])
        single.append((time.perf_counter() - start) / SINGLE)
    return 1 / statistics.median(batch), 1 / statistics.median(single)


def measure(rows: int, *, store: str | None, rounds: int) -> dict[str, Any]:
    """All figures of one size."""
    spec, _ = choose_index(rows, DIM)
    if store is not None and spec.kind == "rescored":
        spec = IndexSpec(kind="rescored", parameters={**spec.parameters, "store": store})
    queries, _ = RAR_MEMORY.draw(2 * BATCH, dim=DIM, stream=1)
    index = spec.make(DIM)
    build_s = build_cpu_s = 0.0
    best = (np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))
    exact = ExactIndex(DIM) if rows <= EXACT_UP_TO else None
    waiting: list[np.ndarray] = []
    done = 0
    for part, _labels in RAR_MEMORY.parts(rows, dim=DIM):
        scores, found = exact_search(part.__getitem__, len(part), queries, min(K, len(part)))
        best = merged(best, (scores, found + done))
        done += len(part)
        if exact is not None:
            exact.add(part)
        waiting.append(part)
        if sum(map(len, waiting)) >= 1_000_000 or done == rows:  # the first addition is what is trained on
            block = np.concatenate(waiting)
            waiting = []
            start, used = time.perf_counter(), time.process_time()
            index.add(block)
            build_s += time.perf_counter() - start
            build_cpu_s += time.process_time() - used
            del block
    found = index.search(queries, K)[1]
    batch, single = queries_per_s(lambda some: index.search(some, K), queries, rounds=rounds)
    result = {
        "rows": rows,
        "index": index.describe().split(":")[0] if index.kind == "exact" else index.factory,
        "recall": recall_at(found, best[1]),
        "build_s": build_s,
        "build_cpu_s": build_cpu_s,
        "batch": batch,
        "single": single,
        "bytes": index.bytes_per_vector,
    }
    result["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # building and searching
    if exact is not None:
        few = max(1, rounds // 3) if rows > 200_000 else rounds
        result["exact_batch"], result["exact_single"] = queries_per_s(
            lambda some: exact.search(some, K), queries, rounds=few
        )
    return result


def merged(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The best of both."""
    scores, rows = (np.concatenate(pair, axis=1) for pair in zip(first, second, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown; ratios are to the exact index of the same vectors."""
    head = ["vectors", "index", "recall@5", "queries/s, by 256", "x exact", "queries/s, by 1", "x exact"]
    head += ["build, s", "bytes a vector", "peak resident, MB"]
    lines = [f"| {' | '.join(head)} |", "|---:|---|" + "---:|" * (len(head) - 2)]
    for r in results:
        ratios = [f"{r[k] / r[f'exact_{k}']:.1f}" if f"exact_{k}" in r else "" for k in ("batch", "single")]
        lines.append(
            f"| {r['rows']:,} | {r['index']} | {r['recall']:.4f} | {r['batch']:,.0f} | {ratios[0]} "
            f"| {r['single']:,.0f} | {ratios[1]} | {r['build_s']:,.1f} | {r['bytes']:,.0f} | {r['peak_rss_mb']:,.0f} |"
        )
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Queries/s, build time and bytes against the number of vectors."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "rarvision"
    from matplotlib import pyplot as plt

    rows = [r["rows"] for r in results]
    figure, (speed, build, size) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for key, name, style in (("batch", "in batches of 256", "o-"), ("single", "one at a time", "s-")):
        (line,) = speed.plot(rows, [r[key] for r in results], style, label=name)
        known = [r for r in results if f"exact_{key}" in r]
        speed.plot(
            [r["rows"] for r in known],
            [r[f"exact_{key}"] for r in known],
            style[0] + ":",
            color=line.get_color(),
            alpha=0.6,
            label=f"exact, {name}",
        )
    speed.set(title="Queries a second", yscale="log")
    speed.legend(fontsize=8)
    build.plot(rows, [max(r["build_s"], 1e-3) for r in results], "o-", color="tab:green")
    build.set(title="Seconds to build", yscale="log")
    size.plot(rows, [r["rows"] * r["bytes"] / 2**20 for r in results], "o-", color="tab:red", label="this index")
    size.plot(rows, [r["rows"] * DIM * 4 / 2**20 for r in results], "o:", color="tab:gray", label="float32 vectors")
    size.set(title="MiB of the index", yscale="log")
    size.legend(fontsize=8)
    for axes in (speed, build, size):
        axes.set(xscale="log", xlabel="vectors")
        axes.grid(which="major", alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--store", choices=("sq8", "fp16", "fp32"), help="of the approximate index (default: its own)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures; sizes that it has are not redone")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="an .svg or .png; needs matplotlib")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, store=options.store, rounds=options.rounds)))
        return
    known = json.loads(options.json.read_text()) if options.json and options.json.is_file() else []
    for rows in options.rows:
        if any(r["rows"] == rows for r in known):
            continue
        command = [sys.executable, __file__, "--one", str(rows), "--rounds", str(options.rounds)]
        command += ["--store", options.store] if options.store else []
        ended = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this very file
        known.append(json.loads(ended.stdout))
        print(ended.stdout, end="", flush=True)
        if options.json:  # each size as it is done
            options.json.write_text(json.dumps(known, indent=1))
    results = sorted((r for r in known if r["rows"] in options.rows), key=lambda r: r["rows"])
    print("\n" + table(results))
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
