"""Answers confined to a list: the automaton and the tokens it allows, for tokenizers of every kind."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rarvision.chat import ListConstraint
from rarvision.chat.constraint import ListAutomaton, TokenBytes, TokenSpeller, token_bytes
from rarvision.errors import ChatUnsupportedError, OptionError
from tiny_models import byte_level_tokenizer, sentencepiece_like_tokenizer

TRICKY = ("gold finch", "gold finch's", "a', 'b", "a", "b", "']", "['", "猫", "🦜", "\n", " x ", 'say "it"')


@pytest.fixture(scope="module")
def tokenizers():
    return {"bytes": byte_level_tokenizer(), "pieces": sentencepiece_like_tokenizer(), "words": word_tokenizer()}


@pytest.fixture(scope="module")
def tables(tokenizers):
    return {kind: TokenBytes(tokenizer) for kind, tokenizer in tokenizers.items()}


def word_tokenizer():
    """Whole words, and the marks of a list: no letter and no byte is a token of its own."""
    words = ["['", "', '", "']", "gold", " finch", " kite", "red", "'s", "[", "'", "]", ",", " ", '"', "Wilson", " b"]
    vocab = {"<unk>": 0, "</s>": 1, "x": 2, **{word: 3 + i for i, word in enumerate(words)}}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    pattern = r"\['|', '|'\]| ?[A-Za-z]+|'s|."
    from tokenizers import Regex

    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def write(tokens, names, choose):
    """Follow the allowed tokens to the end; returns the decoded bytes and the number of steps."""
    speller = TokenSpeller(tokens, ListAutomaton.of(ListConstraint(names=names), tokens.lead))
    written, steps = b"", 0
    while not speller.done:
        allowed = speller.allowed()
        assert allowed, f"stuck after {written!r}"
        token = int(choose(allowed))
        written += tokens.by_id[token]
        speller.push(token)
        steps += 1
    assert speller.allowed() == []
    return written, steps


def possible(names):
    return {("['" + "', '".join(order) + "']").encode() for order in itertools.permutations(names)}


def test_token_bytes_spell_what_decoding_gives(tokenizers):
    for kind, tokenizer in tokenizers.items():
        table = token_bytes(tokenizer)
        text = "['gold finch', 'red kite']"
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(table[i] for i in ids).decode().strip() == text == tokenizer.decode(ids).strip(), kind
        assert not set(table) & set(tokenizer.all_special_ids)
        assert all(table.values())


def test_kinds(tables):
    assert {kind: (table.spells, table.complete, table.lead) for kind, table in tables.items()} == {
        "bytes": (True, True, b""),
        "pieces": (True, True, b" "),
        "words": (True, False, b""),
    }


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@given(names=st.lists(st.sampled_from(TRICKY) | st.text(min_size=1, max_size=5), min_size=1, max_size=5, unique=True),
       seed=st.integers(0, 999))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_walk_ends_in_a_permutation(tables, kind, names, seed):
    names = tuple(name for name in names if name.isprintable() or name == "\n") or ("a",)
    rng = np.random.default_rng(seed)
    longest = ListAutomaton.of(ListConstraint(names=names), tables[kind].lead).longest
    for choose in (rng.choice, min, max):
        written, steps = write(tables[kind], names, choose)
        assert written.removeprefix(tables[kind].lead) in possible(names)
        assert steps <= longest


@pytest.mark.parametrize("kind", ["bytes", "pieces", "words"])
def test_exactly_the_tokens_that_lead_on(tables, kind):
    """At every step, against trying all tokens of the vocabulary on all permutations."""
    names = ("gold finch", "gold finch's", "red kite") if kind == "words" else ("gold finch", "gold finch's", "猫", "a")
    table, rng = tables[kind], np.random.default_rng(0)
    goals = {lead + goal for goal in possible(names) for lead in (b"", table.lead)}
    for _ in range(12):
        speller = TokenSpeller(table, ListAutomaton.of(ListConstraint(names=names), table.lead))
        written = b""
        while not speller.done:
            fitting = {i for i, text in table.by_id.items() if any(g.startswith(written + text) for g in goals)}
            allowed = speller.allowed()
            if kind == "words":
                assert set(allowed) <= fitting  # less the dead ends: nothing continues "['gold finch'" with "'" alone
            else:
                assert set(allowed) == fitting
            token = int(rng.choice(allowed))
            written += table.by_id[token]
            speller.push(token)
        assert written in goals


def test_a_vocabulary_of_words_never_runs_into_a_dead_end(tables):
    rng = np.random.default_rng(3)
    for _ in range(50):
        written, _ = write(tables["words"], ("gold finch", "gold finch's", "red kite"), rng.choice)
        assert written in possible(("gold finch", "gold finch's", "red kite"))


def test_a_word_that_the_vocabulary_lacks(tables):
    with pytest.raises(ChatUnsupportedError, match="heron"):
        write(tables["words"], ("gold finch", "grey heron"), min)


def test_all_orders_can_be_written(tables):
    names = ("a", "ab", "b")
    rng = np.random.default_rng(0)
    assert {write(tables["bytes"], names, rng.choice)[0] for _ in range(300)} == possible(names)


@pytest.mark.parametrize("names", [(), ("a", "a"), ("", "a")])
def test_bad_names(names):
    with pytest.raises(OptionError, match="distinct"):
        ListAutomaton.of(ListConstraint(names=names))


def test_an_end_that_cannot_be_told():
    with pytest.raises(OptionError, match="closing"):
        ListAutomaton.of(ListConstraint(names=("a",), closing=""))


class LargeVocabulary:
    """150,000 tokens in the byte-level scheme, without training one."""

    def __init__(self):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        rng = np.random.default_rng(0)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyzĠ"))
        texts = map("".join, rng.choice(letters, (200_000, 9)))
        vocab = dict.fromkeys(alphabet)
        vocab.update((text[:length], None) for text, length in zip(texts, rng.integers(2, 10, 200_000), strict=True))
        assert len(vocab) > 150_000
        self.vocab = {token: i for i, token in enumerate(vocab)}
        self.added_tokens_decoder, self.all_special_ids = {}, []
        self.backend_tokenizer = SimpleNamespace(to_str=lambda: '{"decoder": {"type": "ByteLevel"}}')

    def get_vocab(self):
        return self.vocab

    def encode(self, text, add_special_tokens):
        return [self.vocab[char] for char in text.replace(" ", "Ġ")]


class Looked:
    """Counts how often something is looked up, and lets nobody go through all of it."""

    lookups = 0

    def __getitem__(self, key):
        Looked.lookups += 1
        return super().__getitem__(key)

    def __contains__(self, key):
        Looked.lookups += 1
        return super().__contains__(key)

    def __iter__(self):
        raise AssertionError("went through the whole vocabulary")

    items = keys = values = __iter__


class LookedList(Looked, list):
    pass


class LookedDict(Looked, dict):
    pass


def test_the_work_a_step_does_not_grow_with_the_vocabulary(monkeypatch):
    monkeypatch.setattr(Looked, "lookups", 0)
    tokens = TokenBytes(LargeVocabulary())
    tokens.sorted, tokens.by_bytes = LookedList(tokens.sorted), LookedDict(tokens.by_bytes)
    names = tuple(f"species number {n} of the lesser spotted kind" for n in range(20))
    most = 0

    def choose(allowed):
        nonlocal most
        most, Looked.lookups = max(most, Looked.lookups), 0
        return max(allowed, key=lambda i: len(tokens.by_id[i]))

    written, _ = write(tokens, names, choose)
    assert written.count(b"species") == 20
    assert 20 < most < 10_000, "of 150,000 tokens"  # 20 names, up to a dozen letters each, 17 halvings a letter
