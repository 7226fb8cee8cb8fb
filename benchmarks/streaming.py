"""Whether recognising a long stream of images takes constant memory: ``python benchmarks/streaming.py``.

Images, another one each time, are made as they are taken and go through `Recognizer.iter_recognize` with a small memory
and an encoder that costs next to nothing: with a chat in this process, and with one over HTTP, 32 in flight, whose
server, another process, answers at once. Prints resident memory along the way, and how it grew from the first reading
to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import final

import numpy as np
from chat_server import running_server
from over_http import NAMES, small_memory
from PIL import Image

from rarvision.chat import Capabilities, Chat, ChatRequest, Completion, HTTPChat, ListConstraint
from rarvision.pipeline import Recognizer
from rarvision.ranking import Ranker
from rarvision.types import Prediction


@final
class SameAnswer(Chat):
    """Says the same to all, and remembers nothing."""

    name = "same"  # type: ignore[assignment]  # it does not change
    capabilities = Capabilities(option_log_probs=False, continuation_log_probs=False, list_constraint=False)  # type: ignore[assignment]
    context_limit = None

    def generate(
        self, requests: Sequence[ChatRequest], *, max_tokens: int, constraints: Sequence[ListConstraint] | None = None
    ) -> list[Completion]:
        """The list of names."""
        del max_tokens, constraints
        return [Completion(text=str(list(NAMES)), finish_reason="stop")] * len(requests)


def pictures(count: int, side: int) -> Iterator[Image.Image]:
    """Noise, another picture each time."""
    for number in range(count):
        generator = np.random.default_rng(number)
        yield Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))


def resident_bytes() -> int:
    """What the process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def stream(label: str, recognizer: Recognizer, *, count: int, every: int, side: int) -> dict[str, float]:
    """Recognise the images, and print what is held after every so many."""
    held: list[tuple[int, int]] = []
    start = time.perf_counter()
    for number, outcome in enumerate(recognizer.iter_recognize(pictures(count, side)), start=1):
        if not isinstance(outcome, Prediction) or outcome.ranking is None or outcome.ranking.status != "ranked":
            raise SystemExit(f"{label}: image {number} was not ranked: {outcome}")
        if number % every == 0:
            held.append((number, resident_bytes()))
            rate = number / (time.perf_counter() - start)
            print(f"{label:10s} {number:9,d} images {held[-1][1] / 2**20:9.1f} MiB {rate:8.0f} images/s", flush=True)
    (first, before), (last, after) = held[0], held[-1]
    return {
        "images": last,
        "MiB after the first reading": before / 2**20,
        "MiB at the end": after / 2**20,
        "bytes an image": (after - before) / max(1, last - first),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1_000, help="images between two readings")
    parser.add_argument("--side", type=int, default=96, help="of the images, pixels")
    parser.add_argument("--chats", nargs="+", choices=("fake", "http"), default=["fake", "http"])
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for label in options.chats:
        with ExitStack() as stack:
            memory = stack.enter_context(small_memory(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
            chat: Chat = SameAnswer()
            if label == "http":
                server = stack.enter_context(running_server(str(list(NAMES)), latency_s=0.0))
                chat = HTTPChat(server.url, concurrency=32, option_log_probs=False)
                stack.callback(chat.close)
            recognizer = Recognizer(memory, ranker=Ranker(chat, strategy="generate"), k=len(NAMES))
            results[label] = stream(label, recognizer, count=options.images, every=options.every, side=options.side)
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for label, found in results.items():
        print(f"{label}: " + ", ".join(f"{name} {value:,.1f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
