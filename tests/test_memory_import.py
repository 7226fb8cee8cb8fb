"""Memories from faiss indexes with label files: the authors' own where given, made-up ones for the odd cases."""

from __future__ import annotations

import json
import subprocess
import sys

import faiss
import numpy as np
import pytest

from rarvision.errors import (
    DatasetError,
    EncoderMismatchError,
    MemoryCorruptError,
    MemoryEmptyError,
    MemoryExistsError,
)
from rarvision.memory import LocalMemory, import_faiss
from rarvision.memory.importing import read_labels
from rarvision.retrieval import leave_one_out
from rarvision.testing import FakeEncoder


def write(path, lines, ending="\n"):
    path.write_bytes((ending.join(lines) + ending).encode())
    return path


def flat(path, vectors):
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    faiss.write_index(index, str(path))
    return path


def unit(rows, dim=16):
    vectors = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "entries", "categories", "top1", "recall"),
    [("cub200", 600, 200, 40.7, 70.7), ("pets37", 111, 37, 47.7, 81.1)],
)
def test_the_authors_memories(data_dir, tmp_path, name, entries, categories, top1, recall):
    folder = data_dir / "rar-memory" / name
    index = folder / f"{name}_database.index"
    with import_faiss(
        index, folder / f"{name}_database.txt", tmp_path / name, classnames=folder / "classnames.txt"
    ) as memory:
        report = leave_one_out(memory)
        assert (len(memory), len(memory.categories()), memory.dim) == (entries, categories, 512)
        assert memory.encoder_fingerprint.startswith("imported:")
        first = next(memory.entries())
        assert first.source.endswith(".jpg")
        assert memory.categories() == (folder / "classnames.txt").read_text().splitlines()[:categories]
        theirs = faiss.read_index(str(index)).reconstruct_n(0, entries)
        np.testing.assert_array_equal(memory.vectors(range(1, entries + 1)), theirs)
    assert round(100 * report.top1, 1) == top1
    assert round(100 * report.recall_at_5_images, 1) == recall
    assert report.recall_at_5_categories >= report.recall_at_5_images
    assert (report.entries, report.categories) == (entries, categories)
    again = LocalMemory.open(tmp_path / name)
    with again, pytest.raises(EncoderMismatchError, match="declare the encoder"):
        _ = again.encoder
    with pytest.raises(EncoderMismatchError, match="imported:"):
        LocalMemory.open(tmp_path / name, encoder=FakeEncoder(dim=512))


def test_what_is_imported_is_searched_as_the_original(tmp_path):
    vectors = unit(40)
    index = flat(tmp_path / "i.index", vectors)
    labels = write(tmp_path / "l.txt", [f"images/{i}.jpg {i % 5}" for i in range(40)])
    with import_faiss(index, labels, tmp_path / "m") as memory:
        assert memory.nearest(vectors, 1).ids[:, 0].tolist() == list(range(1, 41))
        assert memory.categories() == ["0", "1", "2", "3", "4"]
        assert memory.info().metadata == {"imported_from": "i.index"}
    with pytest.raises(MemoryExistsError):
        import_faiss(index, labels, tmp_path / "m")
    with LocalMemory.open(tmp_path / "m") as kept:
        assert len(kept) == 40


def test_vectors_that_are_not_unit_are_normalised(tmp_path):
    vectors = unit(10)
    index = flat(tmp_path / "i", vectors * np.linspace(0.5, 3, 10)[:, None])
    labels = write(tmp_path / "l", [f"{i}.jpg x" for i in range(10)])
    with import_faiss(index, labels, tmp_path / "m") as memory:
        np.testing.assert_allclose(memory.vectors(range(1, 11)), vectors, atol=1e-6)


def test_an_encoder_can_be_declared(tmp_path):
    encoder = FakeEncoder(dim=16)
    index = flat(tmp_path / "i", unit(6))
    labels = write(tmp_path / "l", [f"{i}.jpg x" for i in range(6)])
    with import_faiss(index, labels, tmp_path / "m", encoder=encoder) as memory:
        assert memory.encoder is encoder
        assert memory.add_texts(["x"]).added == 1
    with LocalMemory.open(tmp_path / "m", encoder=encoder) as memory:
        assert len(memory.search(encoder.encode_texts(["x"]), 3)[0]) == 3
    with pytest.raises(EncoderMismatchError, match="16 dimensions"):
        import_faiss(index, labels, tmp_path / "n", encoder=FakeEncoder(dim=8))
    assert not (tmp_path / "n").exists()


def test_rows_that_repeat_are_kept_apart(tmp_path):
    vectors = np.repeat(unit(2), 3, axis=0)
    labels = write(tmp_path / "l", ["a.jpg x"] * 6)
    with import_faiss(flat(tmp_path / "i", vectors), labels, tmp_path / "m") as memory:
        assert len(memory) == 6


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a/b c/d e.jpg 1", ("a/b c/d e.jpg", "blue jay")),
        ("a.jpg blue jay", ("a.jpg", "blue jay")),
        ("a b.jpg jay", ("a b.jpg", "jay")),
        ("a blue jay", ("a", "blue jay")),
        ("dir/x\tblue jay", ("dir/x", "blue jay")),
        ("a.jpg 0", ("a.jpg", "jay")),
        ("a.jpg  1", ("a.jpg", "blue jay")),
    ],
)
def test_labels_with_class_names(tmp_path, line, expected, ending):
    names = write(tmp_path / "names", ["jay", "blue jay"], ending)
    assert read_labels(write(tmp_path / "l", [line], ending), classnames=names) == [expected]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a/b c.JPG blue jay", ("a/b c.JPG", "blue jay")),
        ("a/b.jpeg/c d.png 707-320", ("a/b.jpeg/c d.png", "707-320")),
        ("no extension jay", ("no extension", "jay")),
        ("x.jpg 17", ("x.jpg", "17")),
        ("x y\tblue jay", ("x y", "blue jay")),
        ("größe.webp Ünï 鳥", ("größe.webp", "Ünï 鳥")),
    ],
)
def test_labels_without_class_names(tmp_path, line, expected):
    assert read_labels(write(tmp_path / "l", [line])) == [expected]


def test_numbers_are_line_numbers_even_where_a_class_is_called_by_one(tmp_path):
    names = write(tmp_path / "names", ["1", "0", "911"])
    assert read_labels(write(tmp_path / "l", ["a 0", "b 1", "c 2"]), classnames=names) == [
        ("a", "1"),
        ("b", "0"),
        ("c", "911"),
    ]
    assert read_labels(
        write(tmp_path / "l", ["a x.jpg 911", "b.jpg cat"]), classnames=write(names, ["911", "cat"])
    ) == [
        ("a x.jpg", "911"),
        ("b.jpg", "cat"),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.jpg 0", "b.jpg 2"], "line 2: the label '2'"),
        (["a.jpg 0", "b.jpg crow"], "line 2: the label 'crow'"),
        (["a.jpg 0", "", "b.jpg 1"], "line 2: is blank"),
        (["a.jpg"], "line 1: expected 'path label'"),
        (["a.jpg -1"], "label '-1'"),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path, lines, message):
    names = write(tmp_path / "names", ["jay", "blue jay"])
    with pytest.raises(DatasetError, match=message):
        read_labels(write(tmp_path / "l", lines), classnames=names)


def test_files_that_do_not_fit_are_refused_and_leave_nothing(tmp_path):
    index = flat(tmp_path / "i", unit(3))
    good = write(tmp_path / "good", ["a x", "b x", "c y"])
    with pytest.raises(DatasetError, match=r"2 lines and .* 3 vectors"):
        import_faiss(index, write(tmp_path / "short", ["a x", "b x"]), tmp_path / "m")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="UTF-8"):
        import_faiss(index, tmp_path / "binary", tmp_path / "m")
    for missing in ((tmp_path / "none", good), (index, tmp_path / "none")):
        with pytest.raises(DatasetError, match="no such file"):
            import_faiss(*missing, tmp_path / "m")
    with pytest.raises(MemoryCorruptError, match="not a readable faiss index"):
        import_faiss(good, good, tmp_path / "m")
    zero = unit(3)
    zero[1] = 0
    with pytest.raises(MemoryCorruptError, match="row 1"):
        import_faiss(flat(tmp_path / "zero", zero), good, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_leaving_one_out_equals_a_plain_loop(tmp_path):
    generator = np.random.default_rng(3)
    codes = generator.integers(0, 12, 90)
    codes[0] = 99  # alone in its category
    centres = generator.standard_normal((100, 16))
    vectors = centres[codes] + 1.2 * generator.standard_normal((90, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    labels = write(tmp_path / "l", [f"{i}.jpg class {c}" for i, c in enumerate(codes)])
    with import_faiss(flat(tmp_path / "i", vectors), labels, tmp_path / "m") as memory:
        memory.remove(ids=[5])
        report = leave_one_out(memory, block=7)
    kept = [i for i in range(90) if i != 4]
    top1 = images = categories = 0
    for i in kept:
        others = sorted((j for j in kept if j != i), key=lambda j: -float(vectors[i] @ vectors[j]))
        named = [codes[j] for j in others]
        top1 += named[0] == codes[i]
        images += codes[i] in named[:5]
        categories += codes[i] in list(dict.fromkeys(named))[:5]
    assert 0.2 < top1 / len(kept) < 0.9, "the case must be neither trivial nor hopeless"
    assert report.to_dict() == pytest.approx(
        {
            "top1": top1 / len(kept),
            "recall_at_5_images": images / len(kept),
            "recall_at_5_categories": categories / len(kept),
            "entries": len(kept),
            "categories": len({codes[i] for i in kept}),
        }
    )


def test_leaving_one_out_needs_two(tmp_path):
    with LocalMemory.create_unbound(tmp_path / "m", dim=4, fingerprint="imported:x") as memory:
        with pytest.raises(MemoryEmptyError, match="at least two"):
            leave_one_out(memory)
        memory.append([], np.empty((0, 4), dtype=np.float32))


def test_importing_the_memory_loads_neither_torch_nor_faiss():
    code = (
        "import sys, json, rarvision.memory, rarvision.retrieval\n"
        "print(json.dumps([m for m in ('torch', 'transformers', 'faiss') if m in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []
