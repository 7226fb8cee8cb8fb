"""The HTTP chat against a server that is absent, slow, confused, or never ends; and being interrupted meanwhile."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import httpx
import pytest

from rarvision.chat import ChatRequest, HTTPChat
from rarvision.errors import ChatProtocolError, ChatUnavailableError
from rarvision.testing.server import FakeServer, absent_url

HELLO = ChatRequest.of("hello")
FAST = {"backoff_s": 0.01, "retries": 2}


def one(server, **options):
    return HTTPChat(server.url, **{**FAST, **options})


def test_absent_server():
    url = absent_url()
    with pytest.raises(ChatUnavailableError, match=re.escape(url)):
        HTTPChat(url, model="m", retries=1, backoff_s=0.01).generate([HELLO], max_tokens=1)
    with pytest.raises(ChatUnavailableError, match="running"):
        HTTPChat(url, retries=0).generate([HELLO, HELLO], max_tokens=1)


@pytest.mark.parametrize("fault", ["429", "500", "hang-up", "html", "truncated", "no-body"])
def test_failures_that_pass(fault):
    with FakeServer("fine", faults=[fault, fault]) as server:
        assert one(server).generate([HELLO], max_tokens=1)[0].text == "fine"
        assert len(server.requests) == 3


@pytest.mark.parametrize(("fault", "match"), [("429", "429"), ("500", "500.*engine died"), ("hang-up", "running")])
def test_failures_that_stay(fault, match):
    with FakeServer(always=fault) as server:
        with pytest.raises(ChatUnavailableError, match=f"{match}.*3 attempts"):
            one(server).generate([HELLO], max_tokens=1)
        assert len(server.requests) == 3


@pytest.mark.parametrize("header", ["0.4", formatdate(time.time() + 2, usegmt=True)], ids=["seconds", "date"])
def test_retry_after_is_honoured(header):
    if "," in header:
        header = formatdate(time.time() + 2, usegmt=True)  # whole seconds: at least one from now
    with FakeServer("fine", faults=["429"], retry_after=header) as server:
        start = time.monotonic()
        assert one(server).generate([HELLO], max_tokens=1)[0].text == "fine"
        assert 0.35 < time.monotonic() - start < 20


def test_a_wait_of_an_hour_is_not_waited():
    with FakeServer(always="429", retry_after="3600") as server:
        with pytest.raises(ChatUnavailableError, match="3600 s"):
            one(server).generate([HELLO], max_tokens=1)
        assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["slow", "drip", "endless-headers"])
def test_slow_server(fault):
    with FakeServer(always=fault, slow_s=90) as server:
        start = time.monotonic()
        with pytest.raises(ChatUnavailableError, match=r"within 0\.3 s|timeout_s"):
            one(server, timeout_s=0.3, retries=1).generate([HELLO], max_tokens=1)
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("fault", "match", "attempts"),
    [
        ("html", r"It works!.*\(3 attempts\)", 3),
        ("truncated", r"chatcmpl.*\(3 attempts\)", 3),
        ("no-body", r"got nothing.*\(3 attempts\)", 3),
        ("no-choices", "choices", 1),
        ("endless-body", "MiB", 1),
    ],
)
def test_not_the_protocol(fault, match, attempts):
    with FakeServer(always=fault) as server:
        with pytest.raises(ChatProtocolError, match=match):
            one(server).generate([HELLO], max_tokens=1)
        assert len(server.requests) == attempts


@pytest.mark.parametrize("fault", ["empty", "null"])
def test_empty_answer(fault):
    with FakeServer(always=fault) as server:
        assert one(server).generate([HELLO], max_tokens=1)[0].text == ""


def test_endless_text_is_cut():
    with FakeServer(always="endless") as server:
        answer = one(server, max_answer_chars=500).generate([HELLO], max_tokens=1)[0]
    assert (len(answer.text), answer.finish_reason) == (500, "characters")


def test_first_failure_ends_the_batch():
    with FakeServer(faults=["html"], always="slow", slow_s=60) as server:
        start = time.monotonic()
        with pytest.raises(ChatProtocolError):
            one(server, concurrency=2, retries=0).generate([HELLO] * 20, max_tokens=1)
        assert time.monotonic() - start < 30
        assert len(server.requests) <= 4


def test_connecting_is_given_less_time(monkeypatch):
    seen = []

    def stuck(self, _method, url, **_):
        if ":1/" in str(url):  # not what another test's threads still ask
            seen.append(self.timeout.connect)
        raise httpx.ConnectTimeout("timed out")

    monkeypatch.setattr(httpx.Client, "stream", stuck)
    for given, connect in ((60.0, 10), (3.0, 3)):
        with pytest.raises(ChatUnavailableError, match=f"no connection within {connect} s; is the server running"):
            HTTPChat("http://127.0.0.1:1/v1", model="m", timeout_s=given, retries=0).generate([HELLO], max_tokens=1)
    assert seen == [10.0, 3.0]


# ---- being interrupted ----

WAITING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
from rarvision.chat import ChatRequest, HTTPChat
chat = HTTPChat(sys.argv[1], concurrency=3)
chat.generate([ChatRequest.of("hello")] * int(sys.argv[2]), max_tokens=1)
"""


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("fault", ["slow", "429", "endless-headers"])
def test_an_interruption_ends_the_waiting(fault, count):
    with FakeServer(always=fault, slow_s=90, retry_after="90") as server:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING, server.url, str(count)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        deadline = time.monotonic() + 60
        while len(server.requests) < min(count, 3) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)  # let it begin to wait
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=100)
        took = time.monotonic() - start
    assert stderr.strip().endswith("KeyboardInterrupt")
    assert took < 40  # a tenth of a second on an idle machine; the request itself would take 60


@pytest.mark.parametrize("fault", ["slow", "429"])
def test_closing_ends_the_waiting(fault):
    with FakeServer(always=fault, slow_s=90, retry_after="90") as server:
        chat = one(server, model="m", timeout_s=80.0)
        failures = []

        def ask():
            try:
                chat.generate([HELLO], max_tokens=1)
            except ChatUnavailableError as error:
                failures.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        while not server.requests:
            time.sleep(0.01)
        time.sleep(0.2)
        chat.close()
        asking.join(timeout=20)
        assert not asking.is_alive()
        assert "was closed" in str(failures[0])
        assert len(server.requests) == 1
