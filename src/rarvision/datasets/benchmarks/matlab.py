"""Lists that are MATLAB files: Stanford Cars, Stanford Dogs, Flowers102."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rarvision.datasets.benchmarks.flowers import FLOWER_NAMES
from rarvision.datasets.benchmarks.names import without_number, year_first
from rarvision.datasets.benchmarks.spec import Listing, first_of
from rarvision.datasets.files import missing
from rarvision.errors import DatasetError

__all__ = ["read_cars", "read_dogs", "read_flowers"]

_FLOWER_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}


def read_cars(folder: Path, split: str) -> Listing:
    """Stanford Cars: ``cars_meta.mat`` names the classes, ``…_annos….mat`` gives each image its class, from 1."""
    classes = np.atleast_1d(_variable(first_of(folder, "devkit/cars_meta.mat|cars_meta.mat"), "class_names"))
    names = {str(number): str(name) for number, name in enumerate(classes.tolist(), start=1)}
    lists = {
        "train": "devkit/cars_train_annos.mat|cars_train_annos.mat",
        "test": "cars_test_annos_withlabels.mat|devkit/cars_test_annos_withlabels.mat",
    }
    path = first_of(folder, lists[split])
    annotations = np.atleast_1d(_variable(path, "annotations"))
    absent = {"fname", "class"}.difference(annotations.dtype.names or ())
    if absent:
        raise DatasetError(
            f"{path}: 'annotations' has no field {min(absent)!r}; the list of test images with labels is "
            "cars_test_annos_withlabels.mat"
        )
    rows = [(f"cars_{split}/{each['fname']}", str(int(each["class"]))) for each in annotations]
    return Listing(rows=rows, names={key: year_first(name) for key, name in names.items()})


def read_dogs(folder: Path, split: str) -> Listing:
    """Stanford Dogs: ``train_list.mat`` and ``test_list.mat`` name the images, their folders the breeds."""
    path = first_of(folder, f"lists/{split}_list.mat|{split}_list.mat")
    files = [str(file) for file in np.atleast_1d(_variable(path, "file_list")).tolist()]
    labels = np.atleast_1d(_variable(path, "labels")).tolist()
    if len(files) != len(labels):
        raise DatasetError(f"{path}: {len(files)} files and {len(labels)} labels; fetch it again")
    names: dict[int, str] = {}
    for file, label in zip(files, labels, strict=True):
        breed = file.split("/")[0]
        other = names.setdefault(int(label), breed)
        if other != breed:
            raise DatasetError(f"{path}: the class {label} is {breed!r}, and {other!r} before; fetch it again")
    rows = [(f"Images/{file}", str(int(label))) for file, label in zip(files, labels, strict=True)]
    return Listing(rows=rows, names={str(key): without_number(names[key]) for key in sorted(names)})


def read_flowers(folder: Path, split: str) -> Listing:
    """Flowers102: ``imagelabels.mat`` gives each image its class, ``setid.mat`` lists the images, both from 1."""
    path = folder / "imagelabels.mat"
    labels = np.atleast_1d(_variable(path, "labels")).tolist()
    sets = folder / "setid.mat"
    numbers = np.atleast_1d(_variable(sets, _FLOWER_SPLITS[split])).tolist()
    outside = [number for number in numbers if not 1 <= number <= len(labels)]
    if outside:
        raise DatasetError(f"{sets}: image {outside[0]} has no label in {path.name}, which has {len(labels)}")
    names = {str(number): name for number, name in enumerate(FLOWER_NAMES, start=1)}
    return Listing(rows=[(f"jpg/image_{number:05d}.jpg", str(labels[number - 1])) for number in numbers], names=names)


def _variable(path: Path, name: str) -> Any:
    if not path.is_file():
        raise DatasetError(missing(path, "file"))
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True)
    except Exception as error:  # scipy raises anything whatever on damaged files
        raise DatasetError(f"{path}: not a MATLAB file that can be read: {error}; fetch it again") from error
    if name not in content:
        held = ", ".join(key for key in content if not key.startswith("__"))
        raise DatasetError(f"{path}: has no variable {name!r}; it has {held or 'none'}")
    return content[name]
