"""Official lists that are text files, and folders that are a list themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from rarvision.datasets.benchmarks.names import camel_case, first_name, lower, reversed_path, spaces, without_number
from rarvision.datasets.benchmarks.spec import Listing, first_of
from rarvision.datasets.files import csv_rows, missing, read_text
from rarvision.errors import DatasetError
from rarvision.images import IMAGE_SUFFIXES

__all__ = [
    "folders",
    "listed_paths",
    "read_aircraft",
    "read_birds",
    "read_faces",
    "read_imagenet",
    "read_pets",
    "read_scenes",
    "read_textures",
    "read_videos",
]

EMOTIONS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
"""RAF-DB's basic emotions, in the order of its labels 1 to 7."""

Reader = Callable[[Path, str], Listing]


def read_birds(folder: Path, split: str) -> Listing:
    """CUB-200-2011: ``images.txt``, ``image_class_labels.txt`` and ``train_test_split.txt`` by the image's number."""
    images = dict(_pairs(folder / "images.txt"))
    labels = dict(_pairs(folder / "image_class_labels.txt"))
    training = dict(_pairs(folder / "train_test_split.txt"))
    names = {key: without_number(name) for key, name in _pairs(folder / "classes.txt")}
    wanted = {"train": "1", "test": "0"}[split]
    for name, table in (("image_class_labels.txt", labels), ("train_test_split.txt", training)):
        absent = images.keys() - table.keys()
        if absent:
            raise DatasetError(f"{folder / name}: no line for image {min(absent)!r} of images.txt; fetch it again")
    rows = [(f"images/{path}", labels[number]) for number, path in images.items() if training[number] == wanted]
    return Listing(rows=rows, names=names)


def read_pets(folder: Path, split: str) -> Listing:
    """Oxford-IIIT Pet: ``annotations/trainval.txt`` and ``test.txt``; the breed is in the file's name."""
    path = folder / "annotations" / f"{split}.txt"
    rows: list[tuple[str, str]] = []
    names: dict[str, str] = {}
    for number, line in _lines(path):
        if line.startswith("#"):
            continue
        fields = line.split()
        if len(fields) != 4 or "_" not in fields[0]:
            raise DatasetError(f"{path}, line {number}: expected NAME CLASS SPECIES BREED, got {line!r:.80}")
        name = lower(fields[0].rpartition("_")[0])
        _same(path, number, names.setdefault(fields[1], name), name)
        rows.append((f"images/{fields[0]}.jpg", fields[1]))
    return Listing(rows=rows, names=_in_order(names))


def read_faces(kind: str) -> Reader:
    """RAF-DB, basic emotions: ``list_patition_label.txt`` (spelt so); ``kind`` is ``aligned`` or ``original``."""

    def read(folder: Path, split: str) -> Listing:
        path = folder / "EmoLabel" / "list_patition_label.txt"
        names = {str(number): name for number, name in enumerate(EMOTIONS, start=1)}
        rows: list[tuple[str, str]] = []
        for number, line in _lines(path):
            name, _, label = line.partition(" ")
            if label not in names or not name.startswith(("train_", "test_")):
                raise DatasetError(
                    f"{path}, line {number}: expected train_NUMBER.jpg or test_…, 1 to 7, got {line!r:.80}"
                )
            if name.startswith(f"{split}_"):
                file = name if kind == "original" else f"{Path(name).stem}_aligned.jpg"
                rows.append((f"Image/{kind}/{file}", label))
        return Listing(rows=rows, names=names)

    return read


def read_textures(partition: int) -> Reader:
    """DTD: ``labels/train1.txt`` and so on, for each of ten partitions."""
    return listed_paths(lambda split: f"labels/{split}{partition}.txt", below="images")


def listed_paths(
    name: Callable[[str], str], *, below: str, suffix: str = "", clean: Callable[[str], str] = spaces
) -> Reader:
    """A file of paths, ``class/image`` a line; the folder is the class.

    Args:
        name: The file of a split, below the dataset's folder.
        below: Where the paths start, below the dataset's folder.
        suffix: What the paths lack.
        clean: Turns a folder's name into the category's.
    """

    def read(folder: Path, split: str) -> Listing:
        path = folder / name(split)
        rows: list[tuple[str, str]] = []
        for number, line in _lines(path):
            file = line.lstrip("/")
            key = file.rpartition("/")[0]
            if not key:
                raise DatasetError(f"{path}, line {number}: expected CLASS/IMAGE, got {line!r:.80}")
            rows.append((f"{below}/{file}{suffix}", key))
        return Listing(rows=rows, names={key: clean(key) for key in sorted({key for _, key in rows})})

    return read


def read_scenes(partition: int) -> Reader:
    """SUN397: ``Training_01.txt`` and ``Testing_01.txt``, for each of ten partitions."""
    lists = {"train": "Training", "test": "Testing"}
    return listed_paths(lambda split: f"{lists[split]}_{partition:02d}.txt", below="SUN397", clean=reversed_path)


def read_videos(partition: int) -> Reader:
    """UCF101: ``ucfTrainTestlist/trainlist01.txt`` and so on; of each video its middle frame, as CoOp extracted it."""

    def read(folder: Path, split: str) -> Listing:
        lists = folder / "ucfTrainTestlist"
        keys = {action: number for number, action in _pairs(lists / "classInd.txt")}
        path = lists / f"{split}list{partition:02d}.txt"
        rows: list[tuple[str, str]] = []
        for number, line in _lines(path):
            action, _, video = line.split()[0].partition("/")
            if action not in keys or not video.endswith(".avi"):
                raise DatasetError(f"{path}, line {number}: expected ACTION/VIDEO.avi, got {line!r:.80}")
            frame = f"UCF-101-midframes/{camel_case(action, joint='_')}/{video.removesuffix('.avi')}.jpg"
            rows.append((frame, keys[action]))
        return Listing(rows=rows, names={number: camel_case(action) for action, number in keys.items()})

    return read


def read_aircraft(level: str) -> Reader:
    """FGVC-Aircraft: ``images_LEVEL_SPLIT.txt``; the level is ``variant``, ``family`` or ``manufacturer``."""
    lists = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}

    def read(folder: Path, split: str) -> Listing:
        names = {name: name for _, name in _lines(folder / lists[level])}
        path = folder / f"images_{level}_{split}.txt"
        rows: list[tuple[str, str]] = []
        for number, line in _lines(path):
            image, _, name = line.partition(" ")
            if name not in names:
                raise DatasetError(
                    f"{path}, line {number}: expected NUMBER and a name of {lists[level]}, got {line!r:.80}"
                )
            rows.append((f"images/{image}.jpg", name))
        return Listing(rows=rows, names=names)

    return read


def folders(below: str, *, clean: Callable[[str], str] = spaces, without: tuple[str, ...] = ()) -> Reader:
    """A folder a class, in one split.

    Args:
        below: The folder of the classes' folders, below the dataset's; ``a|b``: the first that is there.
        clean: Turns a folder's name into the category's.
        without: Folders that are no class.
    """

    def read(folder: Path, split: str) -> Listing:
        del split  # there is one
        start = first_of(folder, below)
        keys = [key for key in _subfolders(start) if key not in without]
        rows = [
            (f"{start.relative_to(folder).as_posix()}/{key}/{name}", key)
            for key in keys
            for name in _images(start / key)
        ]
        return Listing(rows=rows, names={key: clean(key) for key in keys})

    return read


def read_imagenet(folder: Path, split: str) -> Listing:
    """ImageNet: a folder a synset, as CoOp and torchvision have it, or as Kaggle has it, with its list for ``val``."""
    names = _synsets(folder)
    start = first_of(folder, f"images/{split}|ILSVRC/Data/CLS-LOC/{split}|{split}")
    below = start.relative_to(folder).as_posix()
    solution = folder / f"LOC_{split}_solution.csv"
    rows: list[tuple[str, str]] = []
    if split == "val" and solution.exists() and not (start / next(iter(names))).exists():
        for number, row in csv_rows(solution):
            key = str(row.get("PredictionString", "")).split(" ")[0]
            if key not in names:
                raise DatasetError(f"{solution}, line {number}: expected ImageId,PredictionString, got {row!r:.80}")
            rows.append((f"{below}/{row['ImageId']}.JPEG", key))
        return Listing(rows=rows, names=names)
    for key in _subfolders(start):
        if key not in names:
            raise DatasetError(
                f"{start / key}: no class of that name in the list of names; expected folders such as n01440764"
            )
        rows += [(f"{below}/{key}/{name}", key) for name in _images(start / key)]
    return Listing(rows=rows, names=names)


def _synsets(folder: Path) -> dict[str, str]:
    """Names by synset: CoOp's ``classnames.txt`` or Kaggle's ``LOC_synset_mapping.txt``, or ``metadata.csv``."""
    if (folder / "classnames.txt").exists():
        return {key: spaces(name) for key, name in _pairs(folder / "classnames.txt")}
    if (folder / "metadata.csv").exists():
        return {row["folder_name"]: spaces(row["class_name"]) for _, row in csv_rows(folder / "metadata.csv")}
    return {key: first_name(name) for key, name in _pairs(folder / "LOC_synset_mapping.txt")}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.exists():
        raise DatasetError(missing(path, "file"))
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in _lines(path):
        first, _, second = line.partition(" ")
        if not second.strip():
            raise DatasetError(f"{path}, line {number}: expected two fields with a space between, got {line!r:.80}")
        yield first, second.strip()


def _same(path: Path, number: int, before: str, now: str) -> None:
    if before != now:
        raise DatasetError(f"{path}, line {number}: the class is named {now!r}, and {before!r} before; fetch it again")


def _in_order(names: dict[str, str]) -> dict[str, str]:
    return {key: names[key] for key in sorted(names, key=int)}


def _subfolders(start: Path) -> list[str]:
    try:
        with os.scandir(start) as entries:
            found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{start}: cannot be listed: {error.strerror or error}") from error
    if not found:
        raise DatasetError(f"{start}: no folders in it; expected one a class")
    return found


def _images(start: Path) -> list[str]:
    try:
        with os.scandir(start) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
            )
    except OSError as error:
        raise DatasetError(f"{start}: cannot be listed: {error.strerror or error}") from error
