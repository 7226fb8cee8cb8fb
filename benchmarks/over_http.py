"""How close the HTTP backend comes to what its requests in flight allow: ``python benchmarks/over_http.py``.

A server in another process answers every request after 200 ms; 32 in flight are then 160 a second at best. The same
images are asked about by `Ranker.rank_batch` (decoded before, in one call), by `Recognizer.iter_recognize` (JPEG
files, which are decoded, encoded by next to nothing and looked up in a small memory), and by bare HTTP clients on 32
threads, or tasks, which send finished bodies. In turn, medians; with the processor time of both processes, as they
share the machine. Clients that are not installed are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import importlib.util
import io
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
from chat_server import LETTERS, Server, running_server
from PIL import Image

from rarvision.chat import ChatRequest, HTTPChat
from rarvision.chat.rendering import openai_messages
from rarvision.encoders import Encoder
from rarvision.memory import LocalMemory
from rarvision.pipeline import Recognizer
from rarvision.ranking import Ranker, Strategy, choice_prompt, ranking_prompt
from rarvision.types import Prediction, Ranking, Sample

NAMES = tuple(f"kind {letter}" for letter in LETTERS)
HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
STRATEGIES: tuple[Strategy, ...] = ("generate", "choice")
_GRAIN = 0.06  # share of noise: a JPEG of 640 x 480 at quality 95 then has about 240 kB, as a photograph has

Job = Callable[[], object]


def texture(number: int, size: tuple[int, int]) -> Image.Image:
    """A picture of soft colours with grain, another for each number."""
    generator = np.random.default_rng(number)
    width, height = size
    blobs = Image.fromarray(generator.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    grain = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(blobs.resize(size, Image.Resampling.BICUBIC), grain, _GRAIN)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """As a camera would keep it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def body(image: Image.Image, strategy: str) -> bytes:
    """What the HTTP chat sends about an image."""
    choice = strategy == "choice"
    prompt = choice_prompt(NAMES) if choice else ranking_prompt(NAMES)
    extra = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20} if choice else {"max_tokens": 64}
    messages = openai_messages(ChatRequest.of(prompt, image))
    return json.dumps({"model": "fixed", "messages": messages, "temperature": 0, **extra}).encode()


# ---- bare clients: each gives a job that sends all bodies ----


@contextmanager
def on_threads(posts: Sequence[Callable[[bytes], bytes]], bodies: Sequence[bytes]) -> Iterator[Job]:
    """One thread for each way to post; they take the next body as they are done with one."""

    def job() -> None:
        left, lock = iter(bodies), threading.Lock()

        def work(post: Callable[[bytes], bytes]) -> None:
            while True:
                with lock:
                    content = next(left, None)
                if content is None:
                    return
                json.loads(post(content))

        threads = [threading.Thread(target=work, args=(post,)) for post in posts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    yield job


@contextmanager
def with_http_client(server: Server, bodies: Sequence[bytes], in_flight: int) -> Iterator[Job]:
    """The standard library's, a connection a thread."""
    lines = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(in_flight)]

    def post(line: http.client.HTTPConnection, content: bytes) -> bytes:
        line.request("POST", "/v1/chat/completions", content, HEADERS)
        return line.getresponse().read()

    with on_threads([lambda content, line=line: post(line, content) for line in lines], bodies) as job:
        yield job
    for line in lines:
        line.close()


@contextmanager
def with_urllib3(server: Server, bodies: Sequence[bytes], in_flight: int) -> Iterator[Job]:
    """One pool for all threads."""
    import urllib3

    with urllib3.HTTPConnectionPool("127.0.0.1", server.port, maxsize=in_flight) as pool:

        def post(content: bytes) -> bytes:
            return pool.urlopen("POST", "/v1/chat/completions", body=content, headers=HEADERS).data

        with on_threads([post] * in_flight, bodies) as job:
            yield job


@contextmanager
def with_requests(server: Server, bodies: Sequence[bytes], in_flight: int) -> Iterator[Job]:
    """A session a thread."""
    import requests

    with ExitStack() as stack:
        sessions = [stack.enter_context(requests.Session()) for _ in range(in_flight)]
        url = f"{server.url}/chat/completions"
        posts = [lambda content, s=s: s.post(url, data=content, headers=HEADERS).content for s in sessions]
        with on_threads(posts, bodies) as job:
            yield job


@contextmanager
def with_httpx(server: Server, bodies: Sequence[bytes], in_flight: int) -> Iterator[Job]:
    """A client a thread."""
    import httpx

    with ExitStack() as stack:
        context = httpx.create_ssl_context()
        clients = [stack.enter_context(httpx.Client(verify=context, timeout=60)) for _ in range(in_flight)]
        url = f"{server.url}/chat/completions"
        posts = [lambda content, c=c: c.post(url, content=content, headers=HEADERS).content for c in clients]
        with on_threads(posts, bodies) as job:
            yield job


@contextmanager
def with_httpx_tasks(server: Server, bodies: Sequence[bytes], in_flight: int) -> Iterator[Job]:
    """One asynchronous client, a task for each request in flight."""
    import httpx

    async def run() -> None:
        async with httpx.AsyncClient(timeout=60) as client:

            async def post(content: bytes) -> bytes:
                return (await client.post(f"{server.url}/chat/completions", content=content, headers=HEADERS)).content

            await _in_tasks(post, bodies, in_flight)

    yield lambda: asyncio.run(run())


@contextmanager
def with_aiohttp(server: Server, bodies: Sequence[bytes], in_flight: int) -> Iterator[Job]:
    """One session, a task for each request in flight."""
    import aiohttp

    async def run() -> None:
        async with aiohttp.ClientSession() as session:

            async def post(content: bytes) -> bytes:
                sending = session.post(f"{server.url}/chat/completions", data=content, headers=HEADERS)
                async with sending as answer:
                    return await answer.read()

            await _in_tasks(post, bodies, in_flight)

    yield lambda: asyncio.run(run())


async def _in_tasks(post: Callable[[bytes], Any], bodies: Sequence[bytes], in_flight: int) -> None:
    left = iter(bodies)

    async def work() -> None:
        for content in left:
            json.loads(await post(content))

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(work())


CLIENTS = {
    "http.client": with_http_client,
    "urllib3": with_urllib3,
    "requests": with_requests,
    "httpx": with_httpx,
    "httpx, tasks": with_httpx_tasks,
    "aiohttp": with_aiohttp,
}


def installed(client: str) -> bool:
    """Whether a client can be measured here."""
    return client == "http.client" or importlib.util.find_spec(client.partition(",")[0]) is not None


# ---- the library ----


@final
class QuickEncoder(Encoder):
    """Looks at a few pixels, so that it costs next to nothing."""

    name, dim, fingerprint = "quick", 48, "quick"  # type: ignore[assignment]  # they do not change

    def _encode_images(self, images: list[Image.Image]) -> np.ndarray:
        return np.stack([1.0 + np.asarray(each.resize((4, 4), Image.Resampling.NEAREST)).ravel() for each in images])

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), self.dim))


def small_memory(folder: Path) -> LocalMemory:
    """An image of each name."""
    memory = LocalMemory.create(folder / "memory", encoder=QuickEncoder())
    memory.add(Sample(source=name, image=texture(1000 + i, (64, 64)), label=name) for i, name in enumerate(NAMES))
    return memory


@contextmanager
def library(
    server: Server, images: Sequence[Image.Image], count: int, strategy: Strategy, in_flight: int
) -> Iterator[dict[str, Job]]:
    """The ranker alone, and the whole path from JPEG files."""
    files = [jpeg(image) for image in images]
    chat = HTTPChat(server.url, concurrency=in_flight)
    ranker = Ranker(chat, strategy=strategy)
    asked = [images[i % len(images)].copy() for i in range(count)]
    with tempfile.TemporaryDirectory() as folder, small_memory(Path(folder)) as memory:
        recognizer = Recognizer(memory, ranker=ranker, k=len(NAMES))

        def check(rankings: Sequence[Ranking | None]) -> None:
            ranked = sum(ranking is not None and ranking.status == "ranked" for ranking in rankings)
            if ranked != count:
                raise SystemExit(f"expected {count} rankings, got {ranked}")

        def rank() -> None:
            check(ranker.rank_batch(asked, [NAMES] * count))

        def recognize() -> None:
            outcomes = recognizer.iter_recognize(files[i % len(files)] for i in range(count))
            check([outcome.ranking for outcome in outcomes if isinstance(outcome, Prediction)])

        yield {"Ranker.rank_batch": rank, "Recognizer.iter_recognize": recognize}
    chat.close()


def measure(jobs: dict[str, Job], server: Server, *, count: int, repeats: int) -> dict[str, dict[str, float]]:
    """Run the jobs in turn, ``repeats`` times after a short warm-up; medians of rates and processor times."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            before = server.stats()
            start, used = time.perf_counter(), time.process_time()
            job()
            seconds, used = time.perf_counter() - start, time.process_time() - used
            after = server.stats()
            if repeat:
                ours, theirs = used / count, (after["cpu_s"] - before["cpu_s"]) / count
                found[name].append((count / seconds, 1000 * ours, 1000 * theirs, after["most_open"]))
    columns = ("requests/s", "client, ms of processor", "server, ms of processor", "most in flight")
    return {
        name: dict(zip(columns, (statistics.median(values) for values in zip(*rows, strict=True)), strict=True))
        for name, rows in found.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["336x336", "640x480"], help="of the images, pixels")
    parser.add_argument("--requests", type=int, default=640, help="in each run")
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--latency-ms", type=float, default=200.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clients", nargs="*", choices=list(CLIENTS), default=list(CLIENTS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ideal = options.in_flight / (options.latency_ms / 1000)
    results: dict[str, Any] = {"ideal, requests/s": ideal}
    with running_server(str(list(NAMES)), latency_s=options.latency_ms / 1000) as server:
        for text in options.sizes:
            width, height = map(int, text.split("x"))
            images = [texture(number, (width, height)) for number in range(2 * options.in_flight)]
            for strategy in STRATEGIES:
                finished = [body(image, strategy) for image in images]
                bodies = [finished[i % len(finished)] for i in range(options.requests)]
                with ExitStack() as stack:
                    ours = stack.enter_context(library(server, images, options.requests, strategy, options.in_flight))
                    bare = {
                        f"bare {name}": stack.enter_context(CLIENTS[name](server, bodies, options.in_flight))
                        for name in options.clients
                        if installed(name)
                    }
                    rows = measure({**ours, **bare}, server, count=options.requests, repeats=options.repeats)
                label = f"{text}, {strategy}, {sum(map(len, finished)) / len(finished) / 1000:.0f} kB a body"
                results[label] = {
                    name: {"of the ideal": row["requests/s"] / ideal, **row} for name, row in rows.items()
                }
                if not options.json:
                    show(label, results[label], ideal)
    if options.json:
        print(json.dumps(results, indent=1))


def show(label: str, rows: dict[str, dict[str, float]], ideal: float) -> None:
    """A table of one kind of request."""
    print(f"\n{label}; ideal {ideal:.0f} requests/s")
    print(f"{'':28s}" + "".join(f"{column:>25s}" for column in next(iter(rows.values()))))
    for name, row in rows.items():
        print(f"{name:28s}" + "".join(f"{value:25.2f}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
