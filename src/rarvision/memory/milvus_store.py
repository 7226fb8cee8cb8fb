"""A memory's rows in Milvus: what is there, who writes, and changes that are whole or not visible."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int

from rarvision.errors import InputError, MemoryCorruptError, MemoryLockedError, MemoryStoreError, OptionError
from rarvision.memory.milvus_rows import ENTRY_FIELDS, condition_of, entry_key, row_of, row_size
from rarvision.memory.milvus_server import IDS_AT_ONCE, MAX_RESULTS, MAX_TEXT, Blobs, Server, parts
from rarvision.memory.records import NewEntry
from rarvision.types import Modality

__all__ = ["MODALITIES", "MilvusStore", "State", "condition_of"]

MODALITIES: tuple[Modality, Modality] = ("image", "text")

_LEASE_S = 120.0  # a writer that has committed nothing for so long, and is not seen alive, has lost its turn
_ALIVE_S = 3_600.0  # what a writer that is seen alive may take longer: its number may have been given away
_KEYS_AT_ONCE = 64  # look-ups one by one before all keys are fetched
_FLUSH_FROM = 1_000  # rows written to Milvus Lite that are worth sealing
_taking = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class State:
    """What changes; one row, replaced whole, so that a change is visible when this is.

    Attributes:
        revision: Grows with every change.
        next_id: Entries from this id on are not there yet, whatever the collections hold.
        next_code: The next category's.
        image: Image entries.
        text: Text entries.
        pending: Above 0: entries below this id may have been written half.
        unsettled: Entries may have been removed half, so that the counts are not sure.
        writer: Who holds the turn to write: token, host, process, and until when (seconds since 1970).
    """

    revision: int = 0
    next_id: int = 1
    next_code: int = 1
    image: int = 0
    text: int = 0
    pending: int = 0
    unsettled: bool = False
    writer: Mapping[str, Any] | None = None


@final
class MilvusStore:
    """The collections of one memory; see `rarvision.memory.milvus`."""

    def __init__(self, server: Server, name: str, *, lock_timeout_s: float) -> None:
        self.server = server
        self.name = name
        self.entries = {"image": f"{name}_images", "text": f"{name}_texts"}
        self.categories = f"{name}_categories"
        self.settings = Blobs(server, f"{name}_settings")
        self.thumbnails = Blobs(server, f"{name}_thumbnails")
        self._lock_timeout = lock_timeout_s
        self._pinned = threading.local()
        self._turn = threading.RLock()
        self._depth = 0
        self._held: State | None = None
        self._token = ""
        self._unflushed = 0
        self._names: tuple[int, dict[int, str]] = (-1, {})
        self._tables: dict[Modality, tuple[int, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]] = {}
        self._keys: tuple[int, set[bytes]] = (-1, set())
        self._lookups = 0

    @property
    def collections(self) -> list[str]:
        """All of them; that of the settings, which makes them a memory, last."""
        return [*self.entries.values(), self.categories, self.thumbnails.collection, self.settings.collection]

    def make(self, dim: int, index: str, parameters: Mapping[str, Any]) -> None:
        """Make the collections that hold the rows."""
        fields = {**ENTRY_FIELDS, "vector": ("FLOAT_VECTOR", {"dim": dim})}
        for collection in self.entries.values():
            self.server.make(collection, fields, index=index, parameters=parameters)
        named = {"code": ("INT64", {}), "name": ("VARCHAR", {"max_length": MAX_TEXT})}
        self.server.make(self.categories, named)
        self.server.make(self.thumbnails.collection, Blobs.FIELDS)
        self._write(State())

    # State ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """As it is now; within `snapshot`, as it was when that began."""
        pinned: State | None = getattr(self._pinned, "state", None)
        return pinned or self._read()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """This thread sees no additions of others inside."""
        before = getattr(self._pinned, "state", None)
        self._pinned.state = before or self._read()
        try:
            yield
        finally:
            self._pinned.state = before

    def _read(self) -> State:
        found = self.settings.get(["state"]).get("state")
        try:
            return State(**json.loads(found or b""))
        except (ValueError, TypeError) as error:
            raise MemoryCorruptError(
                f"{self.settings.collection} in {self.server.uri}: the memory's state cannot be read: {error!r}"
            ) from error

    def _write(self, state: State) -> None:
        self.settings.put({"state": json.dumps(asdict(state)).encode()})

    # Writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the turn to write; other writers wait."""
        with self._turn:
            self._depth += 1
            try:
                if self._depth == 1:
                    self._take_turn()
                yield
            except BaseException:
                if self._depth == 1:
                    with suppress(MemoryStoreError):
                        self._give_turn_back()
                raise
            else:
                if self._depth == 1:
                    self._give_turn_back()
            finally:
                self._depth -= 1
        if self.server.is_lite and self._depth == 0 and self._unflushed >= _FLUSH_FROM:
            self._unflushed = 0
            for collection in self.entries.values():
                self.server.flush(collection)

    def _take_turn(self) -> None:
        deadline = time.monotonic() + self._lock_timeout
        self._token = uuid.uuid4().hex
        while True:
            with _taking:
                state = self._read()
                if not _is_held(state.writer):
                    mine = replace(state, writer=self._claim())
                    self._write(mine)
                    if self._read() == mine:
                        break
            if time.monotonic() > deadline:
                writer = state.writer or {}
                raise MemoryLockedError(
                    f"{self.name} in {self.server.uri}: process {writer.get('pid')} on {writer.get('host')} is writing "
                    f"to this memory (waited {self._lock_timeout:g} s); try again when it has finished"
                )
            time.sleep(0.05)
        self._held = mine
        self._settle()

    def _claim(self) -> dict[str, Any]:
        return {
            "token": self._token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "until": time.time() + _LEASE_S,
        }

    def _give_turn_back(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            now = self._read()
            if now.writer is not None and now.writer.get("token") == self._token:
                self._write(replace(now, writer=None))

    def _commit(self, **changes: Any) -> State:
        """Publish; refused where somebody else has taken the turn meanwhile."""
        if self._held is None:  # pragma: no cover - every caller holds the turn
            raise MemoryStoreError("nothing can be written outside `writing`")
        now = self._read()
        if now.writer is None or now.writer.get("token") != self._token:
            raise MemoryLockedError(
                f"{self.name} in {self.server.uri}: this process lost its turn to write, because it took longer than "
                f"{_LEASE_S:g} s between two batches and another one began; what was not confirmed is not stored. Run "
                "the same again, in smaller batches"
            )
        self._held = replace(now, **changes, writer=self._claim())
        self._write(self._held)
        return self._held

    def touch(self) -> None:
        """Let the revision grow, for what is kept beside the entries."""
        self._commit(revision=self._read().revision + 1)

    def _settle(self) -> None:
        """Undo what a writer that ended early has left half-done."""
        state = self._held
        if state is None or not (state.pending or state.unsettled):
            return
        leftover = range(state.next_id, max(state.pending, state.next_id))
        for collection in self.entries.values():
            self.server.delete(collection, leftover)
        self.thumbnails.delete([str(entry) for entry in leftover])
        counts = {modality: self.server.count(collection) for modality, collection in self.entries.items()}
        self._commit(pending=0, unsettled=False, next_id=leftover.stop, revision=state.revision + 1, **counts)

    def append(self, entries: Sequence[NewEntry], vectors: Float[np.ndarray, "n dim"]) -> None:
        """Store entries of one modality, all or none."""
        if not entries:
            return
        self._settle()
        state = self._held or self.state
        modality = entries[0].modality
        known = {name: code for code, name in self.names(state).items()}
        fresh = dict.fromkeys(entry.category for entry in entries if entry.category not in known)
        known |= {name: state.next_code + number for number, name in enumerate(fresh)}
        rows = [
            row_of(state.next_id + number, known[entry.category], entry) | {"vector": vectors[number].tolist()}
            for number, entry in enumerate(entries)
        ]
        for name in fresh:
            if len(name.encode()) > MAX_TEXT:
                raise InputError(f"a category's name has {len(name.encode()):,} bytes; Milvus takes {MAX_TEXT:,}")
        end = state.next_id + len(rows)
        self._commit(pending=end)
        self.server.put(self.categories, ({"code": known[name], "name": name} for name in fresh), sizes=row_size)
        self.thumbnails.put(
            {str(row["id"]): e.thumbnail for row, e in zip(rows, entries, strict=True) if e.thumbnail is not None}
        )
        self.server.put(self.entries[modality], rows, sizes=row_size)
        now = self._commit(
            revision=state.revision + 1,
            next_id=end,
            next_code=state.next_code + len(fresh),
            pending=0,
            **{modality: getattr(state, modality) + len(rows)},
        )
        self._unflushed += len(rows)
        self._remember(state.revision, now.revision, modality, rows)

    def _remember(self, before: int, after: int, modality: Modality, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep what is cached true after our own addition."""
        for each, (revision, ids, codes) in list(self._tables.items()):
            if revision == before:
                more = rows if each == modality else []
                self._tables[each] = (
                    after,
                    np.concatenate((ids, np.array([row["id"] for row in more], dtype=np.int64))),
                    np.concatenate((codes, np.array([row["category"] for row in more], dtype=np.int64))),
                )
        revision, keys = self._keys
        if revision == before:
            keys.update(entry_key(row["content"], row["category"], modality) for row in rows)
            self._keys = (after, keys)

    def remove(self, ids: Mapping[Modality, Sequence[int]]) -> int:
        """Delete entries that are there; returns how many."""
        self._settle()
        count = sum(map(len, ids.values()))
        if count:
            state = self._commit(unsettled=True)
            self._delete(ids)
            fewer = {modality: getattr(state, modality) - len(gone) for modality, gone in ids.items()}
            self._commit(unsettled=False, revision=state.revision + 1, **fewer)
        return count

    def _delete(self, ids: Mapping[Modality, Sequence[int]]) -> None:
        for modality, gone in ids.items():
            self.server.delete(self.entries[modality], gone)
            self.thumbnails.delete([str(entry) for entry in gone])

    def rename(self, old: str, new: str) -> int:
        """Give a category another name; returns how many entries it has."""
        self._settle()
        used = self.used()
        names = {name: code for code, name in self.names(self.state).items()}
        code = names.get(old)
        if code is None or code not in used:
            raise OptionError(f"no category {old!r} in this memory")
        if new == old:
            return used[code]
        if names.get(new) in used:
            raise OptionError(
                f"there is a category {new!r} already; merge {old!r} into it instead, or choose another name"
            )
        state = self._commit(unsettled=True)
        if new in names:
            self.server.delete(self.categories, [names[new]])
        self.server.put(self.categories, [{"code": code, "name": new}], sizes=row_size)
        self._commit(unsettled=False, revision=state.revision + 1)
        return used[code]

    def merge(self, names: Sequence[str], into: str) -> int:
        """Make one category of several; returns how many entries changed their category."""
        self._settle()
        used = self.used()
        known = {name: code for code, name in self.names(self.state).items()}
        missing = [name for name in names if known.get(name) not in used]
        if missing or not names:
            raise OptionError(
                f"no category {missing[0]!r} in this memory" if missing else "say which categories to merge"
            )
        state = self._commit(unsettled=True)
        if into not in known:
            known[into] = state.next_code
            self.server.put(self.categories, [{"code": state.next_code, "name": into}], sizes=row_size)
            state = self._commit(next_code=state.next_code + 1)
        target = known[into]
        codes = sorted({known[name] for name in names} - {target})
        moved, counts = 0, {}
        for modality in MODALITIES:
            ids, held = self.table(modality)
            inside = {row["content"] for row in self.rows(modality, ids[held == target], ["content"])}
            dropped = 0
            for part in parts(ids[np.isin(held, codes)].tolist(), 256):
                keep: list[dict[str, Any]] = []
                drop: list[dict[str, Any]] = []
                for row in sorted(self.rows(modality, part, [*ENTRY_FIELDS, "vector"]), key=lambda row: row["id"]):
                    (drop if row["content"] in inside else keep).append(row)
                    inside.add(row["content"])
                self.server.put(
                    self.entries[modality],
                    (row | {"category": target, "terms": list(row["terms"])} for row in keep),
                    sizes=row_size,
                )
                self._delete({modality: [row["id"] for row in drop]})
                self._commit()
                moved, dropped = moved + len(keep), dropped + len(drop)
            counts[modality] = len(ids) - dropped
        self.server.delete(self.categories, codes)
        self._commit(unsettled=False, revision=state.revision + 1, **counts)
        return moved

    # Reading ----------------------------------------------------------------------------------------------------

    def names(self, state: State) -> dict[int, str]:
        """Names by code."""
        if self._names[0] != state.revision:
            found: dict[int, str] = {}
            for part in parts(range(1, state.next_code), IDS_AT_ONCE):
                found |= {row["code"]: row["name"] for row in self.server.get(self.categories, part, ["code", "name"])}
            self._names = (state.revision, dict(sorted(found.items())))
        return self._names[1]

    def used(self, modality: Modality | None = None) -> dict[int, int]:
        """How many entries each category has, by ascending code; those with none are left out."""
        wanted = MODALITIES if modality is None else (modality,)
        codes = np.concatenate([self.table(each)[1] for each in wanted])
        found, counts = np.unique(codes, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))

    def table(self, modality: Modality) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Ids, ascending, and category codes; fetched once for each revision."""
        state = self.state
        kept = self._tables.get(modality)
        if kept is None or kept[0] != state.revision:
            rows: list[tuple[int, int]] = []
            if getattr(state, modality):
                for part in parts(range(1, state.next_id), IDS_AT_ONCE):
                    found = self.server.get(self.entries[modality], part, ["id", "category"])
                    rows += sorted((row["id"], row["category"]) for row in found)
            array = np.array(rows, dtype=np.int64).reshape(-1, 2)
            kept = (state.revision, array[:, 0], array[:, 1])
            self._tables[modality] = kept
        return kept[1], kept[2]

    def rows(
        self, modality: Modality, ids: Sequence[int] | Int[np.ndarray, " n"], fields: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Those of the entries that are there, in any order; ids must be below the state's ``next_id``."""
        for part in parts([int(each) for each in ids], 512):
            yield from self.server.get(self.entries[modality], part, ["id", *fields])

    def matching(self, modality: Modality, condition: str) -> Int[np.ndarray, " n"]:
        """Ids, ascending, of the entries that meet an expression (see `condition_of`)."""
        state = self.state
        if not condition:
            return self.table(modality)[0]
        if not getattr(state, modality):
            return np.empty(0, dtype=np.int64)
        collection = self.entries[modality]
        found = self.server.query(collection, condition, ["id"])
        if len(found) >= MAX_RESULTS:
            found = [
                row
                for start in range(1, state.next_id, MAX_RESULTS)
                for row in self.server.query(
                    collection, f"({condition}) and id >= {start} and id < {start + MAX_RESULTS}", ["id"]
                )
            ]
        return np.array(sorted(row["id"] for row in found if row["id"] < state.next_id), dtype=np.int64)

    def contains(self, content: bytes, category: str, modality: Modality) -> bool:
        """Whether there is such an entry.

        A few are looked up one by one; where more are asked for, the keys of all entries are fetched once (about 0.1 KB
        of memory each).
        """
        state = self._held or self.state
        code = {name: code for code, name in self.names(state).items()}.get(category)
        if code is None or not getattr(state, modality):
            return False
        self._lookups += 1
        if self._keys[0] != state.revision and not self.server.is_lite and self._lookups <= _KEYS_AT_ONCE:
            condition = f'content == "{content.hex()}" and category == {code} and id < {state.next_id}'
            return bool(self.server.query(self.entries[modality], condition, ["id"], limit=1))
        if self._keys[0] != state.revision:
            keys = {
                entry_key(row["content"], row["category"], each)
                for each in MODALITIES
                for row in self.rows(each, self.table(each)[0], ["content", "category"])
            }
            self._keys = (state.revision, keys)
        return entry_key(content.hex(), code, modality) in self._keys[1]


def _is_held(writer: Mapping[str, Any] | None) -> bool:
    """Whether its turn lasts: until its time is up; for a process of this machine, as long as that lives."""
    if writer is None:
        return False
    until = float(writer.get("until", 0))
    if writer.get("host") == socket.gethostname() and writer.get("pid") != os.getpid():
        try:
            os.kill(int(writer["pid"]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it lives, and is another user's
            pass
        until += _ALIVE_S
    return until > time.time()
