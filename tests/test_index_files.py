"""An index's file: what comes back, and what is said about a damaged one."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_world import KINDS, clustered, grown
from rarvision.errors import MemoryCorruptError
from rarvision.index import ExactIndex, FaissIndex, HNSWIndex, RescoredIndex, load_index, wrap_faiss


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file of every kind."""
    folder = tmp_path_factory.mktemp("indexes")
    for name in KINDS:
        grown(name).save(folder / name)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_what_was_saved_comes_back(name, saved):
    index, loaded = grown(name), load_index(saved / name)
    assert type(loaded) is type(index)
    assert (len(loaded), loaded.dim, loaded.spec) == (len(index), index.dim, index.spec)
    assert loaded.bytes_per_vector == pytest.approx(index.bytes_per_vector)
    queries = clustered(6, seed=9)
    allowed = np.arange(len(index)) % 3 > 0
    for flags in (None, allowed, np.arange(len(index)) % 100 == 0):
        for before, after in zip(
            index.search(queries, 7, allowed=flags), loaded.search(queries, 7, allowed=flags), strict=True
        ):
            np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", KINDS)
def test_a_mapped_index_may_grow_and_its_file_stays(name, saved):
    before = (saved / name).read_bytes()
    loaded = load_index(saved / name)
    more = clustered(40, seed=5)
    loaded.add(more)
    assert len(loaded) == len(grown(name)) + 40
    assert loaded.search(more[:3], 1)[1][:, 0].tolist() == [len(loaded) - 40 + i for i in range(3)]
    assert (saved / name).read_bytes() == before


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=12)
@given(data=st.data())
def test_any_flipped_bit_is_found_and_the_file_named(name, saved, tmp_path_factory, data):
    content = bytearray((saved / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 17))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged = tmp_path_factory.mktemp("damaged") / "flipped.index"
    damaged.write_bytes(content)
    with pytest.raises(MemoryCorruptError, match=r"flipped\.index"):
        type(grown(name)).load(damaged)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_a_truncated_file_is_named(name, share, saved, tmp_path):
    content = (saved / name).read_bytes()
    damaged = tmp_path / "cut.index"
    damaged.write_bytes(content[: int(share * len(content))])
    with pytest.raises(MemoryCorruptError, match=r"cut\.index"):
        type(grown(name)).load(damaged)


def test_damage_of_the_vectors_alone_is_not_looked_for_unless_asked(tmp_path):
    path = tmp_path / "exact"
    grown("exact").save(path)
    content = bytearray(path.read_bytes())
    content[4_000] ^= 1
    path.write_bytes(content)
    assert len(load_index(path, verify=False)) == len(grown("exact"))
    with pytest.raises(MemoryCorruptError, match="checksum"):
        load_index(path)


@pytest.mark.parametrize("kind", [ExactIndex, HNSWIndex, FaissIndex, RescoredIndex])
def test_something_else_is_refused(kind, tmp_path):
    path = tmp_path / "bad.index"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(MemoryCorruptError, match=r"bad\.index"):
        kind.load(path)


def test_another_kind_is_refused(saved):
    with pytest.raises(MemoryCorruptError, match="IndexHNSWFlat"):
        HNSWIndex.load(saved / "lists")
    with pytest.raises(MemoryCorruptError, match="rescored"):
        RescoredIndex.load(saved / "hnsw")
    with pytest.raises(MemoryCorruptError, match="exact"):
        ExactIndex.load(saved / "hnsw")


def test_a_file_of_another_program_is_read_without_a_seal(tmp_path):
    flat = faiss.IndexFlatIP(16)
    flat.add(clustered(50))
    faiss.write_index(flat, str(tmp_path / "theirs"))
    index = load_index(tmp_path / "theirs")
    assert isinstance(index, FaissIndex)
    assert index.search(clustered(50)[:2], 1)[1][:, 0].tolist() == [0, 1]
    np.save(tmp_path / "rows.npy", clustered(5))
    assert len(ExactIndex.load(tmp_path / "rows.npy")) == 5


def test_a_sealed_file_is_still_one_that_faiss_and_numpy_read(saved):
    assert faiss.read_index(str(saved / "hnsw")).ntotal == len(grown("hnsw"))
    assert len(np.load(saved / "exact")) == len(grown("exact"))


def test_an_index_of_few_rows_waits_for_its_training(tmp_path):
    index = RescoredIndex(16)
    index.add(clustered(10))
    assert not index.trained
    index.save(tmp_path / "few")
    again = load_index(tmp_path / "few")
    assert (len(again), again.spec, again.bytes_per_vector) == (10, index.spec, 64.0)
    again.add(clustered(2_000, seed=3))
    assert again.trained
    assert len(again) == 2_010


def test_saving_where_there_is_no_folder_is_an_os_error(tmp_path):
    for name in KINDS:
        with pytest.raises(OSError, match="nowhere"):
            grown(name).save(tmp_path / "nowhere" / "x")


def test_wrapped_indexes_are_saved_too(tmp_path):
    index = wrap_faiss(faiss.IndexFlatL2(16))
    index.add(clustered(30))
    index.save(tmp_path / "flat")
    assert isinstance(load_index(tmp_path / "flat"), FaissIndex)
