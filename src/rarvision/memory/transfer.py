"""Entries from one memory into another of the same encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rarvision.errors import EncoderMismatchError, OptionError
from rarvision.memory.records import AddReport
from rarvision.types import Modality

if TYPE_CHECKING:
    from rarvision.memory.base import Memory

__all__ = ["transfer"]

_AT_ONCE = 2_048


def transfer(
    source_memory: Memory,
    other: Memory,
    *,
    removing: bool,
    progress: Callable[[int], None] | None = None,
    ids: Sequence[int] | None = None,
    category: str | None = None,
    modality: Modality | None = None,
    source: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> AddReport:
    """See `Memory.copy_to` and `Memory.move_to`."""
    if other is source_memory or _place(other) == _place(source_memory):
        raise OptionError("a memory cannot be moved or copied into itself; name another one")
    ours, theirs = (
        f"{memory.encoder_name or 'an unknown encoder'} ({memory.encoder_fingerprint})"
        for memory in (source_memory, other)
    )
    if other.encoder_fingerprint != source_memory.encoder_fingerprint or other.dim != source_memory.dim:
        raise EncoderMismatchError(
            f"expected two memories of one encoder; this one is {ours}'s, the other {theirs}'s. Encode the images "
            "again for the other memory instead"
        )
    found = source_memory.entries(ids=ids, category=category, modality=modality, source=source, metadata=metadata)
    wanted = [entry.id for entry in found]
    added = skipped = 0
    with other._writing():  # noqa: SLF001 - the package's own; one index at the end rather than many on the way
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            report = other.append(list(source_memory.records(part)), source_memory.vectors(part))
            added, skipped = added + report.added, skipped + report.skipped
            if removing:
                source_memory.remove(ids=part)
            if progress is not None:
                progress(start + len(part))
    return AddReport(added=added, skipped=skipped)


def _place(memory: Memory) -> tuple[str, str]:
    """Where it lies: one folder opened twice, under whatever names, is one memory, and moving would empty it."""
    about = memory.info()
    return about.kind, os.path.realpath(about.location) if about.kind == "local" else about.location
