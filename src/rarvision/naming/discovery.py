"""Naming unlabelled images: guesses image by image on disk, then votes that decide which names survive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from PIL.Image import Image

from rarvision.datasets.base import Dataset
from rarvision.encoders import Encoder
from rarvision.errors import (
    ChatProtocolError,
    ChatUnavailableError,
    ContextLengthError,
    DatasetError,
    ImageError,
    NoNamesError,
    OptionError,
)
from rarvision.images import load_image
from rarvision.naming.base import Guess, Namer
from rarvision.naming.cleaning import canonical_names
from rarvision.reporting import EvaluatedImage
from rarvision.runs import RunFile

__all__ = ["Discovery", "GuessedImage", "NamedImage", "Voting", "ask_each", "guess_names", "vote_names"]

Voting = Literal["clip", "own"]
"""``clip``: each image votes for the nearest of all guessed names; ``own``: for the first of its own guesses."""

_BATCH = 16
_GIVE_UP_AFTER = 3  # images in a row that the MLLM was not there for
_OF_ONE_IMAGE = (ImageError, ContextLengthError, ChatProtocolError, ChatUnavailableError)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuessedImage:
    """What a namer said of one image: a line of the file of guesses.

    Attributes:
        source: The image's.
        names: As of `rarvision.naming.Guess`.
        raw: As there.
        reason: As there; or why the image failed.
        failed: Whether it could not be read, or the MLLM gave no answer for it; it is tried again.
    """

    source: str
    names: tuple[str, ...] = ()
    raw: tuple[str, ...] = ()
    reason: str | None = None
    failed: bool = False

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> GuessedImage:
        """A line's values."""
        return cls(**{**values, "names": tuple(values["names"]), "raw": tuple(values["raw"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedImage:
    """An image and the name that it was given.

    Attributes:
        source: The image's.
        guesses: What was guessed of it.
        name: The name that survived for it; None where there is none.
        reason: Why there is none, or why it is not its own guess; None where it is.
        failed: As of `GuessedImage`.
    """

    source: str
    guesses: tuple[str, ...]
    name: str | None
    reason: str | None = None
    failed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Discovery:
    """The names of a set of images.

    Attributes:
        images: In the set's order.
        votes: Images that voted for each surviving name, most first.
        dropped: Names that were guessed and did not survive, and why.
        namer: The namer's name.
    """

    images: tuple[NamedImage, ...]
    votes: Mapping[str, int]
    dropped: Mapping[str, str] = field(default_factory=dict)
    namer: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Those that survived."""
        return tuple(self.votes)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def guess_names(
    dataset: Dataset,
    namer: Namer,
    *,
    out: Path | str | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
    batch_size: int = _BATCH,
) -> list[GuessedImage]:
    """Guess names of all images; labels are not looked at.

    An image that cannot be read, or that the MLLM refuses or does not answer for, is kept as failed, with the reason.

    Args:
        dataset: Images with unique sources.
        namer: Who guesses.
        out: A JSONL file, a line an image, written as it comes: interrupted, the same call goes on; images that
            failed are tried again.
        resume: Whether to go on with an existing ``out``.
        progress: Called with the number of images done, and of all.
        batch_size: Images that are asked about together.

    Raises:
        DatasetError: There are no images, or a source is there twice.
        InputError: ``out`` holds the guesses of another namer, or of other images.
        ChatError: The MLLM cannot be asked at all, or was not there for several images in a row.
    """

    def read(values: Mapping[str, Any]) -> GuessedImage | None:
        image = GuessedImage.read(values)
        return None if image.failed else image

    return ask_each(
        dataset,
        namer,
        lambda image: image,
        read=read,
        out=out,
        resume=resume,
        progress=progress,
        batch_size=batch_size,
    )


_Line = TypeVar("_Line", GuessedImage, EvaluatedImage)


def ask_each(
    dataset: Dataset,
    namer: Namer,
    line: Callable[[GuessedImage], _Line],
    *,
    read: Callable[[Mapping[str, Any]], _Line | None],
    out: Path | str | None,
    resume: bool,
    progress: Callable[[int, int], None] | None,
    batch_size: int,
) -> list[_Line]:
    """What `guess_names` does, with lines of another kind: ``line`` makes them, ``read`` is as of `RunFile`."""
    if batch_size < 1:
        raise OptionError(f"batch_size must be at least 1, got {batch_size}")
    sources = [item.source for item in dataset.items]
    if not sources:
        raise DatasetError(f"{dataset.name}: there are no images to name")
    twice = [source for source, count in Counter(sources).items() if count > 1]
    if twice:
        raise DatasetError(f"{dataset.name}: the source {twice[0]} occurs twice; sources must be unique")
    configuration = {
        "rarvision": version("rarvision"),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        **namer.settings,
    }
    with RunFile(out, configuration, read=read, resume=resume) as file:
        left = [place for place, source in enumerate(sources) if source not in file.done]
        asking = _Asking(dataset, namer)
        finished = len(sources) - len(left)
        if progress is not None:
            progress(finished, len(sources))
        for start in range(0, len(left), batch_size):
            for image in asking.batch(left[start : start + batch_size]):
                made = line(image)
                file.add(image.source, asdict(made), made)
                finished += 1
            if progress is not None:
                progress(finished, len(sources))
        return [file.done[source] for source in sources]


class _Asking:
    """Asks a namer; what it cannot answer for one image does not end the run, an MLLM that is down does."""

    def __init__(self, dataset: Dataset, namer: Namer) -> None:
        self._dataset, self._namer, self._down = dataset, namer, 0

    def batch(self, places: Sequence[int]) -> Iterator[GuessedImage]:
        """A guess for each of these images, or why there is none, in order."""
        opened: dict[int, Image] = {}
        failed: dict[int, str] = {}
        for place in places:
            try:
                opened[place] = load_image(self._dataset[place].image)
            except ImageError as error:
                failed[place] = str(error)
        try:
            guesses: Iterator[Guess | str] = iter(self._namer.guess(list(opened.values())))
        except _OF_ONE_IMAGE:
            guesses = iter(self._alone(image) for image in opened.values())
        for place in places:
            source = self._dataset.items[place].source
            guess = failed[place] if place in failed else next(guesses)
            if isinstance(guess, str):
                yield GuessedImage(source=source, reason=guess, failed=True)
            else:
                yield GuessedImage(source=source, names=guess.names, raw=guess.raw, reason=guess.reason)

    def _alone(self, image: Image) -> Guess | str:
        """A guess for one image, or why there is none."""
        try:
            (guess,) = self._namer.guess([image])
        except _OF_ONE_IMAGE as error:
            self._down = self._down + 1 if isinstance(error, ChatUnavailableError) else 0
            if self._down >= _GIVE_UP_AFTER:
                raise
            return f"{type(error).__name__}: {error}"
        self._down = 0
        return guess


def vote_names(
    dataset: Dataset,
    guesses: Sequence[GuessedImage],
    encoder: Encoder,
    *,
    voting: Voting = "clip",
    min_votes: int = 1,
    most: int | None = None,
    templates: Sequence[str] = ("a photo of a {}.",),
    batch_size: int = 64,
    namer: str = "",
) -> Discovery:
    """Decide which names survive, and give each image one of them.

    Spellings of one name (case, hyphens, plurals) are joined first. Each image has a vote; names with fewer than
    ``min_votes`` are dropped, and images that voted for them get the nearest name that is left.

    Args:
        dataset: The images that were guessed, in the same order.
        guesses: What was guessed.
        encoder: CLIP.
        voting: See `Voting`.
        min_votes: Votes that a name needs.
        most: Of an image's guesses only the first so many count; None for all.
        templates: How names are put to the encoder; their vectors are averaged.
        batch_size: Images that are encoded together.
        namer: For the result.

    Raises:
        OptionError: An option is out of range.
        NoNamesError: No name was guessed, or none survives.

    Source: FineR's noisy-name filter: names that no image votes for are dropped.
    """
    if voting not in get_args(Voting):
        raise OptionError(f"voting must be one of {', '.join(get_args(Voting))}, got {voting!r}")
    if min_votes < 1 or (most is not None and most < 1):
        raise OptionError(f"min_votes and most must be at least 1, got {min_votes} and {most}")
    joined = canonical_names(name for image in guesses for name in image.names[:most])
    own = [tuple(dict.fromkeys(joined[name] for name in image.names[:most])) for image in guesses]
    names = sorted({name for several in own for name in several})
    readable = [place for place, image in enumerate(guesses) if not image.failed]
    if not names:
        why = next((image.reason for image in guesses if image.reason), "")
        raise NoNamesError(f"{dataset.name}: no name was guessed for any of {len(guesses):,} images ({why})")
    near = _similarities(dataset, readable, names, encoder, templates=templates, batch_size=batch_size)
    first = {place: int(near[row].argmax()) for row, place in enumerate(readable)}
    if voting == "own":
        index = {name: number for number, name in enumerate(names)}
        first |= {place: index[own[place][0]] for place in readable if own[place]}
    count = Counter(first.values())
    kept = sorted((number for number in count if count[number] >= min_votes), key=lambda n: (-count[n], names[n]))
    if not kept:
        raise NoNamesError(
            f"{dataset.name}: no name has {min_votes} votes, the most is {max(count.values())}; lower min_votes "
            "(--min-votes), or give more images of each category"
        )
    columns = np.array(kept)
    images = []
    rows = {place: row for row, place in enumerate(readable)}
    for place, image in enumerate(guesses):
        if image.failed:
            images.append(NamedImage(source=image.source, guesses=(), name=None, reason=image.reason, failed=True))
            continue
        chosen, reason = first[place], None
        if count[chosen] < min_votes:
            dropped = names[chosen]
            chosen = kept[int(near[rows[place], columns].argmax())]
            reason = f"{dropped!r} has {count[first[place]]} votes; this is the nearest name that is left"
        elif names[chosen] not in own[place]:
            reason = "another image's guess is nearer" if own[place] else str(image.reason)
        images.append(NamedImage(source=image.source, guesses=own[place], name=names[chosen], reason=reason))
    return Discovery(
        images=tuple(images),
        votes={names[number]: count[number] for number in kept},
        dropped={
            name: f"{count[number]} votes, {min_votes} are needed" if count[number] else "no image voted for it"
            for number, name in enumerate(names)
            if number not in set(kept)
        },
        namer=namer,
    )


def _similarities(
    dataset: Dataset,
    places: Sequence[int],
    names: Sequence[str],
    encoder: Encoder,
    *,
    templates: Sequence[str],
    batch_size: int,
) -> np.ndarray:
    """Cosines of images and names, (images, names)."""
    texts = sum(encoder.encode_texts([t.replace("{}", name) for name in names]) for t in templates)
    texts = np.asarray(texts)
    texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    rows = []
    for start in range(0, len(places), batch_size):
        images = [load_image(dataset[place].image) for place in places[start : start + batch_size]]
        rows.append(encoder.encode_images(images) @ texts.T)
    return np.concatenate(rows) if rows else np.zeros((0, len(names)))
