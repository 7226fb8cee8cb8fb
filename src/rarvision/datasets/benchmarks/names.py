"""From the names of folders and lists to names that can be read, and how two classes of one name are told apart."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rarvision.errors import DatasetError

__all__ = ["camel_case", "distinct", "first_name", "lower", "reversed_path", "spaces", "without_number", "year_first"]


def spaces(text: str) -> str:
    """Underscores as spaces, single.

    Example:
        >>> spaces("apple_pie")
        'apple pie'
    """
    return " ".join(text.replace("_", " ").split())


def lower(text: str) -> str:
    """As `spaces`, in lower case.

    Example:
        >>> lower("Egyptian_Mau")
        'egyptian mau'
    """
    return spaces(text).lower()


def without_number(text: str) -> str:
    """Without the number, or the id of WordNet, that a folder's name begins with.

    Example:
        >>> without_number("001.Black_footed_Albatross"), without_number("n02096294-Australian_terrier")
        ('Black footed Albatross', 'Australian terrier')
    """
    return spaces(re.sub(r"^(\d+\.|n\d+-)", "", text))


def year_first(text: str) -> str:
    """The year at the end of a car's name in front, as CoOp has it; a name without one stays.

    Example:
        >>> year_first("AM General Hummer SUV 2000")
        '2000 AM General Hummer SUV'
    """
    head, _, year = spaces(text).rpartition(" ")
    return f"{year} {head}" if head and re.fullmatch(r"\d{4}", year) else spaces(text)


def reversed_path(text: str) -> str:
    """The parts of a scene's folder without the letter it begins with, last first, as CoOp has it.

    Example:
        >>> reversed_path("a/apse/indoor"), reversed_path("b/bow_window/outdoor"), reversed_path("a/abbey")
        ('indoor apse', 'outdoor bow window', 'abbey')
    """
    parts = text.strip("/").split("/")
    return spaces(" ".join(reversed(parts[1:] if len(parts) > 1 and len(parts[0]) == 1 else parts)))


def camel_case(text: str, joint: str = " ") -> str:
    """Words that begin with a capital letter, apart.

    Example:
        >>> camel_case("ApplyEyeMakeup"), camel_case("YoYo", joint="_")
        ('Apply Eye Makeup', 'Yo_Yo')
    """
    return joint.join(re.findall("[A-Z][^A-Z]*", text)) or text


def first_name(text: str) -> str:
    """The first of several names that commas part, as in WordNet's synsets.

    Example:
        >>> first_name("tench, Tinca tinca")
        'tench'
    """
    return spaces(text.split(",", maxsplit=1)[0])


def distinct(names: Mapping[str, str], chosen: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Tell classes apart that have one name, whatever its case: they are never taken for one class.

    Args:
        names: The name of each class by its key.
        chosen: Other names for some of the keys, for use where theirs are taken; a class without one gets its key in
            parentheses, where it is still needed.

    Returns:
        The names, all different, and what was done, a sentence for each name that was there twice.

    Raises:
        DatasetError: A name is blank, or a new one is taken as well.

    Example:
        >>> distinct({"n1": "crane", "n2": "crane", "n3": "owl"}, {"n2": "crane (machine)"})[0]
        {'n1': 'crane', 'n2': 'crane (machine)', 'n3': 'owl'}
    """
    groups: dict[str, list[str]] = {}
    for key, name in names.items():
        if not name.strip():
            raise DatasetError(f"class {key!r} has a blank name")
        groups.setdefault(name.casefold(), []).append(key)
    result = dict(names)
    notes: list[str] = []
    for keys in groups.values():
        if len(keys) == 1:
            continue
        left = [key for key in keys if key not in chosen]
        for key in keys:
            if key in chosen:
                result[key] = chosen[key]
            elif len(left) > 1:
                result[key] = f"{names[key]} ({key})"
        renamed = ", ".join(f"{key} {result[key]!r}" for key in keys)
        notes.append(f"{len(keys)} classes are named {names[keys[0]]!r}; they are told apart: {renamed}")
    taken: dict[str, str] = {}
    for key, name in result.items():
        other = taken.setdefault(name.casefold(), key)
        if other != key:
            raise DatasetError(f"the classes {other!r} and {key!r} are both named {name!r}; rename one")
    return result, tuple(notes)
