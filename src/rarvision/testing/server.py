"""A fake OpenAI-compatible server, in this process, that can misbehave on request."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, final, get_args

from rarvision.errors import OptionError

__all__ = ["FakeServer", "Fault", "absent_url"]

Fault = Literal[
    "ok",
    "slow",
    "drip",
    "429",
    "500",
    "html",
    "truncated",
    "no-body",
    "empty",
    "null",
    "no-choices",
    "endless",
    "endless-body",
    "endless-headers",
    "hang-up",
]
"""``slow``: silent for ``slow_s``; ``drip``: a byte now and then; ``no-body``: a 200 of 0 bytes; ``empty``: an empty
text; ``null``: no text; ``endless``: a text of 3 million characters, whatever ``max_tokens`` says; ``endless-body`` and
``endless-headers``: never stops sending, the headers one now and then."""

_HTML = b"<!DOCTYPE html><html><body><h1>It works!</h1></body></html>"


def absent_url() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1"


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet where a client has gone away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@final
class FakeServer:
    """Answers ``/v1/models`` and ``/v1/chat/completions`` as the public API does.

    Use it as a context manager; it listens on a free port of the loopback interface.

    Args:
        answer: The text of every answer, or a function of the request's body.
        top_logprobs: Tokens and natural log-probabilities of the first position, or a function of the body; served
            where the request asks, at most as many as it asks for. None: ``logprobs`` are ignored, as by servers that
            have none.
        models: What ``/v1/models`` lists: names, or whole objects.
        faults: What happens to the chat requests in turn, ``ok`` once they are used up.
        always: What happens to every chat request after ``faults``.
        retry_after: The header that comes with 429.
        slow_s: How long ``slow`` keeps silent, and how long every answer takes in ``delay_s``.
        delay_s: Seconds before every answer.
        refuse: A status and message for chat requests that do not fit, or a function of the body that gives one or
            None.

    Attributes:
        requests: Bodies of the chat requests, in order of arrival.
        headers: Their headers.
        most_in_flight: The most chat requests that were open at one time.
    """

    def __init__(
        self,
        answer: str | Callable[[dict[str, Any]], str] = "['a', 'b']",
        *,
        top_logprobs: Sequence[tuple[str, float]]
        | Callable[[dict[str, Any]], Sequence[tuple[str, float]]]
        | None = None,
        models: Sequence[str | dict[str, Any]] = ("fake-vlm",),
        faults: Sequence[Fault] = (),
        always: Fault = "ok",
        retry_after: str | None = "0",
        slow_s: float = 5.0,
        delay_s: float = 0.0,
        refuse: Callable[[dict[str, Any]], tuple[int, str] | None] | None = None,
    ) -> None:
        unknown = set(faults) | {always}
        unknown -= set(get_args(Fault))
        if unknown:
            raise OptionError(f"unknown faults {sorted(unknown)}; known are {', '.join(get_args(Fault))}")
        self._answer = answer
        self._top_logprobs = top_logprobs
        self._models = [model if isinstance(model, dict) else {"id": model, "object": "model"} for model in models]
        self._faults = list(faults)
        self._always: Fault = always
        self._retry_after = retry_after
        self._slow_s = slow_s
        self._delay_s = delay_s
        self._refuse = refuse
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._in_flight = 0
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_in_flight = 0

    @property
    def url(self) -> str:
        """The API's root."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeServer:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake._get(self)

            def do_POST(self) -> None:
                fake._post(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                """Keep quiet."""

        self._server = _Listener(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/v1/models":
            _send(handler, 200, {"object": "list", "data": self._models})
        else:
            _send(handler, 404, {"error": {"message": f"no route {handler.path}", "type": "not_found"}})

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers["Content-Length"])
        content = handler.rfile.read(length)
        if len(content) < length:  # the client gave up
            handler.close_connection = True
            return
        body = json.loads(content)
        if handler.path != "/v1/chat/completions":
            _send(handler, 404, {"error": {"message": f"no route {handler.path}", "type": "not_found"}})
            return
        with self._lock:
            self.requests.append(body)
            self.headers.append({key.lower(): value for key, value in handler.headers.items()})
            fault = self._faults.pop(0) if self._faults else self._always
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            self._closing.wait(self._delay_s)
            with contextlib.suppress(ConnectionError):  # the client gave up
                self._serve(handler, body, fault)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _serve(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], fault: Fault) -> None:
        refusal = self._refuse(body) if self._refuse else None
        if refusal is not None:
            _send(handler, refusal[0], {"error": {"message": refusal[1], "type": "invalid_request_error"}})
        elif fault == "429":
            extra = {} if self._retry_after is None else {"Retry-After": self._retry_after}
            _send(handler, 429, {"error": {"message": "slow down", "type": "rate_limit"}}, extra)
        elif fault == "500":
            _send(handler, 500, {"error": {"message": "the engine died", "type": "server_error"}})
        elif fault in ("html", "truncated", "no-body"):
            whole = json.dumps(self._reply(body)).encode()
            sent = {"html": _HTML, "truncated": whole[: len(whole) // 2], "no-body": b""}[fault]
            kind = "text/html" if fault == "html" else "application/json"
            _send_bytes(handler, 200, sent, {"Content-Type": kind})
        elif fault == "hang-up":
            handler.close_connection = True
        elif fault in ("drip", "endless-body", "endless-headers"):
            self._keep_sending(handler, fault)
        else:
            if fault == "slow":
                self._closing.wait(self._slow_s)
            _send(handler, 200, self._reply(body, fault))

    def _keep_sending(self, handler: BaseHTTPRequestHandler, fault: Fault) -> None:
        if fault == "endless-headers":
            piece, pause_s = b"X-More: to come\r\n", 0.1
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        else:
            body, pause_s = (b" ", 0.02) if fault == "drip" else (b"x" * 65536, 0.0)
            piece = b"%x\r\n%s\r\n" % (len(body), body)
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
        while not self._closing.is_set():
            handler.wfile.write(piece)
            time.sleep(pause_s)

    def _reply(self, body: dict[str, Any], fault: Fault = "ok") -> dict[str, Any]:
        text: str | None = self._answer(body) if callable(self._answer) else self._answer
        if fault in ("empty", "null"):
            text = "" if fault == "empty" else None
        elif fault == "endless":
            text = "and so on " * 300_000
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
            "logprobs": None,
        }
        if body.get("logprobs") and self._top_logprobs is not None:
            found = self._top_logprobs(body) if callable(self._top_logprobs) else self._top_logprobs
            ranked = sorted(found, key=lambda item: -item[1])
            tokens = [_token(*item) for item in ranked]
            first = {**tokens[0], "top_logprobs": tokens[: body.get("top_logprobs", 0)]}
            choice["logprobs"] = {"content": [first]}
        return {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model"),
            "choices": [] if fault == "no-choices" else [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }


def _token(text: str, log_prob: float) -> dict[str, Any]:
    return {"token": text, "logprob": log_prob, "bytes": list(text.encode())}


def _send(
    handler: BaseHTTPRequestHandler, status: int, answer: dict[str, Any], headers: dict[str, str] | None = None
) -> None:
    _send_bytes(handler, status, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})})


def _send_bytes(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
