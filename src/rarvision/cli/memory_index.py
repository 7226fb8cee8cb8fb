"""``rarvision memory tune-index``: which index suits a memory, measured on its own vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import options
from rarvision.cli.output import echo_json, print_table, progress, say, write_rows

if TYPE_CHECKING:
    from rarvision.index import Trial

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to ``rarvision memory``."""
    app.command("tune-index")(tune_index)


def tune_index(
    memory: options.MemoryArgument,
    *,
    recall: Annotated[
        float, typer.Option("--recall", metavar="SHARE", help="What share of the true k nearest must be found.")
    ] = 0.99,
    k: options.KOption = 5,
    among: Annotated[options.Modality, typer.Option("--among", help="Whose vectors are tried.")] = (
        options.Modality.IMAGE
    ),
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of the search while measuring.", show_default="all")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Use the choice from now on, and rebuild the memory's index with it.")
    ] = False,
    csv: options.CsvOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Measure which index finds enough of the nearest vectors fastest, on this memory's own vectors.

    Indexes are built aside, each is searched with growing effort, and the fastest that reaches the recall is named.
    Nothing changes without --apply.

    \b
    Examples:
      rarvision memory tune-index pets.memory --recall 0.99
      rarvision memory tune-index pets.memory --recall 0.999 --threads 1 --apply

    \b
    --json prints one object: chosen, reason, rows, queries, k, batch, applied, and trials, each with index, recall,
      queries_per_s (in batches), queries_per_s_single, bytes_per_vector, build_s; --csv writes a row a trial
    """
    from rarvision.memory import LocalMemory

    with LocalMemory.open(memory) as store:
        tell = None if quiet or json else say
        found = store.tune_index(recall=recall, k=k, modality=among.value, threads=threads, progress=tell)
        if apply:
            store.set_index(found.chosen.spec)
            with progress("Building the index", total=len(store), quiet=quiet, unit="entries") as bar:
                store.compact(progress=bar.to)
    rows = [_row(trial) for trial in found.trials]
    if csv:
        write_rows(csv, rows)
    if json:
        facts = {"rows": found.rows, "queries": found.queries, "k": found.k, "batch": found.batch}
        echo_json({"chosen": str(found.chosen.spec), "reason": found.reason, **facts, "applied": apply, "trials": rows})
        return
    print_table(
        ("index", f"recall@{found.k}", f"queries/s ({found.batch} at once)", "one by one", "bytes/vector", "build s"),
        [
            (
                f"{'→ ' if trial is found.chosen else ''}{trial.spec}",
                f"{trial.recall:.4f}",
                f"{trial.queries_per_s:,.0f}",
                f"{trial.queries_per_s_single:,.0f}",
                f"{trial.bytes_per_vector:,.0f}",
                f"{trial.build_s:.1f}",
            )
            for trial in found.trials
        ],
    )
    typer.echo(found.reason)
    if not apply:
        typer.echo("add --apply to use it")


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "index": str(trial.spec),
        "recall": round(trial.recall, 6),
        "queries_per_s": round(trial.queries_per_s, 1),
        "queries_per_s_single": round(trial.queries_per_s_single, 1),
        "bytes_per_vector": round(trial.bytes_per_vector, 1),
        "build_s": round(trial.build_s, 3),
    }
