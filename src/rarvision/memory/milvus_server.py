"""A Milvus server or a Milvus Lite database as `MilvusMemory` needs it: connecting, calls in parts, errors as ours."""

from __future__ import annotations

import base64
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, final

import numpy as np
from jaxtyping import Float

from rarvision.errors import (
    InputError,
    MemoryCorruptError,
    MemoryExistsError,
    MemoryLockedError,
    MemoryNotFoundError,
    MemoryStoreError,
    MemoryUnavailableError,
    MissingExtraError,
    OptionError,
)

__all__ = ["IDS_AT_ONCE", "MAX_RESULTS", "MAX_TEXT", "Blobs", "IndexName", "Server", "credentials", "parts"]

MAX_RESULTS = 16_384
"""Most rows of one query and most neighbours of one search: Milvus' own limit."""
MAX_TEXT = 65_535
"""Most bytes of a text field: Milvus' own limit."""
IDS_AT_ONCE = 2_048
"""Ids that one request names."""

_ROWS_AT_ONCE = 1_000
_BYTES_AT_ONCE = 16 * 2**20  # a server refuses messages above 64 MiB as it comes
_HITS_AT_ONCE = 65_536
_BLOB = 45_000  # bytes whose base64 fits a text field
_INSTALL = "a memory in Milvus needs pymilvus: pip install 'rarvision[milvus]'"
_GONE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "CANCELLED", "RESOURCE_EXHAUSTED")

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_lite_users: dict[str, int] = {}
_lite_lock = threading.Lock()


def parts(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """Slices of ``size`` items; the last may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))


@final
class Server:
    """One connection; reads are strongly consistent.

    Args:
        uri: A path that ends in ``.db`` (Milvus Lite) or ``http://host:port`` / ``https://host:port``.
        new: Make the Milvus Lite database where there is none.
        token: What a server asks for: ``user:password`` or an API key; never printed.
        database: Name of a server's database.
        timeout_s: Seconds that one call may take.
    """

    def __init__(self, uri: str, *, new: bool, token: str, database: str, timeout_s: float) -> None:
        if timeout_s <= 0:
            raise OptionError(f"timeout_s must be above 0 seconds, got {timeout_s}")
        self.is_lite = not uri.startswith(("http://", "https://"))
        self.uri = str(Path(uri).resolve()) if self.is_lite else uri
        self._timeout = timeout_s
        self._closed = False
        if importlib.util.find_spec("pymilvus") is None:
            raise MissingExtraError(_INSTALL)
        if self.is_lite:
            _start_lite(self.uri, new=new)
        self._client = self._connect(token, database)

    def _connect(self, token: str, database: str) -> Any:
        from pymilvus import MilvusClient

        # It writes each failed call with its traceback to standard error; the errors that we raise say it all.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        try:
            return self._call(
                f"connect to {self.uri}",
                lambda: MilvusClient(
                    self.uri, token=token, db_name=database, timeout=self._timeout, dedicated=not self.is_lite
                ),
            )
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """End the connection, and with the last one to a Milvus Lite database free its lock; harmless when repeated."""
        if not self._closed:
            self._client.close()
            self._release()

    def _release(self) -> None:
        if not self._closed:
            self._closed = True
            if self.is_lite:
                _stop_lite(self.uri)

    def _call(self, action: str, function: Callable[[], _Result]) -> _Result:
        if self._closed:
            raise MemoryStoreError(f"the memory in {self.uri} is closed; open it again")
        try:
            return function()
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("pymilvus", "grpc"):
                raise
            raise self._translated(action, error) from error

    def _translated(self, action: str, error: Any) -> MemoryStoreError:
        """A third-party error as ours."""
        text = str(getattr(error, "message", "") or error)
        code = int(getattr(error, "code", 0)) if not callable(getattr(error, "code", 0)) else 0
        name = "" if not callable(getattr(error, "code", None)) else str(error.code())
        if code == 100:
            return MemoryNotFoundError(f"{self.uri}: cannot {action}: {text}. Somebody has removed the collection")
        if code == 2 or any(word in name or word in text for word in (*_GONE, "Fail connecting", "auth check failure")):
            return MemoryUnavailableError(
                f"{self.uri}: cannot {action} within {self._timeout:g} s: {text}. Check that the server runs, its "
                "address, and the credentials (RARVISION_MILVUS_TOKEN, or RARVISION_MILVUS_USER and "
                "RARVISION_MILVUS_PASSWORD)"
            )
        return MemoryStoreError(f"{self.uri}: cannot {action}: {text}")

    # Collections ------------------------------------------------------------------------------------------------

    def has(self, collection: str) -> bool:
        """Whether there is such a collection."""
        return bool(self._call("look for a collection", lambda: self._client.has_collection(collection, **self._in())))

    def make(
        self,
        collection: str,
        fields: Mapping[str, tuple[str, Mapping[str, Any]]],
        *,
        index: str = "FLAT",
        metric: str = "IP",
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Make and load a collection.

        Args:
            collection: Its name.
            fields: By name: a Milvus type and the field's options; the first is the primary key. Without a vector
                among them one that is never used is added, for Milvus asks for one.
            index: The kind of index of the vectors.
            metric: How vectors are compared.
            parameters: The index's own.
        """
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        wanted = dict(fields)
        vector = next((name for name, (kind, _) in wanted.items() if kind == "FLOAT_VECTOR"), None)
        if vector is None:
            vector = "unused"
            wanted[vector] = ("FLOAT_VECTOR", {"dim": 2})
        for number, (name, (kind, options)) in enumerate(wanted.items()):
            extra = {key: DataType[value] if key == "element_type" else value for key, value in options.items()}
            schema.add_field(name, DataType[kind], is_primary=number == 0, **extra)
        indexes = self._client.prepare_index_params()
        indexes.add_index(vector, index_type=index, metric_type=metric, params=dict(parameters or {}))

        def create() -> None:
            self._client.create_collection(
                collection, schema=schema, index_params=indexes, consistency_level="Strong", **self._in()
            )
            self._client.load_collection(collection, **self._in())

        self._call(f"make the collection {collection!r}", create)

    def load(self, collection: str) -> None:
        """Have the collection ready for searches."""
        self._call(f"load {collection!r}", lambda: self._client.load_collection(collection, **self._in()))

    def drop(self, collection: str) -> None:
        """Delete a collection with all that it holds."""
        self._call(f"drop {collection!r}", lambda: self._client.drop_collection(collection, **self._in()))

    def dim(self, collection: str) -> int:
        """Dimensions of the collection's vectors; 0 where it has none called ``vector``."""
        described = self._call("describe", lambda: self._client.describe_collection(collection, **self._in()))
        found = [field["params"].get("dim", 0) for field in described["fields"] if field["name"] == "vector"]
        return int(found[0]) if found else 0

    def flush(self, collection: str) -> None:
        """Have what was written last sealed and indexed."""
        self._call(f"flush {collection!r}", lambda: self._client.flush(collection, **self._in()))

    def version(self) -> str:
        """What the server calls its version."""
        return str(self._call("ask for the version", lambda: self._client.get_server_version(**self._in())))

    def _in(self) -> dict[str, float]:
        return {"timeout": self._timeout}

    # Rows -------------------------------------------------------------------------------------------------------

    def put(self, collection: str, rows: Iterable[Mapping[str, Any]], *, sizes: Callable[[Any], int]) -> None:
        """Insert rows, or replace those of the same key.

        Args:
            collection: Where.
            rows: With every field; ``unused`` is filled in.
            sizes: About how many bytes a row takes.
        """
        batch: list[dict[str, Any]] = []
        weight = 0
        for row in rows:
            batch.append(dict(row) if "vector" in row else {**row, "unused": [1.0, 0.0]})
            weight += sizes(row)
            if len(batch) == _ROWS_AT_ONCE or weight >= _BYTES_AT_ONCE:
                self._upsert(collection, batch)
                batch, weight = [], 0
        if batch:
            self._upsert(collection, batch)

    def _upsert(self, collection: str, batch: list[dict[str, Any]]) -> None:
        from pymilvus.exceptions import MilvusException

        try:
            self._call(f"write to {collection!r}", lambda: self._client.upsert(collection, data=batch, **self._in()))
        except MemoryStoreError as error:
            if isinstance(error.__cause__, MilvusException) and "exceeds max" in str(error):
                raise InputError(f"a value is longer than Milvus takes: {error}") from error
            raise

    def delete(self, collection: str, keys: Sequence[Any]) -> None:
        """Delete rows by key; unknown ones are no error."""
        for part in parts(keys, IDS_AT_ONCE):
            self._call(
                f"remove rows of {collection!r}",
                lambda part=part: self._client.delete(collection, ids=list(part), **self._in()),  # type: ignore[misc]
            )

    def get(self, collection: str, keys: Sequence[Any], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Rows by key, in any order; unknown keys are left out."""
        if not len(keys):
            return []
        found = self._call(
            f"read {collection!r}",
            lambda: self._client.get(
                collection, ids=list(keys), output_fields=list(fields), consistency_level="Strong", **self._in()
            ),
        )
        return [dict(row) for row in found]

    def query(
        self, collection: str, condition: str, fields: Sequence[str], *, limit: int | None = MAX_RESULTS
    ) -> list[dict[str, Any]]:
        """Rows that meet a condition, in any order; at most ``limit``."""
        limited = {} if limit is None else {"limit": limit}
        found = self._call(
            f"read {collection!r}",
            lambda: self._client.query(
                collection,
                filter=condition,
                output_fields=list(fields),
                consistency_level="Strong",
                **limited,
                **self._in(),
            ),
        )
        return [dict(row) for row in found]

    def count(self, collection: str, condition: str = "") -> int:
        """Rows that meet a condition."""
        return int(self.query(collection, condition, ["count(*)"], limit=None)[0]["count(*)"])

    def search(
        self,
        collection: str,
        vectors: Float[np.ndarray, "n dim"],
        k: int,
        *,
        condition: str,
        field: str,
        parameters: Mapping[str, Any],
    ) -> list[list[tuple[float, int, int]]]:
        """For each vector at most k rows: similarity, key, and the value of ``field``."""
        results: list[list[tuple[float, int, int]]] = []
        size = max(1, min(1_024, _HITS_AT_ONCE // k))
        for start in range(0, len(vectors), size):
            part = vectors[start : start + size]
            found = self._call(
                f"search {collection!r}",
                lambda part=part: self._client.search(  # type: ignore[misc]
                    collection,
                    data=part.tolist(),
                    anns_field="vector",
                    limit=k,
                    filter=condition,
                    output_fields=[field],
                    search_params={"metric_type": "IP", "params": dict(parameters)},
                    consistency_level="Strong",
                    **self._in(),
                ),
            )
            results += [[(hit["distance"], hit["id"], hit["entity"][field]) for hit in hits] for hits in found]
        return results


@final
class Blobs:
    """Bytes of any length under text keys: pieces in a collection of text fields."""

    FIELDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
        "key": ("VARCHAR", {"max_length": 256}),
        "piece": ("INT64", {}),
        "pieces": ("INT64", {}),
        "text": ("VARCHAR", {"max_length": MAX_TEXT}),
    }

    def __init__(self, server: Server, collection: str) -> None:
        self._server = server
        self.collection = collection

    def put(self, values: Mapping[str, bytes]) -> None:
        """Store or replace."""
        rows = (
            {
                "key": f"{key}/{number}",
                "piece": number,
                "pieces": max(1, -(-len(value) // _BLOB)),
                "text": base64.b64encode(value[number * _BLOB : (number + 1) * _BLOB]).decode(),
            }
            for key, value in values.items()
            for number in range(max(1, -(-len(value) // _BLOB)))
        )
        self._server.put(self.collection, rows, sizes=lambda row: len(row["text"]))

    def get(self, keys: Sequence[str]) -> dict[str, bytes]:
        """What is stored under the keys; unknown ones are left out."""
        fields = ["key", "pieces", "text"]
        heads: dict[str, dict[str, Any]] = {}
        for part in parts(keys, 256):
            for row in self._server.get(self.collection, [f"{key}/0" for key in part], fields):
                heads[row["key"].removesuffix("/0")] = row
        rest = [f"{key}/{n}" for key, row in heads.items() for n in range(1, row["pieces"])]
        more = {row["key"]: row for part in parts(rest, 256) for row in self._server.get(self.collection, part, fields)}
        try:
            return {
                key: b"".join(
                    base64.b64decode((more[f"{key}/{n}"] if n else row)["text"]) for n in range(row["pieces"])
                )
                for key, row in heads.items()
            }
        except KeyError as error:
            raise MemoryCorruptError(f"{self.collection}: a piece is missing: {error}") from error

    def delete(self, keys: Sequence[str]) -> None:
        """Forget; unknown keys are no error."""
        rows = [f"{key}/0" for key in keys]
        counts = {
            row["key"]: row["pieces"]
            for part in parts(rows, IDS_AT_ONCE)
            for row in self._server.get(self.collection, part, ["key", "pieces"])
        }
        self._server.delete(
            self.collection, [f"{row.removesuffix('/0')}/{n}" for row, pieces in counts.items() for n in range(pieces)]
        )

    def count(self) -> int:
        """How many values."""
        return self._server.count(self.collection, "piece == 0")


# Milvus Lite: a server inside this process, one for a database ----------------------------------------------------


def _start_lite(path: str, *, new: bool) -> None:
    """Check what is there, and have this process serve it; counted, so that the last one to close frees its lock."""
    folder = Path(path)
    _check_lite(folder, new=new)
    if importlib.util.find_spec("milvus_lite") is None:
        raise MissingExtraError(_INSTALL)
    from milvus_lite.server_manager import server_manager_instance

    # The server in this process writes a traceback for each call of the client that it does not know; the client can
    # do without those.
    logging.getLogger("grpc._server").setLevel(logging.CRITICAL)
    log = logging.getLogger("milvus_lite.server_manager")
    caught = _Caught()
    with _lite_lock:
        if new:
            folder.parent.mkdir(parents=True, exist_ok=True)
        log.addHandler(caught)
        propagate, log.propagate = log.propagate, False
        try:
            started = server_manager_instance.start_and_get_uri(path)
        finally:
            log.removeHandler(caught)
            log.propagate = propagate
        if started is not None:
            _lite_users[path] = _lite_users.get(path, 0) + 1
            return
    if caught.name_of_error == "DataDirLockedError":
        raise MemoryLockedError(
            f"{path}: another process has this Milvus Lite database open, and only one can; close it there, or use a "
            "Milvus server"
        ) from caught.error
    raise MemoryStoreError(f"{path}: Milvus Lite cannot open it: {caught.error}") from caught.error


def _check_lite(folder: Path, *, new: bool) -> None:
    if folder.suffix != ".db":
        raise OptionError(f"{folder}: a Milvus Lite database's name ends in .db; a server's address begins with http")
    if folder.is_file():
        raise MemoryStoreError(
            f"{folder}: not a Milvus Lite database (a folder since milvus-lite 3; older ones are single files, which "
            "this version cannot read). Choose another path"
        )
    there = folder.is_dir() and any(folder.iterdir())
    if there and not (folder / "collections").is_dir():
        problem = f"{folder}: a folder with something else than a Milvus Lite database; choose another path"
        raise MemoryExistsError(problem) if new else MemoryNotFoundError(problem)
    if not there and not new:
        raise MemoryNotFoundError(f"{folder}: no Milvus Lite database there. Make one with `rarvision memory create`")


def _stop_lite(path: str) -> None:
    from milvus_lite.server_manager import server_manager_instance

    with _lite_lock:
        _lite_users[path] = _lite_users.get(path, 1) - 1
        if _lite_users[path] <= 0:
            del _lite_users[path]
            server_manager_instance.release_server(path)


class _Caught(logging.Handler):
    """Milvus Lite logs why it did not start, and raises nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None

    @property
    def name_of_error(self) -> str:
        return type(self.error).__name__

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.error = record.exc_info[1]


def credentials(*, token: str | None, user: str | None, password: str | None) -> str:
    """A server's token, from the arguments or the environment."""
    if token is None and user is None:
        token = os.environ.get("RARVISION_MILVUS_TOKEN")
    if token:
        return token
    user = user if user is not None else os.environ.get("RARVISION_MILVUS_USER")
    password = password if password is not None else os.environ.get("RARVISION_MILVUS_PASSWORD")
    if bool(user) != bool(password):
        raise OptionError(
            "a Milvus user needs a password too, and the other way round: user=… and password=…, or "
            "RARVISION_MILVUS_USER and RARVISION_MILVUS_PASSWORD"
        )
    return f"{user}:{password}" if user else ""


IndexName = Literal["auto", "exact", "hnsw", "ivf"]
