"""Prompts about one image share its computation: the same values as from scratch, the image prepared and seen once."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from chat_requests import picture
from rarvision.chat import ChatRequest, LocalChat
from rarvision.chat.prompts import image_groups
from rarvision.errors import ContextLengthError
from rarvision.ranking import Ranker, choice_prompt, ranking_prompt
from tiny_models import FAMILIES

NAMES = ["gold finch", "barn owl of the night", "red kite", "Wilson's warbler"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: make(root / family) for family, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def shared(folders):
    return {family: LocalChat(folder, device="cpu") for family, folder in folders.items()}


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return request.param


def alone(chat, method, requests, texts):
    """Each request in a call of its own, so that nothing can be shared."""
    return [getattr(chat, method)([request], [each])[0] for request, each in zip(requests, texts, strict=True)]


def turned(names, turn):
    return [*names[turn:], *names[:turn]]


def choices(pictures):
    """All rotations for each picture, of lists of different lengths; and a picture that is asked about once."""
    requests, letters = [], []
    for number, image in enumerate(pictures):
        names = NAMES[: 4 - number % 2]
        for turn in range(len(names)):
            requests.append(ChatRequest.of(choice_prompt(turned(names, turn)), image))
            letters.append(list("ABCD"[: len(names)]))
    requests.append(ChatRequest.of(choice_prompt(NAMES[:2]), picture(9, 30, 30)))
    letters.append(["A", "B"])
    return requests, letters


def watch(monkeypatch, chat):
    """What the model and the processor are given, from now on: images seen, tokens, images prepared."""
    seen = {"pixels": 0, "passes": [], "prepared": 0}
    forward, prepare = chat._model.forward, chat._processor.apply_chat_template

    def watched(*args, **inputs):
        if inputs.get("pixel_values") is not None:
            grid = inputs.get("image_grid_thw")
            seen["pixels"] += len(inputs["pixel_values"]) if grid is None else len(grid)
        seen["passes"].append(tuple(inputs["input_ids"].shape))
        return forward(*args, **inputs)

    def prepared(turns, **options):
        seen["prepared"] += len(turns) if options.get("tokenize") else 0
        return prepare(turns, **options)

    monkeypatch.setattr(chat._model, "forward", watched)
    monkeypatch.setattr(chat._processor, "apply_chat_template", prepared)
    return seen


def test_options_equal_those_from_scratch(shared, family):
    chat = shared[family]
    pictures = [picture(seed, 24 + 17 * seed, 40) for seed in range(3)]  # Qwen: different numbers of image tokens
    requests, letters = choices(pictures)
    together = chat.option_log_probs(requests, letters)
    assert chat.image_reuse
    for values, expected in zip(together, alone(chat, "option_log_probs", requests, letters), strict=True):
        np.testing.assert_allclose(values, expected, atol=2e-4)
    assert np.ptp(np.stack(together[:4]), axis=0).max() > 1e-3, "the prompts are told apart"


def test_continuations_equal_those_from_scratch(shared, family):
    chat = shared[family]
    requests, texts = [], []
    for number in range(2):
        for turn in range(3):
            names = turned(NAMES[: 3 + number], turn)
            requests.append(ChatRequest.of(ranking_prompt(names), picture(number, 40, 24 + 30 * number)))
            texts.append([f"['{name}'" for name in names])
    one = requests[0].images[0]
    requests = [ChatRequest.of(r.messages[0].parts[1], one if row < 3 else requests[3].images[0])
                for row, r in enumerate(requests)]  # fmt: skip
    together = chat.continuation_log_probs(requests, texts)
    assert chat.image_reuse
    for (values, counts), (expected, same) in zip(
        together, alone(chat, "continuation_log_probs", requests, texts), strict=True
    ):
        np.testing.assert_allclose(values, expected, atol=1e-3)
        assert counts == same


def test_every_strategy_ranks_as_one_by_one(shared, family):
    chat = shared[family]
    images = [picture(seed, 30, 30 + 20 * seed) for seed in range(2)]
    for options in (
        {"strategy": "choice", "permutations": "all"},
        {"strategy": "likelihood", "permutations": 2},
        {"strategy": "likelihood", "blank_weight": 1.0},
        {"strategy": "pointwise"},
    ):
        batch = Ranker(chat, **options).rank_batch(images, [NAMES, NAMES[:3]])
        for image, names, ranking in zip(images, [NAMES, NAMES[:3]], batch, strict=True):
            again = Ranker(chat, **options).rank(image.copy(), names)
            np.testing.assert_allclose(ranking.log_scores, again.log_scores, atol=1e-3)
    assert chat.image_reuse


def test_an_image_is_prepared_and_seen_once(shared, family, monkeypatch):
    chat = shared[family]
    image = picture(5, 30, 30)
    ranker = Ranker(chat, strategy="choice", permutations=4)
    ranker.rank(image, NAMES)  # the checks of a first call are behind it
    seen = watch(monkeypatch, chat)
    ranker.rank(image, NAMES)
    assert (seen["pixels"], seen["prepared"]) == (1, 1)
    (rows, stem), (branches, rest) = seen["passes"]
    assert (rows, branches) == (1, 4)
    whole = chat.count_tokens(ChatRequest.of(choice_prompt(NAMES), image))
    assert abs(stem + rest - whole) <= 8, "what the prompts share is in the beginning"  # one list may be tighter
    assert rest < stem + rest - 10


def test_small_memory_takes_more_passes(shared, monkeypatch):
    chat = shared["qwen3-vl"]
    requests, letters = choices([picture(seed, 30, 30) for seed in range(2)])
    expected = chat.option_log_probs(requests, letters)
    monkeypatch.setattr("rarvision.chat.scoring._MEMORY_BUDGET", 1)
    seen = watch(monkeypatch, chat)
    for values, same in zip(chat.option_log_probs(requests, letters), expected, strict=True):
        np.testing.assert_allclose(values, same, atol=1e-4)
    assert [rows for rows, _ in seen["passes"]] == [3, 4, 4]


def test_a_batch_is_so_many_images(folders, monkeypatch):
    chat = LocalChat(folders["llava"], batch_size=2)
    requests, letters = choices([picture(seed, 30, 30) for seed in range(3)])
    expected = alone(chat, "option_log_probs", requests, letters)
    order = [*range(0, len(requests), 2), *range(1, len(requests), 2)]  # requests about an image need not be neighbours
    seen = watch(monkeypatch, chat)
    values = chat.option_log_probs([requests[row] for row in order], [letters[row] for row in order])
    for row, got in zip(order, values, strict=True):
        np.testing.assert_allclose(got, expected[row], atol=2e-4)
    assert seen["pixels"] == 4 + 2, "four images, and the two prompts that the first batch was checked with"


def test_text_before_the_image_and_several_images(shared, family):
    chat = shared[family]
    first, second = picture(0, 30, 30), picture(1, 40, 30)
    both = [ChatRequest.of(f"Compare them: {name}?", first, second) for name in NAMES[:3]]
    options = [["yes", "no"]] * 3
    for values, expected in zip(
        chat.option_log_probs(both, options), alone(chat, "option_log_probs", both, options), strict=True
    ):
        np.testing.assert_allclose(values, expected, atol=2e-4)
    parts = [("Before ", first, "after"), ("And before ", first, "after")]
    before = [ChatRequest(messages=(type(both[0].messages[0])(role="user", parts=p),)) for p in parts]
    for values, expected in zip(
        chat.option_log_probs(before, options[:2]), alone(chat, "option_log_probs", before, options[:2]), strict=True
    ):
        np.testing.assert_allclose(values, expected, atol=2e-4)
    assert chat.image_reuse


def test_the_same_prompt_twice(shared, family):
    chat = shared[family]
    request = ChatRequest.of(choice_prompt(NAMES), picture(0, 30, 30))
    first, second = chat.option_log_probs([request] * 2, [["A", "B"], ["C", "D"]])
    both = chat.option_log_probs([request], [["A", "B", "C", "D"]])[0]
    np.testing.assert_allclose(np.concatenate([first, second]), both, atol=2e-4)


@pytest.mark.parametrize("fault", ["raises", "wrong", "slides"])
def test_sharing_that_fails_is_noticed_and_said(folders, monkeypatch, caplog, fault):
    from transformers import DynamicCache

    chat = LocalChat(folders["llava"])
    requests, letters = choices([picture(seed, 30, 30) for seed in range(2)])
    expected = alone(chat, "option_log_probs", requests, letters)

    def broken(self, indices):
        if fault == "raises":
            raise NotImplementedError("no such thing for this cache")
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[indices].flip(2), layer.values[indices]

    if fault == "slides":
        monkeypatch.setattr(DynamicCache, "is_sliding", [True])
    else:
        monkeypatch.setattr(DynamicCache, "batch_select_indices", broken)
    with caplog.at_level(logging.WARNING, logger="rarvision"):
        values = chat.option_log_probs(requests, letters)
    monkeypatch.undo()
    assert caplog.text.count("an image is computed anew") == 1
    assert chat.image_reuse is False
    assert chat.prefix_reuse is True
    for got, wanted in zip(values, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-4)
    chat.option_log_probs(requests, letters)
    assert caplog.text.count("an image is computed anew") == 1


def test_padding_that_fails_is_noticed_though_even_prompts_were_right(folders, monkeypatch, caplog):
    """A model that keeps a state sees padding in the middle; prompts of one length have none."""
    chat = LocalChat(folders["llava"])
    image = picture(0, 30, 30)
    even = [ChatRequest.of(f"{letter}?", image) for letter in "AB"]
    chat.option_log_probs(even, [["yes", "no"]] * 2)
    assert chat._scorer._branches_checked == {False}
    ragged = [ChatRequest.of(text, image) for text in ("gold finch?", "Is it a barn owl of the night?")]
    expected = alone(chat, "option_log_probs", ragged, [["yes", "no"]] * 2)
    forward = chat._model.forward

    def sees_padding(*args, **inputs):
        return forward(*args, **{**inputs, "attention_mask": inputs["attention_mask"].clone().fill_(1)})

    monkeypatch.setattr(chat._model, "forward", sees_padding)
    with caplog.at_level(logging.WARNING, logger="rarvision"):
        chat.option_log_probs(ragged, [["yes", "no"]] * 2)
    assert "where a computation from scratch gave" in caplog.text
    monkeypatch.undo()
    for got, wanted in zip(chat.option_log_probs(ragged, [["yes", "no"]] * 2), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-4)


def test_prompts_that_do_not_fit_are_named(shared, family):
    image = picture(0, 30, 30)
    fits, long = ChatRequest.of("short", image), ChatRequest.of("too long " * 600, image)
    with pytest.raises(ContextLengthError, match=r"request 1 needs \d+ tokens.*1024"):
        shared[family].option_log_probs([fits, long], [["A"], ["A"]])


def test_groups_are_of_the_same_objects():
    image, twin = picture(0, 4, 4), picture(0, 4, 4)
    requests = [ChatRequest.of(text, *images) for text, *images in
                (("a", image), ("b", twin), ("c", image), ("d", image, twin), ("e",))]  # fmt: skip
    assert image_groups(requests) == [[0, 2], [1], [3], [4]]
