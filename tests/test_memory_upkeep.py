"""Verifying, compacting, choosing an index, migrating, repairing."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarvision.errors import MemoryLockedError, MemoryStoreError, OptionError
from rarvision.memory import LocalMemory
from rarvision.memory.schema import TABLES, row_checksum
from upkeep_world import ENCODER, filled, new_entries, state, unit


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr("rarvision.memory.writing._SEAL", 8)
    monkeypatch.setattr("rarvision.memory.writing._MERGE", 3)


@pytest.fixture
def memory(tmp_path):
    with LocalMemory.create(tmp_path / "memory", encoder=ENCODER) as made:
        yield made


# Verifying ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_steps")
def test_a_sound_memory_has_no_problems_at_any_stage(memory):
    assert memory.verify() == ()
    filled(memory)
    done = []
    assert memory.verify(progress=done.append) == ()
    assert done == sorted(done)
    assert done[-1] > 0
    memory.compact()
    assert memory.verify() == ()


@pytest.mark.usefixtures("small_steps")
def test_a_flipped_bit_anywhere_that_matters_is_found_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr("rarvision.memory.local_settings._INDEX_FROM", 20)
    with LocalMemory.create(tmp_path / "sound", encoder=ENCODER, index="hnsw") as memory:
        filled(memory)
        memory.append(new_entries(range(100, 103)), unit(3, seed=4))
        assert memory.info().details["indexed"]
        before = state(memory)
    generator = random.Random(3)
    kinds = set()
    for path in sorted((tmp_path / "sound" / "segments").iterdir()):
        for _ in range(4):
            damaged = tmp_path / "damaged"
            shutil.copytree(tmp_path / "sound", damaged)
            flip(damaged / "segments" / path.name, generator)
            with LocalMemory.open(damaged) as memory:
                problems = memory.verify()
            assert any(path.name in problem.where for problem in problems), path.name
            shutil.rmtree(damaged)
        kinds.add(path.suffixes[0])
    assert kinds == {".npy", ".rows", ".hnsw"}
    found = 0
    for _ in range(60):
        shutil.copytree(tmp_path / "sound", damaged)
        flip(damaged / "memory.sqlite", generator)
        try:
            with LocalMemory.open(damaged) as memory:
                problems = memory.verify()
                found += bool(problems)
                assert problems or state(memory) == before, "what is not found must not matter"
        except MemoryStoreError:
            found += 1
        shutil.rmtree(damaged)
    assert found > 8, "the rest fell on pages without content"


def flip(path, generator):
    data = bytearray(path.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("table", ["entries", "categories", "thumbnails", "tail", "meta", "segments", "removed"])
@pytest.mark.usefixtures("small_steps")
def test_a_row_that_was_tampered_with_is_named(memory, table):
    filled(memory)
    memory.append(new_entries(range(100, 103)), unit(3, seed=4))
    memory.close()
    files = {path.name for path in (memory.path / "segments").iterdir()}
    database = sqlite3.connect(memory.path / "memory.sqlite")
    database.create_function("row_checksum", -1, lambda *_: 0, deterministic=True)  # as if written by accident
    change = {
        "entries": "source = 'other.png'",
        "categories": "name = 'other'",
        "thumbnails": "jpeg = x'00'",
        "tail": "vector = x'00'",
        "meta": "value = 7",
        "segments": "file = 'other.npy'",
        "removed": "row = row + 0",
    }[table]
    database.execute(f"UPDATE {table} SET {change} WHERE rowid = (SELECT MAX(rowid) FROM {table})")
    database.commit()
    database.close()
    with LocalMemory.open(memory.path) as again:
        assert any(f"table {table}, row" in problem.where for problem in again.verify())
        if table == "segments":  # the file that nobody seems to mention may be one that is needed
            assert any("kept" in repair for repair in again.repairs)
    assert {path.name for path in (memory.path / "segments").iterdir()} == files


def test_every_table_is_covered_by_checksums(memory):
    database = sqlite3.connect(memory.path / "memory.sqlite")
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert {name for name in tables if not name.startswith("sqlite_")} == set(TABLES)
    for table, columns in TABLES.items():
        present = [row[1] for row in database.execute(f"PRAGMA table_xinfo({table})")]
        assert present == [*columns, "checksum"]


@given(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(), st.binary()), min_size=1)
)
def test_a_checksum_tells_values_and_types_apart(values):
    checksum = row_checksum(*values)
    assert row_checksum(*values) == checksum
    assert row_checksum(*values, None) != checksum
    assert row_checksum(1) != row_checksum("1") != row_checksum(b"1") != row_checksum(1.0)


# Compacting -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_steps")
def test_compacting_keeps_everything_and_leaves_one_segment_of_each_modality(memory):
    filled(memory)
    before, queries = state(memory), unit(5, seed=9)
    hits = memory.nearest(queries, 7)
    done = []
    report = memory.compact(progress=done.append)
    assert (report.segments_after, report.entries, report.index) == (2, 47, "exact")
    assert report.segments_before > 2
    assert done[-1] <= 47
    assert state(memory) == before
    again = memory.nearest(queries, 7)
    np.testing.assert_array_equal(again.ids, hits.ids)
    np.testing.assert_allclose(again.similarities, hits.similarities, atol=1e-6)
    assert memory.info().details["removed"] == 0
    files = {path.name for path in (memory.path / "segments").iterdir()}
    assert len(files) == 4
    memory.compact()
    assert {path.name for path in (memory.path / "segments").iterdir()} == files, "nothing to do, nothing done"


READING = """
import sys
import numpy as np
from rarvision.memory import LocalMemory
queries = np.load(sys.argv[2])
with LocalMemory.open(sys.argv[1]) as memory, memory.snapshot():
    first = [memory.nearest(queries, 5).ids.tolist(), [e.source for e in memory.entries()], len(memory)]
    print("ready", flush=True)
    sys.stdin.readline()
    second = [memory.nearest(queries, 5).ids.tolist(), [e.source for e in memory.entries()], len(memory)]
    assert first == second, "the state changed within a snapshot"
    assert np.isfinite(memory.vectors([e.id for e in memory.entries()])).all()
print("same", len(LocalMemory.open(sys.argv[1])), flush=True)
"""


@pytest.mark.usefixtures("small_steps")
def test_a_reader_keeps_its_snapshot_while_a_writer_adds_removes_and_compacts(memory, tmp_path):
    filled(memory)
    np.save(tmp_path / "queries.npy", unit(3, seed=5))
    command = [sys.executable, "-c", READING, str(memory.path), str(tmp_path / "queries.npy")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "ready\n"
        memory.append(new_entries(range(200, 230)), unit(30, seed=6))
        memory.remove(category="class 0")
        memory.compact()
        memory.append(new_entries(range(300, 301)), unit(1, seed=7))
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == f"same {len(memory)}\n"
        assert reader.wait() == 0


def test_nothing_is_written_within_a_snapshot(memory):
    with memory.snapshot(), pytest.raises(MemoryStoreError, match="leave the snapshot"):
        memory.append(new_entries(range(2)), unit(2))
    assert memory.append(new_entries(range(2)), unit(2)).added == 2


# Indexes --------------------------------------------------------------------------------------------------------


def test_an_index_is_chosen_tuned_and_rebuilt(tmp_path, monkeypatch):
    monkeypatch.setattr("rarvision.index.spec.EXACT_UP_TO", 500)
    vectors, queries = unit(3_000), unit(40, seed=1)
    with LocalMemory.create(tmp_path / "memory", encoder=ENCODER) as memory:
        memory.append(new_entries(range(3_000)), vectors)
        assert memory.info().details["indexed"] == 3_000
        found = memory.tune_index(recall=0.9, k=3)
        assert found.chosen.recall >= 0.9
        assert found.rows == 3_000
        files = {path.name for path in (memory.path / "segments").iterdir()}
        memory.set_index("hnsw", {"m": 8})
        assert {path.name for path in (memory.path / "segments").iterdir()} == files, "what is sealed stays"
        report = memory.compact()
        assert "3,000 of 3,000" in report.index
        memory.append(new_entries(range(3_000, 3_040)), unit(40, seed=2))
        assert memory.info().details["indexed"] == 3_000, "few new ones are searched exactly"
        assert memory.verify() == ()
        hits = memory.nearest(queries, 5)
    with LocalMemory.open(tmp_path / "memory") as memory:
        assert memory.info().index.startswith("hnsw(m=8")
        np.testing.assert_array_equal(memory.nearest(queries, 5).ids, hits.ids)
        memory.set_index("exact")
        memory.compact()
        assert memory.info().details["indexed"] == 0
        exact = memory.nearest(queries, 5)
        same = [len(set(a) & set(b)) for a, b in zip(exact.ids.tolist(), hits.ids.tolist(), strict=True)]
        assert np.mean(same) / 5 > 0.9
        memory.append(new_entries(range(5_000, 5_005)), unit(5, seed=3))
        for wrong in ("annoy", "PCA999x"):
            with pytest.raises(OptionError):
                memory.set_index(wrong)
        with pytest.raises(OptionError, match="auto"):
            memory.set_index("auto", {"m": 3})


# Migrating ------------------------------------------------------------------------------------------------------

SCHEMA_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value);
CREATE TABLE categories (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE segments (id INTEGER PRIMARY KEY AUTOINCREMENT, modality TEXT NOT NULL, file TEXT NOT NULL UNIQUE,
    sha256 TEXT NOT NULL, rows INTEGER NOT NULL, live INTEGER NOT NULL, index_kind TEXT, index_file TEXT,
    index_sha256 TEXT);
CREATE TABLE entries (id INTEGER PRIMARY KEY AUTOINCREMENT, category INTEGER NOT NULL REFERENCES categories (id),
    modality TEXT NOT NULL, source TEXT NOT NULL, content BLOB NOT NULL, metadata TEXT NOT NULL,
    segment INTEGER NOT NULL REFERENCES segments (id), row INTEGER NOT NULL, UNIQUE (content, category, modality));
CREATE INDEX entries_by_segment ON entries (segment, row);
CREATE INDEX entries_by_category ON entries (category, modality);
CREATE INDEX entries_by_source ON entries (source);
CREATE TABLE thumbnails (content BLOB PRIMARY KEY, jpeg BLOB NOT NULL);
PRAGMA user_version = 1;
"""


@pytest.fixture
def old_memory(memory):
    """The same folder as the first version wrote it."""
    filled(memory)
    memory.compact()
    memory.remove(ids=[4])
    expected = state(memory)
    memory.close()
    path = memory.path / "memory.sqlite"
    new = sqlite3.connect(path)
    tables = {
        "meta": "key, value",
        "categories": "id, name",
        "segments": "id, modality, file, sha256, rows, live, NULL, index_file, index_sha256",
        "entries": "id, category, modality, source, content, metadata, segment, row",
        "thumbnails": "content, jpeg",
    }
    rows = {table: new.execute(f"SELECT {columns} FROM {table}").fetchall() for table, columns in tables.items()}
    rows["meta"].append(("index_parameters", "{}"))
    rows["categories"] = [row for row in rows["categories"] if row[1] is not None]
    new.close()
    path.unlink()
    for file in (memory.path / "segments").glob("*.rows.npy"):
        file.unlink()
    old = sqlite3.connect(path)
    old.execute("PRAGMA journal_mode = WAL")
    old.executescript(SCHEMA_1)
    for table, values in rows.items():
        old.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values[0]))})", values)
    old.commit()
    old.close()
    return memory.path, expected


def test_a_memory_of_the_first_version_is_brought_up_to_date(old_memory):
    path, expected = old_memory
    with LocalMemory.open(path) as memory:
        assert any("schema 1" in repair for repair in memory.repairs)
        assert state(memory) == expected
        assert memory.verify() == ()
        last = max(entry.id for entry in memory.entries())
        memory.append(new_entries(range(500, 501)), unit(1, seed=4))
        assert max(entry.id for entry in memory.entries()) > last
    with LocalMemory.open(path) as memory:
        assert memory.repairs == ()


def test_a_migration_that_fails_leaves_the_old_memory_whole(old_memory, monkeypatch):
    path, expected = old_memory
    with monkeypatch.context() as patch:
        patch.setattr("rarvision.memory.migrating.SCHEMA_VERSION", "not a number")
        with pytest.raises(MemoryStoreError):
            LocalMemory.open(path)
    with LocalMemory.open(path) as memory:
        assert state(memory) == expected


# Repairing ------------------------------------------------------------------------------------------------------


def test_opening_says_what_an_interrupted_writer_left(memory, caplog):
    filled(memory)
    memory.close()
    (memory.path / "segments" / ".image-0.npy").write_bytes(b"half")
    (memory.path / "segments" / "image-1.npy").write_bytes(b"whole, but not told of")
    (memory.path / "writer.json").write_text('{"pid": 123456, "since": "2026-01-01T00:00:00+00:00"}')
    with LocalMemory.open(memory.path) as again:
        assert any("process 123456" in repair for repair in again.repairs)
        assert any("deleted 2 files (26 bytes)" in repair for repair in again.repairs)
        assert str(memory.path) in caplog.text
        assert again.verify() == ()
    with LocalMemory.open(memory.path) as again:
        assert again.repairs == ()


def test_what_another_process_is_writing_is_not_repaired(memory):
    memory.append(new_entries(range(3)), unit(3))
    with memory._writing():
        unfinished = memory.path / "segments" / ".image-0.npy"
        unfinished.write_bytes(b"half")
        with LocalMemory.open(memory.path) as other:
            assert other.repairs == ()
            assert len(other) == 3
        assert unfinished.exists()
        with LocalMemory.open(memory.path, lock_timeout_s=0.1) as other, pytest.raises(MemoryLockedError):
            other.compact()
