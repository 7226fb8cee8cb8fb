"""The methods of Table 1 as records: who names, how names are filtered, what the memory holds, who ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rarvision.chat import Chat
from rarvision.encoders import Encoder, Views
from rarvision.errors import OptionError
from rarvision.memory import Memory
from rarvision.naming.base import Namer
from rarvision.naming.cleaning import name_key
from rarvision.naming.discovery import Voting
from rarvision.naming.namers import AttributeNamer, CaptionNamer, DirectNamer, Guesser, VocabularyNamer
from rarvision.ranking import NAMING_PROMPT

__all__ = ["NAMING_PRESETS", "NamingPreset", "Sources", "make_namer", "need", "preset_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NamingPreset:
    """A method of vocabulary-free recognition.

    Attributes:
        about: A sentence.
        namer: Who names: the MLLM ``direct``, by ``attributes``, ``captions``, or ``words``: nobody, the memory holds a
            large vocabulary.
        memory: What is searched for test images: ``discovered``: names and images of the unlabelled set; ``words``: the
            vocabulary; ``none``: the namer names each test image itself.
        voting: How names are filtered; see `vote_names`.
        names: Guesses of an image that count.
        views: Of each unlabelled image, as the memory stores them; see `rarvision.encoders.Views`.
        retrieval: Options of the retriever.
        ranked: Whether an MLLM ranks what is retrieved.
    """

    about: str
    namer: Literal["direct", "attributes", "captions", "words"]
    memory: Literal["discovered", "words", "none"]
    voting: Voting = "clip"
    names: int = 1
    views: Views = "whole"
    retrieval: Mapping[str, Any] = field(default_factory=dict)
    ranked: bool = False


NAMING_PRESETS: Mapping[str, NamingPreset] = {
    "wordnet-clip": NamingPreset(
        about="CLIP's nearest word of a large vocabulary, such as WordNet's nouns",
        namer="words",
        memory="words",
        retrieval={"source": "text"},
    ),
    "blip-2": NamingPreset(about="the MLLM names each test image itself", namer="direct", memory="none"),
    "cased": NamingPreset(
        about="CaSED: nouns of the nearest captions, scored by image and captions", namer="captions", memory="none"
    ),
    "finer": NamingPreset(
        about="FineR: attributes are described, names guessed from them and filtered by votes; CLIP recognises",
        namer="attributes",
        memory="discovered",
        names=3,
        views="flip+crops",
        retrieval={"aggregate": "prototype", "text_weight": 0.7},
    ),
    "rar": NamingPreset(
        about="names that the MLLM gives the unlabelled images, filtered by votes; RAR recognises",
        namer="direct",
        memory="discovered",
        voting="own",
        ranked=True,
    ),
    "rar-finer": NamingPreset(
        about="the paper's: FineR's names in the memory, RAR recognises",
        namer="attributes",
        memory="discovered",
        names=3,
        ranked=True,
    ),
}
"""By name; the rows of Table 1, and the paper's own combination."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What presets draw on; each needs some of it.

    Attributes:
        encoder: CLIP.
        chat: The MLLM that names.
        guesser: Guesses names from attributes.
        words: A large vocabulary.
        captions: A corpus.
        kind: What all images are of, such as ``bird``; empty for anything.
        question: What an MLLM is asked for a name.
        attribute_question: What it is asked of an attribute; None for the namer's own.
        templates: How names are put to the encoder.
        most_words: Of a name in a caption.
        min_captions: Of an image's captions that must hold a name; see `CaptionNamer`.
    """

    encoder: Encoder
    chat: Chat | None = None
    guesser: Guesser | None = None
    words: Sequence[str] = ()
    captions: Sequence[str] = ()
    kind: str = ""
    question: str = NAMING_PROMPT
    attribute_question: str | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)
    most_words: int = 3
    min_captions: int = 2


def need(value: Any, what: str, preset: str) -> Any:
    """The value; `OptionError` where it is missing."""
    if not value:
        raise OptionError(f"the preset {preset!r} needs {what}")
    return value


def preset_of(name: str) -> NamingPreset:
    """The preset of a name; `OptionError` where there is none."""
    if name not in NAMING_PRESETS:
        raise OptionError(f"no preset {name!r} among {', '.join(NAMING_PRESETS)}")
    return NAMING_PRESETS[name]


def make_namer(name: str, sources: Sources, *, memory: Memory | None = None) -> Namer:
    """The namer of a preset.

    Args:
        name: Of the preset.
        sources: What it draws on.
        memory: With the vocabulary's texts, for ``words``.

    Raises:
        OptionError: There is no such preset, or what it needs is missing.
    """
    preset = preset_of(name)
    if preset.namer == "captions":
        nouns = frozenset(map(name_key, sources.words)) if sources.words else None
        captions = need(sources.captions, "captions (--captions FILE)", name)
        return CaptionNamer(
            captions,
            sources.encoder,
            nouns=nouns,
            most_words=sources.most_words,
            min_captions=sources.min_captions,
            names=preset.names,
        )
    if preset.namer == "words":
        return VocabularyNamer(need(memory, "a memory of words", name), names=preset.names)
    chat = need(sources.chat, "an MLLM (--ranker)", name)
    if preset.namer == "direct":
        return DirectNamer(chat, question=sources.question, kind=sources.kind, names=preset.names)
    guesser = need(sources.guesser, "a language model (--llm), or a vocabulary (--words FILE)", name)
    more = {} if sources.attribute_question is None else {"question": sources.attribute_question}
    return AttributeNamer(chat, guesser, kind=sources.kind, names=preset.names, **more)
