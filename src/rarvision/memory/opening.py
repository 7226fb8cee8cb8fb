"""Memories by what a person writes: a folder, or the address of one in Milvus.

::

    pets.memory                               a folder
    milvus:pets.db#pets                       Milvus Lite: a path that ends in .db, and the memory's name there
    milvus:///srv/pets.db#pets                the same, with an absolute path
    milvus+http://host:19530#pets             a Milvus server; milvus+https:// over TLS
    milvus+https://host:19530/DATABASE#pets   in one of its databases

Without ``#NAME`` the name is ``rarvision``. Credentials come from the environment (``RARVISION_MILVUS_TOKEN``, or
``RARVISION_MILVUS_USER`` and ``RARVISION_MILVUS_PASSWORD``) and never stand in an address, which is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from rarvision.encoders import Encoder
from rarvision.errors import OptionError
from rarvision.memory.base import Memory
from rarvision.memory.local import LocalMemory
from rarvision.memory.milvus import MilvusMemory
from rarvision.memory.milvus_server import IndexName
from rarvision.memory.recorded import EncoderRecord

__all__ = ["create_like", "create_memory", "open_memory"]

_SCHEME = "milvus"


@dataclass(frozen=True, kw_only=True)
class _Place:
    uri: str
    name: str
    database: str


def open_memory(where: str | Path, *, encoder: Encoder | None = None) -> Memory:
    """Open a memory.

    Args:
        where: A folder, or an address as above.
        encoder: Checked against the memory's; without it, the memory's own is loaded by name when it is needed.

    Raises:
        OptionError: An address that is none.
        MemoryNotFoundError: No memory there.
        EncoderMismatchError: The vectors were made by another encoder.
        MemoryUnavailableError: The server does not answer.
    """
    place = _milvus(where)
    if place is None:
        return LocalMemory.open(where, encoder=encoder)
    return MilvusMemory.open(place.uri, place.name, encoder=encoder, database=place.database)


def create_memory(
    where: str | Path,
    *,
    encoder: Encoder,
    index: str = "auto",
    thumbnails: int | None = 96,
    metadata: Mapping[str, Any] | None = None,
) -> Memory:
    """Make an empty memory; see `LocalMemory.create` and `MilvusMemory.create`.

    Raises:
        OptionError: An address that is none.
        MemoryExistsError: Something is there already.
        MemoryUnavailableError: The server does not answer.
    """
    place = _milvus(where)
    if place is None:
        return LocalMemory.create(where, encoder=encoder, index=index, thumbnails=thumbnails, metadata=metadata)
    return MilvusMemory.create(
        place.uri,
        place.name,
        encoder=encoder,
        index=cast("IndexName", index),  # which checks it
        thumbnails=thumbnails,
        metadata=metadata,
        database=place.database,
    )


def create_like(where: str | Path, memory: Memory) -> Memory:
    """Make an empty memory with another one's encoder, metadata and size of thumbnails; loads no encoder.

    Raises: as `create_memory`.
    """
    # What every memory keeps of its encoder, for stores only: hence the private names.
    probe, revision = memory._stored_probe(), memory._encoder_revision  # noqa: SLF001
    thumbnails, metadata = memory._thumbnail_size, memory.info().metadata  # noqa: SLF001
    place = _milvus(where)
    if place is None:
        return EncoderRecord.of(memory).create(where, thumbnails=thumbnails, metadata=metadata)
    return MilvusMemory.create_unbound(
        place.uri,
        place.name,
        dim=memory.dim,
        fingerprint=memory.encoder_fingerprint,
        encoder_name=memory.encoder_name,
        encoder_revision=revision,
        probe=probe,
        thumbnails=thumbnails,
        metadata=metadata,
        database=place.database,
    )


def _milvus(where: str | Path) -> _Place | None:
    """An address's parts; None for a folder."""
    text = str(where)
    scheme, colon, rest = text.partition(":")
    if not colon or scheme.partition("+")[0] != _SCHEME:
        return None
    address, _, name = rest.partition("#")
    if scheme == _SCHEME:
        path = address.removeprefix("//")
        if not path.endswith(".db"):
            raise OptionError(f"{text}: expected milvus:FILE.db#NAME, or milvus+http://HOST:PORT#NAME for a server")
        return _Place(uri=path, name=name or "rarvision", database="")
    kind = scheme.partition("+")[2]
    parsed = urlsplit(f"{kind}:{address}")
    if kind not in ("http", "https") or not parsed.hostname or parsed.query:
        raise OptionError(
            f"{scheme}:{address.rpartition('@')[2]}: expected milvus+http://HOST:PORT#NAME or "
            "milvus+https://HOST:PORT/DATABASE#NAME"
        )
    if parsed.username is not None or parsed.password is not None:
        raise OptionError(
            f"{scheme}://{parsed.hostname}: credentials do not belong into an address; set RARVISION_MILVUS_TOKEN, or "
            "RARVISION_MILVUS_USER and RARVISION_MILVUS_PASSWORD"
        )
    return _Place(uri=f"{kind}://{parsed.netloc}", name=name or "rarvision", database=parsed.path.strip("/"))
