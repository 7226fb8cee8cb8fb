"""An index's file: what faiss or NumPy writes, and a seal behind it that both ignore.

The seal is a JSON object (what the index is, how many rows, the SHA-256 of everything before), its length in 8 bytes,
and 8 bytes that mark it. A file without one is taken as another program's and is not verified.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rarvision.errors import MemoryCorruptError
from rarvision.index.spec import IndexSpec

__all__ = ["Seal", "read_faiss", "read_seal", "seal", "write_faiss"]

_MARK = b"rarIDX01"
_TAIL = 16
_LONGEST = 65_536


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What stands behind an index.

    Attributes:
        spec: The index.
        rows: How many it holds.
        dim: Number of dimensions.
        sha256: Of the first `size` bytes.
        size: Bytes before the seal.
    """

    spec: IndexSpec
    rows: int
    dim: int
    sha256: str
    size: int


def seal(path: Path, spec: IndexSpec, *, rows: int, dim: int) -> None:
    """Append the seal to a file."""
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.seek(0, os.SEEK_END)
        text = json.dumps({"spec": spec.to_json(), "rows": rows, "dim": dim, "sha256": digest, "size": size}).encode()
        file.write(text + len(text).to_bytes(8, "little") + _MARK)


def read_seal(path: Path, *, verify: bool) -> Seal | None:
    """The seal, None where there is none.

    Raises:
        MemoryCorruptError: The file is not what was sealed.
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        if end < _TAIL:
            return None
        file.seek(end - _TAIL)
        tail = file.read(_TAIL)
        length = int.from_bytes(tail[:8], "little")
        if tail[8:] != _MARK:
            return None
        if length > min(_LONGEST, end - _TAIL):
            raise MemoryCorruptError(f"{path} is damaged: its seal cannot be read; build the index again")
        file.seek(end - _TAIL - length)
        try:
            found: dict[str, Any] = json.loads(file.read(length))
            known = Seal(
                spec=IndexSpec.from_json(found["spec"]),
                rows=int(found["rows"]),
                dim=int(found["dim"]),
                sha256=str(found["sha256"]),
                size=int(found["size"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MemoryCorruptError(f"{path} is damaged: its seal cannot be read; build the index again") from error
        if known.size != end - _TAIL - length:
            raise MemoryCorruptError(f"{path} is damaged: expected {known.size} bytes, got {end - _TAIL - length}")
        if verify and _digest(path, known.size) != known.sha256:
            raise MemoryCorruptError(f"{path} is damaged: its checksum differs; restore it, or build the index again")
    return known


def read_faiss(path: Path, *, verify: bool, mapped: bool = True) -> tuple[Any, Seal | None]:
    """A faiss index, memory-mapped where its parts allow, and the seal behind it.

    Raises:
        MemoryCorruptError: The file is damaged or no faiss index.
    """
    import faiss

    known = read_seal(path, verify=verify)
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise MemoryCorruptError(f"{path} is not a readable faiss index: {reason}") from error
    if known is not None and (index.ntotal, index.d) != (known.rows, known.dim):
        raise MemoryCorruptError(
            f"{path}: expected {known.rows} rows of {known.dim} dimensions, got {index.ntotal} of {index.d}"
        )
    return index, known


def write_faiss(index: Any, path: Path) -> None:
    """Write a faiss index; a failed write is an OSError."""
    import faiss

    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(f"cannot write {path}: {str(error).strip().splitlines()[-1]}") from error


def _digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        left = size
        while left and (block := file.read(min(left, 1 << 22))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
