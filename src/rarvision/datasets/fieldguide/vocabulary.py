"""The categories: five words each, as in a field guide; which of them train, validate and test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt8

from rarvision.datasets.fieldguide.hashing import fold
from rarvision.errors import OptionError

__all__ = [
    "COLOURS",
    "DOMAINS",
    "HELD_OUT_DOMAIN",
    "PATTERNS",
    "SPLITS",
    "Attribute",
    "Domain",
    "Split",
    "domain_of",
    "sample_vocabulary",
    "split_codes",
    "split_of",
    "vocabulary",
]

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

COLOURS = ("crimson", "amber", "golden", "emerald", "teal", "azure", "violet", "rose", "ivory", "ebony")
"""The colour words that every domain uses for its first two attributes."""

PATTERNS = ("plain", "barred", "striped", "spotted", "ringed", "chequered")
"""The marking words that every domain uses for its third attribute."""

HELD_OUT_DOMAIN = "aircraft"
"""The domain that no training of *ranking* sees."""

_SPLIT_SALT = 0x5EED
_VALIDATION_FROM, _TEST_FROM = 6800, 7300
_GROUP = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribute:
    """One named property of a domain's categories and the words for its values."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """A family of categories, each a combination of one value of every attribute.

    Attributes:
        name: For instance ``birds``.
        number: Its constant in every hash; never reused.
        attributes: In the order of the words of a name.
    """

    name: str
    number: int
    attributes: tuple[Attribute, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each attribute has."""
        return tuple(len(attribute.words) for attribute in self.attributes)

    @property
    def n_categories(self) -> int:
        """How many combinations there are."""
        return int(np.prod(self.sizes))

    def all_codes(self) -> Int[np.ndarray, "c 5"]:
        """Return every category's code, in lexical order."""
        return np.asarray(np.indices(self.sizes).reshape(len(self.sizes), -1).T, dtype=np.int64)

    def check(self, codes: Int[np.ndarray, "n 5"]) -> Int[np.ndarray, "n 5"]:
        """Return the codes as int64.

        Raises:
            OptionError: A code has not five numbers, or one out of its attribute's range.
        """
        array = np.asarray(codes, dtype=np.int64)
        if array.ndim != 2 or array.shape[1] != len(self.sizes):
            raise OptionError(f"codes of {self.name} must have shape (n, {len(self.sizes)}), got {array.shape}")
        if array.size and (array.min() < 0 or (array >= np.array(self.sizes)).any()):
            raise OptionError(f"codes of {self.name} must lie below {self.sizes} and not be negative")
        return array

    def numbers(self, codes: Int[np.ndarray, "n 5"]) -> Int[np.ndarray, " n"]:
        """Return each category's number, 0 to ``n_categories - 1``."""
        array = self.check(codes)
        number = np.zeros(len(array), dtype=np.int64)
        for column, size in enumerate(self.sizes):
            number = number * size + array[:, column]
        return number

    def codes_to_names(self, codes: Int[np.ndarray, "n 5"]) -> list[str]:
        """Spell each category: five words joined by single spaces."""
        words = [attribute.words for attribute in self.attributes]
        return [" ".join(words[i][v] for i, v in enumerate(row)) for row in self.check(codes).tolist()]

    def names_to_codes(self, names: Sequence[str]) -> Int[np.ndarray, "n 5"]:
        """Read names back.

        Raises:
            OptionError: A name is not one of this domain's.
        """
        rows = []
        for name in names:
            words = name.split(" ")
            if len(words) != len(self.attributes):
                raise OptionError(f"a name of {self.name} has {len(self.attributes)} words, got {name!r}")
            row = []
            for word, attribute in zip(words, self.attributes, strict=True):
                if word not in attribute.words:
                    raise OptionError(
                        f"{name!r}: {word!r} is no {attribute.name} of {self.name}; known: {', '.join(attribute.words)}"
                    )
                row.append(attribute.words.index(word))
            rows.append(row)
        return np.array(rows, dtype=np.int64).reshape(-1, len(self.attributes))


def _domain(name: str, number: int, parts: tuple[str, str, str, str], shapes: str, kinds: str) -> Domain:
    first, second, panel, shape = parts
    words = (COLOURS, COLOURS, PATTERNS, tuple(shapes.split()), tuple(kinds.split()))
    titles = (first, second, panel, shape, "kind")
    attributes = tuple(Attribute(name=title, words=known) for title, known in zip(titles, words, strict=True))
    return Domain(name=name, number=number, attributes=attributes)


DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        _domain(
            "birds",
            1,
            ("head colour", "breast colour", "wing pattern", "tail shape"),
            "fantail forktail needletail rackettail stubtail",
            "finch heron parrot toucan curlew",
        ),
        _domain(
            "fish",
            2,
            ("head colour", "fin colour", "flank pattern", "tail shape"),
            "fantail forktail needletail spadetail moontail",
            "wrasse puffer shark angelfish sailfish",
        ),
        _domain(
            "flowers",
            3,
            ("petal colour", "centre colour", "corolla pattern", "leaf shape"),
            "broadleaf forkleaf needleleaf fernleaf heartleaf",
            "daisy poppy lily primrose trillium",
        ),
        _domain(
            "butterflies",
            4,
            ("forewing colour", "hindwing colour", "wing pattern", "tail shape"),
            "roundtail forktail needletail swallowtail scalloptail",
            "monarch skipper longwing emperor hawkmoth",
        ),
        _domain(
            "aircraft",
            5,
            ("nose colour", "fin colour", "fuselage pattern", "tail shape"),
            "fantail forktail teetail twintail ringtail",
            "glider biplane airliner seaplane helicopter",
        ),
    )
}
"""The domains by name, in the order birds, fish, flowers, butterflies, aircraft."""


def domain_of(name: str) -> Domain:
    """Return the domain of that name.

    Raises:
        OptionError: There is none.
    """
    if name not in DOMAINS:
        raise OptionError(f"unknown domain {name!r}; known: {', '.join(DOMAINS)}")
    return DOMAINS[name]


def split_of(domain: str, codes: Int[np.ndarray, "n 5"]) -> UInt8[np.ndarray, " n"]:
    """Say which split each category belongs to, from a hash of its code alone.

    Args:
        domain: A key of `DOMAINS`.
        codes: The categories.

    Returns:
        0 train (68 %), 1 validation (5 %), 2 test (27 %): positions in `SPLITS`.
    """
    known = domain_of(domain)
    points = fold(_SPLIT_SALT, known.number, known.numbers(codes)) % np.uint64(10_000)
    return ((points >= _VALIDATION_FROM).astype(np.uint8) + (points >= _TEST_FROM)).astype(np.uint8)


def split_codes(domain: str, split: Split) -> Int[np.ndarray, "c 5"]:
    """Return all categories of a split, in lexical order.

    Raises:
        OptionError: Unknown domain or split.
    """
    if split not in SPLITS:
        raise OptionError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    codes = domain_of(domain).all_codes()
    return codes[np.flatnonzero(split_of(domain, codes) == SPLITS.index(split))]


def _below(bound: int, *parts: int) -> int:
    """Return one hashed integer in [0, bound)."""
    return int(fold(*parts)[0] % np.uint64(bound))


def sample_vocabulary(domain: str, split: Split, n: int, seed: int) -> Int[np.ndarray, "n 5"]:
    """Draw distinct categories in groups of ten look-alikes.

    Within a group (rows 0 to 9, 10 to 19, …) every category differs from some other one in one or two attributes: a
    random walk inside the split. Only where the split is nearly used up may a group hold an outlier.

    Args:
        domain: A key of `DOMAINS`.
        split: ``train``, ``validation`` or ``test``.
        n: How many categories.
        seed: Another seed, another draw.

    Returns:
        Codes of n categories.

    Raises:
        OptionError: Unknown domain or split, or n is more than the split holds.
    """
    pool = split_codes(domain, split)
    if not 0 <= n <= len(pool):
        raise OptionError(f"n must lie between 0 and the {len(pool)} {split} categories of {domain}, got {n}")
    key = int(fold(seed, domain_of(domain).number, SPLITS.index(split))[0])
    free = np.ones(len(pool), dtype=bool)
    chosen: list[int] = []
    for step in range(n):
        group = chosen[step - step % _GROUP :]
        options = _look_alikes(pool, free, group, _below(max(len(group), 1), key, step, 0), key + step)
        if not len(options):
            options = np.flatnonzero(free)
        row = int(options[_below(len(options), key, step, 1)])
        free[row] = False
        chosen.append(row)
    return pool[np.array(chosen, dtype=np.int64)]


def _look_alikes(
    pool: Int[np.ndarray, "c 5"], free: np.ndarray, group: list[int], first: int, key: int
) -> Int[np.ndarray, " m"]:
    """Return the free categories that differ from a member of the group in one attribute, or else in two."""
    for offset in range(len(group)):
        member = pool[group[(first + offset) % len(group)]]
        distance = (pool != member).sum(axis=1)
        wanted = 1 + _below(2, key, 2)
        for changes in (wanted, 3 - wanted):
            options = np.flatnonzero(free & (distance == changes))
            if len(options):
                return options
    return np.zeros(0, dtype=np.int64)


def vocabulary(n: int, *, seed: int = 0, domains: Sequence[str] = tuple(DOMAINS)) -> Iterator[str]:
    """Generate distinct names of test categories, which no training saw, over the domains in turn.

    Args:
        n: How many; the five domains hold about 20,000.
        seed: Another seed, another order.
        domains: Which domains to go round.

    Yields:
        Names.

    Raises:
        OptionError: More names are asked for than there are.
    """
    pools = []
    for name in domains:
        codes = split_codes(name, "test")
        order = np.argsort(fold(seed, domain_of(name).number, domain_of(name).numbers(codes)), kind="stable")
        pools.append((domain_of(name), codes[order]))
    available = sum(len(codes) for _, codes in pools)
    if not 0 <= n <= available:
        raise OptionError(f"n must lie between 0 and the {available} test categories of {', '.join(domains)}, got {n}")
    given, turn = 0, 0
    while given < n:
        domain, codes = pools[turn % len(pools)]
        row = turn // len(pools)
        turn += 1
        if row < len(codes):
            given += 1
            yield domain.codes_to_names(codes[row : row + 1])[0]
