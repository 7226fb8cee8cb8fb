"""``rarvision memory migrate``: a memory to another kind of store."""

from __future__ import annotations

from typing import Annotated

import typer

from rarvision.cli import options
from rarvision.cli.output import echo_json, progress

__all__ = ["migrate"]


def migrate(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A memory's folder, or its address in Milvus.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Where to; made where there is none.")],
    *,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Copy a memory to another place or kind of store, with vectors and thumbnails; nothing is encoded again.

    Stopped, the same command skips what is there and goes on. A target that holds something already must be of the
    same encoder. Entries get new numbers. What `rarvision fit` kept goes along, and is called stale there: fit again.

    \b
    Addresses:
      pets.memory                        a folder
      milvus:pets.db#pets                Milvus Lite: a file's path, and the memory's name there
      milvus+http://host:19530#pets      a Milvus server (https too; /DATABASE before the #)

    \b
    Examples:
      rarvision memory migrate pets.memory milvus:pets.db#pets
      rarvision memory migrate pets.memory milvus+http://localhost:19530#pets
      rarvision memory migrate milvus+http://localhost:19530#pets copy.memory
    """
    from rarvision.errors import MemoryNotFoundError
    from rarvision.memory.opening import create_like, open_memory

    with open_memory(source) as old:
        try:
            new = open_memory(target)
        except MemoryNotFoundError:
            new = create_like(target, old)
        with new, progress("Copying", total=len(old), quiet=quiet, unit="entries") as bar:
            report = old.copy_to(new, progress=bar.to)
            there = new.notes()
            for name, text in old.notes().items():
                if name not in there:
                    new.set_note(name, text)
            entries = len(new)
    if json:
        echo_json({"added": report.added, "skipped": report.skipped, "entries": entries})
    else:
        typer.echo(
            f"copied {report.added:,} entries, skipped {report.skipped:,} that were there; the memory holds {entries:,}"
        )
