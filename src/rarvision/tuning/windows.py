"""Which images are asked about and which are retrieved, and the questions that one image's neighbours give. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from rarvision.datasets.base import draw

__all__ = ["Window", "ranking_windows", "split_halves"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Consecutive neighbours of one image as a question; the names are those of `TuningExample`.

    Attributes:
        number: Rank of its first neighbour, from 0.
    """

    number: int
    candidates: tuple[str, ...]
    target: tuple[str, ...]
    retrieved: tuple[str, ...]


def split_halves(codes: Int[np.ndarray, " n"], names: Mapping[int, str], *, seed: int) -> Bool[np.ndarray, " n"]:
    """Choose the half of each category's images that is retrieved (D_a); the other half is asked about (D_b).

    Args:
        codes: Each image's category code.
        names: The categories' names by code; the choice depends on them, not on the codes.
        seed: Chooses; the choice is the same on every machine and version.

    Returns:
        True for D_a. Of a category with an odd number of images D_a has one more; so a single image is in D_a.

    Source: the paper, section 3.3, "two disjoint subsets".
    """
    chosen = np.zeros(len(codes), dtype=bool)
    if not len(codes):
        return chosen
    order = np.argsort(codes, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        name = names[int(codes[members[0]])]
        ranks = sorted(range(len(members)), key=lambda rank: draw(seed, name, rank))
        chosen[members[ranks[: math.ceil(len(members) / 2)]]] = True
    return chosen


def ranking_windows(
    label: str,
    neighbours: Sequence[str],
    *,
    k: int,
    seed: int,
    key: str,
    max_windows: int | None = None,
    fill: bool = False,
    paper_compat: bool = False,
) -> tuple[list[Window], Counter[str]]:
    """The questions for one image: windows of its neighbours that hold its true name.

    Of n neighbours these are n - k + 1 windows of k: 16 of 5 for 20. A name counts once in a window, and is shown at a
    random place; a window that asks the same as an earlier one of the image is left out.

    Args:
        label: The true name.
        neighbours: The neighbours' names, most similar image first, with repeats; at least k.
        k: Neighbours in a window.
        seed: Of the order in which the names are shown, and of the choice for ``max_windows``.
        key: What tells the image from others.
        max_windows: Keep at most so many of them, chosen at random; None for all.
        fill: Go on beyond the window until k names are found, or the neighbours end.
        paper_compat: As the authors' code: names repeat, are shown as they were retrieved, and every window that holds
            the true name is kept.

    Returns:
        The questions by rank; and how many windows were left out: ``without_label`` (the true name is not in it),
        ``single_name`` (nothing to rank), ``repeated``, ``over_limit``.

    Source: the paper, section 3.3, and its authors' ``build_finetuning_data.ipynb``.

    Example:
        >>> found, left_out = ranking_windows("b", ["a", "b", "a", "a"], k=2, seed=0, key="x", paper_compat=True)
        >>> [window.candidates for window in found], [window.target for window in found], dict(left_out)
        ([('a', 'b'), ('b', 'a')], [('b', 'a'), ('b', 'a')], {'without_label': 1})
    """
    kept: list[Window] = []
    left_out: Counter[str] = Counter()
    asked: set[tuple[str, ...]] = set()
    for number in range(len(neighbours) - k + 1):
        names = tuple(neighbours[number : None if fill else number + k])
        if not paper_compat:
            names = tuple(dict.fromkeys(names))[:k]
        if label not in names:
            left_out["without_label"] += 1
        elif paper_compat:
            kept.append(_window(number, label, names, shown=names))
        elif len(names) == 1:
            left_out["single_name"] += 1
        elif names in asked:
            left_out["repeated"] += 1
        else:
            asked.add(names)
            shown = sorted(names, key=lambda name: draw(seed, f"{key}\0{name}", number))
            kept.append(_window(number, label, names, shown=shown))
    if max_windows is not None and len(kept) > max_windows:
        left_out["over_limit"] = len(kept) - max_windows
        chosen = sorted(kept, key=lambda window: draw(seed, key, window.number))[:max_windows]
        kept = sorted(chosen, key=lambda window: window.number)
    return kept, left_out


def _window(number: int, label: str, names: tuple[str, ...], *, shown: Sequence[str]) -> Window:
    target = sorted(names, key=lambda name: name != label)  # stable: the others keep their order
    return Window(number=number, candidates=tuple(shown), target=tuple(target), retrieved=names)
