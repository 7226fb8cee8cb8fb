"""`MilvusMemory`: a memory in a Milvus cluster, or in a Milvus Lite database beside the program."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from jaxtyping import Float, Int

from rarvision.encoders import Encoder
from rarvision.errors import MemoryNotFoundError, OptionError
from rarvision.memory.adding import check_category
from rarvision.memory.base import Memory
from rarvision.memory.milvus_rows import condition_of
from rarvision.memory.milvus_search import filled, nearest, places_of, stored_vectors, unknown_id
from rarvision.memory.milvus_server import IndexName, Server, credentials, parts
from rarvision.memory.milvus_settings import (
    INDEXES,
    SCHEMA,
    check_name,
    clear_unfinished,
    read_settings,
    split_parameters,
)
from rarvision.memory.milvus_store import MODALITIES, MilvusStore
from rarvision.memory.records import Hits, MemoryInfo, NewEntry, Where
from rarvision.memory.sql import to_json
from rarvision.types import Entry, Modality

__all__ = ["MilvusMemory"]
_NOTES = "notes"


@final
class MilvusMemory(Memory):
    """A memory whose entries and vectors a Milvus server keeps.

    It answers as `LocalMemory` does; what differs is who gives the guarantees:

    - **Durability** is the server's: what `add` returned from has been confirmed by Milvus. Reads use its strong
      consistency, so they see it.
    - **Whole or not at all** holds for additions: entries are visible once a single row that counts them has been
      replaced, and the next writer clears away what one that died had left. Removing and merging go part by part;
      readers may see some of it.
    - **One writer** at a time: a lease in the memory's own settings, for Milvus has no locks. It keeps programs from
      writing in turns by accident; two that begin within the same few milliseconds on two machines may both pass, and
      then the one that confirms second is refused.
    - **`snapshot`** hides what others add meanwhile, not what they remove: Milvus has no snapshots of readers.
    - **Backups** are the server's (Milvus Backup; of Milvus Lite: a copy of the closed folder).

    A Milvus Lite database is for one process at a time.

    Make one with `create`, open it with `open`, close it or use ``with``. Needs the extra ``milvus``.
    """

    def __init__(self, store: MilvusStore) -> None:
        """Use `create` or `open`."""
        self._store = store
        self._settings = read_settings(store)
        probe = self._settings["probe"]
        self._probe = None if probe is None else np.array(probe, dtype=np.float32)

    # Making and opening -----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        uri: str | Path,
        name: str = "rarvision",
        *,
        encoder: Encoder,
        index: IndexName = "auto",
        index_parameters: Mapping[str, int] | None = None,
        thumbnails: int | None = 96,
        metadata: Mapping[str, Any] | None = None,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        database: str = "",
        timeout_s: float = 30.0,
        lock_timeout_s: float = 5.0,
    ) -> MilvusMemory:
        """Make an empty memory.

        Args:
            uri: ``http://host:port`` or ``https://host:port`` of a server, or a path that ends in ``.db`` for Milvus
                Lite.
            name: The memory's name there; its collections' names begin with it. Letters, digits and underscores.
            encoder: The memory is bound to it.
            index: ``exact`` (FLAT), ``hnsw``, ``ivf`` (IVF_FLAT); ``auto``: HNSW on a server, exact in Milvus Lite.
            index_parameters: Milvus' own: ``M`` and ``efConstruction``, or ``nlist``, for building; ``ef``, or
                ``nprobe``, for searching.
            thumbnails: Longest side of the stored JPEG thumbnails, pixels; None to store none.
            metadata: JSON values, kept with the memory.
            token: An API key or ``user:password``; by default the environment's ``RARVISION_MILVUS_TOKEN``.
            user: With ``password``, instead of a token; by default the environment's ``RARVISION_MILVUS_USER``.
            password: By default the environment's ``RARVISION_MILVUS_PASSWORD``.
            database: The server's database; its default one where empty.
            timeout_s: Seconds that one request may take.
            lock_timeout_s: Seconds to wait for another writer.

        Raises:
            MemoryExistsError: Something of that name is there already.
            MemoryUnavailableError: The server does not answer, or refuses the credentials.
            MissingExtraError: pymilvus is not installed.
            OptionError: A name or option that is none.
        """
        folder = Path(encoder.name)
        made = cls.create_unbound(
            uri,
            name,
            dim=encoder.dim,
            fingerprint=encoder.fingerprint,
            encoder_name=str(folder.resolve()) if folder.is_dir() else encoder.name,
            encoder_revision=encoder.revision,
            probe=encoder.probe(),
            index=index,
            index_parameters=index_parameters,
            thumbnails=thumbnails,
            metadata=metadata,
            token=token,
            user=user,
            password=password,
            database=database,
            timeout_s=timeout_s,
            lock_timeout_s=lock_timeout_s,
        )
        made._bound = encoder  # noqa: SLF001 - its own class
        return made

    @classmethod
    def create_unbound(
        cls,
        uri: str | Path,
        name: str = "rarvision",
        *,
        dim: int,
        fingerprint: str,
        encoder_name: str = "",
        encoder_revision: str | None = None,
        probe: Float[np.ndarray, "p dim"] | None = None,
        index: IndexName = "auto",
        index_parameters: Mapping[str, int] | None = None,
        thumbnails: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        database: str = "",
        timeout_s: float = 30.0,
        lock_timeout_s: float = 5.0,
    ) -> MilvusMemory:
        """Like `create`, for vectors whose encoder is not at hand.

        Args: those of `create`, and
            dim: Dimensions of the vectors.
            fingerprint: The encoder's.
            encoder_name: What loads it, where that is known.
            encoder_revision: Of a hub repository.
            probe: What `Encoder.probe` gives, float32.
        """
        check_name(name)
        kind = index
        if kind == "auto":
            kind = "hnsw" if str(uri).startswith("http") else "exact"
        if kind not in INDEXES:
            raise OptionError(f"index must be 'auto', 'exact', 'hnsw' or 'ivf', got {index!r}")
        built, asked = split_parameters(kind, index_parameters or {})
        if thumbnails is not None and thumbnails < 1:
            raise OptionError(f"thumbnails must be at least 1 pixel, or None, got {thumbnails}")
        settings = {
            "schema": SCHEMA,
            "dim": dim,
            "encoder_name": encoder_name,
            "encoder_fingerprint": fingerprint,
            "encoder_revision": encoder_revision,
            "probe": None if probe is None else np.asarray(probe, dtype=np.float64).tolist(),
            "index": index,
            "index_kind": kind,
            "built_with": built,
            "asked_with": asked,
            "thumbnails": thumbnails,
            "metadata": json.loads(to_json(metadata or {})),
        }
        access = credentials(token=token, user=user, password=password)
        server = Server(str(uri), new=True, token=access, database=database, timeout_s=timeout_s)
        try:
            store = MilvusStore(server, name, lock_timeout_s=lock_timeout_s)
            clear_unfinished(store)
            server.make(store.settings.collection, store.settings.FIELDS)
            store.make(dim, INDEXES[kind], built)
            store.settings.put({"settings": json.dumps(settings).encode()})  # from here on it is a memory
            return cls(store)
        except BaseException:
            server.close()
            raise

    @classmethod
    def open(
        cls,
        uri: str | Path,
        name: str = "rarvision",
        *,
        encoder: Encoder | None = None,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        database: str = "",
        timeout_s: float = 30.0,
        lock_timeout_s: float = 5.0,
    ) -> Self:
        """Open an existing memory; the arguments are those of `create`.

        Raises:
            MemoryNotFoundError: No memory of that name there.
            MemoryUnavailableError: The server does not answer, or refuses the credentials.
            MemoryLockedError: Another process has the Milvus Lite database open.
            EncoderMismatchError: The vectors were made by another encoder.
            MemoryStoreError: A newer version of rarvision made it.
            MemoryCorruptError: Its collections do not fit together.
            MissingExtraError: pymilvus is not installed.
        """
        check_name(name)
        access = credentials(token=token, user=user, password=password)
        server = Server(str(uri), new=False, token=access, database=database, timeout_s=timeout_s)
        try:
            store = MilvusStore(server, name, lock_timeout_s=lock_timeout_s)
            if not server.has(store.settings.collection):
                raise MemoryNotFoundError(  # noqa: TRY301 - the connection is closed below
                    f"{server.uri}: no memory {name!r} there. Name another one, or make it with "
                    "MilvusMemory.create or `rarvision memory create`"
                )
            for collection in reversed(store.collections):
                server.load(collection)
            memory = cls(store)
            if encoder is not None:
                memory.bind(encoder)
        except BaseException:
            server.close()
            raise
        return memory

    def close(self) -> None:
        """End the connection; harmless when done twice."""
        self._store.server.close()

    # What it is -------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Number of dimensions of the vectors."""
        return int(self._settings["dim"])

    @property
    def encoder_name(self) -> str:
        """Hub name or folder of the encoder; empty where unknown."""
        return str(self._settings["encoder_name"])

    @property
    def encoder_fingerprint(self) -> str:
        """Fingerprint of the encoder that made the vectors."""
        return str(self._settings["encoder_fingerprint"])

    @property
    def revision(self) -> int:
        """Grows with every change, whoever makes it."""
        return self._store.state.revision

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was given at creation."""
        found: Mapping[str, Any] = self._settings["metadata"]
        return found

    def count(self, modality: Modality | None = None) -> int:
        """Number of entries."""
        state = self._store.state
        return {"image": state.image, "text": state.text}.get(modality or "", state.image + state.text)

    def category_names(self) -> Mapping[int, str]:
        """Names by category code."""
        return self._store.names(self._store.state)

    def categories(self, modality: Modality | None = None) -> list[str]:
        """Names of the categories that have entries, in the order in which they came."""
        with self.snapshot():
            names = self.category_names()
            return [names[code] for code in self._store.used(modality)]

    def info(self) -> MemoryInfo:
        """What it is and holds; ``bytes`` is the folder's size for Milvus Lite, the vectors' alone for a server."""
        server = self._store.server
        with self.snapshot():
            images, texts = self.count("image"), self.count("text")
            categories = len(self.categories())
        size = 4 * self.dim * (images + texts)
        if server.is_lite:
            size = sum(file.stat().st_size for file in Path(server.uri).rglob("*") if file.is_file())
        return MemoryInfo(
            kind="milvus-lite" if server.is_lite else "milvus",
            location=f"{server.uri}#{self._store.name}",
            dim=self.dim,
            encoder_name=self.encoder_name,
            encoder_fingerprint=self.encoder_fingerprint,
            entries=images + texts,
            images=images,
            texts=texts,
            categories=categories,
            index=str(self._settings["index"]),
            thumbnails=self._store.thumbnails.count(),
            bytes=size,
            details={
                "server": server.version(),
                "index_type": INDEXES[self._settings["index_kind"]],
                "thumbnail_size": self._thumbnail_size,
            },
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
        with self.snapshot():
            names = self.category_names()
            wanted = places_of(
                self._store, ids=ids, category=category, modality=modality, source=source, metadata=metadata
            )
        for part in parts(wanted, 512):
            found: list[Entry] = []
            for each in MODALITIES:
                if modality in (None, each):
                    here = [entry for entry, kinds in part if each in kinds]
                    for row in self._store.rows(each, here, ["category", "source", "metadata"]):
                        if row["category"] not in names:  # a category that came after we began
                            names = self.category_names()
                        values = json.loads(row["metadata"])
                        entry = Entry(
                            id=row["id"],
                            category=names[row["category"]],
                            modality=each,
                            source=row["source"],
                            metadata=values,
                        )
                        found.append(entry)
            yield from sorted(found, key=lambda entry: entry.id)

    def records(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> Iterator[NewEntry]:
        """The entries as another memory can store them, in the order of ``ids``; `OptionError` for an unknown id."""
        with self.snapshot():
            names, end = self.category_names(), self._store.state.next_id
        fields = ["category", "source", "content", "metadata"]
        for part in parts([int(each) for each in ids], 512):
            there = sorted({entry for entry in part if 0 < entry < end})
            rows = {row["id"]: (each, row) for each in MODALITIES for row in self._store.rows(each, there, fields)}
            pictures = self._store.thumbnails.get([str(entry) for entry in rows])
            for entry in part:
                if entry not in rows:
                    raise unknown_id(self._store, entry)
                modality, row = rows[entry]
                yield NewEntry(
                    category=names[row["category"]],
                    modality=modality,
                    source=row["source"],
                    content=bytes.fromhex(row["content"]),
                    metadata=json.loads(row["metadata"]),
                    thumbnail=pictures.get(str(entry)),
                )

    def table(self, modality: Modality) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Ids (ascending) and category codes of all entries of a modality; kept until the next change."""
        return self._store.table(modality)

    def vectors(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """The entries' unit vectors, float32; raises `OptionError` for an id that is not there."""
        return stored_vectors(self._store, ids, self.dim)

    def thumbnail(self, entry_id: int) -> bytes | None:
        """JPEG bytes of the entry's thumbnail, None where none is stored."""
        return self._store.thumbnails.get([str(entry_id)]).get(str(entry_id))

    def remove(
        self,
        *,
        ids: Sequence[int] | None = None,
        category: str | None = None,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Remove the entries that meet all conditions given; returns how many. Without any: `OptionError`."""
        if ids is None and category is None and source is None and not metadata:
            raise OptionError("say what to remove: ids, a category, a source or metadata")
        with self._writing():
            gone: dict[Modality, list[int]] = {modality: [] for modality in MODALITIES}
            for entry in self.entries(ids=ids, category=category, source=source, metadata=metadata):
                gone[entry.modality].append(entry.id)
            return self._store.remove(gone)

    def rename_category(self, old: str, new: str) -> int:
        """Give a category another name; returns how many entries it has."""
        check_category(new)
        with self._writing():
            return self._store.rename(old, new)

    def merge_categories(self, names: Sequence[str], into: str) -> int:
        """Make one category of several; returns how many entries changed their category.

        Stopped midway, some entries have moved already; the same call again moves the rest.
        """
        check_category(into)
        with self._writing():
            return self._store.merge(names, into)

    def notes(self) -> dict[str, str]:
        """Small texts that are kept with the memory, by name."""
        found: dict[str, str] = json.loads(self._store.settings.get([_NOTES]).get(_NOTES) or b"{}")
        return found

    def set_note(self, name: str, text: str | None) -> None:
        """Keep a text under a name, in place of what was there; None removes it."""
        with self._writing():
            others = {key: value for key, value in self.notes().items() if key != name}
            kept = others if text is None else {**others, name: text}
            self._store.settings.put({_NOTES: json.dumps(kept).encode()})
            self._store.touch()

    # Searching --------------------------------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Inside, this thread does not see what others add; what they remove is gone at once."""
        with self._store.snapshot():
            yield

    def _nearest(self, vectors: Float[np.ndarray, "n dim"], k: int, modality: Modality, where: Where | None) -> Hits:
        queries = np.asarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim or not np.isfinite(queries).all():
            raise OptionError(f"expected finite vectors of shape (n, {self.dim}), got {queries.shape}")
        with self.snapshot():
            condition: str | None = ""
            if where is not None:
                codes = None
                if where.categories is not None:
                    known = {name: code for code, name in self.category_names().items()}
                    codes = [known[name] for name in set(where.categories) if name in known]
                condition = condition_of(codes=codes, metadata=where.metadata)
            if condition is None or not len(queries):
                return filled([[] for _ in queries], k)
            return nearest(self._store, self._settings, queries, k, modality=modality, condition=condition)

    # What the base class asks for -------------------------------------------------------------------------------

    def _contains(self, content: bytes, category: str, modality: Modality) -> bool:
        return self._store.contains(content, category, modality)

    def _append(self, entries: Sequence[NewEntry], vectors: Float[np.ndarray, "n dim"]) -> None:
        self._store.append(entries, vectors)

    def _writing(self) -> AbstractContextManager[None]:
        return self._store.writing()

    def _stored_probe(self) -> Float[np.ndarray, "n dim"] | None:
        return self._probe

    @property
    def _encoder_revision(self) -> str | None:
        found: str | None = self._settings["encoder_revision"]
        return found

    @property
    def _thumbnail_size(self) -> int | None:
        found: int | None = self._settings["thumbnails"]
        return found
