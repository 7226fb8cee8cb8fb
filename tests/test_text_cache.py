"""The cache of text vectors: exact, shared by processes, and never in the way."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from rarvision.encoders import TextCache, cache_folder
from rarvision.encoders import text_cache as module
from rarvision.errors import OptionError
from rarvision.memory import LocalMemory
from rarvision.testing import FakeEncoder


class Counting(FakeEncoder.__bases__[0]):
    """A fake that counts what it encodes."""

    def __init__(self, *, seed=0, dim=32):
        self._inner = FakeEncoder(seed=seed, dim=dim)
        self.seen = []

    name = property(lambda self: self._inner.name)
    dim = property(lambda self: self._inner.dim)
    fingerprint = property(lambda self: self._inner.fingerprint)

    def _encode_images(self, images):
        return self._inner._encode_images(images)

    def _encode_texts(self, texts):
        self.seen += texts
        return self._inner._encode_texts(texts)


@pytest.fixture(autouse=True)
def _warn_again(monkeypatch):
    monkeypatch.setattr(module, "_told", set())


def encode(folder, texts, encoder=None, **options):
    encoder = encoder or Counting()
    with TextCache(encoder, folder) as cache:
        return cache.encode_texts(texts, **options), encoder.seen, cache


def only_file(folder):
    (file,) = (folder / "texts").glob("*.sqlite")
    return file


def test_the_second_time_nothing_is_encoded_and_nothing_changes(tmp_path):
    texts = ["red owl", "blue", "größer 鳥", "", "red owl", "\ud800 odd"]
    first, seen, cache = encode(tmp_path, texts)
    assert len(seen) == 5
    assert (cache.encoded, cache.found) == (5, 1)
    np.testing.assert_array_equal(first, FakeEncoder().encode_texts(texts))
    again, seen, cache = encode(tmp_path, texts[::-1])
    assert seen == []
    assert (cache.encoded, cache.found) == (0, 6)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, first[::-1])
    more, seen, _ = encode(tmp_path, ["blue", "new"])
    assert seen == ["new"]
    np.testing.assert_array_equal(more[0], first[1])
    assert encode(tmp_path, [])[0].shape == (0, 32)


def test_what_a_vector_belongs_to(tmp_path):
    encode(tmp_path, ["red"])
    assert encode(tmp_path, ["red"], templates=["a {}"])[1] == ["a red"]
    several = ["a {}", "the {}"]
    vectors, seen, _ = encode(tmp_path, ["red"], templates=several)
    assert seen == ["a red", "the red"]
    np.testing.assert_array_equal(encode(tmp_path, ["red"], templates=several)[0], vectors)
    assert encode(tmp_path, ["red"], templates=several[::-1])[1] == ["the red", "a red"]
    assert encode(tmp_path, ["red"], Counting(seed=1))[1] == ["red"]
    half = Counting()
    type(half).precision = property(lambda _: "bfloat16")
    try:
        assert encode(tmp_path, ["red"], half)[1] == ["red"]
    finally:
        del type(half).precision
    assert len(list((tmp_path / "texts").iterdir())) == 3
    with pytest.raises(OptionError, match=r"field \{\}"):
        encode(tmp_path, ["red"], templates=["a photo"])


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("RARVISION_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "rarvision"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "rarvision"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "rarvision"
    monkeypatch.setenv("RARVISION_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    for off in ("off", "0", " OFF "):
        monkeypatch.setenv("RARVISION_CACHE", off)
        assert cache_folder() is None
        assert encode(True, ["red"])[1] == ["red"]
        assert TextCache(FakeEncoder()).path is None


def test_memories_use_it_unless_told_not_to(tmp_path, monkeypatch):
    monkeypatch.setenv("RARVISION_CACHE", str(tmp_path / "cache"))
    counts = []
    for number, cache in enumerate((True, True, False, tmp_path / "other")):
        encoder = Counting()
        with LocalMemory.create(tmp_path / f"m{number}", encoder=encoder) as memory:
            encoder.seen.clear()
            assert memory.add_texts(["red", "blue"], cache=cache).added == 2
            vectors = memory.vectors(memory.table("text")[0])
            np.testing.assert_array_equal(vectors, FakeEncoder().encode_texts(["red", "blue"]))
        counts.append(len(encoder.seen))
    assert counts == [2, 0, 2, 2]


def _fill(folder, start, rounds):
    with TextCache(FakeEncoder(), folder) as cache:
        for i in range(rounds):
            cache.encode_texts([f"name {j}" for j in range(start + 5 * i, start + 5 * i + 20)])


def test_two_processes_at_once(tmp_path, caplog):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, start, 12)) for start in (0, 20)]
    for worker in workers:
        worker.start()
    _fill(tmp_path, 10, 12)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    vectors, seen, _ = encode(tmp_path, [f"name {i}" for i in range(90)])
    assert seen == []
    np.testing.assert_array_equal(vectors, FakeEncoder().encode_texts([f"name {i}" for i in range(90)]))
    assert not caplog.records


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("damage", ["junk", "cut", "empty"])
def test_a_damaged_file_is_begun_anew(tmp_path, caplog, damage):
    texts = [f"name {i}" for i in range(200)]
    expected, *_ = encode(tmp_path, texts)
    file = only_file(tmp_path)
    whole = file.read_bytes()
    file.write_bytes({"junk": b"no database" * 2000, "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    np.testing.assert_array_equal(encode(tmp_path, texts)[0], expected)
    np.testing.assert_array_equal(encode(tmp_path, texts)[0], expected)
    assert encode(tmp_path, texts)[1] == [], "healed"
    told = warnings_of(caplog)
    assert len(told) == (damage != "empty"), told
    assert all("RARVISION_CACHE" in message for message in told)


def test_a_flipped_bit_in_a_vector_is_found(tmp_path, caplog):
    expected, *_ = encode(tmp_path, ["red", "blue"])
    with sqlite3.connect(only_file(tmp_path)) as database:
        key, vector = database.execute("SELECT key, vector FROM texts LIMIT 1").fetchone()
        database.execute("UPDATE texts SET vector = ? WHERE key = ?", (bytes([vector[0] ^ 1]) + vector[1:], key))
    database.close()
    vectors, seen, _ = encode(tmp_path, ["red", "blue"])
    np.testing.assert_array_equal(vectors, expected)
    assert len(seen) == 1
    assert encode(tmp_path, ["red", "blue"])[1] == []
    assert len(warnings_of(caplog)) == 1


def test_another_encoders_file_is_not_believed(tmp_path):
    encode(tmp_path, ["red"])
    file = only_file(tmp_path)
    other = TextCache(Counting(seed=1), tmp_path)
    os.replace(file, other.path)  # noqa: PTH105
    vectors, seen, _ = encode(tmp_path, ["red"], Counting(seed=1))
    assert seen == ["red"]
    np.testing.assert_array_equal(vectors, FakeEncoder(seed=1).encode_texts(["red"]))


def test_a_place_that_cannot_be_written_costs_nothing_but_a_warning(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for _ in range(2):
        assert encode(blocked, ["red"])[1] == ["red"]
    assert len(warnings_of(caplog)) == 1


def test_a_file_that_is_read_only_is_still_read(tmp_path, caplog, monkeypatch):
    encode(tmp_path, ["red"])
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **o: connect(f"file:{path}?mode=ro", uri=True, **o))
    vectors, seen, _ = encode(tmp_path, ["red", "blue"])
    assert seen == ["blue"]
    np.testing.assert_array_equal(vectors, FakeEncoder().encode_texts(["red", "blue"]))
    assert "readonly" in warnings_of(caplog)[0]
    monkeypatch.undo()
    assert encode(tmp_path, ["red"])[1] == [], "not deleted"


def test_one_who_holds_the_lock_does_not_stop_us(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    encode(tmp_path, ["red"])
    other = sqlite3.connect(only_file(tmp_path), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert encode(tmp_path, ["red", "blue"])[1] == ["red", "blue"]
    other.execute("ROLLBACK")
    other.close()
    assert "locked" in warnings_of(caplog)[0]
    assert encode(tmp_path, ["red"])[1] == []


def test_it_does_not_grow_without_end(tmp_path):
    row = 4 * 32 + 96
    with TextCache(FakeEncoder(), tmp_path, max_bytes=100 * row) as cache:
        for start in range(0, 400, 20):
            cache.encode_texts([f"name {i}" for i in range(start, start + 20)])
    with sqlite3.connect(only_file(tmp_path)) as database:
        assert 60 <= database.execute("SELECT COUNT(*) FROM texts").fetchone()[0] <= 100
    database.close()
    assert encode(tmp_path, ["name 399"])[1] == [], "the newest stay"
    with pytest.raises(OptionError, match="folder=False"):
        TextCache(FakeEncoder(), tmp_path, max_bytes=0)


@pytest.mark.data
def test_the_names_of_a_large_vocabulary_are_encoded_once(data_dir, tmp_path):
    (file,) = Path(data_dir, "v3det").glob("*.txt")
    names = list(dict.fromkeys(file.read_text(encoding="utf-8").splitlines()))
    assert len(names) > 13_000
    assert len(encode(tmp_path, names)[1]) == len(names)
    assert encode(tmp_path, names)[1] == []
    assert only_file(tmp_path).stat().st_size < len(names) * (4 * 32 + 200)
