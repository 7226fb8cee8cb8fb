"""``rarvision reproduce`` and ``rarvision report``: the paper's tables and figures, one command each."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import options
from rarvision.cli.experimenting import (
    ExperimentOptions,
    configuration,
    open_lab,
    open_world,
    restricted,
    seeds_of,
)
from rarvision.cli.output import echo_json, print_table, progress, say, show
from rarvision.cli.path import spread
from rarvision.errors import InputError, OptionError, RarvisionError

if TYPE_CHECKING:
    from rarvision.experiments import Lab, Outcome, Spec, World

__all__ = ["report", "reproduce"]

ALL = "all"


@spread
def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]…", help="table-1 … table-13, figure-9 … figure-11, vocabulary, or all."),
    ] = None,
    *,
    chosen: ExperimentOptions,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Carry out experiments of the paper, on its data sets or on the field guide, and set them beside its figures.

    Without a name, list them. Results go to --out, a folder an experiment: outcomes.jsonl (a line a cell), images/ (a
    line an image), table.md, table.csv, figure.png, figure.svg and report.html, with a gallery of what went wrong and
    right. Interrupted, the same command goes on with the image where it was.

    \b
    Examples:
      rarvision reproduce                                               # what there is
      rarvision reproduce table-7 --field-guide --quick
      rarvision reproduce all --field-guide --out results
      rarvision reproduce table-7 --data-root ~/data -r http://localhost:8000/v1
      rarvision reproduce table-8 --data-root ~/data --datasets oxford_pets,dtd -r llava-hf/llava-1.5-7b-hf
      rarvision reproduce table-9 --data-root ~/data -r http://localhost:8000/v1 --other-ranker https://host/v1
      rarvision report results                                          # write the reports again

    Of several experiments one that fails, such as for data that is missing, does not stop the others. A cell that
    cannot be measured, since the names do not fit the MLLM's context or no MLLM was given, is shown as - with the
    reason, and tried again by the next call. A folder of results with other settings is refused.

    \b
    --json prints one object an experiment: experiment, folder, outcomes (experiment, column, row, at, seed, n, values,
      why, images, encoder, ranker, prompt_hash, dataset, dataset_fingerprint, version, retrieval_ms, ranking_ms,
      seconds, statuses, failures, settings), verdicts (text, verdict, evidence), files
    Units: values are shares from 0 to 1 (ms: milliseconds an image); retrieval_ms and ranking_ms are of an image
    """
    from rarvision.cli.main import exit_code
    from rarvision.experiments import ALIASES, EXPERIMENTS, spec_of

    edition: Any = "field-guide" if chosen.field_guide else "paper"
    if not names:
        _list(edition, json=json)
        return
    if chosen.quick and not chosen.field_guide:
        raise OptionError("--quick goes with --field-guide; on data sets use --limit N")
    wanted = list(EXPERIMENTS) if ALL in names else names
    if ALL in names and not chosen.field_guide:
        wanted = [name for name in wanted if name != "vocabulary"]
    specs = [restricted(spec_of(name, edition), name, chosen, ALIASES) for name in dict.fromkeys(wanted)]
    seeds = [seeds_of(spec, chosen) for spec in specs]
    world = open_world(chosen)  # complains before anything is loaded
    failed: list[RarvisionError] = []
    for spec, several in zip(specs, seeds, strict=True):
        try:
            _one(spec, world, several, chosen, quiet=quiet)
        except RarvisionError as error:
            if len(specs) == 1:
                raise
            failed.append(error)
            say(f"{spec.name}: {error}")
        else:
            _tell(chosen.out / spec.name, spec_of(spec.name, edition), quiet=quiet, json=json)
    if failed:
        say(f"{len(failed)} of {len(specs)} experiments stopped; the others are done, and the same command goes on")
        raise typer.Exit(exit_code(failed[0]))


def _one(spec: Spec, world: World, seeds: Sequence[int], chosen: ExperimentOptions, *, quiet: bool) -> None:
    """Carry out an experiment; what stops it from outside says how it goes on."""
    folder = chosen.out / spec.name
    if not chosen.resume and folder.exists():
        _remove(folder)
    try:
        with open_lab(folder, world, chosen) as lab:
            _carry_out(spec, lab, seeds, chosen, quiet=quiet)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            f"{folder}: the disk is full; make room, and the same command goes on with {spec.name} where it was"
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command goes on with {spec.name} where it was") from None


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Results of an experiment, or a folder of several.")
    ],
    *,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Write the reports of experiments again, from what their folders hold: no models, no images needed.

    \b
    Examples:
      rarvision report results
      rarvision report results/table-7 --json

    \b
    --json prints one object an experiment, as `rarvision reproduce` does
    """
    from rarvision.experiments import EXPERIMENT, read_configuration, spec_of

    for given in folders:
        if not given.is_dir():
            raise InputError(f"{given}: no such folder; expected results of `rarvision reproduce`")
        inside = sorted(each.parent for each in given.glob(f"*/{EXPERIMENT}"))
        for folder in [given] if (given / EXPERIMENT).exists() or not inside else inside:
            there = read_configuration(folder)
            edition: Any = "field-guide" if there.get("world") == "field guide" else "paper"
            _tell(folder, spec_of(str(there.get("experiment")), edition), quiet=quiet, json=json)


def _list(edition: Any, *, json: bool) -> None:
    from rarvision.experiments import ALIASES, EXPERIMENTS, spec_of

    rows = []
    for name in EXPERIMENTS:
        spec = spec_of(name, "field-guide" if name == "vocabulary" else edition)
        rows.append((name, spec.title, spec.source or "not in the paper", spec.question))
    rows += [(name, about, "", f"is {of}") for name, (of, about, _) in ALIASES.items()]
    if json:
        for row in rows:
            echo_json(dict(zip(("experiment", "title", "source", "question"), row, strict=True)))
        return
    print_table(("experiment", "title", "in the paper", "what it asks"), rows)


def _carry_out(spec: Spec, lab: Lab, seeds: Sequence[int], chosen: ExperimentOptions, *, quiet: bool) -> None:
    from rarvision.experiments import cells_of, run_experiment

    total = sum(1 for _ in cells_of(spec, seeds))
    told = not quiet and not sys.stderr.isatty()
    with progress(spec.name, total=total, quiet=quiet, unit="cells") as bar:

        def done(outcome: Outcome, number: int, of: int) -> None:
            bar.to(number)
            if told:
                say(f"{spec.name} {number}/{of}: {outcome.id} {_short(spec, outcome)}")

        lab.tell = lambda what, at, of: bar.name(f"{spec.name}, {what}: {at:,} of {of:,}")
        run_experiment(spec, lab, seeds=seeds, configuration=configuration(chosen), done=done)


def _short(spec: Spec, outcome: Outcome) -> str:
    if outcome.why is not None:
        return f"- ({outcome.why})"
    metric = spec.metrics[0]
    value = outcome.values.get(metric.key)
    if value is None:
        return "-"
    return f"{metric.title} {100 * value:.1f} %" if metric.share else f"{metric.title} {value:g}"


def _tell(folder: Path, spec: Spec, *, quiet: bool, json: bool) -> None:
    """Write the report of what the folder holds, and show its table."""
    from dataclasses import asdict

    from rarvision.experiments import rebuild_report

    found = rebuild_report(folder, spec)  # of all that the folder holds, of earlier calls for other parts too
    if json:
        echo_json(
            {
                "experiment": spec.name,
                "folder": str(folder),
                "outcomes": [asdict(outcome) for outcome in found.outcomes],
                "verdicts": [verdict.to_dict() for verdict in found.verdicts],
                "files": [str(path) for path in found.files],
            }
        )
        return
    show(f"{spec.name}: {spec.title}")
    print_table(found.table.head, found.table.rows())
    for note in found.table.notes:
        show(f"- {note}")
    for verdict in found.verdicts:
        show(f"{verdict.verdict}: {verdict.text} {verdict.evidence}")
    if not quiet:
        say(f"wrote {', '.join(map(str, found.files))}")


def _remove(folder: Path) -> None:
    """Remove results that are to be made anew, and nothing that is none."""
    import shutil

    from rarvision.experiments import EXPERIMENT

    if any(folder.iterdir()) and not (folder / EXPERIMENT).exists():
        raise InputError(
            f"{folder}: holds something else than results (no {EXPERIMENT}); give another folder with --out"
        )
    shutil.rmtree(folder)
