"""Crops of many images, streamed in order: decoded in a few threads, with bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Final, TypeVar, overload

from PIL import Image

from rarvision.errors import InputError, OptionError
from rarvision.images import Picture
from rarvision.regions.cropping import Crop, Scene
from rarvision.regions.masks import Mask
from rarvision.regions.rules import CropRule
from rarvision.types import Sample
from rarvision.workers import chunked_map, ordered_map, worker_pool

__all__ = ["iter_crops", "iter_made"]

_Out = TypeVar("_Out")
_Made = TypeVar("_Made")
_Task = tuple[Scene, list[Sample]]

_BOXES_A_TASK: Final = 16
_TASKS_AHEAD: Final = 4
_DEFAULT: Final = CropRule()


@overload
def iter_crops(
    samples: Iterable[Sample],
    rule: CropRule = ...,
    *,
    prepare: None = ...,
    mask_of: Callable[[Sample], Mask | None] | None = ...,
    threads: int | None = ...,
    overlap: bool = ...,
    on_error: Callable[[Sample, InputError], None] | None = ...,
) -> Iterator[tuple[Sample, Crop]]: ...


@overload
def iter_crops(
    samples: Iterable[Sample],
    rule: CropRule = ...,
    *,
    prepare: Callable[[Picture], _Out],
    mask_of: Callable[[Sample], Mask | None] | None = ...,
    threads: int | None = ...,
    overlap: bool = ...,
    on_error: Callable[[Sample, InputError], None] | None = ...,
) -> Iterator[tuple[Sample, _Out]]: ...


def iter_crops(
    samples: Iterable[Sample],
    rule: CropRule = _DEFAULT,
    *,
    prepare: Callable[[Picture], _Out] | None = None,
    mask_of: Callable[[Sample], Mask | None] | None = None,
    threads: int | None = None,
    overlap: bool = True,
    on_error: Callable[[Sample, InputError], None] | None = None,
) -> Iterator[tuple[Sample, Crop]] | Iterator[tuple[Sample, _Out]]:
    """Make the crops of samples with boxes, in order; boxes of one image that follow one another share its decoding.

    An image's boxes are worked on 16 at a time, and no more than four such groups are ahead of the caller: so memory is
    bounded by a few images and 64 crops, whatever the number of images, and of boxes in one of them.

    Args:
        samples: Read as they are needed. Those of one image (the same path, or the same object) should follow one
            another; one without a box means all of its image.
        rule: How a crop is made.
        prepare: Applied to each crop in the threads, such as `rarvision.Encoder.prepare`: what it returns is yielded
            instead of the crop, and is mostly smaller.
        mask_of: The mask of a sample, None for those without; called in the threads.
        threads: How many; by default the processors that this process may use, at least 2, at most 16.
        overlap: Whether the threads go on while the caller computes. An encoder's own answer is `Encoder.overlaps`: not
            where both need the same processor.
        on_error: Called with a sample and the error where no crop can be made of it (its image cannot be read, its box
            lies outside, its mask is damaged); it is left out. Without it the error is raised.

    Yields:
        Each sample with its crop, or with what ``prepare`` returned.

    Raises:
        ImageError: An image cannot be read, or a box lies outside, and there is no ``on_error``.
        InputError: A mask is damaged, and there is no ``on_error``.

    >>> photo = Image.new("RGB", (64, 48), "red")
    >>> boxes = [(0, 0, 10, 10), (20, 8, 60, 48)]
    >>> samples = [Sample(source=f"photo {i}", image=photo, box_xyxy=box) for i, box in enumerate(boxes)]
    >>> [(sample.source, crop.picture.size) for sample, crop in iter_crops(samples)]
    [('photo 0', (27, 27)), ('photo 1', (64, 64))]
    """

    def make(scene: Scene, sample: Sample) -> Crop | _Out:
        mask = None if mask_of is None else mask_of(sample)
        box = sample.box_xyxy or (0.0, 0.0, float(scene.image.width), float(scene.image.height))
        crop = scene.crop(box, mask=mask, name=sample.source)
        return crop if prepare is None else prepare(crop.picture)

    every: Generator[tuple[Sample, Any]] = iter_made(samples, rule, make, threads=threads, overlap=overlap)
    return _without_errors(every, on_error)


def _without_errors(
    every: Generator[tuple[Sample, _Made | InputError]], on_error: Callable[[Sample, InputError], None] | None
) -> Iterator[tuple[Sample, _Made]]:
    with closing(every):
        for sample, made in every:
            if not isinstance(made, InputError):
                yield sample, made
            elif on_error is None:
                raise made
            else:
                on_error(sample, made)


def iter_made(
    samples: Iterable[Sample],
    rule: CropRule,
    make: Callable[[Scene, Sample], _Made],
    *,
    threads: int | None = None,
    ahead: int = _TASKS_AHEAD,
    together: int = _BOXES_A_TASK,
    overlap: bool = True,
) -> Generator[tuple[Sample, _Made | InputError]]:
    """Make something of each sample and its image, in order, in a few threads; `iter_crops` is one use.

    Args:
        samples: As of `iter_crops`.
        rule: How the scene's crops are made.
        make: Called in the threads with a sample's image, which those of one image share, and the sample.
        threads: As of `iter_crops`.
        ahead: Groups of an image's samples that are worked on, or wait for the caller.
        together: Samples in a group at most.
        overlap: As of `iter_crops`.

    Yields:
        Each sample with what was made, or with the error that ``make`` raised.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, got {threads}")

    def attempt(scene: Scene, sample: Sample) -> _Made | InputError:
        try:
            if sample.image_size is not None:
                sample.check_size(scene.image.size)
            return make(scene, sample)
        except InputError as error:
            return error.with_traceback(None)  # a broken image's is raised once a box, and would grow

    def work(task: _Task) -> list[tuple[Sample, _Made | InputError]]:
        scene, group = task
        return [(sample, attempt(scene, sample)) for sample in group]

    def stream() -> Generator[tuple[Sample, _Made | InputError]]:
        tasks = _tasks(samples, rule, together)
        with worker_pool(threads) as pool:
            yield from itertools.chain.from_iterable(
                ordered_map(work, tasks, pool=pool, ahead=ahead)
                if overlap
                else chunked_map(work, tasks, pool=pool, size=ahead)
            )

    return stream()


def _tasks(samples: Iterable[Sample], rule: CropRule, together: int) -> Iterator[_Task]:
    scene, shown = None, None
    group: list[Sample] = []
    for sample in samples:
        same = scene is not None and (
            sample.image is shown or (not isinstance(shown, Image.Image) and sample.image == shown)
        )
        if group and scene is not None and not same:
            yield scene, group
            group = []
        if scene is None or not same:
            scene, shown = Scene(sample.image, rule), sample.image
        group.append(sample)
        if len(group) == together or sample.box_xyxy is None:  # whole images do not wait for whoever follows
            yield scene, group
            group = []
    if group and scene is not None:
        yield scene, group
