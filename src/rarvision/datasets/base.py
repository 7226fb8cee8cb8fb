"""Labelled images as a sequence: what every dataset offers, and few-shot sampling."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

from PIL.Image import Image

from rarvision.errors import DatasetError, OptionError
from rarvision.types import Box, Sample

__all__ = ["Dataset", "Item", "Subset", "draw"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """What is known of a sample without opening its image: see `rarvision.types.Sample` for the fields."""

    source: str
    label: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    box_xyxy: Box | None = None
    image_size: tuple[int, int] | None = None


class Dataset(abc.ABC):
    """A finite, ordered set of images, labelled or not.

    An author writes `name`, `items` and `_image`; everything else follows from them. `items` must be cheap: sampling
    and counting read it alone.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """A short name for reports."""

    @property
    @abc.abstractmethod
    def items(self) -> Sequence[Item]:
        """Source, label and metadata of each sample, in a fixed order; opens no image."""

    @abc.abstractmethod
    def _image(self, index: int) -> Path | bytes | Image:
        """The image of sample ``index`` (0 to ``len(self) - 1``): a path, a file's bytes, or a decoded RGB image."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, asked for number {index}")
        index %= len(self)
        item = self.items[index]
        return Sample(
            source=item.source,
            image=self._image(index),
            label=item.label,
            metadata=item.metadata,
            box_xyxy=item.box_xyxy,
            image_size=item.image_size,
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The distinct labels, in order of first appearance."""
        return tuple(dict.fromkeys(item.label for item in self.items if item.label is not None))

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the sources, the labels or their order; for reports."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(f"{item.source!r} {item.label!r}\n".encode())
        return digest.hexdigest()[:16]

    def select(self, indices: Sequence[int], *, name: str | None = None) -> Subset:
        """The samples at ``indices``, in that order."""
        return Subset(self, indices, name=name)

    def only(self, categories: Collection[str]) -> Subset:
        """The samples of some categories.

        Raises:
            DatasetError: A category has no sample here.
        """
        wanted = {categories} if isinstance(categories, str) else set(categories)
        unknown = sorted(wanted.difference(self.categories))
        if unknown:
            raise DatasetError(f"{self.name} has no category {unknown[0]!r} ({len(unknown)} of {len(wanted)} unknown)")
        return self.select([index for index, item in enumerate(self.items) if item.label in wanted])

    def few_shot(self, *, shots: int, seed: int = 0, order: Literal["random", "first"] = "random") -> Subset:
        """Take ``shots`` samples of each category (all of them where it has fewer).

        Fewer shots with the same seed are a subset of more, and a category's choice does not depend on which other
        categories there are: so curves over shots and over vocabulary sizes are comparable point by point.

        Args:
            shots: Samples a category, at least 1.
            seed: Chooses them; the choice is the same on every machine and version.
            order: ``random`` (seeded), or ``first``, the first of each category in list order, without a seed.

        Returns:
            The chosen samples, in this dataset's order.

        Raises:
            DatasetError: A sample has no label.

        Source: few-shot memories of the paper, section 4.3; its authors' code takes the first n (``order="first"``).
        """
        if shots < 1:
            raise OptionError(f"shots must be at least 1, got {shots}")
        if order not in ("random", "first"):
            raise OptionError(f"order must be 'random' or 'first', got {order!r}")
        by_category: dict[str, list[int]] = {}
        for index, item in enumerate(self.items):
            if item.label is None:
                raise DatasetError(
                    f"{item.source}: few-shot sampling needs a label for every sample, this one has none"
                )
            by_category.setdefault(item.label, []).append(index)
        chosen: list[int] = []
        for category, members in by_category.items():
            if order == "random":
                draws = [(draw(seed, category, rank), index) for rank, index in enumerate(members)]
                members = [index for _, index in sorted(draws)]  # noqa: PLW2901 - the shuffled members
            chosen.extend(members[:shots])
        label = f"{shots}-shot, " + (f"seed {seed}" if order == "random" else "the first")
        return self.select(sorted(chosen), name=f"{self.name} ({label})")


def draw(seed: int, category: str, rank: int) -> bytes:
    """Bytes to sort by for a random order that is the same on every machine and version."""
    return hashlib.sha256(f"{seed}\0{category}\0{rank}".encode("utf-8", "surrogatepass")).digest()


@final
class Subset(Dataset):
    """Some samples of another dataset."""

    def __init__(self, parent: Dataset, indices: Sequence[int], *, name: str | None = None) -> None:
        size = len(parent)
        outside = [index for index in indices if not 0 <= index < size]
        if outside:
            raise OptionError(f"{parent.name} has samples 0 to {size - 1}, asked for {outside[0]}")
        self.parent = parent
        self.indices = tuple(indices)
        self._name = parent.name if name is None else name
        self._items = tuple(parent.items[index] for index in self.indices)

    @property
    def name(self) -> str:
        """The parent's name and how it was reduced."""
        return self._name

    @property
    def items(self) -> Sequence[Item]:
        """The chosen items."""
        return self._items

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, asked for number {index}")
        return self.parent[self.indices[index]]  # which may know more than its item, such as a box that is drawn

    def _image(self, index: int) -> Path | bytes | Image:
        return self.parent[self.indices[index]].image
