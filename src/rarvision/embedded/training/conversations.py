"""Stage 5's data: for one image several questions, packed behind one copy of the image's tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from rarvision.datasets.fieldguide import DOMAINS, split_of
from rarvision.ranking.prompts import (
    DESCRIBED,
    NAMING_PROMPT,
    RANKING_PROMPTS,
    choice_prompt,
    exemplar_note,
    option_letters,
    ranking_prompt,
    yes_no_prompt,
)

__all__ = ["Candidates", "Option", "Packed", "Turn", "TurnWriter", "pack"]

IGNORE = -100
_FRESH = 0.1
_ATTRIBUTES = 5  # of every domain
REPEAT_PROMPT = "Repeat this list:{categories}"
"""Teaches copying apart from ranking: the answer has nothing to do with the image."""


@dataclass(frozen=True)
class Option:
    """A name that may be chosen, as tokens at a text's start and after a space.

    ``fits`` says of each of its words whether it fits the image (1, 0; -1 where the word tells nothing), ``match``
    whether it is the image's category.
    """

    ids: list[int]
    spaced: list[int]
    fits: tuple[int, ...]
    match: bool


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
    look_targets: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def text(self, ids: list[int], weight: float = 0.0, pointer: int = -1, source: int = -1) -> None:
        """Append tokens; with a weight, as part of the answer; with a source, copied from there on."""
        self.pointer_targets += [pointer] * len(ids)
        self.sources += range(source, source + len(ids)) if source >= 0 else [-1] * len(ids)
        self.ids += ids
        self.weights += [weight] * len(ids)
        self.word_targets += [-1] * len(ids)
        self.candidate_targets += [-1] * len(ids)

    def candidate(self, option: Option, index: int = -1, *, spaced: bool = False) -> None:
        """Append a candidate's name inside a question."""
        ids = option.spaced if spaced else option.ids
        self.pointer_targets += [index] * len(ids)
        self.sources += [-1] * len(ids)
        self.ids += ids
        self.weights += [0.0] * len(ids)
        self.word_targets += [-1] * (len(ids) - len(option.fits)) + list(option.fits)
        self.candidate_targets += [-1] * (len(ids) - 1) + [int(option.match)]

    def append(self, other: Turn) -> None:
        """Append a whole question with its answer."""
        at = len(self.ids)
        for name in ("ids", "weights", "word_targets", "candidate_targets", "pointer_targets"):
            getattr(self, name).extend(getattr(other, name))
        self.sources += [source if source < 0 else source + at for source in other.sources]
        self.look_targets |= {at + place: values for place, values in other.look_targets.items()}


class TurnWriter:
    """Writes questions as token ids without running the tokenizer each time; equal to it token for token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.eos = int(tokenizer.eos_token_id)
        self.image = int(tokenizer.convert_tokens_to_ids("<image>"))
        self.user = self.encode("USER: ")
        self.newline = self.encode("\n")
        self.assistant = self.encode(" ASSISTANT:")
        self._opening, self._between, self._closing = (self.encode(t) for t in ("['", "', '", "']"))
        self._letters = [self.encode(letter) for letter in option_letters(26)]
        self._dot = self.encode(".")
        self._yes, self._no = self.encode("yes"), self.encode("no")
        self._described, self._colon = self.encode(DESCRIBED), self.encode(":")
        self._words = {
            name: [
                [self.encode(word if a == 0 else f" {word}") for word in attribute.words]
                for a, attribute in enumerate(domain.attributes)
            ]
            for name, domain in DOMAINS.items()
        }
        self._known = {
            name: [{ids[0] for ids in words} for words in attributes] for name, attributes in self._words.items()
        }
        self._after_space = {
            name: [self.encode(f" {word}") for word in domain.attributes[0].words] for name, domain in DOMAINS.items()
        }
        for name, attributes in self._words.items():
            if any(len(ids) != 1 for words in attributes for ids in words):
                raise ValueError(f"{name}: every word must be one token")
        mark = "\x00"
        self._parts = {
            "naming": [self.encode(NAMING_PROMPT)],
            "choice": [self.encode(p) for p in self._cut(choice_prompt([mark]).replace(f"A. {mark}", mark), mark)],
            "repeat": [self.encode(REPEAT_PROMPT.removesuffix("{categories}"))],
            "yes": [self.encode(p) for p in self._cut(yes_no_prompt(mark), mark)],
        }
        self._ranking = {
            (kind, k): [self.encode(p) for p in self._cut(self._ranking_text(template, k, mark), mark)]
            for kind, template in RANKING_PROMPTS.items()
            for k in range(2, 21)
        }

    def encode(self, text: str) -> list[int]:
        """Tokens of any text."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text_of(self, option: Option) -> str:
        """An option's name."""
        return str(self._tokenizer.decode(option.ids))

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

    def option(self, domain: str, code: tuple[int, ...], truth: tuple[int, ...]) -> Option:
        """A category by its name."""
        ids = self.name(domain, code)
        fits = tuple(int(a == b) for a, b in zip(code, truth, strict=True))
        return Option(ids, self._after_space[domain][code[0]] + ids[1:], fits, code == truth)

    def plate(self, text: str, *, match: bool) -> Option:
        """A category by a name that tells nothing."""
        return Option(self.encode(text), self.encode(f" {text}"), (), match)

    def naming(self, domain: str, truth: tuple[int, ...]) -> Turn:
        """What is this? The name."""
        turn = Turn()
        turn.text(self._parts["naming"][0] + self.assistant)
        turn.text([*self.name(domain, truth), self.eos], 1.0)
        return turn

    def ranking(self, options: list[Option], kind: str) -> Turn:
        """Sort these: truth first, the rest in the order given."""
        before, after = self._ranking[kind, len(options)]
        turn = Turn()
        turn.text(before)
        starts = []
        for i, option in enumerate(options):
            turn.text(self._between if i else self._opening)
            starts.append(len(turn.ids))
            turn.candidate(option, i)
        turn.text(self._closing + after + self.assistant)
        order = sorted(range(len(options)), key=lambda i: not options[i].match)
        self._copied(turn, [option.ids for option in options], order, starts)
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

    def nonce(self, k: int, rng: random.Random) -> list[list[int]]:
        """Draw k distinct names of nothing, alike as look-alikes are: words of all domains, in no category's name."""
        domains = list(self._words)
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

    def choice(self, options: list[Option]) -> Turn:
        """Which letter?"""
        before, after = self._parts["choice"]
        turn = Turn()
        turn.text(before)
        for i, option in enumerate(options):
            turn.text((self.newline if i else []) + self._letters[i] + self._dot)
            turn.candidate(option, spaced=True)
        turn.text(after + self.assistant)
        turn.text(self._letters[[option.match for option in options].index(True)], 3.0)
        turn.text([self.eos], 0.1)
        return turn

    def yes_no(self, option: Option) -> Turn:
        """Is it this one?"""
        before, after = self._parts["yes"]
        turn = Turn()
        turn.text(before)
        turn.candidate(option)
        turn.text(after + self.assistant)
        turn.text(self._yes if option.match else self._no, 1.5)
        turn.text([self.eos], 0.1)
        return turn

    def images(self, n: int) -> list[int]:
        """What a user's turn begins with: an image of n tokens."""
        return [*self.user, *([self.image] * n), *self.newline]

    def exemplars(
        self, turn: Turn, option: Option, first: int, looks: list[tuple[int, ...]], *, image_tokens: int
    ) -> None:
        """Append a candidate's images and which it is, as `rarvision.ranking.showing` does.

        Args:
            turn: What comes before.
            option: The candidate.
            first: The number of its first image, from 1.
            looks: For each image, which attributes are those of the image that is asked about.
            image_tokens: Of each image.
        """
        for look in looks:
            turn.text([*([self.image] * image_tokens), *self.newline])
            turn.look_targets[len(turn.ids) - 1] = look
        before, after = exemplar_note(first, len(looks), "\x00").split("\x00")
        turn.text(self.encode(before))
        turn.candidate(option)
        turn.text(self.encode(after))

    def described(self, turn: Turn, options: list[Option], descriptions: list[Option]) -> None:
        """Append what is known of the candidates."""
        turn.text(self._described)
        for option, description in zip(options, descriptions, strict=True):
            turn.candidate(option)
            turn.text(self._colon)
            turn.candidate(description, spaced=True)
            turn.text(self.newline)


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
    ``look_targets`` is ``(n, length, attributes)``.
    """

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    word_targets: np.ndarray
    candidate_targets: np.ndarray
    pointer_targets: np.ndarray
    copy_targets: np.ndarray
    look_targets: np.ndarray
    allowed: np.ndarray


def pack(
    writer: TurnWriter,
    turns: list[list[Turn]],
    *,
    image_tokens: int,
    length: int | None = None,
    prefixes: list[Turn] | None = None,
) -> Packed:
    """Lay out one row an image: what all its turns see, once, then its turns; turns that do not fit are dropped.

    Args:
        writer: Writes the tokens.
        turns: Of each row.
        image_tokens: Of the image, where there are no prefixes.
        length: Places for a row's turns; None for as many as the longest row needs.
        prefixes: What the turns of a row see; by default ``USER: <image>… newline``.
    """
    n = len(turns)
    if prefixes is None:
        plain = Turn()
        plain.text(writer.images(image_tokens))
        prefixes = [plain] * n
    if length is None:
        total = max(sum(len(t.ids) for t in [p, *row]) for p, row in zip(prefixes, turns, strict=True))
    else:
        total = max(len(p.ids) for p in prefixes) + length
    ids = np.full((n, total), writer.eos, np.int64)
    positions = np.zeros((n, total), np.int64)
    labels = np.full((n, total), IGNORE, np.int64)
    weights = np.zeros((n, total), np.float32)
    words = np.full((n, total), -1, np.int64)
    candidates = np.full((n, total), -1, np.int64)
    pointers = np.full((n, total), -1, np.int64)
    copies = np.full((n, total), -1, np.int64)
    looks = np.full((n, total, _ATTRIBUTES), -1, np.int64)
    owner = np.full((n, total), -1, np.int64)
    for row, (prefix, row_turns) in enumerate(zip(prefixes, turns, strict=True)):
        at, p = 0, len(prefix.ids)
        for number, turn in enumerate([prefix, *row_turns]):
            m = len(turn.ids)
            if at + m > total:
                continue
            span = slice(at, at + m)
            ids[row, span] = turn.ids
            positions[row, span] = np.arange(p, p + m) if number else np.arange(m)
            words[row, span] = turn.word_targets
            candidates[row, span] = turn.candidate_targets
            pointers[row, span] = turn.pointer_targets
            owner[row, span] = number
            for place, values in turn.look_targets.items():
                looks[row, at + place] = values
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
        look_targets=looks,
        allowed=allowed,
    )
