"""Where an experiment's images come from: public benchmarks on disk, or the field guide, which is drawn."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, final

from PIL.Image import Image

from rarvision.datasets.base import Dataset, Item, Subset
from rarvision.datasets.benchmarks import BENCHMARKS, open_benchmark
from rarvision.datasets.benchmarks.opening import data_root
from rarvision.datasets.fieldguide import DOMAINS, FieldGuide
from rarvision.demo import TEXT_TEMPLATE
from rarvision.detection import RegionDataset, read_annotations
from rarvision.errors import DatasetError, OptionError
from rarvision.experiments.spec import Column

__all__ = ["BenchmarkWorld", "FieldGuideWorld", "Joined", "Task", "World", "spaced_subset"]

_WORDS = 10_000  # of the field guide, that its large vocabulary holds besides the true names
_CAPTIONED = 1_000  # categories that its corpus of captions is of, besides half of the true ones
_NAMED = 3  # missing files that a message names


@dataclass(frozen=True, kw_only=True)
class Task:
    """A dataset as an experiment needs it.

    Attributes:
        names: All categories.
        templates: How CLIP is asked for a name.
        known: Of a number of shots (None for the whole training set) and a seed: labelled images for the memory.
        queries: The test images.
        words: A large vocabulary, for naming without a list of categories.
        captions: A corpus of captions, likewise.
        kind: What all images are of, such as ``bird``; empty for several things.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    known: Callable[[int | None, int], Dataset]
    queries: Dataset
    words: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    kind: str = ""


class World(abc.ABC):
    """Gives the datasets of an experiment's columns."""

    edition: Literal["field-guide", "paper"]

    @property
    @abc.abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What the images depend on, JSON values."""

    @abc.abstractmethod
    def task(self, column: Column, settings: Mapping[str, Any], seed: int) -> Task:
        """A column's images.

        Raises:
            DatasetError: They are not there, or not all of them.
        """

    @abc.abstractmethod
    def regions(self, column: Column, settings: Mapping[str, Any], seed: int, folder: Path) -> RegionDataset:
        """A column's annotated boxes; what has to be drawn first is kept in the folder."""


@final
class Joined(Dataset):
    """Several datasets as one."""

    def __init__(self, parts: Sequence[Dataset], *, name: str) -> None:
        self._parts, self._name = tuple(parts), name
        self._places = [(part, row) for part in self._parts for row in range(len(part))]

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    @cached_property
    def items(self) -> Sequence[Item]:
        """Of all parts, one after the other."""
        return tuple(item for part in self._parts for item in part.items)

    def _image(self, index: int) -> Path | bytes | Image:
        part, row = self._places[index]
        return part[row].image


@final
class Below(Dataset):
    """A dataset whose sources begin below a folder.

    Results that people publish, and what is told apart or chosen by sources, are not to depend on where it lies on a
    machine.
    """

    def __init__(self, inner: Dataset, folder: Path) -> None:
        self._inner, self._folder = inner, folder

    @property
    def name(self) -> str:
        """The dataset's own."""
        return self._inner.name

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The dataset's own."""
        return self._inner.categories

    @cached_property
    def items(self) -> Sequence[Item]:
        """With shorter sources; those that lie elsewhere stay as they are."""
        return tuple(replace(item, source=self._below(item.source)) for item in self._inner.items)

    def _below(self, source: str) -> str:
        path = Path(source)
        return path.relative_to(self._folder).as_posix() if path.is_relative_to(self._folder) else source

    def _image(self, index: int) -> Path | bytes | Image:
        return self._inner[index].image


def spaced_subset(dataset: Dataset, limit: int | None) -> Dataset:
    """So many of its samples, evenly spaced; all where there are no more, or ``limit`` is None."""
    size = len(dataset)
    if limit is None or limit >= size:
        return dataset
    return Subset(dataset, [i * size // limit for i in range(limit)], name=f"{dataset.name}, {limit} of {size}")


@final
class FieldGuideWorld(World):
    """The embedded world: categories that no training of the embedded models has seen.

    Args:
        queries: Test images of a column.
        whole: Images a category that stand for a whole training set.
        scenes: Test scenes of experiments with boxes; None for all.
    """

    edition = "field-guide"

    def __init__(self, *, queries: int = 500, whole: int = 32, scenes: int | None = None) -> None:
        self._queries, self._whole, self._scenes = queries, whole, scenes

    @property
    def settings(self) -> Mapping[str, Any]:
        """Sizes."""
        return {"world": "field guide", "queries": self._queries, "whole": self._whole, "scenes": self._scenes}

    def task(self, column: Column, settings: Mapping[str, Any], seed: int) -> Task:
        """Draw a domain's images; the column ``all`` is of all domains alike."""
        count = int(settings["categories"])
        guides = _guides(column.key, count, seed)
        queries = int(settings.get("queries", self._queries))

        def known(shots: int | None, seed: int) -> Dataset:
            return _one([guide.few_shot(shots=shots or self._whole, seed=seed) for guide in guides], column.key)

        asked = [guide.queries(max(1, queries // len(guides)), seed=seed) for guide in guides]
        names = tuple(name for guide in guides for name in guide.names)
        naming = settings.get("naming", False)
        return Task(
            names=names,
            templates=(TEXT_TEMPLATE,),
            known=known,
            queries=_one(asked, column.key),
            words=tuple(sorted({*names, *FieldGuide.vocabulary(_WORDS, seed=seed)})) if naming else (),
            captions=_captions(guides, seed) if naming else (),
        )

    def regions(self, column: Column, settings: Mapping[str, Any], seed: int, folder: Path) -> RegionDataset:  # noqa: ARG002 - there is one
        """Draw scenes of all domains, once."""
        from rarvision.datasets.fieldguide import FieldGuideScenes

        options: dict[str, Any] = {"categories": int(settings["categories"]), "seed": seed}
        scenes = FieldGuideScenes("test", **options)
        if self._scenes is not None and self._scenes < scenes.scenes:
            scenes = FieldGuideScenes("test", **options, scenes=self._scenes)
        target = folder / f"scenes-{seed}"
        file = target / f"lvis_{scenes.split}.json"
        if not file.exists():  # written last
            scenes.export(target)
        return RegionDataset(read_annotations(file, images=target))


def _captions(guides: Sequence[FieldGuide], seed: int) -> tuple[str, ...]:
    """Captions of other images of the same domains: every other true name occurs, among many others."""
    texts = []
    for guide in guides:
        others = set(FieldGuide(guide.domain, categories=_CAPTIONED, seed=seed + 1).names) - set(guide.names)
        texts += [TEXT_TEMPLATE.format(name) for name in [*guide.names[::2], *sorted(others)]]
    return tuple(texts)


@lru_cache(maxsize=8)
def _guides(domain: str, count: int, seed: int) -> tuple[FieldGuide, ...]:
    if domain != "all":
        return (FieldGuide(domain, categories=count, seed=seed),)
    if count % len(DOMAINS):
        raise OptionError(f"categories over all {len(DOMAINS)} domains must be a multiple of {len(DOMAINS)}: {count}")
    return tuple(FieldGuide(each, categories=count // len(DOMAINS), seed=seed) for each in DOMAINS)


def _one(parts: Sequence[Dataset], name: str) -> Dataset:
    return parts[0] if len(parts) == 1 else Joined(parts, name=f"fieldguide:{name}/test")


@final
class BenchmarkWorld(World):
    """Public benchmarks in a folder of datasets, see `rarvision datasets`.

    Args:
        root: The folder; None for what the environment says.
        words: A large vocabulary, for naming without a list of categories.
        captions: A corpus of captions, likewise.
        limit: Only so many test images, evenly spaced; None for all.
        order: How shots are chosen: ``random``, or ``first`` as the authors' code does.
    """

    edition = "paper"

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        limit: int | None = None,
        order: Literal["random", "first"] = "random",
        words: Sequence[str] = (),
        captions: Sequence[str] = (),
    ) -> None:
        self._root, self._limit, self._order = data_root(root), limit, order
        self._words, self._captions = tuple(words), tuple(captions)
        self._open = lru_cache(maxsize=4)(lambda reference: Below(open_benchmark(reference, self._root), self._root))

    @property
    def settings(self) -> Mapping[str, Any]:
        """How images are chosen, and what else is given; where they lie changes nothing."""
        found: dict[str, Any] = {"world": "benchmarks", "limit": self._limit, "order": self._order}
        words = _digest(self._words)
        if self._words:
            found["words"] = words
        if self._captions:
            found["captions"] = _digest(self._captions)
            found["nouns"] = words if self._words else "all words"  # what counts as one in a caption
        return found

    def task(self, column: Column, settings: Mapping[str, Any], seed: int) -> Task:  # noqa: ARG002 - splits are fixed
        """Open a benchmark's splits; its test images must all be there."""
        reference = str(settings.get("reference", column.key))
        train = self._open(f"{reference}:{settings.get('train', 'train')}")
        limit = settings.get("limit", self._limit)
        queries = spaced_subset(self._open(f"{reference}:{settings.get('test', 'test')}"), limit)
        _check_there(queries)
        known = BENCHMARKS[reference.split("@", 1)[0]]

        def few(shots: int | None, seed: int) -> Dataset:
            chosen = train if shots is None else train.few_shot(shots=shots, seed=seed, order=self._order)
            _check_there(chosen)
            return chosen

        return Task(
            names=train.categories,
            templates=known.templates,
            known=few,
            queries=queries,
            words=self._words,
            captions=self._captions,
            kind=str(settings.get("kind", "")),
        )

    def regions(self, column: Column, settings: Mapping[str, Any], seed: int, folder: Path) -> RegionDataset:  # noqa: ARG002 - they are fixed
        """Read annotations and where their images lie."""
        known = BENCHMARKS[column.key]
        folders = [self._root / name for name in known.folders if (self._root / name).is_dir()]
        wanted = str(settings["annotations"])
        found = [each for each in folders if (each / wanted).is_file()]
        if not found:
            raise DatasetError(
                f"{self._root}: no {wanted} in a folder of {known.title} (one of {', '.join(known.folders)}); "
                f"`rarvision datasets info {known.name}` says where to get it"
            )
        boxes = RegionDataset(read_annotations(found[0] / wanted, images=found[0], limit=self._limit))
        _check_paths(boxes.name, [path for path in map(boxes.annotations.path, range(len(boxes.annotations))) if path])
        return boxes


def _digest(texts: Sequence[str]) -> str:
    """How many, and which."""
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    return f"{len(texts):,} ({digest[:12]})"


def _check_there(dataset: Dataset) -> None:
    """Refuse a dataset half of which is missing: images that fail would count as wrong."""
    _check_paths(
        dataset.name, [each for each in (dataset[i].image for i in range(len(dataset))) if isinstance(each, Path)]
    )


def _check_paths(name: str, paths: Sequence[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        named = ", ".join(map(str, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
        raise DatasetError(
            f"{name}: {len(missing):,} of {len(paths):,} images are not there: {named}; "
            "`rarvision datasets check` says what is missing"
        )
