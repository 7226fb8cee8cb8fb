"""Memories of discovered names, and the one pipeline on them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rarvision.calibration import Calibration
from rarvision.datasets.base import Dataset
from rarvision.encoders import Encoder, Views
from rarvision.encoders.views import check_views, views_of
from rarvision.errors import InputError, OptionError
from rarvision.images import Picture, load_image
from rarvision.memory import LocalMemory
from rarvision.naming.discovery import Discovery, guess_names, vote_names
from rarvision.naming.presets import Sources, make_namer, need, preset_of
from rarvision.pipeline import Recognizer
from rarvision.ranking import BaseRanker
from rarvision.retrieval import Retriever
from rarvision.types import Sample

__all__ = ["NamedMemory", "build_named_memory", "discover", "named_recognizer", "words_memory"]

_KEY = "naming"
Progress = Callable[[str, int, int], None]
"""Told the phase, how many images are done, and of how many."""


def quiet(_what: str, _done: int, _of: int) -> None:
    """Tell nobody."""


def phase(progress: Progress, what: str) -> Callable[[int, int], None]:
    """A phase's own callback."""
    return lambda done, of: progress(what, done, of)


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedMemory:
    """What was discovered, and the memory of it; closes the memory as a context manager.

    Attributes:
        preset: A key of `NAMING_PRESETS`.
        discovery: Each image's guesses and name; the votes; what was dropped, and why.
        memory: Of the names and images; None where no folder was given.
    """

    preset: str
    discovery: Discovery
    memory: LocalMemory | None

    def recognizer(self, ranker: BaseRanker | None = None, **options: Any) -> Recognizer:
        """The pipeline on the memory; ``options`` as of `named_recognizer`.

        Raises:
            OptionError: There is no memory, or the preset ranks and there is no ranker.
        """
        if self.memory is None:
            raise OptionError("there is no memory to recognise with: give `discover` a folder (memory=)")
        return named_recognizer(self.preset, self.memory, ranker=ranker, **options)

    def close(self) -> None:
        """Close the memory."""
        if self.memory is not None:
            self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def discover(
    name: str,
    sources: Sources,
    unlabelled: Dataset,
    *,
    memory: Path | str | None = None,
    out: Path | str | None = None,
    min_votes: int = 1,
    resume: bool = True,
    batch_size: int = 16,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress = quiet,
) -> NamedMemory:
    """Name unlabelled images, let them vote, and build a memory of the names that survive.

    Args:
        name: One of `NAMING_PRESETS`.
        sources: What it draws on.
        unlabelled: Images with unique sources; labels are not looked at.
        memory: The memory's folder: a new one, or one that the same discovery began; None for no memory.
        out: The file of guesses; see `guess_names`.
        min_votes: See `vote_names`.
        resume: Whether to go on with an existing ``out``.
        batch_size: Images that are asked about together.
        metadata: Of a new memory.
        progress: Told ``naming`` and ``memory``, how many images are done, and of how many.

    Raises:
        OptionError: There is no such preset, or what it needs is missing.
        NoNamesError: No name survives.
        DatasetError: There are no images.
        InputError: ``out`` or ``memory`` holds something else.
        ChatError: The MLLM does not answer.

    Source: the memory of sections 4.2 and C.1: three unlabelled images a category, under predicted names.
    """
    preset = preset_of(name)
    if memory is not None and Path(memory).exists():
        with LocalMemory.open(memory, encoder=sources.encoder) as there:  # before anything is asked
            _check(there, Path(memory), lambda digest: digest is not None)
    with ExitStack() as stack:
        words = None
        if preset.namer == "words":
            need(sources.words, "a vocabulary (--words FILE)", name)
            words = stack.enter_context(words_memory(sources))
        namer = make_namer(name, sources, memory=words)
        guesses = guess_names(
            unlabelled, namer, out=out, resume=resume, progress=phase(progress, "naming"), batch_size=batch_size
        )
        found = vote_names(
            unlabelled,
            guesses,
            sources.encoder,
            voting=preset.voting,
            most=preset.names,
            min_votes=min_votes,
            templates=sources.templates,
            namer=namer.name,
        )
    built = None
    if memory is not None:
        built = build_named_memory(
            memory,
            unlabelled,
            found,
            sources.encoder,
            templates=sources.templates,
            views=preset.views,
            metadata=metadata,
            progress=lambda done: progress("memory", done, len(unlabelled)),
        )
    return NamedMemory(preset=name, discovery=found, memory=built)


def build_named_memory(
    path: Path | str,
    dataset: Dataset,
    discovery: Discovery,
    encoder: Encoder,
    *,
    templates: Sequence[str] = ("a photo of a {}.",),
    views: Views = "whole",
    metadata: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> LocalMemory:
    """A memory of discovered names: their texts, and each image under the name that it was given.

    Images without a name are left out. A folder that the same discovery began is completed.

    Args:
        path: The memory's folder.
        dataset: The images that were named, in the same order.
        discovery: Their names.
        encoder: CLIP.
        templates: How names are put to the encoder.
        views: Of each image, an entry each, so that prototypes are means over them.
        metadata: Of a new memory.
        progress: Called with the number of images done.

    Raises:
        InputError: The folder holds a memory of something else.
        EncoderMismatchError: Or of another encoder.
    """
    check_views(views)
    told = {"discovery": discovery.to_dict(), "templates": list(templates), "views": views}
    memory = _opened(Path(path), encoder, told, metadata)
    places = [place for place, image in enumerate(discovery.images) if image.name is not None]
    done = 0

    def samples() -> Iterator[Sample]:
        nonlocal done
        for place in places:
            image = discovery.images[place]
            yield from _views(
                replace(dataset[place], label=image.name, metadata={"guesses": list(image.guesses)}), views
            )
            done += 1
            if progress is not None:
                progress(done)

    try:
        memory.add(samples())
        memory.add_texts(list(discovery.names), templates=tuple(templates))
    except BaseException:
        memory.close()
        raise
    if progress is not None:
        progress(len(discovery.images))
    return memory


def _views(sample: Sample, views: Views) -> Iterator[Sample]:
    if views == "whole":
        yield sample
        return
    for number, view in enumerate(views_of(Picture.of(load_image(sample.image)), views)):
        source = sample.source if number == 0 else f"{sample.source}#view{number}"
        yield replace(sample, source=source, image=view.whole(), image_size=None)


def _opened(path: Path, encoder: Encoder, told: Any, metadata: Mapping[str, Any] | None = None) -> LocalMemory:
    """A new memory, or the one that was begun with what is told."""
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    if not path.exists():
        return LocalMemory.create(path, encoder=encoder, metadata={**(metadata or {}), _KEY: digest})
    memory = LocalMemory.open(path, encoder=encoder)
    try:
        _check(memory, path, lambda kept: kept == digest)
    except InputError:
        memory.close()
        raise
    return memory


def _check(memory: LocalMemory, path: Path, fits: Callable[[Any], bool]) -> None:
    if not fits(memory.metadata.get(_KEY)):
        raise InputError(
            f"{path}: holds the memory of other names, images or options; give another folder, or remove this one"
        )


@contextmanager
def words_memory(sources: Sources, path: Path | None = None) -> Iterator[LocalMemory]:
    """A memory of a vocabulary's texts; without a folder it is gone afterwards."""
    with ExitStack() as stack:
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rarvision-words-"))) / "memory"
        told = {"words": list(sources.words), "templates": list(sources.templates)}
        memory = stack.enter_context(_opened(path, sources.encoder, told))
        memory.add_texts(list(sources.words), templates=sources.templates)
        yield memory


def named_recognizer(
    name: str,
    memory: LocalMemory,
    *,
    ranker: BaseRanker | None = None,
    k: int = 5,
    calibration: Calibration | None = None,
    ranker_weight: Any = None,
) -> Recognizer:
    """The one pipeline on a memory of names, with a preset's retrieval, and its ranker where it ranks.

    Args:
        name: One of `NAMING_PRESETS`.
        memory: Of names.
        ranker: Of presets that rank; others do without.
        k: Candidates of each image; all names where there are fewer.
        calibration: Of the recogniser.
        ranker_weight: Of the recogniser.

    Raises:
        OptionError: There is no such preset, or it ranks and there is no ranker.
    """
    preset = preset_of(name)
    if preset.ranked and ranker is None:
        raise OptionError(f"the preset {name!r} needs a ranker (--ranker)")
    k = min(k, len(memory.categories()))
    return Recognizer(
        memory,
        ranker=ranker if preset.ranked else None,
        retriever=Retriever(memory, k=k, **preset.retrieval),
        calibration=calibration,
        ranker_weight=ranker_weight if preset.ranked else None,
    )
