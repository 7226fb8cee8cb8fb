"""How an MLLM is asked to rank: by writing the list, choosing a letter, name by name, or by likelihood."""

from __future__ import annotations

import abc
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import numpy as np
from jaxtyping import Float
from PIL.Image import Image

from rarvision.chat.base import Capabilities, Chat, ChatRequest, Completion, ListConstraint
from rarvision.errors import ChatUnsupportedError, InputError, OptionError
from rarvision.ranking.parsing import parse_ranking
from rarvision.ranking.prompts import (
    CHOICE_PROMPT,
    NAMING_PROMPT,
    RANKING_PROMPTS,
    YES_NO_PROMPT,
    choice_prompt,
    format_list,
    option_letters,
    ranking_prompt,
    yes_no_prompt,
)
from rarvision.types import Ranking

__all__ = ["STRATEGIES", "BaseRanker", "Ranker", "Strategy", "servable_strategies", "strategy_template"]

Strategy = Literal["generate", "choice", "likelihood", "pointwise"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
"""``generate``: the paper's, the list is written out; ``choice``: log-probabilities of the option letters, one forward
pass; ``likelihood``: log-likelihood of each name as the answer; ``pointwise``: yes/no for each name."""

_BY_PREFERENCE: tuple[Strategy, ...] = ("likelihood", "choice", "generate")
_Scores = list[Float[np.ndarray, " n"]]
_TINY = 1e-12
_MIN_ANSWER_TOKENS = 64


def servable_strategies(capabilities: Capabilities) -> tuple[Strategy, ...]:
    """The strategies that a backend with these capabilities can serve."""
    served: dict[Strategy, bool] = {
        "generate": True,
        "choice": capabilities.option_log_probs,
        "likelihood": capabilities.continuation_log_probs,
        "pointwise": capabilities.option_log_probs,
    }
    return tuple(strategy for strategy in STRATEGIES if served[strategy])


class BaseRanker(abc.ABC):
    """Ranks candidate names for images; an author writes `name` and `_rank_distinct`.

    The base asks for each repeated name once, answers lists of none or one without asking, and checks what comes back.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """For reports: the model and how it is asked."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes the outcome, as JSON values; `evaluate` refuses to resume under other settings."""
        return {"name": self.name}

    @property
    def strategy(self) -> str:
        """The strategy's name, as it appears in each `Ranking`."""
        return self.name

    @abc.abstractmethod
    def _rank_distinct(self, images: Sequence[Image], names: Sequence[tuple[str, ...]]) -> list[Ranking]:
        """Rank at least two distinct names for each RGB image."""

    def rank(self, image: Image, names: Sequence[str]) -> Ranking:
        """Rank the names for one image; see `rank_batch`."""
        return self.rank_batch([image], [names])[0]

    def rank_batch(self, images: Sequence[Image], names: Sequence[Sequence[str]]) -> list[Ranking]:
        """Rank each image's names.

        Args:
            images: n RGB images.
            names: Each image's candidates in retrieval's order; any number, repeated names allowed.

        Returns:
            n rankings, whose ``order`` counts in the given names. Places of a repeated name stay together.

        Raises:
            InputError: The counts differ, or a name is blank.
            ChatError: The MLLM cannot be asked. An answer that cannot be read is a status, not an error.
        """
        if len(images) != len(names):
            raise InputError(f"expected one list of names for each image: {len(images)} images, {len(names)} lists")
        for candidates in names:
            if any(not name.strip() for name in candidates):
                raise InputError(f"candidate names must not be blank, got {list(candidates)!r}")
        distinct = [tuple(dict.fromkeys(candidates)) for candidates in names]
        asked = [i for i, candidates in enumerate(distinct) if len(candidates) > 1]
        answers: dict[int, Ranking] = {}
        if asked:
            rankings = self._rank_distinct([images[i] for i in asked], [distinct[i] for i in asked])
            answers = dict(zip(asked, rankings, strict=True))
        return [
            _spread(answers.get(i) or _trivial(len(distinct[i]), self.strategy), distinct[i], candidates)
            for i, candidates in enumerate(names)
        ]


def _trivial(n: int, strategy: str) -> Ranking:
    return Ranking(order=tuple(range(n)), log_scores=(0.0,) * n, strategy=strategy)


def _spread(ranking: Ranking, distinct: Sequence[str], names: Sequence[str]) -> Ranking:
    """A ranking of distinct names -> of the names with their repeats."""
    if len(ranking.order) != len(distinct):
        raise InputError(f"the ranker returned {len(ranking.order)} places for {len(distinct)} names")
    if len(distinct) == len(names):
        return ranking
    index = {name: i for i, name in enumerate(distinct)}
    places: list[list[int]] = [[] for _ in distinct]
    for place, name in enumerate(names):
        places[index[name]].append(place)
    scores = ranking.log_scores
    return replace(
        ranking,
        order=tuple(place for i in ranking.order for place in places[i]),
        log_scores=None if scores is None else tuple(scores[index[name]] for name in names),
    )


class Ranker(BaseRanker):
    """Asks an MLLM to rank the retrieved names (the paper's ranking stage, section 3.2).

    Args:
        chat: The MLLM.
        strategy: One of `STRATEGIES`, or ``auto``: the first of likelihood, choice, generate that the chat serves.
        prompt: ``generate`` and ``likelihood``: ``paper`` (default), ``in-context``, ``long``, or a template with the
            field ``{categories}`` (and ``{k}``). ``choice``: a template with ``{options}``; ``pointwise``: with
            ``{category}``; ``likelihood`` without the list: any text.
        constrained: ``generate`` only: confine the answer to a permutation of the names.
        with_list: ``likelihood`` only: score ``['name'`` as the start of the list under the ranking prompt (True), or
            the bare name as the answer to the naming prompt (False). A bare name that begins another one is favoured.
        normalize: ``likelihood`` only: ``sum`` of the tokens' log-probabilities, or ``mean`` (length-corrected).
        shuffle: Seed of a random order in which the names are shown, mapped back afterwards; None shows retrieval's
            order. For controls: the order depends on the seed and the names only.
        max_tokens: ``generate`` only: the answer's limit; None gives the list room. Thinking models need more.

    Raises:
        OptionError: An unknown strategy or option, or a prompt without its field.
        ChatUnsupportedError: The chat cannot serve the strategy; the message names those that it can.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        strategy: Strategy | Literal["auto"] = "auto",
        prompt: str | None = None,
        constrained: bool = False,
        with_list: bool = True,
        normalize: Literal["sum", "mean"] = "sum",
        shuffle: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        served = servable_strategies(chat.capabilities)
        if strategy == "auto":
            strategy = next(preferred for preferred in _BY_PREFERENCE if preferred in served)
        if strategy not in STRATEGIES:
            raise OptionError(f"unknown strategy {strategy!r}; expected 'auto' or one of {', '.join(STRATEGIES)}")
        if normalize not in ("sum", "mean"):
            raise OptionError(f"normalize must be 'sum' or 'mean', got {normalize!r}")
        if max_tokens is not None and max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, got {max_tokens}")
        if constrained and strategy != "generate":
            raise OptionError(f"constrained goes with the strategy 'generate', got {strategy!r}")
        if not with_list and strategy != "likelihood":
            raise OptionError(f"with_list=False goes with the strategy 'likelihood', got {strategy!r}")
        if strategy not in served:
            raise ChatUnsupportedError(
                f"{chat.name} cannot serve the strategy {strategy!r}; it can serve: {', '.join(served)}"
            )
        if constrained and not chat.capabilities.list_constraint:
            raise ChatUnsupportedError(
                f"{chat.name} cannot confine its answers to the candidates; use constrained=False, or one of: "
                f"{', '.join(served)}"
            )
        self._chat = chat
        self._strategy: Strategy = strategy
        self._template = strategy_template(strategy, prompt, with_list=with_list)
        self._constrained = constrained
        self._with_list = with_list
        self._normalize = normalize
        self._shuffle = shuffle
        self._max_tokens = max_tokens

    @property
    def chat(self) -> Chat:
        """The MLLM that is asked."""
        return self._chat

    @property
    def strategy(self) -> Strategy:
        """The strategy in use, never ``auto``."""
        return self._strategy

    @property
    def name(self) -> str:
        """The MLLM's name and the strategy."""
        detail = " constrained" if self._constrained else "" if self._with_list else " without list"
        return f"{self._chat.name} ({self._strategy}{detail})"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Chat, strategy, prompt and options, as JSON values."""
        return {
            "chat": dict(self._chat.settings),
            "strategy": self._strategy,
            "prompt": self._template,
            "constrained": self._constrained,
            "with_list": self._with_list,
            "normalize": self._normalize,
            "shuffle": self._shuffle,
            "max_tokens": self._max_tokens,
        }

    def _rank_distinct(self, images: Sequence[Image], names: Sequence[tuple[str, ...]]) -> list[Ranking]:
        orders = [_shown_order(candidates, self._shuffle) for candidates in names]
        shown = [tuple(candidates[i] for i in order) for candidates, order in zip(names, orders, strict=True)]
        if self._strategy == "generate":
            completions = self._generate(images, shown)
            return [self._read(*answered) for answered in zip(completions, shown, orders, strict=True)]
        score = {"choice": self._choose, "likelihood": self._score_names, "pointwise": self._ask_each}[self._strategy]
        scores = [np.asarray(values, dtype=np.float64) for values in score(images, shown)]
        return [self._from_scores(values[np.argsort(order)]) for values, order in zip(scores, orders, strict=True)]

    def _generate(self, images: Sequence[Image], names: Sequence[tuple[str, ...]]) -> list[Completion]:
        requests = [
            ChatRequest.of(ranking_prompt(candidates, self._template), image)
            for image, candidates in zip(images, names, strict=True)
        ]
        return self._chat.generate(
            requests,
            max_tokens=self._max_tokens or self._room(names),
            constraints=[ListConstraint(names=candidates) for candidates in names] if self._constrained else None,
        )

    def _room(self, names: Sequence[tuple[str, ...]]) -> int:
        """Tokens for the longest list, said twice over; its bytes where the chat cannot count."""
        longest = max((format_list(candidates) for candidates in names), key=len)
        counted = self._chat.count_tokens(ChatRequest.of(longest))
        room = len(longest.encode(errors="replace")) + 16 if counted is None else 2 * counted
        return max(room, _MIN_ANSWER_TOKENS)

    def _read(self, completion: Completion, shown: Sequence[str], order: Sequence[int]) -> Ranking:
        """The answer, in places of the names as given: ``order[i]`` is the place of the name shown at i."""
        parsed = parse_ranking(completion.text, shown, missing_order=[int(i) for i in np.argsort(order)])
        reason = parsed.reason
        if reason is not None and completion.finish_reason != "stop":
            reason += f"; cut at the {'token' if completion.finish_reason == 'length' else 'character'} limit"
        return Ranking(
            order=tuple(order[i] for i in parsed.order),
            status=parsed.status,
            reason=reason,
            raw=completion.text,
            strategy=self._strategy,
        )

    def _choose(self, images: Sequence[Image], names: Sequence[tuple[str, ...]]) -> _Scores:
        letters = [option_letters(len(candidates)) for candidates in names]
        most, limit = max(map(len, letters)), self._chat.capabilities.max_options
        if limit is not None and most > limit:
            others = [strategy for strategy in servable_strategies(self._chat.capabilities) if strategy != "choice"]
            raise ChatUnsupportedError(
                f"{self._chat.name} reports the {limit} likeliest options, {most} were asked; lower k, or use one of: "
                f"{', '.join(others)}"
            )
        requests = [
            ChatRequest.of(choice_prompt(candidates, self._template), image)
            for image, candidates in zip(images, names, strict=True)
        ]
        return self._chat.option_log_probs(requests, letters)

    def _score_names(self, images: Sequence[Image], names: Sequence[tuple[str, ...]]) -> _Scores:
        if self._with_list:
            prompts = [ranking_prompt(candidates, self._template) for candidates in names]
            continuations = [[f"['{name}'" for name in candidates] for candidates in names]
        else:
            prompts = [self._template] * len(names)
            continuations = [list(candidates) for candidates in names]
        requests = [ChatRequest.of(prompt, image) for image, prompt in zip(images, prompts, strict=True)]
        answers = self._chat.continuation_log_probs(requests, continuations)
        if self._normalize == "sum":
            return [log_probs for log_probs, _ in answers]
        return [log_probs / np.maximum(np.asarray(counts, dtype=np.float64), 1.0) for log_probs, counts in answers]

    def _ask_each(self, images: Sequence[Image], names: Sequence[tuple[str, ...]]) -> _Scores:
        requests = [
            ChatRequest.of(yes_no_prompt(name, self._template), image)
            for image, candidates in zip(images, names, strict=True)
            for name in candidates
        ]
        answers = self._chat.option_log_probs(requests, [("yes", "no")] * len(requests))
        odds = np.asarray([_log_odds(answer) for answer in answers], dtype=np.float64)
        ends = np.cumsum([len(candidates) for candidates in names])[:-1]
        return np.split(odds, ends)

    def _from_scores(self, scores: Float[np.ndarray, " n"]) -> Ranking:
        """Best score first, ties in retrieval's order; what is not a number means retrieval's order."""
        wrong = int(np.count_nonzero(np.isnan(scores) | (scores == np.inf)))
        unreported = int(np.count_nonzero(scores == -np.inf))
        if wrong or unreported == len(scores):
            reason = (
                f"{wrong} of {len(scores)} scores are not numbers" if wrong else "no candidate's score was reported"
            )
            return Ranking(order=tuple(range(len(scores))), strategy=self._strategy, status="fallback", reason=reason)
        return Ranking(
            order=tuple(int(i) for i in np.argsort(-scores, kind="stable")),
            log_scores=tuple(float(score) for score in scores),
            strategy=self._strategy,
            status="repaired" if unreported else "ranked",
            reason=f"{unreported} of {len(scores)} scores were not reported" if unreported else None,
        )


def strategy_template(strategy: Strategy, prompt: str | None, *, with_list: bool = True) -> str:
    """The template that a prompt's name or text stands for; checked by filling it once.

    Args:
        strategy: One of `STRATEGIES`.
        prompt: As `Ranker` takes it; None for the strategy's own.
        with_list: As `Ranker` takes it.

    Raises:
        OptionError: An unknown name, or a template without its field.
    """
    if strategy == "choice":
        template = prompt or CHOICE_PROMPT
        choice_prompt(["a"], template)
    elif strategy == "pointwise":
        template = prompt or YES_NO_PROMPT
        yes_no_prompt("a", template)
    elif strategy == "likelihood" and not with_list:
        template = prompt or NAMING_PROMPT
        if template in RANKING_PROMPTS or "{categories}" in template:
            raise OptionError(f"likelihood without the list takes a prompt without {{categories}}, got {template!r}")
    else:
        known = RANKING_PROMPTS.get(prompt or "paper")
        if known is None and "{" not in cast("str", prompt):
            raise OptionError(
                f"unknown prompt {prompt!r}; expected one of {', '.join(RANKING_PROMPTS)}, or a template with the "
                "field {categories}"
            )
        template = known or cast("str", prompt)
        ranking_prompt(["a"], template)
    return template


def _log_odds(answer: Float[np.ndarray, " 2"]) -> float:
    """Log p(yes) - log p(no); an unreported answer is taken to hold all the probability that is left."""
    yes, no = (float(value) for value in answer)
    if np.isneginf(yes) and np.isneginf(no):
        return -np.inf
    if np.isneginf(no):
        no = float(np.log(max(-np.expm1(min(yes, 0.0)), _TINY)))
    elif np.isneginf(yes):
        yes = float(np.log(max(-np.expm1(min(no, 0.0)), _TINY)))
    return yes - no


def _shown_order(names: Sequence[str], seed: int | None) -> list[int]:
    if seed is None:
        return list(range(len(names)))
    digest = zlib.crc32("\0".join(names).encode(errors="surrogatepass"))
    return [int(i) for i in np.random.default_rng([seed, digest]).permutation(len(names))]
