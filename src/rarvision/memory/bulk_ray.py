"""Images into a memory by many machines: Ray Data decodes and encodes, this process alone writes."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import numpy as np
from jaxtyping import Float

from rarvision import errors
from rarvision.encoders import Encoder, TransformersEncoder, ordered_map, probe_matches, worker_pool
from rarvision.encoders.base import batch_size_of
from rarvision.errors import (
    EncoderError,
    EncoderMismatchError,
    InputError,
    MissingExtraError,
    OptionError,
    RarvisionError,
)
from rarvision.memory.adding import Adding, Decode, batches, hash_sample
from rarvision.memory.base import Memory
from rarvision.memory.records import AddReport, NewEntry
from rarvision.types import Sample

__all__ = ["add_with_ray", "loader_of"]

_ROUND = 65_536  # images that one Ray Data run is given: bounds what is in flight, and is worth the start
_MOST_BLOCKS = 4_096
_REACH_S = 10.0
_TRIES = 3  # runs over what is left when Ray loses more than it can repair by itself
_MAX_PIXELS = "RARVISION_MAX_PIXELS"

_Fresh = tuple[Sample, NewEntry]


def add_with_ray(
    memory: Memory,
    samples: Iterable[Sample],
    *,
    load: Callable[[], Encoder] | None = None,
    batch_size: int = 32,
    address: str | None = None,
    workers: int | None = None,
    cpus_per_worker: float = 1,
    gpus_per_worker: float | None = None,
    on_error: Callable[[Sample, InputError], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> AddReport:
    """Like `Memory.add`, with the decoding and encoding done by Ray workers, each with an encoder of its own.

    This process hashes the images, so that what the memory holds is skipped before anything is encoded, and stores
    the vectors batch by batch in the order of the samples. Interrupted, the same call again goes on; what was in flight
    is encoded again. A worker or a node that dies costs time only. The entries are those of `Memory.add`.

    Args:
        memory: Any; it needs no encoder of its own here.
        samples: Images with labels. Files must be readable under the same path on every node.
        load: Gives the encoder, in the workers; must be picklable. By default the memory's, loaded by its name.
        batch_size: Images in one forward pass.
        address: Of a running cluster (``auto``, ``ray://host:10001``); by default the one this process is connected
            to, that of ``RAY_ADDRESS``, or a cluster of this machine alone for the time of the call.
        workers: Most encoders at work; by default as many as the cluster has GPUs, or CPUs where it has none.
        cpus_per_worker: CPUs that each of them takes.
        gpus_per_worker: GPUs that each of them takes; by default 1 where the cluster has any.
        on_error: As in `Memory.add`.
        progress: As in `Memory.add`.

    Raises:
        MissingExtraError: Ray is not installed.
        EncoderError: The encoder cannot be loaded in the workers, or not by name; no cluster at the address; or the
            run failed several times.
        EncoderMismatchError: What the workers load is another encoder than the memory's.
        InputError: A bad sample, and there is no ``on_error``; what came before it has been stored.
    """
    size = batch_size_of(batch_size)
    if workers is not None and workers < 1:
        raise OptionError(f"workers must be at least 1, got {workers}")
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("encoding with Ray needs ray: pip install 'rarvision[ray]'")
    task = _Task(
        load=load or loader_of(memory),
        fingerprint=memory.encoder_fingerprint,
        probe=memory._stored_probe(),  # noqa: SLF001 - one package
        thumbnail_size=memory._thumbnail_size,  # noqa: SLF001
        batch_size=size,
        max_pixels=os.environ.get(_MAX_PIXELS),
    )
    adding = Adding(on_error=on_error, progress=progress)
    with memory._writing(), worker_pool() as pool:  # noqa: SLF001
        hashed = ordered_map(hash_sample, samples, pool=pool, ahead=4 * size)
        fresh = batches(adding.unknown(hashed, memory._contains), _ROUND)  # noqa: SLF001
        first = next(fresh, None)
        if first is not None:
            with _cluster(address):
                run = _Run(memory, adding, task, workers=workers, cpus=cpus_per_worker, gpus=gpus_per_worker)
                run.encode(first)
                for each in fresh:  # ends where a bad sample ends the addition
                    run.encode(each)
    adding.raise_failure()
    return adding.report()


def loader_of(memory: Memory) -> Callable[[], Encoder]:
    """What loads the memory's encoder by its name, anywhere; `EncoderError` where that cannot be."""
    name, revision = memory.encoder_name, memory._encoder_revision  # noqa: SLF001 - one package
    if not name or not memory.encoder_fingerprint.startswith("transformers:"):
        raise EncoderError(
            f"Ray workers load the encoder by its name, and {name or 'an unknown encoder'!r} cannot be loaded so; give "
            "load=, a function at the top of a module that returns it"
        )
    return _ByName(name, revision)


@final
class _ByName:
    def __init__(self, name: str, revision: str | None) -> None:
        self._name = name
        self._revision = revision

    def __call__(self) -> Encoder:
        return TransformersEncoder(self._name, revision=self._revision)


@final
class _Task:
    """What a worker needs to know; travels to it by pickle."""

    def __init__(
        self,
        *,
        load: Callable[[], Encoder],
        fingerprint: str,
        probe: Float[np.ndarray, "p dim"] | None,
        thumbnail_size: int | None,
        batch_size: int,
        max_pixels: str | None,
    ) -> None:
        self.load = load
        self.fingerprint = fingerprint
        self.probe = probe
        self.thumbnail_size = thumbnail_size
        self.batch_size = batch_size
        self.max_pixels = max_pixels

    def encoder(self) -> Encoder:
        """The memory's encoder, loaded here; raises `EncoderMismatchError` where it is another."""
        found = self.load()
        same = found.fingerprint == self.fingerprint
        if not same and self.probe is not None and self.probe.shape[1] == found.dim:
            same = probe_matches(self.probe, found.probe())
        if not same:
            raise EncoderMismatchError(
                f"the memory was made by the encoder {self.fingerprint}; the workers load {found.name} "
                f"({found.fingerprint}). Give them the same model"
            )
        return found


@final
class _Encode:
    """Runs in a worker: a batch of images becomes vectors and thumbnails, or an error's name and text for each."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self._encoder: Encoder | None = None
        self._failure: RarvisionError | None = None
        if task.max_pixels is not None:
            os.environ[_MAX_PIXELS] = task.max_pixels
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            self._encoder = task.encoder()
        except RarvisionError as error:  # raised here, it would be tried again and again
            self._failure = error

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        count = len(batch["number"])
        wrong: list[tuple[str, str]] = [("", "")] * count
        thumbnails: list[bytes] = [b""] * count
        vectors = np.zeros((count, 1), dtype=np.float32)
        try:
            if self._encoder is None:
                raise self._failure or EncoderError("no encoder")
            good, images = [], []
            vectors = np.zeros((count, self._encoder.dim), dtype=np.float32)
            nothing = NewEntry(category="-", modality="image", source="-", content=b"")
            decode = Decode(self._encoder, self._task.thumbnail_size)
            with worker_pool() as pool:
                given = [
                    (Sample(source="-", image=image, box_xyxy=box, image_size=image_size), nothing)
                    for image, box, image_size in map(pickle.loads, batch["image"])
                ]
                for place, (_, entry, image) in enumerate(
                    self._encoder.map_ahead(decode, given, pool=pool, size=self._task.batch_size)
                ):
                    if isinstance(image, InputError):
                        wrong[place] = (type(image).__name__, str(image))
                    else:
                        thumbnails[place] = entry.thumbnail or b""
                        good.append(place)
                        images.append(image)
            if images:
                vectors[good] = self._encoder.encode_prepared(images, batch_size=self._task.batch_size)
        except RarvisionError as error:
            wrong = [(type(error).__name__, str(error))] * count
        return {
            "number": batch["number"],
            "vector": vectors,
            "thumbnail": np.array([*thumbnails, None], dtype=object)[:-1],
            "error": np.array([kind for kind, _ in wrong]),
            "message": np.array([text for _, text in wrong]),
        }


@final
class _Run:
    """Rounds of images through Ray Data, stored as they come back."""

    def __init__(
        self,
        memory: Memory,
        adding: Adding,
        task: _Task,
        *,
        workers: int | None,
        cpus: float,
        gpus: float | None,
    ) -> None:
        import ray

        held = ray.cluster_resources()
        self._memory = memory
        self._adding = adding
        self._task = task
        self._gpus = gpus if gpus is not None else min(1.0, held.get("GPU", 0.0))
        self._cpus = cpus
        most = held.get("GPU", 0.0) / self._gpus if self._gpus else held.get("CPU", 1.0) / max(cpus, 1e-9)
        self._workers = workers or max(1, int(most))

    def encode(self, items: Sequence[_Fresh]) -> None:
        """Encode and store; where Ray gives up midway, what is left is tried again."""
        from ray.exceptions import RayError

        done = 0
        for attempt in range(1, _TRIES + 1):
            before = done
            try:
                for batch in self._results(items[done:]):
                    self._store(items[done : done + len(batch)], batch)
                    done += len(batch)
            except RayError as error:
                if attempt == _TRIES and done == before:
                    raise RarvisionError(
                        f"Ray failed {attempt} times, with {done:,} of {len(items):,} images of this round stored: "
                        f"{error}. Look at its logs; the same command goes on where this one stopped"
                    ) from error
            else:
                return
        self.encode(items[done:])

    def _results(self, items: Sequence[_Fresh]) -> Iterator[list[dict[str, Any]]]:
        """Rows in the order of the items, a batch at a time."""
        import ray

        if not items:
            return
        size = self._task.batch_size
        given = [pickle.dumps((sample.image, sample.box_xyxy, sample.image_size)) for sample, _ in items]
        rows = [{"number": n, "image": image} for n, image in enumerate(given)]
        blocks = min(_MOST_BLOCKS, math.ceil(len(rows) / size))
        encoded = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            _Encode,
            fn_constructor_args=(self._task,),
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=self._workers, initial_size=self._workers),
            num_cpus=self._cpus,
            num_gpus=self._gpus or None,
        )
        expected = 0
        for batch in encoded.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=1):
            numbers = [int(number) for number in batch["number"]]
            if numbers != list(range(expected, expected + len(numbers))):
                raise RarvisionError("Ray Data returned images in another order than it was given; please report this")
            expected += len(numbers)
            yield [{key: batch[key][place] for key in batch} for place in range(len(numbers))]
        if expected != len(items):
            raise RarvisionError(f"Ray Data returned {expected:,} of {len(items):,} images; run the same again")

    def _store(self, items: Sequence[_Fresh], rows: Sequence[Mapping[str, Any]]) -> None:
        """Store a batch; a bad image that nobody is told of ends it, after what came before."""
        entries, vectors = [], []
        ending: InputError | None = None
        for (sample, entry), row in zip(items, rows, strict=True):
            if row["error"]:
                kind = getattr(errors, str(row["error"]), RarvisionError)
                error = kind(str(row["message"]))
                if not isinstance(error, InputError):
                    raise error
                if not self._adding.is_told:
                    ending = error
                    break
                self._adding.untake(entry)
                self._adding.fail(sample, error)
                continue
            entries.append(replace(entry, thumbnail=bytes(row["thumbnail"]) or None))
            vectors.append(row["vector"])
        if entries:
            self._memory._append(entries, np.stack(vectors).astype(np.float32))  # noqa: SLF001 - one package
            self._adding.stored(len(entries))
        if ending is not None:
            raise ending


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connected, with results in order, and Ray's own bars and log lines off the terminal."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice on machines without GPUs
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # and a false alarm of Ray Data's own actors
    import ray
    import ray.data

    ours = not ray.is_initialized()
    if ours:
        try:
            _reach(address or os.environ.get("RAY_ADDRESS"))
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
        except Exception as error:  # Ray has no class for them
            which = address or os.environ.get("RAY_ADDRESS") or "of this machine"
            raise EncoderError(
                f"cannot start or reach the Ray cluster {which}: {error}. Check the address, and "
                "that a cluster with token authentication finds its token "
                "(RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)"
            ) from error
    context = ray.data.DataContext.get_current()
    options = context.execution_options
    before = (context.enable_progress_bars, options.preserve_order)
    loggers = [logging.getLogger("ray"), logging.getLogger("ray.data")]
    levels = [log.level for log in loggers]
    context.enable_progress_bars, options.preserve_order = False, True
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, options.preserve_order = before
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
        if ours:
            ray.shutdown()


def _reach(address: str | None) -> None:
    """Raise `OSError` where nobody listens at ``HOST:PORT``: Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
