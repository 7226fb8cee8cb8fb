"""Scenes of the field guide: a long tail dealt out exactly, the same pictures everywhere, files read as LVIS'."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from needs import need
from rarvision.datasets.fieldguide import FieldGuideScenes, SceneCategory
from rarvision.datasets.fieldguide.vocabulary import domain_of, split_of
from rarvision.errors import OptionError
from rarvision.testing import check_dataset

SMALL = {"categories": 50, "seed": 5}


@pytest.fixture(scope="module")
def shown():
    return FieldGuideScenes("test", **SMALL)


def test_it_is_a_dataset(shown):
    check_dataset(shown)


def test_the_full_set_is_as_large_as_its_docstring_says():
    test, train = FieldGuideScenes("test"), FieldGuideScenes("train")
    assert len(test.categories) == 1200
    assert min(Counter(item.label for item in test.items).values()) == 2
    assert 1250 < train.scenes < 1400
    assert 100 < test.scenes < 120
    groups = Counter(category.frequency for category in test.vocabulary)
    assert min(groups["r"], groups["c"], groups["f"]) >= 90


def test_frequencies_count_training_scenes_as_lvis_does():
    train = FieldGuideScenes("train")
    scenes: dict[str, set[int]] = {}
    for item in train.items:
        scenes.setdefault(item.label, set()).add(item.metadata["image_id"])
    for category in train.vocabulary:
        assert isinstance(category, SceneCategory)
        count = len(scenes[category.name])
        assert category.train_images == count
        assert category.frequency == ("r" if count <= 10 else "c" if count <= 100 else "f")


def test_no_training_of_the_embedded_models_saw_a_category(shown):
    for category in shown.vocabulary:
        codes = domain_of(category.domain).names_to_codes([category.name])
        assert split_of(category.domain, codes)[0] == 2


def test_training_and_shown_differ(shown):
    train = FieldGuideScenes("train", **SMALL, scenes=1)
    assert not np.array_equal(np.asarray(train.scene(0).image), np.asarray(shown.scene(0).image))
    assert shown.scenes > 1
    assert not {item.source for item in train.items} & {item.source for item in shown.items}


def test_the_same_scene_whatever_was_drawn_before(shown):
    again = FieldGuideScenes("test", **SMALL, scenes=2)
    later = again.scene(1)
    first = shown.scene(1)
    assert later.objects == first.objects
    assert np.array_equal(np.asarray(later.image), np.asarray(first.image))
    other = FieldGuideScenes("test", categories=50, seed=6)
    assert not np.array_equal(np.asarray(other.scene(1).image), np.asarray(first.image))


def test_every_subject_is_annotated_where_it_is_visible(shown):
    sizes = []
    for index in range(3):
        drawn = shown.scene(index)
        items = [item for item in shown.items if item.metadata["image_id"] == index + 1]
        assert [each.row + 1 for each in drawn.objects] == [item.metadata["category_id"] for item in items]
        for each in drawn.objects:
            left, upper, right, lower = each.box_xyxy
            assert 0 <= left < right <= 640
            assert 0 <= upper < lower <= 480
            assert 0 < each.area <= (right - left) * (lower - upper)
            assert 0 < each.visible <= 1
            sizes.append((right - left) * (lower - upper))
    assert min(sizes) < 32**2
    assert max(sizes) > 96**2


def test_samples_of_a_scene_share_its_image(shown):
    first, second = shown[0], shown[1]
    assert first.image is second.image
    assert first.box_xyxy == shown.scene(0).objects[0].box_xyxy
    few = shown.few_shot(shots=1)
    assert all(few[i].box_xyxy is not None for i in (0, 1))


def test_absent_categories_are_absent_and_many(shown):
    for index in range(shown.scenes):
        absent = shown.negative_rows(index)
        present = {item.metadata["category_id"] - 1 for item in shown.items if item.metadata["image_id"] == index + 1}
        assert len(set(absent)) == len(absent) > 5
        assert not present & set(absent)


def test_specks_are_told_of():
    scenes = FieldGuideScenes("test", categories=50, seed=1)
    lacking = [scenes.scene(i).not_exhaustive_rows for i in range(scenes.scenes)]
    assert any(lacking)
    assert not all(lacking)
    for index, rows in enumerate(lacking):
        assert set(rows) <= {each.row for each in scenes.scene(index).objects}


def test_written_scenes_are_read_as_lvis(tmp_path):
    need("msgspec", group="detection")
    from rarvision.detection import Proposals, RegionDataset, read_annotations

    scenes = FieldGuideScenes("test", **SMALL, scenes=2)
    calls = []
    file = scenes.export(tmp_path, progress=lambda done, of: calls.append((done, of)))
    assert calls == [(1, 2), (2, 2)]
    annotations = read_annotations(file, images=tmp_path)
    regions = RegionDataset(annotations)
    assert [(s.label, s.box_xyxy) for s in regions] == [(s.label, s.box_xyxy) for s in scenes]
    assert {each.frequency for each in annotations.vocabulary} >= {"r", "c"}
    assert Proposals.from_annotations(annotations).boxes_count == len(scenes)
    first = annotations[0]
    assert first.negative_category_ids == tuple(row + 1 for row in scenes.negative_rows(0))
    assert np.array_equal(np.asarray(Image.open(first.path)), np.asarray(scenes.scene(0).image))
    fields = {"id", "name", "synonyms", "synset", "def", "frequency", "image_count", "instance_count"}
    assert set(json.loads(file.read_text())["categories"][0]) == fields


def test_wrong_options_are_named():
    with pytest.raises(OptionError, match="multiple of 5"):
        FieldGuideScenes("test", categories=7)
    with pytest.raises(OptionError, match="train, test"):
        FieldGuideScenes("validation")
    with pytest.raises(OptionError, match="between 1 and"):
        FieldGuideScenes("test", categories=50, scenes=0)
    with pytest.raises(IndexError, match="scenes"):
        FieldGuideScenes("test", categories=50).scene(10_000)
