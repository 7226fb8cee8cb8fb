"""A multimodal LLM behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, hosted."""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, final
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Float

from rarvision.chat.base import Capabilities, Chat, ChatRequest, Completion, ListConstraint
from rarvision.chat.rendering import EncodedImages, OpenAIRequest
from rarvision.chat.threads import ordered
from rarvision.chat.transport import JsonClient
from rarvision.errors import (
    ChatError,
    ChatProtocolError,
    ChatUnavailableError,
    ChatUnsupportedError,
    ContextLengthError,
    ImageError,
    OptionError,
)

__all__ = ["HTTPChat"]

_T = TypeVar("_T")

_MAX_TOP_LOGPROBS = 20
"""The public API's cap; servers refuse more."""

_FEW_TOP_LOGPROBS = 5
"""What is asked for where a server refuses more without saying how many it serves."""

_MAX_GUIDED_NAMES = 6
"""A regular expression of all permutations has about 1,700 names for 6, and 12,000 for 7."""

_ASK_AGAIN_AFTER_S = 30.0
"""A server that could not say what it serves is not asked that again sooner, unless it answers something else."""

_READY = 8
"""Requests whose images are encoded while all that may be under way are, so that no place stays empty."""

_STATUS_ADVICE = {
    401: "check the API key and what it may use",
    403: "check the API key and what it may use",
    404: "check the address (does it end in /v1?) and the model's name",
}
_NO_IMAGE_HINTS = (
    "multimodal",
    "multi-modal",
    "not support image",
    "not accept image",
    "no support for image",
    "image input is not supported",
    "images are not supported",
    "image_url is not supported",
    "text-only",
    "too many images",
    "at most",
)
_CONTEXT_HINTS = ("context length", "context window", "maximum context", "context size", "too many tokens", "too long")


class _TooManyLogProbsError(ChatUnsupportedError):
    """A refusal of so many ``top_logprobs``; how many to ask for instead."""

    def __init__(self, message: str, *, served: int) -> None:
        super().__init__(message)
        self.served = served


@final
class HTTPChat(Chat):
    """A served model, over the public chat-completions API.

    Requests run ``concurrency`` at a time, whichever thread asks, and are answered in order; only those in flight and a
    few that come next hold encoded images. A connection that fails, a timeout, 408, 429, 5xx and answers that are no
    JSON object are retried with exponential back-off and jitter, or as the server's ``Retry-After`` says. Ctrl-C ends
    the waiting at once.

    The API has no log-likelihood of given texts: `continuation_log_probs` is not served. Log-probabilities of the first
    token are read from ``top_logprobs`` (at most 20 tokens) where the server reports them.

    Args:
        base_url: The API's root, such as ``http://127.0.0.1:8000/v1``; ``/v1`` is added to a bare host.
        model: The model's name; None takes the only one that the server lists.
        api_key: Sent as a bearer token; never shown.
        concurrency: Requests in flight.
        timeout_s: Seconds for one attempt, from connecting (10 at most) to the last byte.
        retries: Attempts after the first.
        backoff_s: First wait between attempts, seconds; doubles each time, with jitter, up to 30.
        image_format: ``jpeg`` (quality 95) or ``png`` (lossless, larger).
        extra_body: More fields of the request, passed on as they are (``{"chat_template_kwargs": {"enable_thinking":
            False}}``); a field set to None is left out, such as ``temperature`` where a model refuses it.
        option_log_probs: Whether the server reports log-probabilities; None asks it with one short request when first
            needed.
        top_logprobs: How many tokens to ask for, 1 to 20. A server that refuses so many is asked for as many as it
            names, else for 5, from then on.
        guided: The server's field for a regular expression that confines answers: ``structured_outputs`` (vLLM),
            ``guided_regex`` (older vLLM), ``regex`` (SGLang); None for servers without. Serves lists of up to 6 names.
        max_images: Images in one request, where known.
        context_limit: Tokens of prompt and answer; None takes ``max_model_len`` where the server lists it (vLLM).
        max_answer_chars: Longer answers are cut, and end for ``characters``.

    Raises:
        OptionError: an option's value is out of range.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        retries: int = 4,
        backoff_s: float = 0.5,
        image_format: Literal["jpeg", "png"] = "jpeg",
        extra_body: Mapping[str, Any] | None = None,
        option_log_probs: bool | None = None,
        top_logprobs: int = _MAX_TOP_LOGPROBS,
        guided: Literal["structured_outputs", "guided_regex", "regex"] | None = None,
        max_images: int | None = None,
        context_limit: int | None = None,
        max_answer_chars: int = 100_000,
    ) -> None:
        if concurrency < 1:
            raise OptionError(f"concurrency must be at least 1, got {concurrency}")
        if not 1 <= top_logprobs <= _MAX_TOP_LOGPROBS:
            raise OptionError(f"top_logprobs must be 1 to {_MAX_TOP_LOGPROBS}, got {top_logprobs}")
        if image_format not in ("jpeg", "png"):
            raise OptionError(f"image_format must be 'jpeg' or 'png', got {image_format!r}")
        if guided not in (None, "structured_outputs", "guided_regex", "regex"):
            raise OptionError(f"guided must be None, 'structured_outputs', 'guided_regex' or 'regex', got {guided!r}")
        self._client = JsonClient(
            _api_root(base_url),
            api_key=api_key,
            posts=concurrency,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
        )
        self._model = model
        self._at_once = 1 if concurrency == 1 else concurrency + min(concurrency, _READY)
        self._image_format: Literal["jpeg", "png"] = image_format
        self._extra_body = dict(extra_body or {})
        self._option_log_probs = option_log_probs
        self._top_logprobs = top_logprobs
        self._served_top_logprobs = top_logprobs
        self._guided = guided
        self._max_images = max_images
        self._context_limit = context_limit
        self._max_answer_chars = max_answer_chars
        self._limit_field = "max_tokens"
        self._listing: list[dict[str, Any]] | None = None
        self._silent_until: dict[str, float] = {}
        self._lock = threading.Lock()
        self._finding_out = threading.Lock()  # what the server serves is asked by one thread, for all

    def __repr__(self) -> str:
        return f"HTTPChat({self._client.shown_url!r}, model={self._model!r})"

    @property
    def name(self) -> str:
        """The model's name as given; the server's address until it is known."""
        return self._model or f"the model at {self._client.shown_url}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name, address, image format and what goes beside each request; no key."""
        return {
            "name": self.name,
            "url": self._client.shown_url,
            "image_format": self._image_format,
            "extra_body": self._extra_body,
            "guided": self._guided,
            "top_logprobs": self._top_logprobs,
        }

    @property
    def capabilities(self) -> Capabilities:
        """What the server does; asks it once whether it reports log-probabilities, unless that was given.

        While the server cannot be reached, log-probabilities are taken to be served, so that the failure shows where
        an answer is asked for. It is then asked again after half a minute, or once it has answered a request.
        """
        with self._finding_out:
            if self._option_log_probs is None:
                self._option_log_probs = self._about("log-probabilities", self._probe_log_probs)
            served = self._option_log_probs
        return Capabilities(
            option_log_probs=served is not False,
            continuation_log_probs=False,
            list_constraint=self._guided is not None,
            max_images=self._max_images,
            max_options=self._served_top_logprobs,
        )

    @property
    def context_limit(self) -> int | None:
        """As given, else the server's ``max_model_len``; None where unknown."""
        with self._finding_out:
            if self._context_limit is None:
                self._context_limit = self._about("context length", self._listed_context_limit)
            return self._context_limit

    @property
    def parallel_calls(self) -> int:
        """Those in flight, and a few whose images are being encoded."""
        return self._at_once

    def generate(
        self, requests: Sequence[ChatRequest], *, max_tokens: int, constraints: Sequence[ListConstraint] | None = None
    ) -> list[Completion]:
        """Greedy answers (temperature 0), in the order of the requests.

        Raises:
            ChatUnavailableError: no answer after the last retry.
            ChatProtocolError: an answer that is not the protocol.
            ChatUnsupportedError: constraints without ``guided``, or over more names than it serves; images refused.
            ContextLengthError: the server says that the prompt does not fit.
        """
        if max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, got {max_tokens}")
        if constraints is None:
            extras: list[dict[str, Any]] = [{}] * len(requests)
        else:
            if len(constraints) != len(requests):
                raise OptionError(f"expected one constraint a request: {len(requests)}, got {len(constraints)}")
            extras = [self._guide(constraint) for constraint in constraints]

        def ask(request: OpenAIRequest, extra: dict[str, Any]) -> Completion:
            return self._completion(self._ask(request, max_tokens, extra))

        return self._each(ask, requests, extras)

    def option_log_probs(
        self, requests: Sequence[ChatRequest], options: Sequence[Sequence[str]]
    ) -> list[Float[np.ndarray, " options"]]:
        """Log-probability that the answer begins with each option, from ``top_logprobs``.

        A token counts for the option that it is the start of; spellings with and without a leading space are added up.
        ``-inf`` where the server did not report an option among its tokens.

        Raises:
            ChatUnsupportedError: the server reports no log-probabilities; names what works.
            OptionError: options that no token could tell apart.
        """
        if len(requests) != len(options):
            raise OptionError(f"expected one list of options a request: {len(requests)}, got {len(options)}")
        for texts in options:
            if not texts or not all(texts) or len(set(texts)) != len(texts):
                raise OptionError(f"options must be distinct and not empty, got {list(texts)!r}")
        if self._option_log_probs is False:
            raise self._no_log_probs()

        def ask(request: OpenAIRequest, texts: Sequence[str]) -> Float[np.ndarray, " options"]:
            reported = self._first_token(request)
            if reported is None:
                raise self._no_log_probs()
            return _match_options(texts, reported)

        return self._each(ask, requests, options)

    def continuation_log_probs(
        self, requests: Sequence[ChatRequest], continuations: Sequence[Sequence[str]]
    ) -> list[tuple[Float[np.ndarray, " n"], tuple[int, ...]]]:
        """Not served: the public API reports probabilities of its own answers only.

        Raises:
            ChatUnsupportedError: always; names the strategies that work.
        """
        del requests, continuations
        raise ChatUnsupportedError(
            f"{self.name}: the chat API has no log-likelihood of given texts; use the strategy 'generate', or 'choice' "
            f"where the server reports log-probabilities, or load the model with LocalChat"
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _each(
        self, ask: Callable[[OpenAIRequest, Any], _T], requests: Sequence[ChatRequest], others: Sequence[Any]
    ) -> list[_T]:
        """Ask each request, with what belongs to it, in threads; the first failure calls off the others."""
        images = EncodedImages(requests, self._image_format)

        def one(item: tuple[ChatRequest, Any]) -> _T:
            return ask(OpenAIRequest(item[0], images), item[1])

        items = list(zip(requests, others, strict=True))
        if len(items) <= 1 or self._at_once == 1:
            return [one(item) for item in items]
        self._model_name()  # ask once, not in every thread
        return ordered(one, items, threads=self._at_once)

    def _ask(self, request: OpenAIRequest, max_tokens: int, extra: Mapping[str, Any]) -> dict[str, Any]:
        """One request; the first choice of its answer."""
        fields: dict[str, Any] = {
            "model": self._model_name(),
            "temperature": 0,
            self._limit_field: max_tokens,
            **extra,
            **self._extra_body,
        }
        status, answer = self._client.post("chat/completions", partial(request.body, fields))
        if status != 200:
            message = str(answer.get("error"))
            if "max_completion_tokens" in message and "max_completion_tokens" not in fields:
                self._limit_field = "max_completion_tokens"  # newer hosted models refuse the older name
                return self._ask(request, max_tokens, extra)
            raise self._refusal(status, message, asked_log_probs=fields.get("top_logprobs"))
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ChatProtocolError(f"{self.name}: expected 'choices' with an answer, got {str(answer)[:200]!r}")
        choice: dict[str, Any] = choices[0]
        self._silent_until.pop("log-probabilities", None)
        return choice

    def _completion(self, choice: dict[str, Any]) -> Completion:
        message = choice.get("message")
        content = message.get("content", "") if isinstance(message, dict) else message
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if not isinstance(message, dict) or not isinstance(content, str | None):
            raise ChatProtocolError(f"{self.name}: expected a message with text, got {str(choice)[:200]!r}")
        text = content or ""
        if len(text) > self._max_answer_chars:
            return Completion(text=text[: self._max_answer_chars], finish_reason="characters")
        return Completion(text=text, finish_reason="length" if choice.get("finish_reason") == "length" else "stop")

    def _first_token(self, request: OpenAIRequest) -> list[tuple[str, float]] | None:
        """Texts and log-probabilities of the likeliest first tokens; None where the server does not report them."""
        asked = self._served_top_logprobs
        try:
            choice = self._ask(request, 1, {"logprobs": True, "top_logprobs": asked})
        except _TooManyLogProbsError as error:
            if error.served >= asked:  # not what was asked for here: extra_body decides
                raise
            self._served_top_logprobs = min(self._served_top_logprobs, error.served)
            return self._first_token(request)
        reported = choice.get("logprobs")
        content = reported.get("content") if isinstance(reported, dict) else None
        if content is None:
            return None
        if content == []:  # the answer ended at once: no token, so no option
            return []
        try:
            first = content[0]
            tokens = first.get("top_logprobs") or [first]
            found = [(str(item["token"]), float(item["logprob"])) for item in tokens]
            if any(math.isnan(log_prob) for _, log_prob in found):
                raise ValueError("not a number")  # noqa: TRY301 - one message for all shapes of nonsense
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ChatProtocolError(
                f"{self.name}: expected logprobs.content[0].top_logprobs, got {str(reported)[:200]!r}"
            ) from error
        return found

    def _about(self, question: str, ask: Callable[[], _T]) -> _T | None:
        """What the server serves; None where it does not say, and for a while after."""
        if time.monotonic() < self._silent_until.get(question, 0.0):
            return None
        try:
            return ask()
        except ChatError:
            self._silent_until[question] = time.monotonic() + _ASK_AGAIN_AFTER_S
            return None

    def _listed_context_limit(self) -> int | None:
        found = [item.get("max_model_len") for item in self._models() if item.get("id") == self._model_name()]
        return next((int(value) for value in found if isinstance(value, int)), None)

    def _probe_log_probs(self) -> bool:
        question = ChatRequest.of("Answer with the letter A.")
        try:
            return self._first_token(OpenAIRequest(question, EncodedImages([question], self._image_format))) is not None
        except ChatUnsupportedError:
            return False

    def _no_log_probs(self) -> ChatUnsupportedError:
        self._option_log_probs = False
        return ChatUnsupportedError(
            f"{self.name} reports no log-probabilities (logprobs is missing from its answers), so the strategies that "
            f"read them cannot work; use the strategy 'generate', or load the model with LocalChat"
        )

    def _refusal(self, status: int, message: str, *, asked_log_probs: int | None) -> ChatError | ImageError:
        """A 4xx answer as an error of ours."""
        lowered = message.lower()
        said = f"{self.name} answered {status}: {message[:300]}"
        if status in _STATUS_ADVICE:
            return ChatUnavailableError(f"{said}; {_STATUS_ADVICE[status]}")
        if any(hint in lowered for hint in _CONTEXT_HINTS):
            return ContextLengthError(f"{said}; ask about fewer candidates (a smaller k) or shorten the prompt")
        if asked_log_probs is not None and "logprobs" in lowered:
            served = _smaller_count(lowered, than=asked_log_probs)
            return self._no_log_probs() if served is None else _TooManyLogProbsError(said, served=served)
        if any(hint in lowered for hint in _NO_IMAGE_HINTS):
            return ChatUnsupportedError(f"{said}; the server takes no (or fewer) images with this model")
        if "image" in lowered:
            return ImageError(f"{said}; the server refuses this image, others may pass")
        return ChatProtocolError(f"{said}; the server does not take a request of the public chat API")

    def _models(self) -> list[dict[str, Any]]:
        with self._lock:
            if self._listing is None:
                status, answer = self._client.get("models")
                data = answer.get("data")
                if status != 200 or not isinstance(data, list):
                    raise ChatUnavailableError(
                        f"{self._client.shown_url}/models answered {status}: {str(answer.get('error', answer))[:200]}; "
                        f"give the model's name: HTTPChat(url, model=…)"
                    )
                self._listing = [item for item in data if isinstance(item, dict)]
            return self._listing

    def _model_name(self) -> str:
        if self._model is None:
            names = [str(item.get("id")) for item in self._models()]
            if len(names) != 1:
                listed = ", ".join(names[:20]) or "none"
                raise OptionError(
                    f"{self._client.shown_url} lists {len(names)} models ({listed}); choose: HTTPChat(url, model=…)"
                )
            self._model = names[0]
        return self._model

    def _guide(self, constraint: ListConstraint) -> dict[str, Any]:
        """The request's field that confines the answer."""
        if self._guided is None:
            raise ChatUnsupportedError(
                f"{self.name}: constrained answers need a server with guided decoding: say which with "
                f"guided='structured_outputs' (vLLM), 'guided_regex' or 'regex', or use 'generate' unconstrained"
            )
        names = constraint.names
        if not names or len(set(names)) != len(names) or not all(names):
            raise OptionError(f"a list constraint needs distinct, non-empty names, got {list(names)!r}")
        if len(names) > _MAX_GUIDED_NAMES:
            raise ChatUnsupportedError(
                f"{self.name}: guided decoding serves lists of up to {_MAX_GUIDED_NAMES} names, got {len(names)}; ask "
                f"unconstrained, or about fewer candidates (a smaller k)"
            )
        orders = (constraint.separator.join(order) for order in itertools.permutations(names))
        body = "|".join(re.escape(order) for order in orders)
        pattern = f"{re.escape(constraint.opening)}({body}){re.escape(constraint.closing)}"
        return {self._guided: {"regex": pattern} if self._guided == "structured_outputs" else pattern}


def _api_root(base_url: str) -> str:
    """The address without what users paste by mistake; raises `OptionError` where it is none."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OptionError(f"expected an address like http://127.0.0.1:8000/v1, got {base_url.rpartition('@')[2]!r}")
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/") or "/v1"
    return parts._replace(path=path, query="", fragment="").geturl()


def _smaller_count(refusal: str, *, than: int) -> int | None:
    """How many ``top_logprobs`` to ask for after a refusal of more; None where it is no matter of their number."""
    named = [int(number) for number in re.findall(r"(?<![\w.-])\d+(?![\w-]|\.\d)", refusal)]
    fewer = [number for number in named if 1 <= number < than]
    if fewer:
        return max(fewer)
    return _FEW_TOP_LOGPROBS if "top_logprobs" in refusal and than > _FEW_TOP_LOGPROBS else None


def _match_options(options: Sequence[str], reported: Sequence[tuple[str, float]]) -> Float[np.ndarray, " options"]:
    """Add up the tokens that are the start of one option, and of no other."""
    found: list[list[float]] = [[] for _ in options]
    for token, log_prob in reported:
        text = token.lstrip(" ▁Ġ\n")
        owners = [i for i, option in enumerate(options) if text and option.startswith(text)]
        exact = [i for i in owners if options[i] == text]
        owners = exact or owners
        if len(owners) == 1:
            found[owners[0]].append(log_prob)
    return np.array([np.logaddexp.reduce(values) if values else -math.inf for values in found], dtype=np.float64)
