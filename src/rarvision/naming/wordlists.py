"""Large vocabularies: WordNet's nouns from the files of its distribution, and plain lists of words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rarvision.datasets.files import jsonl_rows, missing, read_text
from rarvision.errors import DatasetError
from rarvision.naming.cleaning import name_key

__all__ = ["read_captions", "read_words", "wordnet_nouns"]

_SENSES_FILE = "data.noun"
_CAPTION_KEYS = ("caption", "text")


def read_words(path: str | Path) -> list[str]:
    """A vocabulary: a text file with a name a line, or a folder of WordNet's database.

    Repeated spellings (case, hyphens, plurals) are left out; lines that are blank or begin with ``#`` do not count.

    Raises:
        DatasetError: There is no such file, it is not UTF-8, or holds no name.
    """
    path = Path(path)
    if path.is_dir() or path.name == _SENSES_FILE:
        return wordnet_nouns(path)
    if not path.is_file():
        raise DatasetError(missing(path, "file of names, or folder of WordNet"))
    lines = (line.strip() for line in read_text(path).split("\n"))
    found: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith("#"):
            found.setdefault(name_key(line), line)
    if not found:
        raise DatasetError(f"{path}: holds no names; expected one a line")
    return list(found.values())


def wordnet_nouns(path: str | Path, *, instances: bool = False) -> list[str]:
    """The nouns of WordNet's database: all words of all synonym sets, sorted.

    Args:
        path: Its folder (``dict`` of the distribution, Debian's ``/usr/share/wordnet``) or the file ``data.noun``.
        instances: Whether named persons, places and things count, which are instances and no kinds.

    Raises:
        DatasetError: There is no such file, or it is not of WordNet's format.

    Source: the format is described in WordNet's manual page wndb(5).
    """
    file = Path(path)
    file = file / _SENSES_FILE if file.is_dir() else file
    if not file.is_file():
        raise DatasetError(
            f"{missing(file, 'file')}; WordNet's database has it: Debian's package wordnet-base, or the archive "
            "WNdb-3.0 of wordnet.princeton.edu"
        )
    found = sorted(set(_words(file, instances=instances)))
    if not found:
        raise DatasetError(f"{file}: holds no synonym sets; expected WordNet's data.noun")
    return found


def _words(file: Path, *, instances: bool) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.startswith("  "):
                continue  # the licence
            head = line.split(" | ", 1)[0].split()
            try:
                count = int(head[3], 16)
                words, pointers = head[4 : 4 + 2 * count : 2], head[4 + 2 * count + 1 :]
                if len(words) != count or not count:
                    raise ValueError(f"{len(words)} words of {count}")  # noqa: TRY301 - told as the others
            except (IndexError, ValueError) as error:
                raise DatasetError(f"{file}, line {number}: is no synonym set of WordNet ({error})") from error
            if instances or "@i" not in pointers:
                yield from (word.replace("_", " ") for word in words)


def read_captions(path: str | Path) -> list[str]:
    """A corpus of captions: a text, one a line, or JSON lines (``.jsonl``) with a field ``caption`` or ``text``.

    Repeated and blank ones do not count.

    Raises:
        DatasetError: There is no such file, it is not UTF-8, or holds no caption.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(missing(path, "file of captions"))
    lines = _fields(path) if path.suffix.lower() in (".jsonl", ".ndjson") else read_text(path).split("\n")
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise DatasetError(f"{path}: holds no captions; expected one a line")
    return found


def _fields(path: Path) -> Iterator[str]:
    for number, row in jsonl_rows(path):
        text = next((row[key] for key in _CAPTION_KEYS if key in row), None)
        if not isinstance(text, str):
            raise DatasetError(
                f"{path}, line {number}: expected a text under {' or '.join(map(repr, _CAPTION_KEYS))}, got "
                f"{', '.join(map(repr, row)) or 'nothing'}"
            )
        yield text
