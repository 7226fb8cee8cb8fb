"""Fakes for code that talks to a multimodal LLM, and the contract that every `Chat` keeps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import numpy as np
from jaxtyping import Float
from PIL import Image

from rarvision.chat.base import Capabilities, Chat, ChatRequest, Completion, ListConstraint, Message
from rarvision.errors import ChatUnsupportedError

__all__ = ["FakeChat", "check_chat"]

_OPTION_LINE = re.compile(r"^([A-Z])\. (.+)$", re.MULTILINE)
_UNKNOWN = -20.0


@final
class FakeChat(Chat):
    """A chat without a model: it prefers names by given scores, whatever the prompt, and records what it was asked.

    Reads rarvision's own prompts, of the last turn: lettered options one a line, a name in a yes/no question, a list of
    names. A token is a word.

    Args:
        scores: Log-scores by name (higher is preferred), or a function of the request and a name; unknown names -20.
        answers: What `generate` says instead: one text for all, one a request in turn, or a function of the request.
        capabilities: What it claims and serves; everything by default.
        context_limit: As reported.
        error: Raised by every question.
        name: For reports.
        place_bias: Added to the score of the name at the first place of a list, the second, …: a model that prefers
            some letters or places, whatever stands there.

    Attributes:
        calls: Method and request of every question, in order.
    """

    def __init__(
        self,
        scores: Mapping[str, float] | Callable[[ChatRequest, str], float] | None = None,
        *,
        answers: str | Sequence[str] | Callable[[ChatRequest], str] | None = None,
        capabilities: Capabilities | None = None,
        context_limit: int | None = None,
        error: Exception | None = None,
        name: str = "fake",
        place_bias: Sequence[float] = (),
    ) -> None:
        self._scores = scores if scores is not None else {}
        self._answers = answers
        self._capabilities = capabilities or Capabilities(
            option_log_probs=True, continuation_log_probs=True, list_constraint=True
        )
        self._context_limit = context_limit
        self._error = error
        self._name = name
        self._place_bias = tuple(place_bias)
        self.calls: list[tuple[str, ChatRequest]] = []

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        """As given."""
        return self._capabilities

    @property
    def context_limit(self) -> int | None:
        """As given."""
        return self._context_limit

    def generate(
        self, requests: Sequence[ChatRequest], *, max_tokens: int, constraints: Sequence[ListConstraint] | None = None
    ) -> list[Completion]:
        """The scripted answers, else the names of the prompt, best first, as a list."""
        self._begin("generate", requests, served=constraints is None or self._capabilities.list_constraint)
        given = list(constraints) if constraints is not None else [None] * len(requests)
        return [self._answer(*item, max_tokens) for item in zip(requests, given, strict=True)]

    def option_log_probs(
        self, requests: Sequence[ChatRequest], options: Sequence[Sequence[str]]
    ) -> list[Float[np.ndarray, " options"]]:
        """Letters by the score of the name on their line; ``yes`` and ``no`` by the score's logistic function."""
        self._begin("option_log_probs", requests, served=self._capabilities.option_log_probs)
        found = []
        for request, letters in zip(requests, options, strict=True):
            lines = dict(_OPTION_LINE.findall(_question(request)))
            if {option.lower() for option in letters} == {"yes", "no"}:
                name = max((name for name in self._known(request)), key=len, default="")
                values = [self._score(request, name) if option.lower() == "yes" else 0.0 for option in letters]
            else:
                names = [lines.get(letter, letter) for letter in letters]
                values = [self._score(request, name) + self._bias(place) for place, name in enumerate(names)]
            with np.errstate(invalid="ignore"):  # a script may say that a score is not a number
                found.append(np.asarray(values) - np.logaddexp.reduce(values))
        return found

    def continuation_log_probs(
        self, requests: Sequence[ChatRequest], continuations: Sequence[Sequence[str]]
    ) -> list[tuple[Float[np.ndarray, " n"], tuple[int, ...]]]:
        """The score of the name inside each continuation, at most 0."""
        self._begin("continuation_log_probs", requests, served=self._capabilities.continuation_log_probs)
        found = []
        for request, texts in zip(requests, continuations, strict=True):
            names = [text.strip("[]'\" ") for text in texts]
            scores = self._placed(request, names)
            values = np.minimum(0.0, np.array([scores[name] for name in names], dtype=np.float64))
            found.append((values, tuple(max(1, len(text.split())) for text in texts)))
        return found

    def count_tokens(self, request: ChatRequest) -> int:
        """Words, and 1 for an image."""
        return len(_text(*request.messages).split()) + len(request.images)

    def _begin(self, method: str, requests: Sequence[ChatRequest], *, served: bool) -> None:
        if not served:
            raise ChatUnsupportedError(f"{self.name} was told not to serve {method} like this")
        self.calls.extend((method, request) for request in requests)
        if self._error is not None:
            raise self._error

    def _answer(self, request: ChatRequest, constraint: ListConstraint | None, max_tokens: int) -> Completion:
        if constraint is not None:
            scores = self._placed(request, constraint.names)
            best = sorted(constraint.names, key=lambda name: -scores[name])
            text = constraint.opening + constraint.separator.join(best) + constraint.closing
            return Completion(text=text, finish_reason="stop")
        if self._answers is None:
            scores = self._placed(request, self._known(request))
            best = sorted(scores, key=lambda name: -scores[name])
            text = "['" + "', '".join(best) + "']"
        elif isinstance(self._answers, str):
            text = self._answers
        elif callable(self._answers):
            text = self._answers(request)
        else:
            asked = sum(method == "generate" for method, _ in self.calls)
            position = next(i for i, (_, seen) in enumerate(reversed(self.calls)) if seen is request)
            text = self._answers[(asked - 1 - position) % len(self._answers)]
        words = re.findall(r"\s*\S+", text)
        if len(words) > max_tokens:
            return Completion(text="".join(words[:max_tokens]), finish_reason="length")
        return Completion(text=text, finish_reason="stop")

    def _known(self, request: ChatRequest) -> list[str]:
        """The names with a score that the prompt mentions, in the order of the scores."""
        text = _question(request)
        return [] if callable(self._scores) else [name for name in self._scores if name in text]

    def _placed(self, request: ChatRequest, names: Sequence[str]) -> dict[str, float]:
        """Scores by name, with what their places in the prompt's list add."""
        text = _question(request)
        scores = {name: self._score(request, name) for name in names}
        quoted = {name: text.find(f"'{name}'") for name in scores}
        listed = sorted((name for name, at in quoted.items() if at >= 0), key=quoted.__getitem__)
        return scores | {name: scores[name] + self._bias(place) for place, name in enumerate(listed)}

    def _bias(self, place: int) -> float:
        return self._place_bias[place] if place < len(self._place_bias) else 0.0

    def _score(self, request: ChatRequest, name: str) -> float:
        return self._scores(request, name) if callable(self._scores) else self._scores.get(name, _UNKNOWN)


def _text(*messages: Message) -> str:
    return "\n".join(part for message in messages for part in message.parts if isinstance(part, str))


def _question(request: ChatRequest) -> str:
    return _text(request.messages[-1])


def check_chat(chat: Chat, *, atol: float = 1e-3) -> None:
    """Check that a `Chat` keeps the contract: batches like single requests, in order; what it claims, it serves.

    Where it takes several calls at a time, those are compared with single ones too.

    Asks a dozen short questions about small images; for a server, a model that ignores images will do.

    Args:
        chat: The chat.
        atol: How far a batched log-probability may be from a single one, absolute.

    Raises:
        AssertionError: what is not kept.
    """
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (side, side + 8, 3), dtype=np.uint8)) for side in (40, 56, 48)]
    names = ("gold finch", "gold finch's", "barn owl")
    requests = [
        ChatRequest.of(f"Which category does the image show?\nA. {names[0]}\nB. {names[2]}\nAnswer:", images[0]),
        ChatRequest.of("Sort by similarity with the image: ['gold finch', 'barn owl'].", images[1]),
        ChatRequest.of("Is it so? Answer yes or no.", images[2]),
    ]
    _require(bool(chat.name), "name must not be empty")
    limit = chat.context_limit
    _require(limit is None or limit > 0, f"context_limit must be None or positive, got {limit}")
    counts = [chat.count_tokens(request) for request in requests]
    _require(all(count is None or count > 0 for count in counts), f"count_tokens must be positive, got {counts}")
    _check_generate(chat, requests, names)
    served = chat.capabilities
    options = [["A", "B"], ["A", "B", "C"], ["yes", "no"]]
    _check_method(chat.option_log_probs, requests, options, served=served.option_log_probs, atol=atol)
    texts = [["gold finch", "barn owl", "gold finch's"], ["['gold finch'"], ["yes", "no, it is not"]]
    _check_method(chat.continuation_log_probs, requests, texts, served=served.continuation_log_probs, atol=atol)


def _check_generate(chat: Chat, requests: list[ChatRequest], names: tuple[str, ...]) -> None:
    _require(chat.generate([], max_tokens=4) == [], "no requests must give no answers")
    together = chat.generate(requests, max_tokens=6)
    alone = [chat.generate([request], max_tokens=6)[0] for request in requests]
    _require(together == alone, f"batched answers differ from single ones: {together} and {alone}")
    _require(chat.parallel_calls >= 1, f"parallel_calls must be at least 1, got {chat.parallel_calls}")
    if chat.parallel_calls > 1:
        with ThreadPoolExecutor(min(chat.parallel_calls, 3 * len(requests))) as pool:
            found = list(pool.map(lambda request: chat.generate([request], max_tokens=6)[0], 3 * requests))
        _require(found == 3 * alone, f"answers from several threads differ from single ones: {found} and {3 * alone}")
    constraints = [ListConstraint(names=names[: 2 + row % 2]) for row in range(len(requests))]
    if not chat.capabilities.list_constraint:
        _require_unsupported(lambda: chat.generate(requests, max_tokens=6, constraints=constraints), "constraints")
        return
    for constraint, answer in zip(
        constraints, chat.generate(requests, max_tokens=200, constraints=constraints), strict=True
    ):
        written = answer.text.removeprefix(constraint.opening).removesuffix(constraint.closing)
        _require(
            sorted(written.split(constraint.separator)) == sorted(constraint.names) and answer.finish_reason == "stop",
            f"expected a permutation of {constraint.names}, got {answer}",
        )


def _check_method(
    ask: Callable[[Any, Any], list[Any]],
    requests: Sequence[ChatRequest],
    texts: Sequence[Sequence[str]],
    *,
    served: bool,
    atol: float,
) -> None:
    what = getattr(ask, "__name__", "the method")
    if not served:
        _require_unsupported(lambda: ask(requests, texts), what)
        return
    together = ask(requests, texts)
    _require(len(together) == len(requests), f"{what}: expected {len(requests)} results, got {len(together)}")
    for request, choices, result in zip(requests, texts, together, strict=True):
        single = ask([request], [choices])[0]
        values, again = (result[0], single[0]) if isinstance(result, tuple) else (result, single)
        _require(
            values.dtype == np.float64 and values.shape == (len(choices),), f"{what}: {values!r} is no float64 vector"
        )
        _require(bool((values <= 1e-6).all()), f"{what}: log-probabilities must not be positive, got {values}")
        _require(np.allclose(values, again, atol=atol), f"{what}: batched {values} differs from single {again}")
        if isinstance(result, tuple):
            counts = result[1]
            _require(len(counts) == len(choices) and min(counts) >= 1, f"{what}: token counts {counts}")
        else:
            _require(np.exp(values).sum() <= 1 + 1e-4, f"{what}: probabilities sum to {np.exp(values).sum()}")


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - it reads as an assertion
    if not condition:
        raise AssertionError(message)


def _require_unsupported(ask: Callable[[], object], what: str) -> None:
    try:
        ask()
    except ChatUnsupportedError:
        return
    raise AssertionError(f"{what}: not among the capabilities, so ChatUnsupportedError was expected")
