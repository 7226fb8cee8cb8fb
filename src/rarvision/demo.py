"""The demonstration: the whole path on the embedded models and the drawn field guide."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rarvision.calibration import Calibration
from rarvision.chat import LocalChat
from rarvision.datasets.fieldguide import FieldGuide
from rarvision.datasets.fieldguide.vocabulary import split_codes
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.errors import OptionError
from rarvision.evaluate import Report, evaluate
from rarvision.memory import LocalMemory
from rarvision.picture import Panel, draw_panels
from rarvision.pipeline import Recognizer
from rarvision.ranking import Ranker
from rarvision.ranking.forms import Strategy
from rarvision.retrieval import Retriever
from rarvision.types import Prediction, Sample

__all__ = ["CALIBRATION", "TEXT_TEMPLATE", "DemoResult", "field_guide_memory", "run_demo"]

TEXT_TEMPLATE = "a photo of a {}."
"""How the field guide's names are put to the embedded CLIPs."""

CALIBRATION = Calibration(
    prior_temperature=0.02,
    ranker_temperature=1.0,
    order_decay=5.0,
    unknown_intercept=-0.62,
    unknown_similarity=-4.6,
    unknown_margin=-1.77,
    fitted=True,
)
"""What ``python -m rarvision.embedded.calibrate`` printed: fitted on the field guide's validation categories."""

_SHOWN = 6

Progress = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demonstration measured; accuracies are percentages, times milliseconds an image.

    Recall at 5 is the share of images whose category is among the first five names, or among all where there are fewer:
    retrieval is asked for five even where the MLLM ranks k < 5 of them, whose answer then holds k names.
    """

    seed: int
    domain: str
    categories: int
    shots: int
    queries: int
    k: int
    strategy: str
    encoder: str
    knn_top1: float
    knn_recall_at_5: float
    retrieval_top1: float
    recall_at_5: float
    rar_top1: float
    rar_recall_at_5: float
    fallback_rate: float
    repaired_rate: float
    ms_per_image_knn: float
    ms_per_image_retrieval: float
    ms_per_image_ranking: float
    picture: str | None = None
    columns: tuple[str, ...] = field(default=("method", "top-1 %", "recall@5 %", "ms an image"), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self)
        del values["columns"]
        return values

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """The table: nearest image, best retrieval, retrieval and ranking."""
        total = self.ms_per_image_retrieval + self.ms_per_image_ranking
        return [
            (
                "1-NN (CLIP + kNN)",
                f"{self.knn_top1:.1f}",
                f"{self.knn_recall_at_5:.1f}",
                f"{self.ms_per_image_knn:.1f}",
            ),
            (
                "best retrieval (image + text)",
                f"{self.retrieval_top1:.1f}",
                f"{self.recall_at_5:.1f}",
                f"{self.ms_per_image_retrieval:.1f}",
            ),
            (f"RAR ({self.strategy})", f"{self.rar_top1:.1f}", f"{self.rar_recall_at_5:.1f}", f"{total:.1f}"),
        ]


def field_guide_memory(
    path: Path, guide: FieldGuide, encoder: TransformersEncoder, *, shots: int, seed: int = 0
) -> LocalMemory:
    """Make a memory of a field guide's few shots and its names."""
    memory = LocalMemory.create(path, encoder=encoder, thumbnails=None)
    memory.add(guide.few_shot(shots=shots, seed=seed))
    memory.add_texts(guide.names, templates=(TEXT_TEMPLATE,))
    return memory


def run_demo(
    *,
    seed: int = 0,
    domain: str = "birds",
    categories: int = 200,
    shots: int = 4,
    queries: int = 200,
    k: int = 5,
    strategy: Strategy = "likelihood",
    encoder: str = "clip-16",
    picture: Path | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Build a memory of held-out categories, recognise new images of them three ways, and draw what happened.

    Args:
        seed: Chooses categories and images.
        domain: ``birds``, ``fish``, ``flowers``, ``butterflies`` or ``aircraft``.
        categories: Size of the vocabulary; all are test categories, which no training has seen.
        shots: Images a category in the memory.
        queries: Images to recognise.
        k: Candidates that retrieval proposes.
        strategy: The ranking strategy.
        encoder: ``clip-16`` or ``clip-32``.
        picture: Where to write the picture, None for none.
        progress: Called with images done and all.

    Returns:
        What was measured.

    Raises:
        OptionError: An unknown domain, encoder or strategy, more categories than the domain has, or a picture of
            another kind than PNG, JPEG or WebP.
    """
    if picture is not None and picture.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise OptionError(f"the picture is written as .png, .jpg or .webp; got the name {str(picture)!r}")
    most = len(split_codes(domain, "test"))
    if categories > most:
        raise OptionError(
            f"categories (--categories) must be at most {most:,}, which is what {domain} has for tests; got "
            f"{categories:,}"
        )
    guide = FieldGuide(domain, categories=categories, seed=seed)
    asked = guide.queries(queries, seed=seed)
    total, before = 3 * queries, 0

    def advance(done: int, _all: int) -> None:
        if progress is not None:
            progress(before + done, total)

    with tempfile.TemporaryDirectory(prefix="rarvision-demo-") as scratch:
        small_clip = TransformersEncoder(weights_path(encoder))
        memory = field_guide_memory(Path(scratch) / "memory", guide, small_clip, shots=shots, seed=seed)
        ranker = Ranker(LocalChat(weights_path("mllm"), batch_size=32), strategy=strategy)
        proposed, measured = min(k, categories), min(max(k, 5), categories)  # recall at 5 needs five, whatever k is
        nearest = Retriever(memory, k=measured, source="image", aggregate="nearest")
        with memory:
            recognisers = {
                "knn": Recognizer(memory, retriever=nearest),
                "retrieval": Recognizer(memory, retriever=Retriever(memory, k=measured)),
                "rar": Recognizer(
                    memory, retriever=Retriever(memory, k=proposed), ranker=ranker, calibration=CALIBRATION
                ),
            }
            warm_up = [sample for sample, _ in zip(guide.queries(8, seed=seed), range(8), strict=True)]
            recognisers["rar"].recognize_batch(warm_up)  # the first call of a model is slow, whoever makes it
            reports: dict[str, Report] = {}
            for number, (name, recogniser) in enumerate(recognisers.items()):
                before = number * queries
                reports[name] = evaluate(recogniser, asked, progress=advance)
            if picture is not None:
                _draw(picture, guide.few_shot(shots=shots, seed=seed), asked, recognisers["rar"])
    rar, five = reports["rar"], min(5, measured)
    return DemoResult(
        seed=seed,
        domain=domain,
        categories=categories,
        shots=shots,
        queries=queries,
        k=k,
        strategy=strategy,
        encoder=encoder,
        knn_top1=_percent(reports["knn"].top1),
        knn_recall_at_5=_percent(reports["knn"].recall[five]),
        retrieval_top1=_percent(reports["retrieval"].top1),
        recall_at_5=_percent(reports["retrieval"].recall[five]),
        rar_top1=_percent(rar.top1),
        rar_recall_at_5=_percent(rar.topk[min(5, proposed)]),
        fallback_rate=round(rar.fallback_rate, 4),
        repaired_rate=round(rar.repaired_rate, 4),
        ms_per_image_knn=round(reports["knn"].retrieval_ms, 3),
        ms_per_image_retrieval=round(rar.retrieval_ms, 3),
        ms_per_image_ranking=round(rar.ranking_ms, 3),
        picture=None if picture is None else str(picture),
    )


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _draw(path: Path, few: FieldGuide, asked: FieldGuide, recogniser: Recognizer, look_at: int = 60) -> None:
    """Draw some queries: those that ranking changed first, right and wrong alike, then the rest."""
    samples = [sample for sample, _ in zip(asked, range(look_at), strict=False)]
    answers = [p for p in recogniser.recognize_batch(samples) if isinstance(p, Prediction)]
    by_source = {sample.source: (row, sample) for row, sample in enumerate(samples)}

    def interest(prediction: Prediction) -> int:
        truth = by_source[prediction.source][1].label
        first = prediction.retrieved[0]
        if prediction.label == truth:
            return 0 if first != truth else 2
        return 1

    kinds: dict[int, list[Prediction]] = {0: [], 1: [], 2: []}
    for answer in answers:
        kinds[interest(answer)].append(answer)
    wrong = kinds[1][:1]
    chosen = [*kinds[0][: _SHOWN - 2], *wrong, *kinds[2]][:_SHOWN]
    panels = []
    for prediction in chosen:
        row, sample = by_source[prediction.source]
        panels.append(_panel(few, asked, row, sample, prediction))
    draw_panels(panels, path)


def _panel(few: FieldGuide, asked: FieldGuide, row: int, sample: Sample, prediction: Prediction) -> Panel:
    """One row of the picture; scenes are drawn again at a size that is pleasant to look at."""
    labels = [item.label for item in few.items]
    return Panel(
        query=_large(asked, row),
        truth=str(sample.label),
        exemplars=[_large(few, labels.index(category)) for category in prediction.retrieved],
        prediction=prediction,
    )


def _large(images: FieldGuide, row: int, size: int = 168) -> np.ndarray:
    pixels: np.ndarray = images.at_size(size).pixels(row, row + 1)[0]
    return pixels
