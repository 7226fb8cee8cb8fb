"""``rarvision name``."""

import json

import pytest
from PIL import ImageColor

from cli_world import COLOURS, picture, table
from rarvision.memory import LocalMemory
from rarvision.testing import FakeChat, FakeEncoder


@pytest.fixture
def unlabelled(tmp_path):
    for colour in COLOURS:
        picture(tmp_path / "unlabelled" / f"{colour}.png", colour, 20)
    return tmp_path / "unlabelled"


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# colours\n" + "".join(f"{colour} thing\n" for colour in COLOURS))
    return path


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"{how} {colour}\n" for how in ("a photo of a", "my", "some") for colour in COLOURS))
    return path


def test_names_and_a_memory(run, unlabelled, words, tmp_path):
    memory, csv = tmp_path / "named.memory", tmp_path / "names.csv"
    command = [
        "name",
        unlabelled,
        "--preset",
        "wordnet-clip",
        "--words",
        words,
        "--template",
        "{}",
        "-e",
        "embedded:fake",
    ]
    result = run(*command, "--memory", memory, "--csv", csv, "--output", tmp_path / "guesses.jsonl")
    assert "5 names of 5 images" in result.stdout
    assert {row["name"] for row in table(csv)} == {f"{colour} thing" for colour in COLOURS}
    with LocalMemory.open(memory, encoder=FakeEncoder()) as made:
        assert set(made.categories()) == {f"{colour} thing" for colour in COLOURS}
        assert (made.count("text"), made.count("image")) == (5, 5)
    assert "red thing" in run("recognize", unlabelled / "red.png", "--memory", memory).stdout
    again = json.loads(run(*command, "--memory", memory, "--output", tmp_path / "guesses.jsonl", "--json").stdout)
    assert set(again) == {"images", "votes", "dropped", "namer", "memory"}
    assert set(again["images"][0]) == {"source", "guesses", "name", "reason", "failed"}
    assert sum(again["votes"].values()) == 5


@pytest.fixture
def chat(monkeypatch, fakes):
    """An MLLM that sees colours."""
    from rarvision.cli import models

    def answer(request):
        return "I cannot say." if not request.images else f"a {_colour(request.images[0])} thing"

    chat = FakeChat(answers=answer, name="seeing chat")
    monkeypatch.setattr(models, "open_mllm", lambda *_, **__: chat)
    return chat


def _colour(image):
    return next(colour for colour in COLOURS if ImageColor.getrgb(colour) == image.getpixel((0, 0)))


def test_the_mllm_is_asked_with_the_kind(run, chat, unlabelled):
    result = run("name", unlabelled, "-r", "some/mllm", "--question", "Which {kind}?", "--kind", "colour", "--json")
    found = json.loads(result.stdout)
    assert found["namer"] == "seeing chat, asked directly"
    assert all("Which colour?" in str(request.messages) for _, request in chat.calls)
    assert {image["name"] for image in found["images"]} == {f"{colour} thing" for colour in COLOURS}


def test_captions(run, unlabelled, captions):
    found = json.loads(
        run("name", unlabelled, "--preset", "cased", "--captions", captions, "--template", "{}", "--json").stdout
    )
    assert {image["name"] for image in found["images"]} == set(COLOURS)


def test_finer_by_words_and_by_a_language_model(run, unlabelled, words, monkeypatch):
    from rarvision.cli import models

    chat = FakeChat(answers="blue thing", name="told")
    monkeypatch.setattr(models, "open_mllm", lambda *_, **__: chat)
    by_words = ["name", unlabelled, "--preset", "finer", "-r", "some/mllm", "--words", words, "--kind", "colour"]
    assert json.loads(run(*by_words, "--json").stdout)["votes"]["blue thing"] >= 1
    run("name", unlabelled, "--preset", "finer", "-r", "some/mllm", "--llm", "some/llm", "--kind", "colour", "--json")
    assert any("described like this" in str(request) for _, request in chat.calls)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--preset rar asks a multimodal LLM"),
        (["--preset", "cased"], "needs --captions"),
        (["--preset", "wordnet-clip"], "needs --words"),
        (["--preset", "wordnet-clip", "-r", "some/mllm"], "asks no multimodal LLM"),
        (["-r", "some/mllm", "--captions", "x.txt"], "--captions goes with --preset cased"),
        (["-r", "some/mllm", "--llm", "other"], "--llm goes with --preset finer"),
        (["--preset", "wordnet-clip", "--words", "nowhere.txt"], "nowhere.txt"),
        (["--preset", "clip"], "'clip'"),
        (["-r", "some/mllm", "--min-votes", "0"], "'--min-votes'"),
        (["-r", "silent"], "no name was guessed"),
    ],
)
def test_bad_input(run, unlabelled, arguments, message):
    result = run("name", unlabelled, *arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_too_few_votes(run, chat, unlabelled):
    result = run("name", unlabelled, "-r", "some/mllm", "--min-votes", "2", code=2)
    assert "lower min_votes (--min-votes)" in result.stderr
    assert chat.calls


def test_bad_files(run, unlabelled, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no images there" in run("name", tmp_path / "empty", "-r", "some/mllm", code=2).stderr
    (tmp_path / "blank.txt").write_text("\n")
    for preset, option, message in (
        ("wordnet-clip", "--words", "holds no names"),
        ("cased", "--captions", "holds no captions"),
    ):
        result = run("name", unlabelled, "--preset", preset, option, tmp_path / "blank.txt", code=2)
        assert message in result.stderr
    (tmp_path / "of.txt").write_text("of the\n")
    result = run("name", unlabelled, "--preset", "cased", "--captions", tmp_path / "of.txt", code=2)
    assert "no name in the 1 nearest captions" in result.stderr


def test_an_image_that_cannot_be_read_is_told(run, unlabelled, words):
    (unlabelled / "broken.png").write_bytes(b"no image")
    result = run("name", unlabelled, "--preset", "wordnet-clip", "--words", words, code=1)
    assert "1 images have no name" in result.stderr
    assert "broken.png" in result.stderr
    assert "5 names of 6 images" in result.stdout


def test_a_server_that_is_down(run, unlabelled):
    assert "nobody answers" in run("name", unlabelled, "-r", "http://down/v1", code=4).stderr
