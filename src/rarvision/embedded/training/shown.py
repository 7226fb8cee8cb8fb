"""Stage 5's last lessons: candidates shown by images and descriptions, and questions after a worked example."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rarvision.embedded.training.conversations import IGNORE, Option, Packed, Turn, TurnWriter
from rarvision.embedded.training.images import DomainImages
from rarvision.ranking.prompts import option_letters, query_note

__all__ = ["ShownMix", "ShownRow", "plates", "right_answers"]

Code = tuple[int, ...]
Codes = Callable[[str, int, Code, int, random.Random], list[Code]]
"""Of a domain, a row, its category, k, and a source of chance: k candidates."""

_FORMS = {"unknown": 0.36, "known": 0.18, "described": 0.16, "both": 0.1, "worked": 0.2}
"""Exemplars of categories whose names tell nothing, and of others; descriptions for such names, with exemplars as well;
a worked example."""
_EXEMPLARS = 5  # a row, of all candidates
_DESCRIBED = 8
_WORKED = 8
_ALONE = 0.2  # of exemplar rows that are about one candidate, for yes and no


@dataclass(frozen=True)
class ShownRow:
    """One row: the set that its images are from, their places in it as the row shows them, and its questions."""

    form: str
    part: int
    images: list[int]
    prefix: Turn
    turns: list[Turn]


def plates(n: int, rng: random.Random) -> list[str]:
    """Draw n distinct names that tell nothing, as ``Q7``."""
    return rng.sample([f"{letter}{digit}" for letter in option_letters(26) for digit in range(10)], n)


class ShownMix:
    """Draws rows of questions about what is shown.

    Args:
        writer: Writes the tokens.
        data: The images that questions are about; by number.
        parts: The numbers of those domains that may be ranked.
        codes: Draws candidates.
        prompt: Draws the name of a ranking prompt.
        image_tokens: Of an image.
    """

    def __init__(
        self,
        writer: TurnWriter,
        data: list[DomainImages],
        parts: list[int],
        *,
        codes: Codes,
        prompt: Callable[[random.Random], str],
        image_tokens: int,
    ) -> None:
        self._writer, self._data, self._parts = writer, data, parts
        self._codes, self._prompt, self._image_tokens = codes, prompt, image_tokens
        self._rows_of: dict[int, dict[Code, list[int]]] = {part: {} for part in parts}
        for part in parts:
            for row, code in enumerate(data[part].codes.tolist()):
                self._rows_of[part].setdefault(tuple(code), []).append(row)

    def rows(self, n: int, rng: random.Random) -> list[ShownRow]:
        """Draw n rows."""
        found = []
        for i in range(n):
            part = self._parts[i % len(self._parts)]
            row = rng.randrange(len(self._data[part].codes))
            (form,) = rng.choices(list(_FORMS), list(_FORMS.values()))
            found.append(self._worked(part, row, rng) if form == "worked" else self._shown(part, row, form, rng))
        return found

    def _truth(self, part: int, row: int) -> Code:
        return tuple(int(v) for v in self._data[part].codes[row])

    def _candidates(self, part: int, row: int, k: int, rng: random.Random, *, pictured: bool) -> list[Code]:
        """At most k of them, the truth among them; with images of their own where these are to be shown."""
        truth = self._truth(part, row)
        codes = self._codes(self._data[part].domain, row, truth, k, rng)
        return [code for code in codes if not pictured or self._others(part, row, code)]

    def _others(self, part: int, row: int, code: Code) -> list[int]:
        return [other for other in self._rows_of[part].get(code, ()) if other != row]

    def _shown(self, part: int, row: int, form: str, rng: random.Random) -> ShownRow:
        writer, domain, truth = self._writer, self._data[part].domain, self._truth(part, row)
        pictured, described, opaque = form != "described", form in ("described", "both"), form != "known"
        k = rng.choice((5, 5, rng.randint(2, 5))) if pictured else rng.randint(2, _DESCRIBED)
        codes = self._candidates(part, row, k, rng, pictured=pictured)
        if truth not in codes or len(codes) < 2:
            return self._worked(part, row, rng)
        alone = pictured and not described and rng.random() < _ALONE
        if alone:
            codes = [truth if rng.random() < 0.5 else rng.choice([code for code in codes if code != truth])]
        named = [writer.option(domain, code, truth) for code in codes]
        names = plates(len(codes), rng) if opaque else None
        options = named
        if names is not None:
            # alphabetical, as what is shown of candidates is
            pairs = sorted(zip(names, codes, strict=True))
            codes = [code for _, code in pairs]
            named = [writer.option(domain, code, truth) for code in codes]
            options = [writer.plate(name, match=code == truth) for name, code in pairs]
        else:
            order = sorted(range(len(codes)), key=lambda i: writer.text_of(named[i]))
            codes, named = [codes[i] for i in order], [named[i] for i in order]
            options = named
        prefix, images = Turn(), [row]
        prefix.text(writer.images(self._image_tokens))
        if pictured:
            prefix.text(writer.encode(query_note(1)))
            each = rng.randint(1, max(1, min(3, _EXEMPLARS // len(codes)))) if rng.random() < 0.4 else 1
            for code, option in zip(codes, options, strict=True):
                chosen = rng.sample(self._others(part, row, code), min(each, len(self._others(part, row, code))))
                look = tuple(int(a == b) for a, b in zip(code, truth, strict=True))
                writer.exemplars(prefix, option, len(images) + 1, [look] * len(chosen), image_tokens=self._image_tokens)
                images += chosen
        if described:
            writer.described(prefix, options, named)
        if alone:
            return ShownRow("alone", part, images, prefix, [writer.yes_no(options[0])])
        turns = [writer.choice(_shuffled(options, rng)), writer.ranking(_shuffled(options, rng), self._prompt(rng))]
        turns.append(writer.choice(_shuffled(options, rng)))
        return ShownRow(form, part, images, prefix, turns)

    def _worked(self, part: int, row: int, rng: random.Random) -> ShownRow:
        """The same kind of question twice, the first one with its answer."""
        example = rng.randrange(len(self._data[part].codes))
        kind = rng.choice(("ranking", "ranking", "choice", "choice", "yes"))
        prompt, k = self._prompt(rng), rng.randint(2, _WORKED)
        prefix = Turn()
        prefix.text(self._writer.images(self._image_tokens))
        prefix.append(self._question((part, example), kind, prompt, k, rng))
        prefix.text(self._writer.images(self._image_tokens))
        turns = [self._question((part, row), kind, prompt, k, rng) for _ in range(2)]
        return ShownRow(f"worked {kind}", part, [example, row], prefix, turns)

    def _question(self, image: tuple[int, int], kind: str, prompt: str, k: int, rng: random.Random) -> Turn:
        part, row = image
        domain, truth = self._data[part].domain, self._truth(part, row)
        codes = self._candidates(part, row, k, rng, pictured=False)
        options = [self._writer.option(domain, code, truth) for code in codes]
        if kind == "ranking":
            return self._writer.ranking(options, prompt)
        if kind == "choice":
            return self._writer.choice(options)
        wanted = rng.random() < 0.5
        return self._writer.yes_no(rng.choice([option for option in options if option.match is wanted]))


def _shuffled(options: list[Option], rng: random.Random) -> list[Option]:
    return rng.sample(options, len(options))


def right_answers(rows: list[ShownRow], packed: Packed, guesses: np.ndarray) -> dict[str, list[bool]]:
    """Whether each row's first answer begins as it should, by the row's form.

    Args:
        rows: n rows.
        packed: The same, as tokens.
        guesses: ``(n, length)``: the likeliest next token at each place.
    """
    found: dict[str, list[bool]] = {}
    for number, row in enumerate(rows):
        asked = range(len(row.prefix.ids), len(row.prefix.ids) + len(row.turns[0].ids))
        answer = next(place for place in asked if packed.labels[number, place] != IGNORE)
        # of a list the bracket that opens it comes first, and is no answer
        words = range(answer, answer + 6) if row.form == "worked ranking" else range(answer, answer + 1)
        right = all(guesses[number, place] == packed.labels[number, place] for place in words)
        found.setdefault(row.form, []).append(right)
    return found
