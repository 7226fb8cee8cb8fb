"""Options that say which entries of a memory are meant, for every command that takes some of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from rarvision.cli import options
from rarvision.errors import OptionError

__all__ = [
    "AmongOption",
    "CategoryOption",
    "IdOption",
    "SourceOption",
    "WhereOption",
    "conditions",
    "is_address",
    "parse_where",
]

CategoryOption = Annotated[
    str | None, typer.Option("--category", metavar="NAME", help="Everything of it.", show_default=False)
]
SourceOption = Annotated[
    str | None, typer.Option("--source", metavar="PATH", help="What came from there.", show_default=False)
]
IdOption = Annotated[
    list[int] | None,
    typer.Option("--id", metavar="N", help="An entry by number; may be given several times.", show_default=False),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="KEY=VALUE",
        help="What has this value in its metadata. VALUE is read as JSON (2019, true, null) where it is a number, a "
        "truth value, null or a text in quotes, else as text; columns of a CSV file are text: 'year=\"2019\"'. Several "
        "keys must all hold; of a key given several times, one value.",
        show_default=False,
    ),
]
AmongOption = Annotated[
    options.Modality | None,
    typer.Option("--among", help="Only the memory's images, or its names.", show_default="both"),
]


def conditions(
    *,
    category: str | None = None,
    source: str | None = None,
    entry: Sequence[int] | None = None,
    where: Sequence[str] | None = None,
    among: options.Modality | None = None,
) -> dict[str, Any]:
    """The conditions that were given, as `rarvision.memory.Memory.entries` takes them."""
    given: dict[str, Any] = {
        "category": category,
        "source": source,
        "ids": list(entry) if entry else None,
        "metadata": parse_where(where) or None,
        "modality": among.value if among else None,
    }
    return {key: value for key, value in given.items() if value is not None}


def is_address(memory: str) -> bool:
    """Whether it names a memory in Milvus instead of a folder."""
    scheme, colon, _ = memory.partition(":")
    return bool(colon) and scheme.partition("+")[0] == "milvus"


def parse_where(given: Sequence[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` texts as conditions on metadata; raises `OptionError` where one is not of that form."""
    found: dict[str, list[Any]] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise OptionError(f"--where expects KEY=VALUE, such as year=2019, got {text!r}")
        found.setdefault(key, []).append(_value(value))
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, (list, dict)) or (isinstance(value, float) and not math.isfinite(value)):
        return text
    return value
