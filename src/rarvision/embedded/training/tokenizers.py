"""The two small tokenizers: stock classes, vocabularies of the field guide's words."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from rarvision.datasets.fieldguide import DOMAINS
from rarvision.ranking.prompts import (
    CHOICE_PROMPT,
    DESCRIBED,
    NAMING_PROMPT,
    RANKING_PROMPTS,
    YES_NO_PROMPT,
    exemplar_note,
    query_note,
)

__all__ = ["CHAT_TEMPLATE", "TEXT_TEMPLATES", "clip_tokenizer", "mllm_tokenizer"]

TEXT_TEMPLATES = ("{}", "a photo of a {}.", "a picture of a {}.")
"""What the small CLIPs saw names in."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}ASSISTANT:{% else %}{{ message['role'] | upper }}: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def _words() -> list[str]:
    found = {word for domain in DOMAINS.values() for attribute in domain.attributes for word in attribute.words}
    return sorted(found)


def _train_bpe(tokenizer: Tokenizer, texts: list[str], *, suffix: str = "") -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,
        min_frequency=1,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        **cast("dict[str, Any]", {"end_of_word_suffix": suffix} if suffix else {}),
    )
    tokenizer.train_from_iterator(texts, trainer)


def _merges(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    state = json.loads(tokenizer.to_str())["model"]
    return dict(state["vocab"]), [(left, right) for left, right in state["merges"]]


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A stock CLIP tokenizer in which every word of the field guide is one token.

    Made once and kept in ``folder``: the order in which equally good merges are found is not the same in each process.
    """
    if (folder / "tokenizer.json").exists():
        kept: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
        return kept
    text = [*_words(), *(template.replace("{}", " ") for template in TEXT_TEMPLATES)]
    scratch = CLIPTokenizer().backend_tokenizer
    _train_bpe(scratch, text, suffix="</w>")
    vocab, merges = _merges(scratch)
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab.setdefault(token, len(vocab))
    made = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=16)
    made.save_pretrained(folder)
    return made


def _phrases() -> list[str]:
    """The fixed parts of the prompts: each is one token, as frequent boilerplate deserves."""
    templates = [*RANKING_PROMPTS.values(), CHOICE_PROMPT, NAMING_PROMPT, YES_NO_PROMPT]
    pieces = {piece for t in templates for piece in re.split(r"\{[a-z]+\}", t) if len(piece) > 1}
    return sorted(pieces, key=lambda piece: (-len(piece), piece))


def _notes() -> list[str]:
    """The same of what is shown of candidates."""
    notes = [exemplar_note(2, count, "\x00") for count in (1, 2)]
    pieces = {piece for note in notes for piece in re.split(r"\d+|\x00", note) if len(piece) > 1}
    return [query_note(1), DESCRIBED, *sorted(pieces)]


def mllm_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text goes in and comes out; the field guide's words and the prompts' phrases are a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = _words()
    letters = [*string.ascii_uppercase, *string.digits, "yes", "no", "USER", "SYSTEM"]
    _train_bpe(tokenizer, [*words, *(f" {word}" for word in words), *letters])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<pad>", "</s>", "<image>")])
    structure = ["USER: ", " ASSISTANT:", "['", "', '", "']", "\n"]
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in [*_phrases(), *structure, *_notes()]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",  # noqa: S106 - no password
        pad_token="<pad>",  # noqa: S106 - no password
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
