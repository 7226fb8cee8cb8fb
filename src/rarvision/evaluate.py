"""A recogniser on a labelled dataset -> a report; image by image on disk, so that a long run resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rarvision.datasets.base import Dataset
from rarvision.encoders import NameEncoder, SpellingEncoder
from rarvision.errors import OptionError
from rarvision.pipeline import Recognizer
from rarvision.reporting import EvaluatedImage, Report, report_of
from rarvision.runs import RunFile, labels_by_source

__all__ = ["EvaluatedImage", "Report", "evaluate"]


def evaluate(
    recognizer: Recognizer,
    dataset: Dataset,
    *,
    out: Path | str | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
    ks: Sequence[int] = (1, 5),
    name_encoder: NameEncoder | None = None,
) -> Report:
    """Recognise every image of a dataset and compare with its labels.

    Args:
        recognizer: What is evaluated.
        dataset: Labelled images with unique sources.
        out: A JSONL file: a header with the configuration, then a line an image (`EvaluatedImage`), written as it
            comes. When the run is interrupted, the same call goes on after the last complete line, and tries the
            images again that failed, or that the MLLM gave no answer for; what comes of them is one more line, and of
            an image's lines the last one counts.
        resume: Whether to go on with an existing ``out``; False starts it anew.
        progress: Called with the number of images done, those of earlier runs included, and of all.
        ks: For ``topk`` and ``recall``; those above the recogniser's k are left out, and 1 and k itself are added.
        name_encoder: What the likeness of predicted and true names is computed with; by default their spelling, see
            `rarvision.encoders.SpellingEncoder`. It changes the report only.

    Returns:
        The report over all images, earlier runs' included.

    Raises:
        DatasetError: The dataset is empty, or has a missing label or a repeated source.
        InputError: ``out`` holds another configuration's results, or is no such file; or the taxonomy lacks
            a label.
        ChatError: The MLLM cannot answer, and the recogniser may not fall back.
    """
    if any(k < 1 for k in ks):
        raise OptionError(f"ks must be at least 1, got {list(ks)}")
    labels = labels_by_source(dataset)
    if recognizer.taxonomy is not None:
        recognizer.taxonomy.check(labels.values(), f"the labels of {dataset.name}")
    configuration = {
        "rarvision": version("rarvision"),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        **recognizer.settings,
    }
    with RunFile(out, configuration, read=_read_line, resume=resume) as file:
        _run(recognizer, dataset, labels, file, progress=progress)
        images = [file.done[source] for source in labels]
    return report_of(
        images,
        recognizer,
        dataset,
        configuration,
        ks=sorted({1, recognizer.k, *ks}),
        name_encoder=name_encoder or SpellingEncoder(),
    )


def _run(
    recognizer: Recognizer,
    dataset: Dataset,
    labels: Mapping[str, str],
    file: RunFile[EvaluatedImage],
    *,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Recognise what is not done yet, writing each outcome at once."""
    finished = sum(source in file.done for source in labels)
    if progress is not None:
        progress(finished, len(labels))
    left = (dataset[i] for i, item in enumerate(dataset.items) if item.source not in file.done)
    with closing(recognizer.iter_recognize(left)) as outcomes:
        for outcome in outcomes:
            image = EvaluatedImage.of(outcome, labels[outcome.source])
            file.add(image.source, asdict(image), _for_report(image))
            finished += 1
            if progress is not None:
                progress(finished, len(labels))


def _for_report(image: EvaluatedImage) -> EvaluatedImage:
    return EvaluatedImage.read(asdict(image))


def _read_line(values: Mapping[str, Any]) -> EvaluatedImage | None:
    """An image that is done; None for one that failed, or had no answer: it is tried again."""
    image = EvaluatedImage.read(values)
    return image if image.error is None and not image.unanswered else None
