"""``rarvision memory create`` and ``add``: labelled images and names go into a memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import models, options
from rarvision.cli.inputs import STDIN, image_paths
from rarvision.cli.output import echo_json, progress, say
from rarvision.errors import InputError, OptionError

if TYPE_CHECKING:
    from rarvision.detection import Vocabulary
    from rarvision.memory import AddReport, Memory
    from rarvision.types import Sample

__all__ = ["add", "create"]

SOME_FAILED = 1


class Engine(StrEnum):
    """Who decodes and encodes images."""

    LOCAL = "local"
    RAY = "ray"


class Order(StrEnum):
    """Which images of a category are taken."""

    RANDOM = "random"
    FIRST = "first"


SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE]...",
        help="A folder with a subfolder a category; a CSV or JSONL file of images and labels; a table of the datasets "
        "library; a public benchmark such as flowers102:train; a .txt file of names; with --category: images, folders, "
        "globs, or - for a list of them on standard input.",
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
        help='How names are put to the encoder, such as "a photo of a {}.", or a set: plain, photo, clip-7; may be '
        "given several times.",
        show_default="{}",
    ),
]
WithNamesOption = Annotated[
    bool, typer.Option("--with-names", help="Store the categories' names beside their images, for fused retrieval.")
]
VocabularyOption = Annotated[
    bool,
    typer.Option(
        "--vocabulary",
        help="The sources are categories of a detection data set: .json (LVIS, COCO, or the list of categories alone), "
        "or .txt with a name a line, ids from 1. Names are cleaned, ids kept.",
    ),
]
SynonymsOption = Annotated[
    bool, typer.Option("--synonyms", help="With --vocabulary: also an entry for each synonym in the file.")
]
DefinitionsOption = Annotated[
    bool, typer.Option("--definitions", help="With --vocabulary: also an entry for each definition in the file.")
]


def create(
    memory: options.MemoryArgument,
    sources: SourcesArgument = None,
    *,
    encoder: options.NewEncoderOption = "embedded:clip-16",
    index: Annotated[
        str,
        typer.Option(
            "--index",
            metavar="KIND",
            help="auto (exact while small, shortlists of compressed vectors when large), exact, hnsw, rescored, or a "
            "faiss factory string.",
        ),
    ] = "auto",
    thumbnails: Annotated[
        int,
        typer.Option(
            "--thumbnails",
            min=0,
            metavar="PX",
            help="Longest side of the small copies of the images, which stay when the images move; 10 to 20 KB an "
            "image at 256, a third or less at 96. 0 stores none.",
        ),
    ] = 256,
    category: CategoryOption = None,
    null: options.NullOption = False,
    shots: ShotsOption = None,
    seed: SeedOption = 0,
    order: OrderOption = Order.RANDOM,
    template: TemplateOption = None,
    with_names: WithNamesOption = False,
    vocabulary: VocabularyOption = False,
    synonyms: SynonymsOption = False,
    definitions: DefinitionsOption = False,
    data_root: options.DataRootOption = None,
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
      rarvision memory create pets.memory train.csv --with-names --thumbnails 0
      rarvision memory create names.memory names.txt --template "a photo of a {}."
      rarvision memory create lvis.memory lvis_v1_val.json --vocabulary --synonyms --template clip-7
      rarvision memory create pets.memory oxford_pets:train --shots 4 --with-names --data-root ~/data
    """
    from rarvision.memory.opening import create_memory

    models.set_max_pixels(max_pixels)
    additions = _Additions(
        sources or [],
        category=category,
        null=null,
        shots=shots,
        seed=seed,
        order=order,
        template=template,
        with_names=with_names,
        vocabulary=vocabulary,
        synonyms=synonyms,
        definitions=definitions,
        data_root=data_root,
    )
    created = create_memory(
        memory,
        encoder=models.open_encoder(encoder, device=device),
        index=index,
        thumbnails=thumbnails or None,
        metadata={models.ENCODER_KEY: encoder},
    )
    with created as store:
        additions.into(store, batch_size=batch_size, quiet=quiet, json=json)


def add(
    memory: options.MemoryArgument,
    sources: SourcesArgument,
    *,
    category: CategoryOption = None,
    null: options.NullOption = False,
    shots: ShotsOption = None,
    seed: SeedOption = 0,
    order: OrderOption = Order.RANDOM,
    template: TemplateOption = None,
    with_names: WithNamesOption = False,
    vocabulary: VocabularyOption = False,
    synonyms: SynonymsOption = False,
    definitions: DefinitionsOption = False,
    data_root: options.DataRootOption = None,
    encoder: options.EncoderOption = None,
    engine: Annotated[
        Engine, typer.Option("--engine", help="Where images are encoded: here, or by workers of Ray; see docs.")
    ] = Engine.LOCAL,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="ADDRESS",
            help="A running Ray cluster, such as auto or ray://head:10001.",
            show_default="RAY_ADDRESS, else this machine",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, metavar="N", help="Encoders at work in Ray.", show_default="one a GPU or CPU"),
    ] = None,
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
      find . -name 'tabby*.jpg' -print0 | rarvision memory add pets.memory - -0 --category "tabby cat"
      rarvision memory add pets.memory names.txt --template "a photo of a {}, a type of pet."
      rarvision memory add pets.memory photos.csv --engine ray --ray-address auto
      rarvision memory add v3det.memory category_name_13204_v3det_2023_v1.txt --vocabulary --template photo
    """
    from rarvision.memory.opening import open_memory

    models.set_max_pixels(max_pixels)
    additions = _Additions(
        sources or [],
        category=category,
        null=null,
        shots=shots,
        seed=seed,
        order=order,
        template=template,
        with_names=with_names,
        vocabulary=vocabulary,
        synonyms=synonyms,
        definitions=definitions,
        data_root=data_root,
    )
    if engine is Engine.LOCAL and (ray_address is not None or workers is not None):
        raise OptionError("--ray-address and --workers go with --engine ray")
    with open_memory(memory) as store:
        bulk = None
        if engine is Engine.RAY:
            bulk = models.ray_options(store, encoder=encoder, device=device) | {
                "address": ray_address,
                "workers": workers,
            }
        else:
            models.bind_encoder(store, encoder=encoder, device=device)
        additions.into(store, batch_size=batch_size, quiet=quiet, json=json, bulk=bulk)


class _Additions:
    """What is to be added: opened, so that bad input shows before anything is made."""

    def __init__(
        self,
        sources: list[str],
        *,
        category: str | None,
        null: bool,
        shots: int | None,
        seed: int,
        order: Order,
        template: list[str] | None,
        with_names: bool,
        vocabulary: bool,
        synonyms: bool,
        definitions: bool,
        data_root: Path | None,
    ) -> None:
        from rarvision.datasets import NameList, open_dataset
        from rarvision.encoders import check_templates
        from rarvision.types import Sample

        self.templates = check_templates(template or ("{}",))
        self.names: list[str] = []
        self.samples: list[Iterable[Sample]] = []
        self.vocabularies: list[Vocabulary] = []
        self.texts: dict[str, Any] = {"synonyms": synonyms, "definitions": definitions}
        self.total = 0
        if vocabulary:
            if category is not None or null or shots is not None or with_names:
                raise OptionError(
                    "--vocabulary is of names alone; --category, --null, --shots and --with-names are of images: "
                    "add these by a second command"
                )
            self._read_vocabularies(sources)
            return
        if synonyms or definitions:
            raise OptionError("--synonyms and --definitions go with --vocabulary: other sources have none")
        if category is not None:
            if shots is not None:
                raise OptionError("--shots chooses among categories; with --category name the images themselves")
            paths = list(image_paths(sources, null=null))
            self.samples.append(Sample(source=str(path), image=path, label=category) for path in paths)
            self.total = len(paths)
            self.names += [category] if with_names else []
            return
        if null or STDIN in sources:
            raise OptionError(
                "- and -0 (--null) read a list of images on standard input, which tells no categories; say theirs by "
                "--category NAME, or give a CSV file of images and labels"
            )
        for source in sources:
            opened = open_dataset(source, data_root=data_root)
            if isinstance(opened, NameList):
                self.names += opened
                continue
            chosen = opened if shots is None else opened.few_shot(shots=shots, seed=seed, order=order.value)
            self.samples.append(chosen)
            self.total += len(chosen)
            self.names += chosen.categories if with_names else []

    def _read_vocabularies(self, sources: list[str]) -> None:
        from rarvision.detection import read_vocabulary, vocabulary_texts

        for source in sources:
            self.vocabularies.append(read_vocabulary(source))
            for note in vocabulary_texts(self.vocabularies[-1], **self.texts).notes:
                say(f"{self.vocabularies[-1].name}: {note}")

    def _all(self) -> Iterator[Sample]:
        for samples in self.samples:
            yield from samples

    def into(
        self, store: Memory, *, batch_size: int, quiet: bool, json: bool, bulk: dict[str, Any] | None = None
    ) -> None:
        """Add to the memory, tell what was done, and exit with 1 where images failed."""
        counts = {"added": 0, "skipped": 0, "failed": 0}

        def count(report: AddReport) -> None:
            for key in counts:
                counts[key] += getattr(report, key)

        if self.total:
            with progress("Encoding", total=self.total, quiet=quiet) as bar:
                told: dict[str, Any] = {"batch_size": batch_size, "on_error": _report_bad, "progress": bar.to}
                if bulk is None:
                    count(store.add(self._all(), **told))
                else:
                    from rarvision.memory.bulk_ray import add_with_ray

                    count(add_with_ray(store, self._all(), **told, **bulk))
        if bulk is not None and (self.names or self.vocabularies):
            store.bind(bulk["load"]())
        if self.names:
            with progress("Encoding names", total=len(self.names), quiet=quiet, unit="names") as bar:
                count(store.add_texts(self.names, templates=self.templates, progress=bar.to))
        for vocabulary in self.vocabularies:
            count(self._add_vocabulary(store, vocabulary, quiet=quiet))
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

    def _add_vocabulary(self, store: Memory, vocabulary: Vocabulary, *, quiet: bool) -> AddReport:
        from rarvision.detection import add_vocabulary, vocabulary_texts

        total = len(vocabulary_texts(vocabulary, **self.texts).texts)
        with progress("Encoding names", total=total, quiet=quiet, unit="texts") as bar:
            return add_vocabulary(store, vocabulary, templates=self.templates, progress=bar.to, **self.texts).added


def _report_bad(sample: Sample, error: InputError) -> None:
    message = str(error)
    say(message if sample.source in message else f"{sample.source}: {message}")
