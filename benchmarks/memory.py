"""What a memory costs over its bare index, and how it grows: ``python benchmarks/memory.py --rows 1000 1000000``.

Vectors are like CLIP's (`clip_like`), of 5,000 classes. Measured for each size, in one run: adding everything at once;
opening in a fresh process until the first search has answered, after a clean close and after a kill; searching in
batches of 256 and one query at a time, the memory against the very index that it holds; adding 1,000 more; removing;
bytes on disk, and the peak of resident memory. Times are medians. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from clip_like import RAR_MEMORY

from rarvision.memory import LocalMemory, NewEntry
from rarvision.memory.view import View

DIM, CLASSES, BATCH, K = 512, 5_000, 256, 5

OPENING = """
import json, os, sys, time
import numpy as np
query = np.load(sys.argv[2])
from rarvision.memory import LocalMemory
import rarvision.index, faiss
start = time.perf_counter()
memory = LocalMemory.open(sys.argv[1])
memory.nearest(query, 5)
seconds = time.perf_counter() - start
with open("/proc/self/status") as file:  # ru_maxrss would be the parent's, which this process was forked from
    peak = next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "repairs": len(memory.repairs), "peak_rss_mb": peak}))
"""

WRITING = """
import sys
import numpy as np
from rarvision.memory import LocalMemory, NewEntry
memory = LocalMemory.open(sys.argv[1])
vectors = np.eye(512, dtype=np.float32)
print("ready", flush=True)
for i in range(10**6):
    entry = NewEntry(category="killed", modality="image", source=f"k{i}", content=b"k%d" % i)
    memory.append([entry], vectors[i % 512][None])
"""


def timed(work: Callable[[], object], *, least: int = 5, seconds: float = 2.0) -> list[float]:
    """Seconds of each call, at least so many calls and about so long."""
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def opened(folder: Path, query: Path) -> tuple[float, float]:
    """Seconds from opening to the first answer, and that process's peak of resident memory, MB."""
    found = subprocess.run(  # noqa: S603 - this very Python
        [sys.executable, "-c", OPENING, str(folder), str(query)], capture_output=True, text=True, check=True
    )
    said = json.loads(found.stdout)
    return float(said["seconds"]), float(said["peak_rss_mb"])


def killed(folder: Path) -> None:
    """Let another process write, and kill it."""
    command = [sys.executable, "-c", WRITING, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - this very Python
        assert process.stdout is not None  # noqa: S101 - asked for
        process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)


def entries(numbers: range, classes: np.ndarray) -> list[NewEntry]:
    """Entries with sources like files."""
    return [
        NewEntry(category=f"class {c}", modality="image", source=f"photos/{i:08}.jpg", content=b"%032d" % i)
        for i, c in zip(numbers, classes.tolist(), strict=True)
    ]


def bare(view: View) -> Callable[[np.ndarray], object]:
    """Search the memory's own indexes, and nothing else."""
    groups = view._groups  # noqa: SLF001 - what is measured is the rest
    return lambda queries: [group.index.search(queries, K, allowed=group.allowed) for group in groups]


def interleaved(first: Callable[[], object], second: Callable[[], object], *, rounds: int) -> tuple[float, float]:
    """Medians of both, called in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for work, kept in zip((first, second), times, strict=True):
            start = time.perf_counter()
            work()
            kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def measure(rows: int, scratch: Path) -> dict[str, float | int | str]:
    """All figures of one size."""
    vectors, classes = RAR_MEMORY.draw(rows + 1_000, classes=CLASSES, dim=DIM)
    queries, _ = RAR_MEMORY.draw(4 * BATCH, classes=CLASSES, dim=DIM, stream=1)
    query_file = scratch / "query.npy"
    np.save(query_file, queries[:1])
    folder = scratch / f"memory-{rows}"
    found: dict[str, float | int | str] = {"rows": rows}
    with LocalMemory.create_unbound(folder, dim=DIM, fingerprint="benchmark") as memory:
        start = time.perf_counter()
        memory.append(entries(range(rows), classes[:rows]), vectors[:rows])
        found["add_s"] = time.perf_counter() - start
        memory.nearest(queries[:BATCH], K)
        view = memory._view("image")  # noqa: SLF001 - as above
        alone = bare(view)
        found["index"] = view._groups[0].index.describe()  # noqa: SLF001 - as above
        batches = [queries[i : i + BATCH] for i in range(0, len(queries), BATCH)]
        with_memory, without = interleaved(
            lambda: memory.nearest(batches[0], K), lambda: alone(batches[0]), rounds=15 if rows > 200_000 else 41
        )
        found |= {"batch_ms": 1e3 * with_memory, "bare_batch_ms": 1e3 * without}
        found["overhead_batch_percent"] = 100 * (with_memory / without - 1)
        with_memory, without = interleaved(
            lambda: memory.nearest(queries[:1], K), lambda: alone(queries[:1]), rounds=101
        )
        found |= {"single_ms": 1e3 * with_memory, "bare_single_ms": 1e3 * without}
        found["overhead_single_ms"] = 1e3 * (with_memory - without)
        start = time.perf_counter()
        memory.append(entries(range(rows, rows + 1_000), classes[rows:]), vectors[rows:])
        memory.nearest(queries[:1], K)
        found["add_1000_s"] = time.perf_counter() - start
        start = time.perf_counter()
        found["removed"] = memory.remove(category="class 7")
        memory.nearest(queries[:1], K)
        found["remove_class_s"] = time.perf_counter() - start
        facts = memory.info()
        found["bytes_per_entry"] = facts.bytes / len(memory)
        found["index_bytes_per_entry"] = facts.details["index_bytes"] / len(memory)
    fresh = [opened(folder, query_file) for _ in range(3)]
    found["open_s"], found["serving_rss_mb"] = (statistics.median(values) for values in zip(*fresh, strict=True))
    killed(folder)
    found["open_after_kill_s"], _ = opened(folder, query_file)
    found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shutil.rmtree(folder)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for rows in options.rows:
            found = _in_own_process(rows, Path(scratch))
            results.append(found)
            print(json.dumps(found), flush=True)
    print("\n" + table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


def _in_own_process(rows: int, scratch: Path) -> dict[str, float | int | str]:
    """So that the peak of resident memory is that of this size."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as out:
            json.dump(measure(rows, scratch), out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"measuring {rows:,} rows failed")
    found: dict[str, float | int | str] = json.loads(text)
    return found


def table(results: list[dict[str, float | int | str]]) -> str:
    """Markdown: a column a size."""
    lines = {
        "add all, entries/s": lambda r: f"{r['rows'] / r['add_s']:,.0f}",
        "open to first answer, s": lambda r: f"{r['open_s']:.2f}",
        "… after a kill, s": lambda r: f"{r['open_after_kill_s']:.2f}",
        "batch of 256: memory / bare index, ms": lambda r: f"{r['batch_ms']:.1f} / {r['bare_batch_ms']:.1f}",
        "overhead, batch of 256": lambda r: f"{r['overhead_batch_percent']:.1f} %",
        "one query: memory / bare index, ms": lambda r: f"{r['single_ms']:.2f} / {r['bare_single_ms']:.2f}",
        "overhead, one query, ms": lambda r: f"{r['overhead_single_ms']:.2f}",
        "add 1,000 and search, s": lambda r: f"{r['add_1000_s']:.2f}",
        "remove a category and search, s": lambda r: f"{r['remove_class_s']:.2f}",
        "bytes an entry on disk": lambda r: f"{r['bytes_per_entry']:,.0f}",
        "peak resident after opening and a search, MB": lambda r: f"{r['serving_rss_mb']:,.0f}",
        "peak resident while adding all (the vectors themselves included), MB": lambda r: f"{r['peak_rss_mb']:,.0f}",
    }
    head = ["| entries | " + " | ".join(f"{r['rows']:,}" for r in results) + " |", "|---|" + "---|" * len(results)]
    return "\n".join(head + [f"| {name} | {' | '.join(show(r) for r in results)} |" for name, show in lines.items()])


if __name__ == "__main__":
    main()
