"""``rarvision tune …``: examples to learn ranking from, their formats, the guard against leakage, training."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

import typer

from rarvision.cli import models, options, tune_train
from rarvision.cli.output import Bar, echo_json, print_table, printable, progress, say, show
from rarvision.errors import DatasetError, InputError, OptionError

if TYPE_CHECKING:
    from rarvision.datasets import Dataset
    from rarvision.memory import Memory
    from rarvision.tuning import ImageSet, LeakageReport, TuningReport
    from rarvision.tuning.leakage import Role

__all__ = ["app"]

SOME_FAILED = 1

app = typer.Typer(
    short_help="Teach a multimodal LLM to rank: examples, checks, training.",
    help="""
Teach a multimodal LLM to rank candidates, as the paper does on images of aircraft.

`data` makes ranking examples out of labelled images, `check` makes sure that nothing of the test is among them,
`convert` writes them in the formats of other trainers; `train` learns from them, `merge` makes one model of a model and
what was learned.

\b
Examples:
  rarvision tune data train/ --encoder openai/clip-vit-base-patch16 --output tuning.jsonl --test test/
  rarvision tune check --tuning tuning.jsonl --memory pets.memory --test test/
  rarvision tune convert tuning.jsonl --format llava --output llava.json
  rarvision tune train tuning.jsonl --model llava-hf/llava-1.5-7b-hf --out runs/llava
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Format(StrEnum):
    """Trainers whose data formats can be written."""

    AUTHORS = "authors"
    LLAVA = "llava"
    QWEN_VL = "qwen-vl"
    MS_SWIFT = "ms-swift"
    LLAMA_FACTORY = "llama-factory"


_TEST = "Images to be tested with later: a folder with a subfolder a category, or a CSV or JSONL file. May be repeated."
SharedOption = Annotated[
    bool,
    typer.Option("--shared-categories", help="Tuning and test are meant to have categories in common: no leakage."),
]
ThresholdOption = Annotated[
    int,
    typer.Option(
        "--threshold",
        min=-1,
        max=64,
        metavar="BITS",
        help="Look-alikes differ in at most so many bits of their 64-bit perceptual hashes; -1 looks for equal bytes "
        "only, without decoding any image.",
    ),
]
AllowOption = Annotated[bool, typer.Option("--allow-leakage", help="Say what leaks, and go on.")]


@app.command()
def data(
    dataset: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DATASET]",
            help="A folder with a subfolder a category, or a CSV or JSONL file of images and labels.",
            show_default=False,
        ),
    ] = None,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The examples, JSON lines; given again, goes on.")
    ],
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            "-m",
            metavar="DIR",
            help="Instead of DATASET: a memory whose images serve, with the vectors that it has.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            metavar="MODEL|FOLDER|embedded:clip-16|embedded:clip-32",
            help="Tells how similar the images of DATASET are; a memory has its own.",
            show_default="embedded:clip-16",
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=2, help="Neighbours in a window, so names in an example.")] = 5,
    neighbours: Annotated[
        int, typer.Option("--neighbours", "-n", min=2, metavar="N", help="Neighbours of each image.")
    ] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Of the halves and of the order in which names are shown.")] = 0,
    max_windows: Annotated[
        int | None,
        typer.Option("--max-windows", min=1, metavar="N", help="Examples an image at most.", show_default="all"),
    ] = None,
    fill: Annotated[
        bool,
        typer.Option(
            "--fill",
            help="Complete a window with the names found after it, so that it shows k where there are as many.",
        ),
    ] = False,
    paper_compat: Annotated[
        bool,
        typer.Option(
            "--paper-compat",
            help="As the authors' code: no halves, each image is its own first neighbour, names repeat, no shuffling.",
        ),
    ] = False,
    test: Annotated[list[Path] | None, typer.Option("--test", metavar="DATASET", help=_TEST)] = None,
    threshold: ThresholdOption = 8,
    shared_categories: SharedOption = False,
    allow_leakage: AllowOption = False,
    resume: options.ResumeOption = True,
    batch_size: options.BatchSizeOption = 32,
    device: options.DeviceOption = "auto",
    max_pixels: options.MaxPixelsOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Make examples to learn ranking from, out of labelled images.

    Each category's images are split into two halves. For each image of one half the nearest images of the other are
    found; every window of k of them in which the true name occurs is an example: the names in random order, to be
    answered with the true one first and the others as they were retrieved. A category with a single image is never
    asked about, only retrieved.

    Stopped, the same command goes on where it was: what it has encoded stays in FILE.work, what it has written in
    FILE.part, until FILE is complete. Other settings are refused, with what differs.

    With --test, images that are also among the test's, or look like them, and categories that are in both, are refused
    before anything is made.

    \b
    Examples:
      rarvision tune data aircraft/ -e openai/clip-vit-base-patch16 -o tuning.jsonl
      rarvision tune data --memory aircraft.memory -o tuning.jsonl --fill --max-windows 4
      rarvision tune data aircraft/ -e openai/clip-vit-base-patch16 -o tuning.jsonl --test pets/ --test cars.csv
      rarvision tune data aircraft/ -e openai/clip-vit-base-patch16 -o paper.jsonl --paper-compat

    \b
    FILE: the first line is an object with the settings and the report, each further one an example: id, image (relative
      to FILE's folder), label, candidates (as shown), target (as to be answered), retrieved (most similar first)
    --json prints one object: examples, images, categories, retrieved_images, asked_images, images_with_examples,
      windows, left_out (windows by reason), names (examples by number of names), singletons (categories with one
      image), self_matches, duplicates, thumbnails, failures; with --test also leakage, as `tune check` prints it
    """
    from rarvision.memory import open_memory
    from rarvision.tuning import build_tuning_data

    models.set_max_pixels(max_pixels)
    if (dataset is None) == (memory is None):
        raise OptionError("say what to make examples of: DATASET, or --memory DIR; one of the two")
    if memory is not None and encoder is not None:
        raise OptionError("--encoder goes with DATASET; a memory has its vectors already")
    tests = [(path, _open_dataset(path)) for path in test or []]
    with ExitStack() as stack:
        source: Dataset | Memory
        if memory is not None:
            source, loaded = stack.enter_context(open_memory(memory)), None
        else:
            source = _open_dataset(cast("Path", dataset))
            loaded = models.open_encoder(encoder or "embedded:clip-16", device=device)
        found: list[LeakageReport] = []
        if tests:
            looks = threshold >= 0
            tuned = _read_set(source, "tuning", looks=looks, quiet=quiet)
            for path, each in tests:
                tested = _read_set(each, "test", looks=looks, quiet=quiet)
                found.append(
                    _check(
                        tuned,
                        tested,
                        threshold=threshold,
                        shared_categories=shared_categories,
                        allow_leakage=allow_leakage,
                    )
                )
                if found[-1].leaked:
                    say(f"{path}: {found[-1].summary()} (allowed)")
        stages = stack.enter_context(_Stages(quiet=quiet))
        report = build_tuning_data(
            source,
            output,
            encoder=loaded,
            k=k,
            neighbours=neighbours,
            seed=seed,
            max_windows=max_windows,
            fill=fill,
            paper_compat=paper_compat,
            resume=resume,
            batch_size=batch_size,
            on_error=_tell,
            progress=stages.to,
        )
    if json:
        leakage = {"leakage": [each.to_dict() for each in found]} if tests else {}
        echo_json(report.to_dict() | leakage)
    else:
        show(printable(f"{report.examples:,} examples in {output}"))
        print_table(("", ""), _rows(report))
    if report.failures:
        raise typer.Exit(SOME_FAILED)


@app.command()
def check(
    *,
    test: Annotated[list[Path] | None, typer.Option("--test", metavar="DATASET", help=_TEST)] = None,
    tuning: Annotated[
        Path | None,
        typer.Option(
            "--tuning",
            metavar="FILE|DATASET",
            help="What is learnt from: examples of `tune data`, or a dataset.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", "-m", metavar="DIR", help="The memory that is searched.", show_default=False),
    ] = None,
    threshold: ThresholdOption = 8,
    examples: Annotated[
        int, typer.Option("--examples", min=1, metavar="N", help="Pairs of images that are named, for each two sets.")
    ] = 10,
    shared_categories: SharedOption = False,
    allow_leakage: AllowOption = False,
    max_pixels: options.MaxPixelsOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Look for test images and categories in what is learnt from, and for test images in the memory.

    Images are the same when their bytes are, or when they look the same: scaled, compressed, slightly cropped. Names
    are the same whatever their case, underscores and hyphens. Leakage are test images in the memory, and test images
    or categories in the tuning set; what the memory and the tuning set share is only counted.

    Exit code 1 says that there is leakage, or that images could not be read.

    \b
    Examples:
      rarvision tune check --tuning tuning.jsonl --memory pets.memory --test test/
      rarvision tune check --memory pets.memory --test test.csv --threshold -1
      rarvision tune check --tuning aircraft/ --test pets/ --test cars/ --json

    \b
    --json prints one object a test set: test, images, categories and unreadable (counts by set), threshold, overlaps
      [first, second, exact, near, categories, examples [first, second, kind, bits], leaks], leaked
    """
    from rarvision.memory import open_memory

    models.set_max_pixels(max_pixels)
    if not test:
        raise OptionError("say what is tested with: --test DATASET")
    if tuning is None and memory is None:
        raise OptionError("say what to compare the test with: --tuning FILE, --memory DIR, or both")
    tests = [(path, _open_dataset(path)) for path in test]
    looks, others = threshold >= 0, []
    if memory is not None:
        with open_memory(memory) as store:
            others.append(_read_set(store, "memory", looks=looks, quiet=quiet))
    if tuning is not None:
        others.append(_read_set(_open_tuning(tuning), "tuning", looks=looks, quiet=quiet))
    bad = any(each.unreadable for each in others)
    for path, opened in tests:
        tested = _read_set(opened, "test", looks=looks, quiet=quiet)
        report = _check(
            *others,
            tested,
            threshold=threshold,
            shared_categories=shared_categories,
            allow_leakage=True,
            examples=examples,
        )
        if json:
            echo_json({"test": str(path), **report.to_dict()})
        else:
            _show(report, title=f"{path}: {len(tested.sources):,} images of {len(tested.categories):,} categories")
        bad = bad or bool(tested.unreadable) or (report.leaked and not allow_leakage)
    if bad:
        raise typer.Exit(SOME_FAILED)


@app.command()
def convert(
    manifest: Annotated[Path, typer.Argument(metavar="FILE", help="Examples that `tune data` wrote.")],
    *,
    to: Annotated[Format, typer.Option("--format", "-f", help="Whose format: see below.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Replaced where it is there.")],
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt",
            metavar="NAME|FILE",
            help="paper, in-context, long, or a text file with the field {categories}: the one to be asked later.",
        ),
    ] = "paper",
    image_root: Annotated[
        Path | None,
        typer.Option(
            "--image-root", metavar="DIR", help="Write paths relative to this folder.", show_default="absolute paths"
        ),
    ] = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    r"""Write examples in the format of another trainer.

    \b
    Formats:
      authors        the paper's code (InternLM-XComposer): a JSON array of id, image [path], conversations
      llava          LLaVA: a JSON array of id, image, conversations of human and gpt, <image> in the question
      qwen-vl        Qwen-VL: a JSON array of id, conversations of user and assistant, the path in the question
      ms-swift       ms-swift: JSON lines of messages, images
      llama-factory  LLaMA-Factory, sharegpt: a JSON array of conversations, images

    \b
    Examples:
      rarvision tune convert tuning.jsonl --format llava --output llava.json --image-root aircraft/
      rarvision tune convert tuning.jsonl --format ms-swift --output swift.jsonl --prompt in-context

    \b
    --json prints one object: examples, format, output
    """
    from rarvision.tuning import convert_manifest

    template = models.read_prompt(prompt) or prompt
    with progress("Converting", total=None, quiet=quiet, unit="examples") as bar:
        count = convert_manifest(
            manifest, output, cast("Any", to.value), prompt=template, image_root=image_root, progress=bar.to
        )
    if json:
        echo_json({"examples": count, "format": to.value, "output": str(output)})
    else:
        typer.echo(f"wrote {count:,} examples to {output}")


def _open_dataset(path: Path) -> Dataset:
    from rarvision.datasets import NameList, open_dataset
    from rarvision.tuning import is_manifest

    opened = None if path.is_file() and is_manifest(path) else open_dataset(path)
    if opened is None:
        raise DatasetError(f"{path}: holds tuning examples already; expected a dataset of images and labels")
    if isinstance(opened, NameList):
        raise DatasetError(f"{path}: holds names only; expected images")
    return opened


def _open_tuning(path: Path) -> Dataset | Path:
    from rarvision.tuning import is_manifest

    return path if path.is_file() and is_manifest(path) else _open_dataset(path)


def _read_set(source: Dataset | Memory | Path, role: Role, *, looks: bool, quiet: bool) -> ImageSet:
    from rarvision.memory import Memory
    from rarvision.tuning import image_set

    total = None if isinstance(source, Path) else source.count("image") if isinstance(source, Memory) else len(source)
    with progress(f"Reading the {role} images", total=total, quiet=quiet) as bar:
        return image_set(source, role, looks=looks, on_error=_tell, progress=bar.to)


def _check(*sets: ImageSet, threshold: int, **more: Any) -> LeakageReport:
    from rarvision.tuning import check_leakage

    return check_leakage(*sets, threshold=None if threshold < 0 else threshold, **more)


def _tell(source: str, error: InputError) -> None:
    message = str(error)
    say(message if source in message else f"{source}: {message}")


class _Stages:
    """A progress bar for each stage, one after the other."""

    _LABELS = {"encoding": "Encoding", "retrieving": "Finding neighbours"}  # noqa: RUF012 - read only

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._stack = ExitStack()
        self._stage = ""
        self._bar = Bar()

    def to(self, stage: str, done: int, total: int) -> None:
        """So many of the stage's are done."""
        if stage != self._stage:
            self._stack.close()
            shown = progress(self._LABELS[stage], total=total, quiet=self._quiet)
            self._stage, self._bar = stage, self._stack.enter_context(shown)
        self._bar.to(done)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()


_REASONS = {
    "without_label": "without the true name",
    "single_name": "with one name only",
    "repeated": "that repeat another of their image",
    "over_limit": "beyond --max-windows",
}


def _rows(report: TuningReport) -> list[tuple[str, str]]:
    rows = [
        ("images", f"{report.images:,} of {report.categories:,} categories"),
        ("retrieved from", f"{report.retrieved_images:,}"),
        ("asked about", f"{report.asked_images:,}, {report.images_with_examples:,} of them in examples"),
        ("windows", f"{report.windows:,}"),
    ]
    rows += [(f"  left out {_REASONS[reason]}", f"{count:,}") for reason, count in report.left_out.items()]
    rows += [(f"examples of {names} names", f"{count:,}") for names, count in report.names.items()]
    further = [
        ("categories with one image, not asked about", len(report.singletons)),
        ("neighbours that were the image itself, passed by", report.self_matches),
        ("images that equal another of their category", report.duplicates),
        ("images taken from thumbnails, their files being gone", report.thumbnails),
        ("images that could not be used", len(report.failures)),
    ]
    return rows + [(what, f"{count:,}") for what, count in further if count]


def _show(report: LeakageReport, *, title: str) -> None:
    show(printable(title))
    print_table(("", "same bytes", "look-alikes", "categories"), report.table())
    for overlap in report.overlaps:
        for pair in overlap.examples:
            how = "same bytes" if pair.kind == "exact" else f"look-alike ({pair.bits} bits of 64)"
            show(printable(f"  {how}: {pair.second} is {pair.first} in the {overlap.first} set"))
    show(printable(f"leakage: {report.summary()}" if report.leaked else "no leakage"))


tune_train.register(app)
