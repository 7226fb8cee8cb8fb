"""The prompts: the paper's (Appendix B, Fig. 13), its variants, and those of the other strategies."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from rarvision.errors import OptionError

__all__ = [
    "CHOICE_PROMPT",
    "DESCRIBED",
    "MAX_OPTIONS",
    "NAMING_PROMPT",
    "RANKING_PROMPTS",
    "YES_NO_PROMPT",
    "choice_prompt",
    "exemplar_note",
    "format_list",
    "option_letters",
    "query_note",
    "ranking_prompt",
    "yes_no_prompt",
]

MAX_OPTIONS = len(ascii_uppercase)

RANKING_PROMPTS = {
    "paper": (
        "Please play the role of a classification expert, and sort the provided categories from high to low "
        "according to the top-{k} similarity with the input image. Here are the optional categories:{categories}."
    ),
    "in-context": (
        "Please play the role of a classification expert, and sort the provided categories from high to low "
        "according to the top {k} similarity with the input image. Here are the optional categories:{categories}. "
        "Your answer should follow the following format, like:['category A', 'category B', 'category C', "
        "'category D', 'category E']. Only choose {k} categories, and no further information."
    ),
    "long": (
        "Please play the role of a classification expert, suppose you are given a picture and {k} categories, then "
        "you need to sort the provided {k} categories from high to low according to the top {k} similarity with the "
        "input image. For example, you are given a picture of a chair, and the provided categories are ['armchair', "
        "'recliner', 'chair', 'rocking_chair', 'loveseat'], the sorted categories should be like: ['chair', "
        "'armchair', 'rocking_chair', 'recliner', 'loveseat'], and no more information. Now, according to the input "
        "picture, sort the provided categories:{categories}."
    ),
}
"""Ranking prompts by name; ``{k}`` and ``{categories}`` are filled in. Source: the paper, Appendix B and Fig. 13."""

CHOICE_PROMPT = (
    "Which category does the image show?\n{options}\nAnswer with the option's letter from the given choices directly."
)
NAMING_PROMPT = "Which category does the image show? Answer with its name only."
YES_NO_PROMPT = "Does the image show this category: {category}? Answer yes or no."

DESCRIBED = "What is known of the categories:\n"


def query_note(number: int) -> str:
    """Says behind the image that is asked about that it is the one, where others are shown; the first is 1."""
    which = "The first image" if number == 1 else f"Image {number}"
    return f"{which} is the one to classify.\n"


def exemplar_note(first: int, count: int, name: str) -> str:
    """Says behind a category's images which category they show; ``first`` is the number of the first of them."""
    if count == 1:
        return f"Image {first} shows: {name}.\n"
    return f"Images {first} to {first + count - 1} show: {name}.\n"


def format_list(names: Sequence[str]) -> str:
    """Write names as the paper does: ``['a', 'b']``; a name with an apostrophe stays as it is."""
    return "['" + "', '".join(names) + "']"


def ranking_prompt(names: Sequence[str], template: str = RANKING_PROMPTS["paper"]) -> str:
    """Fill a ranking template; raises `OptionError` where ``{categories}`` is missing from it."""
    if "{categories}" not in template:
        raise OptionError(f"a ranking prompt needs the field {{categories}}; got {template!r}")
    return template.replace("{k}", str(len(names))).replace("{categories}", format_list(names))


def option_letters(n: int) -> list[str]:
    """The first n capital letters; raises `OptionError` above 26."""
    if not 1 <= n <= MAX_OPTIONS:
        raise OptionError(f"letters serve 1 to {MAX_OPTIONS} options, got {n}; use the strategy 'likelihood' for more")
    return list(ascii_uppercase[:n])


def choice_prompt(names: Sequence[str], template: str = CHOICE_PROMPT) -> str:
    """Fill the multiple-choice template with lettered options, one a line."""
    if "{options}" not in template:
        raise OptionError(f"a choice prompt needs the field {{options}}; got {template!r}")
    options = "\n".join(f"{letter}. {name}" for letter, name in zip(option_letters(len(names)), names, strict=True))
    return template.replace("{options}", options)


def yes_no_prompt(name: str, template: str = YES_NO_PROMPT) -> str:
    """Fill the yes/no template."""
    if "{category}" not in template:
        raise OptionError(f"a yes/no prompt needs the field {{category}}; got {template!r}")
    return template.replace("{category}", name)
