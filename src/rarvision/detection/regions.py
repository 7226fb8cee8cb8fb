"""The boxes of annotated images as a dataset: one sample a box, for the recogniser, a memory or a measurement."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final, overload

import numpy as np
from jaxtyping import Int64
from PIL.Image import Image

from rarvision.datasets import Dataset, Item
from rarvision.detection.annotations import Annotations
from rarvision.detection.results import Proposals
from rarvision.errors import DatasetError
from rarvision.regions import to_xyxy
from rarvision.types import Box, box_suffix

__all__ = ["RegionDataset"]


@final
class RegionDataset(Dataset):
    """One sample a box: of the annotated objects with their category as label, or of proposals without.

    A sample's metadata has ``image_id``, and ``annotation_id`` and ``category_id`` or ``objectness``. Boxes without an
    inside are left out, and so are crowds; `left_out` counts them. Without a folder of images the samples cannot be
    opened, and everything else works. Where the file says an image's width and height, an image of another size fails
    (`Sample.image_size`).

    Args:
        annotations: The images.
        proposals: Boxes to take in place of the annotated ones.

    Raises:
        DatasetError: An image has neither a file's name nor an address, or a proposal's image is unknown.
    """

    def __init__(self, annotations: Annotations, proposals: Proposals | None = None) -> None:
        self.annotations = annotations
        self._name = annotations.name if proposals is None else f"{annotations.name} (proposals)"
        if proposals is None:
            self._images = annotations.box_images
            boxes = to_xyxy(annotations.boxes_xywh, notation="xywh", allow_empty=True)
            self._rows, dropped = np.arange(len(boxes)), annotations.crowd
            self._objectness = None
            self._columns = annotations.vocabulary.columns(annotations.category_ids)
        else:
            ids = np.array(sorted(proposals), dtype=np.int64)
            per_image = [proposals[int(id_)] for id_ in ids]
            self._images = np.repeat(annotations.places(ids), [len(image.objectness) for image in per_image])
            boxes = np.concatenate([image.boxes_xyxy for image in per_image] or [np.zeros((0, 4))])
            self._objectness = np.concatenate([image.objectness for image in per_image] or [np.zeros(0)])
            self._rows, dropped = np.arange(len(boxes)), np.zeros(len(boxes), dtype=bool)
        kept = ~dropped & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
        self.left_out = int((~kept).sum())
        self._images, self._rows, self._boxes = self._images[kept], self._rows[kept], boxes[kept]
        for place in np.unique(self._images).tolist():
            if annotations.file(place) is None:
                raise DatasetError(
                    f"{annotations.name}: image {annotations.image_ids[place]} has neither file_name nor coco_url"
                )
        self._items = _Items(self)

    @property
    def name(self) -> str:
        """The annotation file's name."""
        return self._name

    @property
    def items(self) -> Sequence[Item]:
        """One item a box, by image; made when it is asked for."""
        return self._items

    def by_image(self) -> Iterator[tuple[int, Int64[np.ndarray, " m"]]]:
        """Each image that has a box, in the annotations' order: its id, and its boxes' places in `items`."""
        order = np.argsort(self._images, kind="stable")
        starts = np.flatnonzero(np.diff(self._images[order], prepend=-1))
        for places in np.split(order, starts[1:]) if len(order) else ():
            yield int(self.annotations.image_ids[self._images[places[0]]]), places

    @cached_property
    def boxes_fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with images' ids, boxes, what is known of them, and the vocabulary."""
        digest, annotations = hashlib.sha256(), self.annotations
        known = annotations.category_ids[self._rows] if self._objectness is None else self._objectness[self._rows]
        for column in (annotations.image_ids[self._images], self._boxes, known, annotations.vocabulary.ids):
            digest.update(np.ascontiguousarray(column).tobytes())
        digest.update("\0".join(annotations.vocabulary.names).encode())
        return digest.hexdigest()[:16]

    def check_weights(self) -> None:
        """Raise `DatasetError` where a proposal's objectness is negative, and so cannot weigh scores."""
        if self._objectness is None:
            return
        wrong = np.flatnonzero(self._objectness[self._rows] < 0)
        if len(wrong):
            first = int(wrong[0])
            raise DatasetError(
                f"{self.name}: image {self.annotations.image_ids[self._images[first]]}: objectness "
                f"{self._objectness[self._rows[first]]:g} is negative ({len(wrong):,} such boxes) and cannot weigh "
                "scores: give probabilities, as by a sigmoid, or take a preset that ignores objectness"
            )

    def check_files(self) -> None:
        """Look whether the folder can be the right one; a single image that is missing is for whoever opens it.

        Raises:
            DatasetError: There is no folder of images, or it has none of several.
        """
        places = np.unique(self._images).tolist()
        paths = (self._path(place) for place in places)
        if places and not any(map(os.path.lexists, paths)) and len(places) > 1:
            raise DatasetError(
                f"{self.name}: none of its {len(places):,} images is there, such as {self._path(places[0])}; say from "
                "which folder on the file names them: read_annotations(…, images='FOLDER')"
            )

    def item(self, index: int) -> Item:
        """The item of box ``index``."""
        annotations, row, place = self.annotations, int(self._rows[index]), int(self._images[index])
        left, upper, right, lower = self._boxes[index].tolist()
        box: Box = (left, upper, right, lower)
        metadata: dict[str, Any] = {"image_id": int(annotations.image_ids[place])}
        label = None
        if self._objectness is None:
            metadata["annotation_id"] = int(annotations.annotation_ids[row])
            metadata["category_id"] = int(annotations.category_ids[row])
            label = annotations.vocabulary.names[int(self._columns[row])]
        else:
            metadata["objectness"] = float(self._objectness[row])
        name = annotations.path(place) or annotations.file(place)
        return Item(
            source=f"{name}{box_suffix(box)}",
            label=label,
            metadata=metadata,
            box_xyxy=box,
            image_size=annotations.size(place),
        )

    def _image(self, index: int) -> Path | Image:
        return self._path(int(self._images[index]))

    def _path(self, place: int) -> Path:
        path = self.annotations.path(place)
        if path is None:
            raise DatasetError(
                f"{self._name}: to open images, say where they are: read_annotations(…, images='FOLDER')"
            )
        return path


@final
class _Items(Sequence[Item]):
    def __init__(self, regions: RegionDataset) -> None:
        self._regions = regions

    def __len__(self) -> int:
        return len(self._regions._boxes)  # noqa: SLF001 - a part of that class

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self._regions.item(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{len(self)} boxes, asked for number {index}")
        return self._regions.item(index % len(self))

    def __iter__(self) -> Iterator[Item]:
        return (self._regions.item(index) for index in range(len(self)))
