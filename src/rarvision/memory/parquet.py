"""A memory as one Parquet file with its vectors, for backup and for other tools, and back again."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from rarvision.encoders import Encoder
from rarvision.errors import DatasetError, EncoderMismatchError, InputError, MissingExtraError
from rarvision.memory.adding import check_category
from rarvision.memory.base import Memory
from rarvision.memory.exporting import ExportReport, replacing, select
from rarvision.memory.local import LocalMemory
from rarvision.memory.recorded import EncoderRecord
from rarvision.memory.records import AddReport, NewEntry
from rarvision.memory.sql import to_json
from rarvision.types import Modality

__all__ = ["ParquetSettings", "export_parquet", "import_parquet", "read_settings"]

_SETTINGS_KEY = b"rarvision"
_SCHEMA_VERSION = 1
_AT_ONCE = 2_048  # entries in a row group: with vectors of 512 dimensions and thumbnails some 40 MB
_NEEDED = ("category", "modality", "source", "content", "metadata", "vector")
_OPTIONAL = ("thumbnail",)


def export_parquet(
    memory: Memory,
    path: str | Path,
    *,
    thumbnails: bool = True,
    progress: Callable[[int], None] | None = None,
    **conditions: Any,
) -> ExportReport:
    """Write entries and their vectors into one Parquet file, which takes its name once it is whole and on disk.

    What is written is one state of the memory, whoever changes it meanwhile. Entries are written part by part, so that
    the size of the memory does not matter. Columns, by ascending ``id``:

    ==========  ======================  ==========================================================================
    id          int64                   number in this memory
    category    string                  name
    modality    string                  ``image`` or ``text``
    source      string                  where the image came from, or the text
    content     binary                  SHA-256 of what was encoded
    metadata    string                  a JSON object
    thumbnail   binary, may be null     JPEG
    vector      fixed_size_list<float>  float32 unit vector of ``dim`` numbers
    ==========  ======================  ==========================================================================

    The file's key-value metadata hold, under ``rarvision``, a JSON object: ``schema`` (1), ``package_version``,
    ``entries``, ``dim``, ``encoder_name``, ``encoder_fingerprint``, ``encoder_revision``, ``encoder_probe`` (base64 of
    float32), ``thumbnail_size`` (pixels), ``metadata`` (the memory's own).

    Args:
        memory: Where from.
        path: The file; one that is there is replaced.
        thumbnails: Whether to write them; they are most of the file where there are any.
        progress: Called with the number of entries written so far.
        **conditions: Those of `Memory.entries`: only entries that meet them all.

    Raises:
        MissingExtraError: pyarrow is not installed.
        OptionError: ``path`` is a folder, or in one that is not there.
    """
    pa, pq = _pyarrow()
    record = EncoderRecord.of(memory)
    with ExitStack() as stack:
        stack.enter_context(memory.snapshot())
        ids = select(memory, **conditions)
        draft = stack.enter_context(replacing(path))
        settings = {
            "schema": _SCHEMA_VERSION,
            "package_version": version("rarvision"),
            "entries": len(ids),
            **record.to_dict(),
            "thumbnail_size": memory._thumbnail_size,  # noqa: SLF001 - the package's own
            "metadata": dict(memory.info().metadata),
        }
        schema = _schema(pa, memory.dim).with_metadata({_SETTINGS_KEY: json.dumps(settings).encode()})
        with pq.ParquetWriter(
            draft, schema, compression="zstd", use_dictionary=["category", "modality"], write_page_checksum=True
        ) as writer:
            for start in range(0, len(ids), _AT_ONCE):
                part = ids[start : start + _AT_ONCE].tolist()
                writer.write_batch(_batch(pa, schema, memory, part, thumbnails=thumbnails))
                if progress is not None:
                    progress(start + len(part))
        size = draft.stat().st_size
    return ExportReport(entries=len(ids), bytes=size)


def _schema(pa: Any, dim: int) -> Any:
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("category", pa.string(), nullable=False),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("content", pa.binary(), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("thumbnail", pa.binary()),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )


def _batch(pa: Any, schema: Any, memory: Memory, ids: Sequence[int], *, thumbnails: bool) -> Any:
    entries = list(memory.records(ids))
    vectors = np.ascontiguousarray(memory.vectors(ids), dtype=np.float32)
    columns = {
        "id": ids,
        "category": [entry.category for entry in entries],
        "modality": [entry.modality for entry in entries],
        "source": [entry.source for entry in entries],
        "content": [entry.content for entry in entries],
        "metadata": [to_json(entry.metadata) for entry in entries],
        "thumbnail": [entry.thumbnail if thumbnails else None for entry in entries],
    }
    arrays = [pa.array(values, type=schema.field(name).type) for name, values in columns.items()]
    flat = pa.array(vectors.reshape(-1), type=pa.float32())
    return pa.record_batch(
        [*arrays, pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)], schema=schema
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetSettings:
    """What a Parquet file says of the memory that it came from.

    Attributes:
        entries: Rows of the file.
        encoder: The memory's; None where the file was not written by `export_parquet`, or lost its metadata in
            another tool.
        thumbnail_size: Longest side of the memory's thumbnails, pixels; None for none.
        metadata: The memory's own.
    """

    entries: int
    encoder: EncoderRecord | None
    thumbnail_size: int | None
    metadata: Mapping[str, Any]


def read_settings(path: str | Path) -> ParquetSettings:
    """Read what a Parquet file is, without its rows.

    Raises:
        DatasetError: It is no Parquet file, is cut off, lacks columns, or a newer rarvision wrote it.
        MissingExtraError: pyarrow is not installed.
    """
    with _opened(Path(path)) as file:
        return _settings(Path(path), file)


def import_parquet(
    path: str | Path,
    into: str | Path | Memory,
    *,
    encoder: Encoder | None = None,
    progress: Callable[[int], None] | None = None,
) -> AddReport:
    """Put the entries of a Parquet file into a memory, with the vectors as they are in the file, to the bit.

    What the memory holds already (same content, category and modality) is skipped; so the same call goes on with an
    import that was stopped, and at most one part of 2,048 entries is read in vain. Entries are numbered anew, in the
    file's order.

    Args:
        path: Written by `export_parquet`, or with the same columns but ``id`` and ``thumbnail``; numbers and texts in
            any width that holds them, ``vector`` a list of any length that is the memory's.
        into: A memory, or the folder of one. A folder that is not there becomes a memory of the encoder that the file
            names, which is not loaded for that.
        encoder: The encoder that made the vectors, checked against what the file says. It must be declared where the
            file does not tell it and ``into`` is no memory yet.
        progress: Called with the number of rows dealt with so far.

    Raises:
        DatasetError: The file is no Parquet, is cut off or damaged, lacks columns, comes from a newer rarvision, or
            has a row that cannot be an entry. A memory that this call made is taken away again; one that was there
            keeps the rows before it.
        EncoderMismatchError: The vectors are another encoder's than the memory's, or than ``encoder``.
        MissingExtraError: pyarrow is not installed.
    """
    source = Path(path)
    with _opened(source) as file:
        settings = _settings(source, file)
        origin = _origin(source, file, settings, encoder)
        if isinstance(into, Memory):
            return _into(into, source, file, origin, progress)
        there = Path(into).exists() and (not Path(into).is_dir() or any(Path(into).iterdir()))
        if there:
            with LocalMemory.open(into) as memory:
                return _into(memory, source, file, origin, progress)
        if origin is None:
            raise DatasetError(
                f"{source} does not say which encoder made its vectors (it was written by another tool than "
                "rarvision); declare the encoder, or import into a memory that is there"
            )
        try:
            with origin.create(into, thumbnails=settings.thumbnail_size, metadata=settings.metadata) as memory:
                return _into(memory, source, file, origin, progress)
        except DatasetError:
            shutil.rmtree(into, ignore_errors=True)
            raise


def _origin(source: Path, file: Any, settings: ParquetSettings, encoder: Encoder | None) -> EncoderRecord | None:
    """The encoder that made the file's vectors, as it says or as the caller declares."""
    if encoder is None:
        return settings.encoder
    if settings.encoder is not None and settings.encoder.known:
        declared = EncoderRecord.declared(encoder)
        settings.encoder.check(declared, ours=str(source), theirs="the one declared is")
        return settings.encoder
    kind = file.schema_arrow.field("vector").type
    dim = getattr(kind, "list_size", encoder.dim)
    if dim != encoder.dim:
        raise EncoderMismatchError(
            f"{source} holds vectors of {dim} dimensions, {encoder.name} makes {encoder.dim}; declare the encoder that "
            "made them, or none"
        )
    return EncoderRecord.declared(encoder)


def _into(
    memory: Memory, source: Path, file: Any, origin: EncoderRecord | None, progress: Callable[[int], None] | None
) -> AddReport:
    if origin is not None:
        origin.check(EncoderRecord.of(memory), ours=str(source), theirs="the memory is")
    added = skipped = 0
    with memory._writing():  # noqa: SLF001 - the package's own; one index at the end rather than many on the way
        for first, entries, vectors in _rows(source, file, memory.dim):
            report = memory.append(entries, vectors)
            added, skipped = added + report.added, skipped + report.skipped
            if progress is not None:
                progress(first + len(entries))
    return AddReport(added=added, skipped=skipped)


# Reading ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    pa, pq = _pyarrow()
    if not path.is_file():
        raise DatasetError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected a Parquet file")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{path}: not a whole Parquet file ({_brief(error)}); if it was cut off, copy or export it again"
        ) from error
    with file:
        yield file


def _settings(path: Path, file: Any) -> ParquetSettings:
    names = list(file.schema_arrow.names)
    if missing := [name for name in _NEEDED if name not in names]:
        raise DatasetError(
            f"{path}: expected the columns {', '.join(_NEEDED)}; got {', '.join(names) or 'none'}; "
            f"{', '.join(missing)} missing"
        )
    rows = int(file.metadata.num_rows)
    text = (file.schema_arrow.metadata or {}).get(_SETTINGS_KEY)
    if text is None:
        return ParquetSettings(entries=rows, encoder=None, thumbnail_size=None, metadata={})
    try:
        values = json.loads(text)
        if (schema := int(values["schema"])) > _SCHEMA_VERSION:
            raise DatasetError(
                f"{path} is from a newer rarvision ({values.get('package_version', 'unknown')}, schema {schema}; "
                f"this one reads {_SCHEMA_VERSION}); upgrade rarvision"
            )
        size = values["thumbnail_size"]
        return ParquetSettings(
            entries=rows,
            encoder=EncoderRecord.from_dict(values),
            thumbnail_size=None if size is None else int(size),
            metadata=dict(values["metadata"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: its rarvision settings cannot be read ({error!r}); export it again") from error


def _rows(path: Path, file: Any, dim: int) -> Iterator[tuple[int, list[NewEntry], Float[np.ndarray, "n dim"]]]:
    """Parts of the file: the number of the first row, and entries and vectors that fit a memory."""
    pa, _ = _pyarrow()
    present = [*_NEEDED, *(name for name in _OPTIONAL if name in file.schema_arrow.names)]
    first = 0
    batches = file.iter_batches(batch_size=_AT_ONCE, columns=present)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                f"{path}: damaged after row {first} ({_brief(error)}); copy or export it again"
            ) from error
        if batch is None:
            return
        yield first, _entries(pa, path, first, batch), _vectors(pa, path, first, batch, dim)
        first += len(batch)


def _entries(pa: Any, path: Path, first: int, batch: Any) -> list[NewEntry]:
    kinds = dict.fromkeys(("category", "modality", "source", "metadata"), pa.string())
    kinds |= dict.fromkeys(("content", "thumbnail"), pa.binary())
    columns = {}
    for name, kind in kinds.items():
        if name not in batch.schema.names:
            columns[name] = [None] * len(batch)
            continue
        column = batch.column(name)
        try:
            columns[name] = column.cast(kind).to_pylist()
        except pa.ArrowException as error:
            raise DatasetError(
                f"{path}: expected {kind} in the column {name}, got {column.type} ({_brief(error)})"
            ) from error
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return [_entry(path, first + offset, row) for offset, row in enumerate(rows)]


def _entry(path: Path, number: int, row: Mapping[str, Any]) -> NewEntry:
    try:
        if missing := [name for name, value in row.items() if value is None and name != "thumbnail"]:
            raise InputError(f"{missing[0]} is null")  # noqa: TRY301 - told with the row's number
        if row["modality"] not in ("image", "text"):
            raise InputError(f"modality must be 'image' or 'text', got {row['modality']!r}")  # noqa: TRY301
        if not row["content"]:
            raise InputError("content is empty; it must tell what was encoded from all else")  # noqa: TRY301
        metadata = json.loads(row["metadata"])
        if not isinstance(metadata, dict):
            raise InputError(f"metadata must be a JSON object, got {row['metadata']!r}")  # noqa: TRY301
        to_json(metadata)
        check_category(row["category"])
    except (InputError, ValueError) as error:
        raise DatasetError(f"{path}, row {number}: {error}") from error
    return NewEntry(
        category=row["category"],
        modality=cast("Modality", row["modality"]),
        source=row["source"],
        content=row["content"],
        metadata=metadata,
        thumbnail=row["thumbnail"],
    )


def _vectors(pa: Any, path: Path, first: int, batch: Any, dim: int) -> Float[np.ndarray, "n dim"]:
    column = batch.column("vector")
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise DatasetError(f"{path}: expected lists of float32 in the column vector, got {kind}")
    if pa.types.is_fixed_size_list(kind):
        lengths = np.full(len(column), kind.list_size)
    else:
        pc = importlib.import_module("pyarrow.compute")
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    for wrong in np.flatnonzero(lengths != dim)[:1].tolist():
        raise DatasetError(
            f"{path}, row {first + wrong}: expected a vector of {dim} numbers, got {max(int(lengths[wrong]), 0)}"
        )
    values = column.flatten()  # leaves nulls out: then there are fewer
    if column.null_count or values.null_count or len(values) != len(column) * dim:
        raise DatasetError(f"{path}, rows from {first}: a vector, or a number in one, is null")
    vectors = values.cast(pa.float32()).to_numpy(zero_copy_only=False).reshape(len(column), dim)
    good = np.isfinite(vectors).all(axis=1) & (np.linalg.norm(vectors, axis=1) > 0)
    for wrong in np.flatnonzero(~good)[:1].tolist():
        raise DatasetError(f"{path}, row {first + wrong}: the vector is zero or not finite")
    result: Float[np.ndarray, "n dim"] = vectors
    return result


def _brief(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _pyarrow() -> tuple[Any, Any]:
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError("Parquet files need pyarrow: pip install 'rarvision[parquet]'")
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
