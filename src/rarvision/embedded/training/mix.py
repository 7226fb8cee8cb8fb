"""What is asked in a batch: which images, and which questions about each."""

from __future__ import annotations

import random

import numpy as np

from rarvision.datasets.fieldguide import HELD_OUT_DOMAIN
from rarvision.embedded.training.config import Schedule
from rarvision.embedded.training.conversations import Candidates, Turn, TurnWriter
from rarvision.embedded.training.images import DomainImages

__all__ = ["COPIED_TOKENS", "HELD_OUT_TOKENS", "Mix", "Retrieved"]

Retrieved = np.ndarray
"""For each training image, the codes of what the small CLIP retrieved, best first; -1 for none."""

_JUDGED = 3
_COPIED = 6
HELD_OUT_TOKENS, COPIED_TOKENS = 44, 14 * _COPIED + 12
"""At most, of a row of the held-out domain: its questions, and the list that it copies in the first phase."""
_TOKENS = {"ranking": (12, 15), "repeat": (12, 19), "choice": (8, 4)}
"""At most, of a question with its answer: for each name, and besides."""


def _list_length(rng: random.Random, *, long: bool) -> int:
    kind = rng.random()
    if long and kind < 0.6:
        return max(rng.randint(11, 20), rng.randint(11, 20))
    if kind < 0.45:
        return 5
    return rng.randint(2, 8) if kind < 0.85 else rng.randint(9, 20)


class Mix:
    """Draws the questions of a batch."""

    def __init__(
        self, writer: TurnWriter, data: list[DomainImages], retrieved: dict[str, Retrieved], schedule: Schedule
    ) -> None:
        self.writer, self.data, self.retrieved, self.schedule = writer, data, retrieved, schedule
        self.lists = {d.domain: Candidates(d.domain) for d in data}
        self.shares = (0.33, 0.42, 0.18, 0.07)
        self.nonce = self.long = False
        self.tokens = schedule.mllm_tokens

    def codes(self, domain: str, row: int, truth: tuple[int, ...], k: int, rng: random.Random) -> list[tuple[int, ...]]:
        """Draw k candidates for an image, the truth among them: retrieved, look-alikes, or any."""
        kind = rng.random()
        if kind < 0.35 and k > 1:
            codes = [tuple(code) for code in self.retrieved[domain][row, :k].tolist() if code[0] >= 0]
            if truth not in codes:
                codes = [truth, *codes[: k - 1]]
            if len(codes) == k:
                return rng.sample(codes, k)
        if kind < 0.9:
            return self.lists[domain].cluster(truth, k, rng)
        return self.lists[domain].anywhere(truth, k, rng)

    def single_names(self, domain: str, truth: tuple[int, ...], rng: random.Random) -> list[Turn]:
        """Ask about one image of the held-out domain: its name, and whether single names fit; nothing is ranked.

        In the first phase a list of its names is also repeated, as it is.
        """
        turns = [self.writer.naming(domain, truth)]
        for _ in range(_JUDGED):
            code = truth
            if rng.random() < 0.5:
                code = next(c for c in self.lists[domain].cluster(truth, 2, rng) if c != truth)
            turns.append(self.writer.yes_no(self.writer.option(domain, code, truth)))
        k = rng.randint(2, _COPIED)
        if not self.nonce:
            codes = self.lists[domain].cluster(truth, k, rng)
            turns.append(self.writer.repeat([self.writer.name(domain, code) for code in codes]))
        return turns

    def copying(self, domain: str, codes: list[tuple[int, ...]], rng: random.Random) -> Turn:
        """A list to copy, without a look at the image.

        In the second phase its names are of nothing, and half of the lists stand in the ranking question: so copying
        is learned whatever the words, those of the held-out domain among them, and its categories are never in a list.
        """
        if not self.nonce:
            return self.writer.repeat([self.writer.name(domain, code) for code in codes])
        names = self.writer.nonce(len(codes), rng)
        if rng.random() < 0.5:
            return self.writer.repeat(names)
        return self.writer.framed(names, rng.randrange(len(names)), self.prompt(rng))

    @staticmethod
    def prompt(rng: random.Random) -> str:
        """The name of a ranking prompt, for the most part the paper's."""
        return rng.choices(("paper", "in-context", "long"), (0.7, 0.15, 0.15))[0]

    def turns(self, domain: str, row: int, truth: tuple[int, ...], rng: random.Random) -> list[Turn]:
        """Questions about one image of a ranking domain, up to the row's budget of tokens."""
        writer, budget = self.writer, self.tokens
        made = [writer.naming(domain, truth)]
        left = budget - len(made[0].ids)
        kinds = ["ranking", "choice"]
        if self.long and rng.random() < 0.3:
            kinds.reverse()  # a long list leaves no room for letters
        while left > 12:
            kind = kinds.pop(0) if kinds else rng.choices(("ranking", "choice", "yes", "repeat"), self.shares)[0]
            if kind == "yes":
                near = self.lists[domain].cluster(truth, 2, rng)
                code = truth if rng.random() < 0.5 else next(c for c in near if c != truth)
                turn = writer.yes_no(writer.option(domain, code, truth))
            else:
                each, besides = _TOKENS[kind]
                k = max(2, min(_list_length(rng, long=self.long), (left - besides) // each))
                codes = self.codes(domain, row, truth, k, rng)
                options = [writer.option(domain, code, truth) for code in codes]
                if kind == "ranking":
                    turn = writer.ranking(options, self.prompt(rng))
                elif kind == "repeat":
                    turn = self.copying(domain, codes, rng)
                else:
                    turn = writer.choice(options)
            if len(turn.ids) > left:
                break
            made.append(turn)
            left -= len(turn.ids)
        return made

    def rows(self, step: int, n: int, *, held_out: bool) -> tuple[list[tuple[int, int]], list[list[Turn]]]:
        """Choose n images and their questions: (set, row) and turns; the held-out domain never sees a list."""
        rng = random.Random(f"{self.schedule.seed}-{step}-{held_out}")  # noqa: S311 - no secret
        which = [i for i, d in enumerate(self.data) if (d.domain == HELD_OUT_DOMAIN) == held_out]
        rows, turns = [], []
        for i in range(n):
            part = which[(step * n + i) % len(which)]
            data = self.data[part]
            row = rng.randrange(len(data.codes))
            truth = tuple(int(v) for v in data.codes[row])
            rows.append((part, row))
            if held_out:
                turns.append(self.single_names(data.domain, truth, rng))
            else:
                turns.append(self.turns(data.domain, row, truth, rng))
        return rows, turns
