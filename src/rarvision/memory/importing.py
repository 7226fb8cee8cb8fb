"""A memory from an existing faiss index with a label file, such as the paper's authors publish."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rarvision.encoders import Encoder
from rarvision.errors import DatasetError, EncoderMismatchError, MemoryCorruptError
from rarvision.index import FaissIndex
from rarvision.memory.adding import check_category
from rarvision.memory.local import LocalMemory
from rarvision.memory.records import NewEntry

__all__ = ["import_faiss", "label_of", "read_labels"]

_IMAGE_THEN_LABEL = re.compile(
    r"^(?P<path>.*\.(?:jpe?g|png|webp|bmp|gif|tiff?|ppm|jfif))\s+(?P<label>\S.*)$", re.IGNORECASE
)


def import_faiss(
    index: str | Path,
    labels: str | Path,
    out: str | Path,
    *,
    classnames: str | Path | None = None,
    encoder: Encoder | None = None,
    index_kind: str = "auto",
) -> LocalMemory:
    """Make a memory of a faiss index and its label file.

    Args:
        index: A faiss index file that stores its vectors.
        labels: Text file; line i is ``path label`` for row i. Paths and labels may hold spaces. Labels are numbers of
            lines in ``classnames`` (from 0), names in it, or, without it, names themselves.
        out: The new memory's folder.
        classnames: Text file, one category a line.
        encoder: The encoder that made the vectors, as the caller declares: they cannot tell. Without it the memory
            answers queries by vectors only.
        index_kind: As in `LocalMemory.create`.

    Raises:
        MemoryCorruptError: The index cannot be read, or holds vectors without a direction.
        DatasetError: The label file does not fit the index.
        EncoderMismatchError: The encoder's dimensions are others.
        MemoryExistsError: Something is at ``out`` already.
    """
    loaded = FaissIndex.load(_existing(index))
    vectors = loaded.vectors
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not (norms > 0).all():
        raise MemoryCorruptError(f"{index}: row {int(np.argmin(norms > 0))} is zero or not finite; build it again")
    rows = read_labels(labels, classnames=classnames)
    if len(rows) != len(vectors):
        raise DatasetError(
            f"{labels} has {len(rows)} lines and {index} has {len(vectors)} vectors; line i must describe row i"
        )
    entries = [
        NewEntry(category=category, modality="image", source=path, content=_content(row, path))
        for row, (path, category) in enumerate(rows)
    ]
    metadata = {"imported_from": Path(index).name}
    if encoder is None:
        digest = hashlib.sha256(np.ascontiguousarray(vectors, dtype="<f4").tobytes()).hexdigest()
        memory = LocalMemory.create_unbound(
            out, dim=loaded.dim, fingerprint=f"imported:{digest[:32]}", index=index_kind, metadata=metadata
        )
    else:
        if encoder.dim != loaded.dim:
            raise EncoderMismatchError(
                f"{index} holds vectors of {loaded.dim} dimensions, {encoder.name} makes {encoder.dim}; "
                "declare the encoder that made them, or none"
            )
        memory = LocalMemory.create(out, encoder=encoder, index=index_kind, thumbnails=None, metadata=metadata)
    try:
        memory.append(entries, vectors)
    except BaseException:
        memory.close()
        shutil.rmtree(out, ignore_errors=True)
        raise
    return memory


def read_labels(labels: str | Path, *, classnames: str | Path | None = None) -> list[tuple[str, str]]:
    """Paths and category names of a label file, one a line.

    The label is what follows a tab, else the longest class name that the line ends with, else a number at the end,
    else what follows an image's file extension, else the last word.

    Raises:
        DatasetError: A line without path or label, or a label that is not in ``classnames``.
    """
    names = None if classnames is None else _lines(classnames)
    known = set(names or ())
    found = [label_of(line, known) for line in _lines(labels)]
    # All numbers: the authors' format, though a category may be called "911".
    numbered = all(re.fullmatch(r"\d+", label) for _, label in found)
    rows = []
    for number, (path, label) in enumerate(found, start=1):
        if not path or not label:
            raise DatasetError(f"{labels}, line {number}: expected 'path label', got {(path or label)!r}")
        if names is None or (label in known and not numbered):
            rows.append((path, label))
        elif re.fullmatch(r"\d+", label) and int(label) < len(names):
            rows.append((path, names[int(label)]))
        else:
            raise DatasetError(
                f"{labels}, line {number}: the label {label!r} is neither one of the {len(names)} names in "
                f"{classnames} nor a line number from 0 to {len(names) - 1}"
            )
        check_category(rows[-1][1])
    return rows


def label_of(line: str, known: set[str]) -> tuple[str, str]:
    """Path and label of one line; ``known`` are the class names."""
    if "\t" in line:
        path, _, label = line.rpartition("\t")
        return path.strip(), label.strip()
    line = line.strip()
    words = line.split(" ")
    for start in range(1, len(words)):
        if (label := " ".join(words[start:])) in known:
            return " ".join(words[:start]).strip(), label
    path, _, label = line.rpartition(" ")
    if not re.fullmatch(r"\d+", label) and (match := _IMAGE_THEN_LABEL.match(line)):
        return match["path"], match["label"]
    return path.strip(), label


def _lines(path: str | Path) -> Sequence[str]:
    """Lines without blank ones at the end; a blank one before would shift all rows and is an error."""
    try:
        lines = _existing(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text: {error}") from error
    lines = [line.rstrip("\r") for line in lines]
    while lines and not lines[-1].strip():
        lines.pop()
    if blank := [number for number, line in enumerate(lines, start=1) if not line.strip()]:
        raise DatasetError(f"{path}, line {blank[0]}: is blank; every line stands for one row")
    return lines


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise DatasetError(f"{path}: no such file")
    return Path(path)


def _content(row: int, path: str) -> bytes:
    """Rows are kept apart even where path and category repeat: the images themselves are not at hand to compare."""
    return hashlib.sha256(f"imported row {row}: {path}".encode("utf-8", "surrogatepass")).digest()
