"""How well a model ranks examples that it was not trained on, strategy by strategy, before and after."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rarvision.chat.base import Chat
from rarvision.errors import OptionError
from rarvision.images import load_image
from rarvision.ranking.forms import STRATEGIES, Strategy
from rarvision.ranking.strategies import Ranker
from rarvision.tuning.manifest import TuningExample
from rarvision.tuning.recipes import Recipe
from rarvision.tuning.runs import write_json

__all__ = ["HeldOutRanking", "HeldOutTable", "check_strategies", "rank_held_out", "spread_out"]

_BATCH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutRanking:
    """One strategy on the held-out examples. All but ``n`` are shares, 0 to 1, of the n examples.

    Attributes:
        strategy: How the model was asked.
        n: Examples.
        top1: Whose true name was ranked first.
        repaired: Whose answer had to be completed or corrected.
        fallback: Whose answer could not be read, so that the order shown stands.
    """

    strategy: str
    n: int
    top1: float
    repaired: float
    fallback: float


@dataclass(frozen=True, kw_only=True)
class HeldOutTable:
    """Before and after training, by strategy; beside what no model is needed for.

    Attributes:
        retrieved: Share whose true name retrieval put first.
        shown: Share whose true name was shown first: what a model that repeats its question would reach.
        before: The base model.
        after: The trained one.
    """

    retrieved: float
    shown: float
    before: Mapping[str, HeldOutRanking]
    after: Mapping[str, HeldOutRanking]


def check_strategies(strategies: Iterable[str]) -> None:
    """Raise `OptionError` for what is no strategy."""
    for strategy in strategies:
        if strategy not in STRATEGIES:
            raise OptionError(f"unknown strategy {strategy!r}; expected some of {', '.join(STRATEGIES)}")


def spread_out(examples: Sequence[TuningExample], limit: int | None) -> list[TuningExample]:
    """At most ``limit`` examples, evenly over all of them; None for all."""
    if limit is None or len(examples) <= limit:
        return list(examples)
    if limit < 1:
        raise OptionError(f"the number of held-out examples must be at least 1, got {limit}")
    return [examples[i * len(examples) // limit] for i in range(limit)]


def rank_held_out(
    chat: Chat,
    examples: Sequence[TuningExample],
    strategies: Sequence[Strategy],
    *,
    recipe: Recipe,
    file: Path,
    data: Mapping[str, Any],
    stage: str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, HeldOutRanking]:
    """Rank the examples with each strategy.

    Args:
        chat: The model.
        examples: What it was not trained on.
        strategies: How it is asked.
        recipe: Its prompt is used where it is the strategy's.
        file: Where each strategy's result is kept, so that an interrupted run goes on after the last one.
        data: What the examples are, as JSON values; results of others in the file are replaced.
        stage: ``before`` or ``after``.
        progress: Called with the examples done and all, over all strategies.
    """
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if kept.get("data") != data:
        kept = {"data": dict(data)}
    results: dict[str, HeldOutRanking] = {}
    for number, strategy in enumerate(strategies):
        there = kept.get(stage, {}).get(strategy)
        if there is None:
            ranker = Ranker(chat, strategy=strategy, prompt=_prompt(strategy, recipe))
            results[strategy] = _ranked(
                ranker,
                examples,
                tell=None if progress is None else _told(progress, number, len(examples), len(strategies)),
            )
            kept.setdefault(stage, {})[strategy] = asdict(results[strategy])
            write_json(file, kept)
        else:
            results[strategy] = HeldOutRanking(**there)
        if progress is not None:
            progress((number + 1) * len(examples), len(strategies) * len(examples))
    return results


def _told(progress: Callable[[int, int], None], number: int, n: int, strategies: int) -> Callable[[int], None]:
    return lambda done: progress(number * n + done, strategies * n)


def _prompt(strategy: Strategy, recipe: Recipe) -> str | None:
    """The prompt that was trained on, for the strategies that ask by the same one."""
    if strategy == "choice" or recipe.objective == "choice":
        return recipe.prompt if strategy == recipe.objective else None
    return recipe.prompt if strategy in ("generate", "likelihood") else None


def _ranked(ranker: Ranker, examples: Sequence[TuningExample], *, tell: Callable[[int], None] | None) -> HeldOutRanking:
    right = repaired = fallback = 0
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        images = [load_image(example.image) for example in batch]
        rankings = ranker.rank_batch(images, [example.candidates for example in batch])
        for example, ranking in zip(batch, rankings, strict=True):
            right += example.candidates[ranking.order[0]] == example.label
            repaired += ranking.status == "repaired"
            fallback += ranking.status == "fallback"
        if tell is not None:
            tell(start + len(batch))
    n = len(examples)
    return HeldOutRanking(strategy=ranker.strategy, n=n, top1=right / n, repaired=repaired / n, fallback=fallback / n)
