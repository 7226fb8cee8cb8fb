"""``rarvision demo``: the embedded default, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rarvision.cli import options
from rarvision.cli.output import echo_json, print_table, progress, say

__all__ = ["demo"]


def demo(
    *,
    domain: Annotated[
        str, typer.Option("--domain", metavar="NAME", help="birds, fish, flowers, aircraft or butterflies.")
    ] = "birds",
    categories: Annotated[int, typer.Option("--categories", min=2, metavar="N", help="Size of the vocabulary.")] = 200,
    shots: Annotated[int, typer.Option("--shots", min=1, metavar="N", help="Images a category in the memory.")] = 4,
    queries: Annotated[int, typer.Option("--queries", min=1, metavar="N", help="Images to recognise.")] = 200,
    k: options.KOption = 5,
    strategy: options.StrategyOption = options.Strategy.LIKELIHOOD,
    encoder: Annotated[
        str, typer.Option("--encoder", "-e", metavar="clip-16|clip-32", help="Which of the embedded encoders.")
    ] = "clip-16",
    seed: Annotated[int, typer.Option("--seed", "-S", help="Chooses the categories and images.")] = 0,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Write queries, candidates and rankings as a picture."),
    ] = Path("demo/rarvision-demo.png"),
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Write no picture.")] = False,
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
    """
    from rarvision.demo import run_demo

    wanted = None if no_picture else picture
    with progress("Demo", total=None, quiet=quiet) as bar:
        result = run_demo(
            seed=seed,
            domain=domain,
            categories=categories,
            shots=shots,
            queries=queries,
            k=k,
            strategy=strategy.value,
            encoder=encoder,
            picture=wanted,
            progress=bar,
        )
    if json:
        echo_json(result.to_dict())
        return
    print_table(result.columns, result.rows)
    if wanted is not None:
        say(f"picture: {wanted}")
