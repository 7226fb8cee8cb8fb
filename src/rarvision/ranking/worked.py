"""A worked example: earlier turns of the conversation, in which the same question about another image is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL.Image import Image

from rarvision.chat.base import Message
from rarvision.errors import InputError
from rarvision.ranking.forms import QuestionForm
from rarvision.ranking.prompts import format_list, option_letters
from rarvision.types import Ranking

__all__ = ["NoExample", "WorkedExample", "example_images", "noted", "worked_turns"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WorkedExample:
    """An image whose category is known, and the candidates that retrieval has for it.

    Examples are told apart as objects, as images are: give the same one for all questions that are to share it.

    Attributes:
        image: RGB.
        truth: Its category, one of the candidates.
        candidates: At least two distinct names, in retrieval's order.
        order: Permutation of their places: the candidate at ``order[i]`` is shown at i. Shuffle it, since where the
            truth stands would else tell how far to trust retrieval's order.

    Raises:
        InputError: Fewer than two names, repeated ones, the truth not among them, or no permutation.
    """

    image: Image
    truth: str
    candidates: tuple[str, ...]
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(set(self.candidates)) < max(2, len(self.candidates)) or self.truth not in self.candidates:
            raise InputError(
                f"a worked example needs at least two distinct candidates with the truth among them, got "
                f"{list(self.candidates)} and {self.truth!r}"
            )
        if sorted(self.order) != list(range(len(self.candidates))):
            raise InputError(f"order must be a permutation of range({len(self.candidates)}), got {self.order}")

    @property
    def shown(self) -> tuple[str, ...]:
        """The candidates as the example's question names them."""
        return tuple(self.candidates[place] for place in self.order)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoExample:
    """Stands for an example that could not be had, so that the ranking says so.

    Attributes:
        reason: Why, and what to do about it.
    """

    reason: str


def worked_turns(example: WorkedExample, form: QuestionForm) -> tuple[Message, ...]:
    """The example as turns: the question in the form of the one that follows, and the right answer.

    Answers: ``generate`` and ``likelihood``: the list, the truth first and then the others in retrieval's order;
    ``likelihood`` without the list: the name; ``choice``: the letter; ``pointwise``: two questions about the same
    image, yes for the truth and then no for retrieval's first among the others.
    """
    if form.strategy == "pointwise":
        other = next(name for name in example.candidates if name != example.truth)
        asked: Sequence[tuple[tuple[str, ...], str]] = [((example.truth,), "yes"), ((other,), "no")]
    else:
        asked = [(example.shown, _answer(example, form))]
    return tuple(
        message
        for names, answer in asked
        for message in (
            Message(role="user", parts=(example.image, form.question(names))),
            Message(role="assistant", parts=(answer,)),
        )
    )


def example_images(form: QuestionForm) -> int:
    """How many images an example adds to a request: the same one in each of its turns."""
    return 2 if form.strategy == "pointwise" else 1


def noted(ranking: Ranking, worked: WorkedExample | NoExample | None) -> Ranking:
    """A ranking that was to be asked for after an example; where there was none, it is repaired at best, and says why.

    Args:
        ranking: What came.
        worked: What was given; None where nothing was.
    """
    if isinstance(worked, WorkedExample):
        return ranking
    why = "none was given" if worked is None else worked.reason
    reason = f"asked without a worked example: {why}"
    if ranking.status == "ranked":
        return replace(ranking, status="repaired", reason=reason)
    return replace(ranking, reason=f"{ranking.reason}; {reason}")


def _answer(example: WorkedExample, form: QuestionForm) -> str:
    if form.strategy == "choice":
        return option_letters(len(example.candidates))[example.shown.index(example.truth)]
    if not form.with_list:
        return example.truth
    return format_list([example.truth, *(name for name in example.candidates if name != example.truth)])
