"""Local models, on tiny random checkpoints of three families, against plain forward passes written out here."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
import torch

from chat_requests import mixed_requests, picture
from rarvision.chat import ChatRequest, ListConstraint, LocalChat
from rarvision.errors import (
    ChatUnavailableError,
    ChatUnsupportedError,
    ContextLengthError,
    ImageError,
    OptionError,
)
from rarvision.testing.chat import check_chat
from tiny_models import FAMILIES

NAMES = ("gold finch", "gold finch's", "barn owl", "猫", "🦜 macaw", "a', 'b", "[x]", 'the "x"')


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: make(root / family) for family, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def chats(folders):
    return {family: LocalChat(folder, device="cpu") for family, folder in folders.items()}


@pytest.fixture(params=sorted(FAMILIES))
def chat(request, chats):
    return chats[request.param]


@pytest.fixture(scope="module")
def llava(chats):
    return chats["llava"]


def naive_inputs(chat, request):
    """Render one request with the stock processor; nothing of LocalChat's own rendering."""
    turns = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
                for part in message.parts
            ],
        }
        for message in request.messages
    ]
    inputs = chat._processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return dict(inputs)


def naive_log_probs(chat, request, text):
    """Log-probability of each token of a continuation: one forward pass over the whole, from scratch."""
    inputs = naive_inputs(chat, request)
    tail = torch.tensor([chat._tokenizer.encode(text, add_special_tokens=False)])
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tail)], dim=1)
    with torch.inference_mode():
        logits = chat._model(**inputs, use_cache=False).logits[0].double()
    probabilities = torch.log(torch.softmax(logits, dim=-1))
    return [float(probabilities[prompt + at - 1, token]) for at, token in enumerate(tail[0].tolist())]


def is_permutation(text, names):
    """Whether the text is the list of all names, whatever they hold."""
    rest = text.removeprefix("['")

    def fits(rest, left):
        if not left:
            return rest == "']"
        return any(
            fits(after.removeprefix("', '") if len(left) > 1 else after, left - {name})
            for name in left
            if rest.startswith(name)
            for after in [rest[len(name) :]]
            if len(left) == 1 or after.startswith("', '")
        )

    return text.startswith("['") and fits(rest, frozenset(names))


# ---- generate ----


def test_contract(chat):
    check_chat(chat)


def test_batched_answers_equal_single_ones_and_plain_generate(chat):
    requests = mixed_requests()
    together = chat.generate(requests, max_tokens=10)
    for request, answer in zip(requests, together, strict=True):
        assert chat.generate([request], max_tokens=10) == [answer]
        inputs = naive_inputs(chat, request)
        width = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            tokens = chat._model.generate(**inputs, max_new_tokens=10, do_sample=False)[0, width:]
        assert answer.text == chat._tokenizer.decode(tokens, skip_special_tokens=True)
    assert len({answer.text for answer in together}) == len(requests)
    assert any(answer.finish_reason == "length" for answer in together)


def test_the_image_matters(chat):
    texts = {chat.generate([ChatRequest.of("What?", picture(seed, 40, 30))], max_tokens=8)[0].text for seed in range(4)}
    assert len(texts) > 1


def test_sampling_defaults_of_a_checkpoint_are_not_followed(folders, tmp_path, llava):
    folder = shutil.copytree(folders["llava"], tmp_path / "sampling")
    settings = json.loads((folder / "generation_config.json").read_text())
    settings.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, max_new_tokens=2)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    requests = mixed_requests()
    assert LocalChat(folder).generate(requests, max_tokens=8) == llava.generate(requests, max_tokens=8)


def test_answer_that_ends(llava, monkeypatch):
    request = mixed_requests()[0]
    free = llava.generate([request], max_tokens=6)[0]
    inputs = naive_inputs(llava, request)
    with torch.inference_mode():
        produced = llava._model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :].tolist()
    end = produced[3]
    monkeypatch.setattr(llava._model.generation_config, "eos_token_id", [end])
    monkeypatch.setattr(llava, "_eos_ids", [end])
    cut = llava.generate([request], max_tokens=6)[0]
    assert cut.finish_reason == "stop"
    assert free.text.startswith(cut.text)
    assert cut.text == llava._tokenizer.decode(produced[: produced.index(end)], skip_special_tokens=True)


def test_no_requests(chat):
    assert chat.generate([], max_tokens=3) == []
    assert chat.option_log_probs([], []) == []
    assert chat.continuation_log_probs([], []) == []


def test_control_tokens_in_a_name_are_text(chat):
    image = picture(5, 30, 30)
    for token in chat._tokenizer.all_special_tokens:
        request = ChatRequest.of(f"Is it {token}?", image)
        assert chat.count_tokens(request) > 5
        assert chat.generate([request], max_tokens=2)


# ---- constraints ----


@pytest.mark.parametrize("names", [NAMES, ("one",), ("b", "a", "ab", "ba", "aba")])
def test_constrained_answers_are_permutations(chat, names):
    requests = mixed_requests()
    constraints = [ListConstraint(names=names[: max(1, len(names) - row)]) for row in range(len(requests))]
    answers = chat.generate(requests, max_tokens=1, constraints=constraints)  # raised to what the list needs
    for constraint, answer in zip(constraints, answers, strict=True):
        assert answer.finish_reason == "stop"
        assert is_permutation(answer.text, constraint.names), answer
    singles = [
        chat.generate([request], max_tokens=1, constraints=[constraint])[0]
        for request, constraint in zip(requests, constraints, strict=True)
    ]
    assert singles == answers


def test_constrained_answer_takes_the_likeliest_allowed_token(chat):
    """Against a search that scores every token of the vocabulary by its text."""
    request = mixed_requests()[0]
    names = ("gold finch", "barn owl")
    wanted = [f"['{a}', '{b}']" for a, b in (names, names[::-1])]
    got = chat.generate([request], max_tokens=1, constraints=[ListConstraint(names=names)])[0].text
    inputs, tokenizer = naive_inputs(chat, request), chat._tokenizer
    special, text, ids = set(tokenizer.all_special_ids), "", []
    while text not in wanted:
        whole = torch.cat([inputs["input_ids"], torch.tensor([ids], dtype=torch.long)], dim=1)
        extra = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        if "mm_token_type_ids" in inputs:
            pad = torch.zeros((1, len(ids)), dtype=torch.long)
            extra["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], pad], dim=1)
        with torch.inference_mode():
            order = chat._model(**{**inputs, **extra}).logits[0, -1].argsort(descending=True).tolist()
        for token in order:
            longer = tokenizer.decode([*ids, token])
            first_space = not ids and tokenizer.convert_ids_to_tokens(token) == "▁"
            if token not in special and (
                first_space or (len(longer) > len(text) and any(w.startswith(longer) for w in wanted))
            ):
                break
        ids.append(token)
        text = longer
    assert got == text


def test_constraint_errors(llava):
    request = mixed_requests()[0]
    for names in [(), ("a", "a"), ("a", "")]:
        with pytest.raises(OptionError, match="distinct"):
            llava.generate([request], max_tokens=5, constraints=[ListConstraint(names=names)])
    with pytest.raises(OptionError, match="one constraint a request"):
        llava.generate([request, request], max_tokens=5, constraints=[ListConstraint(names=("a",))])
    with pytest.raises(OptionError, match="max_tokens"):
        llava.generate([request], max_tokens=0)


# ---- log-probabilities ----


def test_option_log_probs_equal_a_full_forward(chat):
    requests = mixed_requests()
    options = [["A", "B", "C"], ["yes", "no"], ["D"], ["Yes", "No", "E"]]
    for request, texts, values in zip(requests, options, chat.option_log_probs(requests, options), strict=True):
        assert values.dtype == np.float64
        encoded = [chat._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        bare = len(texts) > 1 and len({tokens[0] for tokens in encoded}) == 1  # a lone "▁" before every letter
        expected = [sum(naive_log_probs(chat, request, text)[: 2 if bare else 1]) for text in texts]
        np.testing.assert_allclose(values, expected, atol=2e-4)


def test_options_that_begin_alike(chat):
    with pytest.raises(OptionError, match=r"'gold.*begin alike"):
        chat.option_log_probs([mixed_requests()[0]], [["gold finch", "gold finch", "barn owl"]])
    with pytest.raises(OptionError, match="begin alike"):
        chat.option_log_probs([mixed_requests()[0]], [["猫", "猫頭"]])
    with pytest.raises(OptionError, match="no options"):
        chat.option_log_probs([mixed_requests()[0]], [[]])
    with pytest.raises(OptionError, match="one list"):
        chat.option_log_probs(mixed_requests(), [["A"]])


CONTINUATIONS = [
    ["gold finch", "barn owl", "猫", "red kite of the hills", "gold finch's"],
    ["['gold finch'", "['barn owl'", "['x'"],
    ["a"],
    ["yes", "no", "no", "not at all, never"],
]


def test_continuation_log_probs_equal_full_forwards(chat):
    requests = mixed_requests()
    chat.generate([ChatRequest.of("another", picture(9, 100, 40))], max_tokens=2)  # leaves its positions behind
    scored = chat.continuation_log_probs(requests, CONTINUATIONS)
    for request, texts, (values, counts) in zip(requests, CONTINUATIONS, scored, strict=True):
        expected = [naive_log_probs(chat, request, text) for text in texts]
        assert counts == tuple(map(len, expected))
        np.testing.assert_allclose(values, [sum(tokens) for tokens in expected], atol=1e-3)
        assert values.dtype == np.float64
    assert chat.prefix_reuse


def test_continuations_after_another_image(chat):
    """A prompt's positions must not come from the image that was seen last."""
    first, second = ChatRequest.of("Q", picture(0, 24, 24)), ChatRequest.of("Q", picture(1, 120, 24))
    texts = ["gold finch", "barn owl at night"]
    before = chat.continuation_log_probs([first], [texts])[0][0]
    chat.continuation_log_probs([second], [texts])
    chat.option_log_probs([second], [["A", "B"]])
    after = chat.continuation_log_probs([first], [texts])[0][0]
    np.testing.assert_allclose(after, before, atol=1e-6)
    both = chat.continuation_log_probs([second, first], [texts, texts])[1][0]
    np.testing.assert_allclose(both, before, atol=1e-3)


def test_many_continuations_in_small_memory(chat, monkeypatch):
    monkeypatch.setattr("rarvision.chat.scoring._MEMORY_BUDGET", 1)
    requests = mixed_requests()
    texts = [[f"{a} {b}" for a in ("gold", "red", "tree") for b in ("kite", "owl", "x")]] * len(requests)
    small = chat.continuation_log_probs(requests, texts)
    monkeypatch.undo()
    for (values, counts), (others, same) in zip(small, chat.continuation_log_probs(requests, texts), strict=True):
        np.testing.assert_allclose(values, others, atol=1e-3)
        assert counts == same


def test_more_requests_than_a_batch(folders):
    chat = LocalChat(folders["llava"], batch_size=2)
    requests = [ChatRequest.of("What? " * (1 + row), picture(row, 20, 20)) for row in range(5)]
    together = chat.option_log_probs(requests, [["A", "B"]] * 5)
    for request, values in zip(requests, together, strict=True):
        np.testing.assert_allclose(chat.option_log_probs([request], [["A", "B"]])[0], values, atol=1e-3)


def test_prefix_reuse_that_fails_is_noticed_and_said(folders, monkeypatch, caplog):
    from transformers import DynamicCache

    requests = mixed_requests()[:2]
    texts = [["gold finch", "barn owl"]] * 2
    for fault in ("raises", "wrong"):
        chat = LocalChat(folders["llava"])
        expected = [
            [sum(naive_log_probs(chat, r, text)) for text in row] for r, row in zip(requests, texts, strict=True)
        ]

        def broken(self, indices, fault=fault):
            if fault == "raises":
                raise NotImplementedError("no such thing for this cache")
            for layer in self.layers:
                layer.keys, layer.values = layer.keys[indices].flip(2), layer.values[indices]

        monkeypatch.setattr(DynamicCache, "batch_select_indices", broken)
        with caplog.at_level(logging.WARNING, logger="rarvision"):
            scored = chat.continuation_log_probs(requests, texts)
        monkeypatch.undo()
        assert "computed anew" in caplog.text
        caplog.clear()
        assert chat.prefix_reuse is False
        np.testing.assert_allclose([values for values, _ in scored], expected, atol=1e-3)


def test_empty_continuation(llava):
    with pytest.raises(OptionError, match="at least one token"):
        llava.continuation_log_probs([mixed_requests()[0]], [["a", ""]])


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_an_image_that_the_processor_refuses(chats, family):
    with pytest.raises(ImageError, match="500x2"):
        chats[family].generate([ChatRequest.of("?", picture(0, 500, 2))], max_tokens=1)


def test_tiny_images(chat):
    for width, height in [(1, 1), (3, 1), (1, 3), (3, 3)]:
        assert chat.generate([ChatRequest.of("?", picture(0, width, height))], max_tokens=1)


def test_messages_that_the_template_refuses(llava, monkeypatch):
    template = "{{ raise_exception('no system turn') }}"
    monkeypatch.setattr(llava._processor, "chat_template", template)
    with pytest.raises(ChatUnsupportedError, match="no system turn"):
        llava.generate([mixed_requests()[0]], max_tokens=1)


def test_out_of_memory(llava, monkeypatch):
    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(llava._model, "generate", full)
    with pytest.raises(ChatUnavailableError, match="batch_size"):
        llava.generate([mixed_requests()[0]], max_tokens=1)


# ---- the context ----


def test_count_tokens(chat):
    for request in mixed_requests():
        assert chat.count_tokens(request) == naive_inputs(chat, request)["input_ids"].shape[1]


def test_context_limit(chat):
    assert chat.context_limit == 1024
    request = ChatRequest.of("too long " * 600, picture(0, 20, 20))
    fits = mixed_requests()[0]
    for ask in (
        lambda: chat.generate([fits, request], max_tokens=5),
        lambda: chat.option_log_probs([fits, request], [["A"], ["A"]]),
        lambda: chat.continuation_log_probs([fits, request], [["a"], ["a"]]),
    ):
        with pytest.raises(ContextLengthError, match=r"request 1 needs \d+ tokens.*1024.*fewer candidates"):
            ask()
    with pytest.raises(ContextLengthError):
        chat.generate([fits], max_tokens=1020)
    names = tuple(f"name number {n}" for n in range(200))
    with pytest.raises(ContextLengthError):
        chat.generate([fits], max_tokens=5, constraints=[ListConstraint(names=names)])


def test_close(folders):
    chat = LocalChat(folders["llava"])
    chat.close()
    with pytest.raises(AttributeError):
        chat.generate([mixed_requests()[0]], max_tokens=1)
