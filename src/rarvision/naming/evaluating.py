"""How well test images are named: by a namer on its own, or by a preset from end to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rarvision.calibration import Calibration
from rarvision.datasets.base import Dataset
from rarvision.encoders import NameEncoder, SpellingEncoder
from rarvision.errors import OptionError
from rarvision.evaluate import Report, evaluate
from rarvision.metrics import bootstrap_interval, cluster_hits, name_similarities
from rarvision.naming.base import Namer
from rarvision.naming.discovery import GuessedImage, ask_each
from rarvision.naming.memories import Progress, discover, named_recognizer, phase, quiet, words_memory
from rarvision.naming.presets import Sources, make_namer, need, preset_of
from rarvision.ranking import BaseRanker
from rarvision.reporting import EvaluatedImage
from rarvision.runs import labels_by_source

__all__ = ["NamingReport", "evaluate_namer", "evaluate_preset"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NamingReport:
    """How well test images were named.

    Attributes:
        n: Images.
        failures: Without a name; they count as wrong.
        cacc: Clustering accuracy, 0 to 1.
        cacc_interval: 95 % bootstrap interval over images, the clusters' names fixed.
        sacc: Mean cosine of given and true names.
        sacc_interval: Likewise.
        name_encoder: What the names are compared by.
        top1: Share whose name is the true one, letter by letter.
        names: Distinct names that were given.
        method: Who named, or what recognised.
        dataset: The test images' name.
        dataset_fingerprint: What tells revisions of them apart.
        retrieval_ms: Milliseconds an image; of namers 0.
        ranking_ms: Likewise.
        statuses: Rankings by status.
        encoder: The encoder's name.
        ranker: The ranker's name; None without.
        version: Of this package.
    """

    n: int
    failures: int
    cacc: float
    cacc_interval: tuple[float, float]
    sacc: float
    sacc_interval: tuple[float, float]
    name_encoder: str
    top1: float
    names: int
    method: str
    dataset: str
    dataset_fingerprint: str
    retrieval_ms: float = 0.0
    ranking_ms: float = 0.0
    statuses: Mapping[str, int] = field(default_factory=dict)
    encoder: str = ""
    ranker: str | None = None
    version: str = field(default_factory=lambda: version("rarvision"))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **asdict(self),
            "cacc_interval": list(self.cacc_interval),
            "sacc_interval": list(self.sacc_interval),
        }


def evaluate_namer(
    namer: Namer,
    dataset: Dataset,
    *,
    out: Path | str | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
    batch_size: int = 16,
    name_encoder: NameEncoder | None = None,
) -> tuple[NamingReport, list[EvaluatedImage]]:
    """Have a namer name labelled images one by one, and compare with their labels.

    Args:
        namer: Who names.
        dataset: Labelled images.
        out: A file with a line an image, as `rarvision.evaluate` writes it; interrupted, the same call goes on, and
            asks again about images without a name.
        resume: See `guess_names`.
        progress: As there.
        batch_size: As there.
        name_encoder: By spelling by default.

    Returns:
        The report, and a line an image as `rarvision.evaluate` has it.

    Raises:
        DatasetError: A label is missing, or as `guess_names`.
    """
    labels = labels_by_source(dataset)
    images = ask_each(
        dataset,
        namer,
        lambda guess: _evaluated(guess, labels[guess.source]),
        read=_read_line,
        out=out,
        resume=resume,
        progress=progress,
        batch_size=batch_size,
    )
    report = _report(images, dataset, method=namer.name, name_encoder=name_encoder or SpellingEncoder())
    return report, images


def _read_line(values: Mapping[str, Any]) -> EvaluatedImage | None:
    image = EvaluatedImage.read(values)
    return image if image.error is None else None


def _evaluated(guess: GuessedImage, label: str) -> EvaluatedImage:
    if not guess.names:
        return EvaluatedImage(source=guess.source, label=label, error=guess.reason, raw="\n".join(guess.raw) or None)
    raw = "\n".join(guess.raw) or None
    return EvaluatedImage(source=guess.source, label=label, ranked=guess.names, retrieved=guess.names, raw=raw)


def _report(
    images: Sequence[EvaluatedImage], dataset: Dataset, *, method: str, name_encoder: NameEncoder
) -> NamingReport:
    labels = [image.label for image in images]
    given = [image.ranked[0] if image.ranked else None for image in images]
    clustered, _ = cluster_hits(given, labels)
    vectors = name_encoder.encode({*labels, *(name for name in given if name is not None)})
    alike = name_similarities(given, labels, vectors)
    return NamingReport(
        n=len(images),
        failures=sum(name is None for name in given),
        cacc=float(clustered.mean()),
        cacc_interval=bootstrap_interval(clustered),
        sacc=float(np.mean(alike)),
        sacc_interval=bootstrap_interval(alike),
        name_encoder=name_encoder.name,
        top1=sum(name == label for name, label in zip(given, labels, strict=True)) / len(images),
        names=len(set(given) - {None}),
        method=method,
        dataset=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
    )


def _of_report(report: Report, dataset: Dataset, *, names: int) -> NamingReport:
    return NamingReport(
        n=report.n,
        failures=report.failures,
        cacc=report.cacc,
        cacc_interval=report.intervals["cacc"],
        sacc=report.sacc,
        sacc_interval=report.intervals["sacc"],
        name_encoder=report.name_encoder,
        top1=report.top1,
        names=names,
        method=report.ranker or f"{report.encoder}, retrieval",
        dataset=report.dataset,
        dataset_fingerprint=dataset.fingerprint,
        retrieval_ms=report.retrieval_ms,
        ranking_ms=report.ranking_ms,
        statuses=dict(report.statuses),
        encoder=report.encoder,
        ranker=report.ranker,
    )


def evaluate_preset(
    name: str,
    sources: Sources,
    *,
    unlabelled: Dataset,
    test: Dataset,
    folder: Path,
    ranker: BaseRanker | None = None,
    k: int = 5,
    min_votes: int = 1,
    calibration: Calibration | None = None,
    ranker_weight: Any = None,
    name_encoder: NameEncoder | None = None,
    resume: bool = True,
    progress: Progress = quiet,
) -> NamingReport:
    """Carry out a method of Table 1: name the unlabelled images, build a memory, recognise the test images.

    Everything is kept in the folder as it comes, and the same call goes on where it was.

    Args:
        name: One of `NAMING_PRESETS`.
        sources: What it draws on.
        unlabelled: Images to discover names with; labels are not looked at.
        test: Labelled images.
        folder: For guesses, the memory and the test images' lines (``test.jsonl``).
        ranker: Of presets that rank.
        k: Candidates of each test image.
        min_votes: See `vote_names`.
        calibration: Of the recogniser.
        ranker_weight: Of the recogniser.
        name_encoder: What the sACC is computed with; by default their spelling.
        resume: Whether to go on with what is there.
        progress: Told the phase, how many images are done, and of how many.

    Raises:
        OptionError: What the preset needs is missing.
        NoNamesError: No name survives.
        DatasetError: As `rarvision.evaluate`.
    """
    preset = preset_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "test.jsonl"
    run: dict[str, Any] = {"out": lines, "resume": resume, "name_encoder": name_encoder}
    if preset.memory == "none":
        namer = make_namer(name, sources)
        return evaluate_namer(namer, test, **run, progress=phase(progress, "naming test images"))[0]
    if preset.ranked and ranker is None:
        raise OptionError(f"the preset {name!r} needs a ranker (--ranker)")
    with ExitStack() as stack:
        if preset.memory == "words":
            need(sources.words, "a vocabulary (--words FILE)", name)
            memory = stack.enter_context(words_memory(sources, folder / "memory"))
        else:
            found = discover(
                name,
                sources,
                unlabelled,
                memory=folder / "memory",
                out=folder / "guesses.jsonl",
                min_votes=min_votes,
                resume=resume,
                progress=progress,
            )
            stack.enter_context(found)
            assert found.memory is not None  # noqa: S101 - a folder was given
            memory = found.memory
        recognizer = named_recognizer(
            name, memory, ranker=ranker, k=k, calibration=calibration, ranker_weight=ranker_weight
        )
        report = evaluate(recognizer, test, **run, progress=phase(progress, "recognising"))
        return _of_report(report, test, names=len(memory.categories()))
