"""Whether everything that a memory's folder holds is as it was written."""

# ruff: noqa: S608 - what is put into SQL text are names of tables and columns

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Int

from rarvision.errors import MemoryCorruptError, MemoryStoreError
from rarvision.index import load_index
from rarvision.memory.schema import TABLES, row_checksum
from rarvision.memory.store import DATABASE, Store
from rarvision.memory.view import SegmentFiles, replaced
from rarvision.types import Modality

__all__ = ["Problem", "verify"]

_RESTORE = "restore the memory's folder from a copy"
_NAMED = 20  # problems of one kind that are named one by one
_PART = 65_536
_UNIT_WITHIN = 0.01
_KEY = {"thumbnails": 1, "removed": 2}  # columns that name a row; bytes are shown as hexadecimal


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is not as it was written.

    Attributes:
        where: A file of the folder, and the row where it is one.
        what: What was expected, and what is there.
        advice: What to do.
    """

    where: str
    what: str
    advice: str = _RESTORE


def verify(store: Store, *, dim: int, progress: Callable[[int], None] | None = None) -> Iterator[Problem]:
    """Check every row, vector and index, one state of them, against its checksum and against the others.

    Args:
        store: The folder.
        dim: Number of dimensions of its vectors.
        progress: Called with the number of bytes checked so far.
    """
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done)

    try:
        with store.snapshot():
            yield from _database(store, advance)
            for modality in ("image", "text"):
                yield from _segments(store, modality, dim, advance)
            yield from _tail(store, dim)
    except MemoryStoreError as error:  # the database is so damaged that the rest cannot be asked
        yield Problem(where=DATABASE, what=str(error))


def _limited(problems: Iterator[Problem], where: str) -> Iterator[Problem]:
    """The first ones, and how many more there are."""
    more = 0
    for number, problem in enumerate(problems):
        if number < _NAMED:
            yield problem
        else:
            more += 1
    if more:
        yield Problem(where=where, what=f"{more:,} more of the same kind")


def _database(store: Store, advance: Callable[[int], None]) -> Iterator[Problem]:
    path = store.folder / DATABASE
    mode = "mode=ro" if store.writable else "mode=ro&immutable=1"
    database = sqlite3.connect(f"file:{quote(str(path.absolute()))}?{mode}", uri=True, isolation_level=None)
    database.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    with contextlib.closing(database):
        # One question at a time: where a page is damaged, the others are still asked.
        yield from _limited(_structure(database), DATABASE)
        for table in TABLES:
            yield from _limited(_rows(database, table), f"{DATABASE}, table {table}")
    advance(path.stat().st_size)


def _structure(database: sqlite3.Connection) -> Iterator[Problem]:
    try:
        for (message,) in database.execute("PRAGMA integrity_check"):
            if message != "ok":
                yield Problem(where=DATABASE, what=message)
        for table, row, parent, _ in database.execute("PRAGMA foreign_key_check"):
            yield Problem(where=f"{DATABASE}, table {table}, row {row}", what=f"refers to nothing in {parent}")
    except sqlite3.DatabaseError as error:
        yield Problem(where=DATABASE, what=str(error))


def _rows(database: sqlite3.Connection, table: str) -> Iterator[Problem]:
    columns = TABLES[table]
    try:
        for *values, checksum in database.execute(f"SELECT {', '.join(columns)}, checksum FROM {table}"):
            if row_checksum(*values) != checksum:
                key = ", ".join(v.hex() if isinstance(v, bytes) else str(v) for v in values[: _KEY.get(table, 1)])
                yield Problem(
                    where=f"{DATABASE}, table {table}, row {key}",
                    what="its values are not those that were written (checksum)",
                )
    except sqlite3.DatabaseError as error:
        yield Problem(where=f"{DATABASE}, table {table}", what=str(error))


def _segments(store: Store, modality: Modality, dim: int, advance: Callable[[int], None]) -> Iterator[Problem]:
    merged = dict(store.rows("SELECT id, merged_into FROM categories WHERE merged_into IS NOT NULL"))
    last = 0
    for files in store.segments(modality):
        damaged = False
        for path, checksum in zip((files.vectors, files.row_table, files.index), files.checksums, strict=True):
            if path is not None and (what := _file(path, checksum)):
                yield Problem(where=f"segments/{path.name}", what=what)
                damaged = True
            elif path is not None:
                advance(path.stat().st_size)
        if damaged:
            continue
        found = [row for (row,) in store.rows("SELECT row FROM removed WHERE segment = ?", (files.key[0],))]
        try:
            segment = files.open(dim, removed=found, merged=merged)
        except (MemoryCorruptError, OSError, IndexError) as error:
            yield Problem(where=f"segments/{files.vectors.name}", what=str(error))
            continue
        yield from _limited(_vectors(files, segment.vectors), files.vectors.name)
        yield from _membership(store, files, segment.ids, segment.categories, merged)
        live = segment.ids[segment.ids >= 0]
        if len(live) and (live[0] <= last or (np.diff(live) <= 0).any()):
            yield Problem(where=f"segments/{files.row_table.name}", what="entries are not in the order of their ids")
        last = int(live[-1]) if len(live) else last


def _file(path: Path, checksum: str | None) -> str | None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # a damaged name may be none at all
        return f"cannot be read: {error}"
    return None if digest == checksum else f"its bytes are not those that were written (SHA-256 {digest[:12]}…)"


def _vectors(files: SegmentFiles, vectors: np.ndarray) -> Iterator[Problem]:
    for start in range(0, len(vectors), _PART):
        norms = np.linalg.norm(vectors[start : start + _PART], axis=1)
        for row in np.flatnonzero(~(np.abs(norms - 1.0) <= _UNIT_WITHIN)).tolist():
            yield Problem(
                where=f"segments/{files.vectors.name}, row {start + row}",
                what=f"expected a unit vector, got length {norms[row]:.4g}",
            )


def _membership(
    store: Store,
    files: SegmentFiles,
    ids: Int[np.ndarray, " n"],
    codes: Int[np.ndarray, " n"],
    merged: dict[int, int],
) -> Iterator[Problem]:
    """The row table against the entries."""
    found = store.rows("SELECT row, id, category FROM entries WHERE segment = ? ORDER BY row", (files.key[0],))
    rows, entries, categories = np.array(found, dtype=np.int64).reshape(-1, 3).T
    where = f"segments/{files.row_table.name}"
    if not np.array_equal(rows, np.flatnonzero(ids >= 0)) or len(rows) != files.live:
        yield Problem(where=where, what=f"the database knows {len(rows)} live rows, the segment {files.live}")
    elif not np.array_equal(entries, ids[rows]):
        yield Problem(where=where, what="its rows are other entries' than the database says")
    elif not np.array_equal(replaced(categories, merged) if merged else categories, codes[rows]):
        yield Problem(where=where, what="its entries have other categories than the database says")
    if files.index is not None:
        try:
            rows_indexed = len(load_index(files.index))
        except MemoryCorruptError as error:
            yield Problem(where=f"segments/{files.index.name}", what=str(error), advice="run `memory compact`")
        else:
            if rows_indexed != files.rows:
                yield Problem(where=f"segments/{files.index.name}", what=f"{rows_indexed} rows of {files.rows}")


def _tail(store: Store, dim: int) -> Iterator[Problem]:
    for entry, vector in store.rows("SELECT entry, vector FROM tail"):
        values = np.frombuffer(vector, dtype="<f4") if len(vector) == 4 * dim else None
        if values is None or not abs(float(np.linalg.norm(values)) - 1.0) <= _UNIT_WITHIN:
            yield Problem(where=f"{DATABASE}, table tail, row {entry}", what=f"expected a unit vector of {dim} numbers")
    lost = store.rows(
        "SELECT id FROM entries WHERE (segment IS NULL) <> (id IN (SELECT entry FROM tail)) LIMIT ?", (_NAMED,)
    )
    for (entry,) in lost:
        yield Problem(where=f"{DATABASE}, table entries, row {entry}", what="the entry has no vector, or two")
