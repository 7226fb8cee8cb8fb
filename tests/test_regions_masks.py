"""Masks against plain rewrites of COCO's own code and against pycocotools, and crops whose sharp part is a mask."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from needs import need
from rarvision.errors import ImageError, InputError
from rarvision.regions import Blur, CropRule, PolygonMask, RunLengthMask, crops, iter_crops, read_mask
from rarvision.types import Sample


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def runs_of(pixels):
    """As rleEncode of the COCO API: columns, one run after another, beginning with not-object."""
    counts, last, run = [], 0, 0
    for value in pixels.T.reshape(-1):
        if value != last:
            counts.append(run)
            run, last = 0, value
        run += 1
    return [*counts, run]


def text_of(counts):
    """As rleToString of the COCO API."""
    characters = []
    for index, count in enumerate(counts):
        x = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            characters.append(chr((c | 0x20 if more else c) + 48))
    return "".join(characters)


def shown(mask, size, window=None, reduced=1):
    return np.asarray(mask.part(window or (0, 0, *size), size, reduced=reduced))


@st.composite
def pixel_masks(draw):
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    bits = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width).filter(any))
    return np.array(bits).reshape(height, width)


@given(pixel_masks(), st.data())
def test_run_lengths_are_coco_s(pixels, data):
    height, width = pixels.shape
    counts = runs_of(pixels)
    plain = read_mask({"size": [height, width], "counts": counts}, size=(width, height))
    for counts_given in (text_of(counts), text_of(counts).encode()):
        assert read_mask({"size": [height, width], "counts": counts_given}) == plain
    np.testing.assert_array_equal(shown(plain, (width, height)), pixels * 255)
    left, upper = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, lower = data.draw(st.integers(left + 1, width)), data.draw(st.integers(upper + 1, height))
    window = (left, upper, right, lower)
    np.testing.assert_array_equal(shown(plain, (width, height), window), pixels[upper:lower, left:right] * 255)
    ys, xs = np.nonzero(pixels)
    assert plain.box_xyxy == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_large_run_lengths_survive_the_compression(counts):
    counts = [*counts, 1, 1] if len(counts) % 2 == 0 else [*counts, 1]
    mask = read_mask({"size": [1, sum(counts)], "counts": text_of(counts)})
    assert mask.counts == tuple(counts)


def test_run_lengths_that_are_empty_in_between_count():
    mask = RunLengthMask(size=(4, 2), counts=(0, 1, 0, 2, 5))
    assert shown(mask, (4, 2)).tolist() == [[255, 255, 0, 0], [255, 0, 0, 0]]
    assert mask.box_xyxy == (0, 0, 2, 2)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [2, 3], "counts": [2, 1, 4]}, "add up to 6, got 7"),
        ({"size": [2, 3], "counts": [7, -1]}, "some negative"),
        ({"size": [2, 3], "counts": [6]}, "empty"),
        ({"size": [2, 3], "counts": "2\x01"}, "character"),
        ({"size": [2, 3], "counts": "2P"}, "middle of a number"),
        ({"size": [2, 3], "counts": "ooooooooooooooooooooooo"}, "character"),
        ({"size": [2, 3], "counts": "é"}, "size"),
        ({"size": [2, 3]}, "counts"),
        ({"size": [2], "counts": [6]}, "size"),
        ({"size": [0, 3], "counts": []}, "width and height"),
        ({"size": [2, 3], "counts": None}, "counts"),
        ([], "at least one polygon"),
        ([[0, 0, 1, 1]], "three corners"),
        ([[0, 0, 1, 1, 2]], "three corners"),
        ([[0, 0, 1, 1, 2, float("nan")]], "three corners"),
        ([0, 0, 1, 1, 2, 2], "list of lists"),
        ("polygon", "list of polygons"),
        (None, "list of polygons"),
    ],
)
def test_damaged_masks_are_told(segmentation, message):
    with pytest.raises(InputError, match=message):
        read_mask(segmentation)


def test_a_mask_of_another_size_is_refused():
    mask = {"size": [2, 3], "counts": [2, 1, 3]}
    with pytest.raises(InputError, match="3 x 2 pixels, the image has 2 x 3"):
        read_mask(mask, size=(2, 3))
    with pytest.raises(ImageError, match="3 x 2 pixels, this one has 9 x 9"):
        list(crops(noise(9, 9), [(0, 0, 5, 5)], masks=[read_mask(mask)]))


def inside(polygon, width, height, finer=8):
    """Share of each pixel inside, by the even-odd rule at the middles of finer pixels."""
    y, x = (np.mgrid[0 : height * finer, 0 : width * finer] + 0.5) / finer
    xs, ys = polygon[::2], polygon[1::2]
    odd = np.zeros(x.shape, dtype=bool)
    for x0, y0, x1, y1 in zip(xs, ys, np.roll(xs, -1), np.roll(ys, -1), strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return odd.reshape(height, finer, width, finer).mean(axis=(1, 3))


def distance(corners, width, height):
    """From the middle of each pixel to the closest edge."""
    points = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    found = np.full((height, width), np.inf)
    for start, end in zip(np.array(corners), np.roll(corners, -1, axis=0), strict=True):
        along = end - start
        share = ((points - start) @ along / max(along @ along, 1e-12)).clip(0, 1)
        found = np.minimum(found, np.linalg.norm(points - start - share[..., None] * along, axis=-1))
    return found


SIXTEENTHS = [st.integers(0, 16 * side).map(lambda n: n / 16) for side in (30, 20)]


@settings(max_examples=40)
@given(st.lists(st.tuples(SIXTEENTHS[0], SIXTEENTHS[1]), min_size=3, max_size=3), st.integers(1, 3))
def test_a_triangle_covers_its_pixels(corners, reduced):
    polygon = [value for corner in corners for value in corner]
    found = shown(PolygonMask(polygons=(tuple(polygon),)), (30, 20)) / 255
    expected = inside(polygon, 30, 20)
    far = distance(corners, 30, 20) > 1
    np.testing.assert_array_equal(found[far], expected[far])
    assert np.abs(found - expected).max() <= 0.7, "an edge is drawn a quarter of a pixel thick at most"
    small = shown(PolygonMask(polygons=(tuple(polygon),)), (30, 20), reduced=reduced) / 255
    whole = np.asarray(Image.fromarray((expected * 255).astype(np.uint8)).reduce(reduced)) / 255
    assert small.shape == whole.shape
    assert np.abs(small - whole).mean() < 0.15


def test_whole_pixel_polygons_and_their_union():
    mask = read_mask([[2, 1, 6, 1, 6, 4, 2, 4], [5, 3, 9, 3, 9, 6, 5, 6]])
    expected = np.zeros((8, 12))
    expected[1:4, 2:6] = expected[3:6, 5:9] = 1
    found = shown(mask, (12, 8)) / 255
    np.testing.assert_array_equal(found[expected == 1], 1)
    assert np.abs(found - expected).max() <= 0.5
    window = (3, 2, 10, 8)
    np.testing.assert_array_equal(shown(mask, (12, 8), window), (found * 255).astype(np.uint8)[2:8, 3:10])
    assert mask.box_xyxy == (2, 1, 9, 6)


@pytest.mark.parametrize("keep_side", [1024, 20])
@pytest.mark.parametrize("padding", [(1, 2, 3), "edge", "clip"])
def test_the_mask_stays_sharp_instead_of_the_box(padding, keep_side):
    image = noise(80, 60)
    pixels = np.zeros((60, 80), dtype=bool)
    pixels[10:30, 20:50] = np.random.default_rng(1).random((20, 30)) < 0.5
    mask = read_mask({"size": [60, 80], "counts": text_of(runs_of(pixels))})
    rule = CropRule(scale=2.0, shape="box", blur=Blur(pixels=3), padding=padding, keep_side=keep_side)
    (crop,) = crops(image, [(20, 10, 50, 30)], rule, masks=[mask])
    composed = np.where(pixels[..., None], np.asarray(image), image.filter(ImageFilter.GaussianBlur(3)))
    expected = Image.fromarray(composed.astype(np.uint8)).crop((5, 0, 65, 40))
    if keep_side == 20:
        found = crop.picture.resized((12, 8), Image.Resampling.BOX)
        assert np.abs(np.asarray(found).astype(float) - np.asarray(expected.reduce(5))).mean() < 12
    else:
        np.testing.assert_array_equal(np.asarray(crop.image), np.asarray(expected))


def test_boxes_with_and_without_masks_and_the_wrong_number_of_them():
    image, box = noise(40, 40), (10, 10, 20, 20)
    mask = PolygonMask(polygons=((12, 12, 18, 12, 18, 18, 12, 18),))
    with_mask, without = crops(image, [box, box], masks=[mask, None])
    (alone,) = crops(image, [box])
    assert without.image == alone.image
    assert with_mask.image != alone.image
    with pytest.raises(InputError, match=r"as many masks as boxes.*got 1, and more boxes"):
        list(crops(image, [box, box], masks=[mask]))
    with pytest.raises(InputError, match=r"as many masks as boxes.*got more masks"):
        list(crops(image, [box], masks=[mask, None]))


def test_a_stream_takes_masks_from_its_samples():
    image, box = noise(40, 40), (10, 10, 20, 20)
    polygon = [[12, 12, 18, 12, 18, 18, 12, 18]]
    rows = [polygon, None, "damaged"]
    samples = [
        Sample(source=str(i), image=image, box_xyxy=box, metadata=json.loads(json.dumps({"segmentation": row})))
        for i, row in enumerate(rows)
    ]

    def mask_of(sample):
        given = sample.metadata["segmentation"]
        return None if given is None else read_mask(given)

    told = []
    found = list(iter_crops(samples, mask_of=mask_of, on_error=lambda sample, error: told.append(sample.source)))
    expected = list(crops(image, [box, box], masks=[read_mask(polygon), None]))
    assert [crop.image for _, crop in found] == [crop.image for crop in expected]
    assert told == ["2"]


quiet = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools, in numpy 2


def pycocotools_mask():
    need("pycocotools", group="detection")
    return importlib.import_module("pycocotools.mask")


@quiet
@settings(max_examples=60)
@given(pixel_masks())
def test_run_lengths_are_those_of_pycocotools(pixels):
    theirs = pycocotools_mask()
    height, width = pixels.shape
    compressed = theirs.encode(np.asfortranarray(pixels.astype(np.uint8)))
    plain = {"size": [height, width], "counts": runs_of(pixels)}
    again = theirs.frPyObjects(plain, height, width)
    assert again["counts"] == compressed["counts"]
    for segmentation in (compressed, plain, compressed | {"counts": compressed["counts"].decode()}):
        mask = read_mask(segmentation, size=(width, height))
        np.testing.assert_array_equal(shown(mask, (width, height)), theirs.decode(compressed) * 255)
        left, upper, wide, high = theirs.toBbox(compressed)
        assert mask.box_xyxy == (left, upper, left + wide, upper + high)


def compare_with_pycocotools(theirs, polygons, size):
    """The pixels in which both differ (ours counted from a half on), and how far those are from any edge."""
    width, height = size
    expected = theirs.decode(theirs.merge(theirs.frPyObjects(polygons, height, width))).astype(bool)
    found = shown(read_mask(polygons), size) >= 128
    ys, xs = np.nonzero(found != expected)
    points, nearest = np.column_stack((xs, ys))[:, None] + 0.5, np.full(len(xs), np.inf)
    for polygon in polygons:
        starts = np.array(polygon).reshape(-1, 2)
        along = np.roll(starts, -1, axis=0) - starts
        share = ((points - starts) * along).sum(-1) / np.maximum((along * along).sum(-1), 1e-12)
        gaps = np.linalg.norm(points - starts - share.clip(0, 1)[..., None] * along, axis=-1)
        nearest = np.minimum(nearest, gaps.min(axis=1))
    return expected, found, nearest.max(initial=0.0)


@quiet
@pytest.mark.data
def test_polygons_of_a_real_file_are_those_of_pycocotools(data_dir):
    theirs = pycocotools_mask()
    truth = json.loads((data_dir / "lvis" / "lvis_v0.5_val_100.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    common = union = ours = official = 0
    for row in truth["annotations"][::7]:
        expected, found, farthest = compare_with_pycocotools(theirs, row["segmentation"], sizes[row["image_id"]])
        assert farthest <= 1.5, f"annotation {row['id']}: more than the edge differs"
        common, union = common + int((expected & found).sum()), union + int((expected | found).sum())
        ours, official = ours + int(found.sum()), official + int(expected.sum())
    assert common / union > 0.98
    assert abs(ours / official - 1) < 0.01
