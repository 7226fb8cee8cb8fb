"""Adapters: on the right model they answer as trained, on others they are refused; merged, they are a model."""

from __future__ import annotations

import gc
import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from chat_requests import picture
from rarvision.chat import ChatRequest, LocalChat, open_chat
from rarvision.chat.adapters import ADAPTER_WEIGHTS, Adapter
from rarvision.checkpoints import weights_fingerprint
from rarvision.errors import AdapterError, InputError, MissingExtraError, OptionError
from rarvision.ranking import Ranker
from rarvision.tuning import merge_adapter, recipe, train
from tiny_models import tiny_llava, tiny_qwen3_vl
from training_world import NAMES, manifest

MAKERS = {"llava": tiny_llava, "qwen3-vl": tiny_qwen3_vl}
QUESTION = "Which category does the image show?"


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A family -> its base model and an adapter for it."""
    data = manifest(tmp_path_factory.mktemp("data"), 8)

    @cache
    def tune(family):
        root = tmp_path_factory.mktemp(family)
        base = MAKERS[family](root / "base")
        changes = {"rank": 4, "batch_size": 4, "learning_rate": 3e-2, "projector_learning_rate": 3e-3, "epochs": 2}
        report = train(data, model=base, out=root / "run", recipe=recipe("lora", **changes), device="cpu")
        return base, report.result

    return tune


@pytest.fixture
def llava(tuned):
    return tuned("llava")


def scores(chat):
    requests = [ChatRequest.of(QUESTION, picture(seed, 20, 20)) for seed in range(2)]
    return np.concatenate([values for values, _ in chat.continuation_log_probs(requests, [NAMES] * 2)])


@pytest.mark.parametrize("family", ["llava", pytest.param("qwen3-vl", marks=pytest.mark.slow)])
def test_an_adapter_changes_the_answers_and_merged_gives_the_same(tuned, family, tmp_path):
    base, adapter = tuned(family)
    plain = scores(LocalChat(base, device="cpu"))
    chat = LocalChat(base, device="cpu", adapter=adapter)
    adapted = scores(chat)
    assert chat.prefix_reuse
    assert np.abs(adapted - plain).max() > 0.5
    merged = merge_adapter(adapter, tmp_path / "merged")
    assert merged == tmp_path / "merged"
    whole = LocalChat(merged, device="cpu")
    np.testing.assert_allclose(scores(whole), adapted, atol=1e-2, rtol=1e-4)
    request = [ChatRequest.of(QUESTION, picture(0, 20, 20))]
    assert whole.generate(request, max_tokens=8) == chat.generate(request, max_tokens=8)
    rankers = [Ranker(each, strategy="choice") for each in (whole, chat)]
    assert rankers[0].rank(picture(0, 20, 20), NAMES).order == rankers[1].rank(picture(0, 20, 20), NAMES).order


def test_an_adapter_is_part_of_the_settings(llava, tmp_path):
    base, adapter = llava
    plain, adapted = LocalChat(base, device="cpu"), open_chat(base, device="cpu", adapter=str(adapter))
    assert "adapter" not in plain.settings  # so that results of before there were adapters can be gone on with
    assert {**adapted.settings, "adapter": None} == {**plain.settings, "adapter": None}
    assert adapted.name == f"{base} + {adapter}"
    moved = shutil.copytree(adapter, tmp_path / "moved")
    assert LocalChat(base, device="cpu", adapter=moved).settings == adapted.settings
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1}))
    assert LocalChat(base, device="cpu", adapter=moved).settings != adapted.settings


def test_an_adapter_says_what_it_is(llava):
    base, adapter = llava
    metadata = Adapter.read(adapter).metadata
    fingerprint = weights_fingerprint(str(base), revision=None, missing=AdapterError)
    assert metadata["base"] == {"name": str(base), "revision": None, "fingerprint": fingerprint}
    assert metadata["recipe"]["rank"] == 4
    assert metadata["data"]["examples"] == 8
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        ADAPTER_WEIGHTS,
        "rarvision.json",
    ]


def test_an_adapter_of_another_model(tuned, tmp_path):
    base, adapter = tuned("llava")
    other = tiny_llava(tmp_path / "other", seed=1)  # the same shapes, other weights
    with pytest.raises(AdapterError, match=rf"was trained on {base}, whose weights are not those of {other}"):
        LocalChat(other, device="cpu", adapter=adapter)
    with pytest.raises(AdapterError, match="was trained on"):
        LocalChat(tiny_qwen3_vl(tmp_path / "qwen"), device="cpu", adapter=adapter)
    with pytest.raises(AdapterError, match="was trained on"):
        merge_adapter(adapter, tmp_path / "merged", model=other)
    assert not (tmp_path / "merged").exists()


def test_adapters_of_other_programs(tuned, tmp_path, caplog):
    base, adapter = tuned("llava")
    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    (foreign / "rarvision.json").unlink()
    assert np.array_equal(
        scores(LocalChat(base, device="cpu", adapter=foreign)), scores(LocalChat(base, device="cpu", adapter=adapter))
    )
    assert "does not tell its base model" in caplog.text
    with pytest.raises(AdapterError, match="does not fit the model"):
        LocalChat(tiny_qwen3_vl(tmp_path / "qwen"), device="cpu", adapter=foreign)
    stored = load_file(foreign / ADAPTER_WEIGHTS)
    first = min(stored)
    save_file({name: value for name, value in stored.items() if name != first}, foreign / ADAPTER_WEIGHTS)
    with pytest.raises(AdapterError, match="1 weights are on one side only, such as"):
        LocalChat(base, device="cpu", adapter=foreign)
    save_file({**stored, first: torch.zeros(1, 1)}, foreign / ADAPTER_WEIGHTS)
    with pytest.raises(AdapterError, match="does not fit the model"):
        LocalChat(base, device="cpu", adapter=foreign)


def test_adapters_as_peft_writes_them(llava, tmp_path):
    base, _ = llava
    model = AutoModelForImageTextToText.from_pretrained(base)
    with pytest.warns(FutureWarning, match="is_activation_checkpointing"):
        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)"))
    wrapped.save_pretrained(tmp_path / "peft")
    chat = LocalChat(base, device="cpu", adapter=tmp_path / "peft")
    np.testing.assert_allclose(scores(chat), scores(LocalChat(base, device="cpu")), atol=1e-4)  # zero at the start


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / ADAPTER_WEIGHTS).write_bytes((f / ADAPTER_WEIGHTS).read_bytes()[:-100]),
            "cut short or damaged",
        ),
        (lambda f: (f / ADAPTER_WEIGHTS).write_bytes(b""), "cut short or damaged"),
        (lambda f: flip(f / ADAPTER_WEIGHTS), "not those that were saved"),
        (lambda f: (f / ADAPTER_WEIGHTS).unlink(), "has no adapter_model.safetensors"),
        (lambda f: (f / "rarvision.json").write_text("{"), "is damaged"),
        (lambda f: (f / "adapter_config.json").unlink(), "no adapter at"),
        (shutil.rmtree, "there is no such folder"),
    ],
    ids=["short", "empty", "flipped", "without weights", "metadata", "without config", "nothing"],
)
def test_damaged_adapters(llava, tmp_path, spoil, message):
    base, adapter = llava
    copy = shutil.copytree(adapter, tmp_path / "copy")
    spoil(copy)
    for use in (
        lambda: LocalChat(base, device="cpu", adapter=copy),
        lambda: merge_adapter(copy, tmp_path / "merged", model=base),
    ):
        with pytest.raises(AdapterError, match=message):
            use()


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_what_is_given_instead_of_an_adapter_is_recognised(llava):
    base, adapter = llava
    with pytest.raises(AdapterError, match=rf"the folder of a training run; give {adapter}"):
        LocalChat(base, device="cpu", adapter=adapter.parent)
    with pytest.raises(AdapterError, match="a whole model; give it as the model"):
        LocalChat(base, device="cpu", adapter=base)


def test_without_peft(llava, tmp_path, monkeypatch):
    base, adapter = llava
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else object())
    for use in (
        lambda: LocalChat(base, device="cpu", adapter=adapter),
        lambda: merge_adapter(adapter, tmp_path / "merged"),
    ):
        with pytest.raises(MissingExtraError, match=r"peft: pip install 'rarvision\[tune\]'"):
            use()


def test_merging_into_what_is_there_or_in_no_format(llava, tmp_path):
    _, adapter = llava
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.txt").write_text("important")
    with pytest.raises(InputError, match="is there already"):
        merge_adapter(adapter, tmp_path / "there")
    with pytest.raises(OptionError, match="dtype must be one of"):
        merge_adapter(adapter, tmp_path / "merged", dtype="int8")
    (tmp_path / "empty").mkdir()
    merged = merge_adapter(adapter, tmp_path / "empty", dtype="bfloat16")
    assert {value.dtype for value in load_file(merged / "model.safetensors").values()} == {torch.bfloat16}
    assert not list(tmp_path.glob("*.part"))


def test_the_fingerprint_is_of_the_weights(llava, tmp_path):
    base, _ = llava

    def fingerprint(folder):
        return weights_fingerprint(str(folder), revision=None, missing=AdapterError)

    copy = shutil.copytree(base, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    assert fingerprint(copy) == fingerprint(base)
    model = AutoModelForImageTextToText.from_pretrained(base)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100kB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    assert fingerprint(tmp_path / "sharded") == fingerprint(base)
    stored = load_file(copy / "model.safetensors")
    name = max(stored, key=lambda key: stored[key].numel())
    save_file({**stored, name: stored[name] * 1.001}, copy / "model.safetensors")
    assert fingerprint(copy) != fingerprint(base)
    whole = (base / "model.safetensors").read_bytes()
    for length in (4, 1000, len(whole) - 10):
        (copy / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(AdapterError, match="cannot be read"):
            fingerprint(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"no model\.safetensors"):
        fingerprint(copy)
