"""Vocabularies of detection datasets: checked ids, names fit for an encoder, frequency groups."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final, get_args, overload

import numpy as np
from jaxtyping import Int64

from rarvision.errors import DatasetError, OptionError

__all__ = ["Category", "Frequency", "Vocabulary", "clean_names", "said"]

Frequency = Literal["r", "c", "f"]
"""LVIS' groups by training images: rare (1 to 10), common (11 to 100), frequent (more)."""

_SIZES = {80: "COCO", 1203: "LVIS v1", 1230: "LVIS v0.5", 13204: "V3Det"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """A category as its file has it.

    Attributes:
        id: Its number in annotations and results.
        name: Its name there, such as ``bow_(weapon)``.
        frequency: Its group in LVIS; None elsewhere.
        synonyms: Other names as the file has them, perhaps with the name itself among them, as in LVIS.
        definition: What it is, in words; None where the file does not say.
    """

    id: int
    name: str
    frequency: Frequency | None = None
    synonyms: tuple[str, ...] = ()
    definition: str | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise DatasetError(f"category {self.id}: the name is blank")
        if self.frequency is not None and self.frequency not in get_args(Frequency):
            raise DatasetError(f"category {self.id}: frequency must be 'r', 'c' or 'f', got {self.frequency!r}")


@final
class Vocabulary(Sequence[Category]):
    """The categories of a dataset in the order of their ids, which is that of the columns of a matrix of scores.

    Args:
        categories: In any order.
        name: For messages, such as the file's name.

    Raises:
        DatasetError: There is none, or two have the same id.

    Example:
        >>> pair = Vocabulary([Category(id=7, name="bow_(weapon)"), Category(id=2, name="air_conditioner")])
        >>> pair.names
        ('air conditioner', 'bow weapon')
        >>> pair.columns([7, 7, 2])
        array([1, 1, 0])
    """

    def __init__(self, categories: Iterable[Category], *, name: str = "the vocabulary") -> None:
        self.name = name
        self._categories = tuple(sorted(categories, key=lambda category: category.id))
        if not self._categories:
            raise DatasetError(f"{name}: no categories in it")
        try:
            self.ids: Int64[np.ndarray, " c"] = np.array([c.id for c in self._categories], dtype=np.int64)
        except OverflowError:
            raise DatasetError(f"{name}: category ids must fit 64 bits") from None
        twice = np.flatnonzero(np.diff(self.ids) == 0)
        if len(twice):
            one, other = self._categories[twice[0]], self._categories[twice[0] + 1]
            raise DatasetError(
                f"{name}: category id {one.id} is given twice, to {one.name!r} and {other.name!r}; "
                "are two vocabularies in one file?"
            )

    def __len__(self) -> int:
        return len(self._categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self._categories)

    @overload
    def __getitem__(self, index: int) -> Category: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Category]: ...
    def __getitem__(self, index: int | slice) -> Category | Sequence[Category]:
        return self._categories[index]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names for people and encoders, all different, one a column: see `clean_names`."""
        cleaned = clean_names([category.name for category in self])
        counts = Counter(cleaned)
        return tuple(
            name if counts[name] == 1 else f"{name} ({category.id})"
            for name, category in zip(cleaned, self, strict=True)
        )

    @cached_property
    def _column_of_name(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.names)}

    def columns(self, category_ids: Sequence[int] | Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The column of each category id.

        Raises:
            DatasetError: An id is unknown.
        """
        wanted = np.asarray(category_ids, dtype=np.int64)
        found = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        wrong = np.flatnonzero(self.ids[found] != wanted)
        if len(wrong):
            raise DatasetError(
                f"{self.name}: no category has id {wanted[wrong[0]]} ({len(wrong)} of {len(wanted)} unknown); "
                f"it has {self.described}"
            )
        return found

    def columns_of_names(self, names: Iterable[str]) -> Int64[np.ndarray, " n"]:
        """The column of each of `names`, as an answer of the recogniser gives them.

        Raises:
            OptionError: A name is unknown.
        """
        wanted = list(names)
        for name in wanted:
            if name not in self._column_of_name:
                raise OptionError(f"{self.name}: no category is called {name!r}; names are those of Vocabulary.names")
        return np.array([self._column_of_name[name] for name in wanted], dtype=np.int64)

    def group(self, frequency: Frequency) -> Int64[np.ndarray, " m"]:
        """The columns of a frequency group."""
        return np.array([i for i, category in enumerate(self) if category.frequency == frequency], dtype=np.int64)

    @property
    def described(self) -> str:
        """How many categories, and whose number that is."""
        known = _SIZES.get(len(self))
        return f"{len(self):,} categories" + (f", as many as {known}" if known else "")

    def check_covers(self, other: Vocabulary) -> None:
        """Every category of the other one is here, under the same id and name.

        Raises:
            DatasetError: It is not: two vocabularies, such as LVIS v0.5 and v1, whose ids mean different things.
        """
        if other is self:
            return
        mine = {category.id: category.name for category in self}
        for category in other:
            if mine.get(category.id) != category.name:
                here = f"{mine[category.id]!r} in {self.name}" if category.id in mine else f"unknown in {self.name}"
                raise DatasetError(
                    f"two vocabularies are mixed: category {category.id} is {category.name!r} in {other.name} "
                    f"({other.described}), {here} ({self.described}); take the annotations that it was made for"
                )


def clean_names(names: Sequence[str]) -> list[str]:
    """Names as one would say them: ``_`` becomes a space, parentheses go but what is in them stays.

    Dropping the content would make one of LVIS' bow (weapon) and bow (decorative ribbons). Where two different names
    become one all the same, these keep their parentheses, and where that is not enough, they stay as they were.

    Names that differ in upper and lower case alone stay so; an encoder may not tell them apart (45 pairs in V3Det).

    Example:
        >>> clean_names(["pin_(non_jewelry)", "air_conditioner", "a (b)", "a_b"])
        ['pin non jewelry', 'air conditioner', 'a (b)', 'a b']
    """
    ways = [
        [said(name) for name in names],
        [_spaced(name.replace("_", " ")) or name for name in names],
        list(names),
    ]
    chosen = [0] * len(names)
    while True:
        now = [ways[way][i] for i, way in enumerate(chosen)]
        raw_of: dict[str, set[str]] = {}
        for name, cleaned in zip(names, now, strict=True):
            raw_of.setdefault(cleaned, set()).add(name)
        clashing = [i for i, cleaned in enumerate(now) if len(raw_of[cleaned]) > 1 and chosen[i] < 2]
        if not clashing:
            return now
        for i in clashing:
            chosen[i] += 1


def said(name: str) -> str:
    """One name as one would say it, whatever the others are: what `clean_names` begins with."""
    return _spaced(re.sub(r"[()]", " ", name.replace("_", " "))) or name


def _spaced(text: str) -> str:
    return " ".join(text.split())
