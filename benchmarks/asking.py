"""What benchmarks of ranking share: memories of the field guide with images on disk, and an MLLM that is metered."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from rarvision.chat import Chat, ChatRequest
from rarvision.datasets.fieldguide import FieldGuide
from rarvision.demo import TEXT_TEMPLATE
from rarvision.embedded.training.shown import plates
from rarvision.encoders import TransformersEncoder
from rarvision.memory import LocalMemory
from rarvision.metrics import bootstrap_interval
from rarvision.pipeline import Recognizer
from rarvision.types import Prediction, Sample

__all__ = ["Meter", "World", "ask", "cell", "percent", "world", "write_section"]

_COUNTED = 8  # questions of a setting whose tokens are counted


@dataclass(frozen=True)
class World:
    """A memory of a few shots of test categories, and other images of them."""

    domain: str
    seed: int
    memory: LocalMemory
    samples: list[Sample]


@contextmanager
def world(
    domain: str,
    seed: int,
    *,
    encoder: TransformersEncoder,
    queries: int,
    categories: int = 200,
    shots: int = 4,
    telling: bool = True,
) -> Iterator[World]:
    """Draw it; images of the memory are files, as they are in use, so that they can be shown.

    Args:
        domain: Of the field guide.
        seed: Of categories and images.
        encoder: Encodes the memory.
        queries: Number of images to recognise.
        categories: Of the vocabulary.
        shots: Images a category.
        telling: Whether categories are called by their names; otherwise by plates (``Q7``), and their names are only
            known as descriptions.
    """
    guide = FieldGuide(domain, categories=categories, seed=seed)
    names = dict(zip(guide.names, guide.names, strict=True))
    if not telling:
        rng = random.Random(seed)  # noqa: S311 - no secret
        names = dict(zip(guide.names, plates(len(guide.names), rng), strict=True))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        known = []
        for number, sample in enumerate(guide.few_shot(shots=shots, seed=seed)):
            path = folder / "images" / f"{number}.png"
            sample.image.save(path)  # type: ignore[union-attr]  # drawn
            known.append(Sample(source=str(path), image=path, label=names[str(sample.label)]))
        samples = [
            Sample(source=s.source, image=s.image, label=names[str(s.label)]) for s in guide.queries(queries, seed=seed)
        ]
        with LocalMemory.create(folder / "memory", encoder=encoder, thumbnails=None) as memory:
            memory.add(known)
            memory.add_texts(list(names.values()), texts=list(names), templates=(TEXT_TEMPLATE,))
            yield World(domain, seed, memory, samples)


@final
class Meter(Chat):
    """Counts the questions to another chat, their tokens, and the processor time they take."""

    name: str = ""
    capabilities: Any = None
    context_limit: int | None = None

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self.name, self.capabilities, self.context_limit = chat.name, chat.capabilities, chat.context_limit
        self.begin()

    def begin(self) -> None:
        """Count from nothing."""
        self.calls = 0
        self.seconds = 0.0
        self._written = 0
        self._read: list[int] = []

    @property
    def settings(self) -> Mapping[str, Any]:
        """The other chat's."""
        return self._chat.settings

    @property
    def tokens(self) -> float:
        """Tokens read and written, about: of prompts the mean of the first ones, which are counted."""
        return self.calls * float(np.mean(self._read or [0])) + self._written

    def count_tokens(self, request: ChatRequest) -> int | None:
        """As the other chat counts."""
        return self._chat.count_tokens(request)

    def generate(self, requests, *, max_tokens, constraints=None):
        """Answers, counted."""
        self._note(requests)
        with self._timed():
            answers = self._chat.generate(requests, max_tokens=max_tokens, constraints=constraints)
        empty = self._chat.count_tokens(ChatRequest.of("")) or 0
        self._written += sum((self._chat.count_tokens(ChatRequest.of(a.text)) or 0) - empty for a in answers)
        return answers

    def option_log_probs(self, requests, options):
        """Log-probabilities, counted."""
        self._note(requests)
        with self._timed():
            return self._chat.option_log_probs(requests, options)

    def continuation_log_probs(self, requests, continuations):
        """Log-likelihoods, counted; continuations are read tokens, too."""
        self._note(requests)
        with self._timed():
            answers = self._chat.continuation_log_probs(requests, continuations)
        self._written += sum(sum(counts) for _, counts in answers)
        return answers

    def _note(self, requests: Sequence[ChatRequest]) -> None:
        self.calls += len(requests)
        for request in requests[: max(0, _COUNTED - len(self._read))]:
            self._read.append(self._chat.count_tokens(request) or 0)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds += time.process_time() - started


@dataclass(frozen=True)
class Asked:
    """What came of some images.

    ``right`` and ``alone`` say, image by image, whether the mixed answer and the ranker's own are right; ``calls``,
    ``tokens`` and ``ms`` (processor time) are of an image.
    """

    right: list[bool]
    alone: list[bool]
    statuses: dict[str, int]
    calls: float
    tokens: float
    ms: float
    predictions: list[Prediction] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the predictions."""
        bits = {name: "".join("01"[value] for value in getattr(self, name)) for name in ("right", "alone")}
        return {**bits, "statuses": self.statuses, "calls": self.calls, "tokens": self.tokens, "ms": self.ms}


def ask(recognizer: Recognizer, meter: Meter, samples: Sequence[Sample]) -> Asked:
    """Recognise images; the recogniser's ranker must ask through the meter."""
    meter.begin()
    outcomes = [p for p in recognizer.recognize_batch(samples) if isinstance(p, Prediction)]
    n = len(samples)
    labels = [sample.label for sample in samples]
    firsts = [None if p.ranking is None else p.retrieved[p.ranking.order[0]] for p in outcomes]
    return Asked(
        right=[p.label == label for p, label in zip(outcomes, labels, strict=True)],
        alone=[first == label for first, label in zip(firsts, labels, strict=True)],
        statuses=dict(Counter(p.ranking.status for p in outcomes if p.ranking is not None)),
        calls=meter.calls / n,
        tokens=meter.tokens / n,
        ms=1000 * meter.seconds / n,
        predictions=outcomes,
    )


def percent(bits: str) -> tuple[float, float, float]:
    """Mean of ones, and its 95 % bootstrap interval over images, in percent."""
    values = np.array([bit == "1" for bit in bits], dtype=np.float64)
    low, high = bootstrap_interval(values)
    return 100 * float(values.mean()), 100 * low, 100 * high


def cell(bits: str) -> str:
    """The same, for a table."""
    mean, low, high = percent(bits)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def write_section(path: Path, name: str, text: str) -> None:
    """Put a text between the two comments of that name in a Markdown file."""
    page = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if begin not in page or end not in page:
        raise SystemExit(f"{path} has no lines {begin} and {end}")
    before, rest = page.split(begin, 1)
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")
