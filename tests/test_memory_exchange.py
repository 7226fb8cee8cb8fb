"""Memories as Parquet with vectors, and back; exports that are interrupted or refused; memories like others."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exchange_world import ENCODER, ODD, ids_of, memory_of, names, new, state, unit
from needs import need
from rarvision.errors import (
    DatasetError,
    EncoderMismatchError,
    MemoryStoreError,
    MissingExtraError,
    OptionError,
)
from rarvision.memory import (
    LocalMemory,
    NewEntry,
    create_like,
    export_faiss,
    export_parquet,
    import_parquet,
)
from rarvision.memory import parquet as parquet_module
from rarvision.memory.exporting import replacing
from rarvision.testing import FakeEncoder


@pytest.fixture
def pq():
    need("pyarrow", group="test")
    import pyarrow.parquet

    return pyarrow.parquet


@pytest.fixture
def pa():
    need("pyarrow", group="test")
    return importlib.import_module("pyarrow")


@pytest.fixture
def memory(tmp_path):
    entries = [*(new(i) for i in range(9)), new(0, category=ODD, modality="text", source=ODD, odd=ODD)]
    with memory_of(tmp_path / "memory", entries) as made:
        made.remove(ids=[4])
        yield made


def test_parquet_gives_back_the_same_memory(memory, tmp_path):
    seen = []
    report = export_parquet(memory, tmp_path / "m.parquet", progress=seen.append)
    assert (report.entries, report.left_out, seen) == (9, 0, [9])
    assert report.bytes == (tmp_path / "m.parquet").stat().st_size
    assert import_parquet(tmp_path / "m.parquet", tmp_path / "back", progress=seen.append).added == 9
    assert seen == [9, 9]
    with LocalMemory.open(tmp_path / "back") as back:
        assert state(back) == state(memory)
        assert back.categories() == memory.categories()
        assert (back.encoder_fingerprint, back.encoder_name) == (ENCODER.fingerprint, ENCODER.name)
        assert back.info().metadata == {"from": ODD}
        back.bind(ENCODER)
    assert not list(tmp_path.glob(".*part"))


def test_what_is_there_is_skipped_and_the_rest_added(memory, tmp_path):
    export_parquet(memory, tmp_path / "m.parquet")
    before = state(memory)
    report = import_parquet(tmp_path / "m.parquet", memory)
    assert (report.added, report.skipped) == (0, 9)
    with memory_of(tmp_path / "other", [new(0), new(20)]) as other:
        report = import_parquet(tmp_path / "m.parquet", other)
        assert (report.added, report.skipped, len(other)) == (8, 1, 10)
    assert state(memory) == before


def test_only_what_meets_the_conditions_is_exported(memory, tmp_path, pq):
    file = tmp_path / "m.parquet"
    assert export_parquet(memory, file, category="class 1", thumbnails=False).entries == 3
    table = pq.read_table(file)
    assert table["category"].to_pylist() == ["class 1"] * 3
    assert table["thumbnail"].null_count == 3
    assert export_parquet(memory, file, metadata={"n": [1, 2]}, modality="image").entries == 2
    assert export_parquet(memory, file, category="none").entries == 0
    assert import_parquet(file, tmp_path / "empty").added == 0
    with LocalMemory.open(tmp_path / "empty") as empty:
        assert len(empty) == 0


def test_the_file_is_what_other_tools_expect(memory, tmp_path, pa, pq):
    export_parquet(memory, tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    kinds = {field.name: str(field.type) for field in table.schema}
    assert list(kinds) == ["id", "category", "modality", "source", "content", "metadata", "thumbnail", "vector"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 16)
    assert (kinds["id"], kinds["content"], kinds["metadata"]) == ("int64", "binary", "string")
    assert table["id"].to_pylist() == ids_of(memory)
    assert json.loads(table["metadata"].to_pylist()[-1]) == {"n": 0, "odd": ODD}
    about = json.loads(table.schema.metadata[b"rarvision"])
    assert (about["schema"], about["entries"], about["dim"]) == (1, 9, 16)
    assert (about["encoder_fingerprint"], about["metadata"]) == (ENCODER.fingerprint, {"from": ODD})
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), memory.vectors(ids_of(memory)))


scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
metadata = st.dictionaries(st.text(max_size=8), scalars | names | st.lists(scalars, max_size=3), max_size=3)
rows = st.lists(st.tuples(names, st.text(max_size=20), metadata, st.sampled_from(["image", "text"])), max_size=20)


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(rows)
def test_any_name_source_and_metadata_travel_unchanged(values):
    need("pyarrow", group="test")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        entries = [
            NewEntry(category=name, modality=modality, source=source, content=b"%d" % i, metadata=about)
            for i, (name, source, about, modality) in enumerate(values)
        ]
        entries.sort(key=lambda entry: entry.modality)  # the order within a part is images, texts
        with memory_of(folder / "m", entries) as memory:
            export_parquet(memory, folder / "m.parquet")
            import_parquet(folder / "m.parquet", folder / "back")
            with LocalMemory.open(folder / "back") as back:
                assert state(back) == state(memory)
                assert back.categories() == memory.categories()


def test_a_path_that_is_no_unicode_travels(tmp_path):
    with memory_of(tmp_path / "m", [new(1, source="caf\udce9.jpg", odd="\ud800")]) as memory:
        export_parquet(memory, tmp_path / "m.parquet")
        import_parquet(tmp_path / "m.parquet", tmp_path / "back")
        with LocalMemory.open(tmp_path / "back") as back:
            assert state(back) == state(memory)


def test_an_import_that_was_interrupted_goes_on(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "_AT_ONCE", 2)
    export_parquet(memory, tmp_path / "m.parquet")

    def stop(done):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_parquet(tmp_path / "m.parquet", tmp_path / "back", progress=stop)
    report = import_parquet(tmp_path / "m.parquet", tmp_path / "back")
    assert (report.added, report.skipped) == (5, 4)
    with LocalMemory.open(tmp_path / "back") as back:
        assert state(back) == state(memory)


def test_an_export_that_is_interrupted_leaves_the_old_file(memory, tmp_path):
    file = tmp_path / "m.parquet"
    export_parquet(memory, file)
    before = file.read_bytes()

    def stop(done):
        raise KeyboardInterrupt

    for run in (
        lambda: export_parquet(memory, file, progress=stop),
        lambda: export_faiss(memory, file, tmp_path / "labels.txt", progress=stop),
    ):
        with pytest.raises(KeyboardInterrupt):
            run()
        assert file.read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.parquet", "memory"]


def test_an_export_is_one_state_while_others_write(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "_AT_ONCE", 2)
    before, removed = state(memory), itertools.count()
    with LocalMemory.open(memory.path) as writer:

        def meanwhile(done):
            if next(removed) == 0:
                writer.remove(category="class 2")
                writer.append([new(50)], unit(1, seed=5))

        export_parquet(memory, tmp_path / "m.parquet", progress=meanwhile)
    import_parquet(tmp_path / "m.parquet", tmp_path / "back")
    with LocalMemory.open(tmp_path / "back") as back:
        assert state(back) == before
    assert len(memory) == len(before) - 2


def test_targets_that_cannot_be_written_are_told(memory, tmp_path):
    with pytest.raises(OptionError, match="is a folder"):
        export_parquet(memory, tmp_path)
    with pytest.raises(OptionError, match="there is no folder"):
        export_parquet(memory, tmp_path / "no" / "m.parquet")
    with pytest.raises(OptionError, match="three files"):
        export_faiss(memory, tmp_path / "x", tmp_path / "x")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "x") as draft:
        draft.with_name("never written").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


# Other encoders -----------------------------------------------------------------------------------------------------


def test_vectors_of_another_encoder_are_refused(memory, tmp_path):
    file, other = tmp_path / "m.parquet", FakeEncoder(dim=16, seed=1)
    export_parquet(memory, file)
    with LocalMemory.create(tmp_path / "other", encoder=other) as theirs:
        with pytest.raises(EncoderMismatchError, match="vectors of one encoder"):
            import_parquet(file, theirs)
        assert len(theirs) == 0
    wide = LocalMemory.create(tmp_path / "wide", encoder=FakeEncoder(dim=8))
    with wide, pytest.raises(EncoderMismatchError, match="8 dimensions"):
        import_parquet(file, wide)
    with pytest.raises(EncoderMismatchError, match="the one declared"):
        import_parquet(file, tmp_path / "new", encoder=other)
    assert not (tmp_path / "new").exists()
    assert import_parquet(file, tmp_path / "new", encoder=ENCODER).added == 9


def test_an_encoder_is_the_same_where_its_probe_agrees(memory, tmp_path):
    class Renamed(FakeEncoder):
        fingerprint = "fake:renamed"

    export_parquet(memory, tmp_path / "m.parquet")
    with LocalMemory.create(tmp_path / "renamed", encoder=Renamed(dim=16)) as renamed:
        assert import_parquet(tmp_path / "m.parquet", renamed).added == 9


def test_vectors_of_an_unknown_encoder_stay_so_until_it_is_declared(tmp_path):
    with LocalMemory.create_unbound(tmp_path / "m", dim=16, fingerprint="imported:abc") as unknown:
        unknown.append([new(0), new(1)], unit(2))
        export_parquet(unknown, tmp_path / "m.parquet")
    import_parquet(tmp_path / "m.parquet", tmp_path / "back")
    with LocalMemory.open(tmp_path / "back") as back:
        assert back.encoder_fingerprint == "imported:abc"
    import_parquet(tmp_path / "m.parquet", tmp_path / "declared", encoder=ENCODER)
    with LocalMemory.open(tmp_path / "declared", encoder=ENCODER) as declared:
        assert len(declared) == 2
    with pytest.raises(EncoderMismatchError, match="16 dimensions"):
        import_parquet(tmp_path / "m.parquet", tmp_path / "narrow", encoder=FakeEncoder(dim=8))


def test_a_file_without_settings_needs_an_encoder_or_a_memory(memory, tmp_path, pq):
    export_parquet(memory, tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet").replace_schema_metadata(None).drop_columns(["id", "thumbnail"])
    pq.write_table(table, tmp_path / "bare.parquet")
    with pytest.raises(DatasetError, match="declare the encoder"):
        import_parquet(tmp_path / "bare.parquet", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert import_parquet(tmp_path / "bare.parquet", memory).skipped == 9
    assert import_parquet(tmp_path / "bare.parquet", tmp_path / "back", encoder=ENCODER).added == 9


def test_wider_and_narrower_types_are_read(memory, tmp_path, pa, pq):
    export_parquet(memory, tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    kinds = {
        "category": pa.dictionary(pa.int32(), pa.string()),
        "source": pa.large_string(),
        "content": pa.large_binary(),
        "vector": pa.large_list(pa.float64()),
    }
    for name, kind in kinds.items():
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
    pq.write_table(table, tmp_path / "wide.parquet")
    assert import_parquet(tmp_path / "wide.parquet", tmp_path / "back").added == 9
    with LocalMemory.open(tmp_path / "back") as back:
        assert state(back) == state(memory)


# Bad files ----------------------------------------------------------------------------------------------------------


def edit(table, pa, name, row, value):
    values = table[name].to_pylist()
    values[row] = value
    place = table.schema.get_field_index(name)
    kind = pa.list_(pa.float32()) if name == "vector" else table.schema.field(name).type
    return table.set_column(place, pa.field(name, kind), pa.array(values, type=kind))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vector", [1.0] * 8, "row 3: expected a vector of 16 numbers, got 8"),
        ("vector", [float("nan")] * 16, "row 3: the vector is zero or not finite"),
        ("vector", [0.0] * 16, "row 3: the vector is zero or not finite"),
        ("vector", None, "row 3: expected a vector of 16 numbers, got 0"),
        ("vector", [None] * 16, "is null"),
        ("category", " ", "row 3: a category's name must not be blank"),
        ("category", None, "row 3: category is null"),
        ("modality", "sound", "row 3: modality must be 'image' or 'text', got 'sound'"),
        ("content", b"", "row 3: content is empty"),
        ("metadata", "{", "row 3: "),
        ("metadata", "[1]", "row 3: metadata must be a JSON object"),
        ("metadata", '{"a": NaN}', "row 3: metadata must hold JSON values only"),
    ],
)
def test_rows_that_cannot_be_entries_are_named_and_leave_nothing(memory, tmp_path, pa, pq, name, value, message):
    export_parquet(memory, tmp_path / "m.parquet")
    pq.write_table(edit(pq.read_table(tmp_path / "m.parquet"), pa, name, 3, value), tmp_path / "bad.parquet")
    with pytest.raises(DatasetError, match=message) as told:
        import_parquet(tmp_path / "bad.parquet", tmp_path / "back")
    assert "bad.parquet" in str(told.value)
    assert not (tmp_path / "back").exists()


def test_columns_that_are_missing_or_of_another_kind_are_named(memory, tmp_path, pa, pq):
    file = tmp_path / "m.parquet"
    export_parquet(memory, file)
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["vector", "source"]), tmp_path / "few.parquet")
    with pytest.raises(
        DatasetError, match=r"expected the columns category, .*; got id, category.*source, vector missing"
    ):
        import_parquet(tmp_path / "few.parquet", tmp_path / "back")
    place = table.schema.get_field_index("vector")
    for column, message in (
        (pa.array(["x"] * 9), "expected lists of float32 in the column vector, got string"),
        (pa.array([[1] * 16] * 9), "expected lists of float32 in the column vector, got list"),
    ):
        pq.write_table(table.set_column(place, "vector", column), tmp_path / "odd.parquet")
        with pytest.raises(DatasetError, match=message):
            import_parquet(tmp_path / "odd.parquet", tmp_path / "back")
    numbers = table.set_column(1, "category", pa.array([[1]] * 9))
    pq.write_table(numbers, tmp_path / "odd.parquet")
    with pytest.raises(DatasetError, match="expected string in the column category"):
        import_parquet(tmp_path / "odd.parquet", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("damage", ["not parquet", "empty", "cut", "flipped", "folder", "missing"])
def test_files_that_are_no_whole_parquet_are_refused(memory, tmp_path, pq, damage):
    file = tmp_path / "m.parquet"
    export_parquet(memory, file)
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        chunk = pq.ParquetFile(file).metadata.row_group(0).column(7)
        place = chunk.data_page_offset + chunk.total_compressed_size - 5
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
    else:
        file.unlink()
        if damage == "folder":
            file.mkdir()
        elif damage != "missing":
            file.write_bytes(b"" if damage == "empty" else b"a,b\n1,2\n")
    with pytest.raises(DatasetError, match=r"m\.parquet"):
        import_parquet(file, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_rows_before_a_bad_one_stay_in_a_memory_that_was_there(memory, tmp_path, pa, pq, monkeypatch):
    export_parquet(memory, tmp_path / "m.parquet")
    pq.write_table(edit(pq.read_table(tmp_path / "m.parquet"), pa, "category", 5, ""), tmp_path / "bad.parquet")
    monkeypatch.setattr(parquet_module, "_AT_ONCE", 2)
    with create_like(tmp_path / "there", memory) as there:
        with pytest.raises(DatasetError, match="row 5"):
            import_parquet(tmp_path / "bad.parquet", there)
        assert len(there) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2, "package_version": "9.9"}, r"newer rarvision \(9\.9, schema 2"),
        ({"dim": 0}, "settings cannot be read"),
        ({"encoder_probe": "abc"}, "settings cannot be read"),
        ({"metadata": 7}, "settings cannot be read"),
    ],
)
def test_settings_that_cannot_be_understood_are_told(memory, tmp_path, pq, change, message):
    export_parquet(memory, tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    about = json.loads(table.schema.metadata[b"rarvision"]) | change
    table = table.replace_schema_metadata({"rarvision": json.dumps(about)})
    pq.write_table(table, tmp_path / "odd.parquet")
    with pytest.raises(DatasetError, match=message):
        import_parquet(tmp_path / "odd.parquet", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_folder_that_is_no_memory_is_left_alone(memory, tmp_path):
    export_parquet(memory, tmp_path / "m.parquet")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(MemoryStoreError):
        import_parquet(tmp_path / "m.parquet", tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_without_pyarrow_the_command_is_named(memory, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else real(name))
    for run in (
        lambda: export_parquet(memory, tmp_path / "m.parquet"),
        lambda: import_parquet(tmp_path / "m.parquet", tmp_path / "back"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'rarvision\[parquet\]'"):
            run()


def test_importing_rarvision_does_not_load_pyarrow():
    code = "import sys, rarvision.memory, rarvision.cli.main; print('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# Between memories ---------------------------------------------------------------------------------------------------


def test_a_memory_like_another_takes_its_entries(memory, tmp_path):
    with create_like(tmp_path / "like", memory) as like:
        assert (len(like), like.info().metadata, like.encoder_fingerprint) == (0, {"from": ODD}, ENCODER.fingerprint)
        assert memory.copy_to(like).added == 9
        assert state(like) == state(memory)
        like.bind(ENCODER)


def test_a_memory_opened_twice_is_not_moved_into_itself(memory, tmp_path):
    (tmp_path / "link").symlink_to(memory.path)
    for path in (memory.path, tmp_path / "link"):
        with LocalMemory.open(path) as again, pytest.raises(OptionError, match="into itself"):
            memory.move_to(again)
    assert len(memory) == 9
