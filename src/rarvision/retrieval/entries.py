"""Which of the memory's entries stand for the categories that a query was given."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from rarvision.errors import MemoryEmptyError, OptionError
from rarvision.memory import Hits, Memory
from rarvision.types import Candidate, Modality

__all__ = ["every_category", "exemplar_ids"]

_EXEMPLARS = 16


def exemplar_ids(
    memory: Memory, hits: Hits | None, chosen: Int[np.ndarray, "n k"], modalities: tuple[Modality, ...]
) -> list[dict[int, tuple[int, ...]]]:
    """For each query, the chosen categories' entries: those found, closest first; else any, images before texts.

    Args:
        memory: What was searched.
        hits: The nearest images, if images were asked.
        chosen: Codes of categories.
        modalities: Those that were asked, images first.
    """
    found: list[dict[int, tuple[int, ...]]] = [{} for _ in chosen]
    if hits is not None:
        for row, wanted in enumerate(chosen):
            of = hits.categories[row]
            for code in wanted.tolist():
                if len(entries := hits.ids[row][of == code][:_EXEMPLARS]):
                    found[row][code] = tuple(entries.tolist())
    missing = sorted({code for row, wanted in enumerate(chosen.tolist()) for code in wanted if code not in found[row]})
    spare: dict[int, tuple[int, ...]] = {}
    for modality in modalities:
        ids, of = memory.table(modality)
        for code in missing:
            if code not in spare and len(entries := ids[of == code][:_EXEMPLARS]):
                spare[code] = tuple(entries.tolist())
    return [spare | of_row for of_row in found]


def every_category(memory: Memory, k: int) -> list[Candidate]:
    """All categories in the order of their names, all as near as one another: what is shown without retrieval.

    Raises:
        MemoryEmptyError: There are none.
        OptionError: ``k`` is less than there are: which of them would be arbitrary.
    """
    names = sorted(memory.categories())
    if not names:
        raise MemoryEmptyError("the memory holds nothing; add images or names first")
    if k < len(names):
        raise OptionError(f"source='none' shows every category: k must be at least {len(names):,}, got {k:,}")
    known = {name: code for code, name in memory.category_names().items()}
    chosen = np.array([[known[name] for name in names]])
    (entries,) = exemplar_ids(memory, None, chosen, ("image", "text"))
    return [
        Candidate(category=name, similarity=0.0, exemplars=entries.get(code, ()))
        for name, code in zip(names, chosen[0].tolist(), strict=True)
    ]
