"""JSON over HTTP for a server that may be absent, slow, busy or confused: retries, deadlines, size limits."""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from rarvision.chat.lanes import Lanes, Turn
from rarvision.chat.threads import Errand
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
    resolved, headers without end) is left alone when its time is over, or when the errand it belongs to is called off.

    Args:
        root: The API's root, without a slash at its end.
        api_key: Bearer token; removed from everything that is shown.
        posts: How many are under way at a time, whoever posts; a place is kept from the first attempt to the last.
        timeout_s: Seconds for one attempt, to the last byte; at most 10 of them for the connection.
        retries: Attempts after the first.
        backoff_s: First wait, seconds; doubles, with jitter.
    """

    def __init__(
        self, root: str, *, api_key: str | None, posts: int, timeout_s: float, retries: int, backoff_s: float
    ) -> None:
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
        options: dict[str, Any] = {
            "headers": headers,
            "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, _LONGEST_CONNECT_S)),
            "verify": httpx.create_ssl_context(),  # once: it takes longer than a request
        }
        self._open = Errand()
        self._lanes: Lanes[Any] = Lanes(posts, partial(httpx.Client, **options))
        try:
            self._lanes.open()
        except (ValueError, httpx.InvalidURL) as error:
            raise OptionError(f"the API key or the proxy settings do not fit into a request: {type(error)}") from None
        weakref.finalize(self, self._lanes.close)  # for callers who do not close
        parts = urlsplit(root)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self.shown_url = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
        """The root without user name and password."""

    def post(self, path: str, body: Callable[[], bytes]) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of the answer to a JSON object; that of a 4xx is ``{"error": message}``.

        Args:
            path: Below the root.
            body: Makes the object's bytes, when they are about to be sent.

        Raises:
            ChatUnavailableError: no answer after the last retry, or the client was closed meanwhile.
            ChatProtocolError: an answer that is no JSON object, after the last retry too; or too large.
            CancelledError: the errand that the calling thread is on was called off.
        """
        return self._retrying("POST", path, body)

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """The same for a plain request."""
        return self._retrying("GET", path, None)

    def close(self) -> None:
        """Close all connections; who waits for an answer, or to ask again, stops waiting."""
        self._open.call_off()
        self._lanes.close()

    def _retrying(self, method: str, path: str, body: Callable[[], bytes] | None) -> tuple[int, dict[str, Any]]:
        import tenacity

        errand = Errand.here(self._open)
        double = tenacity.wait_exponential(multiplier=self._backoff_s, max=_LONGEST_WAIT_S)
        grow = double + tenacity.wait_random(0, self._backoff_s)

        def pause(state: tenacity.RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            asked = failure.retry_after_s if isinstance(failure, _TryAgainError) else None
            return grow(state) if asked is None else asked

        def rest(seconds: float) -> None:
            with contextlib.suppress(TimeoutError):
                errand.result(Future[None](), timeout_s=seconds)

        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._retries + 1),
            wait=pause,
            sleep=rest,
            retry=tenacity.retry_if_exception_type(_TryAgainError),
            reraise=True,
        )
        try:
            with Turn(self._lanes, errand) as turn:
                return attempts(self._within_time, turn, method, path, body)
        except _TryAgainError as failure:
            tries = f" ({self._retries + 1} attempts)" if self._retries else ""
            raise type(failure.error)(f"{failure.error}{tries}") from failure
        except CancelledError:
            if self._open.over:
                raise self._was_closed(path) from None
            raise

    def _within_time(
        self, turn: Turn[Any], method: str, path: str, body: Callable[[], bytes] | None
    ) -> tuple[int, dict[str, Any]]:
        """One attempt that ends when its time is over, whatever the server does."""
        try:
            return turn.attempt(partial(self._once, method, path, body), timeout_s=self._timeout_s)
        except TimeoutError as error:
            raise self._too_slow(path) from error

    def _was_closed(self, path: str) -> ChatUnavailableError:
        return ChatUnavailableError(f"{self.shown_url}/{path}: the connection was closed; open another one")

    def _too_slow(self, path: str) -> _TryAgainError:
        return _TryAgainError(
            ChatUnavailableError(
                f"{self.shown_url}/{path}: no whole answer within {self._timeout_s:g} s; raise timeout_s if the model "
                f"is that slow"
            )
        )

    def _once(self, method: str, path: str, body: Callable[[], bytes] | None, line: Any) -> tuple[int, dict[str, Any]]:
        import httpx

        sent: dict[str, Any] = {}
        if body is not None:
            sent = {"content": body(), "headers": {"Content-Type": "application/json"}}
        try:
            with line.stream(method, f"{self._root}/{path}", **sent) as response:
                answer = bytearray()
                for chunk in response.iter_bytes():
                    answer += chunk
                    if len(answer) > _MAX_BODY_BYTES:
                        raise ChatProtocolError(
                            f"{self.shown_url}/{path}: the answer exceeds {_MAX_BODY_BYTES // 2**20} MiB and goes on; "
                            f"it begins {self._start(bytes(answer))}"
                        )
                return self._read(path, response, bytes(answer))
        except httpx.ConnectTimeout as error:
            raise self._not_there(path, f"no connection within {line.timeout.connect:g} s") from error
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
