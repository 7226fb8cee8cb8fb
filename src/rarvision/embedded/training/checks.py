"""How well the language model answers about validation images while it is trained."""

from __future__ import annotations

import random

import numpy as np
import torch

from rarvision.embedded.training.conversations import IGNORE, pack
from rarvision.embedded.training.course import shown_batch
from rarvision.embedded.training.images import DomainImages
from rarvision.embedded.training.shown import ShownMix, right_answers
from rarvision.embedded.training.trainer import MLLMTrainer

__all__ = ["measure", "measure_shown"]


def measure(
    trainer: MLLMTrainer, images: DomainImages, features: torch.Tensor, groups: list[list[tuple[int, ...]]], device: str
) -> dict[str, float]:
    """Teacher-forced figures on 240 validation images, five look-alikes each, from one seed."""
    rng = random.Random(0)  # noqa: S311 - no secret
    writer, n = trainer.writer, min(240, len(images.codes))
    hits: dict[str, list[bool]] = {"name": [], "first": [], "list": [], "letter": [], "yes": []}
    for start in range(0, n, 60):
        rows, turns = range(start, min(n, start + 60)), []
        for row in rows:
            truth = tuple(int(v) for v in images.codes[row])
            codes = [truth, *rng.sample([c for c in groups[row] if c != truth], 4)]
            rng.shuffle(codes)
            options = [writer.option(images.domain, code, truth) for code in codes]
            turns.append(
                [
                    writer.naming(images.domain, truth),
                    writer.ranking(options, "paper"),
                    writer.choice(options),
                    writer.yes_no(next(option for option in options if option.match)),
                    writer.yes_no(next(option for option in options if not option.match)),
                ]
            )
        packed = pack(writer, turns, image_tokens=trainer.tokens, length=180)
        last = trainer.states(packed, features[start : start + len(rows)].float(), device)[-1]
        guess = (last @ trainer.language_model.get_input_embeddings().weight.T).argmax(-1).cpu().numpy()
        right = (guess == packed.labels) | (packed.labels == IGNORE)
        prefix = trainer.tokens + len(writer.user) + len(writer.newline)
        for r, row_turns in enumerate(turns):
            at = prefix
            for kind, turn in zip(("name", "ranking", "letter", "yes", "yes"), row_turns, strict=True):
                span = np.arange(at, at + len(turn.ids))
                at += len(turn.ids)
                answers = [i for i in span if packed.labels[r, i] != IGNORE]
                if kind == "ranking":
                    hits["first"].append(bool(right[r, answers[: 1 + images.codes.shape[1]]].all()))
                    hits["list"].append(bool(right[r, answers[1 + images.codes.shape[1] :]].all()))
                elif kind == "name":
                    hits["name"].append(bool(right[r, answers].all()))
                else:
                    hits[kind].append(bool(right[r, answers[0]]))
    return {key: float(np.mean(values)) for key, values in hits.items()}


def measure_shown(
    trainer: MLLMTrainer, images: DomainImages, features: torch.Tensor, groups: list[list[tuple[int, ...]]], device: str
) -> dict[str, float]:
    """First answers of 240 rows about validation images and their look-alikes, by form; from one seed."""

    def look_alikes(
        _domain: str, row: int, truth: tuple[int, ...], k: int, rng: random.Random
    ) -> list[tuple[int, ...]]:
        codes = [truth, *rng.sample([c for c in groups[row] if c != truth], k - 1)]
        return rng.sample(codes, k)

    rng = random.Random(0)  # noqa: S311 - no secret
    found: dict[str, list[bool]] = {}
    mix = ShownMix(
        trainer.writer, [images], [0], codes=look_alikes, prompt=lambda _: "paper", image_tokens=trainer.tokens
    )
    for _ in range(12):
        rows = mix.rows(20, rng)
        packed, shown = shown_batch(trainer, rows, [features])
        last = trainer.states(packed, shown, device)[-1]
        guesses = (last @ trainer.language_model.get_input_embeddings().weight.T).argmax(-1).cpu().numpy()
        for form, right in right_answers(rows, packed, guesses).items():
            found.setdefault(form, []).extend(right)
    return {form: float(np.mean(right)) for form, right in found.items()}
