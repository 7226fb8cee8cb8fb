"""The tables of a memory's database, the checksum that every row carries, and how older databases become newer ones."""

from __future__ import annotations

import sqlite3
import zlib

__all__ = ["SCHEMA", "SCHEMA_VERSION", "TABLES", "install_checksum", "row_checksum"]

SCHEMA_VERSION = 2

TABLES: dict[str, tuple[str, ...]] = {
    "meta": ("key", "value"),
    "categories": ("id", "name", "merged_into"),
    "segments": (
        "id",
        "modality",
        "version",
        "rows",
        "live",
        "file",
        "sha256",
        "rows_file",
        "rows_sha256",
        "index_spec",
        "index_file",
        "index_sha256",
    ),
    "entries": ("id", "category", "modality", "source", "content", "metadata", "segment", "row"),
    "tail": ("entry", "vector"),
    "removed": ("segment", "row"),
    "drafts": ("entry", "vector"),
    "thumbnails": ("content", "jpeg"),
}
"""Each table's columns but its checksum, which is over them in this order; the first one or two name a row."""

_COLUMNS = {
    "meta": "key TEXT PRIMARY KEY, value",
    # A category that was merged into another keeps its number, without a name: sealed segments still say it.
    "categories": """
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT UNIQUE,
        merged_into INTEGER REFERENCES categories (id)""",
    # version grows when a live row goes or changes
    "segments": """
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        modality TEXT NOT NULL CHECK (modality IN ('image', 'text')),
        version INTEGER NOT NULL DEFAULT 0,
        rows INTEGER NOT NULL,
        live INTEGER NOT NULL,
        file TEXT NOT NULL UNIQUE,
        sha256 TEXT NOT NULL,
        rows_file TEXT NOT NULL UNIQUE,
        rows_sha256 TEXT NOT NULL,
        index_spec TEXT,
        index_file TEXT,
        index_sha256 TEXT""",
    # segment and row say where the vector is; both NULL: in the tail
    "entries": """
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        category INTEGER NOT NULL REFERENCES categories (id),
        modality TEXT NOT NULL CHECK (modality IN ('image', 'text')),
        source TEXT NOT NULL,
        content BLOB NOT NULL,
        metadata TEXT NOT NULL,
        segment INTEGER REFERENCES segments (id),
        row INTEGER,
        UNIQUE (content, category, modality)""",
    "tail": "entry INTEGER PRIMARY KEY REFERENCES entries (id) ON DELETE CASCADE, vector BLOB NOT NULL",
    "removed": "segment INTEGER NOT NULL REFERENCES segments (id) ON DELETE CASCADE, row INTEGER NOT NULL",
    # by another encoder, until all entries have one
    "drafts": "entry INTEGER PRIMARY KEY REFERENCES entries (id) ON DELETE CASCADE, vector BLOB NOT NULL",
    "thumbnails": "content BLOB PRIMARY KEY, jpeg BLOB NOT NULL",
}


def _create(table: str) -> str:
    # The checksum is the database's own doing, so that no statement can forget it.
    checksum = f"checksum INTEGER AS (row_checksum({', '.join(TABLES[table])})) STORED"
    constraints = {"removed": ", PRIMARY KEY (segment, row)"}.get(table, "")
    columns = _COLUMNS[table].strip()
    if table == "entries":
        columns, constraints = (
            columns.replace(",\n        UNIQUE (content, category, modality)", ""),
            (", UNIQUE (content, category, modality)"),
        )
    return f"CREATE TABLE {table} ({columns}, {checksum}{constraints});"


SCHEMA = "\n".join(
    [
        *(_create(table) for table in TABLES),
        "CREATE INDEX entries_by_place ON entries (segment, row);",
        "CREATE INDEX entries_by_category ON entries (category, modality);",
        "CREATE INDEX entries_by_source ON entries (source);",
    ]
)


def row_checksum(*values: object) -> int:
    """CRC-32 of a row's values: it changes with any one bit of them, and with their types."""
    return zlib.crc32(ascii(values).encode())


def install_checksum(database: sqlite3.Connection) -> None:
    """Make the function known to a connection; without it no row can be written."""
    database.execute("PRAGMA trusted_schema = ON")
    database.create_function("row_checksum", -1, row_checksum, deterministic=True)
