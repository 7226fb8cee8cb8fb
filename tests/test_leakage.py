"""The guard against leakage: looks against a plain count, roles and rules, sources of all kinds, the command."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from rarvision.datasets import FieldGuide, ImageFolder, JSONLDataset
from rarvision.errors import DatasetError, ImageError, InputError, LeakageError, OptionError
from rarvision.images import Picture, load_picture
from rarvision.memory import LocalMemory
from rarvision.testing import FakeEncoder
from rarvision.tuning import build_tuning_data, check_leakage, image_set, normalised_name, read_manifest
from rarvision.tuning.looks import COLOUR_TOLERANCE, THRESHOLD, look_alikes, look_of
from rarvision.tuning.training import _check_apart

# How images look -----------------------------------------------------------------------------------------------------


def look(image):
    return look_of(Picture.of(image))


def bits(first, second):
    return int(np.unpackbits(first[:8] ^ second[:8]).sum())


def colour_difference(first, second):
    return float(np.sqrt(((first[8:].astype(float) - second[8:].astype(float)) ** 2).mean()))


def alike(first, second):
    return bits(first, second) <= THRESHOLD and colour_difference(first, second) <= COLOUR_TOLERANCE


@pytest.fixture(scope="module")
def scenes():
    return [sample.image for sample in FieldGuide("birds", categories=10, images_per_category=5, size=96, seed=4)]


def saved(image, folder, name, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def test_the_hash_is_the_plain_transform(scenes):
    """Each bit by the sum that defines it."""
    small = np.asarray(scenes[0].resize((32, 32), Image.Resampling.HAMMING), dtype=float) @ (0.299, 0.587, 0.114)
    place = np.arange(32)
    low = np.empty((8, 8))
    for u in range(8):
        for v in range(8):
            wave = np.outer(np.cos(np.pi * u * (2 * place + 1) / 64), np.cos(np.pi * v * (2 * place + 1) / 64))
            scale = (np.sqrt(0.5) if u == 0 else 1) * (np.sqrt(0.5) if v == 0 else 1) / 16
            low[u, v] = scale * (small * wave).sum()
    middle = np.median(low.reshape(-1)[1:])
    assert np.unpackbits(look(scenes[0])[:8]).tolist() == (low > middle).astype(int).reshape(-1).tolist()


@pytest.mark.parametrize(
    "change",
    [
        lambda image, folder: load_picture(saved(image, folder, "a.jpg", quality=50)),
        lambda image, folder: Picture.of(image.resize((48, 48), Image.Resampling.BICUBIC)),
        lambda image, folder: load_picture(saved(image.resize((160, 160)), folder, "b.png")),
        lambda image, folder: Picture.of(ImageEnhance.Brightness(image).enhance(1.05)),
        lambda image, folder: Picture.of(image).cut(0.01, 0.01, 0.99, 0.99),
    ],
    ids=["jpeg", "half", "larger", "brighter", "cropped"],
)
def test_copies_look_alike_and_others_do_not(scenes, tmp_path, change):
    looks = np.stack([look(image) for image in scenes])
    copies = np.stack([look_of(change(image, tmp_path)) for image in scenes])
    found = list(look_alikes(looks, copies, threshold=THRESHOLD))
    assert len(found) >= 0.95 * len(scenes)
    assert all(copy == own for copy, own, _ in found)


def test_pictures_of_one_colour_are_told_by_it():
    red, also, dark = (look(Image.new("RGB", size, colour)) for size, colour in
                       (((8, 8), "red"), ((50, 30), "red"), ((8, 8), "maroon")))  # fmt: skip
    assert alike(red, also)
    assert bits(red, dark) == 0
    assert not alike(red, dark)


@pytest.mark.parametrize("threshold", [0, 3, 8, 64])
def test_look_alikes_are_those_of_a_plain_count(threshold):
    rng = np.random.default_rng(threshold)
    first = rng.integers(0, 256, (40, 200), dtype=np.uint8)
    second = rng.integers(0, 256, (60, 200), dtype=np.uint8)
    second[::2] = first[rng.integers(0, 40, 30)]
    flips = rng.integers(0, 12, 60)
    for row, count in enumerate(flips):
        for bit in rng.choice(64, count, replace=False):
            second[row, bit // 8] ^= np.uint8(1 << (bit % 8))
    second[::4, 8:] = np.clip(second[::4, 8:].astype(int) + 30, 0, 255)  # too bright to be the same
    expected = []
    for row, ours in enumerate(second):
        near = [(bits(ours, theirs), place) for place, theirs in enumerate(first)
                if bits(ours, theirs) <= threshold and colour_difference(ours, theirs) <= COLOUR_TOLERANCE]  # fmt: skip
        if near:
            expected.append((row, min(near)[1], min(near)[0]))
    assert list(look_alikes(first, second, threshold=threshold)) == expected
    assert threshold == 0 or expected


def test_ten_thousand_against_ten_thousand():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (10_000, 200), dtype=np.uint8)
    second = rng.integers(0, 256, (10_000, 200), dtype=np.uint8)
    second[1234] = first[77]
    assert list(look_alikes(first, second, threshold=THRESHOLD)) == [(1234, 77, 0)]
    assert list(look_alikes(first[:0], second, threshold=8)) == list(look_alikes(first, second[:0], threshold=8)) == []


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("American_pit_bull", "american pit-bull"),
        ("  Straße ", "STRASSE"),
        ("A320\u2011200", "a320-200"),
        ("ﬁnch", "Finch"),
    ],
)
def test_names_are_equal_whatever_their_spelling(first, second):
    assert normalised_name(first) == normalised_name(second)


def test_other_names_stay_apart():
    assert len({normalised_name(name) for name in ("A320", "A 320", "A321", "A320s")}) == 4


# Sets and rules ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sets(scenes, tmp_path):
    """``train`` and ``test`` of two categories each; ``test`` has one image of ``train`` as it is and one as a JPEG."""
    for number in range(12):
        saved(scenes[number], tmp_path, f"train/{'heron' if number % 2 else 'grey_owl'}/{number}.png")
    for number in range(20, 26):
        saved(scenes[number], tmp_path, f"test/{'tern' if number % 2 else 'Grey-Owl'}/{number}.png")
    (tmp_path / "test" / "tern" / "same.png").write_bytes((tmp_path / "train" / "heron" / "3.png").read_bytes())
    saved(scenes[4], tmp_path, "test/tern/alike.jpg", quality=70)
    return ImageFolder(tmp_path / "train"), ImageFolder(tmp_path / "test")


def clean(sets):
    """The test set without what leaks."""
    names = [name for name, item in enumerate(sets[1].items) if not item.source.endswith(("same.png", "alike.jpg"))]
    return sets[1].select([place for place in names if sets[1].items[place].label == "tern"])


def test_what_leaks_is_found_and_refused(sets):
    train, test = image_set(sets[0], "tuning"), image_set(sets[1], "test")
    with pytest.raises(
        LeakageError,
        match=r"2 of 8 test images are in the tuning set \(1 the same bytes, 1 look-alikes\), such as .*same\.png "
        r"\(.*3\.png\); 1 of 2 test categories are in the tuning set, such as 'Grey-Owl'\. .*--allow-leakage",
    ):
        check_leakage(train, test)
    report = check_leakage(train, test, allow_leakage=True)
    (overlap,) = report.overlaps
    assert report.leaked
    assert (overlap.first, overlap.second, overlap.exact, overlap.near) == ("tuning", "test", 1, 1)
    assert (overlap.categories, overlap.leaks) == (("Grey-Owl",), ("images", "categories"))
    exact, near = overlap.examples
    assert (exact.kind, exact.bits, exact.first.rpartition("/")[2], exact.second.rpartition("/")[2]) == (
        "exact",
        0,
        "3.png",
        "same.png",
    )
    assert (near.kind, near.first.rpartition("/")[2], near.second.rpartition("/")[2]) == ("near", "4.png", "alike.jpg")
    assert 0 <= near.bits <= THRESHOLD
    assert report.images == {"tuning": 12, "test": 8}
    again = json.loads(json.dumps(report.to_dict()))
    assert again["leaked"] is True
    assert again["overlaps"][0]["examples"][0]["kind"] == "exact"
    assert report.table() == [("tuning and test", "1 !", "1 !", "1 !")]


def test_what_is_apart_passes(sets):
    report = check_leakage(image_set(sets[0], "tuning"), image_set(clean(sets), "test"))
    assert not report.leaked
    assert report.summary() == ""
    assert report.table() == [("tuning and test", "0", "0", "0")]


def test_thresholds(sets):
    train, test = image_set(sets[0], "tuning"), image_set(sets[1], "test")
    assert check_leakage(train, test, threshold=None, allow_leakage=True).overlaps[0].near == 0
    assert check_leakage(train, test, threshold=8, allow_leakage=True, examples=1).overlaps[0].near == 1
    bytes_only = image_set(sets[1], "test", looks=False)
    assert check_leakage(train, bytes_only, allow_leakage=True).overlaps[0].near == 0
    for threshold in (-1, 65):
        with pytest.raises(OptionError, match="between 0 and 64"):
            check_leakage(train, test, threshold=threshold)


def test_categories_may_be_meant_to_be_shared(sets):
    train, test = image_set(sets[0], "tuning"), image_set(sets[0].select([]), "memory")
    own = image_set(ImageFolder(sets[1].root).only("Grey-Owl"), "test")
    with pytest.raises(LeakageError, match="categories are in the tuning set"):
        check_leakage(train, own)
    assert check_leakage(train, own, shared_categories=True).overlaps[0].categories == ("Grey-Owl",)
    assert not check_leakage(train, test).leaked


def test_the_memory_shares_categories_but_no_images_with_the_test(sets, tmp_path):
    with LocalMemory.create(tmp_path / "m", encoder=FakeEncoder(), thumbnails=48) as memory:
        memory.add(sets[0])
        memory.add_texts(["tern"])
        held = image_set(memory, "memory")
    assert held.categories == ("grey_owl", "heron", "tern")
    report = check_leakage(held, image_set(clean(sets), "test"))
    assert report.overlaps[0].categories == ("tern",)
    with pytest.raises(LeakageError, match=r"2 of 8 test images are in the memory set \(1 the same bytes, 1 look"):
        check_leakage(image_set(sets[1], "test"), held)
    both = check_leakage(held, image_set(sets[0], "tuning"))
    assert (both.overlaps[0].exact, both.overlaps[0].near, both.leaked) == (12, 0, False)


def test_a_memory_without_thumbnails_reads_the_files(sets, tmp_path):
    with LocalMemory.create(tmp_path / "m", encoder=FakeEncoder(), thumbnails=None) as memory:
        memory.add(sets[0])
        assert len(image_set(memory, "memory").seen) == 12
        next((tmp_path / "train" / "heron").iterdir()).unlink()
        with pytest.raises(ImageError, match="no such file"):
            image_set(memory, "memory")
        told = []
        held = image_set(memory, "memory", on_error=lambda *args: told.append(args))
    assert (len(held.sources), len(held.seen), len(held.unreadable), len(told)) == (12, 11, 1, 1)


def test_three_sets_and_their_order(sets, tmp_path):
    test, tuning, memory = image_set(clean(sets), "test"), image_set(sets[0], "tuning"), image_set(sets[0], "memory")
    report = check_leakage(test, tuning, memory)
    assert [(overlap.first, overlap.second) for overlap in report.overlaps] == [
        ("memory", "tuning"),
        ("memory", "test"),
        ("tuning", "test"),
    ]
    for given in ((), (test,), (test, test)):
        with pytest.raises(OptionError, match="two or three sets of different roles"):
            check_leakage(*given)
    with pytest.raises(OptionError, match="role must be one of memory, tuning, test, got 'training'"):
        image_set(sets[0], "training")


def test_a_manifest_is_a_set(sets, tmp_path):
    build_tuning_data(sets[0], tmp_path / "t.jsonl", encoder=FakeEncoder(), k=2)
    told = []
    tuning = image_set(tmp_path / "t.jsonl", "tuning", progress=told.append)
    assert 1 <= len(tuning.sources) <= 6
    assert told[-1] == len(tuning.sources)
    assert sorted(tuning.categories) == ["grey_owl", "heron"]
    whole = image_set(sets[0], "memory")
    assert check_leakage(whole, tuning).overlaps[0].exact == len(tuning.sources)
    (tmp_path / "u.jsonl").write_text("{}\n")
    with pytest.raises(DatasetError, match="not a tuning manifest"):
        image_set(tmp_path / "u.jsonl", "tuning")


def test_parts_of_an_image_are_images_of_their_own(scenes, tmp_path):
    saved(scenes[0], tmp_path, "a.png")
    saved(scenes[0].crop((0, 0, 48, 96)), tmp_path, "left.png")
    lines = [{"image": "a.png", "label": "x", "box_xyxy": box} for box in ([0, 0, 48, 96], [48, 0, 96, 96])]
    (tmp_path / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "left.jsonl").write_text(json.dumps({"image": "left.png", "label": "y"}) + "\n")
    (tmp_path / "whole.jsonl").write_text(json.dumps({"image": "a.png", "label": "z"}) + "\n")
    boxes = image_set(JSONLDataset(tmp_path / "boxes.jsonl"), "tuning")
    found = check_leakage(boxes, image_set(JSONLDataset(tmp_path / "left.jsonl"), "test"), allow_leakage=True)
    assert (found.overlaps[0].exact, found.overlaps[0].near) == (0, 1)
    assert found.overlaps[0].examples[0].first.endswith("#xyxy=0,0,48,96")
    found = check_leakage(boxes, image_set(JSONLDataset(tmp_path / "whole.jsonl"), "test"), allow_leakage=True)
    assert (found.overlaps[0].exact, found.overlaps[0].near) == (0, 0)


def test_drawn_and_unlabelled_images(tmp_path):
    guide = FieldGuide("fish", categories=10, images_per_category=2, seed=1)
    assert check_leakage(image_set(guide, "memory"), image_set(guide, "tuning")).overlaps[0].exact == 20
    unlabelled = tmp_path / "u.jsonl"
    saved(guide[0].image, tmp_path, "a.png")
    unlabelled.write_text('{"image": "a.png"}\n')
    tested = image_set(JSONLDataset(unlabelled), "test")
    assert tested.categories == ()
    report = check_leakage(image_set(guide, "memory"), tested, allow_leakage=True)
    assert (report.overlaps[0].exact, report.overlaps[0].near) == (0, 1)  # a file's bytes are not its pixels


def test_leakage_is_wrong_input():
    assert issubclass(LeakageError, InputError)


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_checks(run, sets, tmp_path):
    run("memory", "create", tmp_path / "m", tmp_path / "train", "-e", "x", "--quiet")
    command = ("tune", "check", "--tuning", tmp_path / "train", "-m", tmp_path / "m", "--test", tmp_path / "test")
    report = json.loads(run(*command, "--json", code=1).stdout)
    assert report["leaked"]
    assert report["test"] == str(tmp_path / "test")
    assert [overlap["leaks"] for overlap in report["overlaps"]] == [[], ["images"], ["images", "categories"]]
    shown = run(*command, code=1).stdout
    assert "leakage: 2 of 8 test images are in the memory set" in shown
    assert re.search(r"same bytes: \S*same\.png is \S*3\.png in the tuning set", shown)
    assert re.search(r"look-alike \(\d bits of 64\): \S*alike\.jpg is \S*4\.png in the memory set", shown)
    run(*command, "--allow-leakage")
    bytes_only = run(*command, "--threshold", "-1", "--json", code=1)
    assert json.loads(bytes_only.stdout)["overlaps"][1]["near"] == 0


def test_the_command_passes_what_is_apart(run, sets, tmp_path, scenes):
    saved(scenes[40], tmp_path, "other/tern/40.png")
    result = run("tune", "check", "--tuning", tmp_path / "train", "--test", tmp_path / "other")
    assert "no leakage" in result.stdout
    saved(scenes[41], tmp_path, "other/tern/41.png")
    (tmp_path / "other" / "tern" / "bad.png").touch()
    result = run("tune", "check", "--tuning", tmp_path / "train", "--test", tmp_path / "other", code=1)
    assert "bad.png" in result.stderr
    assert "--test DATASET" in run("tune", "check", "--tuning", tmp_path / "train", code=2).stderr
    assert "--tuning FILE" in run("tune", "check", "--test", tmp_path / "train", code=2).stderr


def test_making_examples_refuses_what_leaks(run, sets, tmp_path, scenes):
    command = ("tune", "data", tmp_path / "train", "-e", "x", "-k", "2", "-o", tmp_path / "t.jsonl")
    refused = run(*command, "--test", tmp_path / "test", code=2).stderr
    assert "leakage: 2 of 8 test images" in refused
    assert not (tmp_path / "t.jsonl").exists()
    allowed = run(*command, "--test", tmp_path / "test", "--allow-leakage", "--json")
    assert "(allowed)" in allowed.stderr
    assert json.loads(allowed.stdout)["leakage"][0]["leaked"]
    saved(scenes[40], tmp_path, "other/grey owl/40.png")
    refused = run(*command, "--test", tmp_path / "other", code=2).stderr
    assert "categories are in the tuning set, such as 'grey owl'" in refused
    run(*command, "--test", tmp_path / "other", "--shared-categories")
    assert run("tune", "check", "--tuning", tmp_path / "t.jsonl", "--test", tmp_path / "other", code=1).stdout


def test_training_refuses_copies_of_what_it_is_to_be_measured_on(tmp_path):
    """Under another path as well; what is only as large is another image."""
    guide = FieldGuide("birds", split="train", categories=10, images_per_category=4)
    build_tuning_data(guide, tmp_path / "one" / "tuning.jsonl", encoder=FakeEncoder())
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    examples, copies = (read_manifest(tmp_path / name / "tuning.jsonl") for name in ("one", "two"))
    images = {example.image for example in copies}
    with pytest.raises(InputError, match=f"{len(images)} held-out images are trained on as well"):
        _check_apart(examples, copies)
    for image in images:
        content = bytearray(image.read_bytes())
        content[-1] ^= 1
        image.write_bytes(content)
    _check_apart(examples, copies)
