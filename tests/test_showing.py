"""Exemplars and descriptions beside the names: what is shown, in which form, and from where it comes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import rarvision as rv
from rarvision.chat.base import Capabilities
from rarvision.errors import ChatUnsupportedError, InputError, OptionError
from rarvision.memory import LocalMemory
from rarvision.ranking import Ranker, Shown
from rarvision.ranking.showing import montage
from rarvision.testing import FakeChat, FakeEncoder
from rarvision.types import Sample

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
QUERY = Image.new("RGB", (40, 30), (9, 9, 9))


def plain(colour, size=(8, 8)):
    return Image.new("RGB", size, colour)


def shown(count=1, **descriptions):
    return [
        Shown(exemplars=tuple(plain(rgb, (8 + i, 8)) for i in range(count)), description=descriptions.get(name))
        for name, rgb in COLOURS.items()
    ]


def capable(**limits):
    return Capabilities(option_log_probs=True, continuation_log_probs=True, list_constraint=True, **limits)


@pytest.mark.parametrize("strategy", ["choice", "likelihood", "generate"])
def test_exemplars_come_after_the_image_and_are_told_apart(strategy):
    chat = FakeChat({"green": 0.0, "red": -1.0, "blue": -2.0})
    ranker = Ranker(chat, strategy=strategy, exemplars=2)
    (ranking,) = ranker.rank_batch([QUERY], [list(COLOURS)], [shown(2)])
    assert ranking.order == (1, 0, 2)
    request = chat.calls[-1][1]
    assert request.images[0] is QUERY
    assert [image.getpixel((0, 0)) for image in request.images[1:]] == [
        COLOURS[name] for name in ("blue", "green", "red") for _ in range(2)
    ]
    texts = [part for part in request.messages[0].parts if isinstance(part, str)]
    assert texts[:3] == [
        "The first image is the one to classify.\n",
        "Images 2 to 3 show: blue.\n",
        "Images 4 to 5 show: green.\n",
    ]
    assert texts[3].startswith("Images 6 to 7 show: red.\n")
    assert len(texts[3]) > 80  # the question follows


def test_pointwise_shows_the_candidate_alone():
    chat = FakeChat({"green": 0.0})
    Ranker(chat, strategy="pointwise", exemplars=1).rank_batch([QUERY], [list(COLOURS)], [shown()])
    assert [len(request.images) for _, request in chat.calls] == [2, 2, 2]
    assert chat.calls[0][1].messages[0].parts[1] == "The first image is the one to classify.\n"
    assert chat.calls[0][1].messages[0].parts[-1].startswith("Image 2 shows: red.\nDoes the image")


def test_other_orders_begin_alike():
    chat = FakeChat({"green": 0.0})
    Ranker(chat, strategy="choice", exemplars=1, permutations="all").rank_batch([QUERY], [list(COLOURS)], [shown()])
    heads = {
        tuple(part if isinstance(part, str) else id(part) for part in request.messages[0].parts[:-1])
        for _, request in chat.calls
    }
    assert len(heads) == 1
    assert len({request.messages[0].parts[-1] for _, request in chat.calls}) == 3


def test_descriptions():
    chat = FakeChat({"green": 0.0})
    ranker = Ranker(chat, strategy="choice", descriptions=True)
    ranker.rank_batch([QUERY], [list(COLOURS)], [shown(1, red="like blood", blue="like the sky")])
    request = chat.calls[-1][1]
    assert request.images == (QUERY,)
    text = request.messages[0].parts[-1]
    assert text.startswith("What is known of the categories:\nblue: like the sky\nred: like blood\n")


@pytest.mark.parametrize(("most", "per_candidate", "images"), [(7, 2, 7), (6, 1, 4), (4, 1, 4), (3, 0, 1), (1, 0, 1)])
def test_as_many_as_the_model_takes(most, per_candidate, images):
    chat = FakeChat({"green": 0.0}, capabilities=capable(max_images=most))
    Ranker(chat, strategy="choice", exemplars=3).rank_batch([QUERY], [list(COLOURS)], [shown(3)])
    request = chat.calls[-1][1]
    assert len(request.images) == images
    if not per_candidate:
        assert "The large picture is the image to classify" in request.messages[0].parts[-1]
        assert "1: blue; 2: green; 3: red." in request.messages[0].parts[-1]
        with pytest.raises(ChatUnsupportedError, match="montage"):
            Ranker(chat, strategy="choice", exemplars=3, layout="images").rank_batch(
                [QUERY], [list(COLOURS)], [shown(3)]
            )


def test_as_many_as_the_context_holds():
    free = FakeChat({"green": 0.0})
    Ranker(free, strategy="choice", exemplars=1).rank_batch([QUERY], [list(COLOURS)], [shown()])
    needed = free.count_tokens(free.calls[-1][1])
    tight = FakeChat({"green": 0.0}, context_limit=needed + 255)
    Ranker(tight, strategy="choice", exemplars=1).rank_batch([QUERY], [list(COLOURS)], [shown()])
    assert len(tight.calls[-1][1].images) == 1, "a montage, where not even one each fits"
    roomy = FakeChat({"green": 0.0}, context_limit=needed + 256)
    Ranker(roomy, strategy="choice", exemplars=1).rank_batch([QUERY], [list(COLOURS)], [shown()])
    assert len(roomy.calls[-1][1].images) == 4


def test_a_montage_shows_everything():
    picture = montage(plain((9, 9, 9), (448, 448)), [[plain(rgb)] * 2 for rgb in COLOURS.values()])
    pixels = np.asarray(picture)
    assert picture.width == 448
    assert tuple(pixels[200, 200]) == (9, 9, 9)
    cell = (448 - 8) // 3
    for column, rgb in enumerate(COLOURS.values()):
        for row in range(2):
            place = (452 + row * (cell + 4) + cell // 2, column * (cell + 4) + cell // 2)
            assert tuple(pixels[place]) == rgb


def test_settings_tell_what_is_shown():
    chat = FakeChat()
    bare, rich = Ranker(chat, strategy="choice"), Ranker(chat, strategy="choice", exemplars=2, descriptions=True)
    assert "exemplars" not in bare.settings
    assert (rich.settings["exemplars"], rich.settings["descriptions"]) == (2, True)
    assert "2 exemplars, descriptions" in rich.name
    assert rich.with_bias(None).settings == rich.settings
    for wrong in ({"exemplars": -1}, {"layout": "collage"}):
        with pytest.raises(OptionError):
            Ranker(chat, strategy="choice", **wrong)
    with pytest.raises(InputError, match="one record"):
        rich.rank_batch([QUERY], [list(COLOURS)], [shown()[:2]])


@pytest.fixture
def memory(tmp_path):
    with LocalMemory.create(tmp_path / "memory", encoder=FakeEncoder(dim=24), thumbnails=16) as made:
        made.add(
            [
                Sample(source=f"{name} {n}", image=plain(rgb, (9 + n, 9)), label=name)
                for name, rgb in COLOURS.items()
                for n in range(3)
            ]
        )
        made.add_texts(["red", "green"], texts=["red", "green like leaves"])
        yield made


def test_the_memory_gives_the_exemplars(memory):
    chat = FakeChat({"green": 0.0})
    ranker = Ranker(chat, strategy="choice", exemplars=2, descriptions=True)
    recognizer = rv.Recognizer(memory, ranker=ranker, k=3)
    assert recognizer.recognize(plain(COLOURS["red"])).ranking.status == "ranked"
    request = chat.calls[-1][1]
    assert len(request.images) == 7
    for image, name in zip(request.images[1:], [n for n in ("blue", "green", "red") for _ in range(2)], strict=True):
        assert np.abs(np.asarray(image)[4, 4].astype(int) - COLOURS[name]).max() < 12, "a thumbnail, of JPEG"
    text = request.messages[0].parts[-1]
    assert "green: green like leaves\n" in text
    assert "red: red" not in text


def test_fitting_never_shows_the_image_itself(memory):
    chat = FakeChat({"green": 0.0})
    recognizer = rv.Recognizer(memory, ranker=Ranker(chat, strategy="choice", exemplars=3), k=3)
    rv.fit_recognizer(recognizer, images=9, keep=False)
    assert chat.calls
    for _, request in chat.calls:
        asked, *exemplars = request.images
        assert all(image.size != asked.size or image.tobytes() != asked.tobytes() for image in exemplars)
