"""``rarvision memory …``: make, fill, look into and measure a memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import models, options
from rarvision.cli.output import echo_json, print_table, progress, say
from rarvision.errors import InputError, OptionError

if TYPE_CHECKING:
    from rarvision.memory import AddReport, LocalMemory
    from rarvision.types import Sample

__all__ = ["app"]

SOME_FAILED = 1

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


class IndexKind(StrEnum):
    """How vectors are searched."""

    AUTO = "auto"
    EXACT = "exact"
    HNSW = "hnsw"


class Order(StrEnum):
    """Which images of a category are taken."""

    RANDOM = "random"
    FIRST = "first"


SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE]...",
        help="A folder with a subfolder a category; a CSV or JSONL file of images and labels; a .txt file of names; "
        "with --category: images, folders, globs.",
        show_default=False,
    ),
]
CategoryOption = Annotated[
    str | None, typer.Option("--category", metavar="NAME", help="The sources are images of this one category.")
]
ShotsOption = Annotated[
    int | None, typer.Option("--shots", min=1, metavar="N", help="At most N images a category.", show_default="all")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Chooses the images of --shots.")]
OrderOption = Annotated[
    Order, typer.Option("--order", help="With --shots: a seeded random choice, or the first in list order.")
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help='How names are put to the encoder, such as "a photo of a {}."; may be given several times.',
        show_default="{}",
    ),
]
WithNamesOption = Annotated[
    bool, typer.Option("--with-names", help="Store the categories' names beside their images, for fused retrieval.")
]


@app.command()
def create(
    memory: options.MemoryArgument,
    sources: SourcesArgument = None,
    *,
    encoder: options.NewEncoderOption = "embedded:clip-16",
    index: Annotated[IndexKind, typer.Option("--index", help="auto is exact while small, HNSW when large.")] = (
        IndexKind.AUTO
    ),
    thumbnails: Annotated[
        int,
        typer.Option("--thumbnails", min=0, metavar="PX", help="Store small copies of the images; 0 stores none."),
    ] = 96,
    category: CategoryOption = None,
    shots: ShotsOption = None,
    seed: SeedOption = 0,
    order: OrderOption = Order.RANDOM,
    template: TemplateOption = None,
    with_names: WithNamesOption = False,
    batch_size: options.BatchSizeOption = 32,
    device: options.DeviceOption = "auto",
    max_pixels: options.MaxPixelsOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Make a memory, and fill it if sources are given.

    \b
    Examples:
      rarvision memory create pets.memory train/ --encoder openai/clip-vit-base-patch16 --shots 4
      rarvision memory create pets.memory train.csv --with-names --thumbnails 128
      rarvision memory create names.memory names.txt --template "a photo of a {}."
    """
    from rarvision.memory import LocalMemory

    models.set_max_pixels(max_pixels)
    additions = _Additions(
        sources or [], category=category, shots=shots, seed=seed, order=order, template=template, with_names=with_names
    )
    created = LocalMemory.create(
        memory,
        encoder=models.open_encoder(encoder, device=device),
        index=index.value,
        thumbnails=thumbnails or None,
        metadata={models.ENCODER_KEY: encoder},
    )
    with created as store:
        additions.into(store, batch_size=batch_size, quiet=quiet, json=json)


@app.command()
def add(
    memory: options.MemoryArgument,
    sources: SourcesArgument,
    *,
    category: CategoryOption = None,
    shots: ShotsOption = None,
    seed: SeedOption = 0,
    order: OrderOption = Order.RANDOM,
    template: TemplateOption = None,
    with_names: WithNamesOption = False,
    encoder: options.EncoderOption = None,
    batch_size: options.BatchSizeOption = 32,
    device: options.DeviceOption = "auto",
    max_pixels: options.MaxPixelsOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Add images or names to a memory; what it holds already is skipped.

    \b
    Examples:
      rarvision memory add pets.memory more-pets/
      rarvision memory add pets.memory photos/tabby-*.jpg --category "tabby cat"
      rarvision memory add pets.memory names.txt --template "a photo of a {}, a type of pet."
    """
    from rarvision.memory import LocalMemory

    models.set_max_pixels(max_pixels)
    additions = _Additions(
        sources or [], category=category, shots=shots, seed=seed, order=order, template=template, with_names=with_names
    )
    with LocalMemory.open(memory) as store:
        models.bind_encoder(store, encoder=encoder, device=device)
        additions.into(store, batch_size=batch_size, quiet=quiet, json=json)


class _Additions:
    """What is to be added: opened, so that bad input shows before anything is made."""

    def __init__(
        self,
        sources: list[str],
        *,
        category: str | None,
        shots: int | None,
        seed: int,
        order: Order,
        template: list[str] | None,
        with_names: bool,
    ) -> None:
        from rarvision.datasets import NameList, open_dataset
        from rarvision.images import iter_image_paths
        from rarvision.types import Sample

        self.templates = tuple(template or ("{}",))
        self.names: list[str] = []
        self.samples: list[Iterable[Sample]] = []
        self.total = 0
        if category is not None:
            if shots is not None:
                raise OptionError("--shots chooses among categories; with --category name the images themselves")
            paths = list(iter_image_paths(sources))
            self.samples.append(Sample(source=str(path), image=path, label=category) for path in paths)
            self.total = len(paths)
            self.names += [category] if with_names else []
            return
        for source in sources:
            opened = open_dataset(source)
            if isinstance(opened, NameList):
                self.names += opened
                continue
            chosen = opened if shots is None else opened.few_shot(shots=shots, seed=seed, order=order.value)
            self.samples.append(chosen)
            self.total += len(chosen)
            self.names += chosen.categories if with_names else []

    def _all(self) -> Iterator[Sample]:
        for samples in self.samples:
            yield from samples

    def into(self, store: LocalMemory, *, batch_size: int, quiet: bool, json: bool) -> None:
        """Add to the memory, tell what was done, and exit with 1 where images failed."""
        counts = {"added": 0, "skipped": 0, "failed": 0}

        def count(report: AddReport) -> None:
            for key in counts:
                counts[key] += getattr(report, key)

        if self.total:
            with progress("Encoding", total=self.total, quiet=quiet) as bar:
                count(store.add(self._all(), batch_size=batch_size, on_error=_report_bad, progress=bar.to))
        if self.names:
            count(store.add_texts(self.names, templates=self.templates))
        entries, categories = len(store), len(store.categories())
        if json:
            echo_json({**counts, "entries": entries, "categories": categories})
        else:
            typer.echo(
                f"added {counts['added']:,}, skipped {counts['skipped']:,} that were there, "
                f"failed {counts['failed']:,}; the memory holds {entries:,} entries of {categories:,} categories"
            )
        if counts["failed"]:
            raise typer.Exit(SOME_FAILED)


def _report_bad(sample: Sample, error: InputError) -> None:
    message = str(error)
    say(message if sample.source in message else f"{sample.source}: {message}")


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
    json: options.JsonOption = False,
) -> None:
    """Show what a memory is and holds.

    \b
    Example:
      rarvision memory info pets.memory --json
    """
    from rarvision.memory import LocalMemory

    with LocalMemory.open(memory) as store:
        facts = store.info().to_dict()
        names = store.categories()
    if json:
        echo_json(facts | ({"category_names": names} if categories else {}))
        return
    rows = [(key.replace("_", " "), _fact(value)) for key, value in facts.items() if value not in ({}, None)]
    print_table(("", ""), rows)
    if categories:
        print_table(("category",), [(name,) for name in names])


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
        list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Files, folders, globs.", show_default=False)
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
    json: options.JsonOption = False,
) -> None:
    """Show the nearest entries of images or words.

    \b
    Examples:
      rarvision memory search pets.memory cat.jpg
      rarvision memory search pets.memory --text "a cat without fur" --among image --json
    """
    import numpy as np

    from rarvision.images import iter_image_paths
    from rarvision.memory import LocalMemory

    models.set_max_pixels(max_pixels)
    paths = [str(path) for path in iter_image_paths(images or [])]
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
    for message in bad.values():
        say(message)
    for query, neighbours in zip(labels, found, strict=True):
        hits = [
            {
                "id": hit.entry.id,
                "category": hit.entry.category,
                "modality": hit.entry.modality,
                "source": hit.entry.source,
                "similarity": round(hit.similarity, 6),
            }
            for hit in neighbours
        ]
        if json:
            echo_json({"query": query, "neighbours": hits})
        else:
            rows = [(f"{h['similarity']:.3f}", str(h["category"]), str(h["modality"]), str(h["source"])) for h in hits]
            print_table(("similarity", "category", "modality", "source"), rows, title=query)
    if json:
        for i, message in bad.items():
            echo_json({"query": paths[i], "error": message})
    if bad:
        raise typer.Exit(SOME_FAILED)


@app.command()
def evaluate(
    memory: options.MemoryArgument,
    *,
    leave_one_out: Annotated[  # noqa: ARG001 - the only way so far, spelt out
        bool, typer.Option("--leave-one-out", help="Ask for each image, that image left out (the default).")
    ] = True,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Measure how well a memory's images recognise one another, without any other data.

    \b
    Example:
      rarvision memory evaluate cub.memory --leave-one-out --json

    \b
    --json prints one object: top1, recall_at_5_images (the category is among the 5 nearest images),
      recall_at_5_categories (among the 5 nearest categories), entries, categories
    """
    from rarvision.memory import LocalMemory
    from rarvision.retrieval import leave_one_out as measure

    with (
        LocalMemory.open(memory) as store,
        progress("Leaving one out", total=store.count("image"), quiet=quiet) as bar,
    ):
        result = measure(store, progress=bar.to).to_dict()
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
