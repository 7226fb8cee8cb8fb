"""Namers: an MLLM that is asked, attributes and a language model, the nearest words, nouns of the nearest captions."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, final

import numpy as np
from jaxtyping import Float
from PIL.Image import Image

from rarvision.chat import Chat, ChatRequest
from rarvision.encoders import Encoder
from rarvision.errors import OptionError
from rarvision.memory import Memory
from rarvision.naming.base import Guess, Namer
from rarvision.naming.cleaning import distinct, name_key, phrases_of, read_names
from rarvision.ranking import NAMING_PROMPT

__all__ = ["AttributeNamer", "CaptionNamer", "ChatGuesser", "DirectNamer", "Guesser", "VocabularyNamer", "WordGuesser"]

_TOKENS = 48
_LIST_TOKENS = 160
_SAME = 1e-9


@final
class DirectNamer(Namer):
    """Asks an MLLM what the image shows.

    Args:
        chat: The MLLM; a captioner such as BLIP-2 answers the same question.
        question: What it is asked; ``{kind}`` stands for ``kind``.
        kind: What all images are of, such as ``bird``; empty for anything.
        names: How many names are asked for: above 1 the question should say so.

    Source: RAR's naming and the BLIP-2 baseline of Table 1.
    """

    def __init__(self, chat: Chat, *, question: str = NAMING_PROMPT, kind: str = "", names: int = 1) -> None:
        if names < 1:
            raise OptionError(f"names must be at least 1, got {names}")
        self._chat, self._kind, self._names = chat, kind, names
        self._question = question.replace("{kind}", kind or "object")

    @property
    def name(self) -> str:
        """The MLLM's, and how it is asked."""
        return f"{self._chat.name}, asked directly"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Model and question."""
        return {
            "namer": "direct",
            "chat": dict(self._chat.settings),
            "question": self._question,
            "names": self._names,
        }

    def _guess(self, images: list[Image]) -> list[Guess]:
        requests = [ChatRequest.of(self._question, image) for image in images]
        tokens = _TOKENS if self._names == 1 else _LIST_TOKENS
        answers = self._chat.generate(requests, max_tokens=tokens)
        return [_read(answer.text, self._names) for answer in answers]


def _read(answer: str, most: int) -> Guess:
    names = read_names(answer, most)
    reason = None if names else f"no name could be read from the answer {answer.strip()[:80]!r}"
    return Guess(names=names, raw=(answer,), reason=reason)


class Guesser(Protocol):
    """Guesses names from descriptions of attributes, as a language model does."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON values."""

    def attributes(self, kind: str) -> list[str]:
        """Which attributes tell categories of a kind apart."""

    def guess(self, kind: str, descriptions: Sequence[Mapping[str, str]], most: int) -> list[Guess]:
        """Names for each image, of what was said of its attributes."""


@final
class ChatGuesser:
    """A language model behind a `Chat`, asked without an image.

    Args:
        chat: The model.
        attributes: How many attributes it is asked for.
    """

    def __init__(self, chat: Chat, *, attributes: int = 8) -> None:
        self._chat, self._count = chat, attributes

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model and how many attributes."""
        return {"guesser": dict(self._chat.settings), "attributes": self._count}

    def attributes(self, kind: str) -> list[str]:
        """Ask once for a kind."""
        question = (
            f"Which visible attributes help most to tell one {kind or 'object'} from similar ones? List "
            f"{self._count} of them, one a line, a few words each, without explanation."
        )
        (answer,) = self._chat.generate([ChatRequest.of(question)], max_tokens=_LIST_TOKENS)
        return list(read_names(answer.text, self._count))

    def guess(self, kind: str, descriptions: Sequence[Mapping[str, str]], most: int) -> list[Guess]:
        """Ask for each image."""
        what = kind or "object"
        requests = [
            ChatRequest.of(
                f"A {what} was described like this:\n"
                + "\n".join(f"- {attribute}: {value}" for attribute, value in seen.items())
                + f"\nWhich {most} kinds of {what} could it be? Give precise names, one a line, the likeliest first."
            )
            for seen in descriptions
        ]
        answers = self._chat.generate(requests, max_tokens=_LIST_TOKENS)
        return [_read(answer.text, most) for answer in answers]


@final
class WordGuesser:
    """Looks descriptions up in a list of names: those that share most words with them. Offline, and no model.

    Rare words count more than common ones (inverse frequency); ties keep the list's order.

    Args:
        names: The list.
        attributes: What is described of an image; by default all at once.
    """

    def __init__(self, names: Sequence[str], *, attributes: Sequence[str] = ("appearance",)) -> None:
        if not names:
            raise OptionError("a list of names to look up in must hold some")
        self._names = tuple(names)
        self._attributes = tuple(attributes)
        self._words: dict[str, list[int]] = {}
        for place, name in enumerate(self._names):
            for word in set(name_key(name).split()):
                self._words.setdefault(word, []).append(place)

    @property
    def settings(self) -> Mapping[str, Any]:
        """How many names, and which attributes."""
        return {
            "guesser": "words",
            "names": len(self._names),
            "names_content": _digest(self._names),
            "attributes": list(self._attributes),
        }

    def attributes(self, kind: str) -> list[str]:
        """As given."""
        del kind
        return list(self._attributes)

    def guess(self, kind: str, descriptions: Sequence[Mapping[str, str]], most: int) -> list[Guess]:
        """Look each up."""
        del kind
        return [self._one(" ".join(seen.values()), most) for seen in descriptions]

    def _one(self, text: str, most: int) -> Guess:
        scores: dict[int, float] = {}
        words = re.findall(r"[^\W_]+", text.casefold())
        for word in {*words, *map(name_key, words)}:
            places = self._words.get(word, [])
            for place in places:
                scores[place] = scores.get(place, 0.0) + math.log1p(len(self._names) / len(places))
        ranked = sorted(scores, key=lambda place: (-scores[place], place))[:most]
        names = tuple(self._names[place] for place in ranked)
        return Guess(names=names, raw=(text,), reason=None if names else f"no name shares a word with {text[:80]!r}")


@final
class AttributeNamer(Namer):
    """Describes attributes of an image with an MLLM, and has names guessed from the descriptions.

    Args:
        chat: The MLLM that looks.
        guesser: What guesses names: a language model (`ChatGuesser`) or a list of names (`WordGuesser`).
        kind: What all images are of; empty: the MLLM is asked for it, image by image.
        question: Asked of each attribute; ``{attribute}`` and ``{kind}`` are filled in.
        names: Names of an image.

    Source: FineR (Liu et al., 2024): what kind, which attributes, their values, three names.
    """

    def __init__(
        self,
        chat: Chat,
        guesser: Guesser,
        *,
        kind: str = "",
        question: str = "What is the {attribute} of the {kind} in this image? Answer in a few words.",
        names: int = 3,
    ) -> None:
        self._chat, self._guesser, self._kind, self._question, self._names = chat, guesser, kind, question, names
        self._known: dict[str, list[str]] = {}

    @property
    def name(self) -> str:
        """The MLLM's, and how it is asked."""
        return f"{self._chat.name}, attributes described"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Both models, and what is asked."""
        return {
            "namer": "attributes",
            "chat": dict(self._chat.settings),
            "guesser": dict(self._guesser.settings),
            "kind": self._kind,
            "question": self._question,
            "names": self._names,
        }

    def _guess(self, images: list[Image]) -> list[Guess]:
        kinds = [self._kind] * len(images) if self._kind else self._kinds(images)
        wanted: list[tuple[int, str, ChatRequest]] = []
        for place, (image, kind) in enumerate(zip(images, kinds, strict=True)):
            for attribute in self._attributes(kind):
                text = self._question.replace("{attribute}", attribute).replace("{kind}", kind or "object")
                wanted.append((place, attribute, ChatRequest.of(text, image)))
        answers = self._chat.generate([request for *_, request in wanted], max_tokens=_TOKENS) if wanted else []
        seen: list[dict[str, str]] = [{} for _ in images]
        for (place, attribute, _), answer in zip(wanted, answers, strict=True):
            seen[place][attribute] = answer.text.strip()
        found: list[Guess] = [Guess(names=(), reason="no attributes to describe")] * len(images)
        for kind in dict.fromkeys(kinds):
            places = [place for place, of in enumerate(kinds) if of == kind and seen[place]]
            if not places:
                continue
            guesses = self._guesser.guess(kind, [seen[place] for place in places], self._names)
            for place, guess in zip(places, guesses, strict=True):
                described = tuple(f"{attribute}: {value}" for attribute, value in seen[place].items())
                found[place] = Guess(names=guess.names, raw=(*described, *guess.raw), reason=guess.reason)
        return found

    def _kinds(self, images: list[Image]) -> list[str]:
        question = "What is the main object in this image? Answer with one or two words."
        answers = self._chat.generate([ChatRequest.of(question, image) for image in images], max_tokens=_TOKENS)
        return [next(iter(read_names(answer.text)), "object").casefold() for answer in answers]

    def _attributes(self, kind: str) -> list[str]:
        if kind not in self._known:
            self._known[kind] = self._guesser.attributes(kind)
        return self._known[kind]


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _unit(vectors: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
    unit: Float[np.ndarray, "n dim"] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _SAME)
    return unit


@final
class VocabularyNamer(Namer):
    """The nearest words of a large vocabulary, which a memory of texts holds.

    Args:
        memory: With the vocabulary's names as texts.
        names: How many.

    Source: WordNet + CLIP of Table 1.
    """

    def __init__(self, memory: Memory, *, names: int = 3) -> None:
        self._memory, self._names = memory, names

    @property
    def name(self) -> str:
        """How many words, by which encoder."""
        return f"nearest of {len(self._memory.categories('text')):,} words by {self._memory.encoder_name}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the memory holds."""
        return {"namer": "words", "memory": self._memory.content_hash, "names": self._names}

    def _guess(self, images: list[Image]) -> list[Guess]:
        vectors = self._memory.encoder.encode_images(images)
        known = self._memory.category_names()
        hits = self._memory.nearest(vectors, min(self._names, self._memory.count("text")), modality="text")
        return [Guess(names=distinct([known[code] for code in row if code >= 0])) for row in hits.categories.tolist()]


@final
class CaptionNamer(Namer):
    """Candidate names from the captions that are nearest to an image, scored by the image and by these captions.

    A caption is read by `phrases_of`; a name counts that ``min_captions`` of the nearest captions hold. Then
    ``weight * p(name | image) + (1 - weight) * p(name | captions)``, each a softmax over the candidates of cosines
    with the image, and with the mean of the captions' vectors.

    Args:
        captions: The corpus.
        encoder: CLIP.
        neighbours: Captions an image.
        weight: Of the image, 0 to 1.
        nouns: What counts as a name, see `phrases_of`; None lets all words count that are no function words.
        most_words: Of a candidate.
        min_captions: Captions of the image's that must hold a candidate; where none is in so many, those that are in
            most of them count.
        names: Names of an image.
        temperature: Of both softmaxes.
        template: How a candidate is put to the encoder.

    Raises:
        OptionError: No captions, or an option out of range.

    Source: CaSED (Conti et al., 2023): weight 0.7, 10 captions, names in at least two of them. Its names are single
        words, told to be nouns or adjectives by a tagger; here they are runs of words, so that names of several words
        are found.
    """

    def __init__(
        self,
        captions: Sequence[str],
        encoder: Encoder,
        *,
        neighbours: int = 10,
        weight: float = 0.7,
        nouns: frozenset[str] | None = None,
        most_words: int = 3,
        min_captions: int = 2,
        names: int = 1,
        temperature: float = 0.01,
        template: str = "{}",
    ) -> None:
        if not captions:
            raise OptionError("there are no captions to find names in")
        if not 0.0 <= weight <= 1.0:
            raise OptionError(f"weight must lie between 0 and 1, got {weight}")
        if neighbours < 1 or min_captions < 1 or not temperature > 0:
            raise OptionError(
                f"neighbours and min_captions must be at least 1, and temperature above 0; got {neighbours}, "
                f"{min_captions} and {temperature}"
            )
        self._captions, self._encoder = tuple(captions), encoder
        self._neighbours, self._weight, self._temperature = min(neighbours, len(captions)), weight, temperature
        self._nouns, self._most_words, self._names, self._template = nouns, most_words, names, template
        self._min_captions, self._content = min_captions, _digest(self._captions)
        self._vectors: Float[np.ndarray, "n dim"] | None = None
        self._texts: dict[str, Float[np.ndarray, " dim"]] = {}

    @property
    def name(self) -> str:
        """How many captions, by which encoder."""
        return f"nouns of the nearest of {len(self._captions):,} captions by {self._encoder.name}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything."""
        return {
            "namer": "captions",
            "captions": len(self._captions),
            "captions_content": self._content,
            "encoder": self._encoder.fingerprint,
            "neighbours": self._neighbours,
            "weight": self._weight,
            "nouns": None if self._nouns is None else _digest(sorted(self._nouns)),
            "most_words": self._most_words,
            "min_captions": self._min_captions,
            "names": self._names,
            "temperature": self._temperature,
            "template": self._template,
        }

    def _guess(self, images: list[Image]) -> list[Guess]:
        if self._vectors is None:
            self._vectors = self._encoder.encode_texts(list(self._captions))
        vectors = self._encoder.encode_images(images)
        return [self._one(vector) for vector in vectors]

    def _one(self, vector: Float[np.ndarray, " dim"]) -> Guess:
        assert self._vectors is not None  # noqa: S101 - `_guess` made them
        nearest = np.argsort(-(self._vectors @ vector), kind="stable")[: self._neighbours]
        captions = tuple(self._captions[place] for place in nearest.tolist())
        candidates = self._candidates(captions)
        if not candidates:
            return Guess(names=(), raw=captions, reason=f"no name in the {len(captions)} nearest captions")
        fresh = [each for each in candidates if each not in self._texts]
        if fresh:
            texts = self._encoder.encode_texts([self._template.replace("{}", each) for each in fresh])
            self._texts |= dict(zip(fresh, texts, strict=True))
        table = np.stack([self._texts[each] for each in candidates])
        centre = _unit(self._vectors[nearest].mean(axis=0)[None])[0]
        scores = self._weight * self._softmax(table @ vector) + (1 - self._weight) * self._softmax(table @ centre)
        ranked = np.argsort(-scores, kind="stable")
        return Guess(names=distinct([candidates[place] for place in ranked.tolist()])[: self._names], raw=captions)

    def _candidates(self, captions: Sequence[str]) -> list[str]:
        """Names that enough of the captions hold, one spelling each, in the order in which they occur."""
        spelt: dict[str, str] = {}
        counts: dict[str, int] = {}
        for caption in captions:
            found = {
                name_key(each): each for each in phrases_of(caption, most_words=self._most_words, nouns=self._nouns)
            }
            for key, phrase in found.items():
                spelt.setdefault(key, phrase)
                counts[key] = counts.get(key, 0) + 1
        least = min(self._min_captions, max(counts.values(), default=0))
        return [phrase for key, phrase in spelt.items() if counts[key] >= least]

    def _softmax(self, cosines: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        powers: Float[np.ndarray, " n"] = np.exp((cosines - cosines.max()) / self._temperature)
        shares: Float[np.ndarray, " n"] = powers / powers.sum()
        return shares
