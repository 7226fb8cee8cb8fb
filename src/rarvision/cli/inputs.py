"""From what the command line names to image paths: files, folders, globs, and a list on standard input."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rarvision.errors import InputError, OptionError

__all__ = ["STDIN", "image_paths"]

STDIN = "-"
"""What names the list on standard input; a file of that name is ``./-``."""

_HOW = "pipe image paths into it, one a line, or with -0 (--null) separated by NUL"


def image_paths(given: Sequence[str], *, null: bool = False) -> Iterator[Path]:
    """The images that the arguments name, lazily, in order; ``-`` stands for a list on standard input.

    What is wrong with the arguments, or with the list as a whole, shows at once rather than when the first image is
    asked for: the list's first line is read here.

    Args:
        given: Files, folders, globs and ``-``.
        null: The list is separated by NUL instead of line breaks.

    Raises:
        OptionError: ``-`` twice, or for a terminal; ``null`` without ``-``.
        InputError: Standard input is closed, cannot be read, or lists nothing.
    """
    from rarvision.images import iter_image_paths

    if STDIN not in given:
        if null:
            raise OptionError("-0 (--null) says how the list on standard input is separated; name that list as -")
        return iter_image_paths(given)
    if given.count(STDIN) > 1:
        raise OptionError("- reads the list on standard input, which is there once; got - several times")
    names = _listed(null=null)
    try:
        first = next(names)
    except StopIteration:
        raise InputError(f"- reads a list of images on standard input, which is empty; {_HOW}") from None
    where = given.index(STDIN)
    return iter_image_paths(itertools.chain(given[:where], (first,), names, given[where + 1 :]))


def _listed(*, null: bool) -> Iterator[str]:
    """The names on standard input; as bytes, so that any file name passes, whatever the locale is."""
    if sys.stdin is None or sys.stdin.closed:
        raise InputError(f"- reads a list of images on standard input, which is closed; {_HOW}")
    if sys.stdin.isatty():
        raise OptionError(f"- reads a list of images on standard input, which is a terminal; {_HOW}")
    try:
        if null:
            yield from (_name(item) for item in sys.stdin.buffer.read().split(b"\0") if item)
        else:
            for line in sys.stdin.buffer:
                name = line.rstrip(b"\r\n")
                if name:
                    yield _name(name)
    except OSError as error:
        raise InputError(f"the list on standard input cannot be read: {error.strerror or error}; {_HOW}") from error


def _name(item: bytes) -> str:
    if b"\0" in item:  # no file name holds one: a list made by -print0, or in UTF-16
        raise InputError(
            "the list on standard input holds NUL bytes; give -0 (--null) where they separate the names, or write the "
            "list in UTF-8"
        )
    try:
        return os.fsdecode(item)
    except UnicodeDecodeError as error:  # where file names are Unicode, as on Windows
        raise InputError(f"the list on standard input is not UTF-8: {item!r}; write it in UTF-8") from error
