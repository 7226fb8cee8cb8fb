"""From labelled images to ranking examples: who is similar to whom, what is asked, and what the right order is."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
from jaxtyping import Float, Int

from rarvision.datasets.base import Dataset
from rarvision.encoders import Encoder
from rarvision.errors import DatasetError, ImageError, InputError, MemoryExistsError, OptionError
from rarvision.index import exact_search
from rarvision.memory import LocalMemory, Memory
from rarvision.tuning.images import DatasetImages, MemoryImages
from rarvision.tuning.manifest import TuningExample
from rarvision.tuning.windows import ranking_windows, split_halves
from rarvision.tuning.writing import ManifestWriter, example_id, finished_report
from rarvision.types import Entry

__all__ = ["Stage", "TuningReport", "build_tuning_data"]

Stage = Literal["encoding", "retrieving"]
"""What `build_tuning_data` is at; the first one only where it encodes."""

_BLOCK = 256  # queries searched at once; always the same ones together, so that rounding repeats
_SPARE = 4  # neighbours more than needed, for those that turn out to be the asked image itself
_ALIKE = 0.999  # cosine from which on two images may be one
_MARK = "rarvision_tuning"


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningReport:
    """What came of `build_tuning_data`.

    Attributes:
        examples: Examples in the manifest.
        images: Distinct readable images that there were.
        categories: Their categories.
        retrieved_images: Images that neighbours are found among (D_a).
        asked_images: Images that are asked about (D_b); with ``paper_compat`` all, as in D_a.
        images_with_examples: Those of D_b that gave at least one example.
        windows: Windows of neighbours looked at.
        left_out: Windows without an example, by reason; see `ranking_windows`.
        names: Number of examples by how many names they show.
        singletons: Categories with one image, which is in D_a and never asked about.
        self_matches: Neighbours passed by because they are the asked image itself under another label.
        duplicates: Images of the dataset that another one of their category equals, byte for byte.
        thumbnails: Images whose file is gone and whose thumbnail was written instead.
        failures: Source and message of each image that could not be used.
    """

    examples: int
    images: int
    categories: int
    retrieved_images: int
    asked_images: int
    images_with_examples: int
    windows: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[int, int] = field(default_factory=dict)
    singletons: tuple[str, ...] = ()
    self_matches: int = 0
    duplicates: int = 0
    thumbnails: int = 0
    failures: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "names": {str(count): n for count, n in self.names.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`."""
        known = {each.name: values[each.name] for each in fields(cls)}
        return cls(
            **{
                **known,
                "names": {int(count): n for count, n in known["names"].items()},
                "singletons": tuple(known["singletons"]),
                "failures": tuple((source, message) for source, message in known["failures"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class _Options:
    k: int
    neighbours: int
    seed: int
    max_windows: int | None
    fill: bool
    paper_compat: bool

    def __post_init__(self) -> None:
        if self.k < 2:
            raise OptionError(f"k must be at least 2, for there to be something to rank; got {self.k}")
        if self.neighbours < self.k:
            raise OptionError(f"neighbours must be at least k={self.k}, got {self.neighbours}")
        if self.max_windows is not None and self.max_windows < 1:
            raise OptionError(f"max_windows must be at least 1, or None for all, got {self.max_windows}")
        if self.fill and self.paper_compat:
            raise OptionError("fill and paper_compat exclude each other: the authors' windows are not completed")


def build_tuning_data(
    source: Dataset | Memory,
    output: str | Path,
    *,
    encoder: Encoder | None = None,
    k: int = 5,
    neighbours: int = 20,
    seed: int = 0,
    max_windows: int | None = None,
    fill: bool = False,
    paper_compat: bool = False,
    resume: bool = True,
    batch_size: int | None = None,
    on_error: Callable[[str, InputError], None] | None = None,
    progress: Callable[[Stage, int, int], None] | None = None,
) -> TuningReport:
    """Write ranking examples to learn from: for each asked image, windows of its nearest neighbours' names.

    The images are split into two disjoint halves of each category. For each image of the second half (D_b) the nearest
    ones of the first (D_a) are found by exact cosine search; consecutive windows of k of them that hold the true name
    become examples (see `ranking_windows`): distinct names, shown in random order, to be answered with the true name
    first and the others as retrieved. An image is never its own neighbour, whatever it is called.

    Everything is read and written in parts; the result depends on the arguments only. Interrupted, the same call goes
    on after the last example that it wrote, and encodes nothing again: until it is complete, the examples stand in
    ``OUTPUT.part`` and a dataset's vectors in ``OUTPUT.work``. Images that are no files (drawn ones, parts of images,
    thumbnails of files that are gone) are written to a folder named after the output.

    Args:
        source: A dataset with labels and unique sources; or a memory, whose image entries serve as they are.
        output: The manifest, JSON lines; see `rarvision.tuning.manifest`.
        encoder: Encodes a dataset; a memory has its vectors already.
        k: Neighbours in a window.
        neighbours: Neighbours of each image; n give n - k + 1 windows.
        seed: Of the halves, of the order in which names are shown, and of the choice for ``max_windows``.
        max_windows: At most so many examples an image, chosen at random; None for all.
        fill: Complete a window with the names that were retrieved after it, so that it shows k where there are as many.
        paper_compat: Repeat the authors' code: every image is asked about and every image is retrieved, so each has
            itself as its first neighbour; names repeat and are shown as retrieved.
        resume: Whether to go on with, or keep, what an earlier call with these settings wrote; False starts anew.
        batch_size: Images in one forward pass; the encoder's own by default.
        on_error: Called with the source and the error of an image that cannot be used; without it the error is raised.
        progress: Called with the stage, the number of images done, and of all in that stage.

    Returns:
        What came of it; also in the manifest's header.

    Raises:
        OptionError: A value is out of range; or a dataset without an encoder, a memory with one.
        DatasetError: A missing label, a repeated source, or images from which no example can be made.
        InputError: ``output`` holds other settings' examples, or is something else; an image cannot be used, and there
            is no ``on_error``.

    Source: the paper, section 3.3, "Fine-tuning for Ranking".
    """
    options = _Options(
        k=k, neighbours=neighbours, seed=seed, max_windows=max_windows, fill=fill, paper_compat=paper_compat
    )
    path = Path(output)
    work = path.with_name(path.name + ".work")
    folder = path.with_name(path.stem + ".images")
    with ExitStack() as stack:
        if isinstance(source, Memory):
            stack.enter_context(source.snapshot())
        settings = _settings(source, encoder, options)
        done = finished_report(path, settings, resume=resume)
        if done is None:
            writer = stack.enter_context(ManifestWriter(path, settings, resume=resume))
            making = _Making(options, writer, on_error=on_error, progress=progress or _untold)
            if isinstance(source, Memory):
                report = making.make(source, MemoryImages(source, folder))
            else:
                memory = stack.enter_context(_work_memory(source, work, cast("Encoder", encoder), resume=resume))
                making.encode(source, memory, batch_size)
                stack.enter_context(memory.snapshot())
                report = making.make(memory, DatasetImages(source, folder))
            writer.publish(report.to_dict())
        else:
            report = TuningReport.from_dict(done)
    _discard(work)
    return report


def _untold(stage: Stage, done: int, total: int) -> None:
    """Tells nobody."""


def _settings(source: Dataset | Memory, encoder: Encoder | None, options: _Options) -> dict[str, Any]:
    """All that the examples depend on, JSON values."""
    if isinstance(source, Memory):
        if encoder is not None:
            raise OptionError("a memory has its vectors already; leave encoder out")
        origin = {"memory_content": source.content_hash, "encoder_fingerprint": source.encoder_fingerprint}
    else:
        if encoder is None:
            raise OptionError("a dataset needs an encoder, which tells how similar its images are; give encoder=…")
        _check(source)
        origin = {
            "dataset": source.name,
            "dataset_fingerprint": source.fingerprint,
            "encoder_fingerprint": encoder.fingerprint,
        }
    return {"rarvision": version("rarvision"), **origin, **asdict(options)}


def _check(dataset: Dataset) -> None:
    seen: set[str] = set()
    for item in dataset.items:
        if item.label is None:
            raise DatasetError(f"{dataset.name}: {item.source} has no label; tuning needs one for every image")
        if item.source in seen:
            raise DatasetError(f"{dataset.name}: the source {item.source} occurs twice; sources must be unique")
        seen.add(item.source)


def _work_memory(dataset: Dataset, work: Path, encoder: Encoder, *, resume: bool) -> LocalMemory:
    """A memory for the dataset's vectors, which an interrupted run finds again."""
    wanted = {_MARK: dataset.fingerprint, "encoder_fingerprint": encoder.fingerprint}
    if work.exists():
        memory = LocalMemory.open(work)
        if resume and memory.metadata == wanted:
            memory.bind(encoder)
            return memory
        memory.close()
        _discard(work)
    return LocalMemory.create(work, encoder=encoder, index="exact", thumbnails=None, metadata=wanted)


def _discard(work: Path) -> None:
    """Delete a folder of vectors that a run of ours made."""
    if not work.exists():
        return
    with LocalMemory.open(work) as memory:
        ours = _MARK in memory.metadata
    if not ours:
        raise MemoryExistsError(f"{work}: a memory is in the way that no tuning run made; move it, or write elsewhere")
    shutil.rmtree(work)


class _Making:
    """One run: counts what it does while it goes through the asked images."""

    def __init__(
        self,
        options: _Options,
        writer: ManifestWriter,
        *,
        on_error: Callable[[str, InputError], None] | None,
        progress: Callable[[Stage, int, int], None],
    ) -> None:
        self._options = options
        self._writer = writer
        self._on_error = on_error
        self._progress = progress
        self._failures: list[tuple[str, str]] = []
        self._duplicates = self._windows = self._self_matches = 0
        self._left_out: Counter[str] = Counter()

    def encode(self, dataset: Dataset, memory: LocalMemory, batch_size: int | None) -> None:
        """Put a dataset's images into the memory, unless an earlier run has done that.

        What could not be read then stays out: its coming back would change the halves.
        """
        noted = self._writer.noted
        if noted is None or noted["images"] != memory.count("image"):
            tell = self._on_error
            added = memory.add(
                dataset,
                batch_size=batch_size,
                on_error=None if tell is None else lambda sample, error: tell(sample.source, error),
                progress=lambda done: self._progress("encoding", done, len(dataset)),
            )
            images = memory.count("image")
            if noted is None:
                noted = {
                    "images": images,
                    "failures": added.failures,
                    "duplicates": len(dataset) - added.failed - images,
                }
                self._writer.note(noted)
            elif noted["images"] != images:
                raise InputError(
                    f"{self._writer.part}: was begun with {noted['images']:,} readable images, now it is {images:,}; "
                    "use resume=False (--no-resume) to start anew"
                )
        self._duplicates = noted["duplicates"]
        self._failures += [(source, message) for source, message in noted["failures"]]

    def make(self, memory: Memory, files: DatasetImages | MemoryImages) -> TuningReport:
        """Write what is not written yet."""
        ids, codes = memory.table("image")
        names = memory.category_names()
        everything = np.arange(len(ids))
        half = split_halves(codes, names, seed=self._options.seed)
        retrieved, asked = (
            (everything, everything) if self._options.paper_compat else map(np.flatnonzero, (half, ~half))
        )
        self._check_enough(codes, retrieved, asked)
        for start in range(0, len(asked), _BLOCK):
            rows = asked[start : start + _BLOCK]
            entries = {entry.id: entry for entry in memory.entries(ids=ids[rows].tolist())}
            for row, near in zip(rows.tolist(), self._nearest(memory, ids, retrieved, rows), strict=True):
                self._ask(entries[int(ids[row])], [names[code] for code in codes[near].tolist()], files)
            self._writer.flush()
            self._progress("retrieving", start + len(rows), len(asked))
        if not self._writer.examples:
            self._writer.discard()
            raise DatasetError(
                f"no example came of {len(asked):,} images: of {self._windows:,} windows of their neighbours, "
                f"{', '.join(f'{count:,} {reason}' for reason, count in self._left_out.items()) or 'none'} were left "
                f"out, and {len(self._failures):,} images could not be used; the categories may be too different to be "
                "mixed up, or have too few images"
            )
        present, counts = np.unique(codes, return_counts=True)
        return TuningReport(
            examples=self._writer.examples,
            images=len(ids),
            categories=len(present),
            retrieved_images=len(retrieved),
            asked_images=len(asked),
            images_with_examples=self._writer.images,
            windows=self._windows,
            left_out=dict(self._left_out),
            names=dict(sorted(self._writer.names.items())),
            singletons=() if self._options.paper_compat else tuple(names[c] for c in present[counts == 1].tolist()),
            self_matches=self._self_matches,
            duplicates=self._duplicates,
            thumbnails=files.thumbnails,
            failures=tuple(self._failures),
        )

    def _check_enough(
        self, codes: Int[np.ndarray, " n"], retrieved: Int[np.ndarray, " a"], asked: Int[np.ndarray, " b"]
    ) -> None:
        categories = len(np.unique(codes[retrieved]))
        if categories < 2:
            raise DatasetError(f"ranking examples need images of at least 2 categories, got {categories}")
        if not len(asked):
            raise DatasetError(
                f"every one of the {categories:,} categories has one image only, so that none is left to ask about; "
                "expected at least 2 images in some of them"
            )
        if len(retrieved) < self._options.k:
            raise DatasetError(
                f"expected at least k={self._options.k} images to retrieve, got {len(retrieved)}; give more images, or "
                "a smaller k"
            )

    def _nearest(
        self,
        memory: Memory,
        ids: Int[np.ndarray, " n"],
        retrieved: Int[np.ndarray, " a"],
        rows: Int[np.ndarray, " q"],
    ) -> Iterator[Int[np.ndarray, " m"]]:
        """For each asked row the nearest retrieved ones, closest first, without the asked image itself."""
        options = self._options
        spare = 0 if options.paper_compat else _SPARE

        def fetch(part: Int[np.ndarray, " m"] | slice) -> Float[np.ndarray, "m dim"]:
            return memory.vectors(ids[retrieved[part]])

        similarities, places = exact_search(
            fetch, len(retrieved), memory.vectors(ids[rows]), min(options.neighbours + spare, len(retrieved))
        )
        found = retrieved[places]
        keep = np.ones(found.shape, dtype=bool)
        query, rank = np.nonzero(similarities >= _ALIKE)
        if len(query) and not options.paper_compat:
            pairs = np.stack((ids[rows[query]], ids[found[query, rank]]), axis=-1)
            unique = np.unique(pairs)
            content = dict(zip(unique.tolist(), (entry.content for entry in memory.records(unique)), strict=True))
            same = np.array([content[first] == content[second] for first, second in pairs.tolist()], dtype=bool)
            keep[query[same], rank[same]] = False
            self._self_matches += int(same.sum())
        for near, kept in zip(found, keep, strict=True):
            yield near[kept][: options.neighbours]

    def _ask(self, entry: Entry, near: Sequence[str], files: DatasetImages | MemoryImages) -> None:
        """Write the examples that one image gives."""
        options = self._options
        windows, left_out = ranking_windows(
            entry.category,
            near,
            k=options.k,
            seed=options.seed,
            key=str(entry.id),
            max_windows=options.max_windows,
            fill=options.fill,
            paper_compat=options.paper_compat,
        )
        self._windows += len(windows) + left_out.total()
        self._left_out += left_out
        waiting = [window for window in windows if not self._writer.is_written(entry.id, window.number)]
        if not waiting:
            return
        try:
            image = files.path_of(entry)
        except ImageError as error:
            if self._on_error is None:
                raise
            self._failures.append((entry.source, str(error)))
            self._on_error(entry.source, error)
            return
        for window in waiting:
            self._writer.append(
                TuningExample(
                    id=example_id(entry.id, window.number),
                    image=image,
                    label=entry.category,
                    candidates=window.candidates,
                    target=window.target,
                    retrieved=window.retrieved,
                )
            )
