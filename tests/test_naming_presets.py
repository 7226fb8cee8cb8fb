"""Presets of naming, end to end: discovery, its memory, the pipeline on it, runs that go on, and what goes wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from colour_world import COLOURS, Pictures, ScriptedRanker, picture
from rarvision.comparing import compare_runs
from rarvision.encoders.views import views_of
from rarvision.errors import (
    ChatProtocolError,
    ChatUnavailableError,
    ChatUnsupportedError,
    DatasetError,
    InputError,
    NoNamesError,
    OptionError,
)
from rarvision.experiments.naming import field_guide_naming
from rarvision.images import Picture
from rarvision.memory import LocalMemory
from rarvision.naming import (
    NAMING_PRESETS,
    AttributeNamer,
    CaptionNamer,
    DirectNamer,
    Guess,
    Namer,
    Sources,
    VocabularyNamer,
    WordGuesser,
    discover,
    evaluate_namer,
    evaluate_preset,
    guess_names,
    make_namer,
    read_captions,
    vote_names,
)
from rarvision.reporting import EvaluatedImage
from rarvision.runs import read_run
from rarvision.testing import FakeChat, FakeEncoder, check_namer


def seen(request):
    (image,) = request.images
    return min(COLOURS, key=lambda c: np.abs(np.array(image.getpixel((0, 0))) - picture(c).getpixel((0, 0))).sum())


def answer(request):
    return f"a {seen(request)} thing"


def sources(**changed):
    given = {
        "encoder": FakeEncoder(),
        "chat": FakeChat(answers=answer),
        "guesser": WordGuesser([f"{colour} thing" for colour in COLOURS]),
        "words": [f"{colour} thing" for colour in COLOURS],
        "captions": [f"{how} {colour} thing" for how in ("a photo of a", "my", "some") for colour in COLOURS],
        "templates": ("{}",),
    }
    return Sources(**{**given, **changed})


class Failing(Namer):
    """Cannot answer for some images; is not there for others."""

    name = "failing"

    def __init__(self, errors):
        self.errors, self.batches = errors, []

    def _guess(self, images):
        self.batches.append(len(images))
        for image in images:
            for colour, error in self.errors.items():
                if image.getpixel((0, 0)) == picture(colour).getpixel((0, 0)):
                    raise error
        return [Guess(names=("thing",)) for _ in images]


# Contracts


@pytest.mark.parametrize("kind", ["direct", "attributes", "captions", "words"])
def test_namers_keep_the_contract(kind, tmp_path):
    have = sources()
    if kind == "words":
        with LocalMemory.create(tmp_path / "words", encoder=have.encoder) as memory:
            memory.add_texts(list(have.words))
            check_namer(VocabularyNamer(memory, names=2))
        return
    check_namer(
        {
            "direct": lambda: DirectNamer(have.chat),
            "attributes": lambda: AttributeNamer(have.chat, have.guesser),
            "captions": lambda: CaptionNamer(have.captions, have.encoder),
        }[kind]()
    )


class Forgetful(Namer):
    """Another answer each time."""

    name = "forgetful"
    asked = 0

    def _guess(self, images):
        self.asked += 1
        return [Guess(names=(f"thing {self.asked}",)) for _ in images]


def test_the_contract_finds_who_breaks_it():
    with pytest.raises(AssertionError, match="alone and in a batch"):
        check_namer(Forgetful())
    short = Forgetful()
    short._guess = lambda _images: []
    with pytest.raises(OptionError, match="expected 5 guesses, got 0"):
        check_namer(short)


# Presets


@pytest.mark.parametrize("preset", list(NAMING_PRESETS))
def test_every_preset_recognises_what_it_discovered(preset, tmp_path):
    unlabelled, test = Pictures(COLOURS), Pictures(COLOURS, [f"{colour} thing" for colour in COLOURS])
    ranker = ScriptedRanker(first="none of these") if NAMING_PRESETS[preset].ranked else None
    told = []

    def evaluated(**changed):
        return evaluate_preset(
            preset,
            sources(),
            unlabelled=unlabelled,
            test=test,
            folder=tmp_path / preset,
            ranker=ranker,
            progress=lambda *at: told.append(at),
            **changed,
        )

    report = evaluated()
    assert (report.n, report.failures) == (6, 0)
    assert report.cacc == 1
    assert report.top1 == 1 or preset == "cased", "captions are lower case runs of words"
    assert told[-1][1:] == (6, 6)
    again = evaluated()
    assert (again.cacc, again.sacc, again.n) == (report.cacc, report.sacc, report.n)
    lines = read_run(tmp_path / preset / "test.jsonl", EvaluatedImage.read)[1]
    assert len(lines) == 6
    assert evaluated(resume=False).cacc == report.cacc
    assert json.dumps(report.to_dict())


def test_runs_of_different_presets_are_compared(tmp_path):
    test = Pictures(COLOURS, [f"{colour} thing" for colour in COLOURS])
    for preset in ("blip-2", "wordnet-clip"):
        evaluate_preset(preset, sources(), unlabelled=Pictures(COLOURS), test=test, folder=tmp_path / preset)
    found = compare_runs(tmp_path / "blip-2" / "test.jsonl", tmp_path / "wordnet-clip" / "test.jsonl")
    assert found.n == 6


def test_a_discovery_is_a_memory_and_a_recogniser(tmp_path):
    with discover("finer", sources(), Pictures(COLOURS), memory=tmp_path / "memory") as named:
        assert set(named.discovery.names) == {f"{colour} thing" for colour in COLOURS}
        assert named.recognizer(k=3).recognize(picture("green")).label == "green thing"
    with discover("rar", sources(), Pictures(COLOURS), memory=tmp_path / "ranked") as named:
        assert named.recognizer(ScriptedRanker(first="blue thing")).recognize(picture("blue")).label == "blue thing"
        with pytest.raises(OptionError, match="needs a ranker"):
            named.recognizer()
    with pytest.raises(OptionError, match="give `discover` a folder"):
        discover("rar", sources(), Pictures(COLOURS)).recognizer(ScriptedRanker())


def test_finer_s_classifier_is_a_mix_of_the_name_and_the_mean_of_all_views(tmp_path):
    encoder = FakeEncoder()
    with discover("finer", sources(), Pictures(["red", "red", "blue"]), memory=tmp_path / "memory") as named:
        found = named.recognizer(k=2).recognize(picture("black"))
    query = encoder.encode_images([picture("black")])[0]
    expected = {}
    for name, colour in (("red thing", "red"), ("blue thing", "blue")):
        text = encoder.encode_texts([name])[0]
        views = encoder.encode_images([view.whole() for view in views_of(Picture.of(picture(colour)), "flip+crops")])
        image = views.mean(axis=0)
        mixed = 0.7 * text + 0.3 * image / np.linalg.norm(image)
        expected[name] = float(query @ mixed)
    order = sorted(expected, key=expected.get, reverse=True)
    assert [candidate.category for candidate in found.candidates] == order


def test_what_a_preset_needs(tmp_path):
    for preset, missing, message in (
        ("rar", {"chat": None}, "an MLLM"),
        ("finer", {"guesser": None}, "a language model"),
        ("cased", {"captions": ()}, "captions"),
        ("wordnet-clip", {"words": ()}, "a vocabulary"),
    ):
        with pytest.raises(OptionError, match=message):
            discover(preset, sources(**missing), Pictures(COLOURS))
    with pytest.raises(OptionError, match="no preset 'clip' among"):
        make_namer("clip", sources())
    with pytest.raises(OptionError, match="needs a ranker"):
        evaluate_preset("rar", sources(), unlabelled=Pictures(COLOURS), test=Pictures(COLOURS), folder=tmp_path)


def test_a_method_on_the_field_guide():
    told = []
    report = field_guide_naming(
        "cased",
        encoder=FakeEncoder(),
        categories=10,
        queries=20,
        settings={"captions": ("a photo of a finch.",)},
        progress=lambda *at: told.append(at),
    )
    assert (report.n, report.failures) == (20, 20), "the caption holds no name of the vocabulary"
    assert told[-1] == ("naming test images", 20, 20)
    again = field_guide_naming("cased", encoder=FakeEncoder(), categories=10, queries=20)
    assert again.failures == 0
    assert again.name_encoder


# Runs and memories that go on


def test_a_memory_of_other_names_is_refused(tmp_path):
    def made(colours=COLOURS, preset="rar", **changed):
        discover(preset, sources(**changed), Pictures(colours), memory=tmp_path / "memory").close()

    made()
    made()
    with pytest.raises(InputError, match="other names, images or options"):
        made(COLOURS[:3])
    with pytest.raises(InputError, match="other names, images or options"):
        made(templates=("a photo of a {}.",))
    LocalMemory.create(tmp_path / "foreign", encoder=FakeEncoder()).close()
    have = sources()
    with pytest.raises(InputError, match="give another folder"):
        discover("rar", have, Pictures(COLOURS), memory=tmp_path / "foreign")
    assert have.chat.calls == [], "refused before anything is asked"


def test_a_memory_that_was_interrupted_is_completed(tmp_path, monkeypatch):
    add_texts = LocalMemory.add_texts
    monkeypatch.setattr(LocalMemory, "add_texts", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        discover("rar", sources(), Pictures(COLOURS), memory=tmp_path / "memory")
    monkeypatch.setattr(LocalMemory, "add_texts", add_texts)
    with discover("rar", sources(), Pictures(COLOURS), memory=tmp_path / "memory") as named:
        assert (named.memory.count("text"), named.memory.count("image")) == (6, 6)


def test_guesses_of_another_vocabulary_are_refused(tmp_path):
    out = tmp_path / "guesses.jsonl"
    for name, changed in (
        ("cased", {"captions": ["a photo of a lorry"] * 17 + ["a red bus"]}),
        ("finer", {"guesser": WordGuesser([f"{colour} lorry" for colour in COLOURS])}),
        ("wordnet-clip", {"words": [f"{colour} lorry" for colour in COLOURS]}),
    ):
        discover(name, sources(), Pictures(COLOURS), out=out, resume=False)
        with pytest.raises(InputError, match="another configuration"):
            discover(name, sources(**changed), Pictures(COLOURS), out=out)


def test_a_namer_s_test_run_goes_on(tmp_path):
    out = tmp_path / "test.jsonl"
    chat = FakeChat(answers=lambda request: "?" if seen(request) == "red" else answer(request))
    report, _ = evaluate_namer(DirectNamer(chat), Pictures(COLOURS), out=out)
    assert report.failures == 1
    chat = FakeChat(answers=answer)
    report, images = evaluate_namer(DirectNamer(chat), Pictures(COLOURS), out=out)
    assert report.failures == 0
    assert len(chat.calls) == 1, "only what had no name is asked again"
    assert images[0].ranked == ("red thing",)


# What goes wrong


def test_an_image_that_the_mllm_refuses_fails_alone(tmp_path):
    namer = Failing({"green": ChatProtocolError("no JSON"), "white": ChatUnavailableError("timed out")})
    found = guess_names(Pictures(COLOURS), namer, out=tmp_path / "guesses.jsonl")
    assert [image.failed for image in found] == [colour in ("green", "white") for colour in COLOURS]
    assert found[1].reason == "ChatProtocolError: no JSON"
    discovery = vote_names(Pictures(COLOURS), found, FakeEncoder())
    assert [image.failed for image in discovery.images] == [image.failed for image in found]
    assert discovery.images[1].name is None
    assert discovery.images[1].reason == "ChatProtocolError: no JSON"
    well = Failing({})
    again = guess_names(Pictures(COLOURS), well, out=tmp_path / "guesses.jsonl")
    assert not any(image.failed for image in again)
    assert well.batches == [2], "only those that failed"


def test_an_mllm_that_is_down_ends_the_run(tmp_path):
    out = tmp_path / "guesses.jsonl"
    down = Failing(dict.fromkeys(COLOURS, ChatUnavailableError("refused")))
    with pytest.raises(ChatUnavailableError):
        guess_names(Pictures(COLOURS), down, out=out, batch_size=2)
    assert len(guess_names(Pictures(COLOURS), Failing({}), out=out)) == 6
    with pytest.raises(ChatUnsupportedError):
        guess_names(Pictures(COLOURS), Failing({"red": ChatUnsupportedError("no images")}))


def test_names_in_too_few_captions_do_not_count():
    corpus = ["a red finch", "the finch", "one blue sparrow"]

    def names(least):
        namer = CaptionNamer(corpus, FakeEncoder(), neighbours=3, min_captions=least, names=9)
        return set(namer.guess([picture("red")])[0].names)

    assert names(2) == {"finch"}
    assert names(1) == {"red", "red finch", "finch", "blue", "blue sparrow", "sparrow"}
    assert names(3) == names(2), "where none is in so many, those in most"
    with pytest.raises(OptionError, match="min_captions"):
        names(0)


def test_captions_of_json_lines(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"caption": "a finch"}\n{"text": "a robin", "id": 3}\n')
    assert read_captions(path) == ["a finch", "a robin"]
    path.write_text('{"caption": "a finch"}\n{"url": "x"}\n')
    with pytest.raises(DatasetError, match="line 2: expected a text under 'caption' or 'text', got 'url'"):
        read_captions(path)


def test_options_out_of_range():
    with pytest.raises(OptionError, match="batch_size"):
        guess_names(Pictures(COLOURS), Failing({}), batch_size=0)
    with pytest.raises(OptionError, match="min_votes"):
        discover("rar", sources(), Pictures(COLOURS), min_votes=0)
    with pytest.raises(NoNamesError, match=r"no name was guessed for any of 6 images .*could be read"):
        discover("rar", sources(chat=FakeChat(answers="?")), Pictures(COLOURS))
