"""What a multimodal LLM can be asked: the interface that local models and HTTP servers implement."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from PIL.Image import Image

from rarvision.errors import ChatUnsupportedError

__all__ = ["Capabilities", "Chat", "ChatRequest", "Completion", "ListConstraint", "Message"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn: texts and RGB images in the order in which the model sees them."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Image, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A conversation that ends where the model is to answer."""

    messages: tuple[Message, ...]

    @classmethod
    def of(cls, text: str, *images: Image) -> ChatRequest:
        """One user turn: the images, then the text."""
        return cls(messages=(Message(role="user", parts=(*images, text)),))

    @property
    def images(self) -> tuple[Image, ...]:
        """All images, in order."""
        return tuple(part for message in self.messages for part in message.parts if not isinstance(part, str))


@dataclass(frozen=True, kw_only=True, slots=True)
class ListConstraint:
    """Forces an answer to be ``['a', 'b', …]``: every name exactly once, in any order.

    Attributes:
        names: Distinct names; quotes and brackets in them are taken as they are.
    """

    names: tuple[str, ...]
    opening: str = "['"
    separator: str = "', '"
    closing: str = "']"


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """An answer: its text, and why it ended: ``stop`` of itself, ``length`` or ``characters`` at that limit."""

    text: str
    finish_reason: Literal["stop", "length", "characters"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What a backend serves; the ranking strategies check this before they ask.

    Attributes:
        option_log_probs: Log-probabilities of the answer's first token.
        continuation_log_probs: Log-likelihood of a given continuation.
        list_constraint: Answers confined to a permutation of names.
        max_images: Images in one request; None for no limit known.
        max_options: How many first-token options can be read (servers cap ``top_logprobs``); None for no limit.
    """

    option_log_probs: bool
    continuation_log_probs: bool
    list_constraint: bool
    max_images: int | None = None
    max_options: int | None = None


class Chat(abc.ABC):
    """A multimodal LLM, local or served.

    All methods take batches and answer in the order of the requests. Errors are `rarvision.errors.ChatError`.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The model's name, for reports."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes an answer, as JSON values and without secrets: runs that differ in it are not joined."""
        return {"name": self.name}

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What this backend can do."""

    @property
    @abc.abstractmethod
    def context_limit(self) -> int | None:
        """Tokens of prompt and answer together, None where unknown."""

    @property
    def parallel_calls(self) -> int:
        """Calls that may be under way at a time, each from a thread of its own; 1 where calls must not overlap.

        Where it is more, a stream of images is asked about one by one in so many threads, not batch by batch.
        """
        return 1

    @abc.abstractmethod
    def generate(
        self, requests: Sequence[ChatRequest], *, max_tokens: int, constraints: Sequence[ListConstraint] | None = None
    ) -> list[Completion]:
        """Greedy answers; with ``constraints`` (one a request), confined to them."""

    def option_log_probs(
        self, requests: Sequence[ChatRequest], options: Sequence[Sequence[str]]
    ) -> list[Float[np.ndarray, " options"]]:
        """Log-probability (natural, over the whole vocabulary) that the answer begins with each option.

        Args:
            requests: n conversations.
            options: For each, the options (letters, ``yes``/``no``), distinct in their first token.

        Returns:
            For each request a float64 vector, one value an option; ``-inf`` where the server did not report it.
        """
        del requests, options
        raise ChatUnsupportedError(f"{self.name} serves no log-probabilities of the answer's first token")

    def continuation_log_probs(
        self, requests: Sequence[ChatRequest], continuations: Sequence[Sequence[str]]
    ) -> list[tuple[Float[np.ndarray, " n"], tuple[int, ...]]]:
        """Log-likelihood of each continuation after its request, and its number of tokens.

        The request's prefix (images and prompt) is computed once for all its continuations.

        Returns:
            For each request: summed natural log-probabilities (float64), and token counts.
        """
        del requests, continuations
        raise ChatUnsupportedError(f"{self.name} serves no log-likelihood of given continuations")

    def count_tokens(self, request: ChatRequest) -> int | None:
        """Tokens of the rendered request, image tokens included; None where the backend cannot tell."""
        del request
        return None

    def close(self) -> None:  # noqa: B027 - optional: most backends hold nothing
        """Release connections or memory."""
