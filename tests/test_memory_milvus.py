"""The memory in Milvus, on Milvus Lite: contract, half-done writers, turns, limits, migration, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from needs import need
from rarvision.errors import (
    EncoderMismatchError,
    InputError,
    MemoryCorruptError,
    MemoryExistsError,
    MemoryLockedError,
    MemoryNotFoundError,
    MemoryStoreError,
    MemoryUnavailableError,
    OptionError,
)
from rarvision.memory import LocalMemory, MilvusMemory, NewEntry, Where, milvus_search, milvus_store, open_memory
from rarvision.testing import FakeEncoder, check_memory
from rarvision.types import Sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # grpc's threads at the end
]

ENCODER = FakeEncoder(dim=16)


@pytest.fixture(autouse=True)
def _client():
    need("pymilvus", "milvus_lite", group="scale")


@pytest.fixture
def memory(tmp_path):
    with MilvusMemory.create(tmp_path / "pets.db", "pets", encoder=ENCODER) as made:
        yield made


def samples(numbers):
    pictures = {n: np.random.default_rng(n).integers(0, 256, (4, 5, 3), dtype=np.uint8) for n in numbers}
    return [
        Sample(source=f"{n}.png", image=Image.fromarray(pictures[n]), label=f"class {n % 3}", metadata={"n": n})
        for n in numbers
    ]


def entries(count, start=0):
    return [
        NewEntry(
            category=f"c{n % 5}",
            modality="image",
            source=f"s{n}",
            content=str(n).encode(),
            metadata={"even": not n % 2},
        )
        for n in range(start, start + count)
    ]


def unit(rows, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_contract(tmp_path, index):
    made = []

    def make(encoder):
        made.append(tmp_path / f"{len(made)}.db")
        return MilvusMemory.create(made[-1], encoder=encoder, index=index)

    def reopen(memory):
        memory.close()
        return MilvusMemory.open(made[0])

    check_memory(make, reopen)


def test_what_it_says_of_itself(memory, tmp_path):
    memory.add(samples(range(3)))
    info = memory.info()
    assert (info.kind, info.images, info.categories, info.thumbnails, info.index) == ("milvus-lite", 3, 3, 3, "auto")
    assert info.location.endswith("pets.db#pets")
    assert info.bytes > 0
    assert info.details["index_type"] == "FLAT"
    json.dumps(info.to_dict())
    with MilvusMemory.create(tmp_path / "pets.db", "more", encoder=ENCODER) as second:  # two in one database
        assert len(second) == 0
    assert len(memory) == 3


def test_a_writer_that_dies_midway_leaves_nothing_visible(memory, tmp_path, monkeypatch):
    memory.append(entries(4), unit(4))
    put = memory._store.server.put

    def die(collection, rows, *, sizes):
        put(collection, rows, sizes=sizes)
        if collection.endswith("_images"):
            raise KeyboardInterrupt

    monkeypatch.setattr(memory._store.server, "put", die)
    with pytest.raises(KeyboardInterrupt):
        memory.append(entries(6, start=4), unit(6, seed=1))
    monkeypatch.undo()
    with MilvusMemory.open(tmp_path / "pets.db", "pets") as reader:
        assert reader._store.server.count("pets_images") == 10, "the rows are there"
        for each in (memory, reader):
            assert len(each) == 4
            assert {entry.source for entry in each.entries()} == {"s0", "s1", "s2", "s3"}
            assert each.nearest(unit(1, seed=1), 10).ids.max() == 4
            assert len(each.search(unit(6, seed=1), 10, where=Where(categories=["c0", "c4"]))[0]) == 1
            with pytest.raises(OptionError, match="no entry with the id 5"):
                each.vectors([5])
            with pytest.raises(OptionError, match="no entry with the id 5"):
                list(each.records([5]))
    assert memory.append(entries(6, start=4), unit(6, seed=1)).added == 6
    assert [entry.id for entry in memory.entries()] == [1, 2, 3, 4, *range(11, 17)], "ids are never used twice"
    assert memory._store.server.count("pets_images") == 10


def test_counts_are_right_after_a_removal_that_stopped(memory, monkeypatch):
    memory.append(entries(6), unit(6))
    revision = memory.revision
    delete = memory._store.server.delete

    def die(collection, keys):
        delete(collection, keys)
        raise KeyboardInterrupt

    monkeypatch.setattr(memory._store.server, "delete", die)
    with pytest.raises(KeyboardInterrupt):
        memory.remove(category="c0")
    monkeypatch.undo()
    memory.append(entries(1, start=50), unit(1))
    assert len(memory) == len(list(memory.entries())) == 5
    assert memory.revision > revision


def test_writers_take_turns(memory, tmp_path):
    memory.append(entries(2), unit(2))
    store = memory._store
    with MilvusMemory.open(tmp_path / "pets.db", "pets", lock_timeout_s=0.2) as other:
        with memory._writing():
            with pytest.raises(MemoryLockedError, match="is writing"):
                other.append(entries(2, start=2), unit(2))
            assert len(other) == 2
        assert other.append(entries(2, start=2), unit(2)).added == 2
        gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        dead = {**(store._claim()), "pid": int(gone.stdout), "token": "x"}
        store._write(replace(store._read(), writer=dead))
        assert other.append(entries(2, start=4), unit(2)).added == 2, "a writer that is dead holds no turn"
        elsewhere = {**store._claim(), "host": "elsewhere", "token": "x"}
        store._write(replace(store._read(), writer=elsewhere))
        with pytest.raises(MemoryLockedError, match="on elsewhere"):
            other.append(entries(2, start=6), unit(2))
        store._write(replace(store._read(), writer={**elsewhere, "until": 0}))
        assert other.append(entries(2, start=6), unit(2)).added == 2
    assert len(memory) == 8


def test_who_lost_the_turn_stores_nothing(memory):
    store = memory._store
    with memory._writing():
        store._write(replace(store._read(), writer={**store._claim(), "token": "another"}))
        with pytest.raises(MemoryLockedError, match="lost its turn"):
            memory._append(entries(2), unit(2))
    assert len(memory) == 0
    assert store._read().writer["token"] == "another"


def test_a_snapshot_does_not_see_what_others_add(memory, tmp_path):
    memory.append(entries(3), unit(3))
    with MilvusMemory.open(tmp_path / "pets.db", "pets") as other:
        with other.snapshot():
            memory.append(entries(3, start=3), unit(3, seed=1))
            assert len(other) == len(list(other.entries())) == 3
            assert (other.nearest(unit(3, seed=1), 10).ids <= 3).all()
            assert len(other.table("image")[0]) == 3
        assert len(other) == 6


def test_milvus_limits_do_not_show(memory, monkeypatch):
    memory.append(entries(60), unit(60))
    queries = unit(3, seed=5)
    scores = np.sort(queries @ memory.vectors(range(1, 61)).T, axis=1)[:, ::-1]
    monkeypatch.setattr(milvus_store, "MAX_RESULTS", 10)
    monkeypatch.setattr(milvus_search, "MAX_RESULTS", 10)
    monkeypatch.setattr(milvus_search, "_SCAN", 7)
    np.testing.assert_allclose(memory.nearest(queries, 50).similarities, scores[:, :50], atol=1e-6)
    even = [n for n in range(60) if n % 2 == 0]
    assert [e.source for e in memory.entries(metadata={"even": True})] == [f"s{n}" for n in even]
    found = memory.search(queries, 40, where=Where(metadata={"even": True}))
    assert [len(row) for row in found] == [30] * 3
    assert memory.remove(metadata={"even": True}) == 30


def test_large_values(memory):
    picture = np.random.default_rng(0).bytes(200_000)
    big = NewEntry(category="c", modality="image", source="s", content=b"1", thumbnail=picture)
    memory.append([big], unit(1))
    assert memory.thumbnail(1) == picture
    assert next(memory.records([1])).thumbnail == picture
    for wrong, message in (
        (replace(big, content=b"2", source="x" * 70_000), "its source has 70,000 bytes"),
        (replace(big, content=b"2", metadata={"x": "y" * 70_000}), "its metadata has"),
        (replace(big, content=b"2", metadata={str(n): 0 for n in range(5_000)}), "5000 metadata values"),
        (replace(big, content=b"2", category="x" * 70_000), "a category's name has 70,000 bytes"),
        (replace(big, content=b"2", metadata={"x": {1}}), "JSON values only"),
    ):
        with pytest.raises(InputError, match=message):
            memory.append([wrong], unit(1))
    assert memory.remove(ids=[1]) == 1
    assert memory.info().thumbnails == 0


def test_migration_both_ways(run, memory_folder, tmp_path):
    there = f"milvus:{tmp_path}/pets.db#pets"
    result = run("memory", "migrate", memory_folder, there, "--json")
    assert json.loads(result.stdout) == {"added": 20, "skipped": 0, "entries": 20}
    assert json.loads(run("memory", "migrate", memory_folder, there, "--json").stdout)["skipped"] == 20
    back = tmp_path / "back.memory"
    assert "copied 20 entries" in run("memory", "migrate", there, back).stdout
    with LocalMemory.open(memory_folder) as old, LocalMemory.open(back) as new:
        assert old.content_hash == new.content_hash
        assert [old.thumbnail(n) for n in range(1, 21)] == [new.thumbnail(n) for n in range(1, 21)]
        assert old.info().metadata == new.info().metadata
        assert list(old.records(range(1, 21))) == list(new.records(range(1, 21)))


def test_migration_goes_on_where_it_stopped(memory, tmp_path, monkeypatch):
    monkeypatch.setattr("rarvision.memory.transfer._AT_ONCE", 4)
    with LocalMemory.create(tmp_path / "m", encoder=ENCODER) as local:
        local.append(entries(10), unit(10))

        def stop(done):
            if done >= 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            local.copy_to(memory, progress=stop)
        assert len(memory) == 8
        report = local.copy_to(memory)
        assert (report.added, report.skipped) == (2, 8)
        assert [e.source for e in memory.entries()] == [f"s{n}" for n in range(10)]


@pytest.fixture
def memory_folder(run, tree, tmp_path):
    run("memory", "create", tmp_path / "colours.memory", tree, "--with-names", "--quiet")
    return tmp_path / "colours.memory"


def test_commands_take_an_address(run, tree, photos, tmp_path):
    there = f"milvus:{tmp_path}/new/pets.db"
    assert json.loads(run("memory", "create", there, tree, "--json").stdout)["entries"] == 15
    assert json.loads(run("memory", "add", there, tree, "--json").stdout)["skipped"] == 15
    assert json.loads(run("memory", "info", there, "--json").stdout)["kind"] == "milvus-lite"
    found = run("memory", "search", there, photos / "red.png", "--json").stdout
    assert json.loads(found)["neighbours"][0]["category"] == "red"
    answers = [json.loads(line) for line in run("recognize", photos, "--memory", there, "--json").stdout.splitlines()]
    assert sorted(answer["label"] for answer in answers) == ["blue", "green", "red"]
    assert json.loads(run("memory", "evaluate", there, "--json").stdout)["top1"] == 1.0
    assert json.loads(run("evaluate", tree, "--memory", there, "--json").stdout.splitlines()[-1])
    assert json.loads(run("memory", "remove", there, "--category", "red", "--json").stdout)["removed"] == 3
    assert "is there already" in run("memory", "create", there, tree, code=3).stderr


# Bad input -------------------------------------------------------------------------------------------------------


def test_no_memory_there(memory, tmp_path):
    with pytest.raises(MemoryNotFoundError, match="no memory 'cats'"):
        MilvusMemory.open(tmp_path / "pets.db", "cats")
    with pytest.raises(MemoryNotFoundError, match="no Milvus Lite database"):
        MilvusMemory.open(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(MemoryExistsError, match="'pets_settings' is there already"):
        MilvusMemory.create(tmp_path / "pets.db", "pets", encoder=ENCODER)


def test_somebody_else_s_collection_is_left_alone(memory, tmp_path):
    memory._store.server.make("cats_images", {"id": ("INT64", {})})
    with pytest.raises(MemoryExistsError, match="'cats_images' is there already"):
        MilvusMemory.create(tmp_path / "pets.db", "cats", encoder=ENCODER)
    assert memory._store.server.has("cats_images")


def test_a_creation_that_stopped_is_begun_again(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(milvus_store.MilvusStore, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            MilvusMemory.create(tmp_path / "pets.db", "pets", encoder=ENCODER)
    with pytest.raises(MemoryNotFoundError, match="not made to its end"):
        MilvusMemory.open(tmp_path / "pets.db", "pets")
    with MilvusMemory.create(tmp_path / "pets.db", "pets", encoder=ENCODER) as made:
        assert len(made) == 0


def test_what_is_no_database(tmp_path):
    (tmp_path / "file.db").write_text("hello")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "folder.db" / "note.txt").write_text("hello")
    for action in (MilvusMemory.open, lambda path: MilvusMemory.create(path, encoder=ENCODER)):
        with pytest.raises(MemoryStoreError, match="not a Milvus Lite database"):
            action(tmp_path / "file.db")
        with pytest.raises(MemoryStoreError, match="something else than a Milvus Lite database"):
            action(tmp_path / "folder.db")
    assert (tmp_path / "file.db").read_text() == "hello"
    with pytest.raises(OptionError, match=r"ends in \.db"):
        MilvusMemory.open(tmp_path / "pets")


def test_another_encoder(memory, tmp_path):
    with pytest.raises(EncoderMismatchError):
        MilvusMemory.open(tmp_path / "pets.db", "pets", encoder=FakeEncoder(dim=16, seed=1))
    with MilvusMemory.open(tmp_path / "pets.db", "pets", encoder=ENCODER):
        pass


def test_settings_that_do_not_fit(memory, tmp_path):
    settings = dict(memory._settings)
    for changed, kind, message in (
        ({"schema": 99}, MemoryStoreError, "newer version of rarvision"),
        ({"dim": 8}, MemoryCorruptError, "expected vectors of 8 dimensions in 'pets_images', got 16"),
        ({"dim": None}, MemoryCorruptError, "settings are incomplete"),
    ):
        memory._store.settings.put({"settings": json.dumps(settings | changed).encode()})
        with pytest.raises(kind, match=message):
            MilvusMemory.open(tmp_path / "pets.db", "pets")
    memory._store.settings.put({"settings": json.dumps(settings).encode(), "state": b"{"})
    with pytest.raises(MemoryCorruptError, match="state cannot be read"):
        len(memory)


def test_a_collection_that_was_dropped(memory):
    memory.append(entries(2), unit(2))
    memory._store.server.drop("pets_images")
    with pytest.raises(MemoryNotFoundError, match="Somebody has removed the collection"):
        memory.nearest(unit(1), 1)


def test_a_closed_memory_says_so(memory):
    memory.close()
    with pytest.raises(MemoryStoreError, match="is closed"):
        len(memory)


def test_another_process_has_it_open(memory, tmp_path):
    code = f"""
from rarvision.errors import MemoryLockedError
from rarvision.memory import MilvusMemory
try:
    MilvusMemory.open({str(tmp_path / "pets.db")!r}, "pets")
except MemoryLockedError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "another process has this Milvus Lite database open" in told.stdout
    assert told.stderr == ""
    memory.close()
    free = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert free.stdout == "", "closing frees it"


def test_no_server(capfd):
    with pytest.raises(MemoryUnavailableError, match="Check that the server runs") as caught:
        MilvusMemory.open("http://127.0.0.1:9", "pets", user="me", password="secret", timeout_s=2)
    assert "secret" not in str(caught.value)
    with pytest.raises(MemoryUnavailableError):
        open_memory("milvus+http://127.0.0.1:9#pets")
    assert capfd.readouterr().err == ""
