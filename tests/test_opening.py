"""A memory by what a person writes: folders and addresses in Milvus, without a server or its client."""

from __future__ import annotations

import pytest

from rarvision.errors import MissingExtraError, OptionError
from rarvision.memory import LocalMemory, MilvusMemory, bulk_ray, milvus_server, open_memory, opening
from rarvision.memory.milvus_server import credentials
from rarvision.memory.milvus_store import condition_of
from rarvision.testing import FakeEncoder

ENCODER = FakeEncoder(dim=16)


@pytest.mark.parametrize(
    ("address", "uri", "name", "database"),
    [
        ("milvus:pets.db#cats", "pets.db", "cats", ""),
        ("milvus:a b/pets.db", "a b/pets.db", "rarvision", ""),
        ("milvus:///srv/pets.db#cats", "/srv/pets.db", "cats", ""),
        ("milvus+http://host:19530#cats", "http://host:19530", "cats", ""),
        ("milvus+https://host/zoo#cats", "https://host", "cats", "zoo"),
    ],
)
def test_addresses(address, uri, name, database):
    place = opening._milvus(address)
    assert (place.uri, place.name, place.database) == (uri, name, database)


@pytest.mark.parametrize("folder", ["pets.memory", "/srv/pets", "milvus", "pets.db", "c:/pets", "milvusx:y"])
def test_everything_else_is_a_folder(folder):
    assert opening._milvus(folder) is None


@pytest.mark.parametrize(
    "address", ["milvus:pets", "milvus:", "milvus+ftp://host", "milvus+http://", "milvus+http://h:1?x=y"]
)
def test_wrong_addresses_say_what_is_expected(address):
    with pytest.raises(OptionError, match="expected milvus"):
        open_memory(address)


def test_credentials_in_an_address_are_refused_and_not_repeated():
    with pytest.raises(OptionError, match="RARVISION_MILVUS_TOKEN") as caught:
        open_memory("milvus+http://me:secret@host:19530#pets")
    assert "secret" not in str(caught.value)


def test_credentials_come_from_arguments_before_the_environment(monkeypatch):
    for name in ("TOKEN", "USER", "PASSWORD"):
        monkeypatch.delenv(f"RARVISION_MILVUS_{name}", raising=False)
    assert credentials(token=None, user=None, password=None) == ""
    monkeypatch.setenv("RARVISION_MILVUS_USER", "me")
    with pytest.raises(OptionError, match="password"):
        credentials(token=None, user=None, password=None)
    monkeypatch.setenv("RARVISION_MILVUS_PASSWORD", "x")
    assert credentials(token=None, user=None, password=None) == "me:x"
    monkeypatch.setenv("RARVISION_MILVUS_TOKEN", "key")
    assert credentials(token=None, user=None, password=None) == "key"
    assert credentials(token=None, user="you", password="y") == "you:y"
    assert credentials(token="mine", user=None, password=None) == "mine"


def test_conditions_hold_no_text_of_the_caller():
    text = condition_of(codes=[2, 1], source='x" or 1 == 1', metadata={"it's": ['"', 1, True, None]})
    assert text.startswith("category in [1, 2] and array_contains(terms, ")
    assert '"' not in text
    assert "'" not in text
    assert condition_of(metadata={"n": 1}) == condition_of(metadata={"n": 1.0}) != condition_of(metadata={"n": True})
    assert condition_of() == ""
    assert condition_of(codes=[]) is condition_of(metadata={"n": []}) is None


def test_a_folder_opens_and_is_made_like_another(tmp_path):
    with LocalMemory.create(tmp_path / "a", encoder=ENCODER, thumbnails=32, metadata={"of": "pets"}) as memory:
        memory.add_texts(["red"])
        with opening.create_like(tmp_path / "b", memory) as like:
            assert (like.dim, like.encoder_fingerprint, len(like)) == (16, ENCODER.fingerprint, 0)
            assert like.info().metadata == {"of": "pets"}
            assert like._thumbnail_size == 32
            like.bind(ENCODER)
            assert memory.copy_to(like).added == 1
    with open_memory(tmp_path / "b", encoder=ENCODER) as opened:
        assert opened.categories() == ["red"]


def test_missing_packages_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(milvus_server.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rarvision\[milvus\]'"):
        MilvusMemory.create(tmp_path / "a.db", encoder=ENCODER)
    monkeypatch.setattr(bulk_ray.importlib.util, "find_spec", lambda _: None)
    with (
        LocalMemory.create(tmp_path / "a", encoder=ENCODER) as memory,
        pytest.raises(MissingExtraError, match=r"pip install 'rarvision\[ray\]'"),
    ):
        bulk_ray.add_with_ray(memory, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "my pets"}, "letters, digits and underscores"),
        ({"name": "1st"}, "letters, digits and underscores"),
        ({"index": "flat"}, "'auto', 'exact', 'hnsw' or 'ivf'"),
        ({"index": "hnsw", "index_parameters": {"nlist": 3}}, "M, ef, efConstruction"),
        ({"index": "exact", "index_parameters": {"M": 3}}, "none"),
        ({"thumbnails": 0}, "at least 1 pixel"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        MilvusMemory.create(tmp_path / "a.db", encoder=ENCODER, **options)
    assert not (tmp_path / "a.db").exists()


def test_ray_options_go_with_ray(run, memory, tree):
    result = run("memory", "add", memory, tree, "--workers", 2, code=2)
    assert "go with --engine ray" in result.stderr
