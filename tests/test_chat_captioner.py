"""BLIP-2: a captioner without a chat template, of random weights, with a language model of either kind."""

from __future__ import annotations

import pytest

from colour_world import picture
from rarvision.chat import CaptionerChat, ChatRequest, ListConstraint
from rarvision.chat.captioner import is_captioner
from rarvision.errors import ChatUnavailableError, ChatUnsupportedError, OptionError
from rarvision.naming import DirectNamer
from tiny_models import tiny_blip2, tiny_llava


@pytest.fixture(scope="module", params=["opt", "t5"])
def folder(request, tmp_path_factory):
    return tiny_blip2(tmp_path_factory.mktemp("blip2"), language=request.param)


@pytest.fixture(scope="module")
def chat(folder):
    with_model = CaptionerChat(folder, device="cpu")
    yield with_model
    with_model.close()


def ask(text, colour):
    return ChatRequest.of(text, picture(colour))


def test_it_answers_as_the_model_itself_does(folder, chat):
    import torch
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    model, processor = Blip2ForConditionalGeneration.from_pretrained(folder), Blip2Processor.from_pretrained(folder)
    inputs = processor(images=picture("red"), text="Question: what is it? Answer:", return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
    expected = processor.tokenizer.decode(tokens, skip_special_tokens=True)
    expected = expected.split("Answer:")[-1].strip()
    (answer,) = chat.generate([ask("what is it?", "red")], max_tokens=6)
    assert answer.text == expected


def test_a_batch_answers_as_one_by_one(chat):
    requests = [ask("what is it?", "red"), ask("which bird, of all, is it?", "blue"), ask("what?", "green")]
    together = chat.generate(requests, max_tokens=5)
    alone = [chat.generate([request], max_tokens=5)[0] for request in requests]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert all("Question:" not in answer.text for answer in together)


def test_it_names_images(chat):
    found = DirectNamer(chat).guess([picture("red"), picture("blue")])
    assert len(found) == 2
    assert all(guess.raw for guess in found)


def test_what_it_cannot_do(chat):
    with pytest.raises(ChatUnsupportedError, match="confine"):
        chat.generate([ask("?", "red")], max_tokens=5, constraints=[ListConstraint(names=("a", "b"))])
    with pytest.raises(ChatUnsupportedError, match="one image"):
        chat.generate([ChatRequest.of("hello")], max_tokens=5)
    with pytest.raises(OptionError, match="max_tokens"):
        chat.generate([ask("?", "red")], max_tokens=0)
    with pytest.raises(ChatUnsupportedError, match="log-probabilities"):
        chat.option_log_probs([ask("?", "red")], [["a", "b"]])


def test_which_checkpoints_are_captioners(folder, tmp_path):
    assert is_captioner(folder)
    llava = tiny_llava(tmp_path / "llava")
    assert not is_captioner(llava)
    assert not is_captioner(tmp_path / "nowhere")
    with pytest.raises(ChatUnsupportedError, match="is a llava"):
        CaptionerChat(llava, device="cpu")
    with pytest.raises(ChatUnavailableError):
        CaptionerChat(tmp_path / "nowhere", device="cpu")
