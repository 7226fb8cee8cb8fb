"""The field guide as a dataset: labelled images of held-out categories, drawn as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal, final, get_args

import numpy as np
from jaxtyping import Int, UInt8, UInt64
from PIL.Image import Image, fromarray

from rarvision.datasets.base import Dataset, Item
from rarvision.datasets.fieldguide.hashing import fold
from rarvision.datasets.fieldguide.rendering import render
from rarvision.datasets.fieldguide.vocabulary import DOMAINS, Split, domain_of, sample_vocabulary, vocabulary
from rarvision.errors import OptionError
from rarvision.types import Sample

__all__ = ["FieldGuide", "Role"]

Role = Literal["memory", "queries"]

_BATCH = 32
# A query's instance number has this bit set and a memory's has not: they can never be the same image.
_QUERY_BIT = np.uint64(1 << 40)


@final
class FieldGuide(Dataset):
    """Images of one domain's categories, never stored: each is drawn when it is read.

    Categories come in groups of ten look-alikes (see `sample_vocabulary`). Images for the memory and images to query
    it with are disjoint for ever: their instance numbers are.

    >>> guide = FieldGuide("birds", categories=20, seed=0)
    >>> memory, queries = guide.few_shot(shots=4), guide.queries(100)
    >>> len(memory), len(queries), len(set(memory.categories))
    (80, 100, 20)

    Attributes:
        domain: A key of `DOMAINS`.
        split: Which categories: ``train``, ``validation`` or ``test``.
        names: The categories, in groups of ten look-alikes.
        seed: Chose the categories and the images.
        size: Side of the images in pixels.
        role: ``memory`` or ``queries``.
        nuisance: Strength of what does not belong to the category; 1 is the benchmark.
    """

    def __init__(
        self,
        domain: str,
        *,
        split: Split = "test",
        categories: int = 200,
        images_per_category: int = 4,
        seed: int = 0,
        size: int = 48,
        role: Role = "memory",
        nuisance: float = 1.0,
    ) -> None:
        if images_per_category < 1:
            raise OptionError(f"images_per_category must be at least 1, got {images_per_category}")
        if role not in get_args(Role):
            raise OptionError(f"role must be one of {', '.join(get_args(Role))}, got {role!r}")
        self.domain = domain_of(domain).name
        self.split: Split = split
        self.seed = seed
        self.size = size
        self.role: Role = role
        self.nuisance = nuisance
        self.codes: Int[np.ndarray, "c 5"] = sample_vocabulary(domain, split, categories, seed)
        self.names: list[str] = DOMAINS[domain].codes_to_names(self.codes)
        self._rows: Int[np.ndarray, " n"] = np.repeat(np.arange(categories), images_per_category)
        self._numbers = np.tile(np.arange(images_per_category, dtype=np.uint64), categories)
        if role == "queries":
            self._numbers |= _QUERY_BIT

    def _with(self, rows: Int[np.ndarray, " n"], numbers: UInt64[np.ndarray, " n"], role: Role) -> FieldGuide:
        other = object.__new__(FieldGuide)
        other.domain, other.split, other.seed, other.size = self.domain, self.split, self.seed, self.size
        other.role, other.nuisance, other.codes, other.names = role, self.nuisance, self.codes, self.names
        other._rows, other._numbers = rows, numbers
        return other

    @property
    def name(self) -> str:
        """For instance ``fieldguide:birds/test``."""
        return f"fieldguide:{self.domain}/{self.split}"

    @cached_property
    def items(self) -> Sequence[Item]:
        """Source (domain, split, category, instance) and label of each image."""
        numbers = self._numbers.tolist()
        return tuple(
            Item(source=f"{self.name}/{self.names[row]}/{self._spell(number)}", label=self.names[row])
            for row, number in zip(self._rows.tolist(), numbers, strict=True)
        )

    def _spell(self, number: int) -> str:
        bit = int(_QUERY_BIT)
        return f"q{number & ~bit}" if number & bit else f"m{number}"

    def pixels(self, start: int = 0, stop: int | None = None) -> UInt8[np.ndarray, "n size size 3"]:
        """Draw the images ``start`` to ``stop`` at once."""
        rows, numbers = self._rows[start:stop], self._numbers[start:stop]
        codes = self.codes[rows]
        return render(self.domain, codes, numbers, size=self.size, seed=self.seed, nuisance=self.nuisance)

    def _image(self, index: int) -> Image:
        return fromarray(self.pixels(index, index + 1)[0])

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), _BATCH):
            for offset, pixels in enumerate(self.pixels(start, start + _BATCH)):
                item = self.items[start + offset]
                yield Sample(source=item.source, image=fromarray(pixels), label=item.label)

    def few_shot(  # type: ignore[override]  # as many shots as one likes: they are drawn, not taken from a stock
        self, shots: int, seed: int = 0, order: Literal["random", "first"] = "random"
    ) -> FieldGuide:
        """Draw ``shots`` memory images of every category; fewer shots with the same seed are a subset of more.

        Args:
            shots: Images a category, at least 1.
            seed: Another seed, other images.
            order: ``first``: the images 0 to ``shots - 1`` whatever the seed.

        Raises:
            OptionError: Less than one shot, or an unknown order.
        """
        if shots < 1:
            raise OptionError(f"shots must be at least 1, got {shots}")
        if order not in ("random", "first"):
            raise OptionError(f"order must be 'random' or 'first', got {order!r}")
        rows = np.repeat(np.arange(len(self.names)), shots)
        numbers = np.tile(np.arange(shots, dtype=np.uint64), len(self.names))
        return self._with(rows, numbers if order == "first" else _shift(numbers, seed), "memory")

    def queries(self, n: int, seed: int = 0) -> FieldGuide:
        """Draw n images to recognise, spread evenly over the categories in hashed order; never a memory's image.

        Raises:
            OptionError: n is less than 1.
        """
        if n < 1:
            raise OptionError(f"n must be at least 1, got {n}")
        count = len(self.names)
        order = np.argsort(fold(seed, DOMAINS[self.domain].numbers(self.codes)), kind="stable")
        turns = np.arange(n, dtype=np.int64)
        numbers = _shift((turns // count).astype(np.uint64), seed) | _QUERY_BIT
        return self._with(order[turns % count], numbers, "queries")

    def at_size(self, size: int) -> FieldGuide:
        """The same images with another number of pixels a side: the same scenes, drawn finer or coarser."""
        other = self._with(self._rows, self._numbers, self.role)
        other.size = size
        return other

    @staticmethod
    def vocabulary(n: int, *, seed: int = 0) -> Iterator[str]:
        """Generate n distinct names of never-trained categories over all domains: see `vocabulary`."""
        return vocabulary(n, seed=seed)


def _shift(numbers: UInt64[np.ndarray, " n"], seed: int) -> UInt64[np.ndarray, " n"]:
    """Move instance numbers to the range that belongs to a seed, below the bit that marks queries."""
    start = int(fold(seed)[0] % np.uint64(1 << 16)) << 20
    return numbers + np.uint64(start)
