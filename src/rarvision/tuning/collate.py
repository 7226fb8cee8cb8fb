"""Lessons as a batch of tensors: the same tokens as at answering, with labels on the answer and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from rarvision.chat.base import ChatRequest
from rarvision.chat.preparing import RequestEncoder
from rarvision.errors import ContextLengthError, ImageError
from rarvision.tuning.lessons import Lesson

__all__ = ["IGNORED", "Collator"]

IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """An answer's tokens and how many of them, at its end, are learned; the options' last tokens."""

    tokens: list[int]
    learned: int
    options: list[int]


@final
class Collator:
    """Opens images, renders questions, appends answers; can be sent to another process.

    Args:
        encoder: Of the model that is trained.
        end: Tokens that end an answer.
        context_limit: Tokens that the model holds; None where unknown.
    """

    def __init__(self, encoder: RequestEncoder, *, end: Sequence[int], context_limit: int | None) -> None:
        self._encoder = encoder
        self._end = list(end)
        self._limit = context_limit

    def __call__(self, lessons: Sequence[Lesson]) -> dict[str, Any]:
        """A batch, padded on the left.

        Returns:
            The model's inputs (``input_ids``, ``attention_mask`` (n, width), pixels, …), and for the loss: ``labels``
            (n, width), ``IGNORED`` on everything but the answer (the question, the image, padding); ``keep``, from
            which column, counted from the end, logits are needed; and, for ranking losses, ``options`` (n, k), the
            tokens that the answer may begin with, and ``order`` (n, k), places in them, the best first, both padded
            with -1.

        Raises:
            ContextLengthError: A lesson does not fit; names it.
            ImageError: An image cannot be read; names it.
        """
        import torch

        requests = [ChatRequest.of(lesson.prompt, _opened(lesson)) for lesson in lessons]
        answers = [self._answer(lesson) for lesson in lessons]
        prompts = self._encoder.prompts(requests).extended([answer.tokens for answer in answers])
        for lesson, length in zip(lessons, prompts.lengths, strict=True):
            self._check_length(lesson, length)
        ids = prompts.inputs["input_ids"]
        labels = torch.full_like(ids, IGNORED)
        for row, answer in enumerate(answers):
            labels[row, -answer.learned :] = torch.tensor(answer.tokens[-answer.learned :])
        batch = {**prompts.inputs, "labels": labels, "keep": max(answer.learned for answer in answers) + 1}
        if answers[0].options:
            batch["options"] = _padded([answer.options for answer in answers])
            batch["order"] = _padded([list(lesson.order) for lesson in lessons])
        return batch

    def _answer(self, lesson: Lesson) -> _Answer:
        if not lesson.options:
            tokens = self._encoder.encode(lesson.answer) + (self._end if lesson.ends else [])
            return _Answer(tokens=tokens, learned=len(tokens), options=[])
        each = self._encoder.option_tokens(lesson.options)  # alike but for the last token
        return _Answer(tokens=each[lesson.order[0]], learned=1, options=[tokens[-1] for tokens in each])

    def _check_length(self, lesson: Lesson, length: int) -> None:
        if self._limit is not None and length > self._limit:
            raise ContextLengthError(
                f"{lesson.id}: question and answer take {length} tokens, but the context of the model holds "
                f"{self._limit}: show fewer candidates (a smaller k), or take a model with a longer context"
            )


def _opened(lesson: Lesson) -> Any:
    try:
        return lesson.image()
    except ImageError as error:
        raise type(error)(f"{lesson.id}: {error}; mend or remove it, and give the same command again") from error


def _padded(rows: Sequence[Sequence[int]]) -> Any:
    import torch

    width = max(map(len, rows))
    return torch.tensor([[*row, *([-1] * (width - len(row)))] for row in rows])
