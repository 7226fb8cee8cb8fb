"""Loading a local model: what is refused and what is advised, options, processors without torchvision."""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from chat_requests import mixed_requests
from rarvision.chat import LocalChat
from rarvision.errors import (
    ChatUnavailableError,
    ChatUnsupportedError,
    MissingExtraError,
    OptionError,
)
from tiny_models import FAMILIES


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: make(root / family) for family, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def llava(folders):
    return LocalChat(folders["llava"], device="cpu")


def test_no_such_model(tmp_path):
    with pytest.raises(ChatUnavailableError, match="no model folder"):
        LocalChat(tmp_path / "nothing")
    with pytest.raises(ChatUnavailableError, match="cannot load"):
        LocalChat("nobody/nothing-of-that-name")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ChatUnavailableError, match="cannot load"):
        LocalChat(tmp_path / "empty")


def test_the_home_folder_is_found(folders, llava, monkeypatch):
    monkeypatch.setenv("HOME", str(folders["llava"].parent))
    monkeypatch.setenv("USERPROFILE", str(folders["llava"].parent))
    for given in ("~/llava", Path("~/llava")):
        chat = LocalChat(given, device="cpu")
        assert chat.settings == llava.settings
        assert chat.name == str(folders["llava"])
    with pytest.raises(ChatUnavailableError, match=r"no model folder at /.*/nothing; give a folder"):
        LocalChat("~/nothing")


def test_remote_code_is_not_run(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen_first", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}})
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ChatUnsupportedError, match="HTTPChat"):
        LocalChat(tmp_path)
    assert "evil" not in sys.modules


def test_unknown_and_text_only_models(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "from-the-future"}))
    with pytest.raises(ChatUnsupportedError, match="HTTPChat"):
        LocalChat(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ChatUnsupportedError, match="images and text"):
        LocalChat(tmp_path)


def test_pickled_weights_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["llava"], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ChatUnsupportedError, match="safetensors"):
        LocalChat(folder)


def test_no_chat_template(folders, tmp_path):
    folder = shutil.copytree(folders["llava"], tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ChatUnsupportedError, match="chat template"):
        LocalChat(folder)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"dtype": "int3"}, {"device": "abacus"}, {"quantization": "3bit"}],
)
def test_options_out_of_range(folders, options):
    create = inspect.unwrap(LocalChat.__init__)  # the tests' type checks would come first
    with pytest.raises(OptionError):
        create(object.__new__(LocalChat), folders["llava"], **options)


def test_missing_extras(folders, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in ("bitsandbytes", "accelerate") else real(name, *a)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'rarvision\[quantized\]'"):
        LocalChat(folders["llava"], quantization="4bit")
    with pytest.raises(MissingExtraError, match=r"pip install 'rarvision\[device-map\]'"):
        LocalChat(folders["llava"], device_map="auto")


def test_dtype(folders, llava):
    assert llava._model.dtype == torch.float32
    chat = LocalChat(folders["llava"], dtype="bfloat16")
    assert chat._model.dtype == torch.bfloat16
    request = mixed_requests()[0]
    half = chat.option_log_probs([request], [["A", "B"]])[0]
    np.testing.assert_allclose(half, llava.option_log_probs([request], [["A", "B"]])[0], atol=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pixels_do_not_depend_on_torchvision(folders, family, monkeypatch):
    import transformers

    asked = []
    real = transformers.AutoImageProcessor.from_pretrained

    def spy(*arguments, **options):
        asked.append(options.get("backend"))
        return real(*arguments, **options)

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", spy)
    processor = LocalChat(folders[family])._processor
    assert type(processor.image_processor).__name__.endswith("Pil")
    assert asked[-1] == "pil", "by default the other backend is chosen where torchvision is installed"


def test_an_image_processor_that_is_not_to_be_had_alone(folders, monkeypatch):
    import transformers

    whole = transformers.AutoProcessor.from_pretrained(folders["llava"])

    def refuse(*_, **__):
        raise ValueError("no image processor of its own")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: whole)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", refuse)
    assert LocalChat(folders["llava"])._processor.image_processor is whole.image_processor


def test_loading_shows_no_bar(folders, capsys):
    from transformers.utils import logging

    logging.enable_progress_bar()
    LocalChat(folders["llava"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_processor_without_torchvision(folders, family, monkeypatch):
    """What AutoProcessor raises without torchvision must lead to the image-only processor, in any environment."""
    import transformers

    def refuse(*_, **__):
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", refuse)
    chat = LocalChat(folders[family])
    assert type(chat._processor).__name__.startswith("ImageOnly")
    assert chat.generate([mixed_requests()[1]], max_tokens=3)


def test_processor_that_needs_something_else(folders, monkeypatch):
    import transformers

    def refuse(*_, **__):
        raise ImportError("LlavaProcessor requires the Abacus library")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", refuse)
    with pytest.raises(ChatUnsupportedError, match="Abacus"):
        LocalChat(folders["llava"])
