"""The contract that every dataset meets."""

from __future__ import annotations

import json

import numpy as np

from rarvision.datasets.base import Dataset
from rarvision.images import load_image

__all__ = ["check_dataset"]

_OPENED = 5


def check_dataset(dataset: Dataset) -> None:
    """Check that a dataset keeps the contract: stable, unique sources; readable images; nested few-shot samples.

    Args:
        dataset: With at least one sample. A few of its images are opened.

    Raises:
        AssertionError: What is not kept.
    """
    _require(bool(dataset.name), "name must not be empty")
    n = len(dataset)
    _require(n > 0, "a dataset to check needs at least one sample")
    items = dataset.items
    _require(len(items) == n, f"{len(items)} items for {n} samples")
    _require(len({item.source for item in items}) == n, "sources must be unique")
    _require(
        [(item.source, item.label) for item in items] == [(item.source, item.label) for item in dataset.items],
        "items must be the same each time",
    )
    labels = list(dict.fromkeys(item.label for item in items if item.label is not None))
    _require(list(dataset.categories) == labels, "categories must be the labels in order of first appearance")
    _check_samples(dataset)
    if all(item.label is not None for item in items):
        _check_few_shot(dataset)


def _check_samples(dataset: Dataset) -> None:
    for index in sorted({int(i) for i in np.linspace(0, len(dataset) - 1, _OPENED)}):
        sample, item = dataset[index], dataset.items[index]
        _require(
            (sample.source, sample.label) == (item.source, item.label),
            f"sample {index} is {sample.source!r}, its item {item.source!r}",
        )
        json.dumps(dict(sample.metadata), allow_nan=False)
        first, again = load_image(sample.image), load_image(dataset[index].image)
        _require(np.array_equal(np.asarray(first), np.asarray(again)), f"sample {index} has another image each time")
    streamed = next(iter(dataset))
    _require(streamed.source == dataset[0].source, "iteration must begin with sample 0")
    try:
        dataset[len(dataset)]
    except IndexError:
        return
    _require(False, f"dataset[{len(dataset)}] must raise IndexError")


def _check_few_shot(dataset: Dataset) -> None:
    small, large = ({item.source for item in dataset.few_shot(shots=shots, seed=3).items} for shots in (1, 2))
    _require(small <= large, "fewer shots must be a subset of more, with the same seed")
    one = dataset.few_shot(shots=1, seed=3)
    _require(set(dataset.categories) <= set(one.categories), "few_shot must keep every category")
    _require(len(one) == len(one.categories), "one shot must be one sample a category")


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - it reads as an assertion
    if not condition:
        raise AssertionError(message)
