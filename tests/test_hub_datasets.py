"""Tables of the `datasets` library: columns, labels, laziness, what was saved to disk, copies of benchmarks."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from benchmark_world import BUILDERS
from needs import need
from rarvision.datasets import (
    BENCHMARKS,
    CSVDataset,
    HubDataset,
    JSONLDataset,
    check_benchmark,
    open_benchmark,
    open_dataset,
)
from rarvision.datasets.hub import is_table, load_table, table_splits
from rarvision.errors import DatasetError, ImageError, MissingExtraError, OptionError
from rarvision.images import load_image
from rarvision.memory import LocalMemory
from rarvision.testing import check_dataset
from rarvision.testing.encoders import FakeEncoder
from rarvision.types import Sample

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def library(tmp_path_factory, monkeypatch):
    need("datasets", group="test")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    return datasets


def png(shade, size=5):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def table(library, labels=("cat", "dog", "cat"), names=("cat", "dog"), **more):
    columns = {
        "image": [{"bytes": png(10 * n), "path": f"{n}.png"} for n in range(len(labels))],
        "label": [names.index(label) if label in names else -1 for label in labels],
        **more,
    }
    features = {"image": library.Image(), "label": library.ClassLabel(names=list(names))}
    features |= {
        name: library.Value("string" if isinstance(values[0], str) else "float64") for name, values in more.items()
    }
    return library.Dataset.from_dict(columns, features=library.Features(features))


# Columns


def test_a_table(library):
    dataset = HubDataset(table(library, note=["a", "b", "c"], weight=[1.0, float("nan"), 2.0]), name="pets")
    assert dataset.name == "pets"
    assert [(item.source, item.label) for item in dataset.items] == [
        ("pets#0", "cat"),
        ("pets#1", "dog"),
        ("pets#2", "cat"),
    ]
    assert dataset.items[0].metadata == {"note": "a", "weight": 1.0}
    assert dataset.items[1].metadata == {"note": "b"}
    assert dataset[1].image == png(10)
    assert load_image(dataset[1].image).getpixel((0, 0)) == (10, 0, 0)
    check_dataset(dataset)
    assert dataset.few_shot(shots=1).categories == ("dog", "cat")


def test_listing_decodes_no_image(library):
    columns = {"image": [{"bytes": b"no image", "path": None}] * 2, "label": [0, 1]}
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["a", "b"])})
    dataset = HubDataset(library.Dataset.from_dict(columns, features=features))
    assert dataset.categories == ("a", "b")
    assert dataset[0].image == b"no image"  # who opens it is told


def test_images_that_are_files(library, tmp_path):
    (tmp_path / "a.png").write_bytes(png(7))
    columns = {"picture": [str(tmp_path / "a.png")], "category": ["cat"]}
    dataset = HubDataset(library.Dataset.from_dict(columns).cast_column("picture", library.Image()))
    assert dataset[0].image == tmp_path / "a.png"
    assert dataset[0].label == "cat"


def test_hidden_labels_are_none(library):
    dataset = HubDataset(table(library, labels=("cat", "?")))
    assert [item.label for item in dataset.items] == ["cat", None]


def test_names_may_be_changed_but_not_merged(library):
    assert HubDataset(table(library), rename=str.upper).categories == ("CAT", "DOG")
    with pytest.raises(DatasetError, match="the classes 'cat' and 'dog' are both named 'pet'"):
        HubDataset(table(library), rename=lambda _name: "pet")
    with pytest.raises(DatasetError, match="'cat' and 'Cat' are both named 'Cat'"):
        HubDataset(table(library, names=("cat", "Cat"), labels=("cat", "Cat")))


def test_without_labels(library):
    dataset = HubDataset(table(library).remove_columns("label"))
    assert {item.label for item in dataset.items} == {None}
    with pytest.raises(DatasetError, match="needs a label"):
        dataset.few_shot(shots=1)


def test_which_column(library):
    two = table(library).add_column("fine", [0, 1, 0]).cast_column("fine", library.ClassLabel(names=["x", "y"]))
    assert HubDataset(two).categories == ("cat", "dog")
    assert HubDataset(two, label_column="fine").categories == ("x", "y")
    odd = two.rename_column("label", "coarse")
    with pytest.raises(DatasetError, match="several columns of labels, 'coarse', 'fine'; choose one"):
        HubDataset(odd)
    with pytest.raises(DatasetError, match=r"no column 'breed'; it has 'image', 'label', 'fine'"):
        HubDataset(two, label_column="breed")
    with pytest.raises(DatasetError, match=r"no column of images 'label'; it has 'image'"):
        HubDataset(two, image_column="label")
    with pytest.raises(DatasetError, match=r"expected one column of images, got none among 'label', 'fine'"):
        HubDataset(two.remove_columns("image"))
    with pytest.raises(DatasetError, match=r"the labels in 'fine' have no names, such as 0"):
        HubDataset(two.cast_column("fine", library.Value("int64")), label_column="fine")


def test_what_is_no_table(library):
    with pytest.raises(
        DatasetError, match=r"expected a datasets.Dataset, got DatasetDict; choose one of its splits: train"
    ):
        HubDataset(library.DatasetDict({"train": table(library)}))
    with pytest.raises(DatasetError, match="got list"):
        HubDataset([])
    with pytest.raises(DatasetError, match="no rows in it"):
        HubDataset(table(library).select([]))


def test_an_empty_row(library):
    columns = {"image": [None], "label": [0]}
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["a"])})
    dataset = HubDataset(library.Dataset.from_dict(columns, features=features), name="t")
    with pytest.raises(ImageError, match="image bytes are empty"):
        load_image(dataset[0].image)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("rarvision.datasets.hub.importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rarvision\[hub\]'"):
        HubDataset(object())


# Bytes in samples


def test_bytes_go_into_a_memory_as_a_file_of_the_same_bytes_does(tmp_path):
    (tmp_path / "a.png").write_bytes(png(70))
    with LocalMemory.create(tmp_path / "m", encoder=FakeEncoder()) as memory:
        assert memory.add([Sample(source="t#0", image=png(70), label="cat")]).added == 1
        again = memory.add([Sample(source="a.png", image=tmp_path / "a.png", label="cat")])
        assert (again.added, again.skipped) == (0, 1)
        bad = memory.add([Sample(source="t#1", image=b"no image", label="cat")], on_error=lambda _sample, _error: None)
        assert bad.failed == 1
        (entry,) = memory.entries()
        assert entry.source == "t#0"


# On disk


def test_saved_to_disk(library, tmp_path):
    table(library).save_to_disk(tmp_path / "one")
    library.DatasetDict({"train": table(library), "test": table(library, labels=("dog",))}).save_to_disk(
        tmp_path / "two"
    )
    dataset = open_dataset(tmp_path / "one")
    assert isinstance(dataset, HubDataset)
    assert dataset.items[0].source == f"{tmp_path / 'one'}#0"
    assert table_splits(tmp_path / "two") == ["train", "test"]
    assert open_dataset(f"{tmp_path / 'two'}:test").categories == ("dog",)
    assert open_dataset(tmp_path / "two" / "train").categories == ("cat", "dog")
    with pytest.raises(DatasetError, match=r"two: which of its splits is not said; it has train, test"):
        open_dataset(tmp_path / "two")
    with pytest.raises(DatasetError, match=r"no split 'val'; it has train, test"):
        open_dataset(f"{tmp_path / 'two'}:val")


def test_a_table_on_the_command_line(library, run, tmp_path):
    table(library, labels=("red", "green", "red"), names=("red", "green")).save_to_disk(tmp_path / "train")
    damaged = {"image": [{"bytes": png(20), "path": None}, {"bytes": b"none", "path": None}], "label": [0, 1]}
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["red", "green"])})
    library.Dataset.from_dict(damaged, features=features).save_to_disk(tmp_path / "test")
    memory = tmp_path / "m"
    assert "added 3," in run("memory", "create", memory, tmp_path / "train").stdout
    report = json.loads(run("evaluate", tmp_path / "test", "-m", memory, "--json", code=1).stdout)
    assert (report["n"], report["failures"]) == (2, 1)  # the row that cannot be read fails alone
    assert "failed 1" in run("memory", "add", memory, tmp_path / "test", code=1).stdout


def test_parquet(library, tmp_path):
    (tmp_path / "data").mkdir()
    table(library).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    with pytest.raises(DatasetError, match=r"the split 'train' has 1 of its 2 Parquet files"):
        open_dataset(tmp_path)
    table(library, labels=("dog",)).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    dataset = open_dataset(tmp_path)
    assert [item.label for item in dataset.items] == ["cat", "dog", "cat", "dog"]
    assert np.asarray(load_image(dataset[3].image)).shape == (5, 5, 3)
    alone = open_dataset(tmp_path / "data" / "train-00001-of-00002.parquet")
    assert alone.categories == ("dog",)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"bad.parquet: not a table that datasets can read"):
        open_dataset(tmp_path / "bad.parquet")


def test_a_folder_of_images_is_no_table(tmp_path):
    BUILDERS["eurosat"](tmp_path)
    assert not is_table(tmp_path / "eurosat" / "2750")
    assert open_dataset(tmp_path / "eurosat" / "2750").categories == ("AnnualCrop", "Forest", "SeaLake")


def test_a_damaged_index(library, tmp_path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"dataset_dict.json: not an index of the datasets library"):
        load_table(tmp_path)


def test_the_same_images_by_every_reader(library, tmp_path):
    """A table, a CSV file and a JSONL file of the same images are one dataset but for the sources."""
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(png(10 * n))
    (tmp_path / "a.csv").write_text("image,label\n0.png,cat\n1.png,dog\n2.png,cat\n")
    labels = ("cat", "dog", "cat")
    rows = [json.dumps({"image": f"{n}.png", "label": label}) for n, label in enumerate(labels)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    readers = [HubDataset(table(library)), CSVDataset(tmp_path / "a.csv"), JSONLDataset(tmp_path / "a.jsonl")]
    assert len({tuple(item.label for item in each.items) for each in readers}) == 1
    pixels = [[np.asarray(load_image(sample.image)).tobytes() for sample in each] for each in readers]
    assert pixels[0] == pixels[1] == pixels[2]


# Copies of benchmarks


LAND = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
        "Residential", "River", "SeaLake"]  # fmt: skip


def test_a_copy_of_a_benchmark(library, tmp_path):
    copy = table(library, labels=("SeaLake", "Forest"), names=tuple(LAND))
    library.DatasetDict({"train": copy, "test": copy.select([0])}).save_to_disk(tmp_path / "eurosat-hub")
    dataset = open_benchmark("eurosat@hub:train", tmp_path)
    assert dataset.name == "eurosat@hub:train"
    assert [(item.source, item.label) for item in dataset.items] == [
        ("eurosat@hub:train#0", "Sea or Lake"),
        ("eurosat@hub:train#1", "Forest"),
    ]
    assert isinstance(open_dataset("eurosat@hub:test", data_root=tmp_path), HubDataset)
    found = check_benchmark("eurosat@hub", tmp_path)
    assert found.ok
    assert [split.listed for split in found.splits] == [2, 1]
    assert found.opened == 3
    assert "there is no published number to compare with" in found.notes[0]
    with pytest.raises(OptionError, match="say one of which split"):
        open_benchmark("eurosat@hub:train+test", tmp_path)


def test_a_copy_that_is_another_dataset(library, tmp_path):
    table(library).to_parquet(tmp_path / "dtd-hub" / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(DatasetError, match="expected 47 classes, the copy has 2"):
        open_benchmark("dtd@hub:train", tmp_path)
    with pytest.raises(
        DatasetError, match=r"expected one copy of EuroSAT .*hf download --repo-type dataset tanganke/eurosat"
    ):
        open_benchmark("eurosat@hub:train", tmp_path)
    numbers = tuple(map(str, range(102)))
    (tmp_path / "flowers102-hub").mkdir()
    table(library, labels=("7",), names=numbers).to_parquet(tmp_path / "flowers102-hub" / "train.parquet")
    with pytest.raises(DatasetError, match="numbers instead of the classes' names"):
        open_benchmark("flowers102@hub:train", tmp_path)
    found = check_benchmark("flowers102@hub:train", tmp_path)
    assert [problem.kind for problem in found.problems] == ["list"]


def test_two_classes_of_a_copy_that_get_one_name(library, tmp_path):
    names = [f"thing {n}" for n in range(998)] + ["crane, bird", "crane, machine"]
    copy = table(library, labels=("crane, bird", "crane, machine"), names=tuple(names))
    library.DatasetDict({"train": copy, "validation": copy}).save_to_disk(tmp_path / "imagenet-hub")
    assert open_benchmark("imagenet@hub:validation", tmp_path).categories == ("crane (998)", "crane (999)")
    found = check_benchmark("imagenet@hub:validation", tmp_path)
    assert [problem.kind for problem in found.problems] == ["count"]
    assert found.problems[0].message == "validation: expected 50,000 images, the copy has 2"


def test_a_copy_with_images_that_cannot_be_read(library, tmp_path):
    copy = table(library, labels=("River", "River"), names=tuple(LAND))
    features = copy.features
    columns = {"image": [{"bytes": b"none", "path": None}, {"bytes": png(1), "path": None}], "label": [8, 8]}
    library.DatasetDict({"test": library.Dataset.from_dict(columns, features=features)}).save_to_disk(
        tmp_path / "eurosat-hub"
    )
    found = check_benchmark("eurosat@hub:test", tmp_path)
    assert [(problem.kind, problem.examples) for problem in found.problems] == [("unreadable", ("eurosat@hub:test#0",))]
    assert check_benchmark("eurosat@hub:test", tmp_path, quick=True).ok


def test_every_copy_names_splits():
    for known in BENCHMARKS.values():
        if known.table is not None:
            assert known.table.repository.count("/") == 1
            assert known.table.counts
