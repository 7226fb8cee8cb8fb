"""The recogniser: mixing, failures, streaming, batches."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest

from colour_world import COLOURS, ScriptedRanker, make_memory, picture
from rarvision.calibration import Calibration, unknown_probability
from rarvision.errors import (
    ChatProtocolError,
    ChatUnavailableError,
    ChatUnsupportedError,
    ContextLengthError,
    EncoderError,
    ImageError,
    ImageTooLargeError,
    InputError,
    MemoryEmptyError,
    OptionError,
)
from rarvision.memory import LocalMemory
from rarvision.pipeline import RecognitionFailure, Recognizer
from rarvision.retrieval import Retriever
from rarvision.testing.encoders import FakeEncoder
from rarvision.types import Prediction, Sample


@pytest.fixture
def memory(tmp_path):
    with make_memory(tmp_path / "memory") as made:
        yield made


def png(colour):
    file = io.BytesIO()
    picture(colour).save(file, "PNG")
    return file.getvalue()


def check_probabilities(prediction):
    probabilities = [candidate.probability for candidate in prediction.candidates]
    assert sum(probabilities) + prediction.unknown_probability == pytest.approx(1)
    assert probabilities == sorted(probabilities, reverse=True)
    assert prediction.probability == probabilities[0]


def test_retrieval_alone(memory):
    prediction = Recognizer(memory, k=3).recognize(picture("red"))
    assert prediction.label == "red"
    assert prediction.ranking is None
    assert prediction.ranking_ms == 0.0
    assert prediction.retrieval_ms > 0.0
    assert [candidate.category for candidate in prediction.candidates] == list(prediction.retrieved)
    assert len(set(prediction.retrieved)) == 3
    assert prediction.candidates[0].exemplars
    similarities = [candidate.similarity for candidate in prediction.candidates]
    assert prediction.unknown_probability == pytest.approx(unknown_probability(similarities, Calibration()))
    check_probabilities(prediction)


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_is_known(memory, colour):
    assert Recognizer(memory).recognize(picture(colour)).label == colour


def test_ranker_replaces_or_is_ignored(memory):
    recognize = {
        weight: Recognizer(memory, k=6, ranker=ScriptedRanker("blue"), ranker_weight=weight).recognize(picture("red"))
        for weight in ("replace", 0, 1e6)
    }
    assert recognize["replace"].label == recognize[1e6].label == "blue"
    assert recognize[0].label == "red"
    assert recognize[0].ranking.order[0] == recognize[0].retrieved.index("blue")
    replaced = recognize["replace"]
    assert [candidate.category for candidate in replaced.candidates] == [
        replaced.retrieved[i] for i in replaced.ranking.order
    ]
    plain = Recognizer(memory, k=6).recognize(picture("red"))
    assert [(c.category, c.probability) for c in plain.candidates] == [
        (c.category, pytest.approx(c.probability)) for c in recognize[0].candidates
    ]
    for prediction in recognize.values():
        check_probabilities(prediction)


def test_mix_by_hand(memory):
    calibration = Calibration(prior_temperature=0.5, ranker_temperature=2.0, unknown_intercept=-1e3)
    scores = {"red": -1.0, "blue": -0.5}
    ranker = ScriptedRanker(scores=scores)
    retriever = Retriever(memory, k=6, source="image", aggregate="nearest")
    recognizer = Recognizer(memory, ranker=ranker, retriever=retriever, ranker_weight=3.0, calibration=calibration)
    prediction = recognizer.recognize(picture("red"))
    logits = {c.category: c.similarity / 0.5 + 3.0 * scores.get(c.category, -9.0) / 2.0 for c in prediction.candidates}
    total = math.fsum(math.exp(value) for value in logits.values())
    for candidate in prediction.candidates:
        assert candidate.probability == pytest.approx(math.exp(logits[candidate.category]) / total)


def test_a_fallback_ranking_changes_nothing(memory):
    ranker = ScriptedRanker("blue", status="fallback")
    prediction = Recognizer(memory, ranker=ranker, ranker_weight="replace").recognize(picture("red"))
    assert prediction.label == "red"
    assert prediction.ranking.status == "fallback"


def test_repeated_names_as_in_the_paper(memory):
    retriever = Retriever(memory, k=5, source="image", distinct=False)
    ranker = ScriptedRanker("red")
    prediction = Recognizer(memory, ranker=ranker, retriever=retriever).recognize(picture("red"))
    assert len(prediction.retrieved) == 5
    assert len(set(prediction.retrieved)) < 5
    assert prediction.retrieved[:2] == ("red", "red")
    assert len(prediction.ranking.order) == 5
    names = [candidate.category for candidate in prediction.candidates]
    assert len(names) == len(set(names)) == len(set(prediction.retrieved))
    assert len(prediction.candidates[0].exemplars) == 2
    check_probabilities(prediction)
    other = next(name for name in prediction.retrieved if name != "red")
    replaced = Recognizer(memory, ranker=ScriptedRanker(other), retriever=retriever, ranker_weight="replace")
    assert replaced.recognize(picture("red")).label == other


def test_names_alone(tmp_path):
    with LocalMemory.create(tmp_path / "names", encoder=FakeEncoder()) as memory:
        memory.add_texts(COLOURS)
        assert Recognizer(memory).recognize(picture("yellow")).label == "yellow"


def test_k_beyond_the_memory_and_k_of_one(memory):
    assert len(Recognizer(memory, k=50).recognize(picture("red")).candidates) == len(COLOURS)
    ranker = ScriptedRanker("blue")
    prediction = Recognizer(memory, k=1, ranker=ranker).recognize(picture("red"))
    assert (prediction.label, prediction.ranking.order, ranker.batches) == ("red", (0,), [])


def test_every_kind_of_input_has_a_source(memory, tmp_path):
    path = tmp_path / "a picture.png"
    path.write_bytes(png("green"))
    outcomes = Recognizer(memory).recognize_batch(
        [path, str(path), png("green"), picture("green"), Sample(source="mine", image=path)]
    )
    assert [outcome.label for outcome in outcomes] == ["green"] * 5
    assert [outcome.source for outcome in outcomes] == [str(path), str(path), "image 2", "image 3", "mine"]


def test_bad_images_do_not_stop_the_others(memory, tmp_path, monkeypatch):
    cut = tmp_path / "cut.png"
    cut.write_bytes(png("red")[:50])
    monkeypatch.setenv("RARVISION_MAX_PIXELS", "1000")
    given = [picture("red"), cut, tmp_path / "nowhere.png", picture("white", 64), b"", picture("blue")]
    outcomes = Recognizer(memory, batch_size=2).recognize_batch(given)
    assert [type(outcome) for outcome in outcomes] == [Prediction, *[RecognitionFailure] * 4, Prediction]
    assert [outcome.label for outcome in (outcomes[0], outcomes[-1])] == ["red", "blue"]
    assert outcomes[1].source == str(cut)
    assert isinstance(outcomes[3].error, ImageTooLargeError)
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        Recognizer(memory).recognize(tmp_path / "nowhere.png")
    assert all(isinstance(each, RecognitionFailure) for each in Recognizer(memory).recognize_batch([b"", cut]))
    with pytest.raises(InputError, match="NoneType"):
        Recognizer(memory).recognize(None)


def test_an_image_that_cannot_be_encoded_fails_alone(tmp_path):
    encoder = FakeEncoder()
    honest = encoder._encode_images

    def sick(images):
        vectors = honest(images)
        vectors[[image.getpixel((0, 0)) == (0, 0, 0) for image in images]] = np.nan
        return vectors

    with make_memory(tmp_path / "memory", encoder=encoder) as memory:
        encoder._encode_images = sick
        red, black, blue = Recognizer(memory).recognize_batch([picture("red"), picture("black"), picture("blue")])
    assert (red.label, blue.label) == ("red", "blue")
    assert isinstance(black.error, EncoderError)


def test_an_empty_memory_is_an_error(tmp_path):
    with LocalMemory.create(tmp_path / "empty", encoder=FakeEncoder()) as memory, pytest.raises(MemoryEmptyError):
        Recognizer(memory).recognize(picture("red"))


def test_chat_errors_are_raised_unless_allowed(memory):
    ranker = ScriptedRanker(failing=["red"])
    with pytest.raises(ChatProtocolError, match="tired"):
        Recognizer(memory, ranker=ranker).recognize(picture("red"))


def test_what_the_chat_does_not_serve_is_raised_even_so(memory):
    ranker = ScriptedRanker(failing=["red"], error=ChatUnsupportedError)
    with pytest.raises(ChatUnsupportedError):
        Recognizer(memory, ranker=ranker, allow_fallback=True).recognize(picture("red"))


def test_fallback_degrades_only_what_fails(memory):
    ranker = ScriptedRanker("black", failing=["red"])
    recognizer = Recognizer(memory, ranker=ranker, k=6, ranker_weight="replace", allow_fallback=True)
    outcomes = recognizer.recognize_batch([picture(colour) for colour in ("green", "red", "blue")])
    assert [outcome.label for outcome in outcomes] == ["black", "red", "black"]
    assert [outcome.ranking.status for outcome in outcomes] == ["ranked", "fallback", "ranked"]
    assert outcomes[1].ranking.reason == "ChatProtocolError: the server is tired"
    assert outcomes[1].ranking.strategy == "scripted"
    plain = Recognizer(memory, k=6).recognize(picture("red"))
    assert [(c.category, c.probability) for c in outcomes[1].candidates] == [
        (c.category, pytest.approx(c.probability, abs=1e-6)) for c in plain.candidates
    ]


def test_an_image_that_the_mllm_refuses_fails_alone(memory):
    """Processors refuse shapes that the encoder takes (Qwen's: below 28 pixels, or 200 times as long as wide)."""
    ranker = ScriptedRanker("black", failing=["red"], error=ImageError)
    images = [picture(colour) for colour in ("green", "red", "blue")]
    strict = Recognizer(memory, ranker=ranker, k=6, ranker_weight="replace")
    good, bad, last = strict.recognize_batch(images)
    assert (good.label, last.label) == ("black", "black")
    assert isinstance(bad, RecognitionFailure)
    assert isinstance(bad.error, ImageError)
    with pytest.raises(ImageError, match="tired"):
        strict.recognize(images[1])
    lenient = Recognizer(memory, ranker=ranker, k=6, ranker_weight="replace", allow_fallback=True)
    outcomes = lenient.recognize_batch(images)
    assert [outcome.label for outcome in outcomes] == ["black", "red", "black"]
    assert [outcome.ranking.status for outcome in outcomes] == ["ranked", "fallback", "ranked"]


def test_a_server_that_is_down_is_not_asked_for_every_image(memory):
    ranker = ScriptedRanker(failing=COLOURS, error=ChatUnavailableError)
    recognizer = Recognizer(memory, ranker=ranker, allow_fallback=True, batch_size=2)
    outcomes = recognizer.recognize_batch([picture(colour) for colour in COLOURS])
    assert [outcome.label for outcome in outcomes] == list(COLOURS)
    assert {outcome.ranking.status for outcome in outcomes} == {"fallback"}
    assert all(outcome.ranking.unanswered for outcome in outcomes)
    assert all("tired" in outcome.ranking.reason for outcome in outcomes)
    asked = ["not asked, since 2 questions in a row" not in outcome.ranking.reason for outcome in outcomes]
    assert asked == [True, True, False, False, False, False]
    assert ranker.batches == [2, 1, 1]
    recognizer.recognize(picture("red"))
    assert ranker.batches == [2, 1, 1], "by the next call neither"


def test_a_server_that_was_down_is_asked_one_question_after_a_while(memory, monkeypatch):
    ranker = ScriptedRanker("blue", failing=COLOURS, error=ChatUnavailableError)
    recognizer = Recognizer(memory, k=6, ranker=ranker, ranker_weight="replace", allow_fallback=True, batch_size=3)
    monkeypatch.setattr("rarvision.ranking.outage._ASK_AGAIN_AFTER_S", 0.0)
    recognizer.recognize_batch([picture(colour) for colour in COLOURS])
    assert ranker.batches == [3, 1, 1, 1], "one question in the second batch"
    ranker.failing = ()
    outcomes = recognizer.recognize_batch([picture(colour) for colour in COLOURS])
    assert [outcome.label for outcome in outcomes] == ["blue"] * 6
    assert ranker.batches[4:] == [1, 2, 3]


def test_images_given_one_by_one_count_together(memory):
    ranker = ScriptedRanker(failing=COLOURS, error=ChatUnavailableError)
    recognizer = Recognizer(memory, ranker=ranker, allow_fallback=True)
    for colour in COLOURS:
        assert recognizer.recognize(picture(colour)).ranking.unanswered
    assert ranker.batches == [1, 1]


@pytest.mark.parametrize(
    ("error", "unanswered"),
    [(ChatUnavailableError, True), (ChatProtocolError, True), (ContextLengthError, False), (ImageError, False)],
)
def test_what_another_time_may_answer_is_told_apart(memory, error, unanswered):
    ranker = ScriptedRanker(failing=["red"], error=error)
    prediction = Recognizer(memory, ranker=ranker, allow_fallback=True).recognize(picture("red"))
    assert (prediction.ranking.status, prediction.ranking.unanswered) == ("fallback", unanswered)


def test_batches_and_order(memory):
    rng = np.random.default_rng(0)
    colours = [COLOURS[i] for i in rng.integers(len(COLOURS), size=50)]
    alone = [Recognizer(memory).recognize(picture(colour)) for colour in colours[:5]]
    ranker = ScriptedRanker()
    outcomes = Recognizer(memory, batch_size=7, ranker=ranker, ranker_weight=0).recognize_batch(map(picture, colours))
    assert [outcome.label for outcome in outcomes] == colours
    assert ranker.batches == [7] * 7 + [1]
    for one, other in zip(alone, outcomes, strict=False):
        assert one.retrieved == other.retrieved
        assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_large_images_make_smaller_batches(memory, monkeypatch):
    monkeypatch.setattr("rarvision.pipeline._MAX_BATCH_PIXELS", 600)
    ranker = ScriptedRanker()
    list(Recognizer(memory, ranker=ranker).iter_recognize(picture("red") for _ in range(7)))
    assert ranker.batches == [3, 3, 1]


def test_streaming_takes_little_more_than_it_gives(memory):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield picture("red")

    outcomes = Recognizer(memory, batch_size=4).iter_recognize(endless())
    for _ in range(9):
        next(outcomes)
    assert taken <= 12 + 8
    outcomes.close()


def test_nothing_to_recognize(memory):
    assert Recognizer(memory).recognize_batch([]) == []


def test_options_are_checked(memory, tmp_path):
    with pytest.raises(OptionError, match="batch_size"):
        Recognizer(memory, batch_size=0)
    with pytest.raises(OptionError, match="ranker_weight"):
        Recognizer(memory, ranker_weight=-1)
    with pytest.raises(OptionError, match="k=3 contradicts"):
        Recognizer(memory, k=3, retriever=Retriever(memory, k=4))
    with make_memory(tmp_path / "other") as other, pytest.raises(OptionError, match="another memory"):
        Recognizer(memory, retriever=Retriever(other))


def test_settings_tell_recognizers_apart(memory):
    variants = [
        Recognizer(memory),
        Recognizer(memory, k=4),
        Recognizer(memory, retriever=Retriever(memory, source="image")),
        Recognizer(memory, retriever=Retriever(memory, hubness="csls")),
        Recognizer(memory, retriever=Retriever(memory, text_weight="auto")),
        Recognizer(memory, views="flip"),
        Recognizer(memory, ranker=ScriptedRanker()),
        Recognizer(memory, ranker_weight="replace"),
        Recognizer(memory, calibration=Calibration(order_decay=2.0)),
        Recognizer(memory, allow_fallback=True),
    ]
    assert len({str(recognizer.settings) for recognizer in variants}) == len(variants)
