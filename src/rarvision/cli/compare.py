"""``rarvision compare``: two evaluations of the same images in, their difference out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rarvision.cli import models, options
from rarvision.cli.levels import open_tree
from rarvision.cli.output import echo_json, print_table

__all__ = ["compare"]


def compare(
    first: Annotated[
        Path,
        typer.Argument(
            metavar="A.jsonl", help="What `evaluate --output` wrote; or a folder of such files, one a seed."
        ),
    ],
    second: Annotated[
        Path,
        typer.Argument(metavar="B.jsonl", help="The same for the other run; in a folder, files of the same names."),
    ],
    *,
    name_encoder: Annotated[
        str,
        typer.Option(
            "--name-encoder",
            metavar="spelling|MODEL|FOLDER",
            help="What the likeness of names (sACC) is computed with: their spelling, which knows no meaning; or a "
            "sentence encoder, the paper's being sentence-transformers/all-mpnet-base-v2.",
        ),
    ] = "spelling",
    taxonomy: Annotated[
        str | None,
        typer.Option(
            "--taxonomy",
            metavar="FILE|fieldguide",
            help="Compare the first name's group at each level, too; see `evaluate --help`.",
            show_default=False,
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", metavar="SHARE", help="Of the intervals, between 0 and 1.")
    ] = 0.95,
    resamples: Annotated[int, typer.Option("--resamples", metavar="N", min=1, help="Of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 0,
    device: options.DeviceOption = "auto",
    json: options.JsonOption = False,
) -> None:
    """Say whether two evaluations differ by more than the choice of images explains.

    Every figure is compared image by image: the second minus the first, its bootstrap interval, and two p values of "no
    difference": by the paired bootstrap, and by McNemar's exact test, which counts the images that only one of the two
    has right. Both runs must be over the same images with the same labels; images without an answer count as wrong.
    Give folders with a file a seed, and seeds are resampled too; there is no McNemar's test then.

    \b
    Examples:
      rarvision evaluate test/ -m pets.memory --output knn.jsonl
      rarvision evaluate test/ -m pets.memory -r http://localhost:8000/v1 --output ranked.jsonl
      rarvision compare knn.jsonl ranked.jsonl
      rarvision compare knn-seeds/ ranked-seeds/ --name-encoder sentence-transformers/all-mpnet-base-v2 --json

    \b
    --json prints one object: first, second, n, seeds, metrics (top1, retrieval_top1, top5, recall5, cacc, sacc; with
      --taxonomy top1_LEVEL; of each: n, seeds, first, second, difference, interval, confidence, p_bootstrap,
      only_first, only_second, p_mcnemar, resamples), failures, differing (settings, and both values), name_encoder,
      version
    Units: figures, differences and intervals are shares from 0 to 1, of sacc cosines; n, failures, only_first and
      only_second count images
    """
    from rarvision.comparing import compare_runs
    from rarvision.encoders import open_name_encoder

    models.quiet_transformers()
    found = compare_runs(
        first,
        second,
        name_encoder=open_name_encoder(name_encoder, device=device),
        taxonomy=open_tree(taxonomy, None),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    if json:
        echo_json(found.to_dict())
        return
    print_table(found.head, found.rows())
    print_table(("", ""), found.table())
