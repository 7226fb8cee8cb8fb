"""Ranking examples: from memories by hand and from datasets, and going on."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

import rarvision.tuning.data as making
from cli_world import picture
from colour_world import Pictures
from rarvision.datasets import FieldGuide, ImageFolder, JSONLDataset
from rarvision.errors import DatasetError, ImageError, InputError, MemoryExistsError, OptionError
from rarvision.images import load_image
from rarvision.memory import LocalMemory, NewEntry
from rarvision.testing import FakeEncoder
from rarvision.tuning import (
    TuningReport,
    build_tuning_data,
    convert_manifest,
    read_manifest,
    read_settings,
)
from rarvision.tuning.windows import split_halves
from training_world import noisy_tree

# From a memory, by hand ---------------------------------------------------------------------------------------------


def on_a_circle(folder, angles, *, write=True):
    """A memory of (name, degrees): the nearest is the one at the smallest angle. Each has an image file."""
    memory = LocalMemory.create_unbound(folder / "circle.memory", dim=2, fingerprint="imported:circle")
    entries, vectors = [], []
    for number, (name, degrees) in enumerate(angles):
        path = folder / "images" / f"{number}.png"
        if write:
            picture(path, (10 * number % 256, 40, 90))
        entries.append(NewEntry(category=name, modality="image", source=str(path), content=bytes([number] * 32)))
        vectors.append((math.cos(math.radians(degrees)), math.sin(math.radians(degrees))))
    memory.append(entries, np.array(vectors, dtype=np.float32))
    return memory


FIVE = [("a", 0), ("b", 10), ("a", 21), ("c", 33), ("b", 46)]


def test_the_authors_data_by_hand(tmp_path):
    """Five images, three neighbours, windows of two.

    The image at 0: a0 b10 a21 -> a b | b a.     At 10: b10 a0 a21 -> b a | (a a: no b).
    At 21: a21 b10 c33 -> a b | (b c: no a).     At 33: c33 a21 b46 -> c a | (a b: no c).
    At 46: b46 c33 a21 -> b c | (c a: no b).
    """
    report = build_tuning_data(on_a_circle(tmp_path, FIVE), tmp_path / "t.jsonl", k=2, neighbours=3, paper_compat=True)
    found = read_manifest(tmp_path / "t.jsonl")
    assert [(e.id, e.label, e.candidates, e.target) for e in found] == [
        ("1-0", "a", ("a", "b"), ("a", "b")),
        ("1-1", "a", ("b", "a"), ("a", "b")),
        ("2-0", "b", ("b", "a"), ("b", "a")),
        ("3-0", "a", ("a", "b"), ("a", "b")),
        ("4-0", "c", ("c", "a"), ("c", "a")),
        ("5-0", "b", ("b", "c"), ("b", "c")),
    ]
    assert [e.image.resolve() for e in found][2] == (tmp_path / "images" / "1.png").resolve()
    assert (report.examples, report.windows, report.left_out) == (6, 10, {"without_label": 4})
    assert (report.retrieved_images, report.asked_images, report.singletons) == (5, 5, ())
    authors = tmp_path / "authors.json"
    assert convert_manifest(tmp_path / "t.jsonl", authors, "authors") == 6
    assert json.loads(authors.read_text())[1] == {
        "id": 1,
        "image": [(tmp_path / "images" / "0.png").resolve().as_posix()],
        "conversations": [
            {
                "from": "user",
                "value": "Here is a image:<Img index=1><image></Img>. Please play the role of a classification expert, "
                "and sort the provided categories from high to low according to the top-2 similarity with the input "
                "image. Here are the optional categories:['b', 'a'].",
            },
            {"from": "assistant", "value": "['a', 'b']"},
        ],
    }


def test_repeated_names_are_the_authors(tmp_path):
    """Neighbours of the image at 0: a0 a1 b3 -> a a | a b; windows of one name ask nothing, and are kept."""
    angles = [("a", 0), ("a", 1), ("b", 3), ("b", 7)]
    build_tuning_data(on_a_circle(tmp_path, angles), tmp_path / "t.jsonl", k=2, neighbours=3, paper_compat=True)
    assert [(e.id, e.candidates) for e in read_manifest(tmp_path / "t.jsonl")][:2] == [
        ("1-0", ("a", "a")),
        ("1-1", ("a", "b")),
    ]


def as_the_authors_count(vectors, labels, *, k=5, neighbours=20):
    """Their loop, written anew: for each image its nearest images, itself included, in consecutive groups."""
    total = 0
    for vector, label in zip(vectors, labels, strict=True):
        order = sorted(range(len(vectors)), key=lambda i: -float(vectors[i] @ vector))[:neighbours]
        names = [labels[i] for i in order]
        total += sum(label in names[start : start + k] for start in range(len(names) - k + 1))
    return total


def test_the_authors_count_on_many(tmp_path):
    rng = np.random.default_rng(5)
    angles = [(f"name {number % 6}", float(rng.uniform(0, 360))) for number in range(60)]
    memory = on_a_circle(tmp_path, angles)
    report = build_tuning_data(memory, tmp_path / "t.jsonl", paper_compat=True)
    ids, _ = memory.table("image")
    assert report.windows == 60 * 16
    assert report.examples == as_the_authors_count(memory.vectors(ids), [name for name, _ in angles])


def test_halves_ask_about_one_and_retrieve_the_other(tmp_path):
    rng = np.random.default_rng(3)
    angles = [(f"name {number % 5}", float(rng.uniform(0, 360))) for number in range(50)] + [("alone", 5.0)]
    memory = on_a_circle(tmp_path, angles)
    report = build_tuning_data(memory, tmp_path / "t.jsonl", seed=2)
    ids, codes = memory.table("image")
    half = split_halves(codes, memory.category_names(), seed=2)
    assert (report.retrieved_images, report.asked_images, report.singletons) == (26, 25, ("alone",))
    vectors = memory.vectors(ids)
    expected = []
    for place in np.flatnonzero(~half):
        order = sorted(np.flatnonzero(half), key=lambda i: -float(vectors[i] @ vectors[place]))[:20]
        names = [angles[i][0] for i in order]
        seen = []
        for start in range(16):
            window = tuple(dict.fromkeys(names[start : start + 5]))
            if angles[place][0] in window and len(window) > 1 and window not in seen:
                seen.append(window)
                expected.append((f"{ids[place]}-{start}", window))
    found = read_manifest(tmp_path / "t.jsonl")
    assert [(e.id, e.retrieved) for e in found] == expected
    assert report.examples == len(expected) == sum(report.names.values())
    assert report.images_with_examples == len({e.image for e in found})
    assert {e.label for e in found}.isdisjoint({"alone"})
    assert any("alone" in e.candidates for e in found)
    settings = read_settings(tmp_path / "t.jsonl")
    assert (settings["k"], settings["seed"], settings["paper_compat"]) == (5, 2, False)
    assert TuningReport.from_dict(settings["report"]) == report


def test_an_image_is_not_its_own_neighbour_under_another_name(tmp_path):
    """The same image as a and as b, in different halves: it is passed by when it is found as its own neighbour."""
    for seed in range(30):  # until the halves separate the two
        folder = tmp_path / str(seed)
        memory = LocalMemory.create_unbound(folder, dim=2, fingerprint="imported:double")
        angles = [("a", 0), ("a", 40), ("b", 0), ("b", 50), ("c", 20), ("c", 30)]
        entries = [
            NewEntry(category=name, modality="image", source=str(n), content=bytes([degrees] * 32), thumbnail=b"x")
            for n, (name, degrees) in enumerate(angles)
        ]
        rows = [(math.cos(math.radians(d)), math.sin(math.radians(d))) for _, d in angles]
        memory.append(entries, np.array(rows, dtype=np.float32))
        half = split_halves(memory.table("image")[1], memory.category_names(), seed=seed)
        if half[0] == half[2]:
            continue
        report = build_tuning_data(memory, folder / "t.jsonl", k=2, neighbours=3, seed=seed)
        assert report.self_matches == 1
        asked, label = (1, "a") if half[2] else (3, "b")  # the entry of the two that is asked about
        found = {e.id: e.retrieved for e in read_manifest(folder / "t.jsonl")}
        assert found[f"{asked}-0"] == ("c", label)  # the other one would stand before them, and take the window
        return
    pytest.fail("no seed separates the two")


# From a dataset -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    return noisy_tree(tmp_path / "train")


def test_a_dataset_gives_examples_and_leaves_nothing_behind(tree, tmp_path):
    told = []
    report = build_tuning_data(
        ImageFolder(tree), tmp_path / "out" / "t.jsonl", encoder=FakeEncoder(), progress=lambda *args: told.append(args)
    )
    assert (report.images, report.categories, report.retrieved_images, report.asked_images) == (24, 4, 12, 12)
    assert told[-1] == ("retrieving", 12, 12)
    assert ("encoding", 24, 24) in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["t.jsonl"]
    found = read_manifest(tmp_path / "out" / "t.jsonl")
    assert len(found) == report.examples > 12
    line = (tmp_path / "out" / "t.jsonl").read_text().splitlines()[1]
    assert json.loads(line)["image"].startswith("../train/ash/")
    assert str(tmp_path) not in line


def test_the_same_arguments_give_the_same_file(tree, tmp_path, monkeypatch):
    for name in ("one", "two"):
        build_tuning_data(ImageFolder(tree), tmp_path / f"{name}.jsonl", encoder=FakeEncoder())
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    build_tuning_data(ImageFolder(tree), tmp_path / "three.jsonl", encoder=FakeEncoder(), seed=1)
    assert (tmp_path / "one.jsonl").read_text().splitlines()[1:] != (tmp_path / "three.jsonl").read_text().splitlines()[
        1:
    ]


def test_a_memory_of_the_dataset_gives_the_same_examples(tree, tmp_path):
    build_tuning_data(ImageFolder(tree), tmp_path / "one.jsonl", encoder=FakeEncoder())
    with LocalMemory.create(tmp_path / "m", encoder=FakeEncoder()) as memory:
        memory.add(ImageFolder(tree))
        memory.add_texts(["oak"])
        build_tuning_data(memory, tmp_path / "two.jsonl")
    assert (tmp_path / "one.jsonl").read_text().splitlines()[1:] == (tmp_path / "two.jsonl").read_text().splitlines()[
        1:
    ]


def test_images_without_files_are_written(tmp_path):
    guide = FieldGuide("birds", categories=10, images_per_category=6, seed=0)
    build_tuning_data(guide, tmp_path / "t.jsonl", encoder=FakeEncoder())
    found = read_manifest(tmp_path / "t.jsonl")
    drawn = {np.asarray(sample.image).tobytes(): sample.label for sample in guide}
    for example in found:
        assert example.image.parent == tmp_path / "t.images"
        assert drawn[np.asarray(load_image(example.image)).tobytes()] == example.label
    assert len(list((tmp_path / "t.images").iterdir())) == len({example.image for example in found})


def test_parts_of_images_are_written(tree, tmp_path):
    lines = []
    for number in range(8):
        box = [0, 0, 4, 8] if number % 2 else [4, 0, 8, 8]
        lines.append(
            {"image": f"train/ash/{number // 2}.png", "label": "left" if number % 2 else "right", "box_xyxy": box}
        )
    (tmp_path / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dataset = JSONLDataset(tmp_path / "boxes.jsonl")
    build_tuning_data(dataset, tmp_path / "t.jsonl", encoder=FakeEncoder(), k=2)
    assert {load_image(example.image).size for example in read_manifest(tmp_path / "t.jsonl")} == {(4, 8)}
    with LocalMemory.create(tmp_path / "m", encoder=FakeEncoder()) as memory:
        memory.add(dataset)
        build_tuning_data(memory, tmp_path / "u.jsonl", k=2)
    assert {load_image(example.image).size for example in read_manifest(tmp_path / "u.jsonl")} == {(4, 8)}


def test_thumbnails_serve_where_files_are_gone(tree, tmp_path):
    with LocalMemory.create(tmp_path / "m", encoder=FakeEncoder(), thumbnails=4) as memory:
        memory.add(ImageFolder(tree))
        for path in tree.glob("*/*.png"):
            path.unlink()
        report = build_tuning_data(memory, tmp_path / "t.jsonl")
    assert report.thumbnails == report.images_with_examples
    assert {load_image(example.image).size for example in read_manifest(tmp_path / "t.jsonl")} == {(4, 4)}


def test_an_image_that_is_nowhere_is_told_or_raised(tmp_path):
    memory = on_a_circle(tmp_path, FIVE)
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(ImageError, match="keeps no thumbnail"):
        build_tuning_data(memory, tmp_path / "t.jsonl", k=2, neighbours=3, paper_compat=True)
    told = []
    report = build_tuning_data(
        memory, tmp_path / "t.jsonl", k=2, neighbours=3, paper_compat=True, on_error=lambda *args: told.append(args)
    )
    assert (
        [source for source, _ in told]
        == [source for source, _ in report.failures]
        == [str(tmp_path / "images" / "2.png")]
    )
    assert [e.id for e in read_manifest(tmp_path / "t.jsonl")] == ["1-0", "1-1", "2-0", "4-0", "5-0"]


def test_bad_and_double_images_of_a_dataset(tree, tmp_path):
    (tree / "ash" / "bad.png").write_bytes(b"not an image")
    (tree / "ash" / "double.png").write_bytes((tree / "ash" / "0.png").read_bytes())
    with pytest.raises(ImageError, match=r"bad\.png"):
        build_tuning_data(ImageFolder(tree), tmp_path / "t.jsonl", encoder=FakeEncoder())
    told = []
    report = build_tuning_data(
        ImageFolder(tree), tmp_path / "t.jsonl", encoder=FakeEncoder(), on_error=lambda *args: told.append(args)
    )
    assert (report.images, report.duplicates, len(report.failures), len(told)) == (24, 1, 1, 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 1}, OptionError, "k must be at least 2"),
        ({"neighbours": 4}, OptionError, "neighbours must be at least k=5, got 4"),
        ({"max_windows": 0}, OptionError, "max_windows"),
        ({"fill": True, "paper_compat": True}, OptionError, "exclude each other"),
        ({"encoder": None}, OptionError, "needs an encoder"),
        ({"k": 13, "neighbours": 13}, DatasetError, "at least k=13 images to retrieve, got 12"),
    ],
)
def test_what_is_refused(tree, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        build_tuning_data(ImageFolder(tree), tmp_path / "t.jsonl", **{"encoder": FakeEncoder(), **options})
    assert not (tmp_path / "t.jsonl").exists()


def test_datasets_that_cannot_serve(tmp_path):
    def build(dataset):
        build_tuning_data(dataset, tmp_path / "t.jsonl", encoder=FakeEncoder(), resume=False, k=2)

    with pytest.raises(DatasetError, match="has no label"):
        build(Pictures(["red", "blue"], [None, "x"]))
    with pytest.raises(DatasetError, match="at least 2 categories, got 1"):
        build(Pictures(["red", "blue", "green"], ["x", "x", "x"]))
    with pytest.raises(DatasetError, match="none is left to ask about"):
        build(Pictures(["red", "blue"], ["x", "y"]))
    with pytest.raises(OptionError, match="leave encoder out"):
        build(LocalMemory.create(tmp_path / "m", encoder=FakeEncoder()))
    far = Pictures(["red", "maroon", "crimson", "blue", "navy", "cyan"], ["r", "r", "r", "b", "b", "b"])
    with pytest.raises(DatasetError, match=r"no example came of 2 images: of 2 windows .* 2 single_name"):
        build_tuning_data(far, tmp_path / "t.jsonl", encoder=FakeEncoder(), k=2, neighbours=2)
    assert not (tmp_path / "t.jsonl.part").exists()


# Going on -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tree, tmp_path):
    build_tuning_data(ImageFolder(tree), tmp_path / "whole.jsonl", encoder=FakeEncoder())
    return (tmp_path / "whole.jsonl").read_bytes()


def stop_at(stage, count):
    def progress(at, done, total):
        if at == stage and done >= count:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_run_goes_on(tree, tmp_path, monkeypatch, whole):
    monkeypatch.setattr(making, "_BLOCK", 5)
    out = tmp_path / "t.jsonl"
    with pytest.raises(KeyboardInterrupt):
        build_tuning_data(ImageFolder(tree), out, encoder=FakeEncoder(), progress=stop_at("retrieving", 5))
    part = tmp_path / "t.jsonl.part"
    assert not out.exists()
    assert len(part.read_text().splitlines()) > 5
    part.write_bytes(part.read_bytes()[:-20])  # as if it had been cut short within the last line
    encoder = FakeEncoder()
    monkeypatch.setattr(encoder, "_encode_images", None)  # nothing is encoded again
    told = []
    report = build_tuning_data(ImageFolder(tree), out, encoder=encoder, progress=lambda *args: told.append(args))
    assert out.read_bytes() == whole
    assert report.examples == len(whole.splitlines()) - 1
    assert {stage for stage, _, _ in told} == {"retrieving"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.jsonl", "train", "whole.jsonl"]


def test_interrupted_encoding_goes_on(tree, tmp_path, monkeypatch, whole):
    out, encoder = tmp_path / "t.jsonl", FakeEncoder()
    with pytest.raises(KeyboardInterrupt):
        build_tuning_data(ImageFolder(tree), out, encoder=encoder, batch_size=4, progress=stop_at("encoding", 12))
    encoded = []
    original = encoder._encode_images
    monkeypatch.setattr(encoder, "_encode_images", lambda images: encoded.extend(images) or original(images))
    build_tuning_data(ImageFolder(tree), out, encoder=encoder, batch_size=4)
    assert len(encoded) == 12
    assert out.read_bytes() == whole


KILLED = """
import os, sys
import rarvision.tuning.data as making
from rarvision.datasets import ImageFolder
from rarvision.testing import FakeEncoder
making._BLOCK = 5
def die(stage, done, total):
    if stage == "retrieving" and done == 10:
        os._exit(9)
making.build_tuning_data(ImageFolder(sys.argv[1]), sys.argv[2], encoder=FakeEncoder(), progress=die)
"""


def test_a_killed_run_goes_on(tree, tmp_path, whole):
    out = tmp_path / "t.jsonl"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    died = subprocess.run([sys.executable, "-c", KILLED, tree, out], check=False, env=environment, timeout=120)
    assert died.returncode == 9
    assert (tmp_path / "t.jsonl.part").exists()
    build_tuning_data(ImageFolder(tree), out, encoder=FakeEncoder())
    assert out.read_bytes() == whole


def test_other_settings_are_refused_with_what_differs(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "_BLOCK", 5)
    out = tmp_path / "t.jsonl"
    with pytest.raises(KeyboardInterrupt):
        build_tuning_data(ImageFolder(tree), out, encoder=FakeEncoder(), progress=stop_at("retrieving", 5))
    for state in ("interrupted", "finished"):
        with pytest.raises(InputError, match=r"k: 5 there, 4 now.*--no-resume"):
            build_tuning_data(ImageFolder(tree), out, encoder=FakeEncoder(), k=4)
        with pytest.raises(InputError, match="encoder_fingerprint"):
            build_tuning_data(ImageFolder(tree), out, encoder=FakeEncoder(seed=1))
        with pytest.raises(InputError, match="the dataset changed since"):
            build_tuning_data(fewer(tree), out, encoder=FakeEncoder())
        if state == "interrupted":
            build_tuning_data(ImageFolder(tree), out, encoder=FakeEncoder())
    anew = build_tuning_data(ImageFolder(tree), out, encoder=FakeEncoder(seed=1), k=4, resume=False)
    assert read_settings(out)["k"] == 4
    assert anew.examples == len(read_manifest(out))


def fewer(tree):
    """The dataset under the same name, with an image less."""
    whole = ImageFolder(tree)
    return whole.select(range(len(whole) - 1), name=whole.name)


def test_a_finished_manifest_is_kept(tree, tmp_path, monkeypatch):
    out, encoder = tmp_path / "t.jsonl", FakeEncoder()
    first = build_tuning_data(ImageFolder(tree), out, encoder=encoder)
    before = out.stat().st_mtime_ns
    monkeypatch.setattr(encoder, "_encode_images", None)
    assert build_tuning_data(ImageFolder(tree), out, encoder=encoder) == first
    assert out.stat().st_mtime_ns == before


def test_what_is_not_ours_is_left_alone(tree, tmp_path):
    out = tmp_path / "t.jsonl"
    out.write_text('{"image": "a.png", "label": "a"}\n')
    for resume in (True, False):
        with pytest.raises(InputError, match=r"not a tuning manifest.*left alone"):
            build_tuning_data(ImageFolder(tree), out, encoder=FakeEncoder(), resume=resume)
    out.unlink()
    (tmp_path / "t.jsonl.part").write_text("hello\n")
    with pytest.raises(InputError, match="not what an interrupted run left"):
        build_tuning_data(ImageFolder(tree), out, encoder=FakeEncoder())
    (tmp_path / "t.jsonl.part").unlink()
    LocalMemory.create(tmp_path / "t.jsonl.work", encoder=FakeEncoder()).close()
    with pytest.raises(MemoryExistsError, match="no tuning run made"):
        build_tuning_data(ImageFolder(tree), out, encoder=FakeEncoder())


def test_an_image_that_came_back_does_not_change_the_halves(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "_BLOCK", 5)
    good = (tree / "elm" / "3.png").read_bytes()
    (tree / "elm" / "3.png").write_bytes(b"broken")
    out, told = tmp_path / "t.jsonl", []
    with pytest.raises(KeyboardInterrupt):
        build_tuning_data(
            ImageFolder(tree),
            out,
            encoder=FakeEncoder(),
            progress=stop_at("retrieving", 5),
            on_error=lambda *args: told.append(args),
        )
    (tree / "elm" / "3.png").write_bytes(good)
    report = build_tuning_data(ImageFolder(tree), out, encoder=FakeEncoder(), on_error=lambda *args: told.append(args))
    assert (report.images, len(report.failures), len(told)) == (23, 1, 1)
    assert len(read_manifest(out)) == report.examples
