"""What commands write: JSON lines, CSV, tables for people, progress, and files that a second run goes on with."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import typer

from rarvision.errors import InputError

__all__ = [
    "Bar",
    "CsvFile",
    "ResultFile",
    "echo_json",
    "print_table",
    "printable",
    "progress",
    "say",
    "show",
    "size_text",
    "to_json",
    "write_rows",
]


def to_json(record: Mapping[str, Any], *, indent: int | None = None) -> str:
    """A JSON object as text, readable where it can be, ASCII where a file name is not Unicode."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(record, allow_nan=False, indent=indent)
    return text


def echo_json(record: Mapping[str, Any]) -> None:
    """Write one JSON object as a line to standard output, in UTF-8 wherever that leads."""
    if sys.stdout.isatty():
        show(to_json(record))
    else:
        typer.echo(to_json(record).encode() + b"\n", nl=False)


def show(text: str) -> None:
    """Write a line to standard output; a progress bar on the same terminal steps aside."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(message: str) -> None:
    """Tell the person something, on standard error."""
    sys.stderr.write(printable(message) + "\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """Escape line breaks and control characters, which names and paths may hold, for a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def size_text(count: int) -> str:
    """A number of bytes for people, in units of 1,000.

    Example:
        >>> size_text(999), size_text(12_345_678)
        ('999 bytes', '12.3 MB')
    """
    if count < 1_000:
        return f"{count} bytes"
    amount = float(count)
    for unit in ("kB", "MB", "GB", "TB"):  # noqa: B007 - the last one stays
        amount /= 1_000
        if amount < 999.95:
            break
    return f"{amount:,.1f} {unit}"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table on standard output; columns whose values look like numbers are set to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    filled = [[printable(value) for value in row] for row in rows]
    table = Table(
        title=None if title is None else Text(printable(title)),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        show_header=any(columns),
    )
    for number, column in enumerate(columns):
        numeric = bool(filled) and all(row[number][:1].isdigit() or row[number][:1] in ("-", "") for row in filled)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in filled:
        table.add_row(*map(Text, row))
    terminal = sys.stdout.isatty()
    console = Console(
        file=io.StringIO(), width=None if terminal else 160, force_terminal=terminal or None, highlight=False
    )
    with console.capture() as captured:
        console.print(table)
    show(captured.get().rstrip("\n"))


class Bar:
    """How far a command is; does nothing by itself. ``name`` changes the label."""

    def __init__(
        self, show: Callable[[int], None] = lambda _done: None, name: Callable[[str], None] = lambda _label: None
    ) -> None:
        self._show, self.name = show, name
        self.done = 0

    def to(self, done: int) -> None:
        """So many are done now."""
        self.done = done
        self._show(done)

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.to(self.done + count)


@contextmanager
def progress(label: str, *, total: int | None, quiet: bool, unit: str = "images") -> Iterator[Bar]:
    """Show a bar with count, rate and time left on standard error while the body runs; nothing where it is no terminal.

    Yields:
        What the body tells its progress to.
    """
    if quiet or not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Rich would send what is written to sys.stdout meanwhile to its own stream: right where both are one terminal, so
    # that the bar steps aside, and the loss of every result where standard output is a file.
    shared = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=shared) as bar:
        task = bar.add_task(label, total=total, rate="")

        def show(done: int) -> None:
            bar.update(task, completed=done)
            elapsed = bar.tasks[0].elapsed
            if elapsed:  # the mean: results come in batches, of which the newest alone would say nothing
                bar.update(task, rate=f"{done / elapsed:,.1f} {unit}/s")

        yield Bar(show, lambda label: bar.update(task, description=printable(label)))


class ResultFile:
    """JSON lines that a second run of the same command goes on with.

    Every line carries ``run``, a hash of the settings: a file of other settings is refused rather than mixed. Lines
    with an ``error``, those whose ranking is ``unanswered``, and a last line that a crash cut off, are taken out and
    done again, whatever the settings.
    """

    def __init__(self, path: Path, *, settings: Mapping[str, Any], resume: bool = True) -> None:
        self.path = path
        self.run = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.done: dict[str, dict[str, Any]] = {}
        kept = self._read() if resume and path.exists() else []
        self._rewrite(kept)
        self._file = path.open("a", encoding="utf-8")

    def _read(self) -> list[str]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: not a result file of rarvision; choose another --output") from error
        kept: list[str] = []
        lines = text.split("\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                source, run = record["source"], record["run"]
            except (json.JSONDecodeError, TypeError, KeyError) as error:
                if number == len(lines):  # cut off in the middle: it has no line break after it
                    continue
                raise InputError(
                    f"{self.path}, line {number}: not a result of rarvision; choose another --output"
                ) from error
            if "error" in record or (record.get("ranking") or {}).get("unanswered"):
                continue
            if run != self.run:
                raise InputError(
                    f"{self.path}, line {number}: written with other settings or another memory; "
                    "give the same ones, choose another --output, or start it anew with --no-resume"
                )
            kept.append(line)
            self.done[source] = record
        return kept

    def _rewrite(self, lines: Sequence[str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(self.path.name + ".part")
        fresh.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        fresh.replace(self.path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one result, at once."""
        self._file.write(to_json({**record, "run": self.run}) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


class CsvFile:
    """A CSV file whose rows are on disk as soon as they are written."""

    def __init__(self, path: Path, *, columns: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._writer = csv.DictWriter(self._file, fieldnames=columns, restval="")
        self._writer.writeheader()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; missing columns stay empty."""
        self._writer.writerow(row)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, columns: Sequence[str] | None = None) -> None:
    """Write a CSV table whole.

    What is nested in a row becomes columns of its own (``statuses_ranked``), a list its JSON.

    Args:
        path: The file; its folder is made.
        rows: At least one where ``columns`` are not given.
        columns: By default those of the first row.
    """
    flat = [_flat(row) for row in rows]
    with CsvFile(path, columns=list(flat[0]) if columns is None else columns) as table:
        for row in flat:
            table.append(row)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            row |= {f"{key}_{name}": part for name, part in _flat(value).items()}
        else:
            row[key] = json.dumps(value, ensure_ascii=False) if isinstance(value, (list, tuple)) else value
    return row
