"""``rarvision demo``: the embedded default, end to end."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from rarvision.cli import models, options
from rarvision.cli.output import echo_json, print_table, progress, say

__all__ = ["demo"]


class Strategy(StrEnum):
    """What the embedded MLLM was trained to do."""

    GENERATE = "generate"
    CHOICE = "choice"
    LIKELIHOOD = "likelihood"
    POINTWISE = "pointwise"


class EmbeddedEncoder(StrEnum):
    """The encoders that come along."""

    CLIP_16 = "clip-16"
    CLIP_32 = "clip-32"


def demo(
    *,
    domain: Annotated[
        str, typer.Option("--domain", metavar="NAME", help="birds, fish, flowers, aircraft or butterflies.")
    ] = "birds",
    categories: Annotated[int, typer.Option("--categories", min=2, metavar="N", help="Size of the vocabulary.")] = 200,
    shots: Annotated[int, typer.Option("--shots", min=1, metavar="N", help="Images a category in the memory.")] = 4,
    queries: Annotated[int, typer.Option("--queries", min=1, metavar="N", help="Images to recognise.")] = 200,
    k: options.KOption = 5,
    strategy: Annotated[
        Strategy, typer.Option("--strategy", "-s", help="How the MLLM is asked; see rarvision recognize --help.")
    ] = Strategy.LIKELIHOOD,
    encoder: Annotated[
        EmbeddedEncoder, typer.Option("--encoder", "-e", help="Which of the encoders that come along.")
    ] = EmbeddedEncoder.CLIP_16,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the categories and images.")] = 0,
    picture: Annotated[
        Path, typer.Option("--picture", metavar="FILE", help="Draw queries, candidates and rankings into this file.")
    ] = Path("demo/rarvision-demo.png"),
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Draw nothing.")] = False,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """See it work: a drawn field guide, a memory of a few examples each, images of categories that no model has seen.

    Runs offline on the small models that come along, in about a minute on two CPU cores. The table compares the
    nearest image (the paper's CLIP + kNN), the best retrieval, and retrieval with ranking.

    \b
    Examples:
      rarvision demo
      rarvision demo --domain fish --strategy generate
      rarvision demo --seed 1 --categories 500 --shots 8 --json

    \b
    --json prints one object with at least: seed, domain, categories, shots, queries, strategy, knn_top1,
      retrieval_top1, recall_at_5, rar_top1, fallback_rate, repaired_rate, ms_per_image_retrieval,
      ms_per_image_ranking
    recall_at_5 is retrieval's, measured at 5 whatever --k is
    Units: what ends in _top1 or _recall_at_5, and recall_at_5, is in percent, 0 to 100; the two rates are shares from
      0 to 1; what begins with ms_per_image is in milliseconds
    """
    models.quiet_transformers()
    from rarvision.demo import run_demo

    wanted = None if no_picture else picture
    if wanted is not None:
        wanted.parent.mkdir(parents=True, exist_ok=True)
    with progress("Recognising three ways", total=3 * queries, quiet=quiet) as bar:
        result = run_demo(
            seed=seed,
            domain=domain,
            categories=categories,
            shots=shots,
            queries=queries,
            k=k,
            strategy=cast("Any", strategy.value),
            encoder=encoder.value,
            picture=wanted,
            progress=lambda done, _total: bar.to(done),
        )
    if json:
        echo_json(result.to_dict())
        return
    print_table(result.columns, result.rows)
    if wanted is not None:
        say(f"picture: {wanted}")
