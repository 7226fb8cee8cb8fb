"""The local memory: contract, survival of restarts and interruptions, indexes, locks, bad input."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from rarvision.encoders import TransformersEncoder
from rarvision.errors import (
    EncoderError,
    EncoderMismatchError,
    ImageError,
    InputError,
    MemoryCorruptError,
    MemoryExistsError,
    MemoryLockedError,
    MemoryNotFoundError,
    MemoryStoreError,
    OptionError,
)
from rarvision.memory import LocalMemory, NewEntry
from rarvision.memory.store import Store
from rarvision.testing import FakeEncoder, check_memory
from rarvision.types import Sample
from tiny_encoders import tiny_clip

ENCODER = FakeEncoder(dim=16)
COMPOSED, DECOMPOSED = "\u00d6", "O\u0308"  # look the same, are not


@pytest.fixture
def memory(tmp_path):
    with LocalMemory.create(tmp_path / "memory", encoder=ENCODER) as made:
        yield made


def picture(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8))


def samples(numbers, label=None):
    return [Sample(source=f"{i}.png", image=picture(i), label=label or f"class {i % 3}") for i in numbers]


def unit(rows, dim=16, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def new_entries(numbers, modality="image", categories=7):
    return [
        NewEntry(
            category=f"class {i % categories}", modality=modality, source=f"{i}", content=f"{modality}{i}".encode()
        )
        for i in numbers
    ]


@pytest.mark.parametrize("options", [{}, {"index": "hnsw"}, {"index": "exact", "thumbnails": None}], ids=str)
@pytest.mark.parametrize("tiny_steps", [False, True], ids=["", "merging"])
def test_contract(tmp_path, options, tiny_steps, monkeypatch):
    if tiny_steps:
        monkeypatch.setattr("rarvision.memory.writing._SEAL", 4)
        monkeypatch.setattr("rarvision.memory.writing._MERGE", 2)
        monkeypatch.setattr("rarvision.memory.local_settings._INDEX_FROM", 8)
        FakeEncoder.batch_size = property(lambda _: 3)
    made = []

    def make(encoder):
        made.append(tmp_path / f"memory {len(made)}")
        return LocalMemory.create(made[-1], encoder=encoder, **options)

    def reopen(memory):
        memory.close()
        return LocalMemory.open(made[-1])

    try:
        check_memory(make, reopen)
    finally:
        if tiny_steps:
            del FakeEncoder.batch_size


def test_opening_is_fast_whatever_the_size(tmp_path):
    memory = LocalMemory.create(tmp_path / "memory", encoder=ENCODER, index="exact")
    memory.append(new_entries(range(30_000)), unit(30_000))
    memory.close()
    start = time.process_time()  # of this process only: others may keep the machine busy
    with LocalMemory.open(memory.path) as again:
        assert len(again) == 30_000
        assert time.process_time() - start < 0.2


def test_many_small_additions_make_few_segments_and_the_same_answers(memory):
    vectors = unit(120)
    for i in range(120):
        memory.append(new_entries([i]), vectors[i : i + 1])
    assert memory.info().details["segments"] < 30
    assert len(list((memory.path / "segments").iterdir())) == memory.info().details["segments"]
    found = memory.nearest(vectors, 1)
    assert found.ids[:, 0].tolist() == list(range(1, 121))
    np.testing.assert_array_equal(memory.vectors(range(1, 121)), vectors)
    order = [7, 110, 3, 7]
    np.testing.assert_array_equal(memory.vectors(order), vectors[np.array(order) - 1])


def test_ties_go_to_the_older_entry(memory):
    vectors = np.eye(16, dtype=np.float32)[[0, 1, 0, 0, 1, 0]]
    for i in range(6):
        memory.append(new_entries([i]), vectors[i : i + 1])
    assert memory.nearest(vectors[:1], 6).ids.tolist() == [[1, 3, 4, 6, 2, 5]]


def test_a_large_memory_gets_an_index_that_agrees_with_exact_search(tmp_path, monkeypatch):
    monkeypatch.setattr("rarvision.index.spec.EXACT_UP_TO", 1_000)
    vectors, queries = unit(2_600), unit(30, seed=1)
    kinds = {}
    for kind in ("auto", "exact", "hnsw"):
        with LocalMemory.create(tmp_path / kind, encoder=ENCODER, index=kind, index_parameters=None) as memory:
            for start, stop in ((0, 400), (400, 1_500), (1_500, 1_600), (1_600, 2_600)):
                memory.append(new_entries(range(start, stop)), vectors[start:stop])
            memory.append(new_entries(range(9), "text"), unit(9, seed=3))
            memory.remove(category="class 3")
            kinds[kind] = memory.info().details["indexed"]
            memory.close()
        with LocalMemory.open(tmp_path / kind) as memory:
            hits = memory.nearest(queries, 10, modality="image")
            if kind == "auto":
                approximate = hits
            assert all(entry.category != "class 3" for row in memory.search(queries, 10) for entry in [row[0].entry])
            names = memory.category_names()
            assert {names[code] for code in hits.categories.ravel().tolist()} == {
                f"class {i}" for i in (0, 1, 2, 4, 5, 6)
            }
    exact = hits if kind == "exact" else None
    with LocalMemory.open(tmp_path / "exact") as memory:
        exact = memory.nearest(queries, 10, modality="image")
    assert kinds["exact"] == 0
    assert min(kinds["auto"], kinds["hnsw"]) >= 1_500
    same = [len(set(a) & set(b)) for a, b in zip(exact.ids.tolist(), approximate.ids.tolist(), strict=True)]
    assert np.mean(same) / 10 > 0.97


def test_what_was_added_survives_an_interruption_and_the_rest_follows(memory):
    def interrupted():
        for i, sample in enumerate(samples(range(200))):
            if i == 150:
                raise KeyboardInterrupt
            yield sample

    with pytest.raises(KeyboardInterrupt):
        memory.add(interrupted(), batch_size=4)
    kept = len(memory)
    assert kept > 0
    assert kept % 4 == 0
    report = memory.add(samples(range(200)), batch_size=4)
    assert (report.added, report.skipped) == (200 - kept, kept)
    assert [entry.source for entry in memory.entries()] == [f"{i}.png" for i in range(200)]


def test_a_write_that_fails_changes_nothing_and_leaves_nothing(memory, monkeypatch):
    monkeypatch.setattr("rarvision.memory.writing._SEAL", 4)
    memory.append(new_entries(range(5)), unit(5))
    for broken in ("np.save", "Store.transaction"):
        with monkeypatch.context() as patch:
            if broken == "np.save":
                patch.setattr(
                    "rarvision.memory.store.np.save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full"))
                )
            else:
                patch.setattr(Store, "transaction", lambda _: (_ for _ in ()).throw(MemoryStoreError("disk full")))
            with pytest.raises(MemoryStoreError, match="full"):
                memory.append(new_entries(range(5, 9)), unit(4, seed=5))
        assert len(memory) == 5
    assert memory.append(new_entries(range(5, 9)), unit(4, seed=5)).added == 4
    database = sqlite3.connect(memory.path / "memory.sqlite")
    files = {name for row in database.execute("SELECT file, rows_file FROM segments") for name in row}
    assert {path.name for path in (memory.path / "segments").iterdir()} == files, "leftovers of failed writes are gone"


KILLED = """
import os, sys
import numpy as np
from rarvision.memory import LocalMemory, NewEntry
memory = LocalMemory.open(sys.argv[1])
generator = np.random.default_rng(1)
for i in range(10_000):
    names = [f"{i}-{j}" for j in range(3)]
    entries = [NewEntry(category="c", modality="image", source=name, content=name.encode()) for name in names]
    memory.append(entries, generator.standard_normal((3, 16)).astype(np.float32))
    print(i, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_acknowledged(memory):
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(memory.path)], stdout=subprocess.PIPE, text=True
        ) as process:
            acknowledged = -1
            while acknowledged < 20:
                acknowledged = int(process.stdout.readline())
            process.kill()
            acknowledged = max([acknowledged, *(int(line) for line in process.stdout.read().split())])
        with LocalMemory.open(memory.path) as again:
            assert len(again) in (3 * (acknowledged + 1), 3 * (acknowledged + 2))
            ids = [entry.id for entry in again.entries()]
            assert np.isfinite(again.vectors(ids)).all()
            again.remove(category="c")


def test_another_process_that_writes_is_named(memory, tmp_path):
    code = (
        "import sys\nfrom rarvision.memory import LocalMemory\nmemory = LocalMemory.open(sys.argv[1])\n"
        "with memory._writing():\n    print('ready', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(memory.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        with LocalMemory.open(memory.path, lock_timeout_s=0.1) as other:
            with pytest.raises(MemoryLockedError, match=f"process {process.pid}"):
                other.append(new_entries(range(3)), unit(3))
            assert len(other) == 0
        process.stdin.close()
        process.wait()
    assert memory.append(new_entries(range(3)), unit(3)).added == 3


def test_a_reader_sees_what_another_handle_writes(memory):
    with LocalMemory.open(memory.path) as reader:
        memory.append(new_entries(range(40)), unit(40))
        assert reader.nearest(unit(1), 1).ids.tolist() == [[1]]
        memory.remove(ids=[1])
        assert reader.nearest(unit(1), 1).ids[0, 0] != 1
        for i in range(40, 80):  # merges replace the files that the reader knows
            memory.append(new_entries([i]), unit(1, seed=i))
        assert len(reader.search(unit(1), 500)[0]) == 79
        assert reader.count() == 79


def test_removed_entries_leave_files_and_thumbnails(memory):
    memory.add(samples(range(6), label="a"))
    memory.add(samples(range(6, 9), label="b"))
    memory.add(samples(range(6), label="c"))
    assert memory.info().thumbnails == 9, "one a picture, not one an entry"
    memory.remove(category="a")
    assert memory.info().thumbnails == 9, "the same pictures still belong to c"
    memory.remove(category="c")
    assert memory.info().thumbnails == 3
    assert memory.remove(category="b", ids=[1, 2]) == 0
    memory.remove(category="b")
    assert len(memory) == 0
    assert list((memory.path / "segments").iterdir()) == []


def test_thumbnails_outlive_their_sources(tmp_path):
    source = tmp_path / "big.png"
    Image.new("RGB", (400, 200), "red").save(source)
    sample = Sample(source=str(source), image=source, label="red")
    with LocalMemory.create(tmp_path / "m", encoder=ENCODER, thumbnails=64) as memory:
        memory.add([sample])
        memory.add_texts(["red"])
        source.unlink()
        with Image.open(io.BytesIO(memory.thumbnail(1))) as stored:
            assert (stored.format, stored.size) == ("JPEG", (64, 32))
        assert memory.thumbnail(2) is None
        assert memory.thumbnail(99) is None


def test_bad_files_are_told_and_the_rest_is_stored(memory, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    picture(0).save(good)
    bad.write_bytes(b"\x89PNG broken")
    listed = [Sample(source=p.name, image=p, label="x") for p in (bad, good, tmp_path / "missing.png", tmp_path)]
    listed.append(Sample(source="long", image=tmp_path / ("x" * 5000), label="x"))
    told = []
    report = memory.add(listed, on_error=lambda sample, error: told.append((sample.source, type(error))))
    assert (report.added, report.failed) == (1, 4)
    assert sorted(name for name, _ in told) == sorted(["bad.png", "missing.png", tmp_path.name, "long"])
    assert all(issubclass(kind, ImageError) for _, kind in told)
    with pytest.raises(ImageError, match=r"bad\.png"):
        memory.add(listed[:1])
    bad.unlink()
    picture(5).save(bad)
    assert memory.add(listed[:1]).added == 1, "a sample that failed can be added once it is mended"


def test_names_that_are_odd_are_kept_as_they_are(memory):
    names = [
        "a'b\"c",
        "[x]",
        "line\nbreak",
        "nul\0inside",
        " leading",
        "鳥",
        COMPOSED,
        DECOMPOSED,
        "%s {} \\",
        "a" * 5_000,
    ]
    assert memory.add_texts(names).added == len(names)
    memory.close()
    with LocalMemory.open(memory.path, encoder=ENCODER) as again:
        assert again.categories() == names
        assert again.remove(category="nul\0inside") == 1
        assert again.remove(category=COMPOSED) == 1
        assert DECOMPOSED in again.categories()
        for wrong in ("", "  \n", "\udcff"):
            with pytest.raises(InputError):
                again.add_texts([wrong])


def test_a_source_that_is_not_utf8_is_stored_with_escapes(memory):
    source = os.fsdecode(b"caf\xe9.png")
    memory.add([Sample(source=source, image=picture(1), label="x")])
    assert [entry.source for entry in memory.entries(source=source)] == ["caf\\xe9.png"] or [
        entry.source for entry in memory.entries(source=source)
    ] == ["caf\\udce9.png"]


def test_texts_templates_and_descriptions(memory):
    templates = ("a photo of a {}.", "{} texture")
    assert memory.add_texts(["red", "blue"], templates=templates).added == 2
    assert memory.add_texts(["red"], templates=templates).skipped == 1
    assert memory.add_texts(["red"]).added == 1, "other templates make another entry"
    assert memory.add_texts(["red"], texts=["scarlet {bird}"]).added == 1
    np.testing.assert_allclose(
        memory.vectors([1, 2, 3, 4]),
        np.concatenate(
            (
                ENCODER.encode_texts(["red", "blue"], templates=templates),
                ENCODER.encode_texts(["red", "scarlet {bird}"]),
            )
        ),
        atol=1e-6,
    )
    assert [entry.source for entry in memory.entries(category="red")] == ["red", "red", "scarlet {bird}"]
    with pytest.raises(OptionError, match="one text a name"):
        memory.add_texts(["a", "b"], texts=["c"])


def test_metadata_must_be_json(memory):
    with pytest.raises(InputError, match="JSON"):
        memory.add([Sample(source="s", image=picture(1), label="x", metadata={"when": object()})])
    assert len(memory) == 0


def test_creating_and_opening(tmp_path):
    place = tmp_path / "deep" / "er" / "memory"
    LocalMemory.create(place, encoder=ENCODER, metadata={"by": "me"}).close()
    assert not list(place.parent.glob(".*")), "no draft is left"
    with LocalMemory.open(place) as memory:
        assert memory.metadata == {"by": "me"}
        info = memory.info().to_dict()
    assert json.loads(json.dumps(info))["encoder_fingerprint"] == ENCODER.fingerprint
    with pytest.raises(MemoryExistsError, match="open it"):
        LocalMemory.create(place, encoder=ENCODER)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    for taken in ("file", "full"):
        with pytest.raises(MemoryExistsError, match="something else"):
            LocalMemory.create(tmp_path / taken, encoder=ENCODER)
    for missing in ("nowhere", "full", "file"):
        with pytest.raises(MemoryNotFoundError, match=r"LocalMemory\.create"):
            LocalMemory.open(tmp_path / missing)
    (tmp_path / "empty").mkdir()
    LocalMemory.create(tmp_path / "empty", encoder=ENCODER).close()
    for wrong in ({"index": "annoy"}, {"index_parameters": {"links": 3}}, {"thumbnails": 0}):
        with pytest.raises(OptionError):
            LocalMemory.create(tmp_path / "wrong", encoder=ENCODER, **wrong)
    assert not (tmp_path / "wrong").exists()


def test_damage_is_named(memory, monkeypatch):
    monkeypatch.setattr("rarvision.memory.writing._SEAL", 8)
    memory.append(new_entries(range(20)), unit(20))
    memory.close()
    segment = next(path for path in (memory.path / "segments").iterdir() if "rows" not in path.name)
    whole = segment.read_bytes()
    for damaged in (whole[:-64], b"", b"not a segment"):
        segment.write_bytes(damaged)
        with LocalMemory.open(memory.path) as again, pytest.raises(MemoryCorruptError, match=segment.name):
            again.nearest(unit(1), 1)
    segment.unlink()
    with LocalMemory.open(memory.path) as again, pytest.raises(MemoryCorruptError, match="missing"):
        again.nearest(unit(1), 1)
    database = memory.path / "memory.sqlite"
    for damaged in (b"x" * 4096, b""):
        database.write_bytes(damaged)
        with pytest.raises(MemoryCorruptError):
            LocalMemory.open(memory.path)


def test_a_newer_schema_is_refused(memory):
    memory.close()
    database = sqlite3.connect(memory.path / "memory.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(MemoryStoreError, match="newer"):
        LocalMemory.open(memory.path)


def test_a_folder_that_cannot_be_written_can_be_read(memory, monkeypatch):
    memory.append(new_entries(range(20)), unit(20))
    memory.close()
    monkeypatch.setattr("rarvision.memory.store.os.access", lambda *_: False)
    with LocalMemory.open(memory.path) as again:
        assert again.nearest(unit(1), 1).ids.tolist() == [[1]]
        with pytest.raises(MemoryStoreError, match="read-only"):
            again.append(new_entries(range(30, 31)), unit(1))


def test_a_closed_memory_says_so(memory):
    memory.close()
    with pytest.raises(MemoryStoreError, match="open the memory again"):
        len(memory)


def test_the_encoder_is_remembered_by_its_folder(tmp_path):
    folder = tiny_clip(tmp_path / "clip")
    encoder = TransformersEncoder(folder)
    with LocalMemory.create(tmp_path / "m", encoder=encoder) as memory:
        memory.add(samples(range(4)))
    with LocalMemory.open(tmp_path / "m") as memory:
        found = memory.encoder.encode_images([picture(2)])
        assert memory.search(found, 1)[0][0].entry.source == "2.png"
    moved = folder.rename(tmp_path / "moved")
    with LocalMemory.open(tmp_path / "m") as memory:
        with pytest.raises(EncoderError, match="no model folder"):
            _ = memory.encoder
        memory.bind(TransformersEncoder(moved))
    tiny_clip(folder, seed=1)
    with LocalMemory.open(tmp_path / "m") as memory, pytest.raises(EncoderMismatchError, match="same encoder"):
        _ = memory.encoder


def test_another_encoder_is_refused(memory):
    memory.close()
    with pytest.raises(EncoderMismatchError, match=r"fake:16:0.*fake:16:1"):
        LocalMemory.open(memory.path, encoder=FakeEncoder(dim=16, seed=1))
    with LocalMemory.open(memory.path) as again, pytest.raises(EncoderError, match="cannot be loaded by name"):
        _ = again.encoder


def test_threads_search_while_one_adds(memory):
    memory.append(new_entries(range(50)), unit(50))
    queries = unit(20, seed=4)
    stop = threading.Event()

    def search():
        last = 0
        while not stop.is_set():
            found = memory.nearest(queries, 500).ids
            count = int((found[0] >= 0).sum())
            assert count >= last
            assert {entry.id for entry in memory.entries(ids=found[0][found[0] >= 0])} == set(found[0].tolist()) - {-1}
            last = count
        return last

    with ThreadPoolExecutor(4) as pool:
        searches = [pool.submit(search) for _ in range(4)]
        for i in range(50, 90):
            memory.append(new_entries([i]), unit(1, seed=i))
        stop.set()
        assert all(50 <= each.result() <= 90 for each in searches)
    assert len(memory.search(queries, 500)[0]) == 90
