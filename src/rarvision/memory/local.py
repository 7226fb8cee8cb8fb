"""`LocalMemory`: a memory in a folder that survives restarts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from jaxtyping import Float, Int

from rarvision.encoders import Encoder
from rarvision.errors import InputError, OptionError
from rarvision.index import IndexSpec, Tuning, tune
from rarvision.memory.base import Memory
from rarvision.memory.local_settings import index_setting, new_settings, read_settings, settings_of
from rarvision.memory.reading import Reader
from rarvision.memory.records import Hits, MemoryInfo, NewEntry, Where
from rarvision.memory.sql import Conditions
from rarvision.memory.store import Store, unpack_vectors
from rarvision.memory.upkeep import CompactReport, ReencodeReport, compact, reencode
from rarvision.memory.verifying import Problem, verify
from rarvision.memory.view import View
from rarvision.memory.writing import Writer
from rarvision.types import Entry, Modality

__all__ = ["LocalMemory"]

_MODALITIES: tuple[Modality, ...] = ("image", "text")
_NOTE = "note:"  # before a note's name in the table of settings


@final
class LocalMemory(Memory):
    """A memory in a folder: SQLite for the entries, memory-mapped segments for the vectors.

    One process writes, any number read. Make one with `create`, open it with `open`, close it or use ``with``.
    """

    def __init__(self, store: Store) -> None:
        """Use `create` or `open`."""
        self._store = store
        try:
            self._read_settings()
        except BaseException:
            store.close()
            raise
        self._writer = Writer(store, dim=self.dim, index_for=self._index_for)

    def _read_settings(self) -> None:
        self._settings = read_settings(self._store)
        self._reader = Reader(self._store, dim=self.dim, fingerprint=self.encoder_fingerprint)

    # Making and opening -----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        encoder: Encoder,
        index: str | IndexSpec = "auto",
        index_parameters: Mapping[str, int | str] | None = None,
        thumbnails: int | None = 96,
        metadata: Mapping[str, Any] | None = None,
        lock_timeout_s: float = 5.0,
    ) -> LocalMemory:
        """Make an empty memory.

        Args:
            path: A folder that does not exist yet, or is empty.
            encoder: The memory is bound to it.
            index: ``exact``, ``hnsw``, ``rescored``, a faiss factory string, or a spec; ``auto`` chooses by size, see
                `rarvision.index.choose_index`.
            index_parameters: Those of the index's constructor.
            thumbnails: Longest side of the stored JPEG thumbnails, pixels; None to store none.
            metadata: JSON values, kept with the memory.
            lock_timeout_s: How long to wait for another process that writes.

        Raises:
            MemoryExistsError: Something is there already.
        """
        memory = cls._create(
            path,
            settings_of(encoder),
            index=index,
            index_parameters=index_parameters,
            thumbnails=thumbnails,
            metadata=metadata,
            lock_timeout_s=lock_timeout_s,
        )
        memory._bound = encoder  # noqa: SLF001 - its own class
        return memory

    @classmethod
    def create_unbound(
        cls,
        path: str | Path,
        *,
        dim: int,
        fingerprint: str,
        index: str | IndexSpec = "auto",
        metadata: Mapping[str, Any] | None = None,
    ) -> LocalMemory:
        """Make an empty memory for vectors whose encoder is not at hand; it can be searched by vectors only."""
        unknown = {"encoder_name": "", "encoder_revision": None, "encoder_probe": None}
        return cls._create(
            path, {"dim": dim, "encoder_fingerprint": fingerprint, **unknown}, index=index, metadata=metadata
        )

    @classmethod
    def _create(
        cls,
        path: str | Path,
        encoder: Mapping[str, Any],
        *,
        index: str | IndexSpec,
        index_parameters: Mapping[str, int | str] | None = None,
        thumbnails: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        lock_timeout_s: float = 5.0,
    ) -> LocalMemory:
        settings = new_settings(
            encoder, index=index, index_parameters=index_parameters, thumbnails=thumbnails, metadata=metadata
        )
        folder = Path(path)
        Store.create(folder, settings)
        return cls(Store(folder, lock_timeout_s=lock_timeout_s))

    @classmethod
    def open(cls, path: str | Path, *, encoder: Encoder | None = None, lock_timeout_s: float = 5.0) -> Self:
        """Open an existing memory.

        Args:
            path: Its folder.
            encoder: Checked against the memory's; without it, the memory's own is loaded by name when it is needed.
            lock_timeout_s: How long to wait for another process that writes.

        Raises:
            MemoryNotFoundError: No memory there.
            EncoderMismatchError: The vectors were made by another encoder.
            MemoryCorruptError: What is there cannot be read.
        """
        memory = cls(Store(Path(path), lock_timeout_s=lock_timeout_s))
        if encoder is not None:
            try:
                memory.bind(encoder)
            except BaseException:
                memory.close()
                raise
        return memory

    def close(self) -> None:
        """Release the database; harmless when done twice."""
        self._reader.close()
        self._store.close()

    @property
    def repairs(self) -> tuple[str, ...]:
        """What was found interrupted, and undone, when this memory was opened or written to."""
        return tuple(self._store.repairs)

    # What it is -------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The memory's folder."""
        return self._store.folder

    @property
    def dim(self) -> int:
        """Number of dimensions of the vectors."""
        return self._settings.dim

    @property
    def encoder_name(self) -> str:
        """Hub name or folder of the encoder; empty where unknown."""
        return self._settings.encoder_name

    @property
    def encoder_fingerprint(self) -> str:
        """Fingerprint of the encoder that made the vectors."""
        return self._settings.encoder_fingerprint

    @property
    def revision(self) -> int:
        """Grows with every change, whoever makes it."""
        return self._store.revision

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was given at creation."""
        return self._settings.metadata

    def count(self, modality: Modality | None = None) -> int:
        """Number of entries."""
        counts = self._reader.counts()
        return sum(counts.values()) if modality is None else counts.get(modality, 0)

    def category_names(self) -> Mapping[int, str]:
        """Names by category code."""
        return self._reader.names()

    def categories(self, modality: Modality | None = None) -> list[str]:
        """Names of the categories that have entries, in the order in which they came."""
        query = (
            "SELECT name FROM categories WHERE EXISTS (SELECT 1 FROM entries "
            "WHERE entries.category = categories.id AND modality IN (?, ?)) ORDER BY id"
        )
        wanted = _MODALITIES if modality is None else (modality, modality)
        return [name for (name,) in self._store.rows(query, wanted)]

    def info(self) -> MemoryInfo:
        """What it is and holds."""
        with self._store.snapshot():
            images, texts = self.count("image"), self.count("text")
            facts = self._store.facts()
            categories = len(self.categories())
        return MemoryInfo(
            kind="local",
            location=str(self._store.folder),
            dim=self.dim,
            encoder_name=self.encoder_name,
            encoder_fingerprint=self.encoder_fingerprint,
            entries=images + texts,
            images=images,
            texts=texts,
            categories=categories,
            index="auto" if self._settings.index is None else str(self._settings.index),
            thumbnails=facts.pop("thumbnails"),
            bytes=self._store.size_bytes(),
            details={**facts, "thumbnail_size": self._thumbnail_size},
            metadata=self.metadata,
        )

    # Entries ----------------------------------------------------------------------------------------------------

    def entries(
        self,
        *,
        ids: Sequence[int] | None = None,
        category: str | None = None,
        modality: Modality | None = None,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Iterator[Entry]:
        """Entries that meet all conditions given, by ascending id; unknown ids are left out."""
        wanted = Conditions(ids=ids, category=category, modality=modality, source=source, metadata=metadata or {})
        columns = "entries.id, name, modality, source, metadata"
        for entry_id, name, kind, origin, values in self._store.select(columns, wanted):
            yield Entry(id=entry_id, category=name, modality=kind, source=origin, metadata=json.loads(values))

    def records(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> Iterator[NewEntry]:
        """The entries as another memory can store them, in the order of ``ids``; `OptionError` for an unknown id."""
        columns = "entries.id, name, modality, source, entries.content, metadata, thumbnails.jpeg"
        found = {row[0]: row[1:] for row in self._store.select(columns, Conditions(ids=ids), thumbnails=True)}
        for entry_id in np.asarray(ids, dtype=np.int64).tolist():
            if entry_id not in found:
                raise OptionError(f"no entry with the id {entry_id} in {self._store.folder}")
            name, modality, source, content, metadata, jpeg = found[entry_id]
            yield NewEntry(
                category=name,
                modality=modality,
                source=source,
                content=bytes(content),
                metadata=json.loads(metadata),
                thumbnail=None if jpeg is None else bytes(jpeg),
            )

    def table(self, modality: Modality) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Ids (ascending) and category codes of all entries of a modality."""
        view = self._view(modality)
        return view.ids, view.categories

    def vectors(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """The entries' unit vectors, float32; raises `OptionError` for an id that is not there."""
        wanted = np.asarray(ids, dtype=np.int64)
        vectors = np.empty((len(wanted), self.dim), dtype=np.float32)
        with self._store.snapshot():
            views = [self._view(modality) for modality in _MODALITIES]
        found = np.zeros(len(wanted), dtype=bool)
        for view in views:
            found |= view.gather(wanted, vectors)
        if not found.all():
            raise OptionError(f"no entry with the id {int(wanted[~found][0])} in {self._store.folder}")
        return vectors

    def thumbnail(self, entry_id: int) -> bytes | None:
        """JPEG bytes of the entry's thumbnail, None where none is stored."""
        found = self._store.rows(
            "SELECT jpeg FROM thumbnails JOIN entries ON entries.content = thumbnails.content WHERE entries.id = ?",
            (entry_id,),
        )
        return bytes(found[0][0]) if found else None

    # Changing ---------------------------------------------------------------------------------------------------

    def remove(
        self,
        *,
        ids: Sequence[int] | None = None,
        category: str | None = None,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Remove the entries that meet all conditions given; returns how many. Without any: `OptionError`."""
        conditions = Conditions(ids=ids, category=category, source=source, metadata=metadata or {})
        if not conditions:
            raise OptionError("say what to remove: ids, a category, a source or metadata")
        with self._store.writing():
            return self._writer.remove(conditions)

    def rename_category(self, old: str, new: str) -> int:
        """Give a category another name; returns how many entries it has."""
        with self._store.writing():
            return self._writer.rename(old, new)

    def merge_categories(self, names: Sequence[str], into: str) -> int:
        """Make one category of several; returns how many entries changed their category."""
        with self._store.writing():
            return self._writer.merge(names, into)

    def notes(self) -> dict[str, str]:
        """Small texts that are kept with the memory, by name."""
        return {key.removeprefix(_NOTE): value for key, value in self._store.meta().items() if key.startswith(_NOTE)}

    def set_note(self, name: str, text: str | None) -> None:
        """Keep a text under a name, in place of what was there; None removes it."""
        with self._store.writing(), self._store.transaction() as database:
            if text is None:
                database.execute("DELETE FROM meta WHERE key = ?", (_NOTE + name,))
            else:
                database.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (_NOTE + name, text))

    # Upkeep -----------------------------------------------------------------------------------------------------

    def verify(self, *, progress: Callable[[int], None] | None = None) -> tuple[Problem, ...]:
        """Check every row, vector and index against its checksum and against the others; nothing found: all is well.

        Args:
            progress: Called with the number of bytes checked so far.
        """
        return tuple(verify(self._store, dim=self.dim, progress=progress))

    def compact(self, *, progress: Callable[[int], None] | None = None) -> CompactReport:
        """Make one segment of each modality, without what was removed, with a fresh index where one is worth it.

        Published in one transaction: readers keep what they have opened, and see the new segments from their next
        search on. Interrupted, nothing has changed.

        Args:
            progress: Called with the number of entries copied so far.
        """
        return compact(self._store, self._writer, progress=progress)

    def set_index(self, index: str | IndexSpec, parameters: Mapping[str, int | str] | None = None) -> None:
        """Choose the index of what is added from now on; `compact` gives it to everything.

        Args:
            index: As in `create`.
            parameters: Those of its constructor.
        """
        chosen = index_setting(index, parameters, self.dim)
        with self._store.writing(), self._store.transaction() as database:
            database.execute("UPDATE meta SET value = ? WHERE key = 'index'", (chosen,))
        self._read_settings()

    def tune_index(
        self,
        *,
        recall: float = 0.99,
        k: int = 5,
        modality: Modality = "image",
        threads: int | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Tuning:
        """Measure on the memory's own vectors which index is the fastest that finds enough; `set_index` takes it.

        Args:
            recall: Share of the true k nearest that must be found.
            k: Neighbours.
            modality: Whose vectors.
            threads: Of the search library while measuring; None leaves them.
            progress: Told a line before each step that takes long.

        Raises:
            OptionError: A recall outside 0 to 1, or fewer than 2 vectors.
        """
        ids, _ = self.table(modality)
        return tune(self.vectors(ids), recall=recall, k=k, threads=threads, progress=progress)

    def reencode(
        self,
        encoder: Encoder,
        *,
        from_thumbnails: bool = False,
        batch_size: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        on_error: Callable[[str, InputError], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> ReencodeReport:
        """Give every entry a vector of another encoder, and bind the memory to it.

        The old vectors serve until all new ones are there; then all change in one transaction. Interrupted, the same
        call goes on where it was, having lost one batch at most. Entries whose image cannot be had are told, and the
        memory then stays as it is: bring the images back, remove the entries, or encode from the thumbnails.

        Args:
            encoder: The new one.
            from_thumbnails: Encode the stored thumbnails, where there are any, instead of the images; they are small.
            batch_size: Entries in one forward pass; the encoder's own by default.
            metadata: Takes the place of the memory's own under the same keys, in the same transaction.
            on_error: Called with the source of an entry whose image cannot be had.
            progress: Called with the number of entries dealt with so far.
        """
        report = reencode(
            self._store,
            self._writer,
            encoder,
            from_thumbnails=from_thumbnails,
            batch_size=batch_size,
            metadata={**self.metadata, **(metadata or {})},
            on_error=on_error,
            progress=progress,
        )
        if report.published:
            self._read_settings()
            self._bound = encoder
        return report

    # Searching --------------------------------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Searches and listings inside see one state, whatever other processes write meanwhile.

        Nothing can be written inside, and other threads that use this object wait.
        """
        with self._store.snapshot():
            for modality in _MODALITIES:
                self._view(modality)  # opens the files, which may be deleted while the snapshot lasts
            yield

    def _nearest(self, vectors: Float[np.ndarray, "n dim"], k: int, modality: Modality, where: Where | None) -> Hits:
        return self._reader.nearest(vectors, k, modality, where)

    def _view(self, modality: Modality) -> View:
        return self._reader.view(modality)

    # What the base class and the writer ask for -----------------------------------------------------------------

    def _index_for(self, rows: int) -> IndexSpec:
        return self._settings.index_for(rows)

    @contextmanager
    def _written(self) -> Iterator[None]:
        with self._store.writing():
            yield
            for modality in _MODALITIES:
                self._writer.index_new(modality)

    def _writing(self) -> AbstractContextManager[None]:
        return self._written()

    def _contains(self, content: bytes, category: str, modality: Modality) -> bool:
        query = (
            "SELECT 1 FROM entries JOIN categories ON categories.id = entries.category "
            "WHERE content = ? AND name = ? AND modality = ?"
        )
        return bool(self._store.rows(query, (content, category, modality)))

    def _append(self, entries: Sequence[NewEntry], vectors: Float[np.ndarray, "n dim"]) -> None:
        with self._store.writing():
            self._writer.append(entries, np.ascontiguousarray(vectors, dtype=np.float32))

    def _content(self, modality: Modality) -> Iterator[bytes]:
        return self._view(modality).content()

    def _stored_probe(self) -> Float[np.ndarray, "n dim"] | None:
        probe = self._settings.probe
        return None if probe is None else unpack_vectors(probe, self.dim)

    @property
    def _encoder_revision(self) -> str | None:
        return self._settings.encoder_revision

    @property
    def _thumbnail_size(self) -> int | None:
        return self._settings.thumbnails
