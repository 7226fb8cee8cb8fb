"""Memories as the authors' faiss index with text files, and back."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exchange_world import ODD, ids_of, memory_of, names, new
from rarvision.errors import DatasetError, MemoryEmptyError
from rarvision.memory import export_faiss, import_faiss


@pytest.fixture
def memory(tmp_path):
    entries = [*(new(i) for i in range(9)), new(0, category=ODD, modality="text", source=ODD, odd=ODD)]
    with memory_of(tmp_path / "memory", entries) as made:
        made.remove(ids=[4])
        yield made


def test_faiss_files_give_back_vectors_categories_and_order(memory, tmp_path):
    report = export_faiss(memory, tmp_path / "m.index", tmp_path / "m.txt")
    assert (report.entries, report.left_out) == (8, 1)
    index = faiss.read_index(str(tmp_path / "m.index"))
    assert type(index) is faiss.IndexHNSWFlat
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    assert index.hnsw.nb_neighbors(1) == 64
    assert (tmp_path / "m.txt").read_text().splitlines()[:2] == ["images/0 a.jpg 0", "images/1 a.jpg 1"]
    assert (tmp_path / "classnames.txt").read_text().splitlines() == ["class 0", "class 1", "class 2"]
    back = import_faiss(
        tmp_path / "m.index", tmp_path / "m.txt", tmp_path / "back", classnames=tmp_path / "classnames.txt"
    )
    images = list(memory.entries(modality="image"))
    with back:
        assert [(e.source, e.category) for e in back.entries()] == [(e.source, e.category) for e in images]
        assert back.categories() == memory.categories("image")
        np.testing.assert_array_equal(back.vectors(ids_of(back)), memory.vectors([entry.id for entry in images]))


one_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), min_size=1, max_size=10)


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(one_line.filter(str.strip), one_line | names), min_size=1, max_size=8))
def test_faiss_files_hold_any_source_or_say_which_they_cannot(pairs):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        entries = [replace(new(i), category=category, source=source) for i, (category, source) in enumerate(pairs)]
        with memory_of(folder / "m", entries) as memory:
            files = (folder / "m.index", folder / "m.txt", folder / "names.txt")
            try:
                export_faiss(memory, *files[:2], classnames=files[2])
            except DatasetError:
                assert not any(file.exists() for file in files)
                return
            with import_faiss(*files[:2], folder / "back", classnames=files[2]) as back:
                assert [(e.source, e.category) for e in back.entries()] == [
                    (e.source, e.category) for e in memory.entries()
                ]


@pytest.mark.parametrize(
    "source", ["a b.jpg", "a/b c/d e.jpg", "no extension 7", "tab\there.jpg", "x 12", "größe 図.webp"]
)
def test_common_odd_paths_can_be_exported(tmp_path, source):
    with memory_of(tmp_path / "m", [new(0, category="7 3", source=source), new(1, category="3", source="b")]) as memory:
        export_faiss(memory, tmp_path / "i", tmp_path / "l")
        with import_faiss(
            tmp_path / "i", tmp_path / "l", tmp_path / "b", classnames=tmp_path / "classnames.txt"
        ) as back:
            assert [(e.source, e.category) for e in back.entries()] == [(source, "7 3"), ("b", "3")]


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("source", " space.jpg"),
        *itertools.product(["source", "category"], ["two\nlines.jpg", "cr\rhere.jpg", "\ufefffirst.jpg"]),
    ],
)
def test_what_a_line_cannot_hold_is_refused_by_name(tmp_path, where, text):
    entry = replace(new(0), **{where: text})
    with memory_of(tmp_path / "m", [entry]) as memory, pytest.raises(DatasetError, match="export Parquet") as told:
        export_faiss(memory, tmp_path / "i", tmp_path / "l")
    assert repr(text) in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_memory_without_images_has_no_faiss_files(tmp_path):
    with (
        memory_of(tmp_path / "m", [new(0, modality="text")]) as memory,
        pytest.raises(MemoryEmptyError, match="1 texts"),
    ):
        export_faiss(memory, tmp_path / "i", tmp_path / "l")
