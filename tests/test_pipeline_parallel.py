"""The one path with a ranker that takes several calls at a time: order, what is under way, failures, bounded memory."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from colour_world import COLOURS, ScriptedRanker, make_memory, picture
from rarvision.asking import Asker, Question
from rarvision.chat import HTTPChat
from rarvision.errors import ChatProtocolError, ChatUnavailableError, ImageError
from rarvision.pipeline import RecognitionFailure, Recognizer
from rarvision.ranking import Ranker
from rarvision.testing.server import FakeServer
from rarvision.types import Prediction

ANSWER = str(list(COLOURS))


@pytest.fixture
def memory(tmp_path):
    with make_memory(tmp_path / "memory") as made:
        yield made


class ParallelRanker(ScriptedRanker):
    """The scripted one, that takes its time with some colours, and notes what was under way."""

    def __init__(self, first="blue", *, calls=4, slow=(), pause_s=0.0, **options):
        super().__init__(first, **options)
        self.parallel_calls_, self.pause_s = calls, pause_s
        self.slow = {Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in slow}
        self.lock, self.under_way, self.most = threading.Lock(), 0, 0

    @property
    def parallel_calls(self):
        return self.parallel_calls_

    def _rank_distinct(self, images, names):
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            time.sleep(self.pause_s * (3 if images[0].getpixel((0, 0)) in self.slow else 1))
            return super()._rank_distinct(images, names)
        finally:
            with self.lock:
                self.under_way -= 1


def colours(count):
    return [COLOURS[i] for i in np.random.default_rng(0).integers(len(COLOURS), size=count)]


def test_outcomes_are_those_of_batches_and_in_order(memory):
    given = colours(60)
    batches = Recognizer(memory, ranker=ScriptedRanker(), k=6, batch_size=7).recognize_batch(map(picture, given))
    ranker = ParallelRanker(slow=["red", "white"], pause_s=0.002)
    stream = Recognizer(memory, ranker=ranker, k=6, batch_size=7).recognize_batch(map(picture, given))
    assert ranker.batches == [1] * 60
    assert 2 <= ranker.most <= 4
    assert [outcome.source for outcome in stream] == [f"image {i}" for i in range(60)]
    for one, other in zip(batches, stream, strict=True):
        assert (one.label, one.retrieved, one.ranking) == (other.label, other.retrieved, other.ranking)
        assert one.probability == pytest.approx(other.probability)


def test_all_places_stay_taken_across_batches(memory):
    """The server answers only once eight requests are open: batches of three would wait for ever."""
    together = threading.Barrier(8, timeout=30)

    def answer(_body):
        together.wait()
        return ANSWER

    with FakeServer(answer) as server:
        chat = HTTPChat(server.url, concurrency=8, retries=0, option_log_probs=False)
        recognizer = Recognizer(memory, ranker=Ranker(chat, strategy="generate"), k=6, batch_size=3)
        outcomes = recognizer.recognize_batch(picture(colour) for colour in colours(48))
        assert [outcome.ranking.status for outcome in outcomes] == ["ranked"] * 48
        assert server.most_in_flight == 8
        chat.close()


def test_several_orders_of_an_image_are_asked_together(memory):
    ranker = ParallelRanker()
    turns = lambda _source, n: [range(n), range(n)[::-1]]  # noqa: E731
    recognizer = Recognizer(memory, ranker=ranker, k=6, ranker_weight="replace")
    outcomes = list(recognizer.iter_reordered([picture("red"), b"", picture("green")], turns))
    assert ranker.batches == [2, 2]
    assert isinstance(outcomes[1], RecognitionFailure)
    for first, second in (outcomes[0], outcomes[2]):
        assert first.retrieved == second.retrieved[::-1]
        assert first.label == second.label == "blue"


def test_what_cannot_be_read_or_asked_fails_in_its_place(memory):
    ranker = ParallelRanker("black", failing=["red"], error=ImageError)
    given = [picture("green"), b"", picture("red"), b"", picture("blue")]
    outcomes = Recognizer(memory, ranker=ranker, k=6, ranker_weight="replace").recognize_batch(given)
    kinds = [Prediction, RecognitionFailure, RecognitionFailure, RecognitionFailure, Prediction]
    assert [type(outcome) for outcome in outcomes] == kinds
    assert "tired" in str(outcomes[2].error)


def test_an_error_is_raised_after_the_outcomes_before_it(memory):
    ranker = ParallelRanker(failing=["white"], slow=["red"], pause_s=0.05)
    given = ["red", "green", "white", *["green"] * 500]
    seen = []
    with pytest.raises(ChatProtocolError, match="tired"):
        seen.extend(Recognizer(memory, ranker=ranker, batch_size=4).iter_recognize(map(picture, given)))
    assert [outcome.source for outcome in seen] == ["image 0", "image 1"]
    assert sum(ranker.batches) < 100, "nothing is begun after it"


def test_fallback_degrades_only_what_fails(memory):
    ranker = ParallelRanker("black", failing=["red"])
    recognizer = Recognizer(memory, ranker=ranker, k=6, ranker_weight="replace", allow_fallback=True)
    outcomes = recognizer.recognize_batch([picture(colour) for colour in ("green", "red", "blue") * 5])
    assert [outcome.label for outcome in outcomes] == ["black", "red", "black"] * 5
    assert [outcome.ranking.status for outcome in outcomes] == ["ranked", "fallback", "ranked"] * 5


def test_a_server_that_is_down_is_left_alone_and_then_asked_one_question(memory, monkeypatch):
    ranker = ParallelRanker("blue", failing=COLOURS, error=ChatUnavailableError, pause_s=0.02)
    recognizer = Recognizer(memory, k=6, ranker=ranker, ranker_weight="replace", allow_fallback=True, batch_size=6)
    given = [picture(colour) for colour in COLOURS * 20]
    outcomes = recognizer.recognize_batch(given)
    assert all(outcome.ranking.unanswered for outcome in outcomes)
    assert len(ranker.batches) <= 2 + 4, "two in a row, and those that were under way by then"
    ranker.failing, asked = (), len(ranker.batches)
    assert all(outcome.ranking.unanswered for outcome in recognizer.recognize_batch(given))
    assert len(ranker.batches) == asked, "half a minute is not over"
    monkeypatch.setattr("rarvision.ranking.outage._ASK_AGAIN_AFTER_S", 0.0)
    recognizer._asker._outage._until = 0.0
    ranker.most = 0
    outcomes = recognizer.recognize_batch(given)
    assert [outcome.label for outcome in outcomes] == ["blue"] * len(given), "the others wait for what the one finds"
    assert ranker.most == 4


def test_one_question_at_a_time_finds_out(memory, monkeypatch):
    monkeypatch.setattr("rarvision.ranking.outage._ASK_AGAIN_AFTER_S", 0.0)
    ranker = ParallelRanker(failing=COLOURS, error=ChatUnavailableError, pause_s=0.01)
    recognizer = Recognizer(memory, k=6, ranker=ranker, allow_fallback=True)
    recognizer.recognize_batch([picture("red")] * 8)
    ranker.most = 0
    recognizer.recognize_batch([picture("red")] * 8)
    assert ranker.most == 1


def test_time_is_shared_by_those_who_are_asked_together(memory):
    ranker = ParallelRanker(calls=8, pause_s=0.2)
    asker = Asker(ranker, allow_fallback=False)
    question = Question(picture("red"), COLOURS)
    start = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        seconds = [found[1] for found in pool.map(lambda _: asker.ask([question]), range(8))]
    took = time.perf_counter() - start
    assert 0.2 <= sum(seconds) <= took
    assert asker.ask([question])[1] >= 0.2


def test_streaming_takes_little_more_than_it_gives(memory):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield picture("red")

    ranker = ParallelRanker(pause_s=0.001)
    with closing(Recognizer(memory, ranker=ranker, batch_size=4).iter_recognize(endless())) as outcomes:
        for _ in range(20):
            next(outcomes)
        # given, answered and waiting for their turn (at most four times 2 x 4 calls + 4), a batch, and those read ahead
        assert taken <= 20 + 4 * 12 + 4 + 8


def test_large_images_are_asked_about_a_few_at_a_time(memory, monkeypatch):
    monkeypatch.setattr("rarvision.pipeline._MAX_BATCH_PIXELS", 600)
    ranker = ParallelRanker(calls=8, pause_s=0.005)
    outcomes = Recognizer(memory, ranker=ranker).recognize_batch(picture("red") for _ in range(30))
    assert len(outcomes) == 30
    assert ranker.most <= 3


def test_what_retrieval_is_sure_of_keeps_its_place(memory, monkeypatch):
    ranker = ParallelRanker("black", pause_s=0.002)
    recognizer = Recognizer(memory, k=6, ranker=ranker, ranker_weight="replace")
    skipped = ScriptedRanker("white", status="fallback").rank(picture("red"), COLOURS)
    monkeypatch.setattr(type(recognizer._judge), "gated", True)
    monkeypatch.setattr(
        recognizer._judge.__class__,
        "skip",
        lambda _self, candidates, _strategy: skipped if candidates[0].category == "red" else None,
    )
    given = colours(50)
    outcomes = recognizer.recognize_batch(map(picture, given))
    assert [outcome.label for outcome in outcomes] == ["red" if colour == "red" else "black" for colour in given]
    assert len(ranker.batches) == sum(colour != "red" for colour in given)


# ---- memory ----

_MOST_BYTES = 80
"""An image may leave behind on average: less than a tuple of its candidates takes."""


def held_bytes_an_image(recognizer, *, forget, warm=200, last=1_200):
    """How much the traced memory grows from one image to the next, of a stream of different ones."""

    def images():
        for number in range(last):
            yield Image.new("RGB", (16, 16), (number % 256, number // 256, 90))

    held = {warm: [], last: []}
    tracemalloc.start()
    try:
        for number, outcome in enumerate(recognizer.iter_recognize(images()), start=1):
            assert outcome.ranking.status == "ranked"
            del outcome
            for end, readings in held.items():
                if end - 40 < number <= end:  # slower than the stream: until what it is ahead by has been taken
                    forget()
                    if number % 20 == 1:
                        gc.collect()
                    readings.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return (min(held[last]) - min(held[warm])) / (last - warm)


@pytest.mark.parametrize("calls", [1, 4])
def test_a_long_stream_leaves_nothing_behind(memory, calls):
    ranker = ParallelRanker(calls=calls)
    recognizer = Recognizer(memory, ranker=ranker, k=6, batch_size=4)
    assert held_bytes_an_image(recognizer, forget=ranker.batches.clear) < _MOST_BYTES


def test_a_long_stream_over_http_leaves_nothing_behind(memory):
    with FakeServer(ANSWER) as server:

        def forget():
            server.requests.clear()
            server.headers.clear()

        chat = HTTPChat(server.url, concurrency=4, option_log_probs=False)
        recognizer = Recognizer(memory, ranker=Ranker(chat, strategy="generate"), k=6, batch_size=4)
        # the server's threads, in this process too, make it less exact; a request or an answer takes more
        assert held_bytes_an_image(recognizer, forget=forget, last=700) < 5 * _MOST_BYTES
        chat.close()


def test_a_leak_would_be_found(memory):
    ranker, kept = ParallelRanker(), []
    honest = ranker._rank_distinct
    ranker._rank_distinct = lambda images, names: kept.append([*names[0]]) or honest(images, names)
    recognizer = Recognizer(memory, ranker=ranker, k=6, batch_size=4)
    assert held_bytes_an_image(recognizer, forget=ranker.batches.clear) > _MOST_BYTES
