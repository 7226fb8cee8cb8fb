"""How an MLLM is asked to rank: by writing the list, choosing a letter, name by name, or by likelihood."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from PIL.Image import Image

from rarvision.chat.base import Chat, ChatRequest, Completion, ListConstraint
from rarvision.errors import ChatUnsupportedError, OptionError
from rarvision.ranking.base import BaseRanker
from rarvision.ranking.bias import BlankScores, OptionPrior, estimate_prior
from rarvision.ranking.forms import STRATEGIES, QuestionForm, Strategy, servable_strategies, strategy_template
from rarvision.ranking.parsing import parse_ranking
from rarvision.ranking.permutations import (
    Permutations,
    check_permutations,
    join_scores,
    mean_ranks,
    normalised,
    rotations,
)
from rarvision.ranking.prompts import format_list, option_letters
from rarvision.ranking.showing import Layout, Presenter, Showing, Shown, Subject, joined, subjects_of
from rarvision.ranking.worked import NoExample, WorkedExample, noted
from rarvision.types import Ranking

__all__ = ["Ranker"]

_BY_PREFERENCE: tuple[Strategy, ...] = ("likelihood", "choice", "generate")
_Scores = list[Float[np.ndarray, " n"]]
_Blank = tuple[WorkedExample | None, tuple[str, ...]]
"""A question about the blank image: what comes before, and the names as shown."""
_TINY = 1e-12
_MIN_ANSWER_TOKENS = 64


class Ranker(BaseRanker):
    """Asks an MLLM to rank the retrieved names (the paper's ranking stage, section 3.2).

    Three ways to take out what the model prefers before it looks, which combine: ``permutations`` asks in several
    orders, ``bias`` subtracts what each place is worth (see `estimate_bias`), ``blank_weight`` what each name is worth
    without the image.

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
        permutations: In how many cyclic orders each list is shown, ``all`` for as many as it has names; the costs grow
            with it, less for a local model, which computes the image once. Log-probabilities are averaged after
            normalising them over the candidates; generated lists are joined by mean rank, ties in retrieval's order.
            Not for ``pointwise`` and ``likelihood`` without the list, which show no order.
        bias: ``choice``, and ``likelihood`` with the list: the prior of the letters and places, which is subtracted.
            Lists shorter than those it was estimated on take its first places; longer ones are an `OptionError`.
        blank_weight: ``likelihood`` only: weight of the names' own prior, which is subtracted: their scores when the
            same question comes with a blank grey image (contextual calibration). 0 asks nothing, 1 leaves what the
            image adds. The scores of the latest 4,096 lists are kept.
        max_tokens: ``generate`` only: the answer's limit; None gives the list room. Thinking models need more.
        exemplars: Images of each candidate to show beside its name, from the memory: at most so many, fewer where the
            model's context or its number of images does not hold them.
        descriptions: Whether to tell what the memory holds of each candidate beside its name.
        layout: How exemplars are shown: ``images``, each on its own; ``montage``, all in one picture; ``auto``: the
            former, where the model takes enough images.
        worked_example: Whether the conversation begins with an image of the memory, its own candidates under the same
            prompt, and the right answer (twice for ``pointwise``: yes, and no). It costs that many images and texts
            more a question. A ranking that is asked for without one, since the memory has none or `rank_batch` was
            given none, is ``repaired`` at best, and its ``reason`` says so.

    Raises:
        OptionError: An unknown strategy or option, a prompt without its field, an option that the strategy has no use
            for, or a prior that was estimated on other questions.
        ChatUnsupportedError: The chat cannot serve the strategy; the message names those that it can. Or it takes too
            few images for a worked example.

    Source: cyclic permutations and the option prior: PriDe, arXiv 2309.03882; the blank image: contextual calibration,
    Zhao et al., arXiv 2102.09690.
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
        permutations: Permutations = 1,
        bias: OptionPrior | None = None,
        blank_weight: float = 0.0,
        max_tokens: int | None = None,
        exemplars: int = 0,
        descriptions: bool = False,
        layout: Layout = "auto",
        worked_example: bool = False,
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
        check_permutations(permutations)
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
        template = strategy_template(strategy, prompt, with_list=with_list)
        self._form = QuestionForm(strategy=strategy, template=template, with_list=with_list)
        self._constrained = constrained
        self._normalize = normalize
        self._shuffle = shuffle
        self._permutations = permutations
        self._bias = bias
        self._blank_weight = blank_weight
        self._blank = BlankScores()
        self._max_tokens = max_tokens
        self._showing = Showing(exemplars=exemplars, descriptions=descriptions, worked_example=worked_example)
        self._presenter = Presenter(chat, self._showing, layout, self._form)
        self._check_corrections()

    @property
    def chat(self) -> Chat:
        """The MLLM that is asked."""
        return self._chat

    @property
    def strategy(self) -> Strategy:
        """The strategy in use, never ``auto``."""
        return self._strategy

    @property
    def bias(self) -> OptionPrior | None:
        """The prior of letters and places that is subtracted, if any."""
        return self._bias

    @property
    def name(self) -> str:
        """The MLLM's name, the strategy, and what is corrected."""
        detail = " constrained" if self._constrained else "" if self._form.with_list else " without list"
        if self._permutations != 1:
            detail += f" in {self._permutations} orders"
        detail += ", debiased" if self._bias is not None else ""
        detail += f", less {self._blank_weight:g} of blank" if self._blank_weight else ""
        detail += f", {self._showing.exemplars} exemplars" if self._showing.exemplars else ""
        detail += ", descriptions" if self._showing.descriptions else ""
        detail += ", worked example" if self._showing.worked_example else ""
        return f"{self._chat.name} ({self._strategy}{detail})"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Chat, strategy, prompt and options, as JSON values."""
        return {
            "chat": dict(self._chat.settings),
            **self._asked,
            "constrained": self._constrained,
            "shuffle": self._shuffle,
            "permutations": self._permutations,
            "bias": None if self._bias is None else self._bias.to_dict(),
            "max_tokens": self._max_tokens,
        }

    @property
    def _asked(self) -> dict[str, Any]:
        """What the scores of a list depend on, but for the model: a prior of letters and places holds for these."""
        return {
            "strategy": self._strategy,
            "prompt": self._form.template,
            "with_list": self._form.with_list,
            "normalize": self._normalize,
            "blank_weight": self._blank_weight,
            **self._presenter.settings,
        }

    def with_bias(self, bias: OptionPrior | None) -> Ranker:
        """The same ranker with this prior subtracted; None takes it out.

        Raises:
            OptionError: As of the constructor.
        """
        return Ranker(
            self._chat,
            strategy=self._strategy,
            prompt=self._form.template,
            constrained=self._constrained,
            with_list=self._form.with_list,
            normalize=self._normalize,
            shuffle=self._shuffle,
            permutations=self._permutations,
            bias=bias,
            blank_weight=self._blank_weight,
            max_tokens=self._max_tokens,
            exemplars=self._showing.exemplars,
            descriptions=self._showing.descriptions,
            layout=self._presenter.layout,
            worked_example=self._showing.worked_example,
        )

    def estimate_bias(
        self,
        images: Sequence[Image],
        names: Sequence[Sequence[str]],
        shown: Sequence[Sequence[Shown]] | None = None,
        worked: Sequence[WorkedExample | NoExample] | None = None,
    ) -> OptionPrior:
        """Estimate what the model gives each place of a list, whatever stands there; no labels are needed.

        Each image's names are shown in all cyclic orders, k questions for k names; what ``bias`` and ``permutations``
        this ranker has play no part. A few dozen images do. Take lists as they will be ranked: as long, of names as
        alike.

        Args:
            images: n RGB images.
            names: Each image's candidates; lists of less than two different names tell nothing.
            shown: As of `rank_batch`, so that the questions are those that will be asked.
            worked: Likewise; needed with ``worked_example``.

        Returns:
            The prior, for `with_bias` and ``Ranker(…, bias=…)``.

        Raises:
            OptionError: The strategy shows no order, or gives no scores; or ``worked`` is needed, and not given.
            InputError: The counts differ, or no image gave scores that can be used.
            ChatError: The MLLM cannot answer.

        Example:
            >>> from PIL import Image
            >>> from rarvision.testing import FakeChat
            >>> chat = FakeChat({"cat": -1.0, "dog": -1.5}, place_bias=(1.0, 0.0))
            >>> image = Image.new("RGB", (8, 8))
            >>> ranker = Ranker(chat, strategy="choice")
            >>> ranker.rank(image, ["dog", "cat"]).order  # the first place is worth more than the better name
            (0, 1)
            >>> prior = ranker.estimate_bias([image], [["dog", "cat"]])
            >>> round(prior.log_priors[2][0] - prior.log_priors[2][1], 3)
            1.0
            >>> ranker.with_bias(prior).rank(image, ["dog", "cat"]).order
            (1, 0)
        """
        self._require_scores_of_places("a prior of letters and places")
        if self._showing.worked_example and worked is None:
            raise OptionError(
                "the prior is one of questions after a worked example, and none was given; give worked=, or let "
                "Recognizer.estimate_bias find them"
            )
        subjects = subjects_of(images, names, shown, worked)
        distinct = [tuple(dict.fromkeys(candidates)) for candidates in names]
        asked = [(each, candidates) for each, candidates in zip(subjects, distinct, strict=True) if len(candidates) > 1]
        turned = [[tuple(c[i] for i in order) for order in rotations(len(c), "all")] for _, c in asked]
        flat = [(subject, order) for (subject, _), orders in zip(asked, turned, strict=True) for order in orders]
        scores = iter(self._scores([subject for subject, _ in flat], [order for _, order in flat]) if flat else ())
        tables = [np.stack([next(scores) for _ in orders]) for orders in turned]
        return estimate_prior(tables, chat=self._chat.name, asked=self._asked)

    def _check_corrections(self) -> None:
        """Refuse what this strategy has no use for, and a prior of other questions."""
        if not math.isfinite(self._blank_weight) or self._blank_weight < 0:
            raise OptionError(f"blank_weight must be a number from 0 up, got {self._blank_weight}")
        if self._blank_weight and self._strategy != "likelihood":
            raise OptionError(f"blank_weight goes with the strategy 'likelihood', got {self._strategy!r}")
        if self._permutations != 1 and not self._form.shows_order:
            raise OptionError(
                f"permutations go with strategies that show a list; {self._kind} asks name by name, in no order"
            )
        if self._bias is None:
            return
        self._require_scores_of_places("bias")
        if self._bias.asked != self._asked:
            theirs, ours = self._bias.asked, self._asked
            differing = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
            changes = "; ".join(
                f"{key}: {theirs.get(key)!r:.80} there, {ours.get(key)!r:.80} here" for key in differing
            )
            raise OptionError(f"the prior was estimated on other questions ({changes}); estimate it with this ranker")

    @property
    def _kind(self) -> str:
        return repr(self._strategy) + ("" if self._form.with_list else " without the list")

    def _require_scores_of_places(self, what: str) -> None:
        if self._strategy == "generate" or not self._form.shows_order:
            why = "gives no scores" if self._strategy == "generate" else "asks name by name, in no order"
            raise OptionError(f"{what} goes with 'choice' and 'likelihood' with the list; {self._kind} {why}")

    @property
    def showing(self) -> Showing:
        """Exemplars, descriptions and a worked example, as far as they were asked for."""
        return self._showing

    @property
    def parallel_calls(self) -> int:
        """As many as the MLLM takes."""
        return self._chat.parallel_calls

    def _rank_distinct(self, images: Sequence[Image], names: Sequence[tuple[str, ...]]) -> list[Ranking]:
        return self._rank_shown([Subject(image) for image in images], names)

    def _rank_shown(self, subjects: Sequence[Subject], names: Sequence[tuple[str, ...]]) -> list[Ranking]:
        rankings = self._rank_subjects(subjects, names)
        if not self._showing.worked_example:
            return rankings
        return [noted(ranking, subject.worked) for ranking, subject in zip(rankings, subjects, strict=True)]

    def _rank_subjects(self, subjects: Sequence[Subject], names: Sequence[tuple[str, ...]]) -> list[Ranking]:
        bases = [_shown_order(candidates, self._shuffle) for candidates in names]
        orders = [[[base[i] for i in turn] for turn in rotations(len(base), self._permutations)] for base in bases]
        # of each different question: what it is about, and a list as shown
        places: dict[tuple[tuple[int, int], tuple[str, ...]], int] = {}
        mine = [
            [places.setdefault((subject.key, tuple(candidates[i] for i in order)), len(places)) for order in each]
            for subject, candidates, each in zip(subjects, names, orders, strict=True)
        ]
        by_key = joined(subjects)
        asked, lists = [by_key[key] for key, _ in places], [order for _, order in places]
        if self._strategy == "generate":
            answers = self._generate(asked, lists)
            return [
                self._join([self._read(answers[at], lists[at], o) for at, o in zip(rows, each, strict=True)])
                for rows, each in zip(mine, orders, strict=True)
            ]
        scores = self._scores(asked, lists)
        if self._bias is not None:
            scores = [values - self._bias.for_options(len(values)) for values in scores]
        return [
            self._from_scores(np.stack([scores[at][np.argsort(o)] for at, o in zip(rows, each, strict=True)]))
            for rows, each in zip(mine, orders, strict=True)
        ]

    def _scores(self, images: Sequence[Subject], shown: Sequence[tuple[str, ...]]) -> _Scores:
        """Scores of the names as shown, less those under a blank image where that is asked for."""
        score = {"choice": self._choose, "likelihood": self._score_names, "pointwise": self._ask_each}[self._strategy]
        scores = [np.asarray(values, dtype=np.float64) for values in score(images, shown)]
        if not self._blank_weight:
            return scores
        blank = self._blank_scores([(image.example, names) for image, names in zip(images, shown, strict=True)])
        return [values - self._blank_weight * normalised(each) for values, each in zip(scores, blank, strict=True)]

    def _blank_scores(self, asked: Sequence[_Blank]) -> _Scores:
        """Scores of each list under a blank image, after the same example; from those kept as far as they are."""
        kept = {question: values for question in asked if (values := self._blank.get(question)) is not None}
        missing = [question for question in dict.fromkeys(asked) if question not in kept]
        if missing:
            subjects = [Subject(self._blank.image, worked=example) for example, _ in missing]
            scores = self._score_names(subjects, [names for _, names in missing])
            for question, values in zip(missing, scores, strict=True):
                kept[question] = np.asarray(values, dtype=np.float64)
                self._blank.put(question, kept[question])
        return [kept[question] for question in asked]

    def _generate(self, images: Sequence[Subject], names: Sequence[tuple[str, ...]]) -> list[Completion]:
        requests = [
            self._presenter.request(self._form.question(candidates), image, candidates)
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

    def _choose(self, images: Sequence[Subject], names: Sequence[tuple[str, ...]]) -> _Scores:
        letters = [option_letters(len(candidates)) for candidates in names]
        most, limit = max(map(len, letters)), self._chat.capabilities.max_options
        if limit is not None and most > limit:
            others = [strategy for strategy in servable_strategies(self._chat.capabilities) if strategy != "choice"]
            raise ChatUnsupportedError(
                f"{self._chat.name} reports the {limit} likeliest options, {most} were asked; lower k, or use one of: "
                f"{', '.join(others)}"
            )
        requests = [
            self._presenter.request(self._form.question(candidates), image, candidates)
            for image, candidates in zip(images, names, strict=True)
        ]
        return self._chat.option_log_probs(requests, letters)

    def _score_names(self, images: Sequence[Subject], names: Sequence[tuple[str, ...]]) -> _Scores:
        listed = self._form.with_list
        continuations = [[f"['{name}'" if listed else name for name in candidates] for candidates in names]
        requests = [
            self._presenter.request(self._form.question(candidates), image, candidates)
            for image, candidates in zip(images, names, strict=True)
        ]
        answers = self._chat.continuation_log_probs(requests, continuations)
        if self._normalize == "sum":
            return [log_probs for log_probs, _ in answers]
        return [log_probs / np.maximum(np.asarray(counts, dtype=np.float64), 1.0) for log_probs, counts in answers]

    def _ask_each(self, images: Sequence[Subject], names: Sequence[tuple[str, ...]]) -> _Scores:
        requests = [
            self._presenter.request(self._form.question((name,)), image, (name,))
            for image, candidates in zip(images, names, strict=True)
            for name in candidates
        ]
        answers = self._chat.option_log_probs(requests, [("yes", "no")] * len(requests))
        odds = np.asarray([_log_odds(answer) for answer in answers], dtype=np.float64)
        ends = np.cumsum([len(candidates) for candidates in names])[:-1]
        return np.split(odds, ends)

    def _join(self, rankings: Sequence[Ranking]) -> Ranking:
        """One ranking from the lists that were written for several orders; those that cannot be read do not count."""
        if len(rankings) == 1:
            return rankings[0]
        read = [ranking for ranking in rankings if ranking.status != "fallback"]
        flawed = [ranking for ranking in rankings if ranking.reason is not None]
        reason = f"{len(flawed)} of {len(rankings)} orders, the first: {flawed[0].reason}" if flawed else None
        return Ranking(
            order=mean_ranks([ranking.order for ranking in read or rankings[:1]]),
            status="fallback" if not read else "repaired" if flawed else "ranked",
            reason=reason,
            raw="\n".join(str(ranking.raw) for ranking in rankings),
            strategy=self._strategy,
        )

    def _from_scores(self, scores: Float[np.ndarray, "orders n"]) -> Ranking:
        """Best score first, ties in retrieval's order; what is not a number means retrieval's order."""
        joined = join_scores(scores)
        if joined.log_scores is None:
            order = tuple(range(scores.shape[1]))
            return Ranking(order=order, strategy=self._strategy, status="fallback", reason=joined.reason)
        return Ranking(
            order=tuple(int(i) for i in np.argsort(-joined.log_scores, kind="stable")),
            log_scores=tuple(float(score) for score in joined.log_scores),
            strategy=self._strategy,
            status="repaired" if joined.reason is not None else "ranked",
            reason=joined.reason,
        )


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
