"""A memory's folder: SQLite is the truth, vectors lie in immutable segment files, one process writes at a time.

A segment file is written under another name, synced, renamed, and its folder synced, before the transaction that
mentions it commits; so whatever the database mentions is whole, and a file that it does not mention is left over from
an interrupted write and is deleted by the next writer.
"""

# ruff: noqa: S608 - what is put into SQL text are names of columns

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import sqlite3
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, Int

from rarvision.errors import (
    MemoryCorruptError,
    MemoryExistsError,
    MemoryLockedError,
    MemoryNotFoundError,
    MemoryStoreError,
)
from rarvision.index import Index
from rarvision.memory.schema import SCHEMA, SCHEMA_VERSION, TABLES, install_checksum
from rarvision.memory.sql import Conditions
from rarvision.memory.view import SegmentFiles
from rarvision.types import Modality

__all__ = ["DATABASE", "SEGMENTS", "Store", "pack_vectors", "unpack_vectors"]

log = logging.getLogger(__name__)

DATABASE = "memory.sqlite"
SEGMENTS = "segments"
_LOCK = "writer.lock"
_HOLDER = "writer.json"
_FILE_COLUMNS = ("file", "sha256", "rows_file", "rows_sha256", "index_file", "index_sha256")


class Store:
    """The folder's files and transactions. Safe to use from several threads; `writing` excludes other processes."""

    def __init__(self, folder: Path, *, lock_timeout_s: float) -> None:
        """Open an existing folder."""
        if not (folder / DATABASE).is_file():
            what = "no memory there" if not folder.exists() else f"not a memory: it has no {DATABASE}"
            raise MemoryNotFoundError(
                f"{folder}: {what}. Make one with LocalMemory.create or `rarvision memory create`"
            )
        self.folder = folder
        self.writable = os.access(folder, os.W_OK)
        self._lock_timeout_s = lock_timeout_s
        self._guard = threading.RLock()
        self._writer = threading.RLock()
        self._depth = 0
        self._lock: sqlite3.Connection | None = None
        if not self.writable and (wal := folder / f"{DATABASE}-wal").is_file() and wal.stat().st_size:
            raise MemoryStoreError(
                f"{folder} is read-only, and its last writer did not finish closing it; open it once where it can be "
                "written"
            )
        mode = "mode=rw" if self.writable else "mode=ro&immutable=1"
        with self._mapped():
            self._db = sqlite3.connect(
                f"file:{quote(str((folder / DATABASE).absolute()))}?{mode}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=lock_timeout_s,
            )
        self.repairs: list[str] = []
        try:
            with self._mapped():
                self._db.execute("PRAGMA foreign_keys = ON")
                self._db.execute("PRAGMA synchronous = FULL")
                install_checksum(self._db)
                self._settle_version()
            self._repair()
        except BaseException:
            self._db.close()
            raise

    def _settle_version(self) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise MemoryStoreError(
                f"{self.folder} was written by a newer rarvision (schema {version}, this one reads {SCHEMA_VERSION}); "
                "upgrade rarvision"
            )
        if version < 1:
            raise MemoryCorruptError(f"{self.folder}: the database holds no memory (schema {version})")
        if version < SCHEMA_VERSION:
            if not self.writable:
                raise MemoryStoreError(
                    f"{self.folder} was written by an older rarvision (schema {version}, this one reads "
                    f"{SCHEMA_VERSION}) and is read-only; open it once where it can be written"
                )
            from rarvision.memory.migrating import migrate

            with self.writing():
                migrate(self)

    def _repair(self) -> None:
        """Undo what a writer that was stopped in the middle left behind, unless somebody is writing now."""
        if not self.writable or not (self._left_over() or (self.folder / _HOLDER).exists()):
            return
        patience, self._lock_timeout_s = self._lock_timeout_s, 0.0
        try:
            with contextlib.suppress(MemoryLockedError), self.writing():
                pass
        finally:
            self._lock_timeout_s = patience

    @classmethod
    def create(cls, folder: Path, meta: Mapping[str, Any]) -> None:
        """Make a new folder, whole or not at all."""
        folder = folder.resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = (
                "a memory is there already; open it, or choose another place"
                if (folder / DATABASE).exists()
                else ("something else is there already; choose another place")
            )
            raise MemoryExistsError(f"{folder}: {what}")
        draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            (draft / SEGMENTS).mkdir(parents=True)
            database = sqlite3.connect(draft / DATABASE, isolation_level=None)
            with contextlib.closing(database):
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
                install_checksum(database)
                database.executescript(SCHEMA)
                database.executemany("INSERT INTO meta VALUES (?, ?)", [*meta.items(), ("revision", 0)])
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            _sync_folder(draft)
            draft.replace(folder)
            _sync_folder(folder.parent)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise MemoryStoreError(f"{folder}: cannot be made: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the database; harmless when done twice."""
        with self._guard:
            self._db.close()

    # Reading ----------------------------------------------------------------------------------------------------

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """All rows of one query."""
        with self._guard, self._mapped():
            return self._db.execute(query, parameters).fetchall()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Several queries see one state, even while another process writes."""
        with self._guard:
            with self._mapped():
                inside = self._db.in_transaction
                if not inside:
                    self._db.execute("BEGIN")
            if inside:
                yield
                return
            try:
                yield
            finally:
                with self._mapped():
                    if self._db.in_transaction:
                        self._db.execute("COMMIT")

    def select(self, columns: str, conditions: Conditions, *, thumbnails: bool = False) -> Iterator[Any]:
        """Rows of entries that meet the conditions, by ascending id."""
        joined = " LEFT JOIN thumbnails ON thumbnails.content = entries.content" if thumbnails else ""
        for text, values in conditions.parts():
            yield from self.rows(
                f"SELECT {columns} FROM entries JOIN categories ON categories.id = entries.category{joined} "
                f"WHERE {text} ORDER BY entries.id",
                values,
            )

    def segments(self, modality: Modality) -> list[SegmentFiles]:
        """What is known of the segments that are searched, oldest first."""
        columns = ("id", "version", "rows", "live", *_FILE_COLUMNS)
        query = f"SELECT {', '.join(columns)} FROM segments WHERE modality = ? ORDER BY id"
        found = []
        for row in self.rows(query, (modality,)):
            values = dict(zip(columns, row, strict=True))
            index = values["index_file"]
            found.append(
                SegmentFiles(
                    key=(values["id"], values["version"]),
                    rows=values["rows"],
                    live=values["live"],
                    vectors=self.path(values["file"]),
                    row_table=self.path(values["rows_file"]),
                    index=self.path(index) if index else None,
                    checksums=(values["sha256"], values["rows_sha256"], values["index_sha256"]),
                )
            )
        return found

    def counts(self) -> dict[Modality, int]:
        """Entries of each modality."""
        counted = self.rows(
            "SELECT modality, live FROM segments UNION ALL "
            "SELECT modality, 1 FROM tail JOIN entries ON entries.id = tail.entry"
        )
        found: Counter[Modality] = Counter()
        for modality, rows in counted:
            found[modality] += rows
        return dict(found)

    def facts(self) -> dict[str, int]:
        """Counts and sizes in bytes."""
        (segments, indexed), (tail,), (thumbnails, thumbnail_bytes) = (
            self.rows(query)[0]
            for query in (
                "SELECT COUNT(*), IFNULL(SUM(IIF(index_file IS NULL, 0, live)), 0) FROM segments",
                "SELECT COUNT(*) FROM tail",
                "SELECT COUNT(*), COALESCE(SUM(LENGTH(jpeg)), 0) FROM thumbnails",
            )
        )
        names = self.rows("SELECT file, rows_file, index_file FROM segments")
        vectors, indexes = (sum(_size(self.path(row[i])) for row in names if row[i]) for i in (0, 2))
        return {
            "segments": segments,
            "indexed": indexed,
            "tail": tail,
            "removed": int(self.rows("SELECT COUNT(*) FROM removed")[0][0]),
            "thumbnails": thumbnails,
            "vector_bytes": vectors,
            "index_bytes": indexes,
            "thumbnail_bytes": thumbnail_bytes,
            "database_bytes": sum(_size(self.folder / f"{DATABASE}{end}") for end in ("", "-wal")),
        }

    def meta(self) -> dict[str, Any]:
        """Everything in the table of settings."""
        return dict(self.rows("SELECT key, value FROM meta"))

    @property
    def revision(self) -> int:
        """Grows with every transaction that changed something."""
        return int(self.rows("SELECT value FROM meta WHERE key = 'revision'")[0][0])

    def path(self, file: str) -> Path:
        """Where a segment's file lies."""
        return self.folder / SEGMENTS / file

    def size_bytes(self) -> int:
        """Bytes of all files; one that a writer deletes meanwhile counts as nothing."""
        total = 0
        for file in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
        return total

    # Writing ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the one writer's lock; other threads wait, another process is refused after the timeout.

        Raises:
            MemoryLockedError: Another process is writing; says which.
            MemoryStoreError: The folder is read-only.
        """
        with self._writer:
            if self._depth == 0:
                self._acquire()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._release()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One atomic change, durable when the block ends; only within `writing`."""
        with self._guard, self._mapped():
            if self._db.in_transaction:
                raise MemoryStoreError(
                    f"{self.folder}: within a snapshot the memory cannot be changed; leave the snapshot first"
                )
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'revision'")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def write_vectors(
        self, modality: Modality, parts: Iterable[Float[np.ndarray, "n dim"]], *, rows: int, dim: int
    ) -> tuple[str, str]:
        """Write a new segment's vectors durably, part by part; returns the file's name and SHA-256."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    file.write(np.ascontiguousarray(part, dtype="<f4").data)

        return self._publish(f"{modality}-{secrets.token_hex(8)}.npy", write)

    def write_rows(
        self, modality: Modality, ids: Int[np.ndarray, " n"], codes: Int[np.ndarray, " n"]
    ) -> tuple[str, str]:
        """Write whose a new segment's rows are: int64 ``(2, n)``, entry ids and category codes."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, np.stack((ids, codes)).astype("<i8"), allow_pickle=False)

        return self._publish(f"{modality}-{secrets.token_hex(8)}.rows.npy", write)

    def write_index(self, modality: Modality, index: Index) -> tuple[str, str]:
        """Write a segment's index durably; returns its name and SHA-256."""
        return self._publish(f"{modality}-{secrets.token_hex(8)}.{index.kind}", index.save)

    def delete_files(self, files: Sequence[str]) -> None:
        """Delete files that no committed state mentions; readers that have them open keep them."""
        for file in files:
            self.path(file).unlink(missing_ok=True)

    def _publish(self, name: str, write: Callable[[Path], None]) -> tuple[str, str]:
        draft = self.path(f".{name}")
        try:
            write(draft)
            with draft.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            draft.replace(self.path(name))
            _sync_folder(draft.parent)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise MemoryStoreError(
                f"{self.folder}: cannot write vectors: {error}. Nothing was added by this step; what was stored before "
                "is untouched. Free some space or fix the permissions, and run the same command again"
            ) from error
        return name, digest

    def _acquire(self) -> None:
        if not self.writable:
            raise MemoryStoreError(f"{self.folder} is read-only; copy it somewhere writable to change it")
        lock = sqlite3.connect(
            self.folder / _LOCK, isolation_level=None, timeout=self._lock_timeout_s, check_same_thread=False
        )
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            lock.close()
            raise MemoryLockedError(
                f"{self.folder} is being written by {self._holder()}; wait until it has finished, or stop it"
            ) from error
        self._lock = lock
        if (self.folder / _HOLDER).exists():
            self._tell(f"{self._holder()} was stopped in the middle of writing; what it had not finished is undone")
        holder = {"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        with contextlib.suppress(OSError):
            (self.folder / _HOLDER).write_text(json.dumps(holder), encoding="utf-8")
        if files := self._left_over():
            size = f"{len(files)} files ({sum(self.path(file).stat().st_size for file in files):,} bytes)"
            if self._knows_its_segments():
                self.delete_files(files)
                self._tell(f"deleted {size} that an interrupted writer left over")
            else:
                self._tell(
                    f"kept {size} that the database does not mention, since its list of segments is damaged; "
                    "run `rarvision memory verify`"
                )

    def _tell(self, repair: str) -> None:
        self.repairs.append(repair)
        log.warning("%s: %s", self.folder, repair)

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            (self.folder / _HOLDER).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _holder(self) -> str:
        try:
            holder = json.loads((self.folder / _HOLDER).read_text(encoding="utf-8"))
            return f"process {holder['pid']} (since {holder['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def _knows_its_segments(self) -> bool:
        """Whether the list of segments is as it was written: only then may files be deleted that are not in it."""
        if not any(name == "checksum" for _, name, *_ in self.rows("PRAGMA table_xinfo(segments)")):
            return True  # of the first version, which has none
        wrong = f"SELECT COUNT(*) FROM segments WHERE checksum <> row_checksum({', '.join(TABLES['segments'])})"
        return int(self.rows(wrong)[0][0]) == 0

    def _left_over(self) -> list[str]:
        """Files that the database does not mention."""
        columns = [name for _, name, *_ in self.rows("PRAGMA table_info(segments)") if name.endswith("file")]
        known = {name for row in self.rows(f"SELECT {', '.join(columns)} FROM segments") for name in row if name}
        with os.scandir(self.folder / SEGMENTS) as files:
            return [file.name for file in files if file.name not in known]

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise MemoryStoreError(f"{self.folder}: {error}; open the memory again") from error
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise MemoryLockedError(f"{self.folder} is being written by {self._holder()}: {error}") from error
            full = "full" in str(error) or "disk I/O" in str(error)
            advice = "; nothing of this step was stored. Free some space and run the same command again" if full else ""
            raise MemoryStoreError(f"{self.folder}: {error}{advice}") from error
        except sqlite3.IntegrityError as error:
            raise MemoryStoreError(f"{self.folder}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise MemoryCorruptError(f"{self.folder / DATABASE} is damaged: {error}; restore it from a copy") from error


def pack_vectors(vectors: Float[np.ndarray, "n dim"]) -> bytes:
    """Little-endian float32, row by row."""
    return np.ascontiguousarray(vectors, dtype="<f4").tobytes()


def unpack_vectors(data: bytes, dim: int) -> Float[np.ndarray, "n dim"]:
    """What `pack_vectors` packed."""
    return np.frombuffer(data, dtype="<f4").reshape(-1, dim)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can open folders."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
