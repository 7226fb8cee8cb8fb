"""Windows of neighbours by hand, and the halves of a memory."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rarvision.tuning.windows import ranking_windows, split_halves


def test_windows_by_hand():
    """Six neighbours, windows of three: four of them.

    0: cat dog cat -> cat, dog. 1: dog cat fox. 2: cat fox fox -> cat, fox. 3: fox fox dog: no cat.
    """
    found, left_out = ranking_windows("cat", ["cat", "dog", "cat", "fox", "fox", "dog"], k=3, seed=0, key="1")
    assert [(window.number, window.retrieved, window.target) for window in found] == [
        (0, ("cat", "dog"), ("cat", "dog")),
        (1, ("dog", "cat", "fox"), ("cat", "dog", "fox")),
        (2, ("cat", "fox"), ("cat", "fox")),
    ]
    assert left_out == {"without_label": 1}
    assert all(sorted(window.candidates) == sorted(window.retrieved) for window in found)


def test_windows_of_the_authors_by_hand():
    """The same neighbours: names repeat and stay in their order, the true one comes first with its repeats."""
    found, left_out = ranking_windows(
        "cat", ["cat", "dog", "cat", "fox", "fox", "dog"], k=3, seed=0, key="1", paper_compat=True
    )
    assert [(window.candidates, window.target) for window in found] == [
        (("cat", "dog", "cat"), ("cat", "cat", "dog")),
        (("dog", "cat", "fox"), ("cat", "dog", "fox")),
        (("cat", "fox", "fox"), ("cat", "fox", "fox")),
    ]
    assert left_out == {"without_label": 1}


def test_completed_windows_by_hand():
    """Windows go on until they hold three names: 0, 1, 2: cat dog fox, dog cat fox, cat fox dog; 3: fox dog."""
    found, left_out = ranking_windows(
        "cat", ["cat", "dog", "cat", "fox", "fox", "dog"], k=3, seed=0, key="1", fill=True
    )
    assert [window.retrieved for window in found] == [
        ("cat", "dog", "fox"),
        ("dog", "cat", "fox"),
        ("cat", "fox", "dog"),
    ]
    assert left_out == {"without_label": 1}


def test_windows_that_ask_nothing_or_the_same_are_left_out():
    found, left_out = ranking_windows("a", ["a", "a", "b", "a", "b", "b"], k=2, seed=0, key="1")
    assert [(window.number, window.retrieved) for window in found] == [(1, ("a", "b")), (2, ("b", "a"))]
    assert left_out == {"single_name": 1, "repeated": 1, "without_label": 1}


def test_twenty_neighbours_give_sixteen_windows():
    names = [f"name {number}" for number in range(20)]
    for rank, windows in ((0, 1), (1, 2), (4, 5), (10, 5), (18, 2), (19, 1)):
        for compat in (True, False):
            found, left_out = ranking_windows(names[rank], names, k=5, seed=0, key="1", paper_compat=compat)
            assert len(found) == windows
            assert len(found) + left_out.total() == 16


def test_names_are_shown_in_a_random_order_that_is_always_the_same():
    names = list("abcde")
    orders = {
        ranking_windows("a", names, k=5, seed=seed, key=str(key))[0][0].candidates
        for seed in (0, 1)
        for key in range(20)
    }
    assert len(orders) > 20
    first = Counter(ranking_windows("a", names, k=5, seed=0, key=str(key))[0][0].candidates[0] for key in range(500))
    assert all(60 < count < 140 for count in first.values()), first
    again = [ranking_windows("a", names, k=5, seed=7, key="x")[0][0].candidates for _ in range(2)]
    assert again[0] == again[1] == ("c", "e", "a", "d", "b")  # the same on every machine


def test_at_most_so_many_windows_are_chosen_at_random():
    names = ["a", "b", "c", "a", "d", "e", "a", "f", "g"]
    every, _ = ranking_windows("a", names, k=3, seed=0, key="1")
    assert len(every) == 7
    chosen = [ranking_windows("a", names, k=3, seed=seed, key="1", max_windows=2) for seed in range(20)]
    for found, left_out in chosen:
        assert len(found) == 2
        assert found[0].number < found[1].number
        assert {window.number for window in found} <= {window.number for window in every}
        assert left_out["over_limit"] == 5
    assert len({tuple(window.number for window in found) for found, _ in chosen}) > 5


@given(st.lists(st.sampled_from("abcd"), min_size=3, max_size=12), st.integers(2, 3), st.booleans())
def test_every_window_keeps_the_promises(names, k, fill):
    found, left_out = ranking_windows("a", names, k=k, seed=0, key="1", fill=fill)
    assert len(found) + left_out.total() == len(names) - k + 1
    for window in found:
        assert len(set(window.candidates)) == len(window.candidates) <= k
        assert window.target[0] == "a"
        assert [name for name in window.retrieved if name != "a"] == list(window.target[1:])


# The halves ---------------------------------------------------------------------------------------------------------


def test_halves_are_of_each_category():
    codes = np.array([7, 3, 7, 3, 7, 9, 7, 7, 3])  # five of 7, three of 3, one of 9
    names = {7: "seven", 3: "three", 9: "nine"}
    half = split_halves(codes, names, seed=0)
    assert [int(half[codes == code].sum()) for code in (7, 3, 9)] == [3, 2, 1]
    assert len({split_halves(codes, names, seed=seed).tobytes() for seed in range(20)}) > 5


def test_halves_depend_on_names_not_on_numbers_or_neighbours():
    alone = split_halves(np.array([1, 1, 1, 1]), {1: "a"}, seed=4)
    among = split_halves(np.array([8, 5, 8, 5, 8, 8]), {8: "a", 5: "b"}, seed=4)
    assert among[[0, 2, 4, 5]].tolist() == alone.tolist()
    assert split_halves(np.array([], dtype=np.int64), {}, seed=0).tolist() == []
