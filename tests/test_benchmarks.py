"""The public benchmarks: every official layout in miniature, CoOp's real splits, names, references, samples."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from benchmark_world import BUILDERS, coop_json, images, mat, write
from rarvision.datasets import BENCHMARKS, BenchmarkDataset, NameList, benchmark, open_benchmark, open_dataset
from rarvision.datasets.benchmarks import Listing, Reference, names_benchmark
from rarvision.datasets.benchmarks.flowers import FLOWER_NAMES
from rarvision.datasets.benchmarks.layouts import EMOTIONS
from rarvision.datasets.benchmarks.names import camel_case, distinct, reversed_path, without_number, year_first
from rarvision.errors import DatasetError, OptionError
from rarvision.images import load_image
from rarvision.testing import check_dataset

CLASSIFICATION = [name for name, known in BENCHMARKS.items() if known.task == "classification"]


@pytest.fixture(autouse=True)
def _no_root(monkeypatch):
    monkeypatch.delenv("RARVISION_DATA_ROOT", raising=False)


def build(name, root):
    return BUILDERS[name](root)


def rows(dataset):
    start = f"{dataset.folder}/"
    return [(item.source.removeprefix(start), item.label) for item in dataset.items]


# Layouts


def test_every_benchmark_of_the_paper_is_there():
    assert set(BENCHMARKS) == set(BUILDERS) | {"lvis", "v3det"}
    assert set(CLASSIFICATION) == set(BUILDERS)


@pytest.mark.parametrize("name", BUILDERS)
def test_official_layouts_in_miniature(name, tmp_path):
    expected = build(name, tmp_path)
    for place, wanted in expected.items():
        way, _, split = place.rpartition("/")
        dataset = open_benchmark(f"{name}@{way or 'official'}:{split}", tmp_path)
        assert dataset.name == f"{name}@{way or 'official'}:{split}"
        assert rows(dataset) == wanted, place
        assert dataset.items[0].metadata == {"dataset": dataset.name}
        for sample in dataset:
            assert load_image(sample.image).size == (6, 6)
        if len(dataset) > 2:
            check_dataset(dataset)
    assert len(expected) > 1


@pytest.mark.parametrize("name", BUILDERS)
def test_labels_are_among_the_class_names(name, tmp_path):
    build(name, tmp_path)
    for way, splits in BENCHMARKS[name].splits.items():
        for split in splits.counts:
            try:
                dataset = open_benchmark(f"{name}@{way}:{split}", tmp_path)
            except DatasetError as error:  # the miniatures leave some lists out
                assert "name no images" in str(error) or "no such file" in str(error)  # noqa: PT017
                continue
            assert set(dataset.categories) <= set(dataset.class_names)
            assert len({name.casefold() for name in dataset.class_names}) == len(dataset.class_names)


def test_two_splits_are_one_after_the_other(tmp_path):
    build("fgvc_aircraft", tmp_path)
    both = open_benchmark("fgvc_aircraft:train+val", tmp_path)
    assert both.name == "fgvc_aircraft@official:train+val"
    assert rows(both) == rows(open_benchmark("fgvc_aircraft:trainval", tmp_path))
    with pytest.raises(
        DatasetError, match=r"images/1025794\.jpg is listed twice in fgvc_aircraft@official:train\+trainval"
    ):
        open_benchmark("fgvc_aircraft:train+trainval", tmp_path)


def test_listing_opens_no_image(tmp_path):
    build("food101", tmp_path)
    for path in (tmp_path / "food-101" / "images").rglob("*.jpg"):
        path.unlink()
    assert len(open_benchmark("food101@official:train", tmp_path)) == 2


def test_imagenet_as_kaggle_has_it(tmp_path):
    """The files of Kaggle's imagenet-object-localization-challenge: ILSVRC/Data/CLS-LOC, LOC_val_solution.csv."""
    folder = tmp_path / "imagenet"
    write(folder / "LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca", "n02012849 crane", "n03126707 crane")
    write(folder / "LOC_val_solution.csv", "ImageId,PredictionString", "ILSVRC2012_val_1,n03126707 1 2 3 4 ")
    data = folder / "ILSVRC" / "Data" / "CLS-LOC"
    images(data, ["val/ILSVRC2012_val_1.JPEG", "train/n01440764/n01440764_1.JPEG"])
    val = open_benchmark("imagenet:val", tmp_path)
    assert rows(val) == [("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_1.JPEG", "crane (n03126707)")]
    assert val.class_names == ("tench", "crane (n02012849)", "crane (n03126707)")
    (note,) = val.notes
    assert "2 classes are named 'crane'; they are told apart" in note
    assert load_image(val[0].image).size == (6, 6)
    assert rows(open_benchmark("imagenet:train", tmp_path)) == [
        ("ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_1.JPEG", "tench")
    ]


def test_eurosat_as_zenodo_has_it(tmp_path):
    """EuroSAT_RGB.zip of https://zenodo.org/records/7711810 has the folder EuroSAT_RGB in place of 2750."""
    images(tmp_path / "EuroSAT" / "EuroSAT_RGB", ["River/River_1.jpg"])
    coop_json(tmp_path / "EuroSAT" / "split_zhou_EuroSAT.json", test=[["River/River_1.jpg", 8, "River"]])
    wanted = [("EuroSAT_RGB/River/River_1.jpg", "River")]
    assert rows(open_benchmark("eurosat@official:all", tmp_path)) == wanted
    assert rows(open_benchmark("eurosat:test", tmp_path)) == wanted


def test_of_two_folders_the_complete_one_is_taken(tmp_path):
    build("dtd", tmp_path)  # in dtd/dtd, inside dtd
    assert open_benchmark("dtd@official:train", tmp_path).folder == tmp_path / "dtd" / "dtd"
    (tmp_path / "dtd" / "images").mkdir()
    (tmp_path / "dtd" / "labels").symlink_to(tmp_path / "dtd" / "dtd" / "labels")
    with pytest.raises(DatasetError, match=r"is there twice: .*/dtd, .*/dtd/dtd; move or rename all but one"):
        open_benchmark("dtd@official:train", tmp_path)


def test_a_linked_folder_is_not_there_twice(tmp_path):
    build("cub200", tmp_path)
    (tmp_path / "cub200").symlink_to(tmp_path / "CUB_200_2011")
    assert len(open_benchmark("cub200:train", tmp_path)) == 2


# Damaged lists


AIRCRAFT = "fgvc-aircraft-2013b/data/images_variant_test.txt"
FACES = "raf-db/basic/EmoLabel/list_patition_label.txt"
PETS = "oxford_pets/annotations/test.txt"


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("cub200", "CUB_200_2011/images.txt", "1", r"images.txt, line 1: expected two fields"),
        ("cub200", "CUB_200_2011/train_test_split.txt", "1 1", r"train_test_split.txt: no line for image '2'"),
        ("cub200", "CUB_200_2011/image_class_labels.txt", "1 1\n2 9\n3 2\n4 2", "the class '9', which has no name"),
        ("oxford_pets", PETS, "Abyssinian_1 1 1", "test.txt, line 1: expected NAME CLASS"),
        ("oxford_pets", PETS, "A_1 1 1 1\nB_2 1 1 1", "line 2: the class is named 'b', and 'a'"),
        ("raf_db", FACES, "train_1.jpg 8", "line 1: expected train_NUMBER.jpg"),
        ("dtd", "dtd/dtd/labels/test1.txt", "banded_0002.jpg", "test1.txt, line 1: expected CLASS/IMAGE"),
        ("food101", "food-101/meta/test.txt", "../../etc/x", "names 'images/../../etc/x.jpg'; expected a path below"),
        ("fgvc_aircraft", AIRCRAFT, "1 Concorde", "a name of variants.txt"),
        ("ucf101", "ucf101/ucfTrainTestlist/testlist01.txt", "Juggling/v.avi", "line 1: expected ACTION/VIDEO.avi"),
        ("imagenet", "imagenet/classnames.txt", "n01440764 tench", "n03773504: no class of that name in the list"),
        ("sun397", "sun397/Testing_01.txt", "", "the lists of sun397@official:test name no images"),
    ],
)
def test_damaged_lists_are_told(name, file, content, message, tmp_path):
    build(name, tmp_path)
    (tmp_path / file).write_text(content)
    split = "val" if name == "imagenet" else "test"
    with pytest.raises(DatasetError, match=message):
        open_benchmark(f"{name}@official:{split}", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON: .*is it complete"),
        ("[]", "expected an object with the keys train, val and test, got list"),
        ('{"train": []}', r"keys train, val and test, got \['train'\]"),
        ('{"train": [], "val": [["a.jpg", "0", "a"]], "test": []}', r"val 0: expected \[path, number, name\]"),
        (
            '{"train": [["a.jpg", 0, "a"]], "val": [], "test": [["b.jpg", 0, "b"]]}',
            "test 0: class 0 is named 'b', and 'a'",
        ),
        ('{"train": [], "val": [], "test": [["/etc/passwd.jpg", 0, "a"]]}', None),
    ],
)
def test_damaged_coop_splits_are_told(content, message, tmp_path):
    build("food101", tmp_path)
    (tmp_path / "food-101" / "split_zhou_Food101.json").write_text(content)
    if message is None:  # it stays below the folder
        assert (
            open_benchmark("food101:test", tmp_path).items[0].source.startswith(str(tmp_path / "food-101" / "images"))
        )
        return
    with pytest.raises(DatasetError, match=message):
        open_benchmark("food101:test", tmp_path)


def test_a_missing_split_file_says_where_it_is(tmp_path):
    build("dtd", tmp_path)
    with pytest.raises(
        DatasetError, match=r"split_zhou_DescribableTextures\.json: no such file; the splits of CoOp.*DATASETS\.md"
    ):
        open_benchmark("dtd:test", tmp_path)


def test_matlab_files_that_are_none(tmp_path):
    build("flowers102", tmp_path)
    folder = tmp_path / "oxford_flowers"
    mat(folder / "setid.mat", tstid=[[9]], trnid=[[1]])
    with pytest.raises(DatasetError, match=r"setid.mat: image 9 has no label in imagelabels.mat, which has 6"):
        open_benchmark("flowers102@official:test", tmp_path)
    with pytest.raises(DatasetError, match=r"has no variable 'valid'; it has tstid, trnid"):
        open_benchmark("flowers102@official:val", tmp_path)
    (folder / "setid.mat").write_bytes(b"half a file")
    with pytest.raises(DatasetError, match=r"setid.mat: not a MATLAB file that can be read"):
        open_benchmark("flowers102@official:test", tmp_path)
    (folder / "setid.mat").unlink()
    with pytest.raises(DatasetError, match=r"setid.mat: no such file"):
        open_benchmark("flowers102@official:test", tmp_path)


def test_the_list_of_cars_without_labels_is_told(tmp_path):
    import numpy as np

    build("stanford_cars", tmp_path)
    mat(
        tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat",
        annotations=np.array([[(1, "00001.jpg")]], dtype=[("bbox_x1", object), ("fname", object)]),
    )
    with pytest.raises(DatasetError, match="no field 'class'; the list of test images with labels is"):
        open_benchmark("stanford_cars@official:test", tmp_path)


def test_dogs_whose_lists_do_not_fit(tmp_path):
    build("stanford_dogs", tmp_path)
    path = tmp_path / "stanford_dogs" / "lists" / "test_list.mat"
    from benchmark_world import cell

    mat(path, file_list=cell(["n1-a/1.jpg", "n2-b/2.jpg"]), labels=[[1], [1]])
    with pytest.raises(DatasetError, match="the class 1 is 'n2-b', and 'n1-a' before"):
        open_benchmark("stanford_dogs:test", tmp_path)
    mat(path, file_list=cell(["n1-a/1.jpg", "n2-b/2.jpg"]), labels=[[1]])
    with pytest.raises(DatasetError, match="2 files and 1 labels"):
        open_benchmark("stanford_dogs:test", tmp_path)


# Names


def test_names_that_two_classes_have():
    names, notes = distinct({"a": "crane", "b": "Crane", "c": "owl"}, {})
    assert names == {"a": "crane (a)", "b": "Crane (b)", "c": "owl"}
    assert notes == ("2 classes are named 'crane'; they are told apart: a 'crane (a)', b 'Crane (b)'",)
    assert distinct({"a": "x", "b": "x"}, {"b": "y"})[0] == {"a": "x", "b": "y"}
    assert distinct({"a": "x", "b": "y"}, {"b": "z"}) == ({"a": "x", "b": "y"}, ())
    with pytest.raises(DatasetError, match="classes 'b' and 'c' are both named 'y'"):
        distinct({"a": "x", "b": "x", "c": "y"}, {"b": "y"})
    with pytest.raises(DatasetError, match="class 'a' has a blank name"):
        distinct({"a": " "}, {})


def test_two_classes_of_one_cleaned_name_are_not_merged(tmp_path):
    images(tmp_path / "caltech101" / "101_ObjectCategories", ["car_side/1.jpg", "car side/2.jpg"])
    dataset = open_benchmark("caltech101@official:all", tmp_path)
    assert dataset.categories == ("car side (car side)", "car side (car_side)")
    assert len(dataset.notes) == 1


def test_clean_up():
    assert year_first("smart fortwo Convertible 2012") == "2012 smart fortwo Convertible"
    assert year_first("Beetle") == "Beetle"
    assert reversed_path("/b/bow_window/indoor") == "indoor bow window"
    assert camel_case("TaiChi") == "Tai Chi"


def test_templates_are_those_of_clip_and_coop():
    templates = {name: BENCHMARKS[name].templates for name in CLASSIFICATION}
    assert all(len(given) == 1 and given[0].count("{}") == 1 for given in templates.values())
    assert templates["oxford_pets"] == ("a photo of a {}, a type of pet.",)
    assert templates["dtd"] == ("{} texture.",)
    assert templates["eurosat"] == ("a centered satellite photo of {}.",)
    assert templates["food101"] == ("a photo of {}, a type of food.",)
    assert templates["ucf101"] == ("a photo of a person doing {}.",)
    assert templates["imagenet"] == ("a photo of a {}.",)


# References


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("flowers102:test", "flowers102@coop:test"),
        ("Flowers102@official", "flowers102@official"),
        ("stanford-cars", "stanford_cars@coop"),
        ("cub200", "cub200@official"),
        ("sun397@official-10:train+test", "sun397@official-10:train+test"),
        ("food101@hub:validation", "food101@hub:validation"),
    ],
)
def test_references(text, full):
    assert str(Reference.of(text)) == full
    assert Reference.of(full) == Reference.of(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flower102:test", "no benchmark 'flower102' .*; did you mean flowers102?"),
        ("xyz", "no benchmark 'xyz' among cub200, .*v3det$"),
        ("flowers102:tset", r"flowers102@coop: no split 'tset'; it has train, val, test"),
        ("flowers102@mine:test", r"no splits 'mine'; it has coop, official, hub"),
        ("flowers102:test+test", "a split is named twice"),
        ("flowers102:", "expected NAME, NAME:SPLIT"),
        ("lvis:val", "lvis is a benchmark of boxes: it has no splits of labelled images"),
    ],
)
def test_references_that_are_none(text, message):
    with pytest.raises(OptionError, match=message):
        Reference.of(text)


def test_which_split_must_be_said(tmp_path):
    build("cub200", tmp_path)
    with pytest.raises(OptionError, match="say which split, as cub200@official:SPLIT; it has train, test"):
        open_benchmark("cub200", tmp_path)
    with pytest.raises(OptionError, match="lvis is a benchmark of boxes"):
        open_benchmark("lvis", tmp_path)


def test_where_the_datasets_are(tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match=r"where are the datasets.*--data-root DIR.*RARVISION_DATA_ROOT"):
        open_benchmark("cub200:test")
    monkeypatch.setenv("RARVISION_DATA_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        open_benchmark("cub200:test")
    monkeypatch.setenv("RARVISION_DATA_ROOT", str(tmp_path))
    with pytest.raises(
        DatasetError, match=r"no folder of CUB-200-2011 in it; expected one of CUB_200_2011, .*datasets info cub200"
    ):
        open_benchmark("cub200:test")
    build("cub200", tmp_path)
    assert isinstance(open_dataset("cub200:test"), BenchmarkDataset)


def test_open_dataset_takes_what_is_there_first(tmp_path, monkeypatch):
    build("cub200", tmp_path)
    assert len(open_dataset("cub200:test", data_root=tmp_path)) == 2
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "cub200", "a")
    with pytest.raises(DatasetError, match=r"cub200: expected a folder with"):
        open_dataset("cub200", data_root=tmp_path)
    with pytest.raises(DatasetError, match="photos:2019: no such file or folder"):
        open_dataset("photos:2019", data_root=tmp_path)
    with pytest.raises(OptionError, match="did you mean cub200"):
        open_dataset("cub20:test", data_root=tmp_path)
    assert not names_benchmark("photos/2019")
    assert not isinstance(open_dataset("cub200:train", data_root=tmp_path), NameList)


# The catalogue


@pytest.mark.parametrize("name", BENCHMARKS)
def test_facts(name):
    known = benchmark(name.upper().replace("_", "-"))
    assert known is BENCHMARKS[name]
    json.dumps(known.to_dict(), allow_nan=False)
    assert all([known.title, known.about, known.licence, known.homepage, known.download, known.tree, known.citation])
    assert known.size
    assert known.folders
    if known.splits:
        assert known.default in known.splits
        for way, splits in known.splits.items():
            assert splits.about
            assert sum(count for split, count in splits.counts.items() if split != "trainval") <= known.images, way


def test_counts_that_add_up():
    whole = {"cub200": "official", "stanford_cars": "coop", "stanford_dogs": "official", "flowers102": "official",
             "oxford_pets": "coop", "food101": "coop", "raf_db": "official", "eurosat": "coop", "dtd": "coop",
             "ucf101": "coop", "imagenet": "official"}  # fmt: skip
    for name, way in whole.items():
        assert sum(BENCHMARKS[name].splits[way].counts.values()) == BENCHMARKS[name].images, name
    for splits in BENCHMARKS["ucf101"].splits.values():
        assert sum(splits.counts.values()) == 13_320
    assert len(FLOWER_NAMES) == len(set(FLOWER_NAMES)) == 102
    assert len(EMOTIONS) == 7


def test_listings_are_checked():
    with pytest.raises(DatasetError, match="expected a path below"):
        Listing(rows=[("/a.jpg", "0")], names={"0": "a"})
    assert Listing(rows=[("a..b/c.jpg", "0")], names={"0": "a"}).rows


# Few-shot samples


def test_few_shot_samples_of_a_benchmark(tmp_path):
    names = [f"{kind}/{number:02d}.jpg" for kind in ("apple_pie", "waffles", "pho") for number in range(12)]
    rows_ = [[name, index // 12, name.split("/")[0]] for index, name in enumerate(names)]
    coop_json(tmp_path / "food-101" / "split_zhou_Food101.json", train=rows_[::-1])
    train = open_benchmark("food101:train", tmp_path)
    samples = {shots: {item.source for item in train.few_shot(shots=shots, seed=3).items} for shots in (1, 2, 4, 8, 16)}
    assert samples[1] < samples[2] < samples[4] < samples[8] < samples[16] == {item.source for item in train.items}
    assert Counter(item.label for item in train.few_shot(shots=4, seed=3).items) == dict.fromkeys(train.categories, 4)
    assert samples[4] != {item.source for item in train.few_shot(shots=4, seed=4).items}
    first = [item.source[-6:-4] for item in train.few_shot(shots=2, order="first").items]
    assert first == ["11", "10"] * 3  # list order, which is not the order of names


# CoOp's real splits


COOP_FOLDERS = {
    "caltech101": "caltech-101",
    "dtd": "dtd",
    "eurosat": "eurosat",
    "flowers102": "oxford_flowers",
    "food101": "food-101",
    "oxford_pets": "oxford_pets",
    "stanford_cars": "stanford_cars",
    "sun397": "sun397",
    "ucf101": "ucf101",
}


@pytest.mark.data
@pytest.mark.parametrize("name", COOP_FOLDERS)
def test_the_real_splits_of_coop(name, data_dir, tmp_path):
    (tmp_path / COOP_FOLDERS[name]).symlink_to(data_dir / "coop-splits" / name)
    splits = BENCHMARKS[name].splits["coop"]
    opened = {split: open_benchmark(f"{name}:{split}", tmp_path) for split in splits.counts}
    assert {split: len(dataset) for split, dataset in opened.items()} == splits.counts
    sources = [item.source for dataset in opened.values() for item in dataset.items]
    assert len(sources) == len(set(sources))
    for dataset in opened.values():
        assert len(dataset.class_names) == (splits.classes or BENCHMARKS[name].classes)
        assert set(dataset.categories) == set(dataset.class_names)
        assert dataset.notes == ()
    assert not any("_" in name or name != name.strip() for name in opened["train"].class_names)


@pytest.mark.data
def test_the_same_paths_from_csv_and_from_json(data_dir, tmp_path):
    """Of Pets and Cars the CSV files have other paths than CoOp's own; both must name one file."""
    for name, path, label in (
        ("oxford_pets", "images/Abyssinian_122.jpg", "abyssinian"),
        ("stanford_cars", "cars_train/05266.jpg", "2012 Audi TTS Coupe"),
    ):
        (tmp_path / name).symlink_to(data_dir / "coop-splits" / name)
        assert rows(open_benchmark(f"{name}:train", tmp_path))[0] == (path, label)


@pytest.mark.data
def test_our_names_are_those_of_the_real_splits(data_dir, tmp_path):
    import csv

    def names(name, column="class_name"):
        with (data_dir / "coop-splits" / name / "metadata.csv").open(newline="") as file:
            return [row[column] for row in csv.DictReader(file)]

    assert list(FLOWER_NAMES) == names("flowers102")
    actions = [folder.replace("_", "") for folder in names("ucf101", "folder_name")]
    assert [camel_case(action, joint="_") for action in actions] == names("ucf101", "folder_name")
    scenes = [reversed_path(folder) for folder in names("sun397", "folder_name")]
    assert scenes == [name.replace("_", " ") for name in names("sun397")]
    (tmp_path / "imagenet").symlink_to(data_dir / "coop-splits" / "imagenet")
    listing = replace(BENCHMARKS["imagenet"]).splits["official"]
    with pytest.raises(DatasetError, match="cannot be listed"):  # its names are there, its images are not
        listing.read(tmp_path / "imagenet", "val")


@pytest.mark.data
def test_the_names_of_imagenet_are_told_apart(data_dir, tmp_path):
    folder = tmp_path / "imagenet"
    write(folder / "metadata.csv", *(data_dir / "coop-splits/imagenet/metadata.csv").read_text().splitlines())
    images(folder / "images" / "val", ["n04008634/a.JPEG", "n03773504/b.JPEG", "n04355933/c.JPEG", "n04356056/d.JPEG"])
    val = open_benchmark("imagenet:val", tmp_path)
    assert len(val.class_names) == len({name.casefold() for name in val.class_names}) == 1_000
    assert len(val.notes) == 2
    assert [label for _, label in rows(val)] == ["missile", "projectile", "sunglass", "sunglasses"]


@pytest.mark.data
def test_the_authors_names_of_birds(data_dir):
    """The folders in the authors' memory of birds are those of CUB; cleaned, they are the authors' class names."""
    folder = data_dir / "rar-memory" / "cub200"
    paths = (
        line.split("images_discovery_all_3/")[1] for line in (folder / "cub200_database.txt").read_text().splitlines()
    )
    names = dict.fromkeys(without_number(path.split("/")[0]) for path in paths)
    assert list(names) == (folder / "classnames.txt").read_text().splitlines()
