"""`LocalMemory`: a memory in a folder that survives restarts."""

# ruff: noqa: S608 - what is put into SQL text are constants and placeholders; values are parameters

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Self, cast, final

import numpy as np
from jaxtyping import Float, Int

from rarvision.encoders import Encoder
from rarvision.errors import MemoryCorruptError, OptionError
from rarvision.index import make_index
from rarvision.memory.base import Memory
from rarvision.memory.records import Hits, MemoryInfo, NewEntry
from rarvision.memory.sql import conditions, id_parts, storable, to_json
from rarvision.memory.store import Store, pack_vectors, unpack_vectors
from rarvision.memory.view import Segment, View
from rarvision.types import Entry, Modality

__all__ = ["LocalMemory"]

_MERGE = 16  # that many segments of one order of magnitude become one
_INDEX_FROM = {"auto": 20_000, "hnsw": 1_000}  # rows without an index that are worth building one for
_INDEX_AGAIN = 4  # an indexed segment is rebuilt together with new rows when they are a quarter of it


@final
class LocalMemory(Memory):
    """A memory in a folder: SQLite for the entries, memory-mapped segments for the vectors.

    One process writes, any number read. Make one with `create`, open it with `open`, close it or use ``with``.
    """

    def __init__(self, store: Store) -> None:
        """Use `create` or `open`."""
        self._store = store
        meta = store.meta()
        try:
            self._dim = int(meta["dim"])
            self._fingerprint = str(meta["encoder_fingerprint"])
            self._name = str(meta["encoder_name"])
            self._encoder_rev = cast("str | None", meta["encoder_revision"])
            self._probe = cast("bytes | None", meta["encoder_probe"])
            self._index_kind = str(meta["index"])
            self._index_parameters: dict[str, int] = json.loads(meta["index_parameters"])
            self._thumbnails = cast("int | None", meta["thumbnails"])
            self._metadata: dict[str, Any] = json.loads(meta["metadata"])
        except (KeyError, ValueError) as error:
            store.close()
            raise MemoryCorruptError(f"{store.folder}: the memory's settings are incomplete: {error!r}") from error
        self._views: dict[Modality, View] = {}
        self._names: tuple[int, dict[int, str]] = (-1, {})

    # Making and opening -----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        encoder: Encoder,
        index: Literal["auto", "exact", "hnsw"] = "auto",
        index_parameters: Mapping[str, int] | None = None,
        thumbnails: int | None = 96,
        metadata: Mapping[str, Any] | None = None,
        lock_timeout_s: float = 5.0,
    ) -> LocalMemory:
        """Make an empty memory.

        Args:
            path: A folder that does not exist yet, or is empty.
            encoder: The memory is bound to it.
            index: ``exact``; ``hnsw``; ``auto``: exact up to 20,000 vectors, HNSW for what grows beyond.
            index_parameters: Those of `rarvision.index.HNSWIndex`.
            thumbnails: Longest side of the stored JPEG thumbnails, pixels; None to store none.
            metadata: JSON values, kept with the memory.
            lock_timeout_s: How long to wait for another process that writes.

        Raises:
            MemoryExistsError: Something is there already.
        """
        folder = Path(encoder.name)
        memory = cls._create(
            path,
            dim=encoder.dim,
            fingerprint=encoder.fingerprint,
            name=str(folder.resolve()) if folder.is_dir() else encoder.name,
            revision=encoder.revision,
            probe=pack_vectors(encoder.probe()),
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
        index: Literal["auto", "exact", "hnsw"] = "auto",
        metadata: Mapping[str, Any] | None = None,
    ) -> LocalMemory:
        """Make an empty memory for vectors whose encoder is not at hand; it can be searched by vectors only."""
        return cls._create(path, dim=dim, fingerprint=fingerprint, index=index, metadata=metadata)

    @classmethod
    def _create(
        cls,
        path: str | Path,
        *,
        dim: int,
        fingerprint: str,
        name: str = "",
        revision: str | None = None,
        probe: bytes | None = None,
        index: str,
        index_parameters: Mapping[str, int] | None = None,
        thumbnails: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        lock_timeout_s: float = 5.0,
    ) -> LocalMemory:
        if index not in ("auto", "exact", "hnsw"):
            raise OptionError(f"index must be 'auto', 'exact' or 'hnsw', got {index!r}")
        parameters = dict(index_parameters or {})
        make_index("exact" if index == "exact" else "hnsw", dim, **parameters)  # refuses wrong parameters now
        if thumbnails is not None and thumbnails < 1:
            raise OptionError(f"thumbnails must be at least 1 pixel, or None, got {thumbnails}")
        settings = {
            "dim": dim,
            "encoder_name": name,
            "encoder_fingerprint": fingerprint,
            "encoder_revision": revision,
            "encoder_probe": probe,
            "index": index,
            "index_parameters": json.dumps(parameters),
            "thumbnails": thumbnails,
            "metadata": to_json(metadata or {}),
        }
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
        self._views = {}
        self._store.close()

    # What it is -------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The memory's folder."""
        return self._store.folder

    @property
    def dim(self) -> int:
        """Number of dimensions of the vectors."""
        return self._dim

    @property
    def encoder_name(self) -> str:
        """Hub name or folder of the encoder; empty where unknown."""
        return self._name

    @property
    def encoder_fingerprint(self) -> str:
        """Fingerprint of the encoder that made the vectors."""
        return self._fingerprint

    @property
    def revision(self) -> int:
        """Grows with every change, whoever makes it."""
        return self._store.revision

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was given at creation."""
        return self._metadata

    def count(self, modality: Modality | None = None) -> int:
        """Number of entries."""
        where, parameters = ("", ()) if modality is None else (" WHERE modality = ?", (modality,))
        return int(self._store.rows(f"SELECT COALESCE(SUM(live), 0) FROM segments{where}", parameters)[0][0])

    def category_names(self) -> Mapping[int, str]:
        """Names by category code."""
        with self._store.snapshot():
            revision = self.revision
            if self._names[0] != revision:
                self._names = (revision, dict(self._store.rows("SELECT id, name FROM categories")))
        return self._names[1]

    def categories(self, modality: Modality | None = None) -> list[str]:
        """Names of the categories that have entries, in the order in which they came."""
        condition, parameters = ("", ()) if modality is None else (" AND entries.modality = ?", (modality,))
        query = (
            "SELECT name FROM categories WHERE EXISTS (SELECT 1 FROM entries "
            f"WHERE entries.category = categories.id{condition}) ORDER BY id"
        )
        return [name for (name,) in self._store.rows(query, parameters)]

    def info(self) -> MemoryInfo:
        """What it is and holds."""
        with self._store.snapshot():
            images, texts = self.count("image"), self.count("text")
            indexed = int(
                self._store.rows("SELECT COALESCE(SUM(live), 0) FROM segments WHERE index_kind IS NOT NULL")[0][0]
            )
            segments = int(self._store.rows("SELECT COUNT(*) FROM segments")[0][0])
            thumbnails = int(self._store.rows("SELECT COUNT(*) FROM thumbnails")[0][0])
            categories = len(self.categories())
        return MemoryInfo(
            kind="local",
            location=str(self._store.folder),
            dim=self._dim,
            encoder_name=self._name,
            encoder_fingerprint=self._fingerprint,
            entries=images + texts,
            images=images,
            texts=texts,
            categories=categories,
            index=self._index_kind,
            thumbnails=thumbnails,
            bytes=self._store.size_bytes(),
            details={"segments": segments, "indexed": indexed, "thumbnail_size": self._thumbnails},
            metadata=self._metadata,
        )

    # Entries ----------------------------------------------------------------------------------------------------

    def entries(
        self,
        *,
        ids: Sequence[int] | None = None,
        category: str | None = None,
        modality: Modality | None = None,
        source: str | None = None,
    ) -> Iterator[Entry]:
        """Entries that meet all conditions given, by ascending id; unknown ids are left out."""
        where, parameters = conditions(category=category, modality=modality, source=source)
        for part, values in id_parts(ids):
            query = (
                "SELECT entries.id, name, modality, source, metadata FROM entries "
                "JOIN categories ON categories.id = entries.category "
                f"WHERE {where}{part} ORDER BY entries.id"
            )
            for entry_id, name, kind, origin, metadata in self._store.rows(query, [*parameters, *values]):
                yield Entry(id=entry_id, category=name, modality=kind, source=origin, metadata=json.loads(metadata))

    def table(self, modality: Modality) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Ids (ascending) and category codes of all entries of a modality."""
        view = self._view(modality)
        return view.ids, view.categories

    def vectors(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """The entries' unit vectors, float32; raises `OptionError` for an id that is not there."""
        wanted = np.asarray(ids, dtype=np.int64)
        vectors = np.empty((len(wanted), self._dim), dtype=np.float32)
        with self._store.snapshot():
            views = [self._view("image"), self._view("text")]
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

    def remove(
        self, *, ids: Sequence[int] | None = None, category: str | None = None, source: str | None = None
    ) -> int:
        """Remove the entries that meet all conditions given; returns how many. Without any: `OptionError`."""
        if ids is None and category is None and source is None:
            raise OptionError("say what to remove: ids, a category or a source")
        with self._store.writing():
            removed = [entry.id for entry in self.entries(ids=ids, category=category, source=source)]
            if not removed:
                return 0
            with self._store.transaction() as database:
                database.executemany(
                    "UPDATE segments SET live = live - 1 WHERE id = (SELECT segment FROM entries WHERE id = ?)",
                    [(entry,) for entry in removed],
                )
                database.executemany("DELETE FROM entries WHERE id = ?", [(entry,) for entry in removed])
                database.execute("DELETE FROM thumbnails WHERE content NOT IN (SELECT content FROM entries)")
                empty = database.execute("SELECT id, file, index_file FROM segments WHERE live = 0").fetchall()
                database.executemany("DELETE FROM segments WHERE id = ?", [(segment,) for segment, _, _ in empty])
            self._store.delete_files([file for _, *files in empty for file in files if file])
        return len(removed)

    # Searching --------------------------------------------------------------------------------------------------

    def _nearest(self, vectors: Float[np.ndarray, "n dim"], k: int, modality: Modality) -> Hits:
        similarities, ids, codes = self._view(modality).search(vectors, k)
        return Hits(similarities=similarities, ids=ids, categories=codes)

    def _view(self, modality: Modality) -> View:
        """The current state, taken over from the last one where nothing changed."""
        for attempt in range(3):
            try:
                with self._store.snapshot():
                    revision = self.revision
                    view = self._views.get(modality)
                    if view is None or view.revision != revision:
                        view = self._read_view(modality, revision, view)
                        self._views[modality] = view
                    return view
            except FileNotFoundError as error:  # a writer merged segments between the query and the opening
                if attempt == 2:
                    raise MemoryCorruptError(
                        f"{error.filename} is missing; restore the memory's folder from a copy"
                    ) from error
        raise AssertionError("unreachable")

    def _read_view(self, modality: Modality, revision: int, before: View | None) -> View:
        known = {} if before is None else before.segments
        segments = []
        columns = "id, live, rows, file, index_file, sha256, index_sha256"
        query = f"SELECT {columns} FROM segments WHERE modality = ? ORDER BY id"
        for segment, live, rows, *files in self._store.rows(query, (modality,)):
            key = (segment, live)
            segments.append(known.get(key) or self._read_segment(key, rows, *files))
        return View(segments, dim=self._dim, revision=revision)

    def _read_segment(
        self, key: tuple[int, int], rows: int, file: str, index_file: str | None, *checksums: str | None
    ) -> Segment:
        entries = self._store.rows("SELECT row, id, category FROM entries WHERE segment = ?", (key[0],))
        index_path = self._store.path(index_file) if index_file else None
        path = self._store.path(file)
        return Segment.open(path, key, (rows, self._dim), entries, index_path=index_path, checksums=checksums)

    # Writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _written(self) -> Iterator[None]:
        with self._store.writing():
            yield
            self._build_index("image")
            self._build_index("text")

    def _writing(self) -> AbstractContextManager[None]:
        return self._written()

    def _contains(self, content: bytes, category: str, modality: Modality) -> bool:
        query = (
            "SELECT 1 FROM entries JOIN categories ON categories.id = entries.category "
            "WHERE content = ? AND name = ? AND modality = ?"
        )
        return bool(self._store.rows(query, (content, category, modality)))

    def _append(self, entries: Sequence[NewEntry], vectors: Float[np.ndarray, "n dim"]) -> None:
        modality = entries[0].modality
        metadata = [to_json(entry.metadata) for entry in entries]
        with self._store.writing():
            file, digest = self._store.write_vectors(modality, np.ascontiguousarray(vectors, dtype=np.float32))
            with self._store.transaction() as database:
                names = dict.fromkeys(entry.category for entry in entries)
                database.executemany("INSERT OR IGNORE INTO categories (name) VALUES (?)", [(name,) for name in names])
                segment = database.execute(
                    "INSERT INTO segments (modality, file, sha256, rows, live) VALUES (?, ?, ?, ?, ?)",
                    (modality, file, digest, len(entries), len(entries)),
                ).lastrowid
                database.executemany(
                    "INSERT INTO entries (category, modality, source, content, metadata, segment, row) "
                    "VALUES ((SELECT id FROM categories WHERE name = ?), ?, ?, ?, ?, ?, ?)",
                    [
                        (entry.category, modality, storable(entry.source), entry.content, json_text, segment, row)
                        for row, (entry, json_text) in enumerate(zip(entries, metadata, strict=True))
                    ],
                )
                database.executemany(
                    "INSERT OR IGNORE INTO thumbnails (content, jpeg) VALUES (?, ?)",
                    [(entry.content, entry.thumbnail) for entry in entries if entry.thumbnail is not None],
                )
            self._merge(modality)

    def _merge(self, modality: Modality) -> None:
        """Make one segment of the last 16 of the same order of magnitude, so that there are never many."""
        while True:
            last = self._store.rows(
                "SELECT id, rows FROM segments WHERE modality = ? AND index_kind IS NULL ORDER BY id DESC LIMIT ?",
                (modality, _MERGE),
            )
            if len(last) < _MERGE or _magnitude(max(rows for _, rows in last)) > _magnitude(last[0][1]):
                return
            self._rewrite(modality, [segment for segment, _ in last])

    def _build_index(self, modality: Modality) -> None:
        """Give the vectors that have no index one, where they are many enough."""
        if self._index_kind == "exact":
            return
        segments = self._store.rows(
            "SELECT id, live, index_kind FROM segments WHERE modality = ? ORDER BY id DESC", (modality,)
        )
        chosen, rows = [], 0
        for segment, live, index_kind in segments:
            if index_kind is not None and live > _INDEX_AGAIN * rows:
                break
            chosen.append(segment)
            rows += live
        bare = sum(live for _, live, index_kind in segments if index_kind is None)
        if bare >= _INDEX_FROM[self._index_kind]:
            self._rewrite(modality, chosen, index=True)

    def _rewrite(self, modality: Modality, segments: Iterable[int], *, index: bool = False) -> None:
        """Replace segments that follow one another by one with their live rows, with an index where asked."""
        old = sorted(segments)
        marks = ",".join("?" * len(old))
        with self._store.snapshot():
            table = self._store.rows(
                f"SELECT id FROM entries WHERE segment IN ({marks}) ORDER BY segment, row",
                old,
            )
        ids = [entry for (entry,) in table]
        vectors = self.vectors(ids)
        kind = index_file = index_digest = None
        if index:
            built = make_index("hnsw", self._dim, **self._index_parameters)
            built.add(vectors)
            kind = built.kind
            index_file, index_digest = self._store.write_index(modality, built)
        file, digest = self._store.write_vectors(modality, vectors)
        with self._store.transaction() as database:
            new = database.execute(
                "INSERT INTO segments (modality, file, sha256, rows, live, index_kind, index_file, index_sha256) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (modality, file, digest, len(ids), len(ids), kind, index_file, index_digest),
            ).lastrowid
            database.executemany(
                "UPDATE entries SET segment = ?, row = ? WHERE id = ?", [(new, row, i) for row, i in enumerate(ids)]
            )
            files = database.execute(f"SELECT file, index_file FROM segments WHERE id IN ({marks})", old).fetchall()
            database.execute(f"DELETE FROM segments WHERE id IN ({marks})", old)
        self._store.delete_files([name for pair in files for name in pair if name])

    # What the base class asks for -------------------------------------------------------------------------------

    def _content(self, modality: Modality) -> Iterator[bytes]:
        return self._view(modality).content()

    def _stored_probe(self) -> Float[np.ndarray, "n dim"] | None:
        return None if self._probe is None else unpack_vectors(self._probe, self._dim)

    @property
    def _encoder_revision(self) -> str | None:
        return self._encoder_rev

    @property
    def _thumbnail_size(self) -> int | None:
        return self._thumbnails


def _magnitude(rows: int) -> int:
    return int(math.log(max(rows, 1), _MERGE) + 1e-9)
