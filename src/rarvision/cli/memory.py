"""``rarvision memory …``: make, fill, look into and measure a memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import filling, models, options
from rarvision.cli.inputs import image_paths
from rarvision.cli.output import echo_json, print_table, progress, say, write_rows
from rarvision.errors import OptionError

if TYPE_CHECKING:
    from rarvision.memory import LocalMemory
    from rarvision.types import Neighbour

__all__ = ["app"]

SOME_FAILED = 1
_SEARCH_COLUMNS = ("query", "rank", "id", "category", "modality", "source", "similarity", "error")

app = typer.Typer(
    short_help="Make, fill, search and measure a memory.",
    help="""
Make a memory of labelled images or names, and look into it.

A memory is a folder. It is bound to the encoder that made its vectors, and remembers it.

\b
Examples:
  rarvision memory create pets.memory train/ --encoder openai/clip-vit-base-patch16
  rarvision memory add pets.memory names.txt
  rarvision memory info pets.memory
  rarvision memory evaluate pets.memory --leave-one-out
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command()(filling.create)
app.command()(filling.add)


@app.command()
def remove(
    memory: options.MemoryArgument,
    *,
    category: Annotated[str | None, typer.Option("--category", metavar="NAME", help="Everything of it.")] = None,
    source: Annotated[str | None, typer.Option("--source", metavar="PATH", help="What came from there.")] = None,
    entry: Annotated[
        list[int] | None, typer.Option("--id", metavar="N", help="An entry by number; may be given several times.")
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Remove entries; conditions given together must all hold.

    \b
    Examples:
      rarvision memory remove pets.memory --category "tabby cat"
      rarvision memory remove pets.memory --id 17 --id 18
    """
    if category is None and source is None and not entry:
        raise OptionError("say what to remove: --category NAME, --source PATH, or --id N")
    from rarvision.memory import LocalMemory

    with LocalMemory.open(memory) as store:
        removed = store.remove(ids=entry or None, category=category, source=source)
        left = len(store)
    if json:
        echo_json({"removed": removed, "entries": left})
    else:
        typer.echo(f"removed {removed:,} entries; {left:,} are left")


@app.command()
def info(
    memory: options.MemoryArgument,
    *,
    categories: Annotated[bool, typer.Option("--categories", help="Also list the categories' names.")] = False,
    csv: options.CsvOption = None,
    json: options.JsonOption = False,
) -> None:
    """Show what a memory is and holds.

    --csv FILE writes one row; with --categories a row a category instead: category, images, texts.

    \b
    Examples:
      rarvision memory info pets.memory --json
      rarvision memory info pets.memory --categories --csv categories.csv
    """
    from rarvision.memory import LocalMemory

    with LocalMemory.open(memory) as store:
        facts = store.info().to_dict()
        names = store.categories()
        if csv and categories:
            write_rows(csv, _counts(store), columns=("category", "images", "texts"))
        elif csv:
            write_rows(csv, [facts])
    if json:
        echo_json(facts | ({"category_names": names} if categories else {}))
        return
    rows = [(key.replace("_", " "), _fact(value)) for key, value in facts.items() if value not in ({}, None)]
    print_table(("", ""), rows)
    if categories:
        print_table(("category",), [(name,) for name in names])


def _counts(store: LocalMemory) -> Iterator[dict[str, Any]]:
    """How many entries each category has, in the order in which the categories came."""
    images = Counter(store.table("image")[1].tolist())
    texts = Counter(store.table("text")[1].tolist())
    codes = {name: code for code, name in store.category_names().items()}
    for name in store.categories():
        yield {"category": name, "images": images[codes[name]], "texts": texts[codes[name]]}


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_fact(item)}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@app.command("import")
def import_(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="A faiss index that stores its vectors.")],
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="A text file; line i is 'path label' for vector i, from 0.")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new memory's folder.")],
    classnames: Annotated[
        Path | None, typer.Option("--classnames", metavar="FILE", help="Names of numbered labels, one a line, from 0.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            metavar="MODEL|FOLDER",
            help="The encoder that made the vectors, which they cannot tell; without it the memory can be evaluated, "
            "but not queried with images.",
        ),
    ] = None,
    device: options.DeviceOption = "auto",
    json: options.JsonOption = False,
) -> None:
    """Make a memory of an existing faiss index with a label file, such as the paper's authors publish.

    \b
    Example:
      rarvision memory import cub200_database.index cub200_database.txt --classnames classnames.txt --out cub.memory
    """
    from rarvision.memory import import_faiss

    loaded = None if encoder is None else models.open_encoder(encoder, device=device)
    with import_faiss(index, labels, out, classnames=classnames, encoder=loaded) as store:
        result = {"entries": len(store), "categories": len(store.categories()), "dim": store.dim}
    if json:
        echo_json(result)
    else:
        typer.echo(f"{out}: {result['entries']:,} entries of {result['categories']:,} categories, {result['dim']}-d")


@app.command()
def search(
    memory: options.MemoryArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...",
            help="Files, folders, globs; - reads a list on standard input.",
            show_default=False,
        ),
    ] = None,
    *,
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="Search by words; may be given several times.")
    ] = None,
    k: options.KOption = 5,
    among: Annotated[
        options.Modality | None,
        typer.Option("--among", help="Only among the memory's images, or its names.", show_default="both"),
    ] = None,
    encoder: options.EncoderOption = None,
    device: options.DeviceOption = "auto",
    max_pixels: options.MaxPixelsOption = None,
    null: options.NullOption = False,
    csv: options.CsvOption = None,
    json: options.JsonOption = False,
) -> None:
    """Show the nearest entries of images or words.

    \b
    Examples:
      rarvision memory search pets.memory cat.jpg
      rarvision memory search pets.memory photos/ -k 10 --csv neighbours.csv
      rarvision memory search pets.memory --text "a cat without fur" --among image --json

    \b
    --json prints one object a line: query, neighbours [id, category, modality, source, similarity]
      or: query, error
    --csv writes a row a neighbour: query, rank, id, category, modality, source, similarity, error
    """
    import numpy as np

    from rarvision.memory import LocalMemory

    models.set_max_pixels(max_pixels)
    paths = [str(path) for path in image_paths(images or [], null=null)]
    words = text or []
    if not paths and not words:
        raise OptionError("say what to search for: images, or --text WORDS")
    with LocalMemory.open(memory) as store:
        models.bind_encoder(store, encoder=encoder, device=device)
        bad: dict[int, str] = {}
        vectors = store.encoder.encode_images(paths, on_error=lambda i, error: bad.__setitem__(i, str(error)))
        good = [i for i in range(len(paths)) if i not in bad]
        queries = np.concatenate((vectors[good], store.encoder.encode_texts(words))) if words else vectors[good]
        labels = [paths[i] for i in good] + words
        found = store.search(queries, k, modality=among.value if among else None) if labels else []
    records: list[dict[str, Any]] = [
        {"query": query, "neighbours": [_hit(neighbour) for neighbour in neighbours]}
        for query, neighbours in zip(labels, found, strict=True)
    ]
    records += [{"query": paths[i], "error": message} for i, message in bad.items()]
    if csv:
        write_rows(csv, _search_rows(records), columns=_SEARCH_COLUMNS)
    for record in records:
        if json:
            echo_json(record)
        if "error" in record:
            say(record["error"])
        elif not json:
            rows = [(f"{h['similarity']:.3f}", h["category"], h["modality"], h["source"]) for h in record["neighbours"]]
            print_table(("similarity", "category", "modality", "source"), rows, title=record["query"])
    if bad:
        raise typer.Exit(SOME_FAILED)


def _hit(neighbour: Neighbour) -> dict[str, Any]:
    entry = neighbour.entry
    return {
        "id": entry.id,
        "category": entry.category,
        "modality": entry.modality,
        "source": entry.source,
        "similarity": round(neighbour.similarity, 6),
    }


def _search_rows(records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for record in records:
        if "error" in record:
            yield dict(record)
        else:
            for rank, hit in enumerate(record["neighbours"], start=1):
                yield {"query": record["query"], "rank": rank, **hit}


@app.command()
def evaluate(
    memory: options.MemoryArgument,
    *,
    leave_one_out: Annotated[  # noqa: ARG001 - the only way so far, spelt out
        bool, typer.Option("--leave-one-out", help="Ask for each image, that image left out (the default).")
    ] = True,
    csv: options.CsvOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Measure how well a memory's images recognise one another, without any other data.

    \b
    Example:
      rarvision memory evaluate cub.memory --leave-one-out --json

    \b
    --json prints one object: top1, recall_at_5_images (the category is among the 5 nearest images),
      recall_at_5_categories (among the 5 nearest categories), entries, categories; --csv writes it as a row
    Units: top1 and the recalls are shares from 0 to 1; entries counts images, categories counts names
    """
    from rarvision.memory import LocalMemory
    from rarvision.retrieval import leave_one_out as measure

    with (
        LocalMemory.open(memory) as store,
        progress("Leaving one out", total=store.count("image"), quiet=quiet) as bar,
    ):
        result = measure(store, progress=bar.to).to_dict()
    if csv:
        write_rows(csv, [result])
    if json:
        echo_json(result)
        return
    print_table(
        ("", ""),
        [
            ("images", f"{result['entries']:,}"),
            ("categories", f"{result['categories']:,}"),
            ("top-1 by the nearest image", f"{result['top1']:.1%}"),
            ("among the 5 nearest images", f"{result['recall_at_5_images']:.1%}"),
            ("among the 5 nearest categories", f"{result['recall_at_5_categories']:.1%}"),
        ],
    )
