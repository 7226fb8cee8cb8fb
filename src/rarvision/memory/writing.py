"""What changes a memory's folder: adding, sealing, removing, merging, indexing, compacting.

New entries go to the tail, whose vectors lie in the database and are searched exactly. A tail that has grown is sealed:
its vectors become a segment, a file that never changes. Small segments without an index are joined, so that there are
never many; those with an index are left as they are until `compact`. Every step is one transaction, and the files that
it mentions are durable before it commits.
"""

# ruff: noqa: S608 - what is put into SQL text are constants and placeholders; values are parameters

from __future__ import annotations

import difflib
import itertools
import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from rarvision.errors import OptionError
from rarvision.index import IndexSpec
from rarvision.memory.adding import check_category
from rarvision.memory.records import NewEntry
from rarvision.memory.sql import Conditions, storable, to_json
from rarvision.memory.store import Store, pack_vectors, unpack_vectors
from rarvision.types import Modality

__all__ = ["Writer", "drop_segments", "insert_segment", "place"]

_SEAL = 4_096  # rows of a tail that becomes a segment; as many added at once are one from the start
_MERGE = 16  # that many segments without an index, of one order of magnitude, become one
_PART = 16_384  # rows copied at once
_GROWTH = 8  # new rows get an index of their own when they are this part of the rows that have one


class Writer:
    """Changes of one folder. Callers hold `Store.writing`, but for the methods that say they take it themselves."""

    def __init__(self, store: Store, *, dim: int, index_for: Callable[[int], IndexSpec]) -> None:
        """``index_for`` says which index so many rows are worth; ``exact`` is none but the vectors themselves."""
        self._store = store
        self.dim = dim
        self._index_for = index_for

    # Adding -----------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[NewEntry], vectors: Float[np.ndarray, "n dim"]) -> None:
        """Store entries of one modality, durably when it returns, all or none."""
        modality = entries[0].modality
        metadata = [to_json(entry.metadata) for entry in entries]
        sealed = len(entries) >= _SEAL
        if sealed:
            self.seal(modality)  # what came before comes before
        # Nobody else writes meanwhile, so the numbers are known before they are given.
        first, known, new = self._next_id("entries"), *self._codes(entries)
        if sealed:
            file = self._store.write_vectors(modality, [vectors], rows=len(entries), dim=self.dim)
            codes = np.array([known[entry.category] for entry in entries])
            table = self._store.write_rows(modality, np.arange(first, first + len(entries)), codes)
        with self._store.transaction() as database:
            database.executemany("INSERT INTO categories (name, id) VALUES (?, ?)", new.items())
            segment = insert_segment(database, modality, len(entries), (*file, *table)) if sealed else None
            database.executemany(
                "INSERT INTO entries (id, category, modality, source, content, metadata, segment, row) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        first + row,
                        known[entry.category],
                        modality,
                        storable(entry.source),
                        entry.content,
                        json_text,
                        segment,
                        row if sealed else None,
                    )
                    for row, (entry, json_text) in enumerate(zip(entries, metadata, strict=True))
                ),
            )
            if not sealed:
                database.executemany(
                    "INSERT INTO tail (entry, vector) VALUES (?, ?)",
                    ((first + row, pack_vectors(vectors[row : row + 1])) for row in range(len(entries))),
                )
            database.executemany(
                "INSERT OR IGNORE INTO thumbnails (content, jpeg) VALUES (?, ?)",
                [(entry.content, entry.thumbnail) for entry in entries if entry.thumbnail is not None],
            )
        if not sealed and self._tail_rows(modality) >= _SEAL:
            self.seal(modality)
        self._join(modality)

    def _codes(self, entries: Sequence[NewEntry]) -> tuple[dict[str, int], dict[str, int]]:
        """Codes of all categories by name, those of these entries included; and of those that are new."""
        known = dict(self._store.rows("SELECT name, id FROM categories WHERE name IS NOT NULL"))
        names = dict.fromkeys(entry.category for entry in entries if entry.category not in known)
        new = dict(zip(names, itertools.count(self._next_id("categories")), strict=False))
        return known | new, new

    def _next_id(self, table: str) -> int:
        rows = self._store.rows("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,))
        return int(rows[0][0]) + 1 if rows else 1

    def _tail_rows(self, modality: Modality) -> int:
        query = "SELECT COUNT(*) FROM tail JOIN entries ON entries.id = tail.entry WHERE modality = ?"
        return int(self._store.rows(query, (modality,))[0][0])

    def seal(self, modality: Modality) -> None:
        """Make a segment of the tail."""
        found = self._store.rows(
            "SELECT entry, category, vector FROM tail JOIN entries ON entries.id = tail.entry WHERE modality = ? "
            "ORDER BY entry",
            (modality,),
        )
        if not found:
            return
        ids, codes = np.array([row[:2] for row in found], dtype=np.int64).T
        vectors = unpack_vectors(b"".join(row[2] for row in found), self.dim)
        file = self._store.write_vectors(modality, [vectors], rows=len(ids), dim=self.dim)
        table = self._store.write_rows(modality, ids, codes)
        with self._store.transaction() as database:
            segment = insert_segment(database, modality, len(ids), (*file, *table))
            place(database, segment, ids)
            database.execute("DELETE FROM tail WHERE entry IN (SELECT id FROM entries WHERE segment = ?)", (segment,))

    # Joining, indexing, compacting ------------------------------------------------------------------------------

    def _join(self, modality: Modality) -> None:
        """Make one segment of the last 16 of the same order of magnitude, so that there are never many."""
        while True:
            last = self._store.rows(
                "SELECT id, rows FROM segments WHERE modality = ? AND index_file IS NULL ORDER BY id DESC LIMIT ?",
                (modality, _MERGE),
            )
            if len(last) < _MERGE or _magnitude(max(rows for _, rows in last)) > _magnitude(last[0][1]):
                return
            self.rewrite(modality, [segment for segment, _ in last])

    def index_new(self, modality: Modality) -> None:
        """Give the vectors that have no index one of their own, where they are many enough."""
        segments = self._store.rows(
            "SELECT id, live, index_file IS NOT NULL FROM segments WHERE modality = ?", (modality,)
        )
        bare = [(segment, live) for segment, live, indexed in segments if not indexed]
        tail, indexed = self._tail_rows(modality), sum(live for _, live, has in segments if has)
        rows = tail + sum(live for _, live in bare)
        if not rows or rows * _GROWTH < indexed or self._index_for(rows).kind == "exact":
            return
        self.seal(modality)
        bare_now = self._store.rows("SELECT id FROM segments WHERE modality = ? AND index_file IS NULL", (modality,))
        self.rewrite(modality, [segment for (segment,) in bare_now], index=True)

    def compact(self, modality: Modality, progress: Callable[[int], None] | None = None) -> None:
        """Make one segment of everything, with a fresh index where one is worth it."""
        self.seal(modality)
        segments = self._store.rows(
            "SELECT id, rows, live, index_spec FROM segments WHERE modality = ?",
            (modality,),
        )
        live = sum(row[2] for row in segments)
        wanted = self._index_for(live)
        spec = None if wanted.kind == "exact" else json.dumps(wanted.to_json())
        if len(segments) == 1 and segments[0][1:] == (live, live, spec):
            return
        if segments:
            self.rewrite(modality, [row[0] for row in segments], index=spec is not None, progress=progress)

    def rewrite(
        self,
        modality: Modality,
        segments: Iterable[int],
        *,
        index: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Replace segments that follow one another by one with their live rows, with an index where asked."""
        old = sorted(segments)
        marks = ",".join("?" * len(old))
        table = self._store.rows(
            f"SELECT id, category, segment, row FROM entries WHERE segment IN ({marks}) ORDER BY segment, row", old
        )
        ids, codes, places, rows = np.array(table, dtype=np.int64).reshape(-1, 4).T

        def parts() -> Iterator[Float[np.ndarray, "n dim"]]:
            done = 0
            files = dict(self._store.rows(f"SELECT id, file FROM segments WHERE id IN ({marks})", old))
            for segment in old:
                vectors = np.load(self._store.path(files[segment]), mmap_mode="r", allow_pickle=False)
                live = rows[places == segment]
                for start in range(0, len(live), _PART):
                    yield vectors[live[start : start + _PART]]
                    done += len(live[start : start + _PART])
                    if progress is not None:
                        progress(done)

        files = self.write_segment(modality, parts(), ids, codes, index=index)
        with self._store.transaction() as database:
            new = insert_segment(database, modality, len(ids), files)
            place(database, new, ids)
            dropped = drop_segments(database, old)
        self._store.delete_files(dropped)

    def write_segment(
        self,
        modality: Modality,
        parts: Iterable[Float[np.ndarray, "n dim"]],
        ids: Int[np.ndarray, " n"],
        codes: Int[np.ndarray, " n"],
        *,
        index: bool = True,
    ) -> tuple[str, ...]:
        """Write a segment's files durably, with an index where asked and worth it; what `insert_segment` takes."""
        file = self._store.write_vectors(modality, parts, rows=len(ids), dim=self.dim)
        table = self._store.write_rows(modality, ids, codes)
        wanted = self._index_for(len(ids))
        if not index or wanted.kind == "exact":
            return (*file, *table)
        built = wanted.make(self.dim)
        built.add(np.load(self._store.path(file[0]), mmap_mode="r", allow_pickle=False))
        return (*file, *table, json.dumps(wanted.to_json()), *self._store.write_index(modality, built))

    # Removing, renaming, merging --------------------------------------------------------------------------------

    def remove(self, conditions: Conditions) -> int:
        """Remove the entries that meet the conditions; returns how many."""
        with self._store.transaction() as database:
            chosen = _choose(database, conditions)
            if not chosen:
                return 0
            files = _delete_chosen(database)
        self._store.delete_files(files)
        return chosen

    def rename(self, old: str, new: str) -> int:
        """Give a category another name; returns how many entries it has."""
        check_category(new)
        with self._store.transaction() as database:
            code = _code(database, old)
            if database.execute("SELECT 1 FROM categories WHERE name = ? AND id <> ?", (new, code)).fetchone():
                raise OptionError(
                    f"there is a category {new!r} already; merge {old!r} into it instead, or choose another name"
                )
            database.execute("UPDATE categories SET name = ? WHERE id = ?", (new, code))
            return int(database.execute("SELECT COUNT(*) FROM entries WHERE category = ?", (code,)).fetchone()[0])

    def merge(self, names: Sequence[str], into: str) -> int:
        """Make one category of several; returns how many entries changed their category."""
        check_category(into)
        if not names:
            raise OptionError("say which categories to merge; got none")
        with self._store.transaction() as database:
            codes = {_code(database, name) for name in names}
            database.execute("INSERT OR IGNORE INTO categories (name) VALUES (?)", (into,))
            target = _code(database, into)
            codes.discard(target)
            changed, files = 0, []
            for code in sorted(codes):
                database.execute("CREATE TEMP TABLE IF NOT EXISTS chosen (id INTEGER PRIMARY KEY)")
                database.execute("DELETE FROM chosen")
                doubled = database.execute(
                    "INSERT INTO chosen SELECT id FROM entries WHERE category = ? AND EXISTS (SELECT 1 FROM entries "
                    "AS there WHERE there.category = ? AND there.content = entries.content "
                    "AND there.modality = entries.modality)",
                    (code, target),
                ).rowcount
                files += _delete_chosen(database) if doubled else []
                changed += database.execute(
                    "UPDATE entries SET category = ? WHERE category = ?", (target, code)
                ).rowcount
                database.execute(
                    "UPDATE categories SET merged_into = ? WHERE id = ? OR merged_into = ?", (target, code, code)
                )
                database.execute("UPDATE categories SET name = NULL WHERE id = ?", (code,))
            database.execute("UPDATE segments SET version = version + 1")
        self._store.delete_files(files)
        return changed


def insert_segment(database: sqlite3.Connection, modality: Modality, rows: int, files: Sequence[str]) -> int:
    """Tell the database of a segment; its number.

    ``files``: names and checksums of vectors and row table, and perhaps spec, name and checksum of the index.
    """
    columns = ("file", "sha256", "rows_file", "rows_sha256", "index_spec", "index_file", "index_sha256")[: len(files)]
    inserted = database.execute(
        f"INSERT INTO segments (modality, rows, live, {', '.join(columns)}) "
        f"VALUES ({', '.join('?' * (3 + len(columns)))})",
        (modality, rows, rows, *files),
    ).lastrowid
    return int(inserted or 0)


def drop_segments(database: sqlite3.Connection, segments: Sequence[int]) -> list[str]:
    """Forget segments that hold no entry any more; returns their files, to be deleted after the commit."""
    files = []
    for segment in segments:
        row = database.execute("SELECT file, rows_file, index_file FROM segments WHERE id = ?", (segment,)).fetchone()
        files += [file for file in row if file]
        database.execute("DELETE FROM segments WHERE id = ?", (segment,))
    return files


def place(database: sqlite3.Connection, segment: int, ids: Int[np.ndarray, " n"]) -> None:
    """Say that the segment's rows are these entries'."""
    database.executemany(
        "UPDATE entries SET segment = ?, row = ? WHERE id = ?",
        ((segment, row, entry) for row, entry in enumerate(ids.tolist())),
    )


def _choose(database: sqlite3.Connection, conditions: Conditions) -> int:
    """Fill the table ``chosen`` with the entries that meet the conditions; returns how many."""
    database.execute("CREATE TEMP TABLE IF NOT EXISTS chosen (id INTEGER PRIMARY KEY)")
    database.execute("DELETE FROM chosen")
    for text, values in conditions.parts():
        database.execute(
            "INSERT OR IGNORE INTO chosen SELECT entries.id FROM entries "
            f"JOIN categories ON categories.id = entries.category WHERE {text}",
            values,
        )
    return int(database.execute("SELECT COUNT(*) FROM chosen").fetchone()[0])


def _delete_chosen(database: sqlite3.Connection) -> list[str]:
    """Delete the chosen entries; returns files that nobody needs any more."""
    database.execute(
        "INSERT INTO removed (segment, row) SELECT segment, row FROM entries "
        "WHERE id IN (SELECT id FROM chosen) AND segment IS NOT NULL"
    )
    gone = database.execute(
        "SELECT segment, COUNT(*) FROM entries WHERE id IN (SELECT id FROM chosen) AND segment IS NOT NULL "
        "GROUP BY segment"
    ).fetchall()
    database.executemany(
        "UPDATE segments SET live = live - ?, version = version + 1 WHERE id = ?",
        [(count, segment) for segment, count in gone],
    )
    database.execute(
        "DELETE FROM thumbnails WHERE content IN (SELECT content FROM entries WHERE id IN (SELECT id FROM chosen)) "
        "AND NOT EXISTS (SELECT 1 FROM entries WHERE entries.content = thumbnails.content "
        "AND entries.id NOT IN (SELECT id FROM chosen))"
    )
    database.execute("DELETE FROM entries WHERE id IN (SELECT id FROM chosen)")
    empty = [row for (row,) in database.execute("SELECT id FROM segments WHERE live = 0")]
    return drop_segments(database, empty)


def _code(database: sqlite3.Connection, name: str) -> int:
    found = database.execute("SELECT id FROM categories WHERE name = ?", (name,)).fetchone()
    if found is None:
        near = _near(name, [row for (row,) in database.execute("SELECT name FROM categories WHERE name IS NOT NULL")])
        raise OptionError(f"no category {name!r} in this memory{near}")
    return int(found[0])


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; `rarvision memory info --categories` lists them"


def _magnitude(rows: int) -> int:
    return int(math.log(max(rows, 1), _MERGE) + 1e-9)
