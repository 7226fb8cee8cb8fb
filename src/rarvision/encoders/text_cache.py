"""Vectors of texts kept between runs, so that thousands of names are encoded once: one SQLite file for each encoder.

A cache is a convenience. Whatever is wrong with it, the texts are encoded, and the reason is logged once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import zlib
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, final

import numpy as np
from jaxtyping import Float

from rarvision.encoders.base import Encoder
from rarvision.encoders.templates import check_templates
from rarvision.errors import OptionError

__all__ = ["TextCache", "cache_folder"]

_log = logging.getLogger(__name__)
_told: set[str] = set()

_OFF: Final = frozenset({"0", "off", "false", "no", "none"})
_LAYOUT: Final = 1
_AT_ONCE: Final = 500  # SQLite takes at least 999 parameters
_PATIENCE_S: Final = 10.0
_ROW_BYTES: Final = 96  # beside the vector: key, checksum, both entries of the b-trees
_KEEP: Final = 0.9  # of the limit, once it has been passed
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS texts (key BLOB NOT NULL UNIQUE, vector BLOB NOT NULL, checksum INTEGER NOT NULL);
"""

MAX_BYTES: Final = 1_000_000_000
"""Size that one encoder's file may reach; beyond it the oldest texts are dropped."""


def cache_folder() -> Path | None:
    """Where vectors are kept between runs; None where that is turned off.

    The environment variable ``RARVISION_CACHE`` names the folder, or turns the cache off (``off``, ``0``); else
    ``$XDG_CACHE_HOME/rarvision``, else ``~/.cache/rarvision``.
    """
    given = os.environ.get("RARVISION_CACHE", "").strip()
    if given:
        return None if given.lower() in _OFF else Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if base and Path(base).is_absolute():
        return Path(base) / "rarvision"
    try:
        return Path.home() / ".cache" / "rarvision"
    except RuntimeError:  # no home folder
        return None


@final
class TextCache:
    """Encodes texts, those that it has met before from its file.

    Safe for several processes and threads at once. Vectors come back exactly as they were, float32. They belong to the
    encoder's fingerprint and precision, the templates and the text; a text whose stored vector is damaged is encoded
    again. To be used in a ``with`` statement.

    Args:
        encoder: Encodes what is not there.
        folder: Where files are kept; ``cache_folder()`` by default (True), none for False.
        max_bytes: Size that the file may reach.
    """

    def __init__(self, encoder: Encoder, folder: Path | str | bool = True, *, max_bytes: int = MAX_BYTES) -> None:  # noqa: FBT001, FBT002 - the switch that it is
        if max_bytes < 1:
            raise OptionError(f"max_bytes must be at least 1, got {max_bytes}; to keep nothing, give folder=False")
        place = cache_folder() if folder is True else Path(folder) if folder else None
        self._encoder = encoder
        self._bound = json.dumps([_LAYOUT, encoder.fingerprint, encoder.precision, encoder.dim])
        name = hashlib.sha256(self._bound.encode()).hexdigest()[:40]
        self.path: Path | None = None if place is None else place / "texts" / f"{name}.sqlite"
        self._most = max(1, max_bytes // (4 * encoder.dim + _ROW_BYTES))
        self._database: sqlite3.Connection | None = None
        self.found = 0
        self.encoded = 0

    def __enter__(self) -> Self:
        if self.path is not None:
            try:
                self._database = self._open(self.path)
            except (sqlite3.Error, OSError) as error:
                self._give_up(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def encode_texts(
        self, texts: Sequence[str], *, templates: str | Sequence[str] = ("{}",), batch_size: int | None = None
    ) -> Float[np.ndarray, "n dim"]:
        """As `Encoder.encode_texts`, faster for what has been encoded before.

        Raises:
            OptionError: A template without ``{}`` that names no set.
            EncoderError: The encoder's.
        """
        filled = check_templates(templates)
        keys = [_key(filled, text) for text in texts]
        known = self._look_up(list(dict.fromkeys(keys)))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            fresh = self._encoder.encode_texts(list(missing.values()), templates=filled, batch_size=batch_size)
            new = dict(zip(missing, fresh, strict=True))
            self._keep(new)
            known |= new
        self.encoded += len(missing)
        self.found += len(texts) - len(missing)
        return np.stack([known[key] for key in keys]) if keys else np.empty((0, self._encoder.dim), dtype=np.float32)

    def _open(self, path: Path) -> sqlite3.Connection:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._connect(path)
        except sqlite3.OperationalError:  # locked, full, read-only: not damage
            raise
        except sqlite3.DatabaseError as error:
            self._tell(f"was damaged ({error}) and is begun anew")
            path.unlink(missing_ok=True)
            Path(f"{path}-journal").unlink(missing_ok=True)
            return self._connect(path)

    def _connect(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
        try:
            # What a crash of the system may cost is a cache, and its damage is found out: no waiting for the disk.
            database.execute("PRAGMA synchronous = OFF")
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'texts'").fetchone():
                database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
                database.execute("INSERT OR IGNORE INTO facts VALUES ('bound', ?)", (self._bound,))
            if database.execute("SELECT value FROM facts WHERE name = 'bound'").fetchone() != (self._bound,):
                raise sqlite3.DatabaseError("it belongs to another encoder")  # noqa: TRY301 - damage like any other
        except BaseException:
            database.close()
            raise
        return database

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, Float[np.ndarray, " dim"]]:
        if self._database is None:
            return {}
        found: dict[bytes, Float[np.ndarray, " dim"]] = {}
        try:
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ", ".join("?" * len(part))
                query = f"SELECT key, vector, checksum FROM texts WHERE key IN ({marks})"  # noqa: S608 - marks only
                with closing(self._database.execute(query, part)) as rows:
                    for key, vector, checksum in rows:
                        if len(vector) == 4 * self._encoder.dim and zlib.crc32(key + vector) == checksum:
                            found[key] = np.frombuffer(vector, dtype="<f4").astype(np.float32)
                        else:
                            self._tell("held damaged vectors, which are encoded again")
        except (sqlite3.Error, TypeError) as error:
            self._give_up(error)
        return found

    def _keep(self, new: dict[bytes, Float[np.ndarray, " dim"]]) -> None:
        if self._database is None:
            return
        rows = [(key, value := vector.astype("<f4").tobytes(), zlib.crc32(key + value)) for key, vector in new.items()]
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT OR REPLACE INTO texts (key, vector, checksum) VALUES (?, ?, ?)", rows)
            (count,) = database.execute("SELECT COUNT(*) FROM texts").fetchone()
            if count > self._most:
                surplus = count - int(_KEEP * self._most)
                database.execute(
                    "DELETE FROM texts WHERE rowid IN (SELECT rowid FROM texts ORDER BY rowid LIMIT ?)", (surplus,)
                )
            database.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Go on without the file."""
        self._close()
        if self.path is not None and isinstance(error, sqlite3.DatabaseError) and not _is_passing(error):
            with suppress(OSError):
                self.path.unlink(missing_ok=True)  # damaged inside: the next run begins anew
        self._tell(f"cannot be used, so texts are encoded without it: {error}")

    def _tell(self, what: str) -> None:
        message = f"the cache of text vectors {self.path} {what}. Set RARVISION_CACHE to another folder, or to off"
        if message not in _told:
            _told.add(message)
            _log.warning(message)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _is_passing(error: Exception) -> bool:
    """Locked, full or read-only: no reason to delete the file."""
    return isinstance(error, (sqlite3.OperationalError, sqlite3.ProgrammingError, sqlite3.InterfaceError))


def _key(templates: tuple[str, ...], text: str) -> bytes:
    return hashlib.sha256(json.dumps([text, *templates]).encode()).digest()
