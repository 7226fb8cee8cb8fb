"""Options of retrieval, and checks of their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from rarvision.errors import OptionError
from rarvision.retrieval.statistics import Hubness

__all__ = ["Aggregate", "Source", "at_least_one", "check_retrieval", "one_of", "share"]

Source = Literal["fused", "image", "text", "none"]
Aggregate = Literal["blend", "nearest", "sum", "vote", "weighted", "tip", "prototype"]


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Raise `OptionError` unless the value is one of those known."""
    if value not in known:
        raise OptionError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def at_least_one(name: str, value: int) -> None:
    """Raise `OptionError` below 1."""
    if value < 1:
        raise OptionError(f"{name} must be at least 1, got {value}")


def share(name: str, value: float) -> None:
    """Raise `OptionError` outside 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise OptionError(f"{name} must lie between 0 and 1, got {value}")


def check_retrieval(
    *,
    k: int,
    source: Source,
    aggregate: Aggregate,
    default_aggregate: Aggregate,
    neighbours: int | None,
    distinct: bool,
    hubness: Hubness,
    shares: Sequence[Aggregate],
) -> None:
    """Raise `OptionError` for options of `Retriever` that are unknown, or contradict each other."""
    one_of("source", source, get_args(Source))
    one_of("aggregate", aggregate, get_args(Aggregate))
    one_of("hubness", hubness, get_args(Hubness))
    at_least_one("k", k)
    at_least_one("neighbours", 1 if neighbours is None else neighbours)
    if source == "none" and (hubness != "none" or aggregate != default_aggregate or not distinct):
        raise OptionError("source='none' scores nothing: leave aggregate, hubness and distinct as they are")
    if hubness != "none" and source != "text" and aggregate in shares:
        raise OptionError(
            f"hubness={hubness!r} corrects cosines, and {aggregate!r} gives none; choose aggregate='blend', "
            "'nearest', 'sum' or 'prototype', or hubness='none'"
        )
    if distinct:
        return
    if hubness != "none":
        raise OptionError(
            f"distinct=False takes the nearest entries as they are, so hubness={hubness!r} corrects nothing; "
            "leave hubness out, or choose distinct=True"
        )
    if source == "fused":
        raise OptionError("distinct=False counts entries, so it needs one source: choose 'image' or 'text'")
    if aggregate not in ("nearest", default_aggregate):
        raise OptionError(
            f"distinct=False takes the nearest entries as they are, so nothing is aggregated by {aggregate!r}; "
            "leave aggregate out, or choose distinct=True"
        )
    if neighbours is not None:
        raise OptionError(
            f"distinct=False takes the k={k} nearest entries, whatever neighbours={neighbours} says; "
            "leave neighbours out, or choose distinct=True"
        )
