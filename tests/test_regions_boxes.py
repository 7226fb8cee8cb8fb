"""Boxes of regions in every notation, and scales fitted to their sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarvision.errors import DatasetError, ImageError, InputError, OptionError
from rarvision.regions import (
    AdaptiveScale,
    accuracy_by_size,
    check_boxes_xywh,
    clipped_box,
    fit_adaptive_scale,
    to_xyxy,
)


def test_notations_mean_the_same_boxes():
    expected = [[10, 20, 40, 25], [0.5, 1, 2.5, 7]]
    assert to_xyxy(expected).tolist() == expected
    assert to_xyxy([[10, 20, 30, 5], [0.5, 1, 2, 6]], notation="xywh").tolist() == expected
    assert to_xyxy([[25, 22.5, 30, 5], [1.5, 4, 2, 6]], notation="cxcywh").tolist() == expected
    assert to_xyxy([]).shape == (0, 4)


def test_empty_boxes_pass_where_that_is_asked_for_and_negative_ones_never():
    empty = [[10, 20, 0, 5], [1, 1, 2, 0]]
    with pytest.raises(InputError, match="box 0 has no inside"):
        to_xyxy(empty, notation="xywh")
    assert to_xyxy(empty, notation="xywh", allow_empty=True).tolist() == [[10, 20, 10, 25], [1, 1, 3, 1]]
    check_boxes_xywh(np.array(empty, dtype=float), str)
    for wrong in ([5.0, 5.0, -1.0, 5.0], [0.0, 0.0, float("nan"), 1.0]):
        with pytest.raises(InputError, match="box 0 is of negative size or is no number"):
            to_xyxy([wrong], notation="xywh", allow_empty=True)
        with pytest.raises(DatasetError, match=r"row 1: .*width and height not negative.*1 such"):
            check_boxes_xywh(np.array([[0, 0, 0, 0], wrong]), "row {}".format)


numbers = st.floats(-1e4, 1e4)
lengths = st.floats(1e-3, 1e4)


@given(st.lists(st.tuples(numbers, numbers, lengths, lengths), min_size=1, max_size=5), st.integers(1, 5000))
def test_every_notation_agrees_with_xyxy_normalised_or_not(boxes, width):
    xywh = np.array(boxes)
    corners = to_xyxy(xywh, notation="xywh")
    np.testing.assert_array_equal(corners[:, :2], xywh[:, :2])
    np.testing.assert_allclose(corners[:, 2:], xywh[:, :2] + xywh[:, 2:])
    centres = np.concatenate((xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]), axis=1)
    np.testing.assert_allclose(to_xyxy(centres, notation="cxcywh"), corners, atol=1e-8)
    np.testing.assert_array_equal(to_xyxy(corners), corners)
    shares = corners / 1e4
    np.testing.assert_allclose(to_xyxy(shares, normalised_to=(width, 77)), shares * [width, 77, width, 77], rtol=1e-12)


@pytest.mark.parametrize(
    ("boxes", "options", "message"),
    [
        ([[0, 0, 5, 5], [3, 3, 3, 9]], {}, r"box 1 has no inside.*\[3.0, 3.0, 3.0, 9.0\] read as xyxy \(1 of 2"),
        ([[0, 0, 0, 5]], {"notation": "xywh"}, "box 0 has no inside"),
        ([[5, 5, -1, 5]], {"notation": "cxcywh"}, "box 0 has no inside"),
        ([[float("nan"), 0, 1, 1]], {}, "is no number"),
        ([[0, 0, float("inf"), 1]], {}, "is no number"),
        ([[0, 0, 1]], {}, r"shape \(1, 3\)"),
        ([0, 0, 1, 1], {}, r"shape \(4,\)"),
        ([["a", 0, 1, 1]], {}, "n x 4 numbers"),
        ([[0, 0, 100, 100]], {"normalised_to": (640, 480)}, "leave out normalised_to"),
        ([[0, 0, 1, 1]], {"normalised_to": (0, 480)}, "width and height"),
        ([[0, 0, 1, 1]], {"notation": "yxyx"}, "xyxy, xywh, cxcywh"),
    ],
)
def test_wrong_boxes_are_told(boxes, options, message):
    with pytest.raises(InputError, match=message):
        to_xyxy(boxes, **options)


@given(
    st.floats(-300, 300), st.floats(-300, 300), st.floats(1e-6, 400), st.floats(1e-6, 400),
    st.integers(1, 200), st.integers(1, 200),
)  # fmt: skip
def test_a_clipped_box_lies_inside_and_has_a_pixel(x, y, wide, high, width, height):
    box = (x, y, x + wide, y + high)
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        with pytest.raises(ImageError, match="outside the image"):
            clipped_box(box, (width, height))
        return
    if box[0] == box[2] or box[1] == box[3]:  # too small for a float
        return
    left, upper, right, lower = clipped_box(box, (width, height))
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height
    assert right - left >= 1 - 1e-9
    assert lower - upper >= 1 - 1e-9
    if wide >= 1 and x >= 0 and x + wide <= width:
        assert (left, right) == (box[0], box[2])


TABLE_12 = {  # with blur: small, medium, large
    1.0: (33.6, 63.5, 72.4), 1.2: (35.2, 64.2, 71.3), 1.4: (41.4, 66.1, 69.5), 1.6: (43.2, 68.3, 69.6),
    1.8: (45.6, 65.2, 67.0), 2.0: (46.3, 64.2, 65.2), 2.2: (46.7, 63.4, 62.9), 2.4: (46.9, 62.2, 60.7),
    2.6: (47.4, 61.0, 59.6), 2.8: (47.4, 59.2, 57.4), 3.0: (47.3, 58.6, 55.2),
}  # fmt: skip


def test_fitting_finds_table_12_s_rule():
    asked = []

    def accuracy(scale):
        asked.append(scale)
        return TABLE_12[scale]

    fit = fit_adaptive_scale(accuracy)
    assert sorted(asked) == sorted(TABLE_12)
    assert fit.rule == AdaptiveScale(scales=(2.6, 1.6, 1.0)), "of 2.6 and 2.8, which are equal, the smaller"
    assert fit.fitted == (True, True, True)
    np.testing.assert_array_equal(fit.accuracies, [TABLE_12[scale] for scale in fit.scales])


def test_a_class_without_objects_keeps_its_scale():
    nan = float("nan")
    start = AdaptiveScale(limits=(10.0,), scales=(2.0, 1.5))
    fit = fit_adaptive_scale(lambda scale: (nan, -abs(scale - 3)), scales=[1, 3, 5], start=start)
    assert fit.rule == AdaptiveScale(limits=(10.0,), scales=(2.0, 3.0))
    assert fit.fitted == (False, True)


def test_a_class_has_its_own_scale_only_where_that_is_clearly_better():
    found = {1.0: (0.30, 0.50, 0.80), 1.2: (0.353, 0.60, 0.70), 1.4: (0.354, 0.55, 0.60)}
    assert fit_adaptive_scale(found.__getitem__, scales=found).rule.scales == (1.4, 1.2, 1.0)
    assert fit_adaptive_scale(found.__getitem__, scales=found, counts=(800, 800, 800)).rule.scales == (1.2, 1.2, 1.0)
    assert fit_adaptive_scale(found.__getitem__, scales=found, counts=(40, 40, 8)).rule.scales == (1.2, 1.2, 1.2)
    missing = {scale: (row[0], float("nan"), row[2]) for scale, row in found.items()}
    assert fit_adaptive_scale(missing.__getitem__, scales=found, counts=(800, 0, 800)).rule.scales == (1.4, 1.6, 1.0)
    with pytest.raises(OptionError, match="objects of each of the 3"):
        fit_adaptive_scale(found.__getitem__, scales=found, counts=(800, 800))
    with pytest.raises(OptionError, match="shares"):
        fit_adaptive_scale(lambda scale: (30.0, 40.0, 50.0), scales=found, counts=(8, 8, 8))


@pytest.mark.parametrize(
    ("accuracy", "scales", "message"),
    [
        (lambda _: (1.0, 1.0), (1.0,), "3 values"),
        (lambda s: (1.0, 1.0, float("nan") if s > 1 else 0.0), (1.0, 2.0), "NaN at some scales only"),
        (lambda _: (float("nan"),) * 3, (1.0,), "nothing to fit"),
        (lambda _: (1.0,) * 3, (), "at least one"),
        (lambda _: (1.0,) * 3, (1, 1.0), "different"),
        (lambda _: (1.0,) * 3, (-1.0,), "above 0"),
    ],
)
def test_what_cannot_be_fitted_is_told(accuracy, scales, message):
    with pytest.raises(OptionError, match=message):
        fit_adaptive_scale(accuracy, scales=scales)


def test_accuracy_by_size_counts():
    boxes = [(0, 0, 31, 33), (0, 0, 32, 32), (0, 0, 95, 97), (0, 0, 96, 96), (0, 0, 500, 2)]
    assert accuracy_by_size([True, True, False, True, False], boxes) == (0.5, 0.5, 1.0)
    assert np.isnan(accuracy_by_size([True], [(0, 0, 1, 1)])[1:]).all()
    with pytest.raises(OptionError, match="answer for each box"):
        accuracy_by_size([True], [])
