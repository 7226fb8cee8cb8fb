"""The options about the levels of a taxonomy, and how answers at them are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rarvision.errors import OptionError

if TYPE_CHECKING:
    from rarvision.memory.base import Memory
    from rarvision.taxonomy import Taxonomy
    from rarvision.types import Prediction

__all__ = ["level_rows", "levels_record", "open_tree", "read_sure", "sure_text"]

_METADATA = "metadata:"


def read_sure(text: str, taxonomy: str | None) -> bool | float:
    """The threshold that ``--sure`` names; True for ``auto``."""
    if text == "auto":
        if taxonomy is None:
            raise OptionError("--sure goes with --taxonomy")
        return True
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise OptionError(f"--sure must be auto or a probability above 0 and at most 1, got {text!r}")
    if taxonomy is None and value != 0.9:
        raise OptionError("--sure goes with --taxonomy")
    return value


def open_tree(spec: str | None, memory: Memory | None) -> Taxonomy | None:
    """The tree that ``--taxonomy`` names; None for a memory where there is none to take metadata from."""
    if spec is None:
        return None
    from rarvision.datasets import field_guide_taxonomy, open_taxonomy, taxonomy_of_metadata

    if spec == "fieldguide":
        return field_guide_taxonomy()
    if not spec.startswith(_METADATA):
        return open_taxonomy(spec)
    if memory is None:
        raise OptionError(f"--taxonomy {spec}: there is no memory here whose metadata would say it; give a file")
    levels = [level for level in spec.removeprefix(_METADATA).split(",") if level]
    if not levels:
        raise OptionError("--taxonomy metadata: expects keys of the memory's metadata, such as metadata:family,genus")
    entries = ((entry.category, entry.metadata) for entry in memory.entries())
    return taxonomy_of_metadata(entries, levels)


def levels_record(prediction: Prediction) -> dict[str, Any]:
    """The documented keys of a result; none without a taxonomy."""
    if not prediction.levels:
        return {}
    levels = [
        {"level": each.level, "name": each.name, "probability": round(each.probability, 6)}
        for each in prediction.levels
    ]
    sure = None if prediction.sure is None else next(v for v in levels if v["level"] == prediction.sure.level)
    return {"levels": levels, "sure": sure, "outside": list(prediction.outside)}


def level_rows(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A table for people: level, group, probability; empty without a taxonomy."""
    sure = record.get("sure")
    return [
        (
            each["level"] + (" (sure)" if sure is not None and each["level"] == sure["level"] else ""),
            each["name"],
            f"{100 * each['probability']:.1f} %",
        )
        for each in record.get("levels", ())
    ]


def sure_text(record: Mapping[str, Any]) -> str:
    """What is sure, for a line about an image; empty without a taxonomy."""
    if "levels" not in record:
        return ""
    sure = record["sure"]
    return "  sure of no level" if sure is None else f"  sure of the {sure['level']}: {sure['name']}"
