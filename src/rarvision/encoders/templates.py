"""Sentences that names are put into before a text encoder sees them, and named sets of them."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from rarvision.errors import OptionError

__all__ = ["TEMPLATE_SETS", "check_templates", "short_templates"]

TEMPLATE_SETS: Final = MappingProxyType(
    {
        "plain": ("{}",),
        "photo": ("a photo of a {}.",),
        "clip-7": (
            "itap of a {}.",
            "a bad photo of the {}.",
            "a origami {}.",
            "a photo of the large {}.",
            "a {} in a video game.",
            "art of the {}.",
            "a photo of the small {}.",
        ),
    }
)
"""Sets of templates by name, to be given in place of a template.

``plain``: the name alone. ``photo``: CLIP's one sentence for most datasets. ``clip-7``: the ensemble of seven sentences
that CLIP's authors chose on ImageNet by forward selection, for what is seen in photographs of any kind; as many passes
of the text encoder. The vectors of a set are averaged into one (`rarvision.Encoder.encode_texts`).
"""


def check_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The templates, names of sets replaced by what is in them.

    Args:
        templates: Each holds ``{}``, which the name or text replaces, or is the name of one of `TEMPLATE_SETS`; or that
            name alone.

    Raises:
        OptionError: There is none, or one is neither.

    >>> check_templates(["photo", "a drawing of a {}."])
    ('a photo of a {}.', 'a drawing of a {}.')
    """
    if isinstance(templates, str):
        if templates not in TEMPLATE_SETS:
            raise OptionError(
                f"templates must be a list of strings, or one of {', '.join(TEMPLATE_SETS)}, got the string "
                f"{templates!r}; put it in a list"
            )
        return TEMPLATE_SETS[templates]
    found: list[str] = []
    for template in templates:
        if "{}" in template:
            found.append(template)
        elif template in TEMPLATE_SETS:
            found += TEMPLATE_SETS[template]
        else:
            raise OptionError(
                f"every text template needs the field {{}} for the name, or must be one of {', '.join(TEMPLATE_SETS)}; "
                f"got {template!r} in {list(templates)!r}"
            )
    if not found:
        raise OptionError("every text template needs the field {} for the name, got no template")
    return tuple(found)


def short_templates(templates: tuple[str, ...]) -> list[str]:
    """The same as a list to be stored: a set of several by its name alone, which `check_templates` reads."""
    return next(
        ([name] for name, known in TEMPLATE_SETS.items() if known == templates and len(known) > 1), list(templates)
    )
