"""Many requests at a time: who waits for whom, what is given up, and what is encoded how often."""

from __future__ import annotations

import gc
import json
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest
from PIL import Image

from chat_requests import mixed_requests, picture
from rarvision.chat import ChatRequest, HTTPChat, rendering
from rarvision.chat.lanes import Lanes, Turn
from rarvision.chat.rendering import EncodedImages, OpenAIRequest, openai_messages
from rarvision.chat.threads import Errand, ordered, ordered_stream
from rarvision.errors import ChatProtocolError, ChatUnavailableError
from rarvision.testing.server import FakeServer

HELLO = ChatRequest.of("hello")


def one(server, **options):
    return HTTPChat(server.url, **{"backoff_s": 0.01, "retries": 2, "model": "m", **options})


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def threads(name):
    return {thread for thread in threading.enumerate() if thread.name == name}


# ---- streams ----


def stream(ask, items, *, threads=4, weight=lambda _: 1 / 8, weight_answered=1 / 64):
    return ordered_stream(ask, items, threads=threads, weight=weight, weight_answered=weight_answered)


def test_a_stream_keeps_the_order_whoever_is_slow():
    def ask(number):
        time.sleep(0.02 * (number % 3 == 0))
        return number

    assert list(stream(ask, iter(range(50)))) == list(range(50))
    assert list(stream(ask, [])) == []


def test_a_stream_is_taken_as_far_ahead_as_its_weight_allows():
    taken, release = [], threading.Event()

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    def ask(number):
        assert release.wait(20)
        return number

    answers = stream(ask, items())
    first = ThreadPoolExecutor(1).submit(next, answers)
    until(lambda: len(taken) == 8)
    time.sleep(0.1)
    assert len(taken) == 8, "eight of an eighth"
    release.set()
    assert first.result(20) == 0
    assert list(answers) == list(range(1, 100))


def test_what_is_answered_makes_room_before_its_turn_comes():
    done, release = [], threading.Event()

    def ask(number):
        assert number or release.wait(20)
        done.append(number)
        return number

    answers = stream(ask, range(100))
    first = ThreadPoolExecutor(1).submit(next, answers)
    until(lambda: len(done) == 56)  # of a 64th each, beside the first one's eighth
    time.sleep(0.1)
    assert len(done) == 56
    release.set()
    assert first.result(20) == 0
    assert list(answers) == list(range(1, 100))


def test_one_that_is_too_heavy_goes_alone():
    under_way, most = [], []

    def ask(number):
        under_way.append(number)
        most.append(len(under_way))
        time.sleep(0.01)
        under_way.remove(number)
        return number

    assert list(stream(ask, range(8), weight=lambda _: 7.0)) == list(range(8))
    assert max(most) == 1


def test_a_failure_is_raised_when_its_turn_comes_and_nothing_begins_after_it():
    begun, release = [], threading.Event()

    def ask(number):
        begun.append(number)
        if number == 3:
            raise ChatProtocolError("three")
        assert number != 2 or release.wait(20)
        return number

    answers = stream(ask, range(1000), threads=2, weight=lambda _: 0.5)
    assert [next(answers), next(answers)] == [0, 1]
    threading.Timer(0.2, release.set).start()
    assert next(answers) == 2
    with pytest.raises(ChatProtocolError, match="three"):
        next(answers)
    assert len(begun) < 10


def test_closing_a_stream_calls_off_what_is_under_way():
    waiting, ended = [], []

    def ask(number):
        if number == 0:
            until(lambda: len(waiting) == 2)
            return number
        waiting.append(number)
        try:
            return Errand.here().result(Future())
        except CancelledError:
            ended.append(number)
            raise

    answers = stream(ask, range(100), threads=3)
    assert next(answers) == 0
    answers.close()
    until(lambda: sorted(ended) == sorted(waiting))
    time.sleep(0.05)
    assert len(waiting) <= 3, "what had not begun is not begun"


def test_what_is_called_off_takes_its_parts_along():
    whole = Errand()
    part, other = Errand(whole), Errand()
    both = Errand(part, other)
    waiting = [ThreadPoolExecutor(1).submit(errand.result, Future()) for errand in (part, both)]
    time.sleep(0.05)
    whole.call_off()
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(20)
    assert both.over
    assert not other.over
    with pytest.raises(CancelledError):
        both.result(Future())
    given = Future()
    given.set_result(7)
    assert both.result(given) == 7, "what is there is given all the same"


def test_a_batch_inside_a_stream_is_called_off_with_it():
    waiting, ended = [], []

    def wait(number):
        waiting.append(number)
        try:
            Errand.here().result(Future())
        except CancelledError:
            ended.append(number)
            raise

    def ask(number):
        if number == 0:
            until(lambda: len(waiting) == 2)
            return number
        return ordered(wait, range(5), threads=2)

    before = threads("rarvision-ask")
    answers = stream(ask, range(9), threads=2)
    assert next(answers) == 0
    answers.close()
    until(lambda: len(ended) >= 2)
    until(lambda: not threads("rarvision-ask") - before)


# ---- lines ----


class Line:
    def __init__(self):
        self.closed = False

    def close(self):
        self.closed = True


def lanes_of(places):
    made = []

    def make():
        made.append(Line())
        return made[-1]

    return Lanes(places, make), made


def attempt(lanes, work, *, errand=None, timeout_s=20.0):
    with Turn(lanes, errand or Errand()) as turn:
        return turn.attempt(work, timeout_s=timeout_s)


@pytest.mark.parametrize("places", [1, 2])
def test_lines_are_taken_in_turn_and_no_more_than_there_are_places(places):
    lanes, made = lanes_of(places)
    order, release = [], threading.Event()

    def work(number):
        assert release.wait(20)
        order.append(number)

    with ThreadPoolExecutor(6) as pool:
        for number in range(6):
            pool.submit(attempt, lanes, lambda _line, number=number: work(number))
            time.sleep(0.02)
        assert len(made) == places
        release.set()
    assert sorted(order) == list(range(6))
    assert order == sorted(order) or places > 1
    assert len(made) == places
    lanes.close()
    assert all(line.closed for line in made)


def test_time_to_wait_for_a_line_is_not_time_of_the_attempt():
    lanes, _ = lanes_of(1)
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda _: attempt(lanes, lambda _: time.sleep(0.1) or 7, timeout_s=0.3), range(5)))
    assert found == [7] * 5
    lanes.close()


def test_a_line_that_is_held_up_is_left_alone_and_its_place_goes_on():
    lanes, made = lanes_of(1)
    before, release = threads("rarvision-http"), threading.Event()
    with pytest.raises(TimeoutError):
        attempt(lanes, lambda _: release.wait(20), timeout_s=0.05)
    assert made[0].closed
    assert attempt(lanes, lambda line: line is made[1])
    release.set()
    until(lambda: len(threads("rarvision-http") - before) == 1)
    assert attempt(lanes, lambda line: line is made[1]), "the one left alone is not used again"
    lanes.close()
    until(lambda: not threads("rarvision-http") - before)


def test_a_place_is_kept_between_attempts_and_passed_on_after_the_last():
    lanes, _ = lanes_of(1)
    done = []

    def stumble(_line):
        done.append("first")
        raise ChatUnavailableError("again")

    with ThreadPoolExecutor(1) as pool:
        with Turn(lanes, Errand()) as turn:
            with pytest.raises(ChatUnavailableError):
                turn.attempt(stumble, timeout_s=20)
            other = pool.submit(attempt, lanes, lambda _: done.append("other"))
            time.sleep(0.1)
            turn.attempt(lambda _: done.append("second"), timeout_s=20)
        other.result(20)
    assert done == ["first", "second", "other"]
    lanes.close()


def test_who_is_told_to_stop_waiting_for_a_line_leaves_the_queue():
    lanes, _ = lanes_of(1)
    begun, release, errand = threading.Event(), threading.Event(), Errand()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(attempt, lanes, lambda _: begun.set() or release.wait(20))
        assert begun.wait(20)
        second = pool.submit(attempt, lanes, lambda _: pytest.fail("not wanted any more"), errand=errand)
        time.sleep(0.05)
        third = pool.submit(attempt, lanes, lambda _: "third")
        time.sleep(0.05)
        errand.call_off()
        with pytest.raises(CancelledError):
            second.result(20)
        release.set()
        assert first.result(20)
        assert third.result(20) == "third"
    lanes.close()


# ---- the chat ----


def test_all_callers_together_keep_to_the_concurrency():
    with FakeServer("fine", delay_s=0.05) as server:
        chat = one(server, concurrency=3)
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda n: chat.generate([HELLO] * n, max_tokens=1), [1, 4, 1, 5, 1, 3]))
        assert [len(answers) for answers in found] == [1, 4, 1, 5, 1, 3]
        assert server.most_in_flight == 3
        chat.close()


def test_places_are_free_at_once_after_a_failure():
    with FakeServer("fine", faults=[*["slow"] * 3, "html"], slow_s=60) as server:
        chat = one(server, concurrency=4, retries=0)
        start = time.monotonic()
        with pytest.raises(ChatProtocolError):
            chat.generate([HELLO] * 9, max_tokens=1)
        assert [answer.text for answer in chat.generate([HELLO] * 4, max_tokens=1)] == ["fine"] * 4
        assert time.monotonic() - start < 30, "those who were under way are not waited for"
        chat.close()


def test_a_chat_that_is_dropped_takes_its_threads_along():
    before = threads("rarvision-http")
    with FakeServer("fine") as server:
        chat = one(server, concurrency=3)
        chat.generate([HELLO] * 5, max_tokens=1)
        assert threads("rarvision-http") - before
        del chat
        gc.collect()
        until(lambda: not threads("rarvision-http") - before)


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_the_body_is_the_json_of_the_messages(image_format):
    for request in mixed_requests():
        fields = {"model": "größer", "temperature": None, "max_tokens": 3}
        body = OpenAIRequest(request, EncodedImages([request], image_format)).body(fields)
        messages = openai_messages(request, image_format=image_format)
        assert json.loads(body) == {"messages": messages, "model": "größer", "max_tokens": 3}
        mine = OpenAIRequest(request, EncodedImages([request], image_format)).body({"messages": "mine"})
        assert json.loads(mine) == {"messages": "mine"}


def test_an_image_is_encoded_once_for_all_questions_about_it(monkeypatch):
    encoded = []
    real = rendering._base64

    def counting(image, image_format, quality=95):
        encoded.append(image)
        time.sleep(0.02)  # others ask for it meanwhile
        return real(image, image_format, quality)

    monkeypatch.setattr(rendering, "_base64", counting)
    first, second = picture(0, 40, 30), picture(1, 40, 30)
    with FakeServer("fine") as server:
        chat = one(server, concurrency=4)
        requests = [ChatRequest.of(f"{n}", image) for image in (first, second) for n in range(6)]
        chat.generate([*requests, ChatRequest.of("both", second, first, first)], max_tokens=1)
        assert len(encoded) == 2
        sent = {url for body in server.requests for url in urls_of(body)}
        assert sent == {rendering.data_uri(first), rendering.data_uri(second)}
        encoded.clear()
        chat.generate(requests[:1], max_tokens=1)
        assert len(encoded) == 1, "nothing is kept from call to call, as the image may have changed"
        chat.close()


def urls_of(body):
    return [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]


def test_an_image_that_cannot_be_encoded_fails_for_all_who_wait_for_it():
    image = Image.new("RGB", (0, 5))
    images = EncodedImages([ChatRequest.of("a", image), ChatRequest.of("b", image)], "jpeg")
    for _ in range(2):
        with pytest.raises(Exception, match=r".+"):
            images.take(image)
