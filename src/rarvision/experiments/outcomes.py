"""What came of a cell, and the file of all of them: a line of JSON each, written as it is finished."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rarvision.errors import InputError

__all__ = ["Outcome", "append_outcome", "mean_over_seeds", "read_outcomes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One method on one dataset at one place of the axis with one seed.

    Attributes:
        experiment: The spec's name.
        column: The dataset's key.
        row: The method's key.
        at: Where on the axis, such as ``{"shots": 4}``; empty without an axis, and for rows that it does not matter to.
        seed: Of samples and images.
        n: Images, or boxes.
        values: By metric; None where nothing could be measured, and then ``why`` says why.
        why: Why there is no value: what the paper shows as ``-``.
        images: The file with a line an image (see `rarvision.reporting.EvaluatedImage`), relative to the results'
            folder; empty where there is none.
        encoder: Its name.
        ranker: Its name; None without one.
        prompt_hash: Of the ranker's prompt, the first 12 hexadecimal digits of its SHA-256; None without one.
        dataset: Name of the test images.
        dataset_fingerprint: What tells revisions of them apart.
        version: Of this package.
        retrieval_ms: Milliseconds an image of encoding and search.
        ranking_ms: The same of ranking.
        seconds: Wall time of the cell as a whole, in the call that finished it.
        statuses: Rankings by status.
        failures: Images, or boxes, without an answer, such as files that cannot be read; they count as wrong.
        settings: Everything else that the cell depends on: k, shots, categories, ….
    """

    experiment: str
    column: str
    row: str
    at: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    n: int = 0
    values: Mapping[str, float | None] = field(default_factory=dict)
    why: str | None = None
    images: str = ""
    encoder: str = ""
    ranker: str | None = None
    prompt_hash: str | None = None
    dataset: str = ""
    dataset_fingerprint: str = ""
    version: str = ""
    retrieval_ms: float = 0.0
    ranking_ms: float = 0.0
    seconds: float = 0.0
    statuses: Mapping[str, int] = field(default_factory=dict)
    failures: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What a cell is found by, and its file is called: ``birds.shots-4.rar.seed-0``."""
        place = [f"{key}-{value}" for key, value in self.at.items()]
        return ".".join([self.column, *place, self.row, f"seed-{self.seed}"])


def append_outcome(path: Path, outcome: Outcome) -> None:
    """Add a line, on disk when this returns."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(asdict(outcome), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_outcomes(path: Path, *, repair: bool = False) -> list[Outcome]:
    """All that are complete; of several of one cell the last one.

    Args:
        path: The file.
        repair: Whether a last line that an interruption cut short is cut off the file, which only its writer may do.

    Raises:
        InputError: It is no such file.
    """
    if not path.exists():
        return []
    known = {each.name for each in fields(Outcome)}
    found: dict[str, Outcome] = {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            values = json.loads(line)
            outcome = Outcome(**{key: value for key, value in values.items() if key in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: is no outcome of an experiment ({error})") from error
        found[outcome.id] = outcome
    if repair and whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    return list(found.values())


def mean_over_seeds(outcomes: Iterable[Outcome], metric: str) -> tuple[float, float, int] | None:
    """Mean over seeds, half of the range between the lowest and the highest, and number of seeds.

    None where there is nothing, or a seed without a value.
    """
    values = [outcome.values.get(metric) for outcome in outcomes]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return sum(known) / len(known), (max(known) - min(known)) / 2, len(known)
