"""What is learned: the answer's tokens and nothing else, as likely as the ranking strategies find them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from rarvision.chat import ChatRequest, LocalChat
from rarvision.chat.loading import load_model, load_processor
from rarvision.chat.preparing import RequestEncoder, end_tokens
from rarvision.chat.scoring import rope_module, with_positions
from rarvision.errors import ContextLengthError, DatasetError, ImageError
from rarvision.ranking import choice_prompt, option_letters, ranking_prompt
from rarvision.tuning import read_manifest, recipe
from rarvision.tuning.collate import IGNORED, Collator
from rarvision.tuning.lessons import Lesson, lessons_of
from rarvision.tuning.losses import answer_loss, choice_loss
from tiny_models import FAMILIES
from training_world import NAMES, manifest


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return read_manifest(manifest(tmp_path_factory.mktemp("data"), 5))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def world(request, tmp_path_factory):
    """A family's folder, its chat, its bare model and a collator."""
    folder = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    options = {"revision": None, "trust_remote_code": False}
    model = load_model(str(folder), device="cpu", dtype=torch.float32, device_map=None, quantization=None, **options)
    encoder = RequestEncoder(load_processor(str(folder), model.config, **options), name="tiny")
    end = encoder.answer_end(end_tokens(model, encoder.tokenizer))
    collator = Collator(encoder, end=end, context_limit=1024)
    return folder, LocalChat(folder, device="cpu"), model, collator, encoder


def logits_of(model, batch):
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "keep", "options", "order")}
    with torch.inference_mode():
        return model(**with_positions(inputs, rope_module(model)), use_cache=False, logits_to_keep=batch["keep"]).logits


def test_labels_stand_on_the_answer_and_nowhere_else(world, examples):
    *_, collator, encoder = world
    batch = collator(lessons_of(examples, recipe("lora", objective="generate")))
    ids, labels = batch["input_ids"], batch["labels"]
    assert labels.shape == ids.shape
    learned = labels != IGNORED
    assert torch.equal(labels[learned], ids[learned])
    for row, example in enumerate(examples):
        tokens = labels[row][learned[row]].tolist()
        text = encoder.tokenizer.decode(tokens, skip_special_tokens=True)
        assert text == "['" + "', '".join(example.target) + "']"
        assert tokens[-1] == encoder.tokenizer.eos_token_id  # the end is learned as well
        first = int(learned[row].nonzero()[0])
        assert learned[row, first:].all()  # to the end of the row, whose padding is on the left
        before = encoder.tokenizer.decode(ids[row, :first])
        assert all(name in before for name in example.candidates)  # the question, and the end of its turn
        assert before.rstrip().lower().endswith(("assistant:", "assistant"))
    assert not learned[batch["attention_mask"] == 0].any()


def test_image_tokens_are_not_learned(world, examples):
    _, _, model, collator, _ = world
    for objective in ("generate", "likelihood", "choice"):
        batch = collator(lessons_of(examples, recipe("lora", objective=objective)))
        images = batch["input_ids"] == model.config.image_token_id
        assert images.any(1).all()
        assert (batch["labels"][images] == IGNORED).all()


def test_the_loss_is_what_the_likelihood_strategy_scores(world, examples):
    _, chat, model, collator, encoder = world
    lessons = lessons_of(examples, recipe("lora", objective="likelihood"))
    batch = collator(lessons)
    requests = [
        ChatRequest.of(ranking_prompt(e.candidates), lesson.image())
        for e, lesson in zip(examples, lessons, strict=True)
    ]
    answers = chat.continuation_log_probs(requests, [[f"['{e.label}'"] for e in examples])
    expected = -sum(float(values[0]) for values, _ in answers)
    assert float(answer_loss(logits_of(model, batch), batch["labels"])) == pytest.approx(expected, rel=1e-4)
    assert int((batch["labels"] != IGNORED).sum()) == sum(counts[0] for _, counts in answers)
    assert encoder.tokenizer.eos_token_id not in batch["labels"]


def test_the_whole_list_is_as_likely_as_the_model_finds_it(world, examples):
    _, chat, model, collator, _ = world
    lessons = [Lesson(id=e.id, image=le.image, prompt=le.prompt, answer=le.answer, ends=False)
               for e, le in zip(examples, lessons_of(examples, recipe("lora")), strict=True)]  # fmt: skip
    batch = collator(lessons)
    requests = [ChatRequest.of(lesson.prompt, lesson.image()) for lesson in lessons]
    answers = chat.continuation_log_probs(requests, [[lesson.answer] for lesson in lessons])
    expected = -sum(float(values[0]) for values, _ in answers)
    assert float(answer_loss(logits_of(model, batch), batch["labels"])) == pytest.approx(expected, rel=1e-4)


def test_the_choice_loss_is_over_the_letters_of_the_choice_strategy(world, examples):
    _, chat, model, collator, _ = world
    lessons = lessons_of(examples, recipe("lora", objective="choice"))
    batch = collator(lessons)
    assert ((batch["labels"] != IGNORED).sum(1) == 1).all()
    requests = [
        ChatRequest.of(choice_prompt(e.candidates), le.image()) for e, le in zip(examples, lessons, strict=True)
    ]
    scores = chat.option_log_probs(requests, [option_letters(len(e.candidates)) for e in examples])
    first = whole = 0.0
    for example, values in zip(examples, scores, strict=True):
        order = [example.candidates.index(name) for name in example.target]
        terms = plackett_luce(values[order])
        first += terms[0]
        whole += np.mean(terms[:-1])
    logits = logits_of(model, batch)
    for listwise, expected in ((False, first), (True, whole)):
        loss = choice_loss(logits, batch["options"], batch["order"], listwise=listwise)
        assert float(loss) == pytest.approx(expected, rel=1e-4)


def plackett_luce(scores):
    """Negative log-probability of each draw, the best first; written out."""
    return [-np.log(np.exp(scores[i]) / np.exp(scores[i:]).sum()) for i in range(len(scores))]


def test_questions_with_different_numbers_of_options():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 2, 9))
    options = [[4, 2, 7, 1], [0, 3, -1, -1], [5, -1, -1, -1]]
    order = [[2, 0, 3, 1], [1, 0, -1, -1], [0, -1, -1, -1]]
    terms = [
        plackett_luce(np.array([logits[row, 0, tokens[place]] for place in places if place >= 0]))
        for row, (tokens, places) in enumerate(zip(options, order, strict=True))
    ]
    tensors = torch.tensor(logits), torch.tensor(options), torch.tensor(order)
    first = float(choice_loss(*tensors, listwise=False))
    whole = float(choice_loss(*tensors, listwise=True))
    assert first == pytest.approx(sum(term[0] for term in terms), rel=1e-5)
    assert whole == pytest.approx(np.mean(terms[0][:3]) + terms[1][0], rel=1e-5)


def test_the_choice_loss_has_gradients_for_the_options_only():
    logits = torch.zeros(1, 2, 6, requires_grad=True)
    choice_loss(logits, torch.tensor([[3, 1, -1]]), torch.tensor([[1, 0, -1]]), listwise=True).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0].nonzero().flatten().tolist() == [1, 3]
    assert not logits.grad[0, 1].any()


def test_names_that_are_shown_twice_have_one_letter(examples):
    example = examples[0]
    twice = type(example)(
        id="twice",
        image=example.image,
        label="barn owl",
        candidates=("red kite", "barn owl", "red kite", "barn owl"),
        target=("barn owl", "barn owl", "red kite", "red kite"),
        retrieved=("red kite", "barn owl", "red kite", "barn owl"),
    )
    (lesson,) = lessons_of([twice], recipe("lora", objective="choice"))
    assert (lesson.options, lesson.order) == (("A", "B"), (1, 0))
    (lesson,) = lessons_of([twice], recipe("lora"))
    assert lesson.answer == "['barn owl', 'barn owl', 'red kite', 'red kite']"


def test_more_names_than_letters(examples):
    names = tuple(f"name {i}" for i in range(27))
    many = type(examples[0])(
        id="many", image=examples[0].image, label="name 0", candidates=names, target=names, retrieved=names
    )
    with pytest.raises(DatasetError, match="'many' shows 27 names, but letters serve 26"):
        lessons_of([many], recipe("lora", objective="choice"))
    with pytest.raises(DatasetError, match="no examples"):
        lessons_of([], recipe("lora"))


def test_what_does_not_fit_the_context_or_cannot_be_opened_is_named(world, examples, tmp_path):
    *_, encoder = world
    lessons = lessons_of(examples[:1], recipe("lora"))
    with pytest.raises(ContextLengthError, match=r"train-0: question and answer take \d+ tokens.*holds 9"):
        Collator(encoder, end=[1], context_limit=9)(lessons)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n")
    example = type(examples[0])(id="b", image=broken, label=NAMES[0], candidates=NAMES, target=NAMES, retrieved=NAMES)
    with pytest.raises(ImageError, match=r"b: .*broken.png.*same command again"):
        Collator(encoder, end=[1], context_limit=None)(lessons_of([example], recipe("lora")))


def test_the_end_of_an_answer_is_what_the_template_writes():
    class Tokenizer:
        eos_token_id = 7
        all_special_tokens = ("<eos>",)

        def encode(self, text, add_special_tokens):
            return {"<turn>\n": [5, 9], " ": [3]}[text]

    class Processor:
        tokenizer = Tokenizer()

        def __init__(self, tail):
            self.tail = tail

        def apply_chat_template(self, turns, tokenize):
            return ["".join(part["text"] for turn in turns[0] for part in turn["content"]) + self.tail]

    turned = RequestEncoder(Processor("<turn>\n"), name="x")
    assert turned.answer_end([5, 7]) == [5]
    assert turned.answer_end([9]) == [5, 9]
    assert RequestEncoder(Processor(" "), name="x").answer_end([5, 7]) == [7]


def test_a_lesson_opens_its_image(examples):
    assert isinstance(lessons_of(examples, recipe("lora"))[0].image(), Image.Image)
