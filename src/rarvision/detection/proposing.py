"""Any detector's boxes as proposals: run over the images when they are asked for, in batches, kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from PIL.Image import Image

from rarvision.detection.annotations import AnnotatedImage, Annotations
from rarvision.detection.results import ImageProposals, Proposals, write_detections
from rarvision.errors import DatasetError, ImageError, InputError, OptionError
from rarvision.images import load_image
from rarvision.regions import to_xyxy
from rarvision.runs import RunFile
from rarvision.workers import ordered_map, worker_pool

__all__ = ["Detector", "FoundBoxes", "ProposalReport", "detect_proposals", "iter_proposals", "one_by_one"]

FoundBoxes: TypeAlias = Float[np.ndarray, "n 4"] | tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, " n"]]
"""An image's boxes, left, upper, right, lower in pixels of the image as it was given; or these and how likely each is
an object (higher is likelier; 1 for all where it is not said)."""

Detector: TypeAlias = Callable[[Sequence[Image]], Sequence[FoundBoxes]]
"""Takes upright RGB images, returns the boxes of each."""

_Notice = Callable[[AnnotatedImage, ImageError], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalReport:
    """What a detector found.

    Attributes:
        proposals: The boxes.
        images: How many images were asked about.
        resumed: How many of them were in the file already.
        without_boxes: Images in which nothing was found.
        left_out: Boxes without an inside, or outside their image.
        failed: Id and message of each image that could not be read; asked for again by the next run.
    """

    proposals: Proposals
    images: int
    resumed: int
    without_boxes: int
    left_out: int
    failed: tuple[tuple[int, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    proposals: ImageProposals
    left_out: int
    resumed: bool = False


def one_by_one(function: Callable[[Image], FoundBoxes]) -> Detector:
    """A detector of a function that takes one image."""
    return lambda images: [function(image) for image in images]


def iter_proposals(
    annotations: Annotations,
    detector: Detector,
    *,
    name: str,
    path: str | Path | None = None,
    batch_size: int = 1,
    per_image: int | None = None,
    min_objectness: float | None = None,
    on_error: _Notice | None = None,
    resume: bool = True,
) -> Iterator[ImageProposals]:
    """Run a detector over the images of an annotation file, a batch whenever its boxes are asked for.

    Boxes are cut at the image's edge; those without an inside are left out. Images are read ahead in threads, two
    batches at most.

    Args:
        annotations: The images, read with ``images=FOLDER``; their boxes are not looked at.
        detector: Finds the boxes, see `Detector`; `one_by_one` makes one of a function of one image.
        name: What tells this detector's boxes from another's: the model, its version, its thresholds.
        path: A ``.json`` file for the results, in the official format with 1 as every category; it appears when all
            images are done. Until then, each image's boxes are in the file of the same name with the suffix
            ``.jsonl``, from which an interrupted run goes on, and a finished one is read again. None keeps nothing.
        batch_size: Images given to the detector at once.
        per_image: Keep as many boxes of an image, those of the highest objectness.
        min_objectness: Keep those above it.
        on_error: Called with an image that cannot be read, which is then skipped, and asked for by the next run;
            without it the error is raised.
        resume: Whether to go on with what the file holds; False starts anew.

    Yields:
        The boxes of each image, in the order of the annotations; none where nothing was found.

    Raises:
        DatasetError: The images' places are not known.
        ImageError: An image cannot be read, and there is no ``on_error``.
        InputError: The detector's answer is no boxes, or the file holds another detector's or other images', or is not
            of such a run.
        OptionError: An option is out of range, or ``path`` is no ``.json`` file.
    """
    run = _run(
        annotations,
        detector,
        name=name,
        path=path,
        batch_size=batch_size,
        keep={"per_image": per_image, "min_objectness": min_objectness},
        on_error=on_error,
        resume=resume,
    )
    with closing(run):
        for found in run:
            yield found.proposals


def detect_proposals(
    annotations: Annotations,
    detector: Detector,
    *,
    name: str,
    path: str | Path | None = None,
    batch_size: int = 1,
    per_image: int | None = None,
    min_objectness: float | None = None,
    on_error: _Notice | None = None,
    resume: bool = True,
    progress: Callable[[int], None] | None = None,
) -> ProposalReport:
    """Run a detector over all images; arguments and errors are those of `iter_proposals`.

    Args:
        annotations: The images.
        detector: Finds the boxes.
        name: What tells this detector's boxes from another's.
        path: A ``.json`` file for the results.
        batch_size: Images given to the detector at once.
        per_image: Keep as many boxes of an image.
        min_objectness: Keep those above it.
        on_error: Called with an image that cannot be read.
        resume: Whether to go on with what the file holds.
        progress: Called with the number of images dealt with so far.
    """
    failed: list[tuple[int, str]] = []

    def notice(image: AnnotatedImage, error: ImageError) -> None:
        failed.append((image.id, str(error)))
        if on_error is not None:
            on_error(image, error)

    run = _run(
        annotations,
        detector,
        name=name,
        path=path,
        batch_size=batch_size,
        keep={"per_image": per_image, "min_objectness": min_objectness},
        on_error=None if on_error is None else notice,
        resume=resume,
    )
    found: list[_Found] = []
    with closing(run):
        for each in run:
            found.append(each)
            if progress is not None:
                progress(len(found) + len(failed))
    return ProposalReport(
        proposals=Proposals.of_images([each.proposals for each in found]),
        images=len(annotations),
        resumed=sum(each.resumed for each in found),
        without_boxes=sum(not len(each.proposals.objectness) for each in found),
        left_out=sum(each.left_out for each in found),
        failed=tuple(failed),
    )


_Loaded: TypeAlias = tuple[int, Image | ImageError | None]
"""An image's place, and the image; why it cannot be read; or None where the file has its boxes."""


def _run(
    annotations: Annotations,
    detector: Detector,
    *,
    name: str,
    path: str | Path | None,
    batch_size: int,
    keep: dict[str, Any],
    on_error: _Notice | None,
    resume: bool,
) -> Generator[_Found]:
    if batch_size < 1:
        raise OptionError(f"batch_size must be at least 1, got {batch_size}")
    if not name.strip():
        raise OptionError("name must say which detector this is, such as its model and threshold")
    official = None if path is None else Path(path)
    journal = None if official is None else _journal(official, resume=resume)
    Proposals.of_images([], **keep)  # the options are checked before the first image
    configuration = {"detector": name, **keep, "dataset_fingerprint": _fingerprint(annotations)}
    found: list[ImageProposals] = []
    with RunFile(journal, configuration, read=_read, resume=resume) as file, worker_pool() as pool:
        load = partial(_load, annotations, file.done)
        loaded = ordered_map(load, range(len(annotations)), pool=pool, ahead=2 * batch_size)
        for batch in _batches(loaded, batch_size):
            images = [(int(annotations.image_ids[place]), image) for place, image in batch if isinstance(image, Image)]
            for (image_id, image), answer in zip(images, _asked(detector, images, name), strict=True):
                fresh = _kept(image_id, answer, image.size, keep, name)
                file.add(str(image_id), _values(fresh), fresh)
            for place, loaded_as in batch:
                if isinstance(loaded_as, ImageError):
                    if on_error is None:
                        raise loaded_as
                    on_error(annotations[place], loaded_as)
                else:
                    known = file.done[str(annotations.image_ids[place])]
                    found.append(known.proposals)
                    yield known
    if official is not None:
        write_detections(official, Proposals.of_images(found).detections())


def _journal(official: Path, *, resume: bool) -> Path:
    """The file of a run, beside its result; a result that is not of such a run is not overwritten."""
    journal = official.with_suffix(".jsonl")
    if official.suffix != ".json":
        raise OptionError(f"path must be a .json file, got {official}")
    if not resume:
        official.unlink(missing_ok=True)
    elif official.exists() and not journal.exists():
        raise InputError(
            f"{official}: exists, but {journal.name}, which says what it was made with, does not; read it with "
            "read_proposals, give another file, or resume=False to make it anew"
        )
    return journal


def _load(annotations: Annotations, done: Mapping[str, _Found], place: int) -> _Loaded:
    if str(annotations.image_ids[place]) in done:
        return place, None
    path = annotations.path(place)
    if path is None:
        raise DatasetError(
            f"{annotations.name}: image {annotations.image_ids[place]} cannot be opened: say where images are, "
            "read_annotations(…, images='FOLDER'); and its file must be named"
        )
    try:
        return place, load_image(path)
    except ImageError as error:
        return place, error


def _batches(loaded: Iterator[_Loaded], size: int) -> Iterator[list[_Loaded]]:
    """In order, with at most ``size`` images in each; what needs no detector rides along, as long as nothing waits."""
    batch: list[_Loaded] = []
    images = 0
    for item in loaded:
        batch.append(item)
        images += isinstance(item[1], Image)
        if images in (0, size):
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


def _asked(detector: Detector, images: Sequence[tuple[int, Image]], name: str) -> Sequence[Any]:
    if not images:
        return ()
    answers = detector([image for _, image in images])
    if len(answers) != len(images):
        raise InputError(
            f"detector {name!r}: expected the boxes of each of {len(images)} images, got {len(answers)} answers"
        )
    return answers


def _kept(image_id: int, answer: Any, size: tuple[int, int], keep: dict[str, Any], name: str) -> _Found:
    given, objectness = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    where = f"detector {name!r}, image {image_id}"
    try:
        boxes = to_xyxy(given, allow_empty=True)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    likely = np.ones(len(boxes)) if objectness is None else np.asarray(objectness, dtype=np.float64)
    if likely.shape != (len(boxes),) or not np.isfinite(likely).all():
        raise InputError(f"{where}: expected a finite objectness of each of {len(boxes)} boxes, got {likely!r:.80}")
    boxes = np.clip(boxes, 0.0, np.array([*size, *size], dtype=np.float64))
    inside = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    boxes, likely = boxes[inside], likely[inside]
    image = ImageProposals(image_id=image_id, boxes_xyxy=boxes, objectness=likely)
    return _Found(proposals=Proposals.of_images([image], **keep).of(image_id), left_out=int((~inside).sum()))


def _values(found: _Found) -> dict[str, Any]:
    return {
        "source": str(found.proposals.image_id),
        "boxes_xyxy": found.proposals.boxes_xyxy.tolist(),
        "objectness": found.proposals.objectness.tolist(),
        "left_out": found.left_out,
    }


def _read(values: Mapping[str, Any]) -> _Found:
    boxes, objectness = (np.array(values[key], dtype=np.float64) for key in ("boxes_xyxy", "objectness"))
    image = ImageProposals(
        image_id=int(values["source"]), boxes_xyxy=boxes.reshape(len(objectness), 4), objectness=objectness
    )
    return _Found(proposals=image, left_out=int(values["left_out"]), resumed=True)


def _fingerprint(annotations: Annotations) -> str:
    digest = hashlib.sha256(annotations.image_ids.tobytes())
    digest.update("\n".join(str(annotations.file(place)) for place in range(len(annotations))).encode())
    return digest.hexdigest()
