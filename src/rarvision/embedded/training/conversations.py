"""Stage 5's data: for one image several questions, packed behind one copy of the image's tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from rarvision.datasets.fieldguide import DOMAINS, split_of
from rarvision.ranking.prompts import (
    NAMING_PROMPT,
    RANKING_PROMPTS,
    choice_prompt,
    option_letters,
    ranking_prompt,
    yes_no_prompt,
)

__all__ = ["Candidates", "Packed", "TurnWriter", "pack"]

IGNORE = -100
_FRESH = 0.1
REPEAT_PROMPT = "Repeat this list:{categories}"
"""Teaches copying apart from ranking: the answer has nothing to do with the image."""


@dataclass
class Turn:
    """Tokens of one question and its answer, with what is learned where.

    ``weights`` is positive on answer tokens only. ``word_targets`` (1 the word fits the image, 0 it does not, -1
    nothing) stands at every word of a candidate, ``candidate_targets`` at its last one; ``pointer_targets`` says at a
    candidate's words, and where an answer copies one, which of the list it is. They feed probes that only the training
    has. ``sources`` says, for an answer's word, which token of the question it is copied from; -1 for none.
    """

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    word_targets: list[int] = field(default_factory=list)
    candidate_targets: list[int] = field(default_factory=list)
    pointer_targets: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)

    def text(self, ids: list[int], weight: float = 0.0, pointer: int = -1, source: int = -1) -> None:
        """Append tokens; with a weight, as part of the answer; with a source, copied from there on."""
        self.pointer_targets += [pointer] * len(ids)
        self.sources += range(source, source + len(ids)) if source >= 0 else [-1] * len(ids)
        self.ids += ids
        self.weights += [weight] * len(ids)
        self.word_targets += [-1] * len(ids)
        self.candidate_targets += [-1] * len(ids)

    def candidate(self, ids: list[int], code: tuple[int, ...], truth: tuple[int, ...], index: int = -1) -> None:
        """Append a candidate's name inside a question."""
        self.pointer_targets += [index] * len(ids)
        self.sources += [-1] * len(ids)
        self.ids += ids
        self.weights += [0.0] * len(ids)
        self.word_targets += [int(a == b) for a, b in zip(code, truth, strict=True)]
        self.candidate_targets += [-1] * (len(ids) - 1) + [int(code == truth)]


class TurnWriter:
    """Writes questions as token ids without running the tokenizer each time; equal to it token for token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._encode = lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])
        self.eos = int(tokenizer.eos_token_id)
        self.image = int(tokenizer.convert_tokens_to_ids("<image>"))
        self.user = self._encode("USER: ")
        self.newline = self._encode("\n")
        self.assistant = self._encode(" ASSISTANT:")
        self._opening, self._between, self._closing = (self._encode(t) for t in ("['", "', '", "']"))
        self._letters = [self._encode(letter) for letter in option_letters(26)]
        self._dot = self._encode(".")
        self._yes, self._no = self._encode("yes"), self._encode("no")
        self._words = {
            name: [
                [self._encode(word if a == 0 else f" {word}") for word in attribute.words]
                for a, attribute in enumerate(domain.attributes)
            ]
            for name, domain in DOMAINS.items()
        }
        self._known = {
            name: [{ids[0] for ids in words} for words in attributes] for name, attributes in self._words.items()
        }
        self._after_space = {
            name: [self._encode(f" {word}") for word in domain.attributes[0].words] for name, domain in DOMAINS.items()
        }
        for name, attributes in self._words.items():
            if any(len(ids) != 1 for words in attributes for ids in words):
                raise ValueError(f"{name}: every word must be one token")
        mark = "\x00"
        self._parts = {
            "naming": [self._encode(NAMING_PROMPT)],
            "choice": [self._encode(p) for p in self._cut(choice_prompt([mark]).replace(f"A. {mark}", mark), mark)],
            "repeat": [self._encode(REPEAT_PROMPT.removesuffix("{categories}"))],
            "yes": [self._encode(p) for p in self._cut(yes_no_prompt(mark), mark)],
        }
        self._ranking = {
            (kind, k): [self._encode(p) for p in self._cut(self._ranking_text(template, k, mark), mark)]
            for kind, template in RANKING_PROMPTS.items()
            for k in range(2, 21)
        }

    @staticmethod
    def _cut(text: str, mark: str) -> tuple[str, str]:
        before, _, after = text.partition(mark)
        return before, after

    @staticmethod
    def _ranking_text(template: str, k: int, mark: str) -> str:
        return ranking_prompt([mark], template.replace("{k}", str(k))).replace(f"['{mark}']", mark)

    def name(self, domain: str, code: tuple[int, ...]) -> list[int]:
        """A category's name as token ids."""
        words = self._words[domain]
        return [words[a][value][0] for a, value in enumerate(code)]

    def naming(self, domain: str, truth: tuple[int, ...]) -> Turn:
        """What is this? The name."""
        turn = Turn()
        turn.text(self._parts["naming"][0] + self.assistant)
        turn.text([*self.name(domain, truth), self.eos], 1.0)
        return turn

    def ranking(self, domain: str, codes: list[tuple[int, ...]], truth: tuple[int, ...], kind: str) -> Turn:
        """Sort these: truth first, the rest in the order given."""
        before, after = self._ranking[kind, len(codes)]
        turn, names = Turn(), [self.name(domain, code) for code in codes]
        turn.text(before)
        starts = []
        for i, (code, name) in enumerate(zip(codes, names, strict=True)):
            turn.text(self._between if i else self._opening)
            starts.append(len(turn.ids))
            turn.candidate(name, code, truth, i)
        turn.text(self._closing + after + self.assistant)
        order = [codes.index(truth), *(i for i, code in enumerate(codes) if code != truth)]
        self._copied(turn, names, order, starts)
        return turn

    def framed(self, names: list[list[int]], first: int, kind: str) -> Turn:
        """Ask the ranking question about any names, answer with a list whose first says nothing about the image.

        Learned is only how the answer goes on. Which name comes first is not: of the first name those words only that
        are the one way to go on with what stands there, and then the rest, in the order given.
        """
        before, after = self._ranking[kind, len(names)]
        turn = Turn()
        turn.text(before)
        starts = self._list(turn, names)
        turn.text(after + self.assistant + self._opening)
        chosen = names[first]
        for a, word in enumerate(chosen):
            sure = all(name[a] == word for name in names if name[:a] == chosen[:a])
            if a and sure:
                turn.text([word], 1.0, first, starts[first] + a)
            else:
                turn.text([word])
        order = [i for i in range(len(names)) if i != first]
        self._copied(turn, names, order, starts, opening=self._between)
        return turn

    def repeat(self, names: list[list[int]]) -> Turn:
        """Repeat these, in the order given."""
        turn = Turn()
        turn.text(self._parts["repeat"][0])
        starts = self._list(turn, names)
        turn.text(self.assistant)
        self._copied(turn, names, list(range(len(names))), starts)
        return turn

    def nonce(self, k: int, rng: random.Random, *, near: str | None = None) -> list[list[int]]:
        """Draw k distinct names of nothing, alike as look-alikes are: words of all domains, in no category's name.

        With ``near``, half of the words are that domain's.
        """
        domains = list(self._words)
        if near is not None:
            domains += [near] * (len(domains) - 2)
        words = [[rng.choice(self._words[rng.choice(domains)][a])[0] for _ in range(3)] for a in range(5)]
        found: dict[tuple[int, ...], None] = {}
        while len(found) < k:
            name = tuple(rng.choice(choices) for choices in words)
            if not any(all(w in known[a] for a, w in enumerate(name)) for known in self._known.values()):
                found[name] = None
            if rng.random() < _FRESH:
                a = rng.randrange(5)
                words[a] = [*words[a], rng.choice(self._words[rng.choice(domains)][a])[0]]
        return [list(name) for name in found]

    def _list(self, turn: Turn, names: list[list[int]]) -> list[int]:
        """Append a list that nothing is asked about the image of; where each name starts."""
        starts = []
        for i, name in enumerate(names):
            turn.text(self._between if i else self._opening)
            starts.append(len(turn.ids))
            turn.text(name, pointer=i)
        turn.text(self._closing)
        return starts

    def _copied(
        self,
        turn: Turn,
        names: list[list[int]],
        order: list[int],
        starts: list[int],
        *,
        opening: list[int] | None = None,
    ) -> None:
        """Append an answer's list."""
        for i, place in enumerate(order):
            turn.text(self._between if i else opening or self._opening, 0.3, place)
            turn.text(names[place], 1.0 if i == 0 else 0.7, place, starts[place])
        turn.text([*self._closing, self.eos], 0.3)

    def choice(self, domain: str, codes: list[tuple[int, ...]], truth: tuple[int, ...]) -> Turn:
        """Which letter?"""
        before, after = self._parts["choice"]
        turn = Turn()
        turn.text(before)
        for i, code in enumerate(codes):
            turn.text((self.newline if i else []) + self._letters[i] + self._dot)
            name = self._after_space[domain][code[0]] + self.name(domain, code)[1:]
            turn.candidate(name, code, truth)
        turn.text(after + self.assistant)
        turn.text(self._letters[codes.index(truth)], 3.0)
        turn.text([self.eos], 0.1)
        return turn

    def yes_no(self, domain: str, code: tuple[int, ...], truth: tuple[int, ...]) -> Turn:
        """Is it this one?"""
        before, after = self._parts["yes"]
        turn = Turn()
        turn.text(before)
        turn.candidate(self.name(domain, code), code, truth)
        turn.text(after + self.assistant)
        turn.text(self._yes if code == truth else self._no, 1.5)
        turn.text([self.eos], 0.1)
        return turn


class Candidates:
    """Draws lists of look-alikes among a domain's training categories.

    The truth is an exchangeable member of its cluster (all are variations of one centre that need not be listed),
    so that no majority of attributes gives it away.
    """

    def __init__(self, domain: str) -> None:
        self.sizes = [len(a.words) for a in DOMAINS[domain].attributes]
        grid = np.stack(np.meshgrid(*[np.arange(s) for s in self.sizes], indexing="ij"), -1).reshape(
            -1, len(self.sizes)
        )
        train = grid[split_of(domain, grid) == 0]
        self.pool = [tuple(row) for row in train.tolist()]
        self.allowed = set(self.pool)

    def varied(self, code: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
        """Another category: one attribute differs (or two, or rarely three)."""
        changed = list(code)
        n = rng.choices((1, 2, 3), (0.5, 0.4, 0.1))[0]
        for a in rng.sample(range(len(code)), n):
            changed[a] = (changed[a] + rng.randrange(1, self.sizes[a])) % self.sizes[a]
        return tuple(changed)

    def cluster(self, truth: tuple[int, ...], k: int, rng: random.Random) -> list[tuple[int, ...]]:
        """Draw k distinct training categories around one centre, the truth among them, in random order."""
        centre = self.varied(truth, rng) if rng.random() < 0.8 else truth
        found = {truth}
        while len(found) < k:
            code = self.varied(centre, rng)
            if code in self.allowed:
                found.add(code)
        listed = sorted(found)
        rng.shuffle(listed)
        return listed

    def anywhere(self, truth: tuple[int, ...], k: int, rng: random.Random) -> list[tuple[int, ...]]:
        """Draw k distinct training categories of all kinds, the truth among them."""
        found = {truth}
        while len(found) < k:
            found.add(rng.choice(self.pool))
        listed = sorted(found)
        rng.shuffle(listed)
        return listed


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A batch: turns behind their image's prefix, each blind to the others.

    Arrays are ``(n, length)``; ``allowed`` is ``(n, length, length)``, True where row may look at column.
    ``copy_targets`` holds, where the next token is copied, the column it is copied from; -1 elsewhere.
    """

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    word_targets: np.ndarray
    candidate_targets: np.ndarray
    pointer_targets: np.ndarray
    copy_targets: np.ndarray
    allowed: np.ndarray


def pack(writer: TurnWriter, turns: list[list[Turn]], *, image_tokens: int, length: int) -> Packed:
    """Lay out one row an image: ``USER: <image>… newline`` once, then its turns; turns that do not fit are dropped."""
    prefix = [*writer.user, *([writer.image] * image_tokens), *writer.newline]
    p, total = len(prefix), len(prefix) + length
    n = len(turns)
    ids = np.full((n, total), writer.eos, np.int64)
    positions = np.zeros((n, total), np.int64)
    labels = np.full((n, total), IGNORE, np.int64)
    weights = np.zeros((n, total), np.float32)
    words = np.full((n, total), -1, np.int64)
    candidates = np.full((n, total), -1, np.int64)
    pointers = np.full((n, total), -1, np.int64)
    copies = np.full((n, total), -1, np.int64)
    owner = np.full((n, total), -1, np.int64)
    ids[:, :p], positions[:, :p], owner[:, :p] = prefix, np.arange(p), 0
    for row, row_turns in enumerate(turns):
        at = p
        for number, turn in enumerate(row_turns, 1):
            m = len(turn.ids)
            if at + m > total:
                continue
            span = slice(at, at + m)
            ids[row, span] = turn.ids
            positions[row, span] = np.arange(p, p + m)
            words[row, span] = turn.word_targets
            candidates[row, span] = turn.candidate_targets
            pointers[row, span] = turn.pointer_targets
            owner[row, span] = number
            answer = np.asarray(turn.weights, np.float32)
            # position i predicts token i + 1
            labels[row, at : at + m - 1] = np.where(answer[1:] > 0, turn.ids[1:], IGNORE)
            weights[row, at : at + m - 1] = answer[1:]
            source = np.asarray(turn.sources[1:])
            copies[row, at : at + m - 1] = np.where(source >= 0, source + at, -1)
            at += m
    causal = np.tril(np.ones((total, total), bool))
    allowed = causal & ((owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0))
    allowed |= np.eye(total, dtype=bool)
    return Packed(
        ids=ids,
        positions=positions,
        labels=labels,
        weights=weights,
        word_targets=words,
        candidate_targets=candidates,
        pointer_targets=pointers,
        copy_targets=copies,
        allowed=allowed,
    )
