"""Whether answers depend on the order in which the candidates are shown: the order-bias audit of a ranker."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from rarvision.datasets.base import Dataset
from rarvision.errors import ImageError, InputError, OptionError
from rarvision.images import Picture, load_image
from rarvision.pipeline import RecognitionFailure, Recognizer
from rarvision.ranking import BaseRanker
from rarvision.runs import RunFile, labels_by_source, markdown_table
from rarvision.types import Ranking, Sample

__all__ = ["AuditedImage", "OrderAudit", "audit_order", "random_orders"]

_STATUSES = ("ranked", "repaired", "fallback")
_AT_A_TIME = 8  # images that a bare ranker is asked about together


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditedImage:
    """One line of an audit's file: what was answered for one image in each order.

    Attributes:
        source: The sample's source.
        label: The true name.
        retrieved: The candidates in retrieval's order.
        orders: How they were shown: ``retrieved[order[i]]`` stood at i.
        answers: For each order, the place of the answer in ``retrieved``.
        statuses: Number of rankings by status.
        unanswered: Whether the MLLM gave no answer in some order; such an image is done again.
        error: Class and message of the failure; None where there were answers.
    """

    source: str
    label: str
    retrieved: tuple[str, ...] = ()
    orders: tuple[tuple[int, ...], ...] = ()
    answers: tuple[int, ...] = ()
    statuses: Mapping[str, int] = field(default_factory=dict)
    unanswered: bool = False
    error: str | None = None

    @property
    def right(self) -> Bool[np.ndarray, " orders"]:
        """Whether the answer was the label, for each order."""
        return np.array([self.retrieved[answer] == self.label for answer in self.answers], dtype=np.bool_)

    @property
    def agreement(self) -> float:
        """Share of the pairs of orders with the same answer, 0 to 1."""
        n = len(self.answers)
        return sum(count * (count - 1) for count in Counter(self.answers).values()) / (n * (n - 1))

    def shown_at(self, name: str) -> list[int | None]:
        """For each order, the first place at which a name was shown; None where it is no candidate."""
        places = {place for place, candidate in enumerate(self.retrieved) if candidate == name}
        return [next((at for at, place in enumerate(order) if place in places), None) for order in self.orders]


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderAudit:
    """How much answers depend on the order of the candidates. All shares lie between 0 and 1.

    Attributes:
        n: Images, failures included; a failure is wrong in every order and left out of all else.
        failures: Images without an answer.
        orders: Random orders in which each image's candidates were shown.
        seed: Of the orders.
        top1_mean: Accuracy of the first name, mean over the orders.
        top1_min: The same of the worst of them.
        top1_max: Of the best.
        changing: Share of the images whose answer is another in at least one order.
        agreement: Share of the pairs of orders with the same answer, mean over the images.
        picked: For each place of the list, the share of all answers that stood there.
        truth: For each place, the share of all lists in which the true name stood there.
        right_at: For each place, the accuracy where the true name stood there; None where it never did.
        statuses: Number of rankings by status, all orders together.
        version: Of this package.
        dataset: The dataset's name.
        ranker: The ranker's name.
        configuration: All that the result depends on.
    """

    n: int
    failures: int
    orders: int
    seed: int
    top1_mean: float
    top1_min: float
    top1_max: float
    changing: float
    agreement: float
    picked: tuple[float, ...]
    truth: tuple[float, ...]
    right_at: tuple[float | None, ...]
    statuses: Mapping[str, int]
    version: str
    dataset: str
    ranker: str
    configuration: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        lists = {key: list(getattr(self, key)) for key in ("picked", "truth", "right_at")}
        return {**asdict(self), **lists}

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def table(self) -> list[tuple[str, str]]:
        """Rows for people: what, and its value with its unit."""
        places = [
            (f"place {at}", f"picked {picked:.1%}, true name there {truth:.1%}, right then {_share(right)}")
            for at, (picked, truth, right) in enumerate(zip(self.picked, self.truth, self.right_at, strict=True), 1)
        ]
        return [
            ("dataset", self.dataset),
            ("ranker", self.ranker),
            ("images", f"{self.n:,}"),
            ("failures", f"{self.failures:,}"),
            ("orders", f"{self.orders:,} (seed {self.seed})"),
            ("top-1", f"{self.top1_mean:.1%} (worst order {self.top1_min:.1%}, best {self.top1_max:.1%})"),
            ("answers that change", f"{self.changing:.1%} of the images"),
            ("agreement", f"{self.agreement:.1%} of the pairs of orders"),
            *places,
            *((f"{status} rankings", f"{count:,}") for status, count in self.statuses.items()),
            ("rarvision", self.version),
        ]

    def to_markdown(self) -> str:
        """A table in Markdown."""
        return markdown_table(self.table())


def audit_order(
    asked: Recognizer | BaseRanker,
    dataset: Dataset,
    *,
    candidates: Sequence[Sequence[str]] | None = None,
    orders: int = 20,
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> OrderAudit:
    """Show each image's candidates in random orders and compare the answers.

    A recognizer's answer is its prediction, in which retrieval's prior takes part: with ``ranker_weight="replace"`` it
    is the ranker's alone. An image is encoded once for all orders; a local model also computes it once (see
    `rarvision.LocalChat`).

    Args:
        asked: A recognizer with a ranker; or a ranker, with ``candidates``.
        dataset: Labelled images with unique sources.
        candidates: For a ranker: the names for each of the dataset's images, in retrieval's order. Where the ranking
            is a fallback, the first of them is the answer.
        orders: In how many orders each image's candidates are shown, at least 2.
        seed: Of the orders; an image's depend on the seed, its source and the number of its candidates alone.
        out: A JSONL file: a header, then a line an image (`AuditedImage`); resumes as that of `rarvision.evaluate`.
        resume: Whether to go on with an existing ``out``; False starts it anew.
        progress: Called with the number of images done, those of earlier runs included, and of all.

    Returns:
        The audit of all images, earlier runs' included.

    Raises:
        OptionError: Less than two orders, no ranker, or ``candidates`` that do not go with ``asked``.
        DatasetError: The dataset is empty, or has a missing label or a repeated source.
        InputError: ``out`` holds another configuration's results, or is no such file; not one list of candidates an
            image.
        ChatError: The MLLM cannot answer, and the recogniser may not fall back.
    """
    if orders < 2:
        raise OptionError(f"orders must be at least 2 to be compared, got {orders}")
    ranker = _ranker_of(asked, dataset, candidates)
    labels = labels_by_source(dataset)
    configuration = {
        "rarvision": version("rarvision"),
        "audit": {"orders": orders, "seed": seed},
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        **(asked.settings if isinstance(asked, Recognizer) else {"ranker": dict(asked.settings)}),
    }
    if candidates is not None:
        configuration["candidates"] = zlib.crc32(json.dumps([list(names) for names in candidates]).encode())
    with RunFile(out, configuration, read=_read_line, resume=resume) as file:
        left = [index for index, item in enumerate(dataset.items) if item.source not in file.done]
        finished = len(labels) - len(left)
        if progress is not None:
            progress(finished, len(labels))

        def draw(source: str, n: int) -> list[list[int]]:
            return random_orders(source, n, orders=orders, seed=seed)

        if isinstance(asked, Recognizer):
            images = _by_recognizer(asked, (dataset[index] for index in left), labels, draw)
        else:
            images = _by_ranker(asked, dataset, left, candidates or (), draw)
        with closing(images):
            for image in images:
                file.add(image.source, asdict(image), image)
                finished += 1
                if progress is not None:
                    progress(finished, len(labels))
        done = [file.done[source] for source in labels]
    return _audit(done, ranker, dataset, configuration, orders=orders, seed=seed)


def _ranker_of(
    asked: Recognizer | BaseRanker, dataset: Dataset, candidates: Sequence[Sequence[str]] | None
) -> BaseRanker:
    """Who shows the lists, checked with what else is given."""
    ranker = asked.ranker if isinstance(asked, Recognizer) else asked
    if ranker is None:
        raise OptionError("an audit of the order needs a recognizer with a ranker; retrieval shows no list")
    if isinstance(asked, Recognizer) != (candidates is None):
        raise OptionError("candidates go with a bare ranker, and with nothing else: a recognizer retrieves its own")
    if candidates is not None and len(candidates) != len(dataset):
        raise InputError(f"expected one list of candidates an image: {len(dataset)} images, {len(candidates)} lists")
    return ranker


def random_orders(source: str, n: int, *, orders: int, seed: int) -> list[list[int]]:
    """Random permutations of n places: the same for the same seed, source and n, on every machine.

    Returns:
        Permutations; ``order[i]`` is the place of the name shown at i.
    """
    draws = np.random.default_rng([seed, zlib.crc32(source.encode("utf-8", "surrogatepass")), n])
    return [[int(place) for place in draws.permutation(n)] for _ in range(orders)]


def _by_recognizer(
    recognizer: Recognizer,
    samples: Iterator[Sample],
    labels: Mapping[str, str],
    draw: Callable[[str, int], list[list[int]]],
) -> Generator[AuditedImage]:
    with closing(recognizer.iter_reordered(samples, draw)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, RecognitionFailure):
                yield _failed(outcome.source, labels[outcome.source], outcome.error)
                continue
            source, shown = outcome[0].source, outcome[0].retrieved
            orders = draw(source, len(shown))
            names = tuple(shown[at] for at in np.argsort(orders[0]))
            yield AuditedImage(
                source=source,
                label=labels[source],
                retrieved=names,
                orders=tuple(map(tuple, orders)),
                answers=tuple(names.index(prediction.label) for prediction in outcome),
                **_counted([prediction.ranking for prediction in outcome if prediction.ranking is not None]),
            )


def _by_ranker(
    ranker: BaseRanker,
    dataset: Dataset,
    indices: Sequence[int],
    candidates: Sequence[Sequence[str]],
    draw: Callable[[str, int], list[list[int]]],
) -> Generator[AuditedImage]:
    for start in range(0, len(indices), _AT_A_TIME):
        pictures, lists, asked = [], [], []
        for index in indices[start : start + _AT_A_TIME]:
            item = dataset.items[index]
            names, label = tuple(candidates[index]), str(item.label)
            try:
                sample = dataset[index]
                picture = load_image(sample.image)
                sample.check_size(picture.size)
                if item.box_xyxy is not None:
                    picture = Picture.of(picture).cropped(item.box_xyxy).whole()
            except ImageError as error:
                yield _failed(item.source, label, error)
                continue
            orders = draw(item.source, len(names))
            asked.append(
                AuditedImage(source=item.source, label=label, retrieved=names, orders=tuple(map(tuple, orders)))
            )
            pictures += [picture] * len(orders)
            lists += [[names[place] for place in order] for order in orders]
        rankings = iter(ranker.rank_batch(pictures, lists))
        for image in asked:
            mine = [next(rankings) for _ in image.orders]
            first = [
                0 if ranking.status == "fallback" else order[ranking.order[0]]
                for order, ranking in zip(image.orders, mine, strict=True)
            ]
            yield replace(
                image, answers=tuple(image.retrieved.index(image.retrieved[at]) for at in first), **_counted(mine)
            )


def _counted(rankings: Sequence[Ranking]) -> dict[str, Any]:
    return {
        "statuses": dict(Counter(ranking.status for ranking in rankings)),
        "unanswered": any(ranking.unanswered for ranking in rankings),
    }


def _failed(source: str, label: str, error: Exception) -> AuditedImage:
    return AuditedImage(source=source, label=label, error=f"{type(error).__name__}: {error}")


def _read_line(values: Mapping[str, Any]) -> AuditedImage | None:
    """An image that is done; None for one that failed, or had no answer: it is tried again."""
    lists = {key: tuple(values[key]) for key in ("retrieved", "answers")}
    image = AuditedImage(**{**values, **lists, "orders": tuple(map(tuple, values["orders"]))})
    return image if image.error is None and not image.unanswered else None


def _audit(
    images: Sequence[AuditedImage],
    ranker: BaseRanker,
    dataset: Dataset,
    configuration: Mapping[str, Any],
    *,
    orders: int,
    seed: int,
) -> OrderAudit:
    answered = [image for image in images if image.error is None]
    right = sum((image.right.astype(np.int64) for image in answered), np.zeros(orders, dtype=np.int64)) / len(images)
    k = max((len(image.retrieved) for image in answered), default=0)
    picked, truth, hits = np.zeros(k), np.zeros(k), np.zeros(k)
    for image in answered:
        for at, hit in zip(image.shown_at(image.label), image.right, strict=True):
            if at is not None:
                truth[at] += 1
                hits[at] += hit
        for answer in set(image.answers):
            places = image.shown_at(image.retrieved[answer])
            for at, given in zip(places, image.answers, strict=True):
                picked[at] += given == answer
    lists = max(1, len(answered) * orders)
    counts = Counter(dict.fromkeys(_STATUSES, 0))
    for image in answered:
        counts.update(image.statuses)
    return OrderAudit(
        n=len(images),
        failures=len(images) - len(answered),
        orders=orders,
        seed=seed,
        top1_mean=float(right.mean()),
        top1_min=float(right.min()),
        top1_max=float(right.max()),
        changing=sum(len(set(image.answers)) > 1 for image in answered) / max(1, len(answered)),
        agreement=sum(image.agreement for image in answered) / max(1, len(answered)),
        picked=tuple(float(share) for share in picked / lists),
        truth=tuple(float(share) for share in truth / lists),
        right_at=tuple(float(h / t) if t else None for h, t in zip(hits, truth, strict=True)),
        statuses=dict(counts),
        version=version("rarvision"),
        dataset=dataset.name,
        ranker=ranker.name,
        configuration=dict(configuration),
    )


def _share(value: float | None) -> str:
    return "never" if value is None else f"{value:.1%}"
