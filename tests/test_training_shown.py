"""The training's rows about what is shown: the rankers' own presentation, and the targets that belong to it."""

import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaProcessor

from mllm_world import small_trainer
from rarvision.chat.base import ChatRequest, Message
from rarvision.chat.preparing import RequestEncoder
from rarvision.datasets.fieldguide import DOMAINS, HELD_OUT_DOMAIN
from rarvision.embedded.training.clip import image_processor
from rarvision.embedded.training.config import Schedule
from rarvision.embedded.training.conversations import Candidates, TurnWriter, pack
from rarvision.embedded.training.images import DomainImages
from rarvision.embedded.training.mix import Mix
from rarvision.embedded.training.shown import ShownMix
from rarvision.embedded.training.tokenizers import CHAT_TEMPLATE, mllm_tokenizer
from rarvision.ranking import Shown
from rarvision.ranking.prompts import DESCRIBED
from rarvision.ranking.showing import Subject, context_request

FORMS = {"unknown", "known", "described", "both", "alone", "worked ranking", "worked choice", "worked yes"}


@pytest.fixture(scope="module")
def tokenizer():
    return mllm_tokenizer()


@pytest.fixture(scope="module")
def writer(tokenizer):
    return TurnWriter(tokenizer)


@pytest.fixture(scope="module")
def trainer(tokenizer):
    return small_trainer(tokenizer)


@pytest.fixture(scope="module")
def shown_mix(writer):
    data = [
        DomainImages(domain=d, pixels=np.zeros((400, 1, 1, 3), np.uint8), codes=np.array(Candidates(d).pool[:100] * 4))
        for d in DOMAINS
    ]
    mix = Mix(writer, data, {d: np.full((400, 20, 5), -1) for d in DOMAINS}, Schedule())
    parts = [part for part, images in enumerate(data) if images.domain != HELD_OUT_DOMAIN]
    return ShownMix(writer, data, parts, codes=mix.codes, prompt=mix.prompt, image_tokens=1)


def llava_processor(tokenizer):
    return LlavaProcessor(
        image_processor=image_processor(48),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def test_what_is_shown_is_what_rankers_show_token_for_token(tokenizer, shown_mix):
    """Read back from the tokens what was shown, ask the same through the ranker's own presentation, and compare."""
    encoder, image = RequestEncoder(llava_processor(tokenizer), name="mllm"), Image.new("RGB", (48, 48))
    rows = shown_mix.rows(150, random.Random(1))
    assert {row.form for row in rows} == FORMS
    for row in rows:
        if row.form.startswith("worked"):
            continue
        text = tokenizer.decode(row.prefix.ids)
        shown = {}
        for images, name in re.findall(r"((?:<image>\n)+)Images? [\d to]+ shows?: (.+)\.\n", text):
            shown[name] = Shown(exemplars=(image,) * images.count("<image>"))
        for name, description in re.findall(r"^(.+): (.+)$", text.partition(DESCRIBED)[2], re.MULTILINE):
            exemplars = shown[name].exemplars if name in shown else ()
            shown[name] = Shown(exemplars=exemplars, description=description)
        for turn in row.turns:
            question = tokenizer.decode(turn.ids).partition(" ASSISTANT:")[0]
            request = context_request(question, Subject(image, shown), list(shown), exemplars=5, layout="images")
            (expected,) = encoder.text_tokens([request])
            assert [*row.prefix.ids, *turn.ids][: len(expected)] == expected


def test_a_worked_example_is_what_rankers_ask_token_for_token(tokenizer, shown_mix):
    encoder, image = RequestEncoder(llava_processor(tokenizer), name="mllm"), Image.new("RGB", (48, 48))
    rows = [row for row in shown_mix.rows(100, random.Random(4)) if row.form.startswith("worked")]
    assert {row.form for row in rows} == {"worked ranking", "worked choice", "worked yes"}
    for row in rows:
        for turn in row.turns:
            talk = tokenizer.decode([*row.prefix.ids, *turn.ids]).removeprefix("USER: <image>\n")
            (first, answer), (second, _) = (
                part.removesuffix("</s>").split(" ASSISTANT:") for part in talk.split("</s>USER: <image>\n")
            )
            messages = (
                Message(role="user", parts=(image, first)),
                Message(role="assistant", parts=(answer,)),
                Message(role="user", parts=(image, second)),
            )
            (expected,) = encoder.text_tokens([ChatRequest(messages=messages)])
            assert [*row.prefix.ids, *turn.ids][: len(expected)] == expected


def test_a_worked_example_is_an_earlier_turn(tokenizer, writer, shown_mix):
    rows = [row for row in shown_mix.rows(80, random.Random(2)) if row.form.startswith("worked")]
    for row in rows:
        talk = tokenizer.decode([*row.prefix.ids, *row.turns[0].ids])
        first, second = talk.removeprefix("USER: ").split("</s>USER: ")
        assert first.startswith("<image>\n")
        assert second.startswith("<image>\n")
        assert len(row.images) == 2
        kinds = [re.split("[:?]", part.removeprefix("<image>\n"))[0][:40] for part in (first, second)]
        assert kinds[0] == kinds[1]


def test_a_row_shows_what_its_targets_say(tokenizer, shown_mix):
    for row in shown_mix.rows(120, random.Random(3)):
        codes = [tuple(code) for code in shown_mix._data[row.part].codes[row.images].tolist()]
        assert shown_mix._data[row.part].domain != HELD_OUT_DOMAIN
        if row.form.startswith("worked"):
            continue
        assert len(set(row.images)) == len(row.images), "the image itself is never an exemplar"
        assert list(row.prefix.look_targets.values()) == [
            tuple(int(a == b) for a, b in zip(code, codes[0], strict=True)) for code in codes[1:]
        ]
        if row.form in ("unknown", "both"):
            answer = tokenizer.decode(row.turns[0].ids)
            letter = answer.removesuffix("</s>")[-1]
            name = re.search(rf"{letter}\. (\w+)", answer)[1]
            images = re.findall(r"shows?: (.+)\.\n", tokenizer.decode(row.prefix.ids))
            counts = [m.count("<image>") for m in re.split(r"Images? .*\n", tokenizer.decode(row.prefix.ids))][
                : len(images)
            ]
            counts[0] -= 1
            start = 1 + sum(counts[: images.index(name)])
            assert codes[start] == codes[0]


def test_a_packed_row_sees_its_images_in_order(trainer, writer, shown_mix):
    rows = shown_mix.rows(6, random.Random(4))
    packed = pack(writer, [row.turns for row in rows], image_tokens=1, prefixes=[row.prefix for row in rows])
    features = torch.randn(sum(len(row.images) for row in rows), 1, 128)
    with torch.no_grad():
        together = trainer.states(packed, features, "cpu")[-1]
        begin = 0
        for number, row in enumerate(rows):
            prefix = pack(writer, [[]], image_tokens=1, prefixes=[row.prefix])
            alone = trainer.states(prefix, features[begin : begin + len(row.images)], "cpu")[-1][0]
            torch.testing.assert_close(together[number, : len(alone)], alone, atol=2e-5, rtol=1e-4)
            begin += len(row.images)
    assert (packed.look_targets >= 0).any()
    where = np.argwhere(packed.look_targets[..., 0] >= 0)
    assert all(packed.ids[row, at] == writer.newline[0] for row, at in where)
    assert all(packed.ids[row, at - 1] == writer.image for row, at in where)
