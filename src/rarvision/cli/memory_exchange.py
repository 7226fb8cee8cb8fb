"""``rarvision memory export`` and ``import``: memories as files of other tools, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rarvision.cli import models, options
from rarvision.cli.conditions import (
    AmongOption,
    CategoryOption,
    IdOption,
    SourceOption,
    WhereOption,
    conditions,
    is_address,
)
from rarvision.cli.output import echo_json, printable, progress, size_text
from rarvision.errors import OptionError

__all__ = ["register"]

PARQUET = ".parquet"
FAISS = (".index", ".faiss")


def register(app: typer.Typer) -> None:
    """Add the commands to ``rarvision memory``."""
    app.command("export")(export)
    app.command("import")(import_)


def export(
    memory: options.MemoryArgument,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="FILE.parquet: everything, in one file. FILE.index: the authors' format."),
    ],
    *,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="With FILE.index: where the lines 'path number' go.",
            show_default="FILE.txt",
        ),
    ] = None,
    classnames: Annotated[
        Path | None,
        typer.Option(
            "--classnames",
            metavar="FILE",
            help="With FILE.index: where the names of the numbers go, one a line.",
            show_default="classnames.txt beside the labels",
        ),
    ] = None,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails/--no-thumbnails", help="Write the small copies of the images too.")
    ] = True,
    category: CategoryOption = None,
    source: SourceOption = None,
    entry: IdOption = None,
    where: WhereOption = None,
    among: AmongOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Write a memory, or some of its entries, into files; a file that is there is replaced once the new one is whole.

    FILE.parquet holds all of it but the index, vectors to the bit, and is read by pandas, polars and datasets;
    rarvision memory import makes a memory of it again. It needs rarvision[parquet]. FILE.index is a faiss HNSW index
    of the images, with two text files, as the paper's authors publish theirs: no metadata, thumbnails or texts.

    \b
    Examples:
      rarvision memory export pets.memory pets.parquet
      rarvision memory export pets.memory cats.parquet --category "tabby cat" --no-thumbnails
      rarvision memory export pets.memory pets_database.index --classnames classnames.txt

    \b
    --json prints one object: entries, left_out (texts, in a FILE.index), bytes, files
    """
    from rarvision.memory import export_faiss, export_parquet, open_memory

    chosen = conditions(category=category, source=source, entry=entry, where=where, among=among)
    suffix = out.suffix.lower()
    if suffix != PARQUET and suffix not in FAISS:
        raise OptionError(f"OUT must end in {PARQUET} or {' or '.join(FAISS)}, which says the format; got {out}")
    if suffix == PARQUET and (labels or classnames):
        raise OptionError(f"--labels and --classnames go with {FAISS[0]}; a {PARQUET} file holds everything itself")
    if suffix in FAISS and (chosen or not thumbnails):
        raise OptionError(f"a {suffix} file takes all images and no thumbnails; conditions go with {PARQUET}")
    with open_memory(memory) as store:
        total = None if chosen else store.count(None if suffix == PARQUET else "image")
        with progress("Exporting", total=total, quiet=quiet, unit="entries") as bar:
            if suffix == PARQUET:
                files = [out]
                report = export_parquet(store, out, thumbnails=thumbnails, progress=bar.to, **chosen)
            else:
                text = labels or out.with_suffix(".txt")
                names = classnames or text.with_name("classnames.txt")
                files = [out, text, names]
                report = export_faiss(store, out, text, classnames=names, progress=bar.to)
    if json:
        echo_json(
            {
                "entries": report.entries,
                "left_out": report.left_out,
                "bytes": report.bytes,
                "files": [str(file) for file in files],
            }
        )
        return
    left_out = f"; {report.left_out:,} texts have no place there" if report.left_out else ""
    typer.echo(
        printable(f"{', '.join(map(str, files))}: {report.entries:,} entries, {size_text(report.bytes)}{left_out}")
    )


def import_(
    index: Annotated[
        Path, typer.Argument(metavar="INDEX", help="A faiss index that stores its vectors, or a Parquet file.")
    ],
    labels: Annotated[
        Path | None,
        typer.Argument(
            metavar="[LABELS]",
            help="With a faiss index: a text file; line i is 'path label' for vector i, from 0.",
            show_default=False,
        ),
    ] = None,
    *,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="DIR",
            help="The new memory's folder; for a Parquet file also a memory that is there, in a folder or in Milvus.",
        ),
    ],
    classnames: Annotated[
        Path | None, typer.Option("--classnames", metavar="FILE", help="Names of numbered labels, one a line, from 0.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            metavar="MODEL|FOLDER",
            help="The encoder that made the vectors. A faiss index cannot tell it: without it the memory can be "
            "evaluated, but not queried with images. A Parquet file that was exported tells it itself.",
        ),
    ] = None,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Make a memory of an existing faiss index with a label file, such as the paper's authors publish, or of Parquet.

    A Parquet file written by rarvision memory export gives back the same entries and vectors. It goes into a new
    memory, or into one of the same encoder, where what is there already is skipped: interrupted, the same command goes
    on.

    \b
    Examples:
      rarvision memory import cub200_database.index cub200_database.txt --classnames classnames.txt --out cub.memory
      rarvision memory import pets.parquet --out pets.memory

    \b
    --json prints one object: entries, categories, dim; for a Parquet file also added, skipped
    """
    if labels is None:
        _import_parquet(index, out, classnames=classnames, encoder=encoder, device=device, quiet=quiet, json=json)
        return
    if index.suffix.lower() == PARQUET:
        raise OptionError(f"a {PARQUET} file holds its labels itself; leave {labels} out")
    from rarvision.memory import import_faiss

    loaded = None if encoder is None else models.open_encoder(encoder, device=device)
    with import_faiss(index, labels, out, classnames=classnames, encoder=loaded) as store:
        result = {"entries": len(store), "categories": len(store.categories()), "dim": store.dim}
    _tell(out, result, json=json)


def _import_parquet(
    path: Path, out: str, *, classnames: Path | None, encoder: str | None, device: str, quiet: bool, json: bool
) -> None:
    if path.suffix.lower() in FAISS:
        raise OptionError(f"{path} needs its LABELS file beside it; only a {PARQUET} file holds its labels itself")
    if classnames is not None:
        raise OptionError(f"--classnames goes with a faiss index; a {PARQUET} file holds its names itself")
    from rarvision.memory import import_parquet, open_memory
    from rarvision.memory.parquet import read_settings

    total = read_settings(path).entries  # what is wrong with the file shows before a model is loaded
    loaded = None if encoder is None else models.open_encoder(encoder, device=device)
    with progress("Importing", total=total, quiet=quiet, unit="entries") as bar:
        if is_address(out):
            with open_memory(out) as there:
                report = import_parquet(path, there, encoder=loaded, progress=bar.to)
        else:
            report = import_parquet(path, out, encoder=loaded, progress=bar.to)
    with open_memory(out) as store:
        result = {"entries": len(store), "categories": len(store.categories()), "dim": store.dim}
    _tell(out, result | {"added": report.added, "skipped": report.skipped}, json=json)


def _tell(out: str, result: dict[str, Any], *, json: bool) -> None:
    if json:
        echo_json(result)
        return
    added = f"; added {result['added']:,}, skipped {result['skipped']:,} that were there" if "added" in result else ""
    typer.echo(
        printable(
            f"{out}: {result['entries']:,} entries of {result['categories']:,} categories, {result['dim']}-d{added}"
        )
    )
