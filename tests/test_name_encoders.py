"""Names as vectors: spelling against a plain rewrite, sentence encoders against one name at a time."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from huggingface_hub import constants as hub
from transformers import AutoModel, AutoTokenizer

from rarvision.encoders import NameEncoder, SentenceEncoder, SpellingEncoder, TextTower, open_name_encoder
from rarvision.errors import EncoderError, InputError
from rarvision.testing.encoders import FakeEncoder
from tiny_encoders import sentence_model

NAMES = ["tree sparrow", "a", "field sparrow", "house finch or something much longer"]


def one_by_one(folder, names, pooling):
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = {}
    for name in names:
        with torch.no_grad():
            tokens = model(**tokenizer([name], truncation=True, max_length=30, return_tensors="pt")).last_hidden_state
        vector = (tokens[0].mean(0) if pooling == "mean" else tokens[0, 0]).numpy()
        found[name] = vector / np.linalg.norm(vector)
    return found


@pytest.mark.parametrize(
    ("family", "given", "pooling"),
    [
        ("bert", None, "mean"),
        ("mpnet", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ("bert", {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True, "include_prompt": True}, "cls"),
        ("bert", {"pooling_mode": "mean", "embedding_dimension": 24}, "mean"),
    ],
)
def test_sentence_encoders_agree_with_one_name_at_a_time(tmp_path, family, given, pooling):
    modules = None if given is None else ["Transformer", "Pooling", "Normalize"]
    folder = sentence_model(tmp_path / "model", family=family, pooling=given, modules=modules)
    encoder = SentenceEncoder(folder, device="cpu", batch_size=3)
    assumed = " (mean over the tokens, assumed)" if given is None else ""
    assert (encoder.pooling, encoder.name) == (pooling, f"{folder}{assumed}")
    vectors, expected = encoder.encode(NAMES), one_by_one(folder, NAMES, pooling)
    for name in NAMES:
        np.testing.assert_allclose(vectors[name], expected[name], atol=2e-5)


def test_what_is_no_plain_sentence_encoder_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="parts that are not known here: Dense"):
        SentenceEncoder(sentence_model(tmp_path / "dense", modules=["Transformer", "Pooling", "Dense"]), device="cpu")
    with pytest.raises(EncoderError, match="pools by max_tokens"):
        SentenceEncoder(sentence_model(tmp_path / "max", pooling={"pooling_mode_max_tokens": True}), device="cpu")
    with pytest.raises(EncoderError, match="no model folder"):
        SentenceEncoder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match=r"config\.json, model\.safetensors"):
        SentenceEncoder(tmp_path / "empty")


def plain_cosine(first, second):
    def groups(name):
        words = "".join(c.lower() if c.isalnum() else " " for c in name).split()
        return Counter(f" {w} "[i : i + 3] for w in words for i in range(len(w)))

    one, two = groups(first), groups(second)
    norm = [sum(v * v for v in g.values()) ** 0.5 for g in (one, two)]
    return sum(count * two[group] for group, count in one.items()) / (norm[0] * norm[1])


def test_spelling_agrees_with_a_plain_rewrite():
    names = ["Black-footed Albatross", "Laysan Albatross", "black_footed  albatross", "B-2", "Boxer", "7"]
    vectors = SpellingEncoder().encode(names)
    for first in names:
        for second in names:
            assert float(vectors[first] @ vectors[second]) == pytest.approx(plain_cosine(first, second), abs=1e-6)
    odd = SpellingEncoder().encode(["Öland", "oland", "…", "鳥"])
    assert float(odd["Öland"] @ odd["oland"]) == pytest.approx(1.0)
    assert float(odd["…"] @ odd["鳥"]) == 0.0
    assert "not meaning" in SpellingEncoder().name


def test_by_what_a_person_writes(tmp_path):
    fake = FakeEncoder()
    assert isinstance(open_name_encoder("spelling"), SpellingEncoder)
    tower = open_name_encoder("memory", encoder=fake)
    assert isinstance(tower, TextTower)
    assert tower.name == "text tower of fake"
    np.testing.assert_allclose(tower.encode(["red"])["red"], fake.encode_texts(["red"])[0])
    with pytest.raises(InputError, match="memory"):
        open_name_encoder("memory")
    assert open_name_encoder(sentence_model(tmp_path / "m"), device="cpu").encode([]) == {}


def test_bad_names_and_bad_vectors():
    class Broken(NameEncoder):
        name = "broken"

        def _encode(self, names):
            return np.zeros((len(names), 3), dtype=np.float32)

    with pytest.raises(InputError, match="blank"):
        SpellingEncoder().encode(["a", " "])
    with pytest.raises(EncoderError, match="broken returned a vector that is zero"):
        Broken().encode(["a"])


def test_a_hub_name_works_from_the_cache_alone(tmp_path, monkeypatch):
    given = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    built = sentence_model(tmp_path / "m", pooling=given, modules=["Transformer", "Pooling"])
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--someone--sentences"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(built, repository / "snapshots" / commit)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    encoder = SentenceEncoder("someone/sentences", device="cpu")
    assert (encoder.name, encoder.pooling) == ("someone/sentences", "cls")
    np.testing.assert_allclose(encoder.encode(["a"])["a"], one_by_one(built, ["a"], "cls")["a"], atol=2e-5)
    shutil.rmtree(repository / "snapshots" / commit / "1_Pooling")
    with pytest.raises(EncoderError, match=r"names a pooling, but .*\(hf download someone/sentences\)"):
        SentenceEncoder("someone/sentences", device="cpu")  # how it pools cannot be known: not guessed
