"""Crops of regions: every rule against a plain rewrite, geometry by properties, streams and their bounds."""

from __future__ import annotations

import doctest
import importlib
import itertools
import pkgutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageOps

import rarvision.regions
from rarvision.datasets import FieldGuide
from rarvision.errors import ImageError, InputError, OptionError
from rarvision.images import Picture, load_image
from rarvision.regions import (
    AdaptiveScale,
    Blur,
    CropRule,
    Outline,
    crops,
    iter_crops,
)
from rarvision.regions.blurring import BlurredCopy
from rarvision.testing import FakeEncoder
from rarvision.types import Sample

PLAIN = CropRule(scale=1.0, shape="box", blur=None)
BOX = (30, 20, 70, 44)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def drawing(width, height):
    small = Image.fromarray(FieldGuide("birds", categories=3, images_per_category=2, size=96).pixels(1, 2)[0])
    return small.resize((width, height), Image.Resampling.BICUBIC)


def stripes(width, height):
    values = np.random.default_rng(1).integers(0, 2, (1, width, 1), dtype=np.uint8) * np.uint8(255)
    return Image.fromarray(np.broadcast_to(values, (height, width, 3)).copy())


def frame(width, height):
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).rectangle((0, 0, width - 1, height - 1), outline="black")
    return image


def plainly(image, box, rule, mask=None):
    """The rule at full size, on the whole image, for boxes and windows of whole pixels: an own rewrite."""
    array = np.asarray(image)
    around = image
    if rule.blur is not None:
        around = around.filter(ImageFilter.GaussianBlur(rule.blur.sigma(image.size)))
    if rule.grey:
        around = ImageOps.grayscale(around).convert("RGB")
    around = np.rint(np.asarray(around) * (1.0 - rule.darkening)).astype(np.uint8) if rule.darkening else around
    composed = np.array(around)
    left, upper, right, lower = box
    if mask is None:
        composed[upper:lower, left:right] = array[upper:lower, left:right]
    else:
        composed[mask] = array[mask]
    width, height = (right - left) * rule.scale, (lower - upper) * rule.scale
    if rule.shape == "square":
        width = height = max(width, height)
    x, y = (left + right) / 2 - width / 2, (upper + lower) / 2 - height / 2
    assert x == int(x)
    assert y == int(y)
    xs, ys = np.arange(int(x), int(x + width)), np.arange(int(y), int(y + height))
    inside_x, inside_y = (xs >= 0) & (xs < image.width), (ys >= 0) & (ys < image.height)
    if rule.padding == "clip":
        return composed[np.ix_(ys[inside_y], xs[inside_x])]
    found = composed[np.ix_(ys.clip(0, image.height - 1), xs.clip(0, image.width - 1))]
    if rule.padding != "edge":
        found[~(inside_y[:, None] & inside_x)] = rule.padding
    return found


def one(image, box, rule, mask=None):
    (crop,) = crops(image, [box], rule, masks=None if mask is None else [mask])
    return crop


# rules


@pytest.mark.parametrize(
    "make",
    [
        lambda: CropRule(scale=0.0),
        lambda: CropRule(scale=float("nan")),
        lambda: CropRule(shape="round"),
        lambda: CropRule(padding=(0, 0, 256)),
        lambda: CropRule(padding="mirror"),
        lambda: CropRule(darkening=1.5),
        lambda: CropRule(keep_side=0),
        Blur,
        lambda: Blur(share=0.1, pixels=3),
        lambda: Blur(share=0.0),
        lambda: Blur(share=1.5),
        lambda: Blur(pixels=-1.0),
        lambda: Outline(colour=(1, 2)),
        lambda: Outline(share=0.0),
        lambda: Outline(shape="star"),
        lambda: AdaptiveScale(limits=(5.0, 5.0)),
        lambda: AdaptiveScale(scales=(1.0, 2.0)),
        lambda: AdaptiveScale(scales=(1.0, 2.0, float("inf"))),
    ],
)
def test_rules_are_checked_at_birth(make):
    with pytest.raises(OptionError):
        make()


def test_the_adaptive_scale_is_table_12_s_and_its_limits_are_settable():
    rule = AdaptiveScale()
    sides = (1, 31.9, 32, 95.9, 96, 5000)
    assert [rule.of((0, 0, side, side)) for side in sides] == [2.7, 2.7, 1.6, 1.6, 1.0, 1.0]
    assert rule.of((0, 0, 1000, 1)) == 2.7, "by area, not by side"
    own = AdaptiveScale(limits=(100.0,), scales=(3.0, 1.5))
    assert [own.of((0, 0, side, 10)) for side in (9.9, 10)] == [3.0, 1.5]


def test_a_clipped_box_s_area_decides():
    crop = one(noise(100, 100), (90, 0, 600, 100), CropRule(scale=AdaptiveScale(limits=(2000.0,), scales=(2.0, 1.0))))
    assert crop.box_xyxy == (90, 0, 100, 100)
    assert crop.scale == 2.0


# crops against the plain computation

RULES = {
    "plain": PLAIN,
    "square": CropRule(scale=1.0, blur=None),
    "twice": CropRule(scale=2.0, blur=None),
    "edge": CropRule(scale=3.0, blur=None, padding="edge"),
    "clip": CropRule(scale=3.0, blur=None, padding="clip"),
    "own shape": CropRule(scale=2.0, shape="box", blur=None),
    "small blur": CropRule(scale=2.0, blur=Blur(pixels=2.5)),
    "large blur": CropRule(scale=2.0, blur=Blur(share=0.15)),
    "grey": CropRule(scale=2.0, blur=None, grey=True),
    "dark": CropRule(scale=2.0, blur=None, darkening=0.7),
    "all": CropRule(scale=3.0, blur=Blur(pixels=4), grey=True, darkening=0.3, padding="edge"),
}
PLACES = {"inside": BOX, "corner": (0, 0, 24, 10), "right": (88, 40, 100, 64), "whole": (0, 0, 100, 64)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", RULES)
def test_a_crop_is_what_the_plain_computation_makes(name, place):
    image, rule, box = noise(100, 64), RULES[name], PLACES[place]
    crop = one(image, box, rule)
    expected = plainly(image, box, rule)
    assert crop.picture.size == expected.shape[1::-1]
    allowed = 2 if name == "large blur" else 1 if rule.darkening else 0
    difference = np.abs(np.asarray(crop.image).astype(int) - expected)
    assert difference.max() <= allowed


def test_the_plain_rule_is_what_the_rest_of_the_project_cuts_out():
    image = noise(100, 64)
    for box in ((30, 20, 70, 44), (1.25, 3.5, 41.0, 50.125), (-5, -5, 20, 20)):
        ours, theirs = one(image, box, PLAIN).picture, Picture.of(image).cropped(box)
        np.testing.assert_allclose(ours.box, theirs.box, atol=1e-9)
        assert ours.size == theirs.size
        assert ours.resized((32, 32), Image.Resampling.BICUBIC) == theirs.resized((32, 32), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("make", [noise, drawing, stripes, frame])
@pytest.mark.parametrize("size", [(320, 213), (200, 301), (900, 7), (65, 65), (3, 2), (1, 1)])
@pytest.mark.parametrize("share", [0.01, 0.07, 0.15, 1.0])
def test_the_blurred_copy_is_pillow_s_blur(make, size, share):
    image = make(*size)
    sigma = share * max(size)
    expected = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma))).astype(int)
    copy = BlurredCopy(image, sigma)
    difference = np.abs(np.asarray(copy.part((0, 0, *size))) - expected)
    assert difference.max() <= 2
    assert difference.mean() <= 0.6
    window = (size[0] // 3, 0, size[0], max(1, size[1] // 2))
    part = np.asarray(copy.part(window))
    assert np.abs(part - np.asarray(copy.part((0, 0, *size)).crop(window)).astype(int)).max() <= 1, "but for rounding"
    reduced = np.asarray(copy.part(window, reduced=3)).astype(int)
    assert np.abs(reduced - np.asarray(Image.fromarray(part).reduce(3))).max() <= 1


def test_fractions_of_a_pixel_are_kept_for_whoever_resizes():
    image = drawing(400, 300)
    crop = one(image, (100.25, 80.5, 160.75, 140.75), CropRule(scale=1.5, blur=None, outline=Outline(share=0.001)))
    assert crop.picture.size == (91, 91)
    x, y, right, lower = crop.picture.box
    assert (right - x, lower - y) == pytest.approx((90.75, 90.75))
    assert (x % 1, y % 1) == pytest.approx(((130.5 - 45.375) % 1, (110.625 - 45.375) % 1))


def test_a_square_is_square_whatever_the_fractions():
    generator = np.random.default_rng(0)
    image = Image.new("RGB", (640, 480))
    corners = np.sort(generator.uniform(1, 479, (80, 2, 2)), axis=1).reshape(-1, 4)
    for crop in crops(image, corners[(corners[:, :2] < corners[:, 2:]).all(axis=1)], CropRule(scale=1.37)):
        assert crop.picture.size[0] == crop.picture.size[1]


@settings(max_examples=60)
@given(
    st.tuples(st.floats(-40, 90), st.floats(-40, 70), st.floats(0.01, 200), st.floats(0.01, 200)),
    st.floats(0.2, 6),
    st.sampled_from(["edge", "clip", (1, 2, 3)]),
    st.sampled_from(["square", "box"]),
    st.sampled_from([None, Blur(share=0.2), Blur(pixels=1)]),
    st.sampled_from([1024, 16, 5]),
)
def test_every_box_that_touches_the_image_has_a_crop(box, scale, padding, shape, blur, keep_side):
    image = noise(90, 70)
    x, y, wide, high = box
    corners = (x, y, x + wide, y + high)
    if corners[2] <= 0 or corners[3] <= 0 or x >= 90 or y >= 70:
        return
    rule = CropRule(scale=scale, padding=padding, shape=shape, blur=blur, keep_side=keep_side, outline=Outline())
    crop = one(image, corners, rule)
    left, upper, right, lower = crop.picture.box
    assert 0 <= left < right <= crop.picture.image.width
    assert 0 <= upper < lower <= crop.picture.image.height
    assert max(crop.picture.image.size) <= 2 * keep_side + 2
    assert crop.picture.resized((7, 7), Image.Resampling.BICUBIC).size == (7, 7)
    if padding != "clip" and shape == "square":
        sides = np.subtract(crop.window_xyxy[2:], crop.window_xyxy[:2])
        widest = max(np.subtract(crop.box_xyxy[2:], crop.box_xyxy[:2]))
        np.testing.assert_allclose(sides, scale * widest)
        np.testing.assert_allclose(
            np.add(crop.window_xyxy[:2], crop.window_xyxy[2:]), np.add(crop.box_xyxy[:2], crop.box_xyxy[2:]), atol=1e-6
        )


@pytest.mark.parametrize("blur", [None, Blur(share=0.1), Blur(share=0.01)])
@pytest.mark.parametrize("padding", ["edge", "clip", (9, 8, 7)])
def test_a_reduced_crop_shows_the_same(blur, padding):
    image = drawing(1000, 701)
    for box in ((200, 100, 700, 500), (0, 0, 1000, 701), (601, 333, 1000, 701)):
        large = one(image, box, CropRule(scale=1.2, blur=blur, padding=padding, keep_side=5000, outline=Outline()))
        small = one(image, box, CropRule(scale=1.2, blur=blur, padding=padding, keep_side=100, outline=Outline()))
        assert max(small.picture.image.size) < 220
        assert small.picture.size == large.picture.size
        each = [np.asarray(c.picture.resized((24, 24), Image.Resampling.BICUBIC)).astype(float) for c in (large, small)]
        assert np.abs(each[0] - each[1]).mean() < 4.0


def test_an_outline_goes_around_the_box():
    image = Image.new("RGB", (100, 100), "white")
    rule = CropRule(scale=2.0, blur=None, outline=Outline(colour=(0, 0, 255), share=0.025))
    found = np.asarray(one(image, (30, 30, 70, 70), rule).image)
    assert found.shape == (80, 80, 3)
    blue = (found == (0, 0, 255)).all(axis=2)
    expected = np.zeros((80, 80), dtype=bool)
    expected[20:60, 20:60] = True
    expected[22:58, 22:58] = False
    np.testing.assert_array_equal(blue, expected)
    ellipse = CropRule(scale=2.0, blur=None, outline=Outline(colour=(0, 0, 255), shape="ellipse"))
    round_ = (np.asarray(one(image, (30, 30, 70, 70), ellipse).image) == (0, 0, 255)).all(axis=2)
    assert round_[40, 20]
    assert round_[20, 40]
    assert not round_[21, 21]
    assert np.asarray(image).min() == 255, "the image itself is not drawn on"
    whole = one(image, (0, 0, 100, 100), CropRule(scale=1.0, blur=None, outline=Outline()))
    assert np.asarray(whole.image).min() == 0
    assert np.asarray(image).min() == 255


def test_boxes_are_of_the_upright_image(tmp_path):
    stored = noise(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)
    upright = stored.transpose(Image.Transpose.ROTATE_270)
    assert load_image(path).size == (40, 60)
    crop = one(path, (5, 30, 25, 60), PLAIN)
    np.testing.assert_array_equal(np.asarray(crop.image), np.asarray(upright)[30:60, 5:25])
    with pytest.raises(ImageError, match="outside the image, which has 40 x 60"):
        one(path, (45, 0, 60, 40), PLAIN)


def test_sub_pixel_boxes_show_a_pixel():
    image = noise(20, 20)
    crop = one(image, (3.4, 7.1, 3.5, 7.2), CropRule(scale=1.0, blur=None))
    assert crop.box_xyxy == pytest.approx((2.95, 6.65, 3.95, 7.65))
    assert crop.picture.size == (1, 1)
    corner = one(image, (-3.0, -3.0, 0.01, 0.01), CropRule(scale=1.0, shape="box"))
    assert corner.box_xyxy == (0, 0, 1, 1)
    np.testing.assert_array_equal(np.asarray(corner.image)[0, 0], np.asarray(image)[0, 0])


def test_a_wrong_box_is_told_and_the_others_go_on():
    boxes = [(0, 0, 5, 5), (50, 0, 60, 9), (3, 3, 3, 3), (0, 0, float("nan"), 1), (1, 2, 3), (1, 1, 9, 9)]
    told = []
    found = list(
        crops(noise(20, 20), boxes, PLAIN, on_error=lambda i, error: told.append((i, type(error), str(error))))
    )
    assert [crop.box_xyxy for crop in found] == [(0, 0, 5, 5), (1, 1, 9, 9)]
    assert [(i, kind) for i, kind, _ in told] == [(1, ImageError), (2, InputError), (3, InputError), (4, InputError)]
    assert "box 1: (50.0, 0.0, 60.0, 9.0) lies outside the image, which has 20 x 20 pixels" in told[0][2]
    with pytest.raises(InputError, match="box 2: box_xyxy must be four numbers"):
        list(crops(noise(20, 20), [boxes[0], boxes[0], boxes[2]], PLAIN))


def test_one_image_is_decoded_once_and_blurred_once(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    noise(64, 64).save(path)
    counts = {"load": 0, "blur": 0}
    import rarvision.regions.cropping as cropping

    def counted(name, function):
        def call(*args):
            counts[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(cropping, "load_image", counted("load", cropping.load_image))
    monkeypatch.setattr(cropping, "BlurredCopy", counted("blur", cropping.BlurredCopy))
    boxes = [(i, i, i + 8, i + 8) for i in range(50)]
    assert len(list(crops(path, boxes))) == 50
    assert counts == {"load": 1, "blur": 1}
    samples = [Sample(source=f"{i}", image=path, box_xyxy=box) for i, box in enumerate(boxes)]
    assert len(list(iter_crops(samples))) == 50
    assert counts == {"load": 2, "blur": 2}


MANY_BOXES = """
import resource
import numpy as np
from PIL import Image
from rarvision.regions import CropRule, crops, iter_crops
from rarvision.types import Sample

image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
rule = CropRule(scale=2.0, blur=None, darkening=0.5)

def boxes(count):
    for number in range(count):
        x, y = number % 600, number % 440
        yield (x, y, x + 30, y + 30)

def consume(count):
    assert sum(1 for _ in crops(image, boxes(count), rule)) == count
    samples = (Sample(source="s", image=image, box_xyxy=box) for box in boxes(count))
    assert sum(1 for _ in iter_crops(samples, rule, threads=2)) == count
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

first = consume(1_000)
print(consume(100_000) - first)
"""


@pytest.mark.slow
def test_a_hundred_thousand_boxes_of_one_image_take_no_more_memory_than_a_thousand():
    pytest.importorskip("resource", reason="the system does not tell a process's memory")
    done = subprocess.run([sys.executable, "-c", MANY_BOXES], capture_output=True, text=True, timeout=280, check=True)
    assert int(done.stdout) < 30_000, "kB; the crops together are a gigabyte"


def test_a_crop_of_a_huge_box_stays_small():
    crop = one(Image.new("RGB", (9000, 60), "red"), (0, 0, 9000, 60), CropRule(scale=2.0, blur=Blur(share=0.2)))
    assert crop.picture.size == (18000, 18000)
    assert max(crop.picture.image.size) < 2048


# streams


def many(tmp_path, images=5, boxes=40):
    generator = np.random.default_rng(0)
    for number in range(images):
        path = tmp_path / f"{number}.png"
        noise(80, 60, seed=number).save(path)
        for index in range(boxes if number != 2 else 0):
            x, y = generator.uniform(0, 60, 2)
            yield Sample(source=f"{number}/{index}", image=path, label="a", box_xyxy=(x, y, x + 15, y + 12))
        yield Sample(source=f"{number}/whole", image=path)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_stream_gives_what_single_crops_give_in_order(tmp_path, overlap):
    samples = list(many(tmp_path))
    rule = CropRule(scale=2.0)
    streamed = list(iter_crops(samples, rule, threads=3, overlap=overlap))
    assert [sample for sample, _ in streamed] == samples
    for sample, crop in streamed[::7]:
        box = sample.box_xyxy or (0, 0, 80, 60)
        assert crop.image == one(sample.image, box, rule).image


def test_an_encoder_gets_batches_across_images(tmp_path):
    encoder, samples = FakeEncoder(dim=8), list(many(tmp_path, images=3, boxes=7))
    stream = iter_crops(samples, prepare=encoder.prepare, overlap=encoder.overlaps)
    rows = []
    while batch := list(itertools.islice(stream, 6)):
        rows.append(encoder.encode_prepared([prepared for _, prepared in batch]))
    expected = encoder.encode_images([one(s.image, s.box_xyxy or (0, 0, 80, 60), CropRule()).image for s in samples])
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-5)


def test_a_stream_tells_what_fails_and_goes_on(tmp_path):
    good = Sample(source="good", image=noise(20, 20), box_xyxy=(0, 0, 5, 5))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    bad = [Sample(source=f"bad {i}", image=broken, box_xyxy=(0, 0, 5, 5)) for i in range(3)]
    outside = Sample(source="outside", image=good.image, box_xyxy=(50, 0, 60, 9))
    told = []
    found = list(iter_crops([good, *bad, outside, good], on_error=lambda s, error: told.append((s.source, str(error)))))
    assert [sample.source for sample, _ in found] == ["good", "good"]
    assert [source for source, _ in told] == ["bad 0", "bad 1", "bad 2", "outside"]
    assert "outside: (50, 0, 60, 9) lies outside" in told[-1][1]
    with pytest.raises(ImageError, match="not an image"):
        list(iter_crops([good, *bad]))
    with pytest.raises(OptionError, match="threads"):
        iter_crops([good], threads=0)


def test_a_stream_reads_no_further_than_it_must(tmp_path):
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield Sample(source=str(number), image=noise(8, 8), box_xyxy=(0, 0, 4, 4))

    before = threading.active_count()
    stream = iter_crops(endless(), threads=2)
    assert [sample.source for sample, _ in itertools.islice(stream, 10)] == [str(i) for i in range(10)]
    assert len(read) < 10 + 4 + 2
    stream.close()
    assert threading.active_count() == before


# the docstrings


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(rarvision.regions.__path__)])
def test_docstrings_are_doctested(name):
    module = importlib.import_module(f"rarvision.regions.{name}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_the_public_names_are_there():
    assert rarvision.CropRule is CropRule
    assert rarvision.crops is crops
    assert rarvision.iter_crops is iter_crops
