"""``rarvision tune …``: a multimodal LLM learns to rank."""

from __future__ import annotations

import typer

from rarvision.cli import tune_train

__all__ = ["app"]

app = typer.Typer(
    short_help="Make a multimodal LLM better at ranking.",
    help="Make a multimodal LLM better at ranking.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

tune_train.register(app)
