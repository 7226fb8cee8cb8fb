"""``rarvision recognize``: images in, one result an image out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import models, options
from rarvision.cli.inputs import STDIN, image_paths
from rarvision.cli.levels import level_rows, levels_record, sure_text
from rarvision.cli.output import Bar, CsvFile, ResultFile, echo_json, print_table, printable, progress, say, show
from rarvision.cli.path import PathOptions, spread

if TYPE_CHECKING:
    from rarvision.pipeline import RecognitionFailure
    from rarvision.types import Prediction, Sample

__all__ = ["recognize", "record_of"]

SOME_FAILED = 1


@spread
def recognize(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Files, folders (with their subfolders), globs; - reads a list on standard input."
        ),
    ],
    *,
    path: PathOptions,
    null: options.NullOption = False,
    output: options.OutputOption = None,
    resume: options.ResumeOption = True,
    csv: options.CsvOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Recognise images: the memory proposes categories, the ranker chooses.

    A bad image is reported and never stops the others; the exit code is then 1. With --output FILE every result is
    written at once as a line of JSON, and the same command given again goes on where it stopped: it does again what
    failed and what the ranker gave no answer for. --json prints the new results only; --output and --csv hold all.

    \b
    Examples:
      rarvision recognize cat.jpg --memory pets.memory
      rarvision recognize photos/ --memory pets.memory --ranker http://localhost:8000/v1 --json
      rarvision recognize 'photos/**/*.jpg' -m pets.memory -r llava-hf/llava-1.5-7b-hf --strategy choice
      find . -name '*.jpg' -print0 | rarvision recognize - -0 -m pets.memory --output results.jsonl

    \b
    --json prints one object a line:
      source, label, probability, unknown_probability, unknown, fit, candidates [category, similarity, probability],
      ranking {strategy, status, reason, raw, unanswered}, retrieval_ms, ranking_ms      or: source, error
    unknown is true where the answer is "unknown" (--unknown); label is then the least unlikely candidate. fit says what
    the probabilities rest on: fitted, partial, stale (the memory has changed since), unfitted, given (--calibration)
    with --taxonomy also levels [level, name, probability], the most probable group at each level, coarsest first; sure,
    the deepest of them of at least the probability that --sure says, or null; outside, candidates that the tree lacks
    ranking.status is ranked, repaired, fallback or skipped (--gate); unanswered is true where it fell back because no
    answer came, and false where one came that could not be read; all are null where there is no ranker
    Probabilities are shares from 0 to 1, similarity is a cosine or a fusion of cosines, times are milliseconds
    """
    models.set_max_pixels(path.max_pixels)
    paths = image_paths(images, null=null)

    def some(n: int) -> list[Path]:
        """The first n paths, which stay to be recognised."""
        nonlocal paths
        first = list(itertools.islice(paths, n))
        paths = itertools.chain(first, paths)
        return first

    total = None
    if STDIN not in images:
        known = list(paths)
        total, paths = len(known), iter(known)
    with ExitStack() as stack:
        recognizer = stack.enter_context(models.open_recognizer(path, some=some))
        results = (
            stack.enter_context(ResultFile(output, settings=recognizer.settings, resume=resume)) if output else None
        )
        table = stack.enter_context(CsvFile(csv, columns=_columns(path.k))) if csv else None
        done = dict(results.done) if results else {}
        if done:
            say(f"{output}: going on after {len(done):,} results that are there")
        bar = stack.enter_context(progress("Recognising", total=total, quiet=quiet))
        sinks = _Sinks(results=results, table=table, json=json, alone=total == 1)
        for record in done.values():
            sinks.tabulate(record)
        for outcome in recognizer.iter_recognize(_samples(paths, skip=set(done) if results else None, bar=bar)):
            sinks.take(record_of(outcome))
            bar.advance()
    if sinks.failed:
        raise typer.Exit(SOME_FAILED)


class _Sinks:
    """Where results go, each at once."""

    def __init__(self, *, results: ResultFile | None, table: CsvFile | None, json: bool, alone: bool) -> None:
        self._results = results
        self._table = table
        self._json = json
        self._alone = alone
        self.failed = 0

    def take(self, record: Mapping[str, Any]) -> None:
        """Write one result everywhere."""
        if self._results:
            self._results.append(record)
        self.tabulate(record)
        if self._json:
            echo_json(record)
        elif "error" not in record:
            _show(record, alone=self._alone)
        if "error" in record:
            self.failed += 1
            say(_complaint(record))

    def tabulate(self, record: Mapping[str, Any]) -> None:
        """Write one result to the CSV table alone."""
        if self._table:
            self._table.append(_row(record))


def _samples(paths: Iterable[Path], *, skip: set[str] | None, bar: Bar) -> Iterator[Sample]:
    """Samples of paths; with ``skip``, each source once, and none of those in it."""
    from rarvision.types import Sample

    for path in paths:
        source = str(path)
        if skip is not None:
            if source in skip:
                bar.advance()
                continue
            skip.add(source)
        yield Sample(source=source, image=path)


def record_of(outcome: Prediction | RecognitionFailure) -> dict[str, Any]:
    """The documented JSON object of a result."""
    from rarvision.types import Prediction

    if not isinstance(outcome, Prediction):
        return {"source": outcome.source, "error": str(outcome.error)}
    ranking = outcome.ranking
    return {
        "source": outcome.source,
        "label": outcome.label,
        "probability": _rounded(outcome.probability),
        "unknown_probability": _rounded(outcome.unknown_probability),
        "unknown": outcome.unknown,
        "fit": outcome.fit,
        "candidates": [
            {
                "category": candidate.category,
                "similarity": _rounded(candidate.similarity),
                "probability": None if candidate.probability is None else _rounded(candidate.probability),
            }
            for candidate in outcome.candidates
        ],
        "ranking": {
            "strategy": ranking.strategy if ranking else None,
            "status": ranking.status if ranking else None,
            "reason": ranking.reason if ranking else None,
            "raw": ranking.raw if ranking else None,
            "unanswered": ranking.unanswered if ranking else None,
        },
        **levels_record(outcome),
        "retrieval_ms": round(outcome.retrieval_ms, 3),
        "ranking_ms": round(outcome.ranking_ms, 3),
    }


def _rounded(value: float) -> float:
    return round(value, 6)


_SURE = ("sure_level", "sure_name", "sure_probability")


def _columns(k: int) -> list[str]:
    each = [f"{field}_{number}" for number in range(1, k + 1) for field in ("candidate", "similarity", "probability")]
    return [
        "source",
        "label",
        "probability",
        "unknown_probability",
        "unknown",
        *_SURE,
        "status",
        "reason",
        "error",
        *each,
    ]


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in record:
        return {"source": record["source"], "error": record["error"]}
    row = {key: record[key] for key in ("source", "label", "probability", "unknown_probability", "unknown")}
    row |= {key: record["ranking"][key] for key in ("status", "reason")}
    if sure := record.get("sure"):
        row |= dict(zip(_SURE, (sure["level"], sure["name"], sure["probability"]), strict=True))
    for number, candidate in enumerate(record["candidates"], start=1):
        row[f"candidate_{number}"] = candidate["category"]
        row[f"similarity_{number}"] = candidate["similarity"]
        row[f"probability_{number}"] = candidate["probability"]
    return row


def _complaint(record: Mapping[str, Any]) -> str:
    source, error = str(record["source"]), str(record["error"])
    return error if source in error else f"{source}: {error}"


def _show(record: Mapping[str, Any], *, alone: bool) -> None:
    """For a person: a table for one image, a line each for several."""
    status = record["ranking"]["status"]
    note = "" if status in (None, "ranked") else f"  ({status}: {record['ranking']['reason']})"
    if alone:
        rows = [(c["category"], _percent(c["probability"]), f"{c['similarity']:.3f}") for c in record["candidates"]]
        none = (UNKNOWN if record["unknown"] else "none of these", _percent(record["unknown_probability"]), "")
        rows.insert(0 if record["unknown"] else len(rows), none)
        print_table(("category", "probability", "similarity"), rows, title=record["source"] + note)
        if levels := level_rows(record):
            print_table(("level", "group", "probability"), levels)
        return
    others = ", ".join(f"{c['category']} {_percent(c['probability'])}" for c in record["candidates"][1:3])
    line = f"{record['source']}: {record['label']} {_percent(record['probability'])}"
    if record["unknown"]:
        line = f"{record['source']}: unknown {_percent(record['unknown_probability'])}"
        others = ", ".join(f"{c['category']} {_percent(c['probability'])}" for c in record["candidates"][:2])
    show(printable(line + (f"   ({others})" if others else "") + sure_text(record) + note))


UNKNOWN = "unknown"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
