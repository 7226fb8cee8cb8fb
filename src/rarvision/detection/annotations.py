"""Annotated images in the format of COCO, LVIS and V3Det, and their regions as a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NotRequired, TypedDict, final, overload
from urllib.parse import unquote, urlsplit

import numpy as np
from jaxtyping import Bool, Float, Int64

from rarvision.detection.files import LIMIT_BYTES, read_json
from rarvision.detection.vocabulary import Category, Frequency, Vocabulary
from rarvision.errors import DatasetError
from rarvision.regions import check_boxes_xywh, to_xyxy

__all__ = ["AnnotatedImage", "Annotations", "read_annotations", "read_vocabulary"]

_EXPECTED = "an annotation file of the COCO format (images, annotations, categories)"


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedImage:
    """One image and what is known of it.

    Attributes:
        id: Its number.
        file: Its path below the folder of images; None where the file names none.
        path: The same with the folder; None where no folder was given.
        width: Pixels; None where not said.
        height: Pixels; None where not said.
        boxes_xyxy: A row a box, pixels: left, upper, right, lower.
        category_ids: Of each box.
        categories: The name of each box's category, see `Vocabulary.names`.
        frequencies: Of each box's category; None outside LVIS.
        annotation_ids: Of each box.
        areas: Of each box, square pixels: of the object's mask where the file says it.
        crowd: Whether a box is around a crowd (COCO), which is neither a hit nor a miss.
        negative_category_ids: LVIS: known to be absent.
        not_exhaustive_category_ids: LVIS: there may be more of them than are annotated.
    """

    id: int
    file: str | None
    path: Path | None
    width: int | None
    height: int | None
    boxes_xyxy: Float[np.ndarray, "n 4"]
    category_ids: Int64[np.ndarray, " n"]
    categories: tuple[str, ...]
    frequencies: tuple[Frequency | None, ...]
    annotation_ids: Int64[np.ndarray, " n"]
    areas: Float[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    negative_category_ids: tuple[int, ...]
    not_exhaustive_category_ids: tuple[int, ...]


@dataclass(slots=True)
class _ImageRow:
    id: int
    file_name: str | None = None
    coco_url: str | None = None
    width: int | None = None
    height: int | None = None
    neg_category_ids: list[int] = field(default_factory=list)
    not_exhaustive_category_ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _AnnotationRow:
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int = 0


# A field is called def, which no class can have.
_CategoryRow = TypedDict(
    "_CategoryRow",
    {
        "id": int,
        "name": str,
        "frequency": NotRequired[str | None],
        "synonyms": NotRequired[list[str] | None],
        "def": NotRequired[str | None],
    },
)


@dataclass(slots=True)
class _File:
    images: list[_ImageRow]
    categories: list[_CategoryRow]
    annotations: list[_AnnotationRow]


@dataclass(slots=True)
class _CategoriesOnly:
    categories: list[_CategoryRow]


@final
class Annotations(Sequence[AnnotatedImage]):
    """The images of an annotation file, in the order of their ids; made by `read_annotations`.

    Records are made when they are asked for; until then everything is in columns. No image is opened.

    Attributes:
        name: The file's name without its suffix.
        folder: Where the images are; None where it was not given.
        vocabulary: Its categories.
        image_ids: Ascending.
        box_images: The place of each box's image in `image_ids`, ascending; within an image the file's order.
        boxes_xywh: As the file has them, pixels: left, upper, width, height.
        category_ids: Of each box.
        annotation_ids: Of each box.
        areas: Of each box, see `AnnotatedImage`.
        crowd: Of each box.
    """

    def __init__(
        self,
        *,
        name: str,
        vocabulary: Vocabulary,
        images: list[_ImageRow],
        annotations: list[_AnnotationRow],
        folder: Path | None = None,
    ) -> None:
        self.name, self.vocabulary, self.folder = name, vocabulary, folder
        if not images:
            raise DatasetError(f"{name}: no images in it")
        self._images = sorted(images, key=lambda image: image.id)
        self.image_ids = _ids([image.id for image in self._images], name, "image")
        _check_unique(self.image_ids, name, "image")
        for image in self._images:
            if min(1 if side is None else side for side in (image.width, image.height)) < 1:
                raise DatasetError(
                    f"{name}: image {image.id}: width and height must be at least 1 pixel, or left out, got "
                    f"{image.width} x {image.height}"
                )
        annotation_ids = _ids([row.id for row in annotations], name, "annotation")
        _check_unique(annotation_ids, name, "annotation")
        image_ids = _ids([row.image_id for row in annotations], name, "image")
        places = self.places(image_ids)
        order = np.argsort(places, kind="stable")
        boxes = np.array([row.bbox for row in annotations], dtype=np.float64).reshape(-1, 4)
        areas = np.array([np.nan if row.area is None else row.area for row in annotations], dtype=np.float64)
        areas = np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)
        check_boxes_xywh(boxes, lambda i: f"{name}: annotation {annotation_ids[i]}")
        if (areas < 0).any():
            wrong = annotation_ids[np.flatnonzero(areas < 0)[0]]
            raise DatasetError(f"{name}: annotation {wrong}: the area is negative")
        category_ids = _ids([row.category_id for row in annotations], name, "category")
        vocabulary.columns(category_ids)
        self.box_images: Int64[np.ndarray, " n"] = places[order]
        self.boxes_xywh: Float[np.ndarray, "n 4"] = boxes[order]
        self.category_ids: Int64[np.ndarray, " n"] = category_ids[order]
        self.annotation_ids: Int64[np.ndarray, " n"] = annotation_ids[order]
        self.areas: Float[np.ndarray, " n"] = areas[order]
        self.crowd: Bool[np.ndarray, " n"] = np.array([bool(row.iscrowd) for row in annotations], dtype=bool)[order]
        self._starts = np.searchsorted(self.box_images, np.arange(len(images) + 1))
        self._files = [_file(image, name) for image in self._images]
        for pairs in (self.negative_pairs, self.not_exhaustive_pairs):
            vocabulary.columns(pairs[1])

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> AnnotatedImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AnnotatedImage]: ...
    def __getitem__(self, index: int | slice) -> AnnotatedImage | Sequence[AnnotatedImage]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, asked for number {index}")
        index %= len(self)
        image, boxes = self._images[index], slice(self._starts[index], self._starts[index + 1])
        columns = self.vocabulary.columns(self.category_ids[boxes])
        return AnnotatedImage(
            id=image.id,
            file=self._files[index],
            path=self.path(index),
            width=image.width,
            height=image.height,
            boxes_xyxy=to_xyxy(self.boxes_xywh[boxes], notation="xywh", allow_empty=True),
            category_ids=self.category_ids[boxes],
            categories=tuple(self.vocabulary.names[column] for column in columns),
            frequencies=tuple(self.vocabulary[column].frequency for column in columns.tolist()),
            annotation_ids=self.annotation_ids[boxes],
            areas=self.areas[boxes],
            crowd=self.crowd[boxes],
            negative_category_ids=tuple(image.neg_category_ids),
            not_exhaustive_category_ids=tuple(image.not_exhaustive_category_ids),
        )

    def __iter__(self) -> Iterator[AnnotatedImage]:
        return (self[index] for index in range(len(self)))

    def file(self, index: int) -> str | None:
        """The path of image ``index`` below the folder of images."""
        return self._files[index]

    def path(self, index: int) -> Path | None:
        """The path of image ``index``, or None where no folder was given."""
        file = self._files[index]
        return None if self.folder is None or file is None else self.folder / file

    def size(self, index: int) -> tuple[int, int] | None:
        """Width and height of image ``index``, pixels; None where the file does not say them."""
        width, height = self._images[index].width, self._images[index].height
        return None if width is None or height is None else (width, height)

    def by_id(self, image_id: int) -> AnnotatedImage:
        """The image of that id.

        Raises:
            DatasetError: There is none.
        """
        return self[int(self.places(np.array([image_id], dtype=np.int64))[0])]

    def places(self, image_ids: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        """Where images are in `image_ids`.

        Raises:
            DatasetError: An id is unknown.
        """
        found = np.minimum(np.searchsorted(self.image_ids, image_ids), len(self.image_ids) - 1)
        wrong = np.flatnonzero(self.image_ids[found] != image_ids)
        if len(wrong):
            raise DatasetError(
                f"{self.name}: a box belongs to image {image_ids[wrong[0]]}, which is not among the {len(self):,} "
                f"images ({len(wrong)} such boxes); are these boxes of another file or split?"
            )
        return found

    @property
    def negative_pairs(self) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """LVIS: places of images, and ids of categories known to be absent from them."""
        return self._pairs([image.neg_category_ids for image in self._images])

    @property
    def not_exhaustive_pairs(self) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """LVIS: places of images, and ids of categories not all of which are annotated in them."""
        return self._pairs([image.not_exhaustive_category_ids for image in self._images])

    def _pairs(self, lists: list[list[int]]) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        places = np.repeat(np.arange(len(lists)), [len(ids) for ids in lists])
        return places, _ids([id_ for ids in lists for id_ in ids], self.name, "category")


def read_annotations(
    path: str | Path,
    *,
    images: str | Path | None = None,
    vocabulary: Vocabulary | None = None,
    limit: int | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> Annotations:
    """Read an annotation file: LVIS (v0.5, v1), V3Det, or any other of the COCO format.

    Images are named by ``file_name``, or else by the last two parts of ``coco_url`` (``val2017/000000000139.jpg``).
    Masks are skipped. Steps on text alone need no images.

    Args:
        path: The file.
        images: The folder of images; without it the records have no paths.
        vocabulary: What the categories must be, such as that of the training file: a check.
        limit: Only so many images, evenly spaced, and their boxes; None for all.
        limit_bytes: A larger file is refused; LVIS v1's are 1.1 GB (training) and 0.2 GB (validation).

    Raises:
        DatasetError: The file is missing, too large, truncated or not of the format; ids repeat or are unknown; a size
            is negative; its categories are not those of ``vocabulary``.
        MissingExtraError: The extra ``detection`` is not installed.
    """
    path = Path(path)
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder of images")
    rows = read_json(path, _File, limit_bytes=limit_bytes, expected=_EXPECTED)
    found = _vocabulary(rows.categories, path.name)
    if vocabulary is not None:
        vocabulary.check_covers(found)
    kept, boxes, name = rows.images, rows.annotations, path.stem
    if limit is not None and limit < len(kept):
        name = f"{name}, {limit} of {len(kept)}"
        kept = [kept[place * len(kept) // limit] for place in range(limit)]
        ids = {image.id for image in kept}
        boxes = [box for box in boxes if box.image_id in ids]
    return Annotations(name=name, vocabulary=found, images=kept, annotations=boxes, folder=folder)


def read_vocabulary(path: str | Path, *, limit_bytes: int = LIMIT_BYTES) -> Vocabulary:
    """Read the categories of an annotation file, of a list of categories, or of a text file.

    Synonyms and definitions are read where the file has them, as LVIS' files do (``synonyms``, ``def``).

    Args:
        path: A ``.json`` file that holds ``categories``, or is the list itself, as ``lvis_v1_train_cat_info.json``; or
            a ``.txt`` file with a name a line, as V3Det's, whose ids count from 1.
        limit_bytes: A larger file is refused.

    Raises:
        DatasetError: The file is missing, not of these, or ids repeat.
        MissingExtraError: The extra ``detection`` is not installed (for JSON).
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: cannot be read as text: {error}") from error
        return _vocabulary([{"id": i, "name": line} for i, line in enumerate(lines, start=1)], path.name)
    kind = _CategoriesOnly | list[_CategoryRow]
    read: _CategoriesOnly | list[_CategoryRow] = read_json(
        path,
        kind,  # type: ignore[arg-type]  # a union is a type to the decoder
        limit_bytes=limit_bytes,
        expected="a list of categories, or a file that holds one",
    )
    return _vocabulary(read if isinstance(read, list) else read.categories, path.name)


def _vocabulary(rows: list[_CategoryRow], name: str) -> Vocabulary:
    try:
        categories = [
            Category(
                id=row["id"],
                name=row["name"],
                frequency=row.get("frequency"),  # type: ignore[arg-type]  # checked at birth
                synonyms=tuple(row.get("synonyms") or ()),
                definition=row.get("def"),
            )
            for row in rows
        ]
    except DatasetError as error:
        raise DatasetError(f"{name}: {error}") from None
    return Vocabulary(categories, name=name)


def _ids(values: list[int], name: str, what: str) -> Int64[np.ndarray, " n"]:
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        raise DatasetError(f"{name}: {what} ids must fit 64 bits") from None


def _check_unique(ids: Int64[np.ndarray, " n"], name: str, what: str) -> None:
    distinct, counts = np.unique(ids, return_counts=True)
    if len(distinct) < len(ids):
        repeated = distinct[counts > 1]
        raise DatasetError(f"{name}: {what} id {repeated[0]} is given twice ({len(repeated)} such ids)")


def _file(image: _ImageRow, name: str) -> str | None:
    """A path that stays below the folder of images."""
    if image.file_name is not None:
        file = image.file_name
    elif image.coco_url is not None:
        file = "/".join(PurePosixPath(unquote(urlsplit(image.coco_url).path)).parts[-2:])
    else:
        return None
    parts = PurePosixPath(file.replace("\\", "/"))
    if not file.strip() or "\0" in file or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise DatasetError(f"{name}: image {image.id}: {file!r} is no path below the folder of images")
    return str(parts)
