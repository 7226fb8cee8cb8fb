"""A local OpenAI-compatible server in a process of its own, for benchmarks; light: it answers every question alike.

It reads the whole request, parses its JSON, waits, and answers with one text, or with log-probabilities of the first
letters where the request asks for them. ``GET /stats`` tells its processor time and how many requests were open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LETTERS = "ABCDE"


class Answers:
    """What is answered, and what came in."""

    def __init__(self, text: str, latency_s: float) -> None:
        self.latency_s = latency_s
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        tokens = [{"token": letter, "logprob": -0.5 - place} for place, letter in enumerate(LETTERS)]
        listed = {"content": [{**tokens[0], "top_logprobs": tokens}]}
        self.plain = _response({"object": "chat.completion", "choices": [{**choice, "logprobs": None}]})
        self.letters = _response({"object": "chat.completion", "choices": [{**choice, "logprobs": listed}]})
        self.models = _response({"object": "list", "data": [{"id": "fixed", "object": "model"}]})
        self.requests = self.open = self.most_open = self.body_bytes = 0

    def stats(self) -> bytes:
        """The counts since the last time they were asked for, and the processor time so far."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        found = {
            "cpu_s": used.ru_utime + used.ru_stime,
            "requests": self.requests,
            "most_open": self.most_open,
            "body_bytes": self.body_bytes,
        }
        self.requests, self.most_open, self.body_bytes = 0, self.open, 0
        return _response(found)


class Connection(asyncio.BufferedProtocol):
    """One client: a request at a time, which is received into one buffer."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.buffer = bytearray(2**16)
        self.filled = self.body_at = self.end = 0

    def connection_made(self, transport: Any) -> None:
        """Remember where answers go."""
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where what comes next goes."""
        del sizehint
        return memoryview(self.buffer)[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Wait for the whole request; make room for it when its length is known."""
        self.filled += nbytes
        if not self.end:
            head_end = self.buffer.find(b"\r\n\r\n", 0, self.filled)
            if head_end < 0:
                return
            _, found, rest = bytes(self.buffer[:head_end]).lower().partition(b"\r\ncontent-length:")
            self.body_at = head_end + 4
            self.end = self.body_at + (int(rest.split(b"\r\n", 1)[0]) if found else 0)
            if self.end >= len(self.buffer):
                self.buffer = self.buffer[: self.filled] + bytes(self.end)
        if self.filled >= self.end:
            self.answer()

    def answer(self) -> None:
        """Parse the request, and answer when it is time."""
        path = bytes(self.buffer[:200]).split(b" ", 2)[1]
        body = str(memoryview(self.buffer)[self.body_at : self.end], "utf-8")
        self.filled = self.end = 0
        if path == b"/stats":
            self.transport.write(self.answers.stats())
        elif path.endswith(b"/models"):
            self.transport.write(self.answers.models)
        else:
            asked = json.loads(body)
            self.answers.requests += 1
            self.answers.body_bytes += len(body)
            self.answers.open += 1
            self.answers.most_open = max(self.answers.most_open, self.answers.open)
            found = self.answers.letters if asked.get("logprobs") else self.answers.plain
            asyncio.get_running_loop().call_later(self.answers.latency_s, self.send, found)

    def send(self, found: bytes) -> None:
        """The answer, if anybody still waits for it."""
        self.answers.open -= 1
        if not self.transport.is_closing():
            self.transport.write(found)


def _response(answer: dict[str, Any]) -> bytes:
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def serve(answers: Answers) -> None:
    """Serve on a free port, which is printed, until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(answers), "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # it ends with the process that started this one


class Server:
    """A running server, as its client sees it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1"

    def stats(self) -> dict[str, float]:
        """See `Answers.stats`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats") as answer:
            found: dict[str, float] = json.load(answer)
        return found


@contextmanager
def running_server(text: str, *, latency_s: float) -> Iterator[Server]:
    """Start a server in another process; it ends with the block, or with this process."""
    command = [sys.executable, __file__, "--latency-s", str(latency_s), "--text", text]
    with subprocess.Popen(  # noqa: S603 - this very file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Server(int(process.stdout.readline()))  # type: ignore[union-attr]  # a pipe
        process.communicate()


def main() -> None:
    """Serve, if told how fast."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-s", type=float, help="seconds before every answer; without it nothing is served")
    parser.add_argument("--text", default="['a', 'b']", help="of every answer")
    options = parser.parse_args()
    if options.latency_s is None:
        parser.print_help()
        return
    asyncio.run(serve(Answers(options.text, options.latency_s)))


if __name__ == "__main__":
    main()
