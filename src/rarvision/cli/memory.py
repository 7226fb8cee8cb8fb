"""``rarvision memory …``: make, fill, look into and measure a memory."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import filling, memory_care, memory_exchange, memory_index, memory_migrate, models, options
from rarvision.cli.conditions import (
    AmongOption,
    CategoryOption,
    IdOption,
    SourceOption,
    WhereOption,
    conditions,
    parse_where,
)
from rarvision.cli.inputs import image_paths
from rarvision.cli.output import echo_json, print_table, progress, say, size_text, write_rows
from rarvision.errors import OptionError

if TYPE_CHECKING:
    from rarvision.memory import Memory
    from rarvision.types import Neighbour

__all__ = ["app"]

SOME_FAILED = 1
_SEARCH_COLUMNS = ("query", "rank", "id", "category", "modality", "source", "similarity", "error")

app = typer.Typer(
    short_help="Make, fill, search, measure and care for a memory.",
    help="""
Make a memory of labelled images or names, and look into it.

A memory is a folder, or lives in Milvus (milvus:FILE.db#NAME, milvus+http://HOST:PORT#NAME). It is bound to the
encoder that made its vectors, and remembers it.

\b
Examples:
  rarvision memory create pets.memory train/ --encoder openai/clip-vit-base-patch16
  rarvision memory add pets.memory names.txt
  rarvision memory info pets.memory
  rarvision memory evaluate pets.memory --leave-one-out
  rarvision memory export pets.memory pets.parquet
  rarvision memory verify pets.memory

Commands that change a memory do so at once, without asking, and say what they did. One process writes at a time, others
read meanwhile; whatever a command reports as done survives a crash. Exit codes are those of rarvision --help.
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command()(filling.create)
app.command()(filling.add)
app.command()(memory_migrate.migrate)


@app.command()
def remove(
    memory: options.MemoryArgument,
    *,
    category: CategoryOption = None,
    source: SourceOption = None,
    entry: IdOption = None,
    where: WhereOption = None,
    json: options.JsonOption = False,
) -> None:
    """Remove entries; conditions given together must all hold.

    \b
    Examples:
      rarvision memory remove pets.memory --category "tabby cat"
      rarvision memory remove pets.memory --id 17 --id 18
      rarvision memory remove pets.memory --category "tabby cat" --where year=2019 --where checked=false
    """
    chosen = conditions(category=category, source=source, entry=entry, where=where)
    if not chosen:
        raise OptionError("say what to remove: --category NAME, --source PATH, --id N, or --where KEY=VALUE")
    from rarvision.memory import open_memory

    with open_memory(memory) as store:
        removed = store.remove(**chosen)
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
    """Show what a memory is and holds: counts, sizes, its encoder, and what opening it put right.

    --csv FILE writes one row; with --categories a row a category instead: category, images, texts.

    \b
    Examples:
      rarvision memory info pets.memory --json
      rarvision memory info pets.memory --categories --csv categories.csv
    """
    from rarvision.memory.opening import open_memory

    with open_memory(memory) as store:
        facts = store.info().to_dict()
        names, repairs = store.categories(), list(store.repairs)
        if csv and categories:
            write_rows(csv, _counts(store), columns=("category", "images", "texts"))
        elif csv:
            write_rows(csv, [facts])
    if json:
        echo_json(facts | {"repairs": repairs} | ({"category_names": names} if categories else {}))
        return
    facts |= facts.pop("details")
    rows = [(key.replace("_", " "), _fact(key, value)) for key, value in facts.items() if value not in ({}, None)]
    print_table(("", ""), [*rows, *(("put right on opening", repair) for repair in repairs)])
    if categories:
        print_table(("category",), [(name,) for name in names])


def _counts(store: Memory) -> Iterator[dict[str, Any]]:
    """How many entries each category has, in the order in which the categories came."""
    images = Counter(store.table("image")[1].tolist())
    texts = Counter(store.table("text")[1].tolist())
    codes = {name: code for code, name in store.category_names().items()}
    for name in store.categories():
        yield {"category": name, "images": images[codes[name]], "texts": texts[codes[name]]}


def _fact(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_fact(name, item)}" for name, item in value.items())
    if not isinstance(value, int) or isinstance(value, bool):
        return str(value)
    return size_text(value) if key.endswith("bytes") else f"{value:,}"


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
    among: AmongOption = None,
    where: WhereOption = None,
    category: Annotated[
        list[str] | None,
        typer.Option(
            "--category",
            metavar="NAME",
            help="Only entries of it; given several times, of any of them.",
            show_default=False,
        ),
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
      rarvision memory search pets.memory cat.jpg --category "tabby cat" --category siamese --where year=2019

    Of the conditions, all must hold; the nearest among the entries that meet them are found, however few those are.

    \b
    --json prints one object a line: query, neighbours [id, category, modality, source, similarity]
      or: query, error
    --csv writes a row a neighbour: query, rank, id, category, modality, source, similarity, error
    """
    import numpy as np

    from rarvision.memory import Where, open_memory

    models.set_max_pixels(max_pixels)
    filters = Where(categories=category or None, metadata=parse_where(where))
    paths = [str(path) for path in image_paths(images or [], null=null)]
    words = text or []
    if not paths and not words:
        raise OptionError("say what to search for: images, or --text WORDS")
    with open_memory(memory) as store:
        _check_categories(store, category or [])
        models.bind_encoder(store, encoder=encoder, device=device)
        bad: dict[int, str] = {}
        vectors = store.encoder.encode_images(paths, on_error=lambda i, error: bad.__setitem__(i, str(error)))
        good = [i for i in range(len(paths)) if i not in bad]
        queries = np.concatenate((vectors[good], store.encoder.encode_texts(words))) if words else vectors[good]
        labels = [paths[i] for i in good] + words
        found = store.search(queries, k, modality=among.value if among else None, where=filters) if labels else []
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


def _check_categories(store: Memory, names: list[str]) -> None:
    known = store.categories() if names else []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise OptionError(f"no category {name!r} in the memory{f'; did you mean {near[0]!r}?' if near else ''}")


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
    from rarvision.memory.opening import open_memory
    from rarvision.retrieval import leave_one_out as measure

    with (
        open_memory(memory) as store,
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


memory_exchange.register(app)
memory_care.register(app)
memory_index.register(app)
