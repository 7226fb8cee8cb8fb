"""Ranking the retrieved candidates with an MLLM: prompts, strategies, and reading any answer."""

from __future__ import annotations

from rarvision.ranking.base import BaseRanker
from rarvision.ranking.bias import OptionPrior
from rarvision.ranking.forms import STRATEGIES, Strategy, servable_strategies
from rarvision.ranking.parsing import ParsedRanking, parse_ranking
from rarvision.ranking.permutations import Permutations
from rarvision.ranking.prompts import (
    CHOICE_PROMPT,
    MAX_OPTIONS,
    NAMING_PROMPT,
    RANKING_PROMPTS,
    YES_NO_PROMPT,
    choice_prompt,
    format_list,
    option_letters,
    ranking_prompt,
    yes_no_prompt,
)
from rarvision.ranking.showing import Layout, Showing, Shown
from rarvision.ranking.strategies import Ranker
from rarvision.ranking.worked import NoExample, WorkedExample

__all__ = [
    "CHOICE_PROMPT",
    "MAX_OPTIONS",
    "NAMING_PROMPT",
    "RANKING_PROMPTS",
    "STRATEGIES",
    "YES_NO_PROMPT",
    "BaseRanker",
    "Layout",
    "NoExample",
    "OptionPrior",
    "ParsedRanking",
    "Permutations",
    "Ranker",
    "Showing",
    "Shown",
    "Strategy",
    "WorkedExample",
    "choice_prompt",
    "format_list",
    "option_letters",
    "parse_ranking",
    "ranking_prompt",
    "servable_strategies",
    "yes_no_prompt",
]
