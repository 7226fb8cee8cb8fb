"""What appears in which scene: a long tail of categories dealt out to images, before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final, get_args

import numpy as np
from jaxtyping import Int, Int64, UInt64

from rarvision.datasets.fieldguide.backdrops import Habitat
from rarvision.datasets.fieldguide.hashing import fold
from rarvision.datasets.fieldguide.vocabulary import DOMAINS, sample_vocabulary
from rarvision.errors import OptionError

__all__ = ["Appearances", "SceneCategory", "SceneSplit", "World", "unit"]

SceneSplit = Literal["train", "test"]
Frequency = Literal["r", "c", "f"]

_MOST, _FEWEST = 180.0, 1.0  # training objects of the most and of the least frequent category
_RARE, _COMMON = 10, 100  # LVIS: training images at most
_OBJECTS = (18, 44)  # of a scene, least and most
_HABITATS: dict[str, tuple[tuple[Habitat, float], ...]] = {
    "birds": (("wood", 0.54), ("garden", 0.21), ("air", 0.25)),
    "fish": (("water", 1.0),),
    "flowers": (("meadow", 0.68), ("garden", 0.32)),
    "butterflies": (("wood", 0.18), ("meadow", 0.29), ("garden", 0.53)),
    "aircraft": (("air", 1.0),),
}
"""Where the subjects of each domain are met, and how often there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneCategory:
    """A category of the scenes, as LVIS describes its own.

    Attributes:
        id: From 1.
        name: Five words.
        domain: A key of `DOMAINS`.
        frequency: By its training images: ``r`` up to 10, ``c`` up to 100, ``f`` more.
        train_images: Training scenes with at least one.
        train_objects: How many there are in them.
    """

    id: int
    name: str
    domain: str
    frequency: Frequency
    train_images: int
    train_objects: int


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Appearances:
    """All objects of a split, sorted by scene.

    Attributes:
        habitats: Of each scene.
        starts: Where each scene's objects begin, and the end of all.
        rows: Of each object, its category's place in `World.categories`.
    """

    habitats: tuple[Habitat, ...]
    starts: Int64[np.ndarray, " m"]
    rows: Int64[np.ndarray, " n"]


@final
class World:
    """The categories of the scenes, and how they are dealt out to scenes.

    Args:
        categories: How many, a fifth of them of each domain; a multiple of five.
        seed: Another seed, other categories and scenes.

    Raises:
        OptionError: ``categories`` is no multiple of five, or more than there are.
    """

    def __init__(self, categories: int, seed: int) -> None:
        if categories < len(DOMAINS) or categories % len(DOMAINS):
            raise OptionError(
                f"categories must be a multiple of {len(DOMAINS)}, as many of each domain, got {categories}"
            )
        self.seed = seed
        each = categories // len(DOMAINS)
        self.codes: Int[np.ndarray, "c 5"] = np.concatenate([sample_vocabulary(d, "test", each, seed) for d in DOMAINS])
        self.domains = tuple(d for d in DOMAINS for _ in range(each))
        names = [DOMAINS[d].codes_to_names(self.codes[i * each : (i + 1) * each]) for i, d in enumerate(DOMAINS)]
        self.names = tuple(name for part in names for name in part)

    @cached_property
    def train_objects(self) -> Int64[np.ndarray, " c"]:
        """Training objects of each category: evenly spread on a logarithmic scale, in hashed order."""
        count = len(self.names)
        rank = np.empty(count, dtype=np.int64)
        rank[np.argsort(fold(self.seed, 11, np.arange(count)), kind="stable")] = np.arange(count)
        share = rank / max(1, count - 1)
        return np.rint(_MOST * (_FEWEST / _MOST) ** share).astype(np.int64)

    def objects(self, split: SceneSplit) -> Int64[np.ndarray, " c"]:
        """How often each category appears in a split: in the test two times at least, so that all of them count."""
        return self.train_objects if split == "train" else 2 + self.train_objects // 30

    @cached_property
    def train(self) -> Appearances:
        """The training scenes."""
        return self._deal("train")

    @cached_property
    def test(self) -> Appearances:
        """The test scenes."""
        return self._deal("test")

    @cached_property
    def categories(self) -> tuple[SceneCategory, ...]:
        """Every category with its frequency."""
        dealt = self.train
        scenes = np.repeat(np.arange(len(dealt.habitats)), np.diff(dealt.starts))
        pairs = np.unique(scenes * len(self.names) + dealt.rows)
        images = np.bincount(pairs % len(self.names), minlength=len(self.names)).tolist()
        return tuple(
            SceneCategory(
                id=i + 1,
                name=name,
                domain=self.domains[i],
                frequency="r" if images[i] <= _RARE else "c" if images[i] <= _COMMON else "f",
                train_images=images[i],
                train_objects=int(self.train_objects[i]),
            )
            for i, name in enumerate(self.names)
        )

    def _deal(self, split: SceneSplit) -> Appearances:
        counts = self.objects(split)
        rows = np.repeat(np.arange(len(counts)), counts)
        salt = 21 + get_args(SceneSplit).index(split)
        keys = fold(self.seed, salt, np.arange(len(rows)))
        place = unit(keys)
        domains = np.array(self.domains)[rows]
        habitat = np.empty(len(rows), dtype=object)
        for domain, choices in _HABITATS.items():
            of_domain = domains == domain
            edges = np.cumsum([share for _, share in choices])[:-1]
            names = np.array([name for name, _ in choices], dtype=object)
            habitat[of_domain] = names[np.searchsorted(edges, place[of_domain], side="right")]
        scenes: list[tuple[Habitat, Int64[np.ndarray, " m"]]] = []
        for name in get_args(Habitat):
            members = np.flatnonzero(habitat == name)
            members = members[np.argsort(fold(keys[members], 1), kind="stable")]
            scenes += [(name, part) for part in self._cut(members, salt)]
        order = np.argsort(fold(self.seed, salt, 3, np.arange(len(scenes))), kind="stable")
        sizes = [len(scenes[i][1]) for i in order]
        return Appearances(
            habitats=tuple(scenes[i][0] for i in order),
            starts=np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
            rows=rows[np.concatenate([scenes[i][1] for i in order])],
        )

    def _cut(self, members: Int64[np.ndarray, " n"], salt: int) -> list[Int64[np.ndarray, " m"]]:
        """Cut a habitat's objects into scenes of uneven numbers; a rest that is too small joins the last."""
        low, high = _OBJECTS
        parts, begin = [], 0
        while begin < len(members):
            size = low + int(unit(fold(self.seed, salt, 2, begin))[0] * (high - low + 1))
            end = len(members) if len(members) - begin - size < low else begin + size
            parts.append(members[begin:end])
            begin = end
        return parts


def unit(keys: UInt64[np.ndarray, " n"]) -> np.ndarray:
    """Numbers in [0, 1) from hashes, one each."""
    return np.asarray((keys >> np.uint64(11)).astype(np.float64) * 2.0**-53)
