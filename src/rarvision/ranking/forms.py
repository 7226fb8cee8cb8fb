"""The strategies: what each needs of a chat, its template, and the text of its questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from rarvision.chat.base import Capabilities
from rarvision.errors import OptionError
from rarvision.ranking.prompts import (
    CHOICE_PROMPT,
    NAMING_PROMPT,
    RANKING_PROMPTS,
    YES_NO_PROMPT,
    choice_prompt,
    ranking_prompt,
    yes_no_prompt,
)

__all__ = ["STRATEGIES", "QuestionForm", "Strategy", "servable_strategies", "strategy_template"]

Strategy = Literal["generate", "choice", "likelihood", "pointwise"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
"""``generate``: the paper's, the list is written out; ``choice``: log-probabilities of the option letters, one forward
pass; ``likelihood``: log-likelihood of each name as the answer; ``pointwise``: yes/no for each name."""


def servable_strategies(capabilities: Capabilities) -> tuple[Strategy, ...]:
    """The strategies that a backend with these capabilities can serve."""
    served: dict[Strategy, bool] = {
        "generate": True,
        "choice": capabilities.option_log_probs,
        "likelihood": capabilities.continuation_log_probs,
        "pointwise": capabilities.option_log_probs,
    }
    return tuple(strategy for strategy in STRATEGIES if served[strategy])


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionForm:
    """How a strategy asks about an image.

    Attributes:
        strategy: One of `STRATEGIES`.
        template: From `strategy_template`.
        with_list: Whether ``likelihood`` scores the start of the list, or the bare name; True for all others.
    """

    strategy: Strategy
    template: str
    with_list: bool = True

    @property
    def shows_order(self) -> bool:
        """Whether the names stand in the question, in an order."""
        return self.strategy != "pointwise" and self.with_list

    def question(self, names: Sequence[str]) -> str:
        """The prompt about these names as shown; ``pointwise`` asks about one.

        Raises:
            OptionError: More names than there are letters, for ``choice``.
        """
        if self.strategy == "pointwise":
            (name,) = names
            return yes_no_prompt(name, self.template)
        if self.strategy == "choice":
            return choice_prompt(names, self.template)
        return ranking_prompt(names, self.template) if self.with_list else self.template


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
