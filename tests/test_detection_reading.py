"""Annotation files, results and proposals: what is read, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from detection_world import write_world
from needs import need
from rarvision.detection import (
    Category,
    Detections,
    Proposals,
    RegionDataset,
    Vocabulary,
    clean_names,
    read_annotations,
    read_detections,
    read_proposals,
    read_vocabulary,
    write_detections,
)
from rarvision.errors import DatasetError, MissingExtraError, OptionError
from rarvision.regions import to_xywh
from rarvision.testing import check_dataset


@pytest.fixture(autouse=True, scope="module")
def _extra():
    need("msgspec", group="detection")


TRUTH = {
    "images": [
        {"id": 9, "width": 40, "height": 30, "coco_url": "http://images.cocodataset.org/val2017/000000000009.jpg"},
        {"id": 4, "width": 40, "height": 30, "file_name": "a/4.png", "neg_category_ids": [5]},
    ],
    "categories": [
        {"id": 5, "name": "bow_(weapon)", "frequency": "r", "synset": "bow.n.04"},
        {"id": 2, "name": "air_conditioner", "frequency": "f"},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 5, "bbox": [1, 2, 10, 20], "segmentation": [[1, 2, 3]]},
        {"id": 3, "image_id": 4, "category_id": 2, "bbox": [0.5, 0, 4, 4], "area": 7.5},
        {"id": 2, "image_id": 4, "category_id": 5, "bbox": [0, 0, 0, 4], "iscrowd": 0},
    ],
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(kind, index=0, **fields):
    copy = json.loads(json.dumps(TRUTH))
    copy[kind][index] |= fields
    return copy


def test_records(tmp_path):
    annotations = read_annotations(write(tmp_path / "truth.json", TRUTH))
    assert [image.id for image in annotations] == [4, 9]
    first, second = annotations
    assert first.boxes_xyxy.tolist() == [[0.5, 0, 4.5, 4], [0, 0, 0, 4]]
    assert first.categories == ("air conditioner", "bow weapon")
    assert first.frequencies == ("f", "r")
    assert first.annotation_ids.tolist() == [3, 2]
    assert first.areas.tolist() == [7.5, 0.0]
    assert (first.negative_category_ids, first.not_exhaustive_category_ids) == ((5,), ())
    assert (first.file, second.file, first.path) == ("a/4.png", "val2017/000000000009.jpg", None)
    assert annotations.by_id(9).category_ids.tolist() == [5]
    assert annotations[-1].id == annotations[1:][0].id == 9
    assert (second.width, second.height) == (40, 30)
    with pytest.raises(IndexError, match="2 images"):
        annotations[2]


def test_regions_are_a_dataset(tmp_path):
    truth = write(tmp_path / "truth.json", TRUTH)
    for name in ("a/4.png", "val2017/000000000009.jpg"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (40, 30), "red").save(tmp_path / name)
    regions = RegionDataset(read_annotations(truth, images=tmp_path))
    check_dataset(regions)
    assert (len(regions), regions.left_out) == (2, 1)
    assert regions.categories == ("air conditioner", "bow weapon")
    assert regions[1].box_xyxy == (1, 2, 11, 22)
    assert regions[1].source == f"{tmp_path}/val2017/000000000009.jpg#xyxy=1,2,11,22"
    assert regions.items[0].metadata == {"image_id": 4, "annotation_id": 3, "category_id": 2}
    assert [item.label for item in regions.items[0:2]] == list(regions.categories)
    blind = RegionDataset(read_annotations(truth))
    assert blind.items[1].source == "val2017/000000000009.jpg#xyxy=1,2,11,22"
    with pytest.raises(DatasetError, match="images='FOLDER'"):
        blind[0]


def test_proposals_know_no_categories(tmp_path):
    annotations = read_annotations(write(tmp_path / "truth.json", TRUTH))
    rows = [
        {"image_id": 9, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.2},
        {"image_id": 9, "category_id": 2, "bbox": [1, 1, 5, 5], "score": 0.9},
        {"image_id": 9, "bbox": [2, 2, 5, 5], "score": 0.5},
        {"image_id": 9, "bbox": [3, 3, 5, 5], "score": 0.1},
    ]
    path = write(tmp_path / "boxes.json", rows)
    proposals = read_proposals(path, annotations=annotations, per_image=2)
    assert list(proposals) == [9]
    assert proposals[9].objectness.tolist() == [0.9, 0.5]
    assert proposals[9].boxes_xyxy.tolist() == [[1, 1, 6, 6], [2, 2, 7, 7]]
    assert proposals.boxes_count == 2
    assert len(proposals.of(4).objectness) == 0
    assert read_proposals(path, min_objectness=0.5)[9].objectness.tolist() == [0.9]
    regions = RegionDataset(annotations, proposals)
    assert [item.label for item in regions.items] == [None, None]
    assert regions.items[1].metadata == {"image_id": 9, "objectness": 0.5}
    assert Proposals.from_annotations(annotations).boxes_count == 3
    assert read_proposals(write(path, [])).boxes_count == 0
    with pytest.raises(DatasetError, match="image 3, which is not among the 2"):
        read_proposals(write(path, [rows[0] | {"image_id": 3}]), annotations=annotations)
    with pytest.raises(OptionError):
        read_proposals(path, per_image=0)


def test_results_come_back_as_they_were(tmp_path):
    truth, results = write_world(tmp_path, seed=0)
    detections = read_detections(results, vocabulary=read_vocabulary(truth))
    write_detections(tmp_path / "again.json", detections)
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(results.read_text())
    assert to_xywh(detections.boxes_xyxy) == pytest.approx(detections.boxes_xywh)
    assert not list(tmp_path.glob("*.part"))
    write_detections(tmp_path / "none.json", Detections.concatenate([]))
    assert json.loads((tmp_path / "none.json").read_text()) == []
    both = Detections.concatenate([detections, Detections.concatenate([]), detections])
    assert len(both) == 2 * len(detections)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        (json.dumps(TRUTH)[:-40], "truncated; is the download complete"),
        ("[1, 2]", "not an annotation file.*Expected `object`"),
        ({"images": [], "annotations": [], "categories": TRUTH["categories"]}, "no images"),
        ({key: TRUTH[key] for key in ("annotations", "categories")}, "missing required field `images`"),
        ({key: TRUTH[key] for key in ("annotations", "images")}, "missing required field `categories`"),
        ({**TRUTH, "categories": []}, "no categories"),
        (changed("annotations", image_id=8), "image 8, which is not among the 2"),
        (changed("annotations", category_id=6), "no category has id 6"),
        (changed("annotations", id=2), "annotation id 2 is given twice"),
        (changed("annotations", id="x"), r"Expected `int`, got `str` - at `\$\.annotations\[0\]\.id`"),
        (changed("annotations", id=2**70), "64 bits|out of range"),
        (changed("annotations", bbox=[1, 2, -3, 4]), "annotation 1: .*not negative"),
        (changed("annotations", bbox=[1, 2, 3]), "length 4"),
        (changed("annotations", bbox=[1, 2, float("nan"), 4]), "NaN and Infinity are not JSON"),
        (changed("annotations", bbox=[1, 2, float("-inf"), 4]), "NaN and Infinity are not JSON"),
        (changed("annotations", area=-1.0), "annotation 1: the area is negative"),
        (changed("images", id=4), "image id 4 is given twice"),
        (changed("images", file_name="../../secret"), "no path below"),
        (changed("images", file_name="/etc/secret"), "no path below"),
        (changed("images", file_name="C:\\secret"), "no path below"),
        (changed("images", neg_category_ids=[77]), "no category has id 77"),
        (changed("categories", id=2), "category id 2 is given twice.*two vocabularies"),
        (changed("categories", frequency="x"), "frequency must be"),
        (changed("categories", name=" "), "blank"),
    ],
)
def test_what_is_refused(content, message, tmp_path):
    with pytest.raises(DatasetError, match=message):
        read_annotations(write(tmp_path / "truth.json", content))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"score": None}, "Expected `float`"),
        ({"category_id": None}, "Expected `int`"),
        ({"bbox": [0, 0, -1, 1]}, "results.json: detection 0 .image 4.*not negative"),
        ({"category_id": 3}, "no category has id 3"),
    ],
)
def test_what_is_refused_of_results(row, message, tmp_path):
    fine = {"image_id": 4, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.5}
    vocabulary = read_vocabulary(write(tmp_path / "truth.json", TRUTH))
    with pytest.raises(DatasetError, match=message):
        read_detections(write(tmp_path / "results.json", [fine | row]), vocabulary=vocabulary)
    with pytest.raises(DatasetError, match="not a results file"):
        read_detections(tmp_path / "truth.json")


def test_large_files_are_refused_with_the_reason(tmp_path):
    path = write(tmp_path / "truth.json", TRUTH)
    with pytest.raises(DatasetError, match=r"bytes, more than the limit of 100;.*raise limit_bytes"):
        read_annotations(path, limit_bytes=100)
    with pytest.raises(OptionError):
        read_annotations(path, limit_bytes=0)
    with pytest.raises(DatasetError, match="no such file"):
        read_annotations(tmp_path / "missing.json")
    with pytest.raises(DatasetError, match="no such folder"):
        read_annotations(path, images=tmp_path / "missing")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_annotations(tmp_path)


def test_the_extra_is_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "msgspec" else find(name))
    with pytest.raises(MissingExtraError, match=r"rarvision\[detection\]"):
        read_annotations(tmp_path / "truth.json")


def test_names_never_become_one():
    names = ["bow_(weapon)", "bow_weapon", "bow  (weapon)", "a_(b)", "a (b)", "fish", "()"]
    cleaned = clean_names(names)
    assert len(set(cleaned)) == len(names)
    assert cleaned[5:] == ["fish", "()"]
    same = Vocabulary([Category(id=i, name=name) for i, name in enumerate(["x_(y)", "x_(y)", "z"])])
    assert same.names == ("x y (0)", "x y (1)", "z")
    assert same.columns_of_names(["z", "x y (0)"]).tolist() == [2, 0]
    with pytest.raises(OptionError, match="no category is called 'w'"):
        same.columns_of_names(["w"])


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "count", "without_content", "lower_case"),
    [
        ("lvis/lvis_v1_train_cat_info.json", 1203, 5, 0),
        ("lvis/lvis_v0.5_val_100.json", 1230, 7, 0),
        ("v3det/category_name_13204_v3det_2023_v1.txt", 13204, 2, 45),
    ],
)
def test_real_names_do_not_collide(file, count, without_content, lower_case, data_dir):
    vocabulary = read_vocabulary(Path(data_dir) / file)

    def collisions(names):
        return sum(number - 1 for number in Counter(names).values())

    assert len(vocabulary) == count
    assert collisions(vocabulary.names) == 0
    assert not any(set("_()") & set(name) for name in vocabulary.names)
    bare = [category.name.split("(")[0].replace("_", " ").strip() for category in vocabulary]
    assert collisions(bare) >= without_content  # what the clean-up avoids
    assert collisions(name.lower() for name in vocabulary.names) == lower_case
    groups = [len(vocabulary.group(letter)) for letter in "rcf"]
    if count == 1203:
        assert groups == [337, 461, 405]
