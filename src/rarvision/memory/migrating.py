"""From the tables of an older version to those of this one: whole or not at all."""

# ruff: noqa: S608 - what is put into SQL text are names of tables and columns

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from rarvision.memory.schema import SCHEMA, SCHEMA_VERSION

if TYPE_CHECKING:
    from rarvision.memory.store import Store

__all__ = ["migrate"]

_OLD = ("meta", "categories", "segments", "entries", "thumbnails")


def migrate(store: Store) -> None:
    """Schema 1 to 2: rows get checksums, segments a table of whose their rows are. The lock is held."""
    tables = {
        segment: store.write_rows(
            modality,
            *_whose(store.rows("SELECT row, id, category FROM entries WHERE segment = ?", (segment,)), rows),
        )
        for segment, modality, rows in store.rows("SELECT id, modality, rows FROM segments")
    }
    parameters = json.loads(store.meta()["index_parameters"])
    spec = json.dumps({"kind": "hnsw", "parameters": parameters})
    kind = store.meta()["index"]
    chosen = {"auto": "auto", "hnsw": spec}.get(kind, json.dumps({"kind": kind, "parameters": {}}))
    with store.transaction() as database:
        for name in ("entries_by_segment", "entries_by_category", "entries_by_source"):
            database.execute(f"DROP INDEX {name}")
        for name in _OLD:
            database.execute(f"ALTER TABLE {name} RENAME TO old_{name}")
        for statement in SCHEMA.split(";"):
            if statement.strip():
                database.execute(statement)
        database.execute("INSERT INTO meta (key, value) SELECT key, value FROM old_meta")
        database.execute("DELETE FROM meta WHERE key = 'index_parameters'")
        database.execute("UPDATE meta SET value = ? WHERE key = 'index'", (chosen,))
        database.execute("INSERT INTO categories (id, name) SELECT id, name FROM old_categories")
        for segment, (rows_file, digest) in tables.items():
            database.execute(
                "INSERT INTO segments (id, modality, rows, live, file, sha256, rows_file, rows_sha256, index_spec, "
                "index_file, index_sha256) SELECT id, modality, rows, live, file, sha256, ?, ?, "
                "IIF(index_file IS NULL, NULL, ?), index_file, index_sha256 FROM old_segments WHERE id = ?",
                (rows_file, digest, spec, segment),
            )
        columns = "id, category, modality, source, content, metadata, segment, row"
        database.execute(f"INSERT INTO entries ({columns}) SELECT {columns} FROM old_entries ORDER BY id")
        database.execute("INSERT INTO thumbnails (content, jpeg) SELECT content, jpeg FROM old_thumbnails")
        for table in ("categories", "segments", "entries"):  # numbers are never given twice
            database.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
            database.execute("UPDATE sqlite_sequence SET name = ? WHERE name = ?", (table, f"old_{table}"))
        for segment, rows in database.execute("SELECT id, rows FROM segments WHERE live < rows").fetchall():
            live = {row for (row,) in database.execute("SELECT row FROM entries WHERE segment = ?", (segment,))}
            gone = [(segment, row) for row in range(rows) if row not in live]
            database.executemany("INSERT INTO removed (segment, row) VALUES (?, ?)", gone)
        for name in reversed(_OLD):
            database.execute(f"DROP TABLE old_{name}")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    store.repairs.append(f"brought up to date: schema 1 became {SCHEMA_VERSION} ({json.dumps(len(tables))} segments)")


def _whose(found: list[tuple[int, int, int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    ids, codes = np.full(rows, -1, dtype=np.int64), np.full(rows, -1, dtype=np.int64)
    for row, entry, category in found:
        ids[row], codes[row] = entry, category
    return ids, codes
