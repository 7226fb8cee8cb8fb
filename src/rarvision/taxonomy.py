"""A tree over the categories (family, genus, species, …): groups of names, what is right at which level, and how sure.

Pure: `rarvision.datasets.open_taxonomy` reads one from a file, `rarvision.datasets.field_guide_taxonomy` is the field
guide's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float

from rarvision.errors import InputError, OptionError
from rarvision.types import LevelAnswer

__all__ = ["SureFit", "Taxonomy", "check_sure", "fit_sure"]

_ENOUGH_IMAGES = 40  # below which a threshold is not trusted
_BLOCK = 4_000_000
_NAMED = 3


@final
class Taxonomy:
    """Which groups each category belongs to, from the coarsest level to the category itself.

    Args:
        paths: For each category its groups, the coarsest first, one a level but the last, which is the category's own.
        levels: The levels' names, the coarsest first; the last is that of the categories.
        name: For reports.

    Attributes:
        levels: As given.
        name: As given.

    Raises:
        InputError: No category, fewer than two levels, a level twice, a path of another length, a blank group, or a
            group that lies in two groups of the level above.

    Example:
        >>> tree = Taxonomy({"crow": ["bird"], "finch": ["bird"], "carp": ["fish"]}, levels=["class", "species"])
        >>> [(answer.name, answer.probability) for answer in tree.answers({"crow": 0.25, "finch": 0.5, "carp": 0.125})]
        [('bird', 0.75), ('finch', 0.5)]
    """

    def __init__(self, paths: Mapping[str, Sequence[str]], *, levels: Sequence[str], name: str = "taxonomy") -> None:
        self.levels = tuple(levels)
        self.name = name
        if len(self.levels) < 2 or len(set(self.levels)) < len(self.levels):
            raise InputError(f"{name}: expected two levels or more, each once, got {', '.join(self.levels) or 'none'}")
        if not paths:
            raise InputError(f"{name}: expected at least one category, got none")
        self._paths = {category: (*groups, category) for category, groups in paths.items()}
        self._check()

    def _check(self) -> None:
        above: list[dict[str, str]] = [{} for _ in self.levels]
        for category, path in self._paths.items():
            if len(path) != len(self.levels):
                raise InputError(
                    f"{self.name}: {category!r} has {len(path)} names; expected one for each of "
                    f"{', '.join(self.levels)}"
                )
            for depth, group in enumerate(path):
                if not group.strip():
                    raise InputError(f"{self.name}: {category!r} has no {self.levels[depth]}; give each category one")
                parent = path[depth - 1] if depth else ""
                if above[depth].setdefault(group, parent) != parent:
                    raise InputError(
                        f"{self.name}: the {self.levels[depth]} {group!r} lies in two groups of the level "
                        f"{self.levels[depth - 1]}: {above[depth][group]!r} and {parent!r}. Levels go from the "
                        "coarsest to the finest; names that mean two things need to be told apart"
                    )

    def __contains__(self, category: object) -> bool:
        return category in self._paths

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def categories(self) -> Sequence[str]:
        """The categories, as they were given."""
        return tuple(self._paths)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the levels or with a category's groups, not with the order."""
        digest = hashlib.sha256(repr(self.levels).encode())
        for category in sorted(self._paths):
            digest.update(f"{self._paths[category]!r}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def path(self, category: str) -> tuple[str, ...]:
        """A category's groups from the coarsest to itself.

        Raises:
            InputError: The tree has no such category.
        """
        if category not in self._paths:
            raise InputError(f"{self.name} has no category {category!r} ({len(self)} are known); add it to the tree")
        return self._paths[category]

    def check(self, categories: Iterable[str], whose: str) -> None:
        """Raise `InputError`, saying whose they are, where categories are not in the tree."""
        missing = sorted({category for category in categories if category not in self._paths})
        if missing:
            shown = ", ".join(map(repr, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
            raise InputError(
                f"{self.name} ({len(self):,} categories) lacks {len(missing):,} of {whose}: {shown}; add them to it"
            )

    def answers(self, probabilities: Mapping[str, float]) -> tuple[LevelAnswer, ...]:
        """The most probable group at each level, coarsest first: probabilities are summed up the tree.

        Args:
            probabilities: Of distinct categories, 0 to 1; what they lack to 1 is "none of these". Of equal sums the
                group whose category comes first is taken. A category that the tree lacks counts at its own level only.
        """
        found = []
        for depth, level in enumerate(self.levels):
            sums: dict[str, float] = {}
            for category, probability in probabilities.items():
                path = self._paths.get(category)
                if path is None and depth < len(self.levels) - 1:
                    continue
                group = category if path is None else path[depth]
                sums[group] = sums.get(group, 0.0) + probability
            if sums:
                best = max(sums, key=lambda group: sums[group])
                found.append(LevelAnswer(level=level, name=best, probability=min(1.0, sums[best])))
        return tuple(found)

    def right(self, names: Sequence[str | None], label: str, *, groups: bool = False) -> Bool[np.ndarray, " levels"]:
        """At each level whether a name is right.

        Args:
            names: One a level: a group's name; with ``groups=False`` a category, whose group at that level is meant.
                None is wrong, and so is a category that the tree lacks, but at its own level.
            label: The true category.
            groups: Whether ``names`` are groups already.
        """
        truth = self.path(label)
        right = np.zeros(len(self.levels), dtype=bool)
        for depth, name in enumerate(names):
            if name is None:
                continue
            group = name if groups or name not in self._paths else self._paths[name][depth]
            known = groups or name in self._paths or depth == len(self.levels) - 1
            right[depth] = known and group == truth[depth]
        return right

    def hits(self, predicted: Sequence[str | None], labels: Sequence[str]) -> Bool[np.ndarray, "n levels"]:
        """For each image and level whether the predicted category lies in the true category's group.

        Raises:
            InputError: A label that the tree lacks.
        """
        rows = [self.right([name] * len(self.levels), label) for name, label in zip(predicted, labels, strict=True)]
        return np.array(rows, dtype=bool).reshape(len(labels), len(self.levels))


def check_sure(sure: float) -> float:
    """The threshold itself; `OptionError` unless it lies above 0 and at most at 1."""
    if isinstance(sure, bool) or not isinstance(sure, (int, float)) or not 0.0 < sure <= 1.0:
        raise OptionError(f"sure must be a probability above 0 and at most 1, got {sure!r}")
    return float(sure)


@dataclass(frozen=True, kw_only=True, slots=True)
class SureFit:
    """From which probability on an answer is sure, so that a given share of the sure answers is right.

    Attributes:
        taxonomy: The tree's fingerprint: for any other, this says nothing.
        threshold: The answer is the deepest level whose most probable group has at least this probability.
        target: Share of the answers, at whatever level, that was to be right.
        accuracy: Share that is right, cross-fitted; None where nothing is answered.
        answered: Share of the images that are answered at some level, cross-fitted.
        images: That were left out, foreign ones included.
    """

    taxonomy: str
    threshold: float
    target: float
    accuracy: float | None
    answered: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def fit_sure(
    probabilities: Float[np.ndarray, "n levels"],
    right: Bool[np.ndarray, "n levels"],
    *,
    taxonomy: str,
    weights: Float[np.ndarray, " n"] | None = None,
    target: float = 0.95,
    folds: int = 5,
) -> tuple[SureFit | None, str | None]:
    """Fit the threshold of sure answers: the lowest at which the target share of the answers is right.

    Args:
        probabilities: Of the most probable group at each level, coarsest first; 0 where there is none.
        right: Whether that group holds the true category.
        taxonomy: The tree's fingerprint.
        weights: Of the images, such as to make foreign ones as rare as they are in use.
        target: Share of the answers that is to be right, above 0 and at most 1.
        folds: For the cross-fitted figures: the threshold comes from the other images.

    Returns:
        The fit and None; or None and the reason why there is none.

    Raises:
        OptionError: A target out of range.
    """
    if not 0.0 < target <= 1.0:
        raise OptionError(f"the accuracy of sure answers must lie above 0 and at most at 1, got {target}")
    n = len(probabilities)
    if n < _ENOUGH_IMAGES:
        return None, f"{n} images were left out, at least {_ENOUGH_IMAGES} are needed"
    shares = np.ones(n) if weights is None else weights
    threshold = _lowest(probabilities, right, shares, target)
    if threshold is None:
        return None, f"at no threshold are {target:.0%} of the answers right"
    given = np.zeros(n, dtype=bool)
    hit = np.zeros(n, dtype=bool)
    fold_of = np.arange(n) % folds
    for fold in range(folds):
        inside = fold_of != fold
        own = _lowest(probabilities[inside], right[inside], shares[inside], target)
        given[~inside], hit[~inside] = _answered(
            probabilities[~inside], right[~inside], np.array([math.inf if own is None else own])
        )[:, 0]
    total = float(shares @ given)
    return (
        SureFit(
            taxonomy=taxonomy,
            threshold=threshold,
            target=target,
            accuracy=float(shares @ hit) / total if total else None,
            answered=total / float(shares.sum()),
            images=n,
        ),
        None,
    )


def _answered(
    probabilities: Float[np.ndarray, "n levels"], right: Bool[np.ndarray, "n levels"], thresholds: np.ndarray
) -> Bool[np.ndarray, "2 t n"]:
    """At each threshold whether each image is answered at all, and whether that answer is right."""
    sure = probabilities[None] >= thresholds[:, None, None]
    deepest = sure.shape[2] - 1 - np.argmax(sure[:, :, ::-1], axis=2)
    given = sure.any(axis=2)
    hit = given & np.take_along_axis(np.broadcast_to(right, sure.shape), deepest[..., None], axis=2)[..., 0]
    return np.stack([given, hit])


def _lowest(
    probabilities: Float[np.ndarray, "n levels"],
    right: Bool[np.ndarray, "n levels"],
    weights: Float[np.ndarray, " n"],
    target: float,
) -> float | None:
    """The lowest of the probabilities at which the target is reached; None where there is none."""
    thresholds = np.unique(probabilities[probabilities > 0])
    size = max(1, _BLOCK // max(1, probabilities.size))
    for start in range(0, len(thresholds), size):
        part = thresholds[start : start + size]
        given, hit = _answered(probabilities, right, part)
        enough = np.flatnonzero(hit @ weights >= (target - 1e-12) * (given @ weights))
        if len(enough):
            return float(part[enough[0]])
    return None
