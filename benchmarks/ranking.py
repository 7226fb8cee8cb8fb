"""Ranking strategies against each other on the embedded MLLM: ``python benchmarks/ranking.py``.

Two ratios, each of medians from interleaved repeats in one run: the option letter against the generated list (batch 1
and batched), and the likelihood of names with the image's prefix shared against each name scored from scratch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from PIL.Image import Image

from rarvision.chat import ChatRequest, LocalChat
from rarvision.datasets.fieldguide import FieldGuide
from rarvision.embedded import weights_path
from rarvision.images import load_image
from rarvision.ranking import Ranker, ranking_prompt


def medians(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Run the jobs in turn, ``repeats`` times after one warm-up; the median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(images: Sequence[Image], lists: Sequence[Sequence[str]], *, batch: int, repeats: int) -> dict[str, float]:
    """Milliseconds an image of each way at one batch size, and the two ratios."""
    chat = LocalChat(weights_path("mllm"), batch_size=batch)
    names = [lists[i % len(lists)] for i in range(len(images))]
    rankers = {name: Ranker(chat, strategy=name) for name in ("generate", "choice")}
    requests = [ChatRequest.of(ranking_prompt(n), image) for image, n in zip(images, names, strict=True)]
    answers = [[f"['{name}'" for name in n] for n in names]
    each = [(request, [text]) for request, texts in zip(requests, answers, strict=True) for text in texts]
    starts = range(0, len(images), batch)

    def rank(name: str) -> None:
        for start in starts:
            rankers[name].rank_batch(images[start : start + batch], names[start : start + batch])

    def shared() -> None:
        for start in starts:
            chat.continuation_log_probs(requests[start : start + batch], answers[start : start + batch])

    def scratch() -> None:
        for start in range(0, len(each), batch):
            part = each[start : start + batch]
            chat.continuation_log_probs([r for r, _ in part], [t for _, t in part])

    seconds = medians(
        {
            "generate": lambda: rank("generate"),
            "choice": lambda: rank("choice"),
            "likelihood, shared prefix": shared,
            "likelihood, from scratch": scratch,
        },
        repeats,
    )
    found = {f"{name}, batch {batch}, ms an image": 1000 * s / len(images) for name, s in seconds.items()}
    found[f"choice is faster than generate, batch {batch}"] = seconds["generate"] / seconds["choice"]
    found[f"shared prefix is faster than scratch, batch {batch}"] = (
        seconds["likelihood, from scratch"] / seconds["likelihood, shared prefix"]
    )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32, help="images a batch")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    guide = FieldGuide("birds", categories=200, seed=0)
    images = [load_image(sample.image) for sample in guide.queries(options.images)]
    names = [guide.names[10 * i : 10 * i + 5] for i in range(20)]
    results: dict[str, float] = {}
    for batch in (1, options.images):
        results |= compare(images if batch > 1 else images[:8], names, batch=batch, repeats=options.repeats)
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        for name, value in results.items():
            print(f"{name:52s} {value:8.2f}")


if __name__ == "__main__":
    main()
