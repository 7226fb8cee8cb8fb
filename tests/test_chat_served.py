"""The HTTP chat against a real, third-party server: ``transformers serve``, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from needs import do_without, need
from rarvision.chat import ChatRequest, HTTPChat, LocalChat
from rarvision.errors import ChatError, ChatUnavailableError, ChatUnsupportedError
from rarvision.testing.chat import check_chat
from tiny_models import tiny_llava

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module", autouse=True)
def _the_server_can_be_started():
    need("fastapi", "uvicorn", "openai", "python_multipart", group="serve")


def embedded_folder() -> Path | None:
    """The embedded MLLM's folder, where this installation has it."""
    try:
        from rarvision.embedded import weights_path
    except ImportError:
        return None
    with contextlib.suppress(Exception):
        folder = Path(weights_path("mllm"))
        return folder if (folder / "config.json").is_file() else None
    return None


@pytest.fixture(scope="module", params=["tiny", "embedded"])
def folder(request, tmp_path_factory):
    if request.param == "tiny":
        return tiny_llava(tmp_path_factory.mktemp("served") / "llava")
    found = embedded_folder()
    if found is None:
        do_without("the embedded weights are not there")
    return found


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    """Start the server on a free port, wait until it answers, stop it in the end."""
    home = tmp_path_factory.mktemp("home")
    (home / "hub").mkdir()  # without, the server's /v1/models fails
    command = Path(sys.executable).with_name("transformers")
    if not command.exists():
        command = Path(shutil.which("transformers") or pytest.fail("no command 'transformers'"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = home / "server.log"
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    arguments = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", str(folder)]
    with log.open("wb") as output:
        server = subprocess.Popen([command, *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 500
        while True:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not come up:\n{log.read_text()[-3000:]}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def served(url, folder):
    # a lossless format, so that the server sees the same pixels as the local model
    chat = HTTPChat(url, model=str(folder), image_format="png", timeout_s=120, concurrency=3)
    yield chat
    chat.close()


def requests():
    rng = np.random.default_rng(0)
    texts = ["Which category does the image show?", "Sort: ['gold finch', 'barn owl'].", "yes or no?"]
    return [ChatRequest.of(text, Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))) for text in texts]


def test_answers_equal_the_local_model_s(served, folder):
    local = LocalChat(folder, device="cpu")
    expected = [answer.text.strip() for answer in local.generate(requests(), max_tokens=8)]
    assert [answer.text.strip() for answer in served.generate(requests(), max_tokens=8)] == expected
    assert len(set(expected)) > 1


def test_what_it_serves(served):
    """It ignores ``logprobs``: that must be noticed, not read as something."""
    assert served.capabilities.option_log_probs is False
    with pytest.raises(ChatUnsupportedError, match="'generate'"):
        served.option_log_probs(requests(), [["A", "B"]] * 3)


def test_contract(served):
    check_chat(served)


def test_unknown_model(url):
    with pytest.raises(ChatError):
        HTTPChat(url, model="nobody/nothing", retries=0).generate(requests()[:1], max_tokens=2)


def test_wrong_path(url):
    with pytest.raises(ChatUnavailableError, match="/v1"):
        HTTPChat(url.replace("/v1", "/v7"), model="m", retries=0).generate(requests()[:1], max_tokens=2)
