"""Compacting a memory's folder, and encoding all of it anew."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from rarvision.encoders import Encoder
from rarvision.encoders.base import batch_size_of
from rarvision.errors import ImageError, InputError, MemoryLockedError
from rarvision.images import Picture, load_image
from rarvision.memory.adding import batches, box_of
from rarvision.memory.local_settings import settings_of
from rarvision.memory.sql import to_json
from rarvision.memory.store import Store, pack_vectors, unpack_vectors
from rarvision.memory.writing import Writer, drop_segments, insert_segment, place
from rarvision.types import Box, Modality, box_suffix

__all__ = ["CompactReport", "ReencodeReport", "compact", "reencode"]

_DRAFT = "draft"
_AT_ONCE = 4_096
_MODALITIES: tuple[Modality, ...] = ("image", "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactReport:
    """What compacting did; ``index`` says what searches the vectors now."""

    entries: int
    segments_before: int
    segments_after: int
    bytes_before: int
    bytes_after: int
    index: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReencodeReport:
    """What encoding anew did.

    Attributes:
        encoded: Entries that have a vector of the new encoder now; those of interrupted calls included.
        failed: Entries whose image cannot be had.
        failures: Source and message of each.
        published: Whether the memory is the new encoder's now. With failures it is not: the old vectors still serve.
    """

    encoded: int
    failed: int = 0
    failures: tuple[tuple[str, str], ...] = ()
    published: bool = True


def compact(store: Store, writer: Writer, *, progress: Callable[[int], None] | None = None) -> CompactReport:
    """See `LocalMemory.compact`."""
    with store.writing():
        before, size = store.facts(), store.size_bytes()
        done = 0
        for modality in _MODALITIES:
            writer.compact(modality, None if progress is None else _shifted(progress, done))
            done += store.counts().get(modality, 0)
        _shrink(store)
        after = store.facts()
        entries = sum(store.counts().values())
    index = f"{after['indexed']:,} of {entries:,} entries indexed" if after["indexed"] else "exact"
    return CompactReport(
        entries=entries,
        segments_before=before["segments"],
        segments_after=after["segments"],
        bytes_before=size,
        bytes_after=store.size_bytes(),
        index=index,
    )


def _shifted(progress: Callable[[int], None], by: int) -> Callable[[int], None]:
    return lambda count: progress(by + count)


def _shrink(store: Store) -> None:
    """Give the database's empty pages back; left for another time where readers are in the way."""
    with contextlib.suppress(MemoryLockedError):
        store.rows("VACUUM")
        store.rows("PRAGMA wal_checkpoint(TRUNCATE)")


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One entry to encode."""

    entry: int
    modality: Modality
    source: str
    templates: tuple[str, ...]
    box: Box | None
    thumbnail: bytes | None

    def image(self) -> Image.Image:
        """Its image, from its thumbnail where it has one here, else from where it came."""
        if self.thumbnail is not None:
            return load_image(Image.open(BytesIO(self.thumbnail)))
        image = load_image(Path(self.source.removesuffix(box_suffix(self.box))))
        return image if self.box is None else Picture.of(image).cropped(self.box).whole()


def reencode(
    store: Store,
    writer: Writer,
    encoder: Encoder,
    *,
    metadata: Mapping[str, Any],
    from_thumbnails: bool = False,
    batch_size: int | None = None,
    on_error: Callable[[str, InputError], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ReencodeReport:
    """See `LocalMemory.reencode`."""
    size = batch_size_of(batch_size or encoder.batch_size)
    settings = {**settings_of(encoder), "metadata": to_json(metadata)}
    failures: list[tuple[str, str]] = []
    with store.writing():
        _begin(store, encoder.fingerprint)
        done = _drafted(store)
        if progress is not None:
            progress(done)
        for batch in _alike(_waiting(store, from_thumbnails=from_thumbnails), size):
            kept, vectors = _encode(encoder, batch, failures, on_error)
            with store.transaction() as database:
                database.executemany(
                    "INSERT INTO drafts (entry, vector) VALUES (?, ?)",
                    [(item.entry, pack_vectors(vectors[row : row + 1])) for row, item in enumerate(kept)],
                )
            done += len(kept)
            if progress is not None:
                progress(done + len(failures))
        if not failures:
            _publish(store, writer, settings)
    return ReencodeReport(encoded=done, failed=len(failures), failures=tuple(failures), published=not failures)


def _begin(store: Store, fingerprint: str) -> None:
    """Keep what was encoded by the same encoder before, and nothing else."""
    if store.meta().get(_DRAFT) == fingerprint:
        return
    with store.transaction() as database:
        database.execute("DELETE FROM drafts")
        database.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (_DRAFT, fingerprint))


def _drafted(store: Store) -> int:
    return int(store.rows("SELECT COUNT(*) FROM drafts")[0][0])


def _waiting(store: Store, *, from_thumbnails: bool) -> Iterator[_Item]:
    """Entries without a new vector, images first; read in parts, so that memory stays bounded."""
    jpeg = "thumbnails.jpeg" if from_thumbnails else "NULL"
    for modality in _MODALITIES:
        last = 0
        while True:
            part = store.rows(
                f"SELECT entries.id, source, metadata, {jpeg} FROM entries "  # noqa: S608 - constants
                "LEFT JOIN thumbnails ON thumbnails.content = entries.content "
                "WHERE modality = ? AND entries.id > ? AND entries.id NOT IN (SELECT entry FROM drafts) "
                "ORDER BY entries.id LIMIT ?",
                (modality, last, _AT_ONCE),
            )
            for entry, source, written, thumbnail in part:
                metadata = json.loads(written)
                yield _Item(
                    entry=entry,
                    modality=modality,
                    source=source,
                    templates=tuple(metadata.get("templates", ["{}"])) if modality == "text" else (),
                    box=box_of(metadata) if modality == "image" else None,
                    thumbnail=thumbnail,
                )
            if not part:
                break
            last = part[-1][0]


def _alike(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    """Batches of one modality and one set of templates."""
    for batch in batches(items, size):
        groups: dict[tuple[Modality, tuple[str, ...]], list[_Item]] = {}
        for item in batch:
            groups.setdefault((item.modality, item.templates), []).append(item)
        yield from groups.values()


def _encode(
    encoder: Encoder,
    batch: Sequence[_Item],
    failures: list[tuple[str, str]],
    on_error: Callable[[str, InputError], None] | None,
) -> tuple[list[_Item], Float[np.ndarray, "n dim"]]:
    if batch[0].modality == "text":
        return list(batch), encoder.encode_texts([item.source for item in batch], templates=batch[0].templates)
    kept, images = [], []
    for item in batch:
        try:
            images.append(item.image())
            kept.append(item)
        except ImageError as error:
            failures.append((item.source, str(error)))
            if on_error is not None:
                on_error(item.source, error)
    vectors = encoder.encode_images(images) if images else np.empty((0, encoder.dim), dtype=np.float32)
    return kept, vectors


def _publish(store: Store, writer: Writer, settings: dict[str, Any]) -> None:
    """Put the new vectors in the place of the old ones, in one transaction."""
    dim = int(settings["dim"])
    writer.dim = dim
    written = []
    for modality in _MODALITIES:
        found = store.rows(
            "SELECT id, category FROM entries WHERE modality = ? AND id IN (SELECT entry FROM drafts) ORDER BY id",
            (modality,),
        )
        if found:
            ids, codes = np.array(found, dtype=np.int64).T
            written.append((modality, ids, writer.write_segment(modality, _drafts(store, ids, dim), ids, codes)))
    old = [segment for (segment,) in store.rows("SELECT id FROM segments")]
    with store.transaction() as database:
        for modality, ids, files in written:
            place(database, insert_segment(database, modality, len(ids), files), ids)
        database.execute("DELETE FROM tail")
        dropped = drop_segments(database, old)
        database.execute("DELETE FROM drafts")
        database.execute("DELETE FROM meta WHERE key = ?", (_DRAFT,))
        database.executemany(
            "UPDATE meta SET value = ? WHERE key = ?", [(value, key) for key, value in settings.items()]
        )
    store.delete_files(dropped)
    _shrink(store)


def _drafts(store: Store, ids: np.ndarray, dim: int) -> Iterator[Float[np.ndarray, "n dim"]]:
    for start in range(0, len(ids), _AT_ONCE):
        first, last = int(ids[start]), int(ids[min(start + _AT_ONCE, len(ids)) - 1])
        wanted = set(ids[start : start + _AT_ONCE].tolist())
        rows = store.rows("SELECT entry, vector FROM drafts WHERE entry BETWEEN ? AND ? ORDER BY entry", (first, last))
        yield unpack_vectors(b"".join(vector for entry, vector in rows if entry in wanted), dim)
