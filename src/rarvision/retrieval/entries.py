"""Which of the memory's entries stand for the categories that a query was given."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from rarvision.memory import Hits, Memory
from rarvision.types import Modality

__all__ = ["exemplar_ids"]

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
