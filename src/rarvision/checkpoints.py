"""What a user names as a model: a folder on this machine, or a repository on the model hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rarvision.errors import RarvisionError

__all__ = ["checkpoint_source", "without_weight_bars"]


def checkpoint_source(model: str | Path, *, missing: type[RarvisionError]) -> str:
    """What ``from_pretrained`` takes: the folder with ``~`` replaced, or the hub name as it is.

    Args:
        model: A folder, or a hub name such as ``openai/clip-vit-base-patch16``.
        missing: Raised where a folder was meant (a `Path`, or a text that begins or is divided like one) and there is
            none, before the hub is asked for it.
    """
    text = str(model)
    folder = Path(text)
    if text.startswith("~"):
        try:
            folder = folder.expanduser()
        except RuntimeError as error:
            raise missing(f"no model folder at {text}: {error}; write the path out") from error
        text = str(folder)
    meant = isinstance(model, Path) or folder.is_absolute() or text.startswith(".") or text.count("/") > 1
    if meant and not folder.is_dir():
        raise missing(f"no model folder at {text}; give a folder with config.json, or a hub name")
    return text


@contextmanager
def without_weight_bars() -> Iterator[None]:
    """Keep transformers' bars of loading weights out of a program's output; the hub's bars of downloads stay."""
    from transformers.utils import logging

    def hidden(bar: Any, args: Any, kwargs: Any) -> Any:
        return bar(*args, **{**kwargs, "disable": True})

    before = logging.set_tqdm_hook(hidden)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
