"""The external memory: entries of categories, their vectors, and the encoder that they are bound to."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from rarvision.encoders import (
    Encoder,
    TextCache,
    TransformersEncoder,
    check_templates,
    ordered_map,
    probe_matches,
    worker_pool,
)
from rarvision.encoders.base import batch_size_of
from rarvision.errors import (
    EncoderError,
    EncoderMismatchError,
    InputError,
    MemoryEmptyError,
    OptionError,
)
from rarvision.memory.adding import Adding, Decode, batches, check_category, hash_sample, new_texts, unit_vectors
from rarvision.memory.records import AddReport, Hits, MemoryInfo, NewEntry, Prototypes, Where, closest_of
from rarvision.memory.summaries import content_digest, mean_directions, vector_bytes
from rarvision.memory.transfer import transfer
from rarvision.types import Entry, Modality, Neighbour, Sample

__all__ = ["Memory"]

_TEXT_PASSES = 8


class Memory(abc.ABC):
    """Entries with unit vectors of one encoder, searched by cosine.

    Encoding, skipping what is known, batching and grouping live here; a store implements the abstract methods.
    """

    _bound: Encoder | None = None
    _prototypes_cache: tuple[int, dict[Modality, Prototypes]] | None = None
    _content_cache: tuple[int, str] | None = None

    # What a store implements ------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of dimensions of the vectors."""

    @property
    @abc.abstractmethod
    def encoder_name(self) -> str:
        """Hub name or folder of the encoder; empty where unknown."""

    @property
    @abc.abstractmethod
    def encoder_fingerprint(self) -> str:
        """Fingerprint of the encoder that made the vectors."""

    @property
    @abc.abstractmethod
    def revision(self) -> int:
        """Grows with every change, whoever makes it; for caches."""

    @abc.abstractmethod
    def count(self, modality: Modality | None = None) -> int:
        """Number of entries."""

    @abc.abstractmethod
    def category_names(self) -> Mapping[int, str]:
        """Names by category code; codes are stable and never reused."""

    @abc.abstractmethod
    def categories(self, modality: Modality | None = None) -> list[str]:
        """Names of the categories that have entries, in the order in which they came."""

    @abc.abstractmethod
    def entries(
        self,
        *,
        ids: Sequence[int] | None = None,
        category: str | None = None,
        modality: Modality | None = None,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Iterator[Entry]:
        """Entries that meet all conditions given, by ascending id; unknown ids are left out.

        ``metadata`` is a query as in `Where`.
        """

    @abc.abstractmethod
    def table(self, modality: Modality) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Ids (ascending) and category codes of all entries of a modality."""

    @abc.abstractmethod
    def vectors(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """The entries' unit vectors, float32; raises `OptionError` for an id that is not there."""

    @abc.abstractmethod
    def thumbnail(self, entry_id: int) -> bytes | None:
        """JPEG bytes of the entry's thumbnail, None where none is stored."""

    @abc.abstractmethod
    def records(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> Iterator[NewEntry]:
        """The entries as another memory can store them, in the order of ``ids``; `OptionError` for an unknown id."""

    @abc.abstractmethod
    def remove(
        self,
        *,
        ids: Sequence[int] | None = None,
        category: str | None = None,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Remove the entries that meet all conditions given; returns how many. Without any: `OptionError`."""

    @abc.abstractmethod
    def rename_category(self, old: str, new: str) -> int:
        """Give a category another name; returns how many entries it has.

        Raises:
            OptionError: No category ``old``, or ``new`` is one already (`merge_categories` joins two).
            InputError: ``new`` cannot be a name.
        """

    @abc.abstractmethod
    def merge_categories(self, names: Sequence[str], into: str) -> int:
        """Make one category of several; returns how many entries changed their category.

        What ``into`` holds already (same content, box and modality) is dropped rather than doubled. ``into`` may be
        new, and may be one of ``names``.

        Raises:
            OptionError: A name that is no category.
            InputError: ``into`` cannot be a name.
        """

    @abc.abstractmethod
    def snapshot(self) -> AbstractContextManager[None]:
        """Searches and listings inside see one state, whatever others write meanwhile, where the store can do that."""

    @abc.abstractmethod
    def notes(self) -> dict[str, str]:
        """Small texts that are kept with the memory, by name, such as what was fitted on it."""

    @abc.abstractmethod
    def set_note(self, name: str, text: str | None) -> None:
        """Keep a text under a name, in place of what was there; None removes it."""

    @abc.abstractmethod
    def info(self) -> MemoryInfo:
        """What it is and holds."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release files and connections; harmless when done twice."""

    @abc.abstractmethod
    def _nearest(self, vectors: Float[np.ndarray, "n dim"], k: int, modality: Modality, where: Where | None) -> Hits:
        """Closest entries that meet the conditions: exactly those, however few."""

    @abc.abstractmethod
    def _contains(self, content: bytes, category: str, modality: Modality) -> bool: ...

    @abc.abstractmethod
    def _append(self, entries: Sequence[NewEntry], vectors: Float[np.ndarray, "n dim"]) -> None:
        """Store entries of one modality, durably when it returns, all or none."""

    @abc.abstractmethod
    def _writing(self) -> AbstractContextManager[None]:
        """Held by whoever writes."""

    @abc.abstractmethod
    def _stored_probe(self) -> Float[np.ndarray, "n dim"] | None:
        """What `Encoder.probe` gave when the memory was made."""

    @property
    @abc.abstractmethod
    def _encoder_revision(self) -> str | None: ...

    @property
    @abc.abstractmethod
    def _thumbnail_size(self) -> int | None: ...

    def _content(self, modality: Modality) -> Iterator[bytes]:
        """Bytes that tell the entries' vectors from others; the vectors, where the store keeps no checksums."""
        return vector_bytes(self, modality)

    @property
    def repairs(self) -> tuple[str, ...]:
        """What opening found interrupted, and undid; nothing where that is a server's business."""
        return ()

    # The encoder ------------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> Encoder:
        """The encoder that the memory is bound to, loaded by its name on first use where none was given.

        Raises:
            EncoderMismatchError: Its encoder is unknown (an imported memory), or the name now holds another model.
            EncoderError: It cannot be loaded.
        """
        if self._bound is None:
            if not self.encoder_name:
                raise EncoderMismatchError(
                    f"this memory's vectors come from an unknown encoder ({self.encoder_fingerprint}), so images and "
                    "texts cannot be encoded for it; import it again and declare the encoder that made them"
                )
            if not self.encoder_fingerprint.startswith("transformers:"):
                raise EncoderError(
                    f"this memory was made with the encoder {self.encoder_name!r}, which cannot be loaded by name; "
                    "open the memory with encoder=…"
                )
            self.bind(TransformersEncoder(self.encoder_name, revision=self._encoder_revision))
        if self._bound is None:  # pragma: no cover - bind sets it or raises
            raise EncoderError("no encoder")
        return self._bound

    def bind(self, encoder: Encoder) -> None:
        """Use this encoder; raises `EncoderMismatchError` where the vectors are not its own."""
        self.check_encoder(encoder)
        self._bound = encoder

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise `EncoderMismatchError` unless the encoder is the one that made the vectors, to within rounding."""
        if encoder is self._bound or encoder.fingerprint == self.encoder_fingerprint:
            return
        if encoder.dim == self.dim:
            probe = self._stored_probe()
            if probe is not None and probe_matches(probe, encoder.probe()):
                return
        made_by = f"{self.encoder_name or 'an unknown encoder'} ({self.encoder_fingerprint}, {self.dim} dimensions)"
        raise EncoderMismatchError(
            f"this memory was made by {made_by}; got {encoder.name} ({encoder.fingerprint}, {encoder.dim} dimensions). "
            "Use the same encoder, or make a new memory"
        )

    # Adding -----------------------------------------------------------------------------------------------------

    def add(
        self,
        samples: Iterable[Sample],
        *,
        encoder: Encoder | None = None,
        batch_size: int | None = None,
        on_error: Callable[[Sample, InputError], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> AddReport:
        """Encode labelled images and store them.

        What was stored stays stored when this is interrupted: the same call again skips it, by the image's content and
        its category, and goes on.

        Args:
            samples: Images with labels.
            encoder: Checked against the memory's; the memory's own by default.
            batch_size: Images in one forward pass; the encoder's own by default.
            on_error: Called with a sample that cannot be read or has no label; without it the error is raised, after
                what came before it has been stored.
            progress: Called with the number of samples dealt with so far.

        Raises:
            EncoderMismatchError: Another encoder than the memory's.
            InputError: A bad sample, and there is no ``on_error``.
        """
        if encoder is not None:
            self.check_encoder(encoder)
        active = encoder or self.encoder
        size = batch_size_of(batch_size or active.batch_size)
        adding = Adding(on_error=on_error, progress=progress)
        with self._writing(), worker_pool() as pool:
            hashed = ordered_map(hash_sample, samples, pool=pool, ahead=4 * size)
            fresh = adding.unknown(hashed, self._contains)
            decoded = active.map_ahead(Decode(active, self._thumbnail_size), fresh, pool=pool, size=size)
            readable = batches(adding.readable(decoded), size)
            self._keep(
                (
                    ([entry for entry, _ in batch], active.encode_prepared([i for _, i in batch], batch_size=size))
                    for batch in readable
                ),
                adding,
            )
        adding.raise_failure()
        return adding.report()

    def add_texts(
        self,
        names: Iterable[str],
        *,
        texts: Iterable[str] | None = None,
        metadata: Iterable[Mapping[str, Any]] | None = None,
        templates: str | Sequence[str] = ("{}",),
        encoder: Encoder | None = None,
        batch_size: int | None = None,
        cache: bool | Path = True,
        progress: Callable[[int], None] | None = None,
    ) -> AddReport:
        """Encode category names, or a text for each, and store them as text entries.

        Args:
            names: Categories.
            texts: What is encoded for each of them, such as a description; the name itself by default.
            metadata: JSON values that are kept with each of them, such as an id; nothing by default.
            templates: Each holds ``{}``, which the text replaces, or is the name of a set, such as ``clip-7`` (see
                `rarvision.encoders.TEMPLATE_SETS`); several are averaged into one entry.
            encoder: Checked against the memory's; the memory's own by default.
            batch_size: Texts in one forward pass; the encoder's own by default.
            cache: Whether vectors are kept between runs (see `rarvision.encoders.TextCache`), or in which folder;
                ``RARVISION_CACHE=off`` in the environment turns that off, too.
            progress: Called with the number of names dealt with so far.

        Raises:
            EncoderMismatchError: Another encoder than the memory's.
            InputError: A blank name, or not as many texts or metadata as names.
        """
        if encoder is not None:
            self.check_encoder(encoder)
        active = encoder or self.encoder
        size = batch_size_of(batch_size or active.batch_size)
        filled = check_templates(templates)
        named = list(names)
        described = named if texts is None else list(texts)
        if len(described) != len(named):
            raise OptionError(f"expected one text a name: got {len(named)} names and {len(described)} texts")
        told: list[Mapping[str, Any]] = [{}] * len(named) if metadata is None else list(metadata)
        if len(told) != len(named):
            raise OptionError(f"expected metadata of each name: got {len(named)} names and {len(told)} metadata")
        new = list(new_texts(zip(named, described, told, strict=True), filled))
        adding = Adding(on_error=None, progress=progress)
        at_once = max(1, _TEXT_PASSES * size // len(filled))
        with self._writing(), TextCache(active, cache) as kept:
            fresh = batches(adding.fresh(new, self._contains), at_once)
            self._keep(
                (
                    (batch, kept.encode_texts([e.source for e in batch], templates=filled, batch_size=size))
                    for batch in fresh
                ),
                adding,
            )
        return adding.report()

    def _keep(self, encoded: Iterable[tuple[list[NewEntry], Float[np.ndarray, "n dim"]]], adding: Adding) -> None:
        """Store each batch as soon as it is encoded, so that one at most is lost when it ends."""
        for batch, rows in encoded:
            self._append(batch, rows)
            adding.stored(len(batch))

    def append(self, entries: Sequence[NewEntry], vectors: Float[np.ndarray, "n dim"]) -> AddReport:
        """Store entries whose vectors are there already, made by this memory's encoder.

        Args:
            entries: All of one modality, or both mixed; those that are known already are skipped.
            vectors: One row an entry; stored as they are where they are unit vectors to within half precision,
                so that searches answer as the index that they come from, else normalised.

        Raises:
            OptionError: Not one finite, non-zero vector of the memory's dimensions for each entry.
            InputError: A category that is blank.
        """
        units = unit_vectors(vectors, len(entries), self.dim)
        for entry in entries:
            check_category(entry.category)
        adding = Adding(on_error=None, progress=None)
        with self._writing():
            for modality in ("image", "text"):
                rows = [
                    row
                    for row, entry in enumerate(entries)
                    if entry.modality == modality and adding.is_fresh(entry, self._contains)
                ]
                if rows:
                    self._append([entries[row] for row in rows], units[rows])
                    adding.stored(len(rows))
        return adding.report()

    def copy_to(self, other: Memory, *, progress: Callable[[int], None] | None = None, **conditions: Any) -> AddReport:
        """Store entries in another memory of the same encoder too, with their vectors and thumbnails.

        Interrupted, the same call again skips what is there and goes on.

        Args:
            other: Where to.
            progress: Called with the number of entries dealt with so far.
            **conditions: Those of `entries`; all entries by default.

        Raises:
            EncoderMismatchError: The other memory is another encoder's.
        """
        return transfer(self, other, progress=progress, removing=False, **conditions)

    def move_to(self, other: Memory, *, progress: Callable[[int], None] | None = None, **conditions: Any) -> AddReport:
        """Like `copy_to`; each part is removed here once it is safe there. Interrupted, no entry is lost."""
        return transfer(self, other, progress=progress, removing=True, **conditions)

    # Searching --------------------------------------------------------------------------------------------------

    def nearest(
        self,
        vectors: Float[np.ndarray, "n dim"],
        k: int,
        *,
        modality: Modality | None = None,
        where: Where | None = None,
    ) -> Hits:
        """The k entries closest to each query, as arrays; ties by id.

        Args:
            vectors: Unit vectors of this memory's encoder, float32.
            k: At least 1; more than there are gives all there are.
            modality: ``image`` or ``text``; both together by default.
            where: Only entries that meet these conditions; where fewer than k do, the rest is filled up.

        Raises:
            MemoryEmptyError: Nothing to search.
            OptionError: k below 1, vectors of the wrong shape or not finite.
        """
        if k < 1:
            raise OptionError(f"k must be at least 1, got {k}")
        wanted: tuple[Modality, ...] = ("image", "text") if modality is None else (modality,)
        filled = [each for each in wanted if self.count(each)]
        if not filled:
            held = ", ".join(f"{self.count(each)} {each} entries" for each in ("image", "text"))
            raise MemoryEmptyError(
                f"the memory has nothing to search{f' of modality {modality!r}' if modality else ''}: it holds {held}. "
                "Add images (Memory.add) or names (Memory.add_texts) first"
            )
        hits = [self._nearest(vectors, min(k, self.count(each)), each, where or None) for each in filled]
        return hits[0] if len(hits) == 1 else closest_of(hits, k)

    def search(
        self,
        vectors: Float[np.ndarray, "n dim"],
        k: int,
        *,
        modality: Modality | None = None,
        where: Where | None = None,
    ) -> list[list[Neighbour]]:
        """Like `nearest`, with the entries themselves: for each query at most k neighbours, closest first.

        An entry that another process removes meanwhile is left out; within `snapshot` none is.
        """
        hits = self.nearest(vectors, k, modality=modality, where=where)
        unique = np.unique(hits.ids)
        known = {entry.id: entry for entry in self.entries(ids=[int(i) for i in unique if i >= 0])}
        return [
            [
                Neighbour(entry=known[entry_id], similarity=similarity)
                for entry_id, similarity in zip(ids, similarities, strict=True)
                if entry_id in known
            ]
            for ids, similarities in zip(hits.ids.tolist(), hits.similarities.tolist(), strict=True)
        ]

    def prototypes(self, modality: Modality) -> Prototypes:
        """Each category's mean direction; computed once for each revision of the memory."""
        revision = self.revision
        if self._prototypes_cache is None or self._prototypes_cache[0] != revision:
            self._prototypes_cache = (revision, {})
        cache = self._prototypes_cache[1]
        if modality not in cache:
            cache[modality] = mean_directions(self, modality)
        return cache[modality]

    @property
    def content_hash(self) -> str:
        """SHA-256 of what answers depend on: which entries of which categories there are, and their vectors.

        Equal for a copy of the memory; another one once an entry has been added, removed or replaced. Computed once
        for each revision.
        """
        revision = self.revision
        if self._content_cache is None or self._content_cache[0] != revision:
            self._content_cache = (revision, content_digest(self, self._content))
        return self._content_cache[1]

    def __len__(self) -> int:
        return self.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
