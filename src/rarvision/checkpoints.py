"""What a user names as a model: a folder on this machine, or a repository on the model hub."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rarvision.errors import RarvisionError

__all__ = [
    "checkpoint_file",
    "checkpoint_source",
    "copy_companions",
    "weight_files",
    "weights_fingerprint",
    "without_weight_bars",
]

_SAMPLE = 4096
"""Bytes at either end of a tensor that its fingerprint reads."""

_COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
"""What a checkpoint holds beside its configuration and weights."""


def checkpoint_source(model: str | Path, *, missing: type[RarvisionError]) -> str:
    """What ``from_pretrained`` takes: the folder with ``~`` replaced, or the hub name as it is.

    Args:
        model: A folder, or a hub name such as ``openai/clip-vit-base-patch16``.
        missing: Raised where a folder was meant (a `Path`, or a text that begins or is divided like one) and there is
            none, before the hub is asked for it.
    """
    text = str(model)
    folder = Path(text)
    if text.startswith("~"):
        try:
            folder = folder.expanduser()
        except RuntimeError as error:
            raise missing(f"no model folder at {text}: {error}; write the path out") from error
        text = str(folder)
    meant = isinstance(model, Path) or folder.is_absolute() or text.startswith(".") or text.count("/") > 1
    if meant and not folder.is_dir():
        raise missing(f"no model folder at {text}; give a folder with config.json, or a hub name")
    return text


@contextmanager
def without_weight_bars() -> Iterator[None]:
    """Keep transformers' bars of loading weights out of a program's output; the hub's bars of downloads stay."""
    from transformers.utils import logging

    def hidden(bar: Any, args: Any, kwargs: Any) -> Any:
        return bar(*args, **{**kwargs, "disable": True})

    before = logging.set_tqdm_hook(hidden)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def checkpoint_file(model: str, file: str, revision: str | None) -> Path | None:
    """A checkpoint's file on this machine, downloaded where it must be; None where the checkpoint has none."""
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False}
    path = cached_file(model, file, revision=revision, **quiet)
    return None if path is None else Path(path)


def weight_files(
    model: str, *, revision: str | None, missing: type[RarvisionError]
) -> list[tuple[Path, list[str] | None]]:
    """The safetensors files of a checkpoint and the tensors to read from each, None for all of them.

    Sharded weights come in the order of the tensors' names, not of the shards: a file may come several times, so that
    what is computed in this order does not depend on how the weights were split.

    Raises:
        RarvisionError: Of the class ``missing``, where there are no safetensors.
    """
    if single := checkpoint_file(model, "model.safetensors", revision):
        return [(single, None)]
    listing = checkpoint_file(model, "model.safetensors.index.json", revision)
    if listing is None:
        raise missing(f"{model}: no model.safetensors to compute a fingerprint from")
    shards: dict[str, str] = json.loads(listing.read_text(encoding="utf-8"))["weight_map"]
    files = {file: listing.parent / file for file in set(shards.values())}
    for file, path in files.items():
        if not path.is_file():
            files[file] = checkpoint_file(model, file, revision) or path
    grouped = itertools.groupby(sorted(shards.items()), key=lambda item: item[1])
    return [(files[file], [name for name, _ in items]) for file, items in grouped]


def weights_fingerprint(model: str, *, revision: str | None, missing: type[RarvisionError]) -> str:
    """Which weights these are, in the time that opening them takes: ``weights:`` and a SHA-256.

    It covers the name, dtype and shape of every stored tensor, and the first and last 4,096 bytes of it. Training
    changes all of a tensor, so other weights have another fingerprint, without reading the gigabytes between.

    Args:
        model: As `checkpoint_source` gives it.
        revision: On the hub.
        missing: Raised where there are no safetensors, or where they are cut short.
    """
    digest = hashlib.sha256()
    for path, names in weight_files(model, revision=revision, missing=missing):
        try:
            _add_weights(digest, path, names)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise missing(f"{path}: the weights cannot be read ({error}); get the checkpoint anew") from error
    return f"weights:{digest.hexdigest()}"


def _add_weights(digest: Any, path: Path, names: list[str] | None) -> None:
    """Add tensors of a safetensors file: the length of its header, the header as JSON, then the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise ValueError("the file is cut short inside its header")
        header = json.loads(file.read(start - 8))
        for name in names or sorted(key for key in header if key != "__metadata__"):
            entry = header[name]
            begin, end = (start + offset for offset in entry["data_offsets"])
            if end > size:
                raise ValueError(f"the file is cut short: it has {size:,} bytes, {name} ends at {end:,}")
            digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            for at in (begin, max(begin, end - _SAMPLE)):
                file.seek(at)
                digest.update(file.read(min(_SAMPLE, end - at)))


def copy_companions(model: str, target: Path, *, revision: str | None) -> None:
    """Copy a checkpoint's tokenizer, processor, chat template and generation settings into another's folder."""
    for name in _COMPANIONS:
        if found := checkpoint_file(model, name, revision):
            shutil.copyfile(found, target / name)
