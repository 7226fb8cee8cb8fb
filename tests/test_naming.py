"""Naming without a vocabulary: reading answers, guesses on disk, votes, and the methods' arithmetic."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from colour_world import COLOURS, Pictures, picture
from rarvision.chat import Capabilities, Chat, Completion
from rarvision.errors import DatasetError, InputError, NoNamesError, OptionError
from rarvision.memory import LocalMemory
from rarvision.naming import (
    AttributeNamer,
    CaptionNamer,
    ChatGuesser,
    DirectNamer,
    Guess,
    GuessedImage,
    Namer,
    VocabularyNamer,
    WordGuesser,
    build_named_memory,
    evaluate_namer,
    guess_names,
    name_key,
    phrases_of,
    read_captions,
    read_names,
    read_words,
    vote_names,
    wordnet_nouns,
)
from rarvision.pipeline import Recognizer
from rarvision.testing.encoders import FakeEncoder

PLAIN = Capabilities(option_log_probs=False, continuation_log_probs=False, list_constraint=False)


class Scripted(Chat):
    """Answers by a function of the question's text and its images; keeps what it was asked."""

    name = "scripted"
    capabilities = PLAIN
    context_limit = None

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def generate(self, requests, *, max_tokens, constraints=None):
        texts = [(" ".join(p for m in r.messages for p in m.parts if isinstance(p, str)), r.images) for r in requests]
        self.asked += texts
        return [Completion(text=self.answer(text, images), finish_reason="stop") for text, images in texts]


class Told(Namer):
    """Guesses what it is told, in order."""

    name = "told"

    def __init__(self, names, stop_after=None):
        self.names, self.done, self.stop_after = list(names), 0, stop_after

    def _guess(self, images):
        found = []
        for _ in images:
            if self.done == self.stop_after:
                raise KeyboardInterrupt
            several = self.names[self.done]
            self.done += 1
            found.append(Guess(names=tuple(several), reason=None if several else "nothing comes to mind"))
        return found


def colour_of(images):
    (image,) = images
    return min(COLOURS, key=lambda c: np.abs(np.array(image.getpixel((0, 0))) - picture(c).getpixel((0, 0))).sum())


@pytest.mark.parametrize(
    ("answer", "most", "names"),
    [
        ("This is a Tree Sparrow.", 1, ("Tree Sparrow",)),
        ("The image shows an Audi S4 Sedan 2012", 1, ("Audi S4 Sedan 2012",)),
        ("1. house finch\n2) Cassin's finch\n- purple finch", 3, ("house finch", "Cassin's finch", "purple finch")),
        ("['a finch', 'a robin']", 2, ("finch", "robin")),
        ('"Boeing 707-320"', 1, ("Boeing 707-320",)),
        ("finch, Finches, robin", 3, ("finch", "robin")),
        ("unknown", 1, ()),
        ("I cannot say.", 1, ()),
        ("", 1, ()),
        ("12345", 1, ()),
        ("I am sorry but I cannot tell at all what kind of bird this one is", 1, ()),
    ],
)
def test_answers_are_read(answer, most, names):
    assert read_names(answer, most) == names


def test_spellings_of_one_name_share_a_key():
    keys = {name_key(each) for each in ("Tree Sparrow", "tree-sparrow", "tree_sparrows", " TREE  sparrow ")}
    assert keys == {"tree sparrow"}
    assert name_key("albatross") == "albatross"
    assert name_key("cacti glass") == "cacti glass"
    assert name_key("butterflies") == "butterfly"


def test_phrases_are_runs_of_words_that_mean_something():
    assert phrases_of("a photo of a tree sparrow on the fence") == ["tree", "tree sparrow", "sparrow", "fence"]
    assert phrases_of("see https://example.org/x.jpg #bird @me now") == ["see", "now"]
    nouns = frozenset({"sparrow", "fence"})
    assert phrases_of("tree sparrows near wooden fences", nouns=nouns) == [
        "tree sparrows",
        "sparrows",
        "wooden fences",
        "fences",
    ]
    assert phrases_of("one two three four five", most_words=2) == ["four", "four five", "five"]
    longest = max(len(each.split()) for each in phrases_of("red blue green black white", most_words=4))
    assert longest == 4


def test_wordnet_is_read_by_its_format(tmp_path):
    lines = [
        "  1 This software and database is being provided to you",
        "00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is perceived",
        "01503061 05 n 02 tree_sparrow 0 spizella_arborea 0 001 @ 01502654 n 0000 | a finch",
        "11148764 18 n 02 Linnaeus 0 Carl 1 001 @i 10040000 n 0000 | botanist",
    ]
    (tmp_path / "data.noun").write_text("\n".join(lines) + "\n")
    assert wordnet_nouns(tmp_path) == ["entity", "spizella arborea", "tree sparrow"]
    assert wordnet_nouns(tmp_path / "data.noun", instances=True)[:2] == ["Carl", "Linnaeus"]
    assert read_words(tmp_path) == ["entity", "spizella arborea", "tree sparrow"]
    (tmp_path / "data.noun").write_text("no such thing\n")
    with pytest.raises(DatasetError, match="line 1: is no synonym set"):
        wordnet_nouns(tmp_path)
    with pytest.raises(DatasetError, match="wordnet-base"):
        wordnet_nouns(tmp_path / "nowhere" / "data.noun")


def test_word_lists_and_captions(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# birds\nTree Sparrow\ntree-sparrows\n\nfinch\n")
    assert read_words(path) == ["Tree Sparrow", "finch"]
    path.write_text("\n# nothing\n")
    with pytest.raises(DatasetError, match="holds no names"):
        read_words(path)
    with pytest.raises(DatasetError, match=r"captions\.txt"):
        read_captions(tmp_path / "captions.txt")
    path.write_text("a finch\na finch\n \na robin\n")
    assert read_captions(path) == ["a finch", "a robin"]


def test_the_mllm_is_asked_about_each_image():
    chat = Scripted(lambda _text, images: f"It is a {colour_of(images)} thing.")
    namer = DirectNamer(chat, question="Which kind of {kind} is it?", kind="bird")
    found = namer.guess([picture("red"), picture("blue").convert("RGBA")])
    assert [guess.names for guess in found] == [("red thing",), ("blue thing",)]
    assert [text for text, _ in chat.asked] == ["Which kind of bird is it?"] * 2
    assert found[0].raw == ("It is a red thing.",)
    (mute,) = DirectNamer(Scripted(lambda *_: "?")).guess([picture("red")])
    assert mute.names == ()
    assert "'?'" in mute.reason


def test_attributes_are_described_and_names_guessed_from_them():
    def answer(text, images):
        if "main object" in text:
            return "a bird"
        if "Which visible attributes" in text:
            return "1. crest colour\n2. tail"
        if "described like this" in text:
            assert not images
            return "red finch\nblue finch" if "crest colour: red" in text else "another finch"
        return colour_of(images) if "crest colour" in text else "long"

    chat = Scripted(answer)
    namer = AttributeNamer(chat, ChatGuesser(chat, attributes=2), names=2)
    first, second = namer.guess([picture("red"), picture("green")])
    assert first.names == ("red finch", "blue finch")
    assert first.raw[:2] == ("crest colour: red", "tail: long")
    assert second.names == ("another finch",)
    assert sum("Which visible attributes" in text for text, _ in chat.asked) == 1, "once a kind"
    assert sum("of the bird in this image" in text for text, _ in chat.asked) == 4


def test_words_are_looked_up_rare_ones_first():
    guesser = WordGuesser(["red finch", "blue finch", "green finch", "red robin"])
    (guess,) = guesser.guess("bird", [{"appearance": "a Robin, red"}], 2)
    assert guess.names == ("red robin", "red finch")
    (nothing,) = guesser.guess("bird", [{"appearance": "grey"}], 2)
    assert nothing.names == ()
    with pytest.raises(OptionError, match="must hold some"):
        WordGuesser([])


def test_captions_are_scored_by_image_and_captions():
    encoder = FakeEncoder(dim=24)
    captions = ["a red bird", "a blue bird", "the sea", "a green frog", "some red rose"]
    namer = CaptionNamer(
        captions, encoder, neighbours=3, weight=0.7, names=2, min_captions=1, temperature=0.1, template="a {}"
    )
    image = picture("red")
    (guess,) = namer.guess([image])
    vector = encoder.encode_images([image])[0]
    rows = encoder.encode_texts(captions)
    nearest = sorted(range(5), key=lambda i: -float(rows[i] @ vector))[:3]
    assert guess.raw == tuple(captions[i] for i in nearest)
    candidates = list(dict.fromkeys(p for i in nearest for p in phrases_of(captions[i])))
    texts = encoder.encode_texts([f"a {each}" for each in candidates])
    centre = rows[nearest].mean(axis=0)
    centre /= np.linalg.norm(centre)

    def softmax(values):
        powers = np.exp(np.array(values) / 0.1)
        return powers / powers.sum()

    scores = 0.7 * softmax(texts @ vector) + 0.3 * softmax(texts @ centre)
    best = [candidates[i] for i in np.argsort(-scores)]
    assert guess.names == tuple(best[:2])
    (none,) = CaptionNamer(["of the"], encoder).guess([image])
    assert none.names == ()
    assert "nearest captions" in none.reason
    with pytest.raises(OptionError, match="no captions"):
        CaptionNamer([], encoder)
    with pytest.raises(OptionError, match="weight"):
        CaptionNamer(captions, encoder, weight=2)


def test_the_nearest_words_of_a_vocabulary(tmp_path):
    with LocalMemory.create(tmp_path / "words", encoder=FakeEncoder()) as memory:
        memory.add_texts(list(COLOURS))
        found = VocabularyNamer(memory, names=3).guess([picture("red"), picture("blue")])
    texts = FakeEncoder().encode_texts(list(COLOURS))
    for image, guess in zip((picture("red"), picture("blue")), found, strict=True):
        order = np.argsort(-(texts @ FakeEncoder().encode_images([image])[0]), kind="stable")[:3]
        assert guess.names == tuple(COLOURS[i] for i in order)


def test_guesses_go_on_where_they_were(tmp_path):
    dataset, out = Pictures(COLOURS), tmp_path / "guesses.jsonl"
    with pytest.raises(KeyboardInterrupt):
        guess_names(dataset, Told([(c,) for c in COLOURS], stop_after=4), out=out, batch_size=2)
    assert len(out.read_text().splitlines()) == 1 + 4
    later = Told([(c,) for c in COLOURS[4:]])
    told = []
    found = guess_names(dataset, later, out=out, progress=lambda *at: told.append(at))
    assert [image.names for image in found] == [(c,) for c in COLOURS]
    assert later.done == 2
    assert told == [(4, 6), (6, 6)]
    with pytest.raises(InputError, match="another configuration"):
        guess_names(Pictures(COLOURS[:3]), later, out=out)
    assert json.loads(out.read_text().splitlines()[0])["configuration"]["namer"] == "told"


def test_what_cannot_be_read_fails_alone_and_is_tried_again(tmp_path):
    out = tmp_path / "guesses.jsonl"
    found = guess_names(Pictures(COLOURS[:3], broken=[1]), Told([("a",), ("c",)]), out=out)
    assert [image.names for image in found] == [("a",), (), ("c",)]
    assert found[1].failed
    assert guess_names(Pictures(COLOURS[:3]), Told([("b",)]), out=out)[1].names == ("b",)


def test_bad_sets_of_images():
    with pytest.raises(DatasetError, match="no images to name"):
        guess_names(Pictures([]), Told([]))


def guessed(*names):
    return [GuessedImage(source=str(i), names=tuple(each)) for i, each in enumerate(names)]


def test_each_image_votes_for_the_nearest_guess():
    colours = ["red", "red", "blue", "green"]
    encoder = FakeEncoder()
    guesses = guessed(("red",), ("Reds", "blue"), ("green",), ("green",))
    found = vote_names(Pictures(colours), guesses, encoder, templates=("{}",))
    texts = encoder.encode_texts(names := sorted({"red", "blue", "green"}))
    nearest = [names[int((texts @ encoder.encode_images([picture(c)])[0]).argmax())] for c in colours]
    assert [image.name for image in found.images] == nearest
    assert sum(found.votes.values()) == 4
    assert set(found.votes) | set(found.dropped) == set(names), "spellings are joined"


def test_own_guesses_and_votes_that_are_too_few():
    guesses = guessed(("red",), ("red",), ("pink",), ())
    found = vote_names(Pictures(["red", "red", "red", "red"]), guesses, FakeEncoder(), voting="own", min_votes=2)
    assert found.names == ("red",)
    assert [image.name for image in found.images] == ["red"] * 4
    assert "'pink' has 1 votes" in found.images[2].reason
    assert "1 votes, 2 are needed" in found.dropped["pink"]
    assert found.images[0].reason is None


def test_when_no_name_is_left():
    with pytest.raises(NoNamesError, match="no name was guessed"):
        vote_names(Pictures(["red"]), guessed(()), FakeEncoder())
    with pytest.raises(NoNamesError, match=r"no name has 3 votes, the most is 1.*--min-votes"):
        vote_names(Pictures(["red"]), guessed(("red",)), FakeEncoder(), min_votes=3)
    with pytest.raises(OptionError, match="voting"):
        vote_names(Pictures(["red"]), guessed(("red",)), FakeEncoder(), voting="loud")


def test_a_memory_of_names_recognises(tmp_path):
    colours = ["red", "blue", "green"] * 2
    dataset = Pictures(colours)
    discovery = vote_names(dataset, guessed(*[(f"{c} thing",) for c in colours]), FakeEncoder(), voting="own")
    with build_named_memory(tmp_path / "memory", dataset, discovery, FakeEncoder()) as memory:
        assert set(memory.categories()) == {"red thing", "blue thing", "green thing"}
        assert memory.count("image") == 3, "equal images are stored once"
        assert memory.count("text") == 3
        assert Recognizer(memory, k=3).recognize(picture("blue")).label == "blue thing"
    with build_named_memory(tmp_path / "memory", dataset, discovery, FakeEncoder()) as again:
        assert again.count() == 6


def test_a_namer_is_evaluated_by_clusters_and_likeness():
    names = [("rosso",), ("rosso",), ("azzurro",), ("rosso",), ()]
    report, images = evaluate_namer(Told(names), Pictures(["red", "red", "blue", "blue", "blue"]))
    assert report.n == 5
    assert report.failures == 1
    assert report.cacc == pytest.approx(3 / 5)
    assert report.top1 == 0
    assert report.names == 2
    assert images[4].error == "nothing comes to mind"
    exact, _ = evaluate_namer(Told([(c,) for c in COLOURS]), Pictures(COLOURS))
    assert exact.cacc == exact.top1 == 1
    assert exact.sacc == pytest.approx(1)


def test_pictures_are_images():
    assert isinstance(Pictures(["red"])[0].image, Image.Image)
