"""A memory as files of other tools: here the authors' faiss index with text files, and what every export needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rarvision.errors import DatasetError, MemoryEmptyError, OptionError
from rarvision.memory.base import Memory
from rarvision.memory.importing import label_of, read_labels

__all__ = ["ExportReport", "export_faiss", "replacing", "select"]

_AT_ONCE = 8_192
_NEIGHBOURS = 64  # of the authors' IndexHNSWFlat


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        entries: Entries written.
        left_out: Entries that the format has no place for.
        bytes: Size of all files written.
    """

    entries: int
    left_out: int = 0
    bytes: int


def export_faiss(
    memory: Memory,
    index_path: str | Path,
    labels_path: str | Path,
    *,
    classnames: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> ExportReport:
    """Write a memory's images as the paper's authors publish theirs; `import_faiss` reads it back.

    Three files, each replaced in one step once all are whole: a faiss ``IndexHNSWFlat(dim, 64)`` of inner products,
    whose row i is the i-th image entry by id; a text file whose line i is ``path number`` for row i; and a text file
    whose line n (from 0) is the category with that number, in the order of `Memory.categories`. A path that a space
    would cut at the wrong place is followed by a tab instead.

    The format has no place for texts, metadata, thumbnails or the encoder: those stay behind (`export_parquet` keeps
    them). The index is built in memory: about ``dim * 4 + 550`` bytes an entry.

    Args:
        memory: Where from.
        index_path: The index file.
        labels_path: The text file of paths and numbers.
        classnames: The text file of names; ``classnames.txt`` beside ``labels_path`` by default.
        progress: Called with the number of entries put into the index so far.

    Raises:
        MemoryEmptyError: The memory holds no images.
        DatasetError: A source or a category that the text files cannot hold, such as one with a line break.
        OptionError: Two of the files have one name.
    """
    import faiss

    names_path = Path(labels_path).with_name("classnames.txt") if classnames is None else Path(classnames)
    targets = [Path(labels_path), names_path, Path(index_path)]
    if len({os.path.abspath(target) for target in targets}) < len(targets):  # noqa: PTH100 - resolve() follows links
        raise OptionError(f"index, labels and classnames must be three files, got {', '.join(map(str, targets))}")
    with ExitStack() as stack:
        stack.enter_context(memory.snapshot())
        ids, codes = memory.table("image")
        if not len(ids):
            raise MemoryEmptyError(f"the memory holds no images to export, only {memory.count('text'):,} texts")
        labels_file, names_file, index_file = (stack.enter_context(replacing(target)) for target in targets)
        _write_labels(memory, ids, codes, labels_file, names_file)
        index = faiss.IndexHNSWFlat(memory.dim, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        for start in range(0, len(ids), _AT_ONCE):
            part = ids[start : start + _AT_ONCE]
            index.add(memory.vectors(part))
            if progress is not None:
                progress(start + len(part))
        faiss.write_index(index, str(index_file))
        size = sum(file.stat().st_size for file in (labels_file, names_file, index_file))
        left_out = memory.count() - len(ids)
    return ExportReport(entries=len(ids), left_out=left_out, bytes=size)


def _write_labels(
    memory: Memory, ids: Int[np.ndarray, " n"], codes: Int[np.ndarray, " n"], labels_file: Path, names_file: Path
) -> None:
    """Write the two text files, and make sure that reading them gives back what went in."""
    names = memory.categories("image")
    for name in names:
        _check_line(name, "the category")
    _write_lines(names_file, names)
    known = memory.category_names()
    number_of = {name: number for number, name in enumerate(names)}
    numbers = [number_of[known[code]] for code in codes.tolist()]
    expected, lines, taken = [], [], set(names)
    for entry, number in zip(memory.entries(modality="image"), numbers, strict=True):
        _check_line(entry.source, f"entry {entry.id}: the source")
        line = next(
            (
                line
                for separator in (" ", "\t")
                if label_of(line := f"{entry.source}{separator}{number}", taken) == (entry.source, str(number))
            ),
            None,
        )
        if line is None:
            raise DatasetError(
                f"entry {entry.id}: the source {entry.source!r} cannot stand on a line of a label file; export Parquet "
                "instead, which holds any"
            )
        lines.append(line)
        expected.append((entry.source, names[number]))
    _write_lines(labels_file, lines)
    for entry_id, wanted, got in zip(
        ids.tolist(), expected, read_labels(labels_file, classnames=names_file), strict=True
    ):
        if wanted != got:
            raise DatasetError(
                f"entry {entry_id}: the source {wanted[0]!r} of {wanted[1]!r} would be read back as {got!r}; export "
                "Parquet instead, which holds any"
            )


def _check_line(text: str, what: str) -> None:
    if "\n" in text or "\r" in text or text.startswith("\ufeff"):
        raise DatasetError(
            f"{what} {text!r} holds a line break or begins with a byte order mark, which a line of a text file cannot; "
            "change it, or export Parquet instead, which holds any"
        )


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place, durably, when the block ends well; else it is deleted.

    Raises:
        OptionError: ``path`` is a folder, or in a folder that is not there.
    """
    target = Path(path)
    if target.is_dir():
        raise OptionError(f"{target} is a folder; give the name of a file in it")
    if not target.parent.is_dir():
        raise OptionError(f"{target}: there is no folder {target.parent}; make it first")
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(target)
        _sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; where folders cannot be opened (Windows), the system does that itself."""
    with contextlib.suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def select(memory: Memory, **conditions: Any) -> Int[np.ndarray, " n"]:
    """Ids, ascending, of the entries that meet the conditions of `Memory.entries`; all without any."""
    given = {key: value for key, value in conditions.items() if value is not None}
    if not given:
        return np.sort(np.concatenate([memory.table("image")[0], memory.table("text")[0]]))
    return np.fromiter((entry.id for entry in memory.entries(**given)), dtype=np.int64)
