"""Runs over a labelled dataset whose outcomes lie image by image in a file, so that they resume; their tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, Self, TypeVar

from rarvision.datasets.base import Dataset
from rarvision.errors import DatasetError, InputError

__all__ = ["RunFile", "check_configuration", "labels_by_source", "markdown_table", "read_run"]

_Done = TypeVar("_Done")
_HASHES = {
    "memory_content": "the memory's entries",
    "dataset_fingerprint": "the dataset",
    "boxes_fingerprint": "the boxes",
}
_ADVICE = "give another file, or resume=False (--no-resume) to start it anew"


def markdown_table(rows: Sequence[tuple[str, str]]) -> str:
    """Rows of what and its value as a table in Markdown."""
    cells = [(what, value.replace("|", "\\|").replace("\n", " ")) for what, value in rows]
    return "\n".join(["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in cells)])


def labels_by_source(dataset: Dataset) -> dict[str, str]:
    """Labels by source, checked before anything is recognised.

    Raises:
        DatasetError: The dataset is empty, or has a missing label or a repeated source.
    """
    labels: dict[str, str] = {}
    for item in dataset.items:
        if item.label is None:
            raise DatasetError(f"{dataset.name}: {item.source} has no label; evaluation needs one for every image")
        if item.source in labels:
            raise DatasetError(f"{dataset.name}: the source {item.source} occurs twice; sources must be unique")
        labels[item.source] = item.label
    if not labels:
        raise DatasetError(f"{dataset.name}: there are no images to evaluate")
    return labels


class RunFile(Generic[_Done]):
    """A JSONL file of a run: a header with the configuration, then a line an image, written as it comes.

    Of an image's lines the last one counts. A last line that an interruption cut short is cut off.

    Args:
        path: The file, whose folder is made; None keeps everything in memory.
        configuration: All that the outcomes depend on, JSON values.
        read: A line's values as what is kept of an image, None where the image is to be done again; raises where they
            are no such line.
        resume: Whether to go on with an existing file; False starts it anew.

    Attributes:
        done: What is kept of each image that is done, by source.

    Raises:
        InputError: The file holds another configuration's results, or is no such file.
    """

    def __init__(
        self,
        path: Path | str | None,
        configuration: Mapping[str, Any],
        *,
        read: Callable[[Mapping[str, Any]], _Done | None],
        resume: bool,
    ) -> None:
        self.done: dict[str, _Done] = {}
        self._file: IO[str] | None = None
        if path is None:
            return
        path = Path(path)
        if path.is_dir():
            raise InputError(f"{path}: is a folder; expected the name of a file for the outcomes")
        path.parent.mkdir(parents=True, exist_ok=True)
        end = 0
        if resume and path.exists():
            self.done, end = _read_done(path, configuration, read)
        self._file = path.open("a", encoding="utf-8", newline="\n")
        os.truncate(self._file.fileno(), end)  # without the line that an interruption cut short
        if end == 0:
            self._write({"configuration": configuration})

    def add(self, source: str, values: Mapping[str, Any], done: _Done) -> None:
        """Write an image's outcome at once, and keep what is kept of it."""
        self._write(values)
        self.done[source] = done

    def _write(self, values: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(_line(values))
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"


def _read_done(
    path: Path, configuration: Mapping[str, Any], read: Callable[[Mapping[str, Any]], _Done | None]
) -> tuple[dict[str, _Done], int]:
    """What an earlier run with the same configuration wrote, and where the last complete line ends.

    What is to be done again is left out. Where there is nothing else, the file is started anew: a server that is down
    does not say its model's name, so the configuration may differ.
    """
    header = _line({"configuration": configuration}).encode()
    with path.open("rb") as file:
        if header.startswith(file.read(len(header) + 1)):
            return {}, 0  # the header at most, cut short where a disk was full
    there, done, images, end = _parsed(path, read, _ADVICE)
    if end and (done or not images):
        check_configuration(path, there, configuration)
    elif there != json.loads(json.dumps(configuration)):
        return {}, 0
    return done, end


def read_run(
    path: Path | str, read: Callable[[Mapping[str, Any]], _Done | None]
) -> tuple[dict[str, Any], dict[str, _Done]]:
    """The configuration of a run's file, and what is kept of each image, by source.

    Args:
        path: The file.
        read: As of `RunFile`.

    Raises:
        InputError: There is no such file, or it is none of a run, or holds no image.
    """
    path, advice = Path(path), "give a file that `rarvision evaluate` wrote with --output"
    if not path.is_file():
        raise InputError(f"{path}: no such file; {advice}")
    there, done, _, _ = _parsed(path, read, advice)
    if not done:
        raise InputError(f"{path}: holds no images; {advice}")
    return there, done


def _parsed(
    path: Path, read: Callable[[Mapping[str, Any]], _Done | None], advice: str
) -> tuple[dict[str, Any], dict[str, _Done], int, int]:
    """The configuration, what is kept by source, the number of lines of images, where the last complete line ends."""
    done: dict[str, _Done] = {}
    there: dict[str, Any] = {}
    images = end = 0
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    values = json.loads(line)
                    if end == 0:
                        there = dict(values["configuration"])
                    else:
                        images += 1
                        kept = read(values)
                        if kept is not None:
                            done[values["source"]] = kept
                    end += len(line)
                elif end == 0:
                    raise InputError(f"{path}: is not the file of an evaluation (no complete line); {advice}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not the file of an evaluation ({error}); {advice}") from error
    return there, done, images, end


def check_configuration(path: Path, there: Mapping[str, Any], now: Mapping[str, Any], advice: str = _ADVICE) -> None:
    """Refuse to mix results of different configurations.

    Raises:
        InputError: They differ; says in what, and what to do by ``advice``.
    """
    expected = json.loads(json.dumps(now))
    differing = [key for key in {**there, **expected} if there.get(key) != expected.get(key)]
    if differing:
        changes = "; ".join(
            f"{key}: {_HASHES[key]} changed since"
            if key in _HASHES and key in there
            else f"{key}: {there.get(key)!r:.80} there, {expected.get(key)!r:.80} now"
            for key in differing
        )
        raise InputError(f"{path}: holds the results of another configuration ({changes}); {advice}")
