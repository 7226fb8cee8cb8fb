"""``rarvision evaluate``: a labelled dataset in, a report out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import models, options
from rarvision.cli.output import CsvFile, echo_json, print_table, progress
from rarvision.errors import DatasetError

if TYPE_CHECKING:
    from rarvision.evaluate import Report

__all__ = ["evaluate"]

SOME_FAILED = 1


def evaluate(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET", help="A folder with a subfolder a category, or a CSV or JSONL file of images and labels."
        ),
    ],
    *,
    memory: options.MemoryOption,
    ranker: options.RankerOption = "none",
    k: options.KOption = 5,
    strategy: options.StrategyOption = options.Strategy.AUTO,
    constrained: options.ConstrainedOption = False,
    prompt: options.PromptOption = None,
    ranker_weight: options.RankerWeightOption = "1",
    retrieval: options.RetrievalSourceOption = options.RetrievalSource.FUSED,
    aggregate: options.AggregateOption = options.Aggregate.BLEND,
    repeats: options.RepeatsOption = False,
    allow_fallback: options.AllowFallbackOption = False,
    quantization: options.QuantizationOption = None,
    ranker_model: options.RankerModelOption = None,
    api_key: options.ApiKeyOption = None,
    timeout: options.TimeoutOption = 60.0,
    encoder: options.EncoderOption = None,
    batch_size: options.BatchSizeOption = 8,
    device: options.DeviceOption = "auto",
    max_pixels: options.MaxPixelsOption = None,
    output: options.OutputOption = None,
    resume: options.ResumeOption = True,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the report as a CSV table of one row.")
    ] = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Measure how well a memory and a ranker recognise labelled images.

    With --output FILE every image's outcome is written at once as a line of JSON; the same command given again goes on
    where it stopped.

    \b
    Examples:
      rarvision evaluate test/ --memory pets.memory
      rarvision evaluate test.csv -m pets.memory -r http://localhost:8000/v1 --strategy generate --output run.jsonl
      rarvision evaluate test/ -m pets.memory --retrieval image --aggregate nearest --json    # the paper's CLIP+kNN

    \b
    --json prints one object: n, failures, top1, top1_interval, topk, recall, retrieval_top1, mean_per_class,
      calibration_error, statuses, fallback_rate, repaired_rate, retrieval_ms, ranking_ms, version, dataset, encoder,
      ranker, configuration
    """
    from rarvision.datasets import NameList, open_dataset
    from rarvision.evaluate import evaluate as measure

    models.set_max_pixels(max_pixels)
    opened = open_dataset(dataset)
    if isinstance(opened, NameList):
        raise DatasetError(f"{dataset}: holds names only; evaluation needs images with labels")
    path = models.open_recognizer(
        memory,
        encoder=encoder,
        ranker=models.RankerOptions(
            spec=ranker,
            strategy=strategy.value,
            constrained=constrained,
            prompt=prompt,
            model=ranker_model,
            quantization=quantization.value if quantization else None,
            api_key=api_key,
            timeout_s=timeout,
        ),
        k=k,
        retrieval=retrieval.value,
        aggregate=aggregate.value,
        distinct=not repeats,
        ranker_weight=ranker_weight,
        allow_fallback=allow_fallback,
        batch_size=batch_size,
        device=device,
    )
    with path as recognizer, progress("Evaluating", total=len(opened), quiet=quiet) as bar:
        report = measure(recognizer, opened, out=output, resume=resume, progress=lambda done, _total: bar.to(done))
    if csv:
        row = _flat(report)
        with CsvFile(csv, columns=list(row)) as table:
            table.append(row)
    if json:
        echo_json(report.to_dict())
    else:
        print_table(("", ""), report.table())
    if report.failures:
        raise typer.Exit(SOME_FAILED)


def _flat(report: Report) -> dict[str, Any]:
    """The report's figures as columns: ``topk_5``, ``statuses_ranked``."""
    row: dict[str, Any] = {}
    for key, value in report.to_dict().items():
        if key == "configuration":
            continue
        if isinstance(value, dict):
            row |= {f"{key}_{name}": part for name, part in value.items()}
        elif isinstance(value, list):
            row |= {f"{key}_{name}": part for name, part in zip(("low", "high"), value, strict=True)}
        else:
            row[key] = value
    return row
