"""Every strategy over the chats that are shipped: the fake one and a small random local model."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rarvision.chat import LocalChat
from rarvision.errors import ChatUnavailableError
from rarvision.ranking import NAMING_PROMPT, Ranker, ranking_prompt
from rarvision.testing.chat import FakeChat
from rarvision.testing.ranking import check_ranker
from tiny_models import tiny_llava

NAMES = ["tulip", "rose", "daisy", "Black-eyed Susan's"]
KINDS = {
    "generate": {"strategy": "generate"},
    "constrained": {"strategy": "generate", "constrained": True},
    "choice": {"strategy": "choice"},
    "likelihood": {"strategy": "likelihood"},
    "without list": {"strategy": "likelihood", "with_list": False},
    "pointwise": {"strategy": "pointwise"},
}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return LocalChat(tiny_llava(tmp_path_factory.mktemp("llava")), device="cpu", dtype="float32")


def image(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", list(KINDS))
def test_contract_over_the_fake(kind):
    chat = FakeChat({"daisy": -1.0, "tulip": -2.0, "rose": -3.0})
    ranker = Ranker(chat, **KINDS[kind])
    check_ranker(ranker)
    assert ranker.rank(image(0), ["tulip", "rose", "daisy"]).order == (2, 0, 1)


@pytest.mark.parametrize("kind", list(KINDS))
def test_contract_over_a_local_model(local, kind):
    check_ranker(Ranker(local, **KINDS[kind]), [image(seed) for seed in range(3)])


def test_constrained_answers_are_complete(local):
    rankings = Ranker(local, strategy="generate", constrained=True).rank_batch([image(0), image(1)], [NAMES, NAMES[:2]])
    assert [ranking.status for ranking in rankings] == ["ranked", "ranked"]


@pytest.mark.parametrize("with_list", [True, False])
def test_likelihood_is_the_likelihood_of_the_name_as_the_answer(local, with_list):
    from rarvision.chat import ChatRequest

    picture = image(3)
    ranking = Ranker(local, strategy="likelihood", with_list=with_list).rank(picture, NAMES)
    prompt = ranking_prompt(NAMES) if with_list else NAMING_PROMPT
    answers = [f"['{name}'" if with_list else name for name in NAMES]
    alone = [local.continuation_log_probs([ChatRequest.of(prompt, picture)], [[answer]])[0][0][0] for answer in answers]
    assert ranking.log_scores == pytest.approx(alone, abs=1e-3)


def test_an_error_of_the_chat_is_the_callers():
    with pytest.raises(ChatUnavailableError):
        Ranker(FakeChat(error=ChatUnavailableError("down"))).rank(image(0), NAMES)
