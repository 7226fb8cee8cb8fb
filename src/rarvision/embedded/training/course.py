"""The course of the language model: what is learned in which phase, and from which rows."""

from __future__ import annotations

import random

import torch

from rarvision.datasets.fieldguide import HELD_OUT_DOMAIN
from rarvision.embedded.training.config import Schedule
from rarvision.embedded.training.conversations import Packed, pack
from rarvision.embedded.training.images import DomainImages
from rarvision.embedded.training.mix import COPIED_TOKENS, HELD_OUT_TOKENS, Mix, Retrieved
from rarvision.embedded.training.shown import ShownMix, ShownRow
from rarvision.embedded.training.trainer import MLLMTrainer

__all__ = ["Course", "shown_batch"]

_HELD_OUT_ROWS = 8
_SHOWN_ROWS = 12


class Course:
    """What is learned in which phase.

    First to compare, on all kinds of questions; then, with lists in the majority, to copy as well; then, with longer
    lists, to use what is shown of the candidates.
    """

    def __init__(
        self,
        trainer: MLLMTrainer,
        data: list[DomainImages],
        features: list[torch.Tensor],
        retrieved: dict[str, Retrieved],
        schedule: Schedule,
    ) -> None:
        self._trainer, self._features, self._schedule = trainer, features, schedule
        self._device = str(next(trainer.parameters()).device)
        self._begin = 0
        self.mix = Mix(trainer.writer, data, retrieved, schedule)
        self._shown = ShownMix(
            trainer.writer,
            data,
            [part for part, images in enumerate(data) if images.domain != HELD_OUT_DOMAIN],
            codes=self.mix.codes,
            prompt=self.mix.prompt,
            image_tokens=trainer.tokens,
        )

    def enter(self, phase: str) -> None:
        """Begin a phase; its steps count from 0 and draw other questions than the phases before."""
        schedule, mix = self._schedule, self.mix
        if phase == "mllm-lists":
            self._begin, mix.shares, mix.nonce = schedule.mllm_steps, (0.68, 0.14, 0.07, 0.11), True
        elif phase == "mllm-shown":
            self._begin, mix.long = schedule.mllm_steps + schedule.mllm_list_steps, True
            mix.shares, mix.tokens = (0.5, 0.2, 0.1, 0.2), schedule.mllm_long_tokens

    def loss_of(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step of the phase, and its parts."""
        trainer, mix, schedule, device = self._trainer, self.mix, self._schedule, self._device
        step += self._begin
        rows, turns = mix.rows(step, _HELD_OUT_ROWS, held_out=True)
        length = HELD_OUT_TOKENS + (0 if mix.nonce else COPIED_TOKENS)
        held_out = pack(trainer.writer, turns, image_tokens=trainer.tokens, length=length)
        single_names, _ = trainer.loss(held_out, self._gather(rows), device)
        captions = step < schedule.mllm_caption_steps
        n = schedule.mllm_batch * (4 if captions else 1) * schedule.mllm_tokens // mix.tokens
        rows, turns = mix.rows(step, n // 2 if mix.long else n, held_out=False)
        if captions:
            turns = [t[:1] for t in turns]
        length = 8 if captions else mix.tokens
        packed = pack(trainer.writer, turns, image_tokens=trainer.tokens, length=length)
        loss, figures = trainer.loss(packed, self._gather(rows), device)
        loss = loss + 0.5 * single_names
        figures["held"] = float(single_names.detach())
        if mix.long:
            rng = random.Random(f"{schedule.seed}-{step}-shown")  # noqa: S311 - no secret
            shown, more = trainer.loss(
                *shown_batch(trainer, self._shown.rows(_SHOWN_ROWS, rng), self._features), device
            )
            loss = loss + shown
            figures |= {f"shown {key}": value for key, value in more.items()}
        return loss, figures

    def _gather(self, rows: list[tuple[int, int]]) -> torch.Tensor:
        return torch.stack([self._features[part][row] for part, row in rows]).float()


def shown_batch(
    trainer: MLLMTrainer, rows: list[ShownRow], features: list[torch.Tensor]
) -> tuple[Packed, torch.Tensor]:
    """Rows as tokens, and the features of their images; ``features`` are those of each set."""
    packed = pack(
        trainer.writer, [row.turns for row in rows], image_tokens=trainer.tokens, prefixes=[row.prefix for row in rows]
    )
    return packed, torch.cat([features[row.part][row.images] for row in rows]).float()
