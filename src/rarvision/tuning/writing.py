"""Writing a manifest line by line: an interrupted run leaves a ``.part`` that the next one goes on with."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, final

from rarvision.errors import DatasetError, InputError
from rarvision.runs import check_configuration
from rarvision.tuning.manifest import (
    MANIFEST_VERSION,
    VERSION_KEY,
    TuningExample,
    example_line,
    header_line,
    read_settings,
)

__all__ = ["REPORT", "ManifestWriter", "example_id", "finished_report"]

REPORT = "report"
"""The header's key for what came of the run; it is there once the manifest is complete."""

_NOTE = "noted"
_ADVICE = "give the same settings, write to another file, or use resume=False (--no-resume) to start it anew"


def example_id(entry: int, window: int) -> str:
    """The id of the example that an entry's window gives; an entry's are written together, by window."""
    return f"{entry}-{window}"


def _numbers(example: str) -> tuple[int, int]:
    entry, _, window = example.partition("-")
    return int(entry), int(window)


def finished_report(path: Path, settings: Mapping[str, Any], *, resume: bool) -> dict[str, Any] | None:
    """What came of the run that wrote the manifest; None where there is none, or it is to be written anew.

    Raises:
        InputError: The file is no manifest, or one of other settings.
    """
    if not path.exists():
        return None
    try:
        there = read_settings(path)
    except DatasetError as error:
        raise InputError(f"{error}. It is left alone: write to another file") from error
    report = there.pop(REPORT, None)
    if not resume:
        return None
    check_configuration(path, there, settings, _ADVICE)
    if not isinstance(report, dict):
        raise InputError(f"{path}: the header tells no report, so it was not finished here; {_ADVICE}")
    return report


@final
class ManifestWriter:
    """Writes ``PATH.part`` and publishes it as ``PATH`` once it is complete: no reader ever sees half a manifest.

    Args:
        path: The manifest.
        settings: All that its examples depend on, JSON values.
        resume: Whether to go on after the last complete line of a ``.part`` that is there.

    Attributes:
        examples: Examples written, those of earlier runs included.
        names: How many of them show how many names.
        noted: What `note` was told, by an earlier run or this one; None before.

    Raises:
        InputError: The ``.part`` holds examples of other settings, or is none of ours.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self.examples = 0
        self.names: Counter[int] = Counter()
        self.noted: dict[str, Any] | None = None
        self._windows: dict[int, int] = {}  # the last one that was written, by entry
        self._settings = settings
        path.parent.mkdir(parents=True, exist_ok=True)
        end = self._read() if resume and self.part.exists() else 0
        self._file: IO[str] = self.part.open("a", encoding="utf-8", newline="\n")
        os.truncate(self._file.fileno(), end)  # without the line that an interruption cut short
        if end == 0:
            self._file.write(header_line(settings) + "\n")
            self.flush()

    def _read(self) -> int:
        """Count what is there; returns where the last complete line ends, 0 to start anew where there is no example."""
        end = 0
        there: dict[str, Any] = {}
        try:
            with self.part.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    values = json.loads(line)
                    if end == 0:
                        there = {key: value for key, value in values.items() if key != VERSION_KEY}
                        if values[VERSION_KEY] != MANIFEST_VERSION:
                            raise InputError(f"{self.part}: written by another version of rarvision; {_ADVICE}")
                    elif _NOTE in values:
                        self.noted = dict(values[_NOTE])
                    else:
                        self._count(values["id"], len(values["candidates"]))
                    end += len(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.part}: not what an interrupted run left ({error!r}); {_ADVICE}") from error
        if self.examples:
            check_configuration(self.part, there, self._settings, _ADVICE)
        elif there != json.loads(json.dumps(self._settings)):
            self.noted = None
            return 0
        return end

    def _count(self, example: str, names: int) -> None:
        entry, window = _numbers(example)
        self.examples += 1
        self.names[names] += 1
        self._windows[entry] = window

    @property
    def images(self) -> int:
        """Images that the examples ask about."""
        return len(self._windows)

    def is_written(self, entry: int, window: int) -> bool:
        """Whether that example is there, or a later one of the entry."""
        return window <= self._windows.get(entry, -1)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Keep JSON values for the next run, once, before the first example; they are not published."""
        self.noted = dict(facts)
        self._file.write(json.dumps({_NOTE: facts}) + "\n")
        self.flush()

    def append(self, example: TuningExample) -> None:
        """Write one example."""
        self._file.write(example_line(example, folder=self.path.parent) + "\n")
        self._count(example.id, len(example.candidates))

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def publish(self, report: Mapping[str, Any]) -> None:
        """Put the complete manifest in its place, with the report in its header."""
        self.flush()
        fresh = self.path.with_name(self.path.name + ".new")
        with self.part.open("rb") as source, fresh.open("wb") as target:
            for _ in range(1 if self.noted is None else 2):
                source.readline()
            target.write((header_line({**self._settings, REPORT: report}) + "\n").encode())
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        fresh.replace(self.path)
        self.discard()

    def discard(self) -> None:
        """Delete the ``.part``."""
        self._file.close()
        self.part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
