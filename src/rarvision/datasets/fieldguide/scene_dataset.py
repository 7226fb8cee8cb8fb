"""Scenes as a detection set: one sample a box, drawn as it is read, or written as LVIS writes its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, final, get_args

import numpy as np
from PIL.Image import Image

from rarvision.datasets.base import Dataset, Item
from rarvision.datasets.fieldguide.hashing import fold
from rarvision.datasets.fieldguide.scene_layout import Appearances, SceneCategory, SceneSplit, World
from rarvision.datasets.fieldguide.scenes import HEIGHT, WIDTH, Cast, Drawn, draw_scene
from rarvision.errors import OptionError
from rarvision.types import Sample

__all__ = ["FieldGuideScenes"]

_KEPT: Final = 4  # scenes in memory
# Of the categories, those that a scene lists as absent: each is then listed in some ten times as many scenes as it is
# in. In LVIS v0.5's first 100 validation images it is 14 times for common categories, 161 for rare ones.
_NEGATIVE: Final = 0.25
_NEAR: Final = 1 / 3  # of these, look-alikes of what is there, at most
_GROUP: Final = 10  # look-alikes stand together in the vocabulary


@final
class FieldGuideScenes(Dataset):
    """Pictures of 18 to 44 subjects each, a long tail of categories, one sample a box; drawn when they are read.

    The categories are held-out ones of `FieldGuide`, a fifth of each domain, in groups of ten look-alikes. Each has
    between 180 objects and one in the training scenes; `SceneCategory.frequency` counts the scenes, as LVIS does. In
    the test scenes every category appears at least twice. Subjects are 13 to 230 pixels long, may cover each other, and
    share their habitat with those that live there; a box is around what is visible. A third of the scenes have specks
    of a category that are not annotated: it is then *not exhaustively* annotated there.

    Items have no boxes, since these are known when the scene is drawn; samples do. Samples of one scene follow one
    another and have the same image.

    Args:
        split: ``train`` or ``test``: other scenes of the same categories.
        categories: How many; a multiple of five.
        seed: Another seed, other categories and scenes.
        scenes: Only the first ones; None for all (1,200 categories: about 1,300 to train and 110 to test). Frequencies
            are those of all training scenes either way.

    Raises:
        OptionError: An option is out of range.

    >>> scenes = FieldGuideScenes("test", categories=50)
    >>> sample = scenes[0]
    >>> sample.image.size, len(sample.label.split()), sample.box_xyxy is None
    ((640, 480), 5, False)
    """

    def __init__(
        self, split: SceneSplit = "test", *, categories: int = 1200, seed: int = 0, scenes: int | None = None
    ) -> None:
        if split not in get_args(SceneSplit):
            raise OptionError(f"split must be one of {', '.join(get_args(SceneSplit))}, got {split!r}")
        self.split: SceneSplit = split
        self.seed = seed
        self.world = World(categories, seed)
        self._dealt: Appearances = self.world.train if split == "train" else self.world.test
        available = len(self._dealt.habitats)
        if scenes is not None and not 1 <= scenes <= available:
            raise OptionError(f"scenes must lie between 1 and {available}, got {scenes}")
        self.scenes = available if scenes is None else scenes
        self._draw: Callable[[int], Drawn] = lru_cache(maxsize=_KEPT)(self._drawn)

    @property
    def name(self) -> str:
        """For instance ``fieldguide-scenes:test``."""
        return f"fieldguide-scenes:{self.split}"

    @property
    def vocabulary(self) -> tuple[SceneCategory, ...]:
        """All categories with their frequency, by id."""
        return self.world.categories

    @cached_property
    def items(self) -> Sequence[Item]:
        """Source (scene and object) and label of each box, by scene; draws nothing."""
        names = self.world.names
        return tuple(
            Item(
                source=f"{self.name}/{scene}/{number}",
                label=names[row],
                metadata={"image_id": scene + 1, "category_id": row + 1},
            )
            for scene in range(self.scenes)
            for number, row in enumerate(self._rows(scene).tolist())
        )

    def scene(self, index: int) -> Drawn:
        """Draw scene ``index``, counting from 0; the last few are kept.

        Raises:
            IndexError: There is none.
        """
        if not 0 <= index < self.scenes:
            raise IndexError(f"{self.name} has {self.scenes} scenes, asked for number {index}")
        return self._draw(index)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, asked for number {index}")
        index %= len(self)
        item, scene = self.items[index], self._scene_of(index)
        drawn = self.scene(scene)
        box = drawn.objects[index - int(self._dealt.starts[scene])].box_xyxy
        return Sample(
            source=item.source,
            image=drawn.image,
            label=item.label,
            metadata=item.metadata,
            box_xyxy=box,
        )

    def _image(self, index: int) -> Image:
        return self.scene(self._scene_of(index)).image

    def _scene_of(self, index: int) -> int:
        return int(np.searchsorted(self._dealt.starts, index, side="right")) - 1

    def _rows(self, scene: int) -> np.ndarray:
        return self._dealt.rows[self._dealt.starts[scene] : self._dealt.starts[scene + 1]]

    def _drawn(self, index: int) -> Drawn:
        rows = self._rows(index)
        return draw_scene(
            Cast(
                habitat=self._dealt.habitats[index],
                domains=tuple(self.world.domains[row] for row in rows),
                codes=self.world.codes[rows],
                rows=rows,
                key=self._key(index),
            )
        )

    def _key(self, index: int) -> int:
        return int(fold(self.seed, 41 + get_args(SceneSplit).index(self.split), index)[0])

    def negative_rows(self, index: int) -> tuple[int, ...]:
        """Categories that a scene lists as absent: look-alikes of what is there, and others at random."""
        rows = self._rows(index)
        count = len(self.world.names)
        groups = np.unique(rows // _GROUP)
        near = (groups[:, None] * _GROUP + np.arange(_GROUP)).ravel()
        every = np.arange(count)
        near = np.setdiff1d(near[near < count], rows)
        far = np.setdiff1d(every, np.concatenate((rows, near)))
        wanted = round(_NEGATIVE * count)
        chosen: list[np.ndarray] = []
        for salt, pool, most in ((0, near, round(_NEAR * wanted)), (1, far, wanted)):
            order = np.argsort(fold(self._key(index), 9, salt, pool), kind="stable")
            chosen.append(pool[order][: most - sum(map(len, chosen))])
        return tuple(sorted(np.concatenate(chosen).tolist()))

    def export(self, folder: str | Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
        """Write the scenes as PNG files and their annotations as LVIS v1 writes its own.

        Annotations have boxes and areas (of what is visible) and no masks. The annotation file appears when all images
        are written; images that are complete already are not written again.

        Args:
            folder: Gets ``lvis_<split>.json`` and ``<split>/000001.png`` and so on.
            progress: Called with the scenes done and all of them.

        Returns:
            The annotation file, for ``rarvision.detection.read_annotations(file, images=folder)``.
        """
        folder = Path(folder)
        (folder / self.split).mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(self.scenes):
            drawn = self.scene(index)
            image, found = self._record(index, drawn, len(annotations))
            _save(drawn.image, folder / image["file_name"])
            images.append(image)
            annotations += found
            if progress is not None:
                progress(index + 1, self.scenes)
        file = folder / f"lvis_{self.split}.json"
        fresh = file.with_name(file.name + ".part")
        fresh.write_text(
            json.dumps(
                {
                    "info": self.description,
                    "licenses": [],
                    "categories": list(self._categories()),
                    "images": images,
                    "annotations": annotations,
                }
            ),
            encoding="utf-8",
        )
        fresh.replace(file)
        return file

    @property
    def description(self) -> dict[str, Any]:
        """What the scenes depend on, as the ``info`` of an annotation file."""
        return {
            "description": "rarvision's field guide: scenes",
            "version": "1",
            "split": self.split,
            "categories": len(self.world.names),
            "scenes": self.scenes,
            "seed": self.seed,
        }

    def _categories(self) -> Iterator[dict[str, Any]]:
        for category in self.vocabulary:
            yield {
                "id": category.id,
                "name": category.name,
                "synonyms": [category.name],
                "synset": f"{category.name.replace(' ', '_')}.n.01",
                "def": f"one of the field guide's {category.domain}",
                "frequency": category.frequency,
                "image_count": category.train_images,
                "instance_count": category.train_objects,
            }

    def _record(self, index: int, drawn: Drawn, before: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        image = {
            "id": index + 1,
            "file_name": f"{self.split}/{index + 1:06d}.png",
            "width": WIDTH,
            "height": HEIGHT,
            "neg_category_ids": [row + 1 for row in self.negative_rows(index)],
            "not_exhaustive_category_ids": [row + 1 for row in drawn.not_exhaustive_rows],
        }
        found = []
        for number, each in enumerate(drawn.objects, start=before + 1):
            left, upper, right, lower = each.box_xyxy
            found.append(
                {
                    "id": number,
                    "image_id": index + 1,
                    "category_id": each.row + 1,
                    "bbox": [left, upper, right - left, lower - upper],
                    "area": each.area,
                }
            )
        return image, found


def _save(image: Image, path: Path) -> None:
    if not path.exists():
        fresh = path.with_name(path.name + ".part")
        image.save(fresh, format="PNG")
        fresh.replace(path)
