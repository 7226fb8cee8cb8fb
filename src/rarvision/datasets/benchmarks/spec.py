"""What is known of a public benchmark: its size, its licence, where its files lie, and how its lists are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rarvision.errors import DatasetError

__all__ = ["Benchmark", "Listing", "Splits", "Table", "first_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What a split consists of, by its lists; whether the files are there is not asked.

    Attributes:
        rows: The path below the dataset's folder, with ``/``, and the class's key, an image each, in list order.
        names: The name of each class by its key, in the dataset's own order; classes without an image may be in it.
    """

    rows: Sequence[tuple[str, str]]
    names: Mapping[str, str]

    def __post_init__(self) -> None:
        for path, key in self.rows:
            climbs = ".." in path and ".." in path.split("/")
            if climbs or path.startswith("/") or "\\" in path or "\0" in path:
                raise DatasetError(f"a list names {path!r}; expected a path below the dataset's folder")
            if key not in self.names:
                raise DatasetError(f"a list gives {path!r} the class {key!r}, which has no name")


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """One way in which a benchmark is divided.

    Attributes:
        counts: Images a split.
        files: What the lists are read from, below the folder; ``a|b``: one of them.
        images: The folders that the images lie in; ``a|b``: one of them.
        read: Lists a split, given the folder and the split's name.
        classes: Classes with images, where it differs from the benchmark's.
        about: A sentence.
    """

    counts: Mapping[str, int]
    files: tuple[str, ...]
    images: tuple[str, ...]
    read: Callable[[Path, str], Listing]
    classes: int | None = None
    about: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A copy on the Hugging Face hub, read with the `datasets` library from where it was saved.

    Attributes:
        repository: Its name on the hub; other copies of the same kind are read as well.
        counts: Images a split, None where nothing is published that we could compare with.
        rename: From the name of a class in the copy to the category's name.
        label_column: Its column of labels; None for the only one.
    """

    repository: str
    counts: Mapping[str, int | None]
    rename: Callable[[str], str]
    label_column: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A public dataset of images.

    Attributes:
        name: What it is called here, such as ``flowers102``.
        title: Its own name.
        about: What is in it.
        task: ``classification`` reads images with labels; of ``detection`` only these facts are known here.
        classes: How many there are.
        images: How many there are, over all splits.
        folders: Where it is looked for below the folder of all datasets, the customary names of it.
        splits: The ways of dividing it; ``coop`` are the splits of CoOp, on which few-shot methods are compared.
        default: Which of them a name without ``@`` means.
        templates: How CLIP is asked for a name: ``{}`` stands for it.
        licence: Its terms in short, as its authors state them. Read theirs.
        homepage: Where it is described.
        download: Where the files come from, one a line.
        size: Of the download, in words.
        tree: The folder with its files, as text.
        citation: The paper, in one line.
        table: Its copy on the hub, if one is known.
        renamed: Names, by key, of classes whose own name another class has as well.
        cautions: What to know before figures are compared.
        tried: What the readers have been tried on.
    """

    name: str
    title: str
    about: str
    task: Literal["classification", "detection"] = "classification"
    classes: int
    images: int
    folders: tuple[str, ...]
    splits: Mapping[str, Splits] = field(default_factory=dict)
    default: str = "official"
    templates: tuple[str, ...] = ("a photo of a {}.",)
    licence: str
    homepage: str
    download: tuple[str, ...]
    size: str
    tree: str
    citation: str
    table: Table | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()
    tried: str = "miniatures laid out as described; no real files"

    def counts(self) -> dict[str, dict[str, int | None]]:
        """Images a split, for each way of dividing it."""
        found: dict[str, dict[str, int | None]] = {name: dict(splits.counts) for name, splits in self.splits.items()}
        return found | ({} if self.table is None else {"hub": dict(self.table.counts)})

    def to_dict(self) -> dict[str, Any]:
        """JSON values: everything but the readers."""
        return {
            "name": self.name,
            "title": self.title,
            "about": self.about,
            "task": self.task,
            "classes": self.classes,
            "images": self.images,
            "default": self.default if self.splits else None,
            "splits": self.counts(),
            "splits_about": {name: splits.about for name, splits in self.splits.items()},
            "templates": list(self.templates),
            "licence": self.licence,
            "homepage": self.homepage,
            "download": list(self.download),
            "size": self.size,
            "folders": list(self.folders),
            "layout": self.tree,
            "hub": None if self.table is None else self.table.repository,
            "citation": self.citation,
            "cautions": list(self.cautions),
            "tried": self.tried,
        }


def first_of(folder: Path, alternatives: str) -> Path:
    """The first of several files (``a|b``) that is there; the first of all where none is."""
    paths = [folder / name for name in alternatives.split("|")]
    return next((path for path in paths if path.exists()), paths[0])
