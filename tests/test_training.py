"""The training of the embedded models: its questions are the prompts, and packing changes nothing."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from mllm_world import small_trainer
from rarvision.chat import ChatRequest
from rarvision.datasets.fieldguide import DOMAINS, HELD_OUT_DOMAIN, split_of
from rarvision.embedded.training.config import Schedule
from rarvision.embedded.training.conversations import IGNORE, REPEAT_PROMPT, Candidates, TurnWriter, pack
from rarvision.embedded.training.images import DomainImages
from rarvision.embedded.training.mix import COPIED_TOKENS, HELD_OUT_TOKENS, Mix
from rarvision.embedded.training.tokenizers import mllm_tokenizer
from rarvision.ranking.prompts import (
    NAMING_PROMPT,
    RANKING_PROMPTS,
    choice_prompt,
    format_list,
    option_letters,
    ranking_prompt,
    yes_no_prompt,
)


@pytest.fixture(scope="module")
def tokenizer():
    return mllm_tokenizer()


@pytest.fixture(scope="module")
def writer(tokenizer):
    return TurnWriter(tokenizer)


def _options(writer, domain, codes, truth):
    return [writer.option(domain, code, truth) for code in codes]


def _list(domain, k, seed=0):
    lists, rng = Candidates(domain), random.Random(seed)
    truth = rng.choice(lists.pool)
    codes = lists.cluster(truth, k, rng)
    names = DOMAINS[domain].codes_to_names(np.array(codes))
    return codes, names, truth, names[codes.index(truth)]


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("k", [2, 5, 20])
def test_questions_are_the_prompts_token_for_token(tokenizer, writer, domain, k):
    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    codes, names, truth, true_name = _list(domain, k)
    answer = format_list([true_name, *(name for name in names if name != true_name)])
    for kind, template in RANKING_PROMPTS.items():
        expected = f"{ranking_prompt(names, template)} ASSISTANT:{answer}</s>"
        assert writer.ranking(_options(writer, domain, codes, truth), kind).ids == encode(expected)
    repeated = REPEAT_PROMPT.format(categories=format_list(names))
    assert writer.repeat([writer.name(domain, code) for code in codes]).ids == encode(
        f"{repeated} ASSISTANT:{format_list(names)}</s>"
    )
    letter = option_letters(k)[names.index(true_name)]
    assert writer.choice(_options(writer, domain, codes, truth)).ids == encode(
        f"{choice_prompt(names)} ASSISTANT:{letter}</s>"
    )
    assert writer.naming(domain, truth).ids == encode(f"{NAMING_PROMPT} ASSISTANT:{true_name}</s>")
    for code, name in zip(codes, names, strict=True):
        verdict = "yes" if code == truth else "no"
        assert writer.yes_no(writer.option(domain, code, truth)).ids == encode(
            f"{yes_no_prompt(name)} ASSISTANT:{verdict}</s>"
        )


@pytest.mark.parametrize("text", ["Black-eyed Susan's", "東京 é", "['a', \"b\"]", "gold finch\n\ttab"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_candidates_are_training_categories_with_the_truth_anywhere():
    places = []
    for seed in range(200):
        codes, _, truth, _ = _list("fish", 5, seed)
        assert len(set(codes)) == 5
        assert (split_of("fish", np.array(codes)) == 0).all()
        places.append(codes.index(truth))
    assert min(np.bincount(places, minlength=5)) > 15


def _majority_is_truth(codes, truth):
    votes = [max(set(column), key=column.count) for column in zip(*codes, strict=True)]
    agreement = [sum(a == b for a, b in zip(code, votes, strict=True)) for code in codes]
    return codes[int(np.argmax(agreement))] == truth


def test_the_majority_of_attributes_does_not_give_the_truth_away():
    lists, rng = Candidates("birds"), random.Random(3)
    hits = []
    for _ in range(600):
        truth = rng.choice(lists.pool)
        hits.append(_majority_is_truth(lists.cluster(truth, 5, rng), truth))
    assert np.mean(hits) < 0.45  # a list around the truth itself would give nearly 1, chance is 0.2


@pytest.fixture(scope="module")
def trainer(tokenizer):
    return small_trainer(tokenizer)


def test_packed_questions_see_their_image_and_themselves_only(trainer, writer):
    codes, _, truth, _ = _list("flowers", 4)
    turns = [
        writer.naming("flowers", truth),
        writer.ranking(_options(writer, "flowers", codes, truth), "paper"),
        writer.choice(_options(writer, "flowers", codes, truth)),
        writer.yes_no(writer.option("flowers", codes[0], truth)),
    ]
    features = torch.randn(1, trainer.tokens, 128)
    together = pack(writer, [turns], image_tokens=trainer.tokens, length=200)
    prefix = len(writer.user) + trainer.tokens + len(writer.newline)
    with torch.no_grad():
        states = trainer.states(together, features, "cpu")[-1][0]
        at = prefix
        for turn in turns:
            alone = pack(writer, [[turn]], image_tokens=trainer.tokens, length=len(turn.ids))
            expected = trainer.states(alone, features, "cpu")[-1][0, prefix:]
            torch.testing.assert_close(states[at : at + len(turn.ids)], expected, atol=2e-5, rtol=1e-4)
            at += len(turn.ids)


def test_labels_are_the_answers_shifted_by_one(writer):
    codes, _, truth, _ = _list("birds", 3)
    turn = writer.choice(_options(writer, "birds", codes, truth))
    packed = pack(writer, [[turn]], image_tokens=4, length=80)
    learned = packed.labels[0][packed.labels[0] != IGNORE]
    assert learned.tolist() == [*writer._letters[codes.index(truth)], writer.eos]
    where = int(np.flatnonzero(packed.labels[0] != IGNORE)[0])
    assert packed.ids[0, where + 1] == learned[0]


def test_a_list_that_is_only_framed_teaches_no_choice_of_its_first_name(tokenizer, writer):
    codes, names, truth, true_name = _list("aircraft", 5)
    at = codes.index(truth)
    turn = writer.framed([writer.name("aircraft", code) for code in codes], at, "paper")
    assert turn.ids == writer.ranking(_options(writer, "aircraft", codes, truth), "paper").ids
    words, listed = true_name.split(), [name.split() for name in names]
    forced = [
        word
        for i, word in enumerate(words)
        if i and {name[i] for name in listed if name[:i] == words[:i]} == {word}  # nothing is left to choose
    ]
    assert 0 < len(forced) < len(words)
    learned = tokenizer.decode([i for i, weight in zip(turn.ids, turn.weights, strict=True) if weight > 0])
    rest = "', '" + "', '".join(name for name in names if name != true_name) + "']</s>"
    assert learned.strip() == " ".join(forced) + rest
    assert set(turn.word_targets) == set(turn.candidate_targets) == {-1}
    assert [p for p in turn.pointer_targets if p == at] == [at] * (5 + len(forced))


@pytest.mark.parametrize("k", [2, 5, 20])
def test_names_of_nothing_mix_the_words_of_all_domains(tokenizer, writer, k):
    drawn = [writer.nonce(k, random.Random(seed)) for seed in range(40)]
    known = {tuple(writer.name(d, code)) for d in DOMAINS for code in Candidates(d).pool}
    assert all(len({tuple(name) for name in names}) == k for names in drawn)
    assert not any(tuple(name) in known for names in drawn for name in names)
    words = {word for names in drawn for name in names for word in tokenizer.decode(name).split()}
    for domain in DOMAINS.values():
        assert words & set(domain.attributes[-1].words)


def test_what_is_copied_is_taught_where_it_stands_in_the_question(writer):
    codes, _, truth, _ = _list("fish", 7)
    turns = [
        writer.naming("fish", truth),
        writer.ranking(_options(writer, "fish", codes, truth), "paper"),
        writer.repeat([writer.name("fish", code) for code in codes]),
    ]
    packed = pack(writer, [turns], image_tokens=4, length=400)
    where = np.flatnonzero(packed.copy_targets[0] >= 0)
    source = packed.copy_targets[0, where]
    assert len(where) == 2 * 7 * 5  # every word of every name of both lists
    assert (packed.ids[0, source] == packed.labels[0, where]).all()
    assert packed.allowed[0, where, source].all()
    assert (packed.weights[0, source] == 0).all()
    assert (packed.pointer_targets[0, source] == packed.pointer_targets[0, where + 1]).all()


def test_the_taught_head_is_the_attention_of_the_model(trainer, writer):
    """The supervised logits are those that the last layer's first head attends with."""
    codes, _, truth, _ = _list("fish", 3)
    packed = pack(
        writer,
        [[writer.ranking(_options(writer, "fish", codes, truth), "paper")]],
        image_tokens=trainer.tokens,
        length=90,
    )
    features, layer = torch.randn(1, trainer.tokens, 128), trainer.schedule.copy_layer
    trainer.language_model.set_attn_implementation("eager")
    mask = torch.from_numpy(np.where(packed.allowed, 0.0, -1e9).astype(np.float32))[:, None]  # eager adds its mask
    additive = trainer.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
    )
    seen = []
    hook = trainer.language_model.layers[layer].self_attn.register_forward_hook(
        lambda *parts: seen.append(parts[-1][1])
    )
    with torch.no_grad():
        states = trainer.states(packed, features, "cpu")
        found = trainer.copying(states, packed, "cpu").softmax(-1)
    hook.remove()
    additive.remove()
    trainer.language_model.set_attn_implementation("sdpa")
    torch.testing.assert_close(found, seen[0][:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("nonce", [False, True])
def test_the_held_out_domain_is_never_ranked(writer, nonce):
    data = [
        DomainImages(domain=d, pixels=np.zeros((50, 1, 1, 3), np.uint8), codes=np.array(Candidates(d).pool[:50]))
        for d in DOMAINS
    ]
    mix = Mix(writer, data, {d: np.full((50, 20, 5), -1) for d in DOMAINS}, Schedule())
    mix.nonce = nonce
    for step in range(5):
        rows, turns = mix.rows(step, 8, held_out=True)
        assert {data[part].domain for part, _ in rows} == {HELD_OUT_DOMAIN}
        assert all((np.array(turn.candidate_targets) >= 0).sum() <= 1 for t in turns for turn in t)
        for turn in (turn for t in turns for turn in t if max(turn.sources) >= 0):  # only repeated, in the order given
            assert not nonce
            copied = [source for source in turn.sources if source >= 0]
            assert len(copied) >= 10
            assert copied == sorted(copied)
        room = max(sum(len(turn.ids) for turn in t) for t in turns)
        assert room <= HELD_OUT_TOKENS + (0 if nonce else COPIED_TOKENS)
        rows, turns = mix.rows(step, 8, held_out=False)
        assert HELD_OUT_DOMAIN not in {data[part].domain for part, _ in rows}
        assert all(sum(len(turn.ids) for turn in t) <= Schedule().mllm_tokens for t in turns)
        again = mix.rows(step, 8, held_out=False)
        assert rows == again[0]
        assert [[turn.ids for turn in t] for t in turns] == [[turn.ids for turn in t] for t in again[1]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_stages_run_resume_and_load(tmp_path):
    from rarvision.chat import LocalChat
    from rarvision.datasets import FieldGuide
    from rarvision.encoders import TransformersEncoder

    command = [sys.executable, "-m", "rarvision.embedded.training", "--out", str(tmp_path), "--scale", "0.004"]
    subprocess.run([*command, "--until", "clip-16"], check=True, timeout=400)
    stamp = (tmp_path / "clip-16" / "model.safetensors").stat().st_mtime_ns
    subprocess.run(command, check=True, timeout=800)
    assert (tmp_path / "clip-16" / "model.safetensors").stat().st_mtime_ns == stamp  # done before, not done again
    image = next(iter(FieldGuide("birds", categories=10).queries(1))).image
    for name in ("clip-16", "clip-32"):
        assert TransformersEncoder(tmp_path / name).encode_images([image]).shape == (1, 128)
    (answer,) = LocalChat(tmp_path / "mllm").generate([ChatRequest.of(NAMING_PROMPT, image)], max_tokens=4)
    assert isinstance(answer.text, str)
