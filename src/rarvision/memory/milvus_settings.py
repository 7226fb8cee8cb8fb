"""What a memory in Milvus is: its name, its index, its settings; checked when it is made and when it is opened."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rarvision.errors import MemoryCorruptError, MemoryExistsError, MemoryNotFoundError, MemoryStoreError, OptionError
from rarvision.memory.milvus_store import MilvusStore

__all__ = ["INDEXES", "SCHEMA", "check_name", "clear_unfinished", "read_settings", "split_parameters"]

SCHEMA = 1
INDEXES = {"exact": "FLAT", "hnsw": "HNSW", "ivf": "IVF_FLAT"}
BUILT_WITH: Mapping[str, Mapping[str, int]] = {
    "exact": {},
    "hnsw": {"M": 32, "efConstruction": 200},
    "ivf": {"nlist": 1_024},
}
ASKED_WITH = {"exact": (), "hnsw": ("ef",), "ivf": ("nprobe",)}


def check_name(name: str) -> None:
    """Raise `OptionError` where Milvus cannot call a collection so."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", name):
        raise OptionError(
            f"a memory's name in Milvus is letters, digits and underscores, not beginning with a digit, at most 200; "
            f"got {name!r}"
        )


def split_parameters(kind: str, given: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """What the index is built and what it is asked with."""
    known = {*BUILT_WITH[kind], *ASKED_WITH[kind]}
    for name, value in given.items():
        if name not in known or value < 1:
            raise OptionError(
                f"index parameters of {kind!r} are {', '.join(sorted(known)) or 'none'}, 1 or more; "
                f"got {name}={value!r}"
            )
    built = {name: given.get(name, default) for name, default in BUILT_WITH[kind].items()}
    return built, {name: given[name] for name in ASKED_WITH[kind] if name in given}


def clear_unfinished(store: MilvusStore) -> None:
    """Refuse what is there; drop what a creation that was stopped has left, which holds nothing."""
    there = [collection for collection in store.collections if store.server.has(collection)]
    if there and there[-1] == store.settings.collection:
        store.server.load(there[-1])
    if there and (there[-1] != store.settings.collection or store.settings.get(["settings"])):
        raise MemoryExistsError(
            f"{store.server.uri}: the collection {there[-1]!r} is there already; open the memory {store.name!r}, or "
            "choose another name"
        )
    for collection in there:
        store.server.drop(collection)


def read_settings(store: MilvusStore) -> dict[str, Any]:
    """The settings; raises an error that says why it cannot be opened."""
    where = f"{store.server.uri}#{store.name}"
    text = store.settings.get(["settings"]).get("settings")
    if text is None:
        raise MemoryNotFoundError(f"{where}: a memory that was not made to its end; make it again")
    try:
        settings: dict[str, Any] = json.loads(text)
        if int(settings["schema"]) > SCHEMA:
            raise MemoryStoreError(
                f"{where}: made by a newer version of rarvision (schema {settings['schema']}, this one knows "
                f"{SCHEMA}); upgrade rarvision"
            )
        wanted = int(settings["dim"])
        needed = ("encoder_name", "encoder_fingerprint", "encoder_revision", "probe", "index", "index_kind")
        _ = [settings[key] for key in (*needed, "built_with", "asked_with", "thumbnails", "metadata")]
    except (KeyError, ValueError, TypeError) as error:
        raise MemoryCorruptError(f"{where}: the memory's settings are incomplete: {error!r}") from error
    for collection in store.entries.values():
        found = store.server.dim(collection)
        if found != wanted:
            raise MemoryCorruptError(
                f"{where}: expected vectors of {wanted} dimensions in {collection!r}, got {found}: the collection is "
                "not this memory's. Restore it from a backup"
            )
    return settings
