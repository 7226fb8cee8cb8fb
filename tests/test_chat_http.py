"""The HTTP chat against a fake server that follows the public API, and misbehaves."""

from __future__ import annotations

import base64
import inspect
import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from rarvision.chat import Chat, ChatRequest, HTTPChat, ListConstraint, LocalChat, Message, open_chat
from rarvision.errors import (
    ChatProtocolError,
    ChatUnavailableError,
    ChatUnsupportedError,
    ContextLengthError,
    ImageError,
    OptionError,
)
from rarvision.testing.chat import FakeChat, check_chat
from rarvision.testing.server import FakeServer, absent_url

HELLO = ChatRequest.of("hello")
FAST = {"backoff_s": 0.01, "retries": 2}


def one(server, **options):
    return HTTPChat(server.url, **{**FAST, **options})


def said(request_body):
    content = request_body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


# ---- the way it should go ----


def test_answer_and_what_was_sent():
    with FakeServer("['b', 'a']") as server:
        chat = one(server)
        image = Image.new("RGB", (20, 10), (200, 30, 40))
        request = ChatRequest(
            messages=(Message(role="system", parts=("Be brief.",)), Message(role="user", parts=(image, "which?")))
        )
        answer = chat.generate([request], max_tokens=7)[0]
        assert (answer.text, answer.finish_reason) == ("['b', 'a']", "stop")
        assert chat.name == "fake-vlm"
        body = server.requests[0]
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("fake-vlm", 0, 7)
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        picture, text = body["messages"][1]["content"]
        assert text == {"type": "text", "text": "which?"}
        head, _, data = picture["image_url"]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        decoded = Image.open(io.BytesIO(base64.b64decode(data)))
        assert decoded.size == (20, 10)
        assert np.abs(np.asarray(decoded, dtype=int) - (200, 30, 40)).max() < 6


def test_png_is_lossless():
    pixels = np.random.default_rng(1).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    with FakeServer() as server:
        one(server, image_format="png").generate([ChatRequest.of("?", Image.fromarray(pixels))], max_tokens=1)
        url = server.requests[0]["messages"][0]["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
    assert np.array_equal(np.asarray(sent), pixels)


def test_order_and_concurrency():
    with FakeServer(lambda body: said(body)[::-1], delay_s=0.05) as server:
        chat = one(server, concurrency=4)
        requests = [ChatRequest.of(f"n{i}") for i in range(12)]
        answers = chat.generate(requests, max_tokens=3)
        assert [answer.text for answer in answers] == [f"n{i}"[::-1] for i in range(12)]
        assert 2 <= server.most_in_flight <= 4
        assert chat.generate([], max_tokens=3) == []


def test_key_and_extra_fields_are_sent_and_the_key_never_shown():
    key = "sk-very-secret-123"
    refuse = lambda _: (401, f"Incorrect API key provided: {key}")  # noqa: E731
    with FakeServer(refuse=refuse) as server:
        extra = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": None}
        chat = one(server, api_key=key, extra_body=extra)
        with pytest.raises(ChatUnavailableError, match="API key") as caught:
            chat.generate([HELLO], max_tokens=1)
        assert server.headers[0]["authorization"] == f"Bearer {key}"
        assert server.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
        assert "temperature" not in server.requests[0]
        assert len(server.requests) == 1  # asking again would not help
    assert key not in f"{caught.value!r} {chat!r} {chat.name}"


def test_password_in_the_address_is_never_shown():
    chat = HTTPChat(absent_url().replace("://", "://me:hunter2@"), model="m", retries=0)
    with pytest.raises(ChatUnavailableError) as caught:
        chat.generate([HELLO], max_tokens=1)
    assert "hunter2" not in f"{caught.value!r} {chat!r}"


def test_newer_token_limit_field():
    def refuse(body):
        return (400, "Unsupported parameter: use 'max_completion_tokens'") if "max_tokens" in body else None

    with FakeServer("ok", refuse=refuse) as server:
        chat = one(server)
        assert chat.generate([HELLO, HELLO], max_tokens=5)[1].text == "ok"
        assert server.requests[-1]["max_completion_tokens"] == 5


def test_several_models_ask_for_a_choice():
    with FakeServer(models=["one", "two"]) as server:
        with pytest.raises(OptionError, match="one, two"):
            one(server).generate([HELLO], max_tokens=1)
        assert one(server, model="two").generate([HELLO], max_tokens=1)
        assert server.requests[0]["model"] == "two"


def test_context_limit():
    with FakeServer(models=[{"id": "m", "max_model_len": 4096}]) as server:
        assert one(server).context_limit == 4096
        assert one(server, context_limit=99).context_limit == 99
    with FakeServer() as server:
        assert one(server).context_limit is None
    assert HTTPChat(absent_url(), retries=0).context_limit is None


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("This model's maximum context length is 4096 tokens", ContextLengthError),
        ("At most 1 image(s) may be provided in one request", ChatUnsupportedError),
        ("this model does not support image input", ChatUnsupportedError),
        ("invalid image: width must be larger than 28", ImageError),
        ("something else", ChatProtocolError),
    ],
)
def test_refusals(message, error):
    with FakeServer(refuse=lambda _: (400, message)) as server:
        with pytest.raises(error, match=re.escape(message)):
            one(server).generate([HELLO], max_tokens=1)
        assert len(server.requests) == 1


# ---- log-probabilities ----

FIRST = [("A", -0.5), (" B", -2.0), ("B", -3.0), ("The", -1.5), ("ye", -4.0), ("no", -5.0), ("C", -9.0)]


def test_option_log_probs():
    with FakeServer(top_logprobs=FIRST) as server:
        chat = one(server)
        letters, words = chat.option_log_probs([HELLO, HELLO], [["A", "B", "D"], ["yes", "no"]])
        both = np.log(np.exp(-2.0) + np.exp(-3.0))
        np.testing.assert_allclose(letters, [-0.5, both, -np.inf])
        np.testing.assert_allclose(words, [-4.0, -5.0])
        assert letters.dtype == np.float64
        body = server.requests[0]
        assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)
        np.testing.assert_allclose(one(server, top_logprobs=2).option_log_probs([HELLO], [["A", "C"]])[0][1], -np.inf)


def test_options_that_no_token_tells_apart_count_for_none():
    with FakeServer(top_logprobs=[("y", -1.0), ("yes", -2.0)]) as server:
        values = one(server).option_log_probs([HELLO], [["yes", "yellow"]])[0]
    np.testing.assert_allclose(values, [-2.0, -np.inf])


def test_server_that_ignores_logprobs():
    with FakeServer() as server:
        chat = one(server)
        with pytest.raises(ChatUnsupportedError, match="'generate'"):
            chat.option_log_probs([HELLO], [["A", "B"]])
        assert chat.capabilities.option_log_probs is False
        asked = len(server.requests)
        with pytest.raises(ChatUnsupportedError, match="'generate'"):
            chat.option_log_probs([HELLO], [["A", "B"]])
        assert len(server.requests) == asked  # known by now


def test_server_that_refuses_logprobs():
    def refuse(body):
        return (400, "logprobs is not supported") if "logprobs" in body else None

    with FakeServer(refuse=refuse) as server:
        assert one(server).capabilities.option_log_probs is False
        with pytest.raises(ChatUnsupportedError, match="'generate'"):
            one(server).option_log_probs([HELLO], [["A"]])


@pytest.mark.parametrize(
    ("message", "served"),
    [
        ("Requested sample logprobs of {n}, which is greater than max allowed: 8", 8),
        ("Invalid value for 'top_logprobs': must be between 0 and 3.", 3),
        ("top_logprobs is too large", 5),
        ("logprobs is not supported by vlm-4-mini", None),
        ("top_logprobs is not supported", None),
    ],
)
def test_a_server_that_caps_logprobs_is_asked_for_fewer(message, served):
    def refuse(body):
        wanted = body.get("top_logprobs", 0)
        return (400, message.format(n=wanted)) if wanted > (served or 0) else None

    with FakeServer(top_logprobs=FIRST, refuse=refuse) as server:
        chat = one(server, model="m")
        before = chat.settings
        assert chat.capabilities.option_log_probs is (served is not None)
        if served is None:
            return
        assert chat.capabilities.max_options == served
        assert chat.option_log_probs([HELLO] * 3, [["A", "B"]] * 3)[2][0] == -0.5
        assert [body["top_logprobs"] for body in server.requests] == [20, served, *[served] * 3], "it is remembered"
        assert chat.settings == before, "a run that goes on was given the same"
        with pytest.raises(ChatUnsupportedError):
            one(server, extra_body={"top_logprobs": 19}).option_log_probs([HELLO], [["A"]])


def test_capabilities_are_probed_once_or_given():
    with FakeServer(top_logprobs=FIRST) as server:
        chat = one(server)
        assert chat.capabilities.option_log_probs
        assert chat.capabilities.max_options == 20
        assert len(server.requests) == 1
        assert one(server, option_log_probs=False).capabilities.option_log_probs is False
        assert len(server.requests) == 1
    absent = HTTPChat(absent_url(), retries=0)
    assert absent.capabilities.option_log_probs is True  # the failure shows where an answer is asked for


def test_a_server_that_is_down_is_not_probed_again_and_again(monkeypatch):
    with FakeServer(top_logprobs=FIRST, always="500") as server:
        chat = one(server, retries=1)
        for _ in range(5):
            assert chat.capabilities.option_log_probs is True
        assert len(server.requests) == 2, "one probe, with its retry"
        with pytest.raises(ChatUnavailableError, match=r"answered 500.*the engine died.*2 attempts"):
            chat.option_log_probs([HELLO], [["A", "B"]])
        assert len(server.requests) == 4, "an answer is asked for all the same"
        monkeypatch.setattr("rarvision.chat.http._ASK_AGAIN_AFTER_S", 0.0)
        later = one(server, retries=0)
        assert [later.capabilities.option_log_probs for _ in range(3)] == [True] * 3
        assert len(server.requests) == 7, "when the time is over"


def test_a_server_that_is_back_is_probed_at_once():
    with FakeServer(faults=["500"]) as server:
        chat = one(server, retries=0)
        assert chat.capabilities.option_log_probs is True
        chat.generate([HELLO], max_tokens=1)
        assert chat.capabilities.option_log_probs is False
        assert len(server.requests) == 3


def test_an_absent_server_costs_one_wait(monkeypatch):
    tried = []
    chat = HTTPChat(absent_url(), retries=0)
    real = chat._client.get
    monkeypatch.setattr(chat._client, "get", lambda path: (tried.append(path), real(path))[1])
    for _ in range(4):
        assert chat.context_limit is None
    assert tried == ["models"]
    with pytest.raises(ChatUnavailableError, match="is the server running there"):
        chat.generate([HELLO], max_tokens=1)


def test_nonsense_log_probs():
    with FakeServer(top_logprobs=[("A", float("nan"))]) as server, pytest.raises(ChatProtocolError, match="logprobs"):
        one(server).option_log_probs([HELLO], [["A", "B"]])


def test_given_texts_have_no_likelihood():
    with pytest.raises(ChatUnsupportedError, match="generate"):
        HTTPChat("http://localhost:1/v1", model="m").continuation_log_probs([HELLO], [["a"]])


# ---- guided decoding ----


@pytest.mark.parametrize("field", ["structured_outputs", "guided_regex", "regex"])
def test_guided_lists(field):
    names = ("gold (finch)", "gold finch's", "猫")
    with FakeServer() as server:
        chat = one(server, guided=field)
        assert chat.capabilities.list_constraint
        chat.generate([HELLO], max_tokens=30, constraints=[ListConstraint(names=names)])
        sent = server.requests[-1][field]
        pattern = re.compile(sent["regex"] if field == "structured_outputs" else sent)
        for order in itertools.permutations(names):
            assert pattern.fullmatch("['" + "', '".join(order) + "']")
        assert not pattern.fullmatch("['猫', '猫', 'gold (finch)']")
        many = ListConstraint(names=tuple("abcdefg"))
        with pytest.raises(ChatUnsupportedError, match="up to 6"):
            chat.generate([HELLO], max_tokens=30, constraints=[many])


def test_constraints_without_guided_decoding():
    chat = HTTPChat("http://localhost:1/v1", model="m")
    with pytest.raises(ChatUnsupportedError, match="guided"):
        chat.generate([HELLO], max_tokens=3, constraints=[ListConstraint(names=("a", "b"))])


# ---- options and addresses ----


def test_wrong_address_of_a_working_server():
    with FakeServer() as server, pytest.raises(ChatUnavailableError, match="/v1"):
        HTTPChat(server.url.replace("/v1", "/api"), model="m").generate([HELLO], max_tokens=1)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/v1", "http://", ""])
def test_addresses_that_are_none(url):
    with pytest.raises(OptionError, match="http://127"):
        HTTPChat(url)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"top_logprobs": 21},
        {"timeout_s": 0.0},
        {"retries": -1},
        {"image_format": "gif"},
        {"guided": "grammar"},
    ],
)
def test_options_out_of_range(options):
    create = inspect.unwrap(HTTPChat.__init__)  # the tests' type checks would come first
    with pytest.raises(OptionError):
        create(object.__new__(HTTPChat), "http://localhost/v1", **options)


@pytest.mark.parametrize("suffix", ["", "/", "/chat/completions"])
def test_addresses_as_people_paste_them(suffix):
    with FakeServer("fine") as server:
        assert HTTPChat(server.url + suffix).generate([HELLO], max_tokens=1)[0].text == "fine"
        assert HTTPChat(server.url.removesuffix("/v1")).generate([HELLO], max_tokens=1)[0].text == "fine"


# ---- fakes and the contract ----


def test_open_chat(monkeypatch):
    with FakeServer(models=["one", "org/two"]) as server:
        chat = open_chat(f"{server.url}#org/two", retries=0)
        assert isinstance(chat, HTTPChat)
        assert chat.name == "org/two"
    opened = {}
    monkeypatch.setattr(LocalChat, "__init__", lambda self, model, **options: opened.update(model=model, **options))
    assert isinstance(open_chat("some/folder", batch_size=3), LocalChat)
    assert opened == {"model": "some/folder", "batch_size": 3}


def test_contract():
    with FakeServer(lambda body: said(body)[:5], top_logprobs=FIRST) as server:
        check_chat(one(server))
    with FakeServer(lambda body: said(body)[:5]) as server:
        check_chat(one(server))


def test_contract_of_the_fake():
    chat = FakeChat({"gold finch": -1.0, "barn owl": -0.5})
    check_chat(chat)
    image = Image.new("RGB", (8, 8))
    prompt = "categories:['gold finch', 'barn owl']."
    assert chat.generate([ChatRequest.of(prompt, image)], max_tokens=9)[0].text == "['barn owl', 'gold finch']"
    assert chat.calls[-1][0] == "generate"
    letters = chat.option_log_probs([ChatRequest.of("A. gold finch\nB. barn owl\n", image)], [["A", "B"]])[0]
    assert letters[1] - letters[0] == pytest.approx(0.5)
    texts = ["['gold finch'", "barn owl"]
    assert list(chat.continuation_log_probs([HELLO], [texts])[0][0]) == [-1.0, -0.5]


def test_fake_follows_its_script():
    answers = FakeChat(answers=["x", "y"])
    assert [a.text for a in answers.generate([HELLO, ChatRequest.of("2")], max_tokens=3)] == ["x", "y"]
    broken = FakeChat(error=ChatUnavailableError("down"))
    with pytest.raises(ChatUnavailableError, match="down"):
        broken.generate([HELLO], max_tokens=1)


class Careless(Chat):
    """Breaks the contract in the way that it is told."""

    name = "careless"
    context_limit = None

    def __init__(self, fault):
        self.fault, self.fake = fault, FakeChat({"gold finch": -1.0, "barn owl": -0.5})
        self.capabilities_ = self.fake.capabilities

    @property
    def capabilities(self):
        return self.capabilities_

    def generate(self, requests, *, max_tokens, constraints=None):
        answers = self.fake.generate(requests, max_tokens=max_tokens, constraints=constraints)
        if self.fault == "order":
            return answers[::-1]
        return answers if self.fault != "unconfined" else self.fake.generate(requests, max_tokens=max_tokens)

    def option_log_probs(self, requests, options):
        found = self.fake.option_log_probs(requests, options)
        return [values + 1.0 for values in found] if self.fault == "positive" else found

    def continuation_log_probs(self, requests, continuations):
        if self.fault == "unserved":
            raise ChatUnsupportedError("no")
        found = self.fake.continuation_log_probs(requests, continuations)
        return [(values - len(requests), counts) for values, counts in found] if self.fault == "batch" else found


@pytest.mark.parametrize("fault", ["order", "unconfined", "positive", "batch"])
def test_contract_notices(fault):
    with pytest.raises(AssertionError):
        check_chat(Careless(fault))
    check_chat(Careless(None))


def test_settings_tell_servers_apart_and_keep_the_key():
    plain = HTTPChat("http://127.0.0.1:1/v1", model="m", api_key="secret")
    other = HTTPChat("http://127.0.0.1:2/v1", model="m", extra_body={"seed": 1})
    assert plain.settings != other.settings
    assert "secret" not in str(plain.settings)
