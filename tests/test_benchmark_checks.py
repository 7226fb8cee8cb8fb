"""What `check_benchmark` and `rarvision datasets` find on disk: complete, half-downloaded, damaged."""

import json
from dataclasses import replace

import pytest

from benchmark_world import BUILDERS, coop_json, image, images, write
from cli_world import table
from rarvision.datasets import BENCHMARKS, check_benchmark
from rarvision.datasets.benchmarks import Reference
from rarvision.errors import DatasetError, OptionError


@pytest.fixture(autouse=True)
def _no_root(monkeypatch):
    monkeypatch.delenv("RARVISION_DATA_ROOT", raising=False)


def small(name, way="official", *, classes, split=None, **counts):
    """A reference whose published numbers are those of the miniature."""
    known = BENCHMARKS[name]
    splits = {way: replace(known.splits[way], counts=counts, classes=classes)}
    return Reference(benchmark=replace(known, splits=splits), way=way, splits=(split,) if split else ())


def kinds(found):
    return [problem.kind for problem in found.problems]


@pytest.fixture
def birds(tmp_path):
    BUILDERS["cub200"](tmp_path)
    return tmp_path


BIRDS = small("cub200", classes=2, train=2, test=2)


def test_a_complete_benchmark(birds):
    told = []
    found = check_benchmark(BIRDS, birds, progress=lambda done, total: told.append((done, total)))
    assert found.ok
    assert (found.dataset, found.folder, found.opened) == ("cub200@official", str(birds / "CUB_200_2011"), 4)
    assert [(s.split, s.expected, s.listed, s.classes, s.missing, s.unreadable) for s in found.splits] == [
        ("train", 2, 2, 2, 0, 0),
        ("test", 2, 2, 2, 0, 0),
    ]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (found.problems, found.notes) == ((), ())
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "way", "classes", "counts"),
    [
        ("cub200", "official", 2, {"train": 2, "test": 2}),
        ("stanford_cars", "official", 2, {"train": 3, "test": 2}),
        ("stanford_cars", "coop", 2, {"train": 2, "val": 1, "test": 2}),
        ("stanford_dogs", "official", 2, {"train": 2, "test": 2}),
        ("fgvc_aircraft", "official", 3, {"train": 1, "val": 1, "trainval": 2, "test": 1}),
        ("imagenet", "official", 3, {"train": 3, "val": 3}),
        ("caltech101", "official", 4, {"all": 5}),
        ("eurosat", "official", 3, {"all": 3}),
        ("raf_db", "original", 7, {"train": 2, "test": 1}),
    ],
)
def test_files_of_the_miniatures_are_all_found(name, way, classes, counts, tmp_path):
    BUILDERS[name](tmp_path)
    found = check_benchmark(small(name, way, classes=classes, **counts), tmp_path)
    assert set(kinds(found)) <= {"classes"}, found.problems  # the miniatures have classes without images in a split
    assert [split.listed for split in found.splits] == list(counts.values())
    assert len(found.notes) == (name == "imagenet")


def test_numbers_are_compared_with_the_published_ones(birds):
    found = check_benchmark("cub200", birds, quick=True)
    assert not found.ok
    assert kinds(found) == ["classes", "count", "count"]
    assert found.problems[0].message == "expected 200 classes, the lists have 2"
    assert found.problems[1].message.startswith("train: expected 5,994 images, the lists name 2")
    assert found.problems[1].count == 5_992
    assert found.opened == 0
    assert found.splits[0].unreadable is None


def test_half_downloaded(birds):
    folder = birds / "CUB_200_2011"
    (folder / "images" / "001.Black_footed_Albatross" / "A_1.jpg").unlink()
    (folder / "images" / "002.Laysan_Albatross" / "B_2.jpg").write_bytes(b"")
    found = check_benchmark(BIRDS, birds, quick=True)
    assert kinds(found) == ["missing", "empty"]
    missing, empty = found.problems
    assert missing.message.startswith("train: 1 of 2 images are not there")
    assert missing.examples == ("images/001.Black_footed_Albatross/A_1.jpg",)
    assert empty.message.startswith("test: 1 of 2 images are empty files")
    assert [split.missing for split in found.splits] == [1, 1]
    assert check_benchmark(BIRDS, birds).opened == 2


def test_unreadable_images(birds):
    path = birds / "CUB_200_2011" / "images" / "002.Laysan_Albatross" / "B_1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert check_benchmark(BIRDS, birds, quick=True).ok
    found = check_benchmark(BIRDS, birds)
    assert kinds(found) == ["unreadable"]
    assert "1 of 4 images cannot be read, the first because: " in found.problems[0].message
    assert str(path) in found.problems[0].message
    assert found.problems[0].examples == ("images/002.Laysan_Albatross/B_1.jpg",)
    assert [split.unreadable for split in found.splits] == [1, 0]


def test_examples_are_few_and_the_count_is_whole(tmp_path):
    names = [f"pho/{n}.jpg" for n in range(12)]
    coop_json(tmp_path / "food-101" / "split_zhou_Food101.json", train=[[name, 0, "pho"] for name in names])
    (tmp_path / "food-101" / "images").mkdir()
    found = check_benchmark(small("food101", "coop", classes=1, split="train", train=12), tmp_path)
    assert kinds(found) == ["missing"]
    assert found.problems[0].count == 12
    assert found.problems[0].examples == tuple(f"images/{name}" for name in names[:5])


def test_no_folder_and_archives_that_wait(birds, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    found = check_benchmark("cub200", empty)
    assert kinds(found) == ["folder"]
    assert (found.folder, found.splits) == (None, ())
    folder = birds / "CUB_200_2011"
    (folder / "images").rename(birds / "elsewhere")
    (folder / "images.tgz").touch()
    found = check_benchmark(BIRDS, birds)
    assert kinds(found) == ["folder", "missing", "missing"]
    assert (
        found.problems[0].message
        == f"{folder / 'images'}: no such folder; the images lie in it; unpack images.tgz there?"
    )


def test_lists_that_cannot_be_read(birds):
    (birds / "CUB_200_2011" / "classes.txt").unlink()
    found = check_benchmark(BIRDS, birds)
    assert kinds(found) == ["list", "list"]
    assert "classes.txt: no such file" in found.problems[0].message
    assert [split.listed for split in found.splits] == [None, None]


def test_images_in_two_splits(tmp_path):
    image(tmp_path / "food-101" / "images" / "pho" / "1.jpg")
    coop_json(
        tmp_path / "food-101" / "split_zhou_Food101.json",
        train=[["pho/1.jpg", 0, "pho"], ["pho/1.jpg", 0, "pho"]],
        test=[["pho/1.jpg", 0, "pho"]],
    )
    found = check_benchmark(small("food101", "coop", classes=1, train=2, test=1), tmp_path)
    assert [(p.kind, p.message) for p in found.problems] == [
        ("overlap", "train: 1 images are listed twice"),
        ("overlap", "test: 1 images are in train as well"),
    ]


def test_trainval_overlaps_on_purpose(tmp_path):
    BUILDERS["fgvc_aircraft"](tmp_path)
    found = check_benchmark(small("fgvc_aircraft", classes=3, train=1, val=1, trainval=2, test=1), tmp_path)
    assert "overlap" not in kinds(found)


def test_classes_without_images_and_of_one_name(tmp_path):
    BUILDERS["imagenet"](tmp_path)
    found = check_benchmark(small("imagenet", classes=3, train=3, val=3), tmp_path)
    assert found.ok
    (note,) = found.notes
    assert note == ("2 classes are named 'missile'; they are told apart: n03773504 'missile', n04008634 'projectile'")
    for path in (tmp_path / "imagenet" / "images" / "val" / "n01440764").iterdir():
        path.unlink()
    found = check_benchmark(small("imagenet", classes=3, train=3, val=3), tmp_path)
    assert kinds(found) == ["classes", "count"]
    assert found.problems[0].examples == ("tench",)


def test_names_that_cannot_be_told_apart(tmp_path):
    write(tmp_path / "imagenet" / "classnames.txt", "n1 a", "n03773504 missile", "n04008634 missile", "n2 projectile")
    images(tmp_path / "imagenet" / "images" / "val", ["n1/1.jpg", "n03773504/1.jpg", "n04008634/1.jpg", "n2/1.jpg"])
    found = check_benchmark(small("imagenet", classes=4, val=4), tmp_path)
    assert "both named 'projectile'" in found.problems[-1].message


def test_what_is_no_question_of_the_files_is_raised(tmp_path):
    with pytest.raises(OptionError, match="lvis is a benchmark of boxes"):
        check_benchmark("lvis", tmp_path)
    with pytest.raises(DatasetError, match="where are the datasets"):
        check_benchmark("cub200")


@pytest.mark.data
def test_the_real_splits_name_files_that_are_missing(data_dir, tmp_path):
    (tmp_path / "dtd").symlink_to(data_dir / "coop-splits" / "dtd")
    found = check_benchmark("dtd", tmp_path)
    assert kinds(found) == ["folder", "missing", "missing", "missing"]
    assert [problem.count for problem in found.problems[1:]] == [2_820, 1_128, 1_692]
    assert found.problems[1].examples[0] == "images/banded/banded_0133.jpg"
    assert [split.listed for split in found.splits] == [2_820, 1_128, 1_692]


# The command line


def test_list(run, tmp_path):
    text = run("datasets", "list", "--csv", tmp_path / "all.csv").stdout
    assert all(name in text for name in BENCHMARKS)
    rows = table(tmp_path / "all.csv")
    assert [row["name"] for row in rows] == list(BENCHMARKS)
    assert rows[3] == {
        "name": "flowers102",
        "title": "Oxford Flowers 102",
        "task": "classification",
        "classes": "102",
        "images": "8189",
        "default": "coop",
        "licence": BENCHMARKS["flowers102"].licence,
    }
    records = [json.loads(line) for line in run("datasets", "list", "--json").stdout.splitlines()]
    assert [record["name"] for record in records] == list(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_info(run, name):
    text = run("datasets", "info", name).stdout
    known = BENCHMARKS[name]
    for fact in (known.title, known.licence, known.homepage, known.citation, *known.tree.splitlines(), *known.cautions):
        assert fact in text
    for way, counts in known.counts().items():
        assert f"@{way}" in text
        assert all(f"{split} {'?' if count is None else format(count, ',')}" in text for split, count in counts.items())
    assert json.loads(run("datasets", "info", name, "--json").stdout) == known.to_dict()


def test_info_of_nothing(run):
    assert "did you mean flowers102?" in run("datasets", "info", "flower", code=2).stderr


def test_names(run, tmp_path):
    BUILDERS["imagenet"](tmp_path)
    told = run("datasets", "names", "imagenet", "--data-root", tmp_path)
    assert told.stdout.splitlines() == ["tench", "missile", "projectile"]
    assert told.stderr.startswith("note: 2 classes are named 'missile'")
    (tmp_path / "names.txt").write_text(told.stdout)
    assert "3 categories" in run("memory", "create", tmp_path / "m", tmp_path / "names.txt").stdout
    assert "boxes" in run("datasets", "names", "lvis", "--data-root", tmp_path, code=2).stderr


def test_check_exits_with_1_where_something_is_wrong(run, birds):
    (birds / "CUB_200_2011" / "images" / "001.Black_footed_Albatross" / "A_1.jpg").unlink()
    text = run("datasets", "check", "cub200", "--data-root", birds, "--quick", code=1).stdout
    assert "missing: train: 1 of 2 images are not there" in text
    assert "  images/001.Black_footed_Albatross/A_1.jpg" in text
    assert text.splitlines()[-1] == "cub200@official: not complete; no image was opened"
    record = json.loads(run("datasets", "check", "cub200:test", "--data-root", birds, "--json", code=1).stdout)
    assert (record["ok"], record["dataset"], record["opened"]) == (False, "cub200@official:test", 2)
    assert [split["split"] for split in record["splits"]] == ["test"]
    assert run("datasets", "check", "lvis", "--data-root", birds, code=2).stderr.count("\n") == 1
    assert "RARVISION_DATA_ROOT" in run("datasets", "check", "cub200", code=2).stderr


def test_check_of_what_is_complete(run, birds, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "cub200", BIRDS.benchmark)
    monkeypatch.setenv("RARVISION_DATA_ROOT", str(birds))
    text = run("datasets", "check", "cub200").stdout
    assert text.splitlines()[-1] == "cub200@official: complete; 4 images were opened"


def test_benchmarks_by_name_where_a_dataset_is_asked(run, birds, tmp_path):
    memory = tmp_path / "birds.memory"
    told = run("memory", "create", memory, "cub200:train", "--shots", 1, "--with-names", "--data-root", birds).stdout
    assert "added 4," in told
    assert "2 categories" in told
    report = json.loads(run("evaluate", "cub200:test", "-m", memory, "--data-root", birds, "--json").stdout)
    assert (report["n"], report["failures"], report["dataset"]) == (2, 0, "cub200@official:test")
    run("memory", "add", memory, "cub200:test", env={"RARVISION_DATA_ROOT": str(birds)})
    assert "say which split" in run("memory", "add", memory, "cub200", "--data-root", birds, code=2).stderr
    assert "--data-root" in run("evaluate", "cub200:test", "-m", memory, code=2).stderr


def test_tuning_examples_of_a_benchmark(run, tmp_path):
    """The paper tunes on the training images of FGVC-Aircraft."""
    folder = tmp_path / "fgvc_aircraft"
    names = [f"variant {n}" for n in range(6)]
    write(folder / "variants.txt", *names)
    rows = [f"{n:07d} {names[n % 6]}" for n in range(24)]
    write(folder / "images_variant_train.txt", *rows)
    write(folder / "images_variant_test.txt", *(f"{n:07d} {names[n % 6]}" for n in range(24, 30)))
    images(folder / "images", [f"{n:07d}.jpg" for n in range(30)])
    where = {"env": {"RARVISION_DATA_ROOT": str(tmp_path)}}
    told = run("tune", "data", "fgvc_aircraft:train", "-e", "x", "-o", tmp_path / "t.jsonl", "--json", **where)
    assert json.loads(told.stdout)["images"] == 24
    check = ("tune", "check", "--tuning", tmp_path / "t.jsonl", "--test", "fgvc_aircraft:test", "--shared-categories")
    report = json.loads(run(*check, "--json", **where, code=1).stdout)  # images of one colour look alike
    assert report["images"]["test"] == 6
    assert report["overlaps"][0]["exact"] == 0
