"""What one step of training learns from: an image, a question, the answer that counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL.Image import Image

from rarvision.datasets.base import Dataset
from rarvision.errors import DatasetError
from rarvision.images import Picture, load_image
from rarvision.ranking.forms import strategy_template
from rarvision.ranking.prompts import MAX_OPTIONS, choice_prompt, format_list, option_letters, ranking_prompt
from rarvision.tuning.manifest import TuningExample
from rarvision.tuning.recipes import Recipe

__all__ = ["ALL_NAMES_PROMPT", "Lesson", "lessons_of", "naming_lessons", "picture_of"]

ALL_NAMES_PROMPT = (
    "Which category does the image show? Choose one of these categories:{categories}. Answer with its name only."
)
"""The question of the baseline without retrieval, with every name in it."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One question and its answer.

    Attributes:
        id: For messages.
        image: Opens the RGB image; can be sent to another process.
        prompt: The question.
        answer: The text that is learned; empty where options are.
        ends: Whether the end of the answer is learned as well.
        options: What the answer may begin with, in the order shown; for a ranking loss over them.
        order: Places in ``options``, the best first.
    """

    id: str
    image: Callable[[], Image]
    prompt: str
    answer: str = ""
    ends: bool = True
    options: tuple[str, ...] = ()
    order: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Characters of question and answer; for finding the longest."""
        return len(self.prompt) + len(self.answer)


def lessons_of(examples: Sequence[TuningExample], recipe: Recipe) -> list[Lesson]:
    """What a recipe learns from ranking examples, in their order.

    Raises:
        DatasetError: An example shows more names than there are letters, with the objective ``choice``.
        OptionError: The recipe's prompt lacks its field.
    """
    if not examples:
        raise DatasetError("there are no examples to train on")
    template = strategy_template(recipe.objective, recipe.prompt)
    return [_lesson(example, recipe, template) for example in examples]


def _lesson(example: TuningExample, recipe: Recipe, template: str) -> Lesson:
    image = partial(load_image, Path(example.image))
    if recipe.objective == "choice":
        shown = tuple(dict.fromkeys(example.candidates))  # a name has one letter, however often it was retrieved
        if len(shown) > MAX_OPTIONS:
            raise DatasetError(
                f"example {example.id!r} shows {len(shown)} names, but letters serve {MAX_OPTIONS}: make the manifest "
                "with a smaller k, or use the objective 'likelihood'"
            )
        places = {name: place for place, name in enumerate(shown)}
        return Lesson(
            id=example.id,
            image=image,
            prompt=choice_prompt(shown, template),
            options=tuple(option_letters(len(shown))),
            order=tuple(places[name] for name in dict.fromkeys(example.target)),
        )
    prompt = ranking_prompt(example.candidates, template)
    if recipe.objective == "likelihood":
        return Lesson(id=example.id, image=image, prompt=prompt, answer=f"['{example.target[0]}'", ends=False)
    return Lesson(id=example.id, image=image, prompt=prompt, answer=format_list(example.target))


def naming_lessons(dataset: Dataset, names: Sequence[str]) -> list[Lesson]:
    """Name each image of a labelled dataset, with all names in the question.

    Raises:
        DatasetError: An image has no label, or one that is not among the names.
    """
    prompt = ranking_prompt(names, ALL_NAMES_PROMPT)
    known = set(names)
    lessons = []
    for index, item in enumerate(dataset.items):
        if item.label is None or item.label not in known:
            raise DatasetError(
                f"{item.source}: expected a label that is among the {len(known)} names, got {item.label!r}"
            )
        image = partial(picture_of, dataset, index)
        lessons.append(Lesson(id=item.source, image=image, prompt=prompt, answer=item.label))
    if not lessons:
        raise DatasetError(f"{dataset.name}: there are no images to train on")
    return lessons


def picture_of(dataset: Dataset, index: int) -> Image:
    """The image of a sample, cut to its box where it has one."""
    sample = dataset[index]
    image = load_image(sample.image)
    if sample.box_xyxy is None:
        return image
    sample.check_size(image.size)
    return Picture.of(image).cropped(sample.box_xyxy).whole()
