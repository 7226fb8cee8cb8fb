"""JSON over HTTP for a server that may be absent, slow, busy or confused: retries, deadlines, size limits."""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from rarvision.chat.threads import in_background
from rarvision.errors import ChatError, ChatProtocolError, ChatUnavailableError, OptionError

__all__ = ["JsonClient"]

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_LONGEST_WAIT_S = 30.0
_LONGEST_RETRY_AFTER_S = 120.0
_LONGEST_CONNECT_S = 10.0
_MAX_BODY_BYTES = 16 * 2**20


class _TryAgainError(Exception):
    """A failure that may pass: what it is if it stays, and how long the server asked to wait, in seconds, if it did."""

    def __init__(self, error: ChatError, *, retry_after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after_s = retry_after_s


class JsonClient:
    """Posts and gets JSON objects; safe to use from several threads, and can be interrupted.

    An attempt runs in a daemon thread with a connection of its own, so that whatever holds it up (a name that is not
    resolved, headers without end) is left alone when its time is over.

    Args:
        root: The API's root, without a slash at its end.
        api_key: Bearer token; removed from everything that is shown.
        timeout_s: Seconds for one attempt, to the last byte; at most 10 of them for the connection.
        retries: Attempts after the first.
        backoff_s: First wait, seconds; doubles, with jitter.
    """

    def __init__(self, root: str, *, api_key: str | None, timeout_s: float, retries: int, backoff_s: float) -> None:
        import httpx

        if not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise OptionError(f"timeout_s must be a positive number of seconds, got {timeout_s}")
        if retries < 0 or backoff_s < 0:
            raise OptionError(f"retries and backoff_s must not be negative, got {retries} and {backoff_s}")
        self._root = root
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        headers = {"Accept": "application/json", "User-Agent": "rarvision"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._options: dict[str, Any] = {
            "headers": headers,
            "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, _LONGEST_CONNECT_S)),
            "verify": httpx.create_ssl_context(),  # once: it takes longer than a request
        }
        self._lanes: set[Any] = set()
        self._idle: list[Any] = []
        self._awaited: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        try:
            self._idle.append(self._new_lane())
        except (ValueError, httpx.InvalidURL) as error:
            raise OptionError(f"the API key or the proxy settings do not fit into a request: {type(error)}") from None
        weakref.finalize(self, _close_all, self._lanes)  # for callers who do not close
        parts = urlsplit(root)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self.shown_url = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
        """The root without user name and password."""

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of the answer; that of a 4xx is ``{"error": message}``.

        Raises:
            ChatUnavailableError: no answer after the last retry, or the client was closed meanwhile.
            ChatProtocolError: an answer that is no JSON object, after the last retry too; or too large.
        """
        return self._retrying("POST", path, json.dumps(body, ensure_ascii=False).encode())

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """The same for a plain request."""
        return self._retrying("GET", path, None)

    def close(self) -> None:
        """Close all connections; who waits for an answer, or to ask again, stops waiting."""
        self._closed.set()
        with self._lock:
            lanes, answers = set(self._lanes), set(self._awaited)
        for answer in answers:
            answer.cancel()
        _close_all(lanes)

    def _retrying(self, method: str, path: str, content: bytes | None) -> tuple[int, dict[str, Any]]:
        import tenacity

        double = tenacity.wait_exponential(multiplier=self._backoff_s, max=_LONGEST_WAIT_S)
        grow = double + tenacity.wait_random(0, self._backoff_s)

        def pause(state: tenacity.RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            asked = failure.retry_after_s if isinstance(failure, _TryAgainError) else None
            return grow(state) if asked is None else asked

        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._retries + 1),
            wait=pause,
            sleep=tenacity.sleep_using_event(self._closed),
            retry=tenacity.retry_if_exception_type(_TryAgainError),
            reraise=True,
        )
        try:
            return attempts(self._within_time, method, path, content)
        except _TryAgainError as failure:
            tries = f" ({self._retries + 1} attempts)" if self._retries else ""
            raise type(failure.error)(f"{failure.error}{tries}") from failure

    def _within_time(self, method: str, path: str, content: bytes | None) -> tuple[int, dict[str, Any]]:
        """One attempt that ends when its time is over, whatever the server does."""
        with self._lock:
            if self._closed.is_set():
                raise self._was_closed(path)
            lane = self._idle.pop() if self._idle else self._new_lane()
            answer = in_background(partial(self._once, lane, method, path, content), name="rarvision-request")
            self._awaited.add(answer)
        free = False
        try:
            found = answer.result(timeout=self._timeout_s)
            free = True
        except _TryAgainError:
            free = True
            raise
        except TimeoutError as error:
            raise self._too_slow(path) from error
        except CancelledError:
            raise self._was_closed(path) from None
        finally:
            with self._lock:
                self._awaited.discard(answer)
                if free:
                    self._idle.append(lane)
                else:
                    self._lanes.discard(lane)
            if not free:  # perhaps somebody still reads from it
                _close_all({lane})
        return found

    def _was_closed(self, path: str) -> ChatUnavailableError:
        return ChatUnavailableError(f"{self.shown_url}/{path}: the connection was closed; open another one")

    def _new_lane(self) -> Any:
        """An HTTP client for one request at a time."""
        import httpx

        lane = httpx.Client(**self._options)
        self._lanes.add(lane)
        return lane

    def _too_slow(self, path: str) -> _TryAgainError:
        return _TryAgainError(
            ChatUnavailableError(
                f"{self.shown_url}/{path}: no whole answer within {self._timeout_s:g} s; raise timeout_s if the model "
                f"is that slow"
            )
        )

    def _once(self, lane: Any, method: str, path: str, content: bytes | None) -> tuple[int, dict[str, Any]]:
        import httpx

        headers = {"Content-Type": "application/json"} if content is not None else {}
        try:
            with lane.stream(method, f"{self._root}/{path}", content=content, headers=headers) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _MAX_BODY_BYTES:
                        raise ChatProtocolError(
                            f"{self.shown_url}/{path}: the answer exceeds {_MAX_BODY_BYTES // 2**20} MiB and goes on; "
                            f"it begins {self._start(bytes(body))}"
                        )
                return self._read(path, response, bytes(body))
        except httpx.ConnectTimeout as error:
            raise self._not_there(path, f"no connection within {lane.timeout.connect:g} s") from error
        except httpx.TimeoutException as error:
            raise self._too_slow(path) from error
        except httpx.TransportError as error:
            raise self._not_there(path, self._clean(str(error)) or type(error).__name__) from error
        except httpx.HTTPError as error:
            raise ChatProtocolError(f"{self.shown_url}/{path}: {self._clean(str(error))}") from error

    def _not_there(self, path: str, what: str) -> _TryAgainError:
        return _TryAgainError(ChatUnavailableError(f"{self.shown_url}/{path}: {what}; is the server running there?"))

    def _read(self, path: str, response: Any, body: bytes) -> tuple[int, dict[str, Any]]:
        """Tell an answer from a refusal and from something else."""
        status: int = response.status_code
        if status in _RETRIED:
            after = _retry_after_s(response.headers.get("Retry-After"))
            said = f"{self.shown_url}/{path} answered {status}: {self._start(body)}"
            if after is not None and after > _LONGEST_RETRY_AFTER_S:
                raise ChatUnavailableError(f"{said}; it asks to wait {after:.0f} s, longer than is waited here")
            raise _TryAgainError(ChatUnavailableError(said), retry_after_s=after)
        answer: Any = None
        with contextlib.suppress(ValueError):  # also UnicodeDecodeError
            answer = json.loads(body.decode("utf-8"))
        if status >= 400:
            return status, {"error": self._clean(_error_message(answer) or self._start(body))}
        if status >= 300 or not isinstance(answer, dict):
            error = ChatProtocolError(
                f"{self.shown_url}/{path}: expected a JSON object, got {self._start(body)} (status {status}, "
                f"{response.headers.get('Content-Type', 'no content type')}); is this an OpenAI-compatible API? "
                f"Its address usually ends in /v1"
            )
            raise error if status >= 300 else _TryAgainError(error)  # a proxy's page, or an answer that was cut off
        return status, answer

    def _clean(self, text: str) -> str:
        """Without the API key, which some servers repeat."""
        return text.replace(self._api_key, "***") if self._api_key and len(self._api_key) > 5 else text

    def _start(self, body: bytes) -> str:
        """The first 200 characters of what came, for a message."""
        text = self._clean(body[:4096].decode("utf-8", errors="replace"))
        return repr(text[:200]) if text.strip() else "nothing"


def _close_all(lanes: set[Any]) -> None:
    for lane in list(lanes):
        with contextlib.suppress(RuntimeError, OSError):  # another thread is in the middle of using it
            lane.close()


def _retry_after_s(header: str | None) -> float | None:
    """Seconds to wait by a ``Retry-After`` header: a number, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())


def _error_message(answer: Any) -> str:
    """What an error answer says, in any of the usual shapes; empty where it says nothing."""
    if isinstance(answer, dict):
        error = answer.get("error", answer.get("detail", answer.get("message", answer)))
        answer = error.get("message", error) if isinstance(error, dict) else error
    return str(answer) if answer else ""
