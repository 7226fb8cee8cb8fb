"""Crops of many images, streamed in order: decoded in a few threads, with bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar, overload

from PIL import Image

from rarvision.errors import InputError, OptionError
from rarvision.images import Picture
from rarvision.regions.cropping import Crop, Scene
from rarvision.regions.masks import Mask
from rarvision.regions.rules import CropRule
from rarvision.types import Sample
from rarvision.workers import chunked_map, ordered_map, worker_pool

__all__ = ["iter_crops"]

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
    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, got {threads}")
    pool_options = (threads, overlap)
    if prepare is None:
        return _stream(_tasks(samples, rule), lambda crop: crop, mask_of, pool_options, on_error)
    return _stream(_tasks(samples, rule), lambda crop: prepare(crop.picture), mask_of, pool_options, on_error)


def _stream(
    tasks: Iterator[_Task],
    make: Callable[[Crop], _Made],
    mask_of: Callable[[Sample], Mask | None] | None,
    pool_options: tuple[int | None, bool],
    on_error: Callable[[Sample, InputError], None] | None,
) -> Iterator[tuple[Sample, _Made]]:
    def attempt(scene: Scene, sample: Sample) -> _Made | InputError:
        try:
            mask = None if mask_of is None else mask_of(sample)
            box = sample.box_xyxy or (0.0, 0.0, float(scene.image.width), float(scene.image.height))
            return make(scene.crop(box, mask=mask, name=sample.source))
        except InputError as error:
            return error

    def work(task: _Task) -> list[tuple[Sample, _Made | InputError]]:
        scene, group = task
        return [(sample, attempt(scene, sample)) for sample in group]

    threads, overlap = pool_options
    with worker_pool(threads) as pool:
        done = (
            ordered_map(work, tasks, pool=pool, ahead=_TASKS_AHEAD)
            if overlap
            else chunked_map(work, tasks, pool=pool, size=_TASKS_AHEAD)
        )
        for sample, made in itertools.chain.from_iterable(done):
            if not isinstance(made, InputError):
                yield sample, made
            elif on_error is None:
                raise made
            else:
                on_error(sample, made)


def _tasks(samples: Iterable[Sample], rule: CropRule) -> Iterator[_Task]:
    scene: Scene | None = None
    shown: object = None
    group: list[Sample] = []
    for sample in samples:
        same = scene is not None and (
            sample.image is shown or (not isinstance(shown, Image.Image) and sample.image == shown)
        )
        if group and (not same or len(group) == _BOXES_A_TASK):
            assert scene is not None  # noqa: S101 - a group has one
            yield scene, group
            group = []
        if not same:
            scene, shown = Scene(sample.image, rule), sample.image
        group.append(sample)
    if group and scene is not None:
        yield scene, group
