"""A worked example before the question: its form, what it changes, with a model, and on the command line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import rarvision as rv
from cli_world import COLOURS, lines
from rarvision.chat import Chat, LocalChat
from rarvision.chat.base import Capabilities, Message
from rarvision.chat.rendering import openai_messages
from rarvision.embedded import weights_path
from rarvision.errors import ChatUnsupportedError, InputError, OptionError
from rarvision.judging import fit_key
from rarvision.ranking import (
    NoExample,
    Ranker,
    Showing,
    Shown,
    WorkedExample,
    choice_prompt,
    ranking_prompt,
    yes_no_prompt,
)
from rarvision.ranking.prompts import NAMING_PROMPT
from rarvision.testing import FakeChat, check_ranker

NAMES = ["rose", "tulip", "daisy"]
QUERY = Image.new("RGB", (40, 30), (9, 9, 9))
EXAMPLE = WorkedExample(
    image=Image.new("RGB", (8, 8), (200, 0, 0)), truth="fern", candidates=("moss", "fern", "ivy"), order=(1, 2, 0)
)
LISTED = ("fern", "ivy", "moss")
SCORES = {"tulip": -0.5, "rose": -1.0, "daisy": -2.0, "fern": -0.1, "ivy": -0.2, "moss": -0.3}


def asked(chat):
    """The messages of the latest question."""
    return chat.calls[-1][1].messages


def user(image, text):
    return Message(role="user", parts=(image, text))


def assistant(text):
    return Message(role="assistant", parts=(text,))


# ---- the form ----


@pytest.mark.parametrize(
    ("options", "prompt", "answer"),
    [
        ({"strategy": "generate"}, ranking_prompt, "['fern', 'moss', 'ivy']"),
        ({"strategy": "generate", "constrained": True}, ranking_prompt, "['fern', 'moss', 'ivy']"),
        ({"strategy": "likelihood"}, ranking_prompt, "['fern', 'moss', 'ivy']"),
        ({"strategy": "likelihood", "with_list": False}, lambda _: NAMING_PROMPT, "fern"),
        ({"strategy": "choice"}, choice_prompt, "A"),
        ({"strategy": "generate", "prompt": "Sort {categories}!"}, lambda n: f"Sort {n!r}!".replace('"', "'"), None),
    ],
)
def test_the_same_question_is_answered_before(options, prompt, answer):
    chat = FakeChat(SCORES)
    (ranking,) = Ranker(chat, worked_example=True, **options).rank_batch([QUERY], [NAMES], worked=[EXAMPLE])
    first, second, third = asked(chat)
    assert first == user(EXAMPLE.image, prompt(list(LISTED)))
    assert second == assistant(answer or "['fern', 'moss', 'ivy']"), "the truth, then the others in retrieval's order"
    assert third == user(QUERY, prompt(NAMES))
    assert (ranking.status, ranking.order) == ("ranked", (1, 0, 2)), "the answer is about the last question"


def test_pointwise_is_told_of_a_yes_and_a_no():
    chat = FakeChat(SCORES)
    (ranking,) = Ranker(chat, strategy="pointwise", worked_example=True).rank_batch([QUERY], [NAMES], worked=[EXAMPLE])
    assert ranking.order == (1, 0, 2)
    for (_, request), name in zip(chat.calls, NAMES, strict=True):
        assert request.messages == (
            user(EXAMPLE.image, yes_no_prompt("fern")),
            assistant("yes"),
            user(EXAMPLE.image, yes_no_prompt("moss")),
            assistant("no"),
            user(QUERY, yes_no_prompt(name)),
        )


def test_the_letter_is_that_of_the_place_where_the_truth_is_shown():
    chat = FakeChat(SCORES)
    example = WorkedExample(image=QUERY, truth="fern", candidates=("fern", "moss", "ivy"), order=(2, 1, 0))
    Ranker(chat, strategy="choice", worked_example=True).rank_batch([QUERY.copy()], [NAMES], worked=[example])
    assert asked(chat)[:2] == (user(QUERY, choice_prompt(["ivy", "moss", "fern"])), assistant("C"))


def test_orders_of_one_image_follow_the_same_example():
    chat = FakeChat(SCORES)
    ranker = Ranker(chat, strategy="choice", permutations="all", shuffle=3, worked_example=True)
    ranker.rank_batch([QUERY, QUERY], [NAMES, NAMES[::-1]], worked=[EXAMPLE, EXAMPLE])
    requests = [request for _, request in chat.calls]
    assert len({tuple(map(id, request.images)) for request in requests}) == 1
    assert all(request.messages[:2] == asked(chat)[:2] for request in requests)
    assert len({request.messages[-1].parts[-1] for request in requests}) == len(requests)


def test_the_same_image_after_different_examples():
    chat = FakeChat(SCORES)
    other = WorkedExample(image=EXAMPLE.image, truth="ivy", candidates=("ivy", "fern"), order=(0, 1))
    missing = NoExample(reason="of a reason")
    rankings = Ranker(chat, strategy="choice", worked_example=True).rank_batch(
        [QUERY] * 4, [NAMES] * 4, worked=[EXAMPLE, other, missing, EXAMPLE]
    )
    assert [len(request.messages) for _, request in chat.calls] == [3, 3, 1]
    assert [ranking.status for ranking in rankings] == ["ranked", "ranked", "repaired", "ranked"]


def test_exemplars_and_descriptions_are_of_the_question_alone():
    chat = FakeChat(SCORES)
    shown = [Shown(exemplars=(QUERY.copy(),), description=f"like a {name}") for name in NAMES]
    ranker = Ranker(chat, strategy="choice", worked_example=True, exemplars=1, descriptions=True)
    ranker.rank_batch([QUERY], [NAMES], [shown], [EXAMPLE])
    first, _, third = asked(chat)
    assert first == user(EXAMPLE.image, choice_prompt(LISTED))
    assert sum(not isinstance(part, str) for part in third.parts) == 4
    assert "like a rose" in third.parts[-1]
    notes = [part.split("\n")[0] for part in third.parts if isinstance(part, str)]
    assert notes[0] == "Image 2 is the one to classify."  # images are counted through the conversation
    assert [note.split(" shows: ")[0] for note in notes[1:]] == ["Image 3", "Image 4", "Image 5"]


@pytest.mark.parametrize("bad", [{"candidates": ("fern",), "order": (0,)}, {"candidates": ("fern", "fern", "ivy")},
                                 {"truth": "oak"}, {"order": (0, 1)}, {"order": (0, 0, 1)}])  # fmt: skip
def test_an_example_is_checked_at_birth(bad):
    with pytest.raises(InputError):
        WorkedExample(
            **{"image": QUERY, "truth": "fern", "candidates": ("moss", "fern", "ivy"), "order": (0, 1, 2), **bad}
        )


def test_a_server_gets_the_answer_as_the_assistants_turn():
    chat = FakeChat(SCORES)
    Ranker(chat, strategy="generate", worked_example=True).rank_batch([QUERY], [NAMES], worked=[EXAMPLE])
    turns = openai_messages(chat.calls[-1][1])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == "['fern', 'moss', 'ivy']"


# ---- what the model takes ----


def capable(**limits):
    return Capabilities(option_log_probs=True, continuation_log_probs=True, list_constraint=True, **limits)


def test_a_model_of_too_few_images_is_refused():
    with pytest.raises(ChatUnsupportedError, match=r"takes at most 1 image in a conversation.*'choice' shows 2"):
        Ranker(FakeChat(capabilities=capable(max_images=1)), strategy="choice", worked_example=True)
    two = FakeChat(SCORES, capabilities=capable(max_images=2))
    with pytest.raises(ChatUnsupportedError, match="'pointwise' shows 3"):
        Ranker(two, strategy="pointwise", worked_example=True)
    (ranking,) = Ranker(two, strategy="choice", worked_example=True).rank_batch([QUERY], [NAMES], worked=[EXAMPLE])
    assert ranking.status == "ranked"


@pytest.mark.parametrize(("most", "images"), [(8, 8), (7, 5), (5, 5), (4, 2)])
def test_exemplars_make_room_for_it(most, images):
    chat = FakeChat(SCORES, capabilities=capable(max_images=most))
    shown = [Shown(exemplars=(QUERY.copy(), QUERY.copy())) for _ in NAMES]
    options = {"strategy": "choice", "exemplars": 2, "worked_example": True}
    Ranker(chat, **options).rank_batch([QUERY], [NAMES], [shown], [EXAMPLE])
    assert len(chat.calls[-1][1].images) == images
    if images == 2:
        assert "The large picture" in asked(chat)[-1].parts[-1]
        with pytest.raises(ChatUnsupportedError, match="that of the worked example"):
            Ranker(chat, layout="images", **options).rank_batch([QUERY], [NAMES], [shown], [EXAMPLE])


def test_it_counts_in_the_context():
    shown = [Shown(exemplars=(QUERY.copy(),)) for _ in NAMES]
    options = {"strategy": "choice", "exemplars": 1, "worked_example": True}
    free = FakeChat(SCORES)
    Ranker(free, **options).rank_batch([QUERY], [NAMES], [shown], [EXAMPLE])
    needed = free.count_tokens(free.calls[-1][1])
    for more, images in ((255, 2), (256, 5)):
        chat = FakeChat(SCORES, context_limit=needed + more)
        ranker = Ranker(chat, **options)
        ranker.rank_batch([QUERY], [NAMES], [shown], [EXAMPLE])
        assert len(chat.calls[-1][1].images) == images
        ranker.rank_batch([QUERY], [NAMES], [shown], [NoExample(reason="none")])
        assert len(chat.calls[-1][1].images) == 4, "there is room where it is not"


# ---- what it changes besides ----


def test_without_one_the_ranking_says_so():
    chat = FakeChat(SCORES, answers=lambda _: "['tulip', 'rose']")
    ranker = Ranker(chat, strategy="choice", worked_example=True)
    (ranking,) = ranker.rank_batch([QUERY], [NAMES])
    assert (ranking.status, ranking.order) == ("repaired", (1, 0, 2))
    assert ranking.reason == "asked without a worked example: none was given"
    writer = Ranker(chat, strategy="generate", worked_example=True)
    (ranking,) = writer.rank_batch([QUERY], [NAMES], worked=[NoExample(reason="gone")])
    assert ranking.reason == "1 of 3 candidates missing; asked without a worked example: gone"
    assert Ranker(chat, strategy="choice").rank(QUERY, NAMES).reason is None
    (trivial,) = ranker.rank_batch([QUERY], [NAMES[:1]])
    assert trivial.status == "ranked", "nothing was asked"
    with pytest.raises(InputError, match="one worked example for each image"):
        ranker.rank_batch([QUERY], [NAMES], worked=[])
    check_ranker(Ranker(FakeChat(), strategy="choice", worked_example=True))


def test_settings_tell_of_it():
    chat = FakeChat(SCORES)
    bare, with_one = Ranker(chat, strategy="choice"), Ranker(chat, strategy="choice", worked_example=True)
    assert "worked_example" not in bare.settings
    assert with_one.settings["worked_example"] is True
    assert "worked example" in with_one.name
    assert with_one.with_bias(None).settings == with_one.settings
    assert with_one.showing == Showing(worked_example=True)
    parts = [{"retriever": {}, "views": "whole", "ranker": dict(ranker.settings)} for ranker in (bare, with_one)]
    assert fit_key(parts[0]) != fit_key(parts[1])


def test_a_prior_is_one_of_questions_after_an_example():
    chat = FakeChat(SCORES, place_bias=(1.0,))
    ranker = Ranker(chat, strategy="choice", worked_example=True)
    with pytest.raises(OptionError, match="none was given"):
        ranker.estimate_bias([QUERY], [NAMES])
    prior = ranker.estimate_bias([QUERY], [NAMES], worked=[EXAMPLE])
    assert {len(request.messages) for _, request in chat.calls} == {3}
    assert ranker.with_bias(prior).bias == prior
    with pytest.raises(OptionError, match="worked_example: True there, None here"):
        Ranker(chat, strategy="choice", bias=prior)


def test_a_prior_is_asked_for_with_what_is_shown():
    chat = FakeChat(SCORES)
    shown = [[Shown(description=f"like a {name}") for name in NAMES]]
    Ranker(chat, strategy="choice", descriptions=True).estimate_bias([QUERY], [NAMES], shown)
    assert all("like a rose" in request.messages[-1].parts[-1] for _, request in chat.calls)


def test_the_blank_image_comes_after_the_same_example():
    chat = FakeChat(SCORES)
    ranker = Ranker(chat, strategy="likelihood", blank_weight=1.0, worked_example=True)
    other = WorkedExample(image=QUERY, truth="ivy", candidates=("ivy", "fern"), order=(0, 1))
    for example, questions in ((EXAMPLE, 2), (EXAMPLE, 1), (other, 2)):
        before = len(chat.calls)
        ranker.rank_batch([QUERY], [NAMES], worked=[example])
        assert len(chat.calls) - before == questions, "kept for each example"
        assert all(request.images[0] is example.image for _, request in chat.calls[before:])


# ---- with a model ----


@pytest.fixture(scope="module")
def embedded():
    return LocalChat(weights_path("mllm"))


def guide(n):
    return list(rv.FieldGuide("fish", categories=20).queries(n))


@pytest.fixture
def fish():
    example, *queries = [(rv.images.load_image(sample.image), sample.label) for sample in guide(3)]
    names = list(rv.FieldGuide("fish", categories=20).names)
    others = [name for name in names if name not in {label for _, label in (example, *queries)}]
    worked = WorkedExample(
        image=example[0], truth=example[1], candidates=(others[0], example[1], others[1]), order=(2, 0, 1)
    )
    return worked, [image for image, _ in queries], [[others[2], label, *others[3:5]] for _, label in queries]


def test_the_embedded_model_reads_what_it_is_trained_on(embedded, fish):
    worked, (image, _), (names, _) = fish
    chat = FakeChat()
    Ranker(chat, strategy="choice", worked_example=True).rank_batch([image], [names], worked=[worked])
    (ids,) = embedded._text_tokens([chat.calls[-1][1]])
    assert embedded._tokenizer.decode(ids) == (
        f"USER: <image>\n{choice_prompt(worked.shown)} ASSISTANT:C</s>USER: <image>\n{choice_prompt(names)} ASSISTANT:"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "choice", "permutations": "all"},
        {"strategy": "likelihood", "permutations": 2, "blank_weight": 1.0},
        {"strategy": "likelihood", "with_list": False},
        {"strategy": "pointwise"},
    ],
)
def test_sharing_gives_the_values_from_scratch(embedded, fish, options):
    worked, images, names = fish
    ranker = Ranker(embedded, worked_example=True, **options)
    together = ranker.rank_batch(images, names, worked=[worked] * 2)
    assert embedded.image_reuse
    alone = OneByOne(embedded)
    again = Ranker(alone, worked_example=True, **options).rank_batch(images, names, worked=[worked] * 2)
    for ranking, expected in zip(together, again, strict=True):
        assert ranking.status == "ranked"
        np.testing.assert_allclose(ranking.log_scores, expected.log_scores, atol=1e-3)
    bare = Ranker(embedded, **options).rank_batch(images, names)
    assert np.abs(np.subtract(together[0].log_scores, bare[0].log_scores)).max() > 1e-3, "it is seen"


class OneByOne(Chat):
    """Passes each request on in a call of its own, so that nothing can be shared."""

    def __init__(self, chat):
        self._chat = chat

    name = property(lambda self: self._chat.name)
    capabilities = property(lambda self: self._chat.capabilities)
    context_limit = property(lambda self: self._chat.context_limit)

    def generate(self, requests, *, max_tokens, constraints=None):
        raise NotImplementedError

    def option_log_probs(self, requests, options):
        return [self._chat.option_log_probs([r], [o])[0] for r, o in zip(requests, options, strict=True)]

    def continuation_log_probs(self, requests, texts):
        return [self._chat.continuation_log_probs([r], [t])[0] for r, t in zip(requests, texts, strict=True)]


def test_all_up_to_the_last_common_token_is_computed_once(embedded, fish, monkeypatch):
    worked, (image, _), (names, _) = fish
    ranker = Ranker(embedded, strategy="choice", permutations="all", worked_example=True)
    ranker.rank_batch([image], [names], worked=[worked])  # the checks of a first call are behind it
    passes, pixels, forward = [], [], embedded._model.forward

    def watched(*args, **inputs):
        if inputs.get("pixel_values") is not None:
            pixels.append(len(inputs["pixel_values"]))
        passes.append(tuple(inputs["input_ids"].shape))
        return forward(*args, **inputs)

    monkeypatch.setattr(embedded._model, "forward", watched)
    ranker.rank_batch([image], [names], worked=[worked])
    (rows, stem), (branches, rest) = passes
    assert (rows, branches, pixels) == (1, 4, [2]), "the example's image and the query's, once"
    chat = FakeChat()
    Ranker(chat, strategy="choice", permutations="all", worked_example=True).rank_batch(
        [image], [names], worked=[worked]
    )
    texts = embedded._text_tokens([request for _, request in chat.calls])
    common = next(at for at in range(len(texts[0])) if len({text[at] for text in texts}) > 1)
    image_tokens = embedded.count_tokens(chat.calls[0][1]) - len(texts[0])
    assert stem == common + image_tokens
    assert rest == max(map(len, texts)) - common


# ---- the command line ----


def test_the_command_line_has_it(run, memory_of_colours, photos, fakes, monkeypatch):
    from rarvision.cli import models

    chat = FakeChat({"blue": -0.1, "red": -5.0, "green": -6.0, "yellow": -7.0, "white": -8.0})
    monkeypatch.setattr(models, "open_mllm", lambda *_, **__: chat)
    command = ["recognize", photos, "-m", memory_of_colours, "-r", "x", "--strategy", "choice", "--json"]
    found = lines(run(*command, "--worked-example"))
    assert [line["ranking"]["status"] for line in found] == ["ranked"] * 3
    assert {len(request.messages) for _, request in chat.calls} == {3}
    assert (
        "--worked-example needs --ranker"
        in run("recognize", photos, "-m", memory_of_colours, "--worked-example", code=2).stderr
    )
    assert (
        "--worked-example does not go with --repeats" in run(*command, "--worked-example", "--repeats", code=2).stderr
    )


def test_the_command_line_says_where_there_is_none(run, tmp_path, photos):
    listed = tmp_path / "names.txt"
    listed.write_text("\n".join(COLOURS))
    run("memory", "create", tmp_path / "names.memory", listed, "--quiet")
    result = run("recognize", photos, "-m", tmp_path / "names.memory", "-r", "x", "--worked-example")
    assert "repaired: asked without a worked example: the memory holds no images" in result.stdout


@pytest.fixture
def memory_of_colours(run, tree, tmp_path):
    run("memory", "create", tmp_path / "colours.memory", tree, "--quiet")
    return tmp_path / "colours.memory"
