"""What a memory's folder says of the memory: its encoder, its index, its thumbnails."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rarvision.encoders import Encoder
from rarvision.errors import MemoryCorruptError, OptionError
from rarvision.index import IndexSpec, choose_index, make_index
from rarvision.memory.sql import to_json
from rarvision.memory.store import Store, pack_vectors

__all__ = ["LocalSettings", "index_setting", "new_settings", "read_settings", "settings_of"]

_INDEX_FROM = 1_000  # rows that an index which somebody chose is built for


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """As they were read.

    Attributes:
        dim: Number of dimensions of the vectors.
        encoder_name: Hub name or folder; empty where unknown.
        encoder_fingerprint: That of the encoder that made the vectors.
        encoder_revision: Of a hub repository.
        probe: What `Encoder.probe` gave when the memory was made, as `pack_vectors` packs it.
        index: The one that somebody chose; None where the size decides.
        thumbnails: Longest side, pixels; None where none are stored.
        metadata: What was given at creation.
    """

    dim: int
    encoder_name: str
    encoder_fingerprint: str
    encoder_revision: str | None
    probe: bytes | None
    index: IndexSpec | None
    thumbnails: int | None
    metadata: Mapping[str, Any]

    def index_for(self, rows: int) -> IndexSpec:
        """The index of a segment of so many rows."""
        if self.index is None:
            return choose_index(rows, self.dim)[0]
        return self.index if rows >= _INDEX_FROM else IndexSpec(kind="exact")


def read_settings(store: Store) -> LocalSettings:
    """The settings as they are now; raises `MemoryCorruptError` where they are incomplete."""
    meta = store.meta()
    try:
        chosen = str(meta["index"])
        return LocalSettings(
            dim=int(meta["dim"]),
            encoder_fingerprint=str(meta["encoder_fingerprint"]),
            encoder_name=str(meta["encoder_name"]),
            encoder_revision=meta["encoder_revision"],
            probe=meta["encoder_probe"],
            index=None if chosen == "auto" else IndexSpec.from_json(json.loads(chosen)),
            thumbnails=meta["thumbnails"],
            metadata=json.loads(meta["metadata"]),
        )
    except (KeyError, ValueError) as error:
        raise MemoryCorruptError(f"{store.folder}: the memory's settings are incomplete: {error!r}") from error


def new_settings(
    encoder: Mapping[str, Any],
    *,
    index: str | IndexSpec,
    index_parameters: Mapping[str, int | str] | None,
    thumbnails: int | None,
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a new memory keeps; raises `OptionError` for options that make no sense.

    ``encoder`` is what `settings_of` gives, or the same of an encoder that is not at hand.
    """
    chosen = index_setting(index, index_parameters, encoder["dim"])
    if thumbnails is not None and thumbnails < 1:
        raise OptionError(f"thumbnails must be at least 1 pixel, or None, got {thumbnails}")
    return {**encoder, "index": chosen, "thumbnails": thumbnails, "metadata": to_json(metadata or {})}


def settings_of(encoder: Encoder) -> dict[str, Any]:
    """What a memory remembers of its encoder."""
    folder = Path(encoder.name)
    return {
        "dim": encoder.dim,
        "encoder_fingerprint": encoder.fingerprint,
        "encoder_name": str(folder.resolve()) if folder.is_dir() else encoder.name,
        "encoder_revision": encoder.revision,
        "encoder_probe": pack_vectors(encoder.probe()),
    }


def index_setting(index: str | IndexSpec, parameters: Mapping[str, int | str] | None, dim: int) -> str:
    """What the settings keep; raises `OptionError` for an index that cannot be made."""
    if index == "auto":
        if parameters:
            raise OptionError("index_parameters go with an index of your choice; 'auto' has its own")
        return "auto"
    if isinstance(index, IndexSpec):
        made = IndexSpec(kind=index.kind, parameters={**index.parameters, **(parameters or {})}).make(dim)
    else:
        made = make_index(index, dim, **(parameters or {}))
    return json.dumps(made.spec.to_json())
