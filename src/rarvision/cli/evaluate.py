"""``rarvision evaluate``: a labelled dataset in, a report out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import models, options
from rarvision.cli.output import echo_json, print_table, progress, write_rows
from rarvision.cli.path import PathOptions, spread
from rarvision.errors import DatasetError, OptionError

if TYPE_CHECKING:
    from rarvision.audit import OrderAudit
    from rarvision.datasets import Dataset
    from rarvision.evaluate import Report
    from rarvision.types import Sample

__all__ = ["evaluate"]

SOME_FAILED = 1


@spread
def evaluate(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="A folder with a subfolder a category, a CSV or JSONL file of images and labels, a table of the "
            "datasets library, or a public benchmark such as flowers102:test.",
        ),
    ],
    *,
    path: PathOptions,
    name_encoder: options.NameEncoderOption = "spelling",
    data_root: options.DataRootOption = None,
    audit_order: options.AuditOrderOption = None,
    audit_seed: options.AuditSeedOption = 0,
    output: options.OutputOption = None,
    resume: options.ResumeOption = True,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw wrong answers against answers given (.png or .svg)."),
    ] = None,
    csv: options.CsvOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Measure how well a memory and a ranker recognise labelled images.

    With --output FILE every image's outcome is written at once as a line of JSON; the same command given again goes on
    where it stopped, and does again what failed and what the ranker gave no answer for.

    \b
    Examples:
      rarvision evaluate test/ --memory pets.memory
      rarvision evaluate test.csv -m pets.memory -r http://localhost:8000/v1 --strategy generate --output run.jsonl
      rarvision evaluate test/ -m pets.memory --retrieval image --aggregate nearest --json    # the paper's CLIP+kNN
      rarvision evaluate test/ -m pets.memory --taxonomy breeds.csv --sure 0.95
      rarvision evaluate test/ -m guessed.memory --name-encoder sentence-transformers/all-mpnet-base-v2
      rarvision evaluate test/ -m pets.memory -r llava-hf/llava-1.5-7b-hf -s choice --audit-order 20
      rarvision evaluate oxford_pets:test -m pets.memory --data-root ~/data
      rarvision evaluate test/ -m pets.memory -r llava-hf/llava-1.5-7b-hf -s choice --debias bias.json --permutations 2

    With --audit-order N the report says instead how the answers depend on the order in which the candidates are shown:
    the accuracy in the worst, the mean and the best order, how many images' answers change, and for each place of the
    list how often it is picked beside how often the true name stands there. What --ranker-weight mixes in counts:
    with replace the ranker is audited alone. --permutations and --debias are what to do about it.

    Beside a share stands its 95 % bootstrap interval over images. With --taxonomy the report says how often the answer
    is right at each level, and how often it is sure and right there. Where the memory does not hold all labels, since
    its names were guessed, it says the clustering accuracy (cACC) and the likeness of names (sACC); --json always holds
    them. `rarvision compare` tests whether two runs differ, from what --output wrote.

    \b
    --json prints one object: n, failures, top1, top1_interval, intervals, topk, recall, retrieval_top1, mean_per_class,
      cacc, sacc, name_encoder, taxonomy, levels (by level: top1, top1_interval, summed, sure, sure_right),
      sure (threshold, answered, right, right_interval),
      calibration_error, brier, auroc_right, call_rate, rejected, foreign, foreign_rejected,
      open_top1, unknown_auroc, unknown_fpr95, top1_accepted,
      statuses, fallback_rate, repaired_rate, retrieval_ms, ranking_ms, version, dataset, encoder,
      ranker, risk_coverage (shares answered, shares wrong), configuration
    Units: accuracies, recalls and rates (top1, top1_interval, topk, recall, retrieval_top1, mean_per_class,
      fallback_rate, repaired_rate, call_rate, open_top1, unknown_fpr95, top1_accepted, cacc, levels, sure),
      calibration_error, brier and the AUROCs lie between 0 and 1; sacc is a mean cosine; n, failures, rejected,
      foreign, foreign_rejected and statuses count images; retrieval_ms and ranking_ms are milliseconds an image
    --csv writes the same as a row, without configuration and risk_coverage: topk_1, statuses_ranked,
      top1_interval_low, …
    --audit-order with --json: n, failures, orders, seed, top1_mean, top1_min, top1_max, changing, agreement, picked,
      truth, right_at, statuses, version, dataset, ranker, configuration; shares from 0 to 1, picked, truth and right_at
      one a place of the list; statuses count rankings
    """
    from rarvision.audit import audit_order as audit
    from rarvision.datasets import NameList, open_dataset
    from rarvision.encoders import open_name_encoder
    from rarvision.evaluate import evaluate as measure

    models.set_max_pixels(path.max_pixels)
    _check_audit(audit_order, audit_seed, path, plot)
    if audit_order is not None and (name_encoder != "spelling" or path.taxonomy is not None):
        raise OptionError("--name-encoder and --taxonomy do not go with --audit-order, which reports the order alone")
    opened = open_dataset(dataset, data_root=data_root)
    if isinstance(opened, NameList):
        raise DatasetError(f"{dataset}: holds names only; evaluation needs images with labels")
    with (
        models.open_recognizer(path, some=lambda n: _spread_over(opened, n)) as recognizer,
        progress("Evaluating", total=len(opened), quiet=quiet) as bar,
    ):
        report: Report | OrderAudit
        run: dict[str, Any] = {"out": output, "resume": resume, "progress": lambda done, _total: bar.to(done)}
        if audit_order is None:
            names = open_name_encoder(name_encoder, encoder=recognizer.memory.encoder, device=path.device)
            report = measure(recognizer, opened, **run, name_encoder=names)
        else:
            report = audit(recognizer, opened, orders=audit_order, seed=audit_seed, **run)
    if plot:
        from rarvision.plots import plot_risk_coverage

        plot_risk_coverage({report.ranker or "retrieval": getattr(report, "risk_coverage", ((), ()))}, plot)
    if csv:
        write_rows(csv, [_row(report)])
    if json:
        echo_json(report.to_dict())
    else:
        print_table(("", ""), report.table())
    if report.failures:
        raise typer.Exit(SOME_FAILED)


def _check_audit(orders: int | None, seed: int, path: PathOptions, plot: Path | None) -> None:
    """Refuse what would only fail, or be ignored, after a long run."""
    if orders is None and seed:
        raise OptionError("--audit-seed goes with --audit-order")
    if orders is not None and path.ranker == "none":
        raise OptionError("--audit-order needs --ranker: retrieval alone shows no list to anybody")
    if plot:
        from rarvision.plots import check_plot

        if orders is not None:
            raise OptionError("--plot draws risk and coverage of an evaluation; it does not go with --audit-order")
        check_plot(plot)


def _spread_over(dataset: Dataset, n: int) -> list[Sample]:
    """So many samples, evenly apart: a dataset often goes category by category."""
    count = min(n, len(dataset))
    return [dataset[number * len(dataset) // count] for number in range(count)]


def _row(report: Report | OrderAudit) -> dict[str, Any]:
    """The report's figures; the settings stand in the JSON."""
    row = {key: value for key, value in report.to_dict().items() if key not in ("configuration", "risk_coverage")}
    if "top1_interval" in row:
        row["top1_interval"] = dict(zip(("low", "high"), row["top1_interval"], strict=True))
        row["intervals"] = {k: dict(zip(("low", "high"), v, strict=True)) for k, v in row["intervals"].items()}
    return row
