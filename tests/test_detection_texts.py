"""Vocabularies as memories of texts: names, synonyms, definitions, official ids; from Python and the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from needs import need
from rarvision.detection import (
    Category,
    Vocabulary,
    add_vocabulary,
    category_ids,
    read_vocabulary,
    vocabulary_texts,
)
from rarvision.encoders import TEMPLATE_SETS, check_templates
from rarvision.errors import DatasetError, OptionError
from rarvision.memory import LocalMemory
from rarvision.retrieval import Retriever
from rarvision.testing import FakeEncoder

ROWS = [
    {"id": 3, "name": "bow_(weapon)", "synonyms": ["bow_(weapon)", "longbow", "string"], "def": "it shoots arrows"},
    {"id": 1, "name": "aerosol_can", "synonyms": ["aerosol_can", "spray_can"], "def": None, "frequency": "r"},
    {"id": 7, "name": "String", "synonyms": []},
    {"id": 9, "name": "String"},
    {"id": 12, "name": "bow_weapon"},
]


@pytest.fixture
def vocabulary(tmp_path):
    need("msgspec", group="detection")
    path = tmp_path / "categories.json"
    path.write_text(json.dumps({"images": [], "categories": ROWS}))
    return read_vocabulary(path)


def new_memory(folder):
    return LocalMemory.create(folder, encoder=FakeEncoder())


def test_texts_of_a_vocabulary(vocabulary):
    assert vocabulary[1].synonyms == ("bow_(weapon)", "longbow", "string")
    plain = vocabulary_texts(vocabulary)
    assert [(text.category_id, text.category, text.text) for text in plain.texts] == [
        (1, "aerosol can", "aerosol can"),
        (3, "bow (weapon)", "bow (weapon)"),
        (7, "String (7)", "String"),
        (9, "String (9)", "String"),
        (12, "bow weapon", "bow weapon"),
    ]
    assert tuple(text.category for text in plain.texts) == vocabulary.names
    assert dict(plain.disambiguated) == {"bow_(weapon)": "bow (weapon)", "String": "String (9)"}
    assert plain.same_but_for_case == ()
    more = vocabulary_texts(vocabulary, synonyms=True, definitions=True)
    assert [(t.category_id, t.kind, t.text) for t in more.texts if t.kind != "name"] == [
        (1, "synonym", "spray can"),
        (3, "synonym", "longbow"),
        (3, "definition", "bow (weapon), it shoots arrows"),
    ]
    assert more.shared_synonyms == ("bow weapon", "string")
    assert len(more.without_definition) == 4
    assert len(more.notes) == 3


def test_what_a_vocabulary_has_not_is_told():
    names = Vocabulary([Category(id=1, name="Box"), Category(id=2, name="box")], name="names.txt")
    for wanted in ("synonyms", "definitions"):
        with pytest.raises(OptionError, match=r"names\.txt: no category has"):
            vocabulary_texts(names, **{wanted: True})
    found = vocabulary_texts(names)
    assert found.same_but_for_case == (("Box", "box"),)
    assert "1 groups of names differ in upper and lower case alone" in found.notes[0]


def test_ids_survive_and_a_second_call_changes_nothing(vocabulary, tmp_path):
    with new_memory(tmp_path / "m") as memory:
        seen = []
        report = add_vocabulary(
            memory, vocabulary, synonyms=True, definitions=True, templates=["photo", "{}"], progress=seen.append
        )
        assert (report.categories, report.added.added, seen[-1]) == (5, 8, 8)
        assert category_ids(memory) == dict(zip(vocabulary.names, vocabulary.ids.tolist(), strict=True))
        entry = next(memory.entries(category="bow (weapon)", metadata={"text_kind": "synonym"}))
        assert (entry.source, entry.metadata["category_id"]) == ("longbow", 3)
        assert entry.metadata["templates"] == ["a photo of a {}.", "{}"]
        again = add_vocabulary(memory, vocabulary, synonyms=True, definitions=True, templates=["photo", "{}"])
        assert (again.added.added, again.added.skipped, len(memory)) == (0, 8, 8)
        queries = memory.encoder.encode_texts(["spray can", "longbow"], templates=["photo", "{}"])
        first = [found[0].category for found in Retriever(memory, k=2, source="text").retrieve(queries)]
        assert vocabulary.ids[vocabulary.columns_of_names(first)].tolist() == [1, 3]


def test_two_vocabularies_in_one_memory_are_refused(vocabulary, tmp_path):
    with new_memory(tmp_path / "m") as memory:
        add_vocabulary(memory, vocabulary)
        before = memory.content_hash
        for other in (Category(id=2, name="aerosol_can"), Category(id=3, name="acorn")):
            with pytest.raises(DatasetError, match="the memory holds another vocabulary"):
                add_vocabulary(memory, Vocabulary([other]))
        assert memory.content_hash == before
        assert add_vocabulary(memory, Vocabulary([Category(id=90, name="acorn")])).added.added == 1
        memory.add_texts(["acorn"], texts=["a nut"], metadata=[{"category_id": 91}])
        with pytest.raises(DatasetError, match=r"mix vocabularies.*'acorn' has id 90"):
            category_ids(memory)


def test_sets_of_templates():
    assert check_templates("clip-7") == TEMPLATE_SETS["clip-7"]
    assert check_templates(["plain", "clip-7", "x {}"]) == ("{}", *TEMPLATE_SETS["clip-7"], "x {}")
    assert all("{}" in template for templates in TEMPLATE_SETS.values() for template in templates)
    for wrong in ("clip-8", ["clip-8"], [], ["a {}", "b"]):
        with pytest.raises(OptionError, match="template"):
            check_templates(wrong)


def test_a_set_is_kept_by_its_name_and_encoded_again_by_it(tmp_path):
    with new_memory(tmp_path / "m") as memory:
        memory.add_texts(["red", "blue"], templates="clip-7", metadata=[{"a": 1}, {}])
        entries = list(memory.entries())
        assert [entry.metadata for entry in entries] == [{"a": 1, "templates": ["clip-7"]}, {"templates": ["clip-7"]}]
        expected = FakeEncoder().encode_texts(["red", "blue"], templates=TEMPLATE_SETS["clip-7"])
        np.testing.assert_allclose(memory.vectors([entry.id for entry in entries]), expected, atol=1e-6)
        assert memory.add_texts(["red"], templates=list(TEMPLATE_SETS["clip-7"])).skipped == 1
        other = FakeEncoder(seed=1)
        memory.reencode(other)
        expected = other.encode_texts(["red", "blue"], templates=TEMPLATE_SETS["clip-7"])
        np.testing.assert_allclose(memory.vectors([entry.id for entry in entries]), expected, atol=1e-6)
        with pytest.raises(OptionError, match="metadata of each name: got 1 names and 2"):
            memory.add_texts(["red"], metadata=[{}, {}])


def test_the_command_line_adds_vocabularies(run, vocabulary, tmp_path):
    file = tmp_path / "categories.json"
    result = run(
        "memory", "create", tmp_path / "m", file, "--vocabulary", "--synonyms", "--definitions",
        "--template", "clip-7", "--json",
    )  # fmt: skip
    assert json.loads(result.stdout) == {"added": 8, "skipped": 0, "failed": 0, "entries": 8, "categories": 5}
    assert "2 synonyms belong to several categories and are left out: bow weapon, string" in result.stderr
    with LocalMemory.open(tmp_path / "m") as memory:
        assert category_ids(memory)["bow (weapon)"] == 3
    names = tmp_path / "names.txt"
    names.write_text("cash_machine\npopper\n")
    result = run("memory", "create", tmp_path / "v", names, "--vocabulary", "--json")
    assert result.stderr == ""
    with LocalMemory.open(tmp_path / "v") as memory:
        assert category_ids(memory) == {"cash machine": 1, "popper": 2}
    result = run("memory", "add", tmp_path / "v", file, "--vocabulary", code=2)
    assert "another vocabulary" in result.stderr
    for arguments, message in (
        ((names, "--synonyms"), "go with --vocabulary"),
        ((names, "--vocabulary", "--definitions"), "no category has a definition"),
        ((names, "--vocabulary", "--shots", "2"), "names alone"),
        ((file,), "with --vocabulary"),
        ((names, "--template", "clip-8"), "clip-8"),
    ):
        result = run("memory", "add", tmp_path / "v", *arguments, code=2)
        assert message in " ".join(result.stderr.split())


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "options", "texts", "notes"),
    [
        ("lvis/lvis_v1_train_cat_info.json", {"synonyms": True, "definitions": True}, 3029, []),
        ("v3det/category_name_13204_v3det_2023_v1.txt", {}, 13204, ["45"]),
    ],
)
def test_real_vocabularies_go_into_a_memory(file, options, texts, notes, data_dir, tmp_path):
    need("msgspec", group="detection")
    vocabulary = read_vocabulary(data_dir / file)
    found = vocabulary_texts(vocabulary, **options)
    assert len(found.texts) == texts
    assert [note[:2] for note in found.notes] == notes
    assert found.disambiguated == ()
    with new_memory(tmp_path / "m") as memory:
        report = add_vocabulary(memory, vocabulary, cache=False, **options)
        assert report.added.added == len(found.texts)
        assert category_ids(memory) == dict(zip(vocabulary.names, vocabulary.ids.tolist(), strict=True))
