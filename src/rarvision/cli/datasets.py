"""``rarvision datasets …``: the public benchmarks, what they are, and whether they are complete on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import options
from rarvision.cli.output import echo_json, print_table, progress, show, write_rows

if TYPE_CHECKING:
    from rarvision.datasets import Benchmark, BenchmarkCheck

__all__ = ["app"]

SOME_FAILED = 1

app = typer.Typer(
    short_help="The public benchmarks: list, describe, name, check.",
    help="""
The public benchmarks that the paper measures on: what they are, how they lie on disk, whether they are complete there.

Nothing is downloaded: the benchmarks belong to their authors, and some are given on request only. Wherever a command
takes a dataset, a name such as flowers102:test serves as well.

\b
Examples:
  rarvision datasets list
  rarvision datasets info flowers102
  rarvision datasets names flowers102 --data-root ~/data
  rarvision datasets check flowers102 --data-root ~/data
  rarvision evaluate flowers102:test --memory flowers.memory --data-root ~/data

\b
NAME[@SPLITS][:SPLIT[+SPLIT]]
  flowers102:test            the test split, of the splits that the paper uses
  flowers102@official:test   of the authors' own splits
  flowers102@hub:test        of a copy from the Hugging Face hub, in DIR/flowers102-hub; needs rarvision[hub]
  oxford_pets:train+val      two splits together
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_all(*, csv: options.CsvOption = None, json: options.JsonOption = False) -> None:
    """List the benchmarks that are known by name.

    \b
    Examples:
      rarvision datasets list
      rarvision datasets list --json

    \b
    --json prints one object a benchmark, a line each, as `datasets info --json` does; --csv writes a row a benchmark:
      name, title, task, classes, images, default, licence
    """
    from rarvision.datasets import BENCHMARKS

    rows = [_row(known) for known in BENCHMARKS.values()]
    if csv:
        write_rows(csv, rows)
    if json:
        for known in BENCHMARKS.values():
            echo_json(known.to_dict())
        return
    print_table(
        ("name", "title", "classes", "images", "splits", "licence"),
        [
            (r["name"], r["title"], f"{r['classes']:,}", f"{r['images']:,}", r["default"] or "(boxes)", r["licence"])
            for r in rows
        ],
    )


@app.command()
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a benchmark; `datasets list` has them.")],
    *,
    json: options.JsonOption = False,
) -> None:
    """Describe a benchmark: splits, licence, where to get it, how it lies on disk, how to cite it.

    \b
    Example:
      rarvision datasets info flowers102

    \b
    --json prints one object: name, title, about, task, classes, images, default (the splits a name without @ means),
      splits (images by split, by splits), splits_about, templates, licence, homepage, download, size, folders, layout,
      hub, citation, cautions, tried
    """
    from rarvision.datasets import benchmark

    known = benchmark(name)
    if json:
        echo_json(known.to_dict())
        return
    for line in _lines(known):
        show(line)


@app.command("names")
def class_names(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a benchmark, or NAME@SPLITS.")],
    *,
    data_root: options.DataRootOption = None,
) -> None:
    """Print the names of a benchmark's classes, one a line, in its own order: a vocabulary for a memory of names.

    \b
    Example:
      rarvision datasets names imagenet --data-root ~/data > imagenet.txt
      rarvision memory create imagenet.memory imagenet.txt --template "a photo of a {}."
    """
    from rarvision.cli.output import say
    from rarvision.datasets.benchmarks import Reference, class_names

    names, notes = class_names(Reference.of(name), data_root)
    for note in notes:
        say(f"note: {note}")
    for each in names:
        show(each)


@app.command()
def check(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Benchmarks; NAME@SPLITS for other splits, NAME:SPLIT for one of them."),
    ],
    *,
    data_root: options.DataRootOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Open no image; look for the files only.")] = False,
    max_pixels: options.MaxPixelsOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Find out what of a benchmark is missing or wrong on disk.

    Compared with what is published: the folder, the lists, the images and classes of each split, images in two splits.
    Then the files: missing, empty, and, without --quick, such as cannot be read. Exits with 1 where anything is wrong.

    \b
    Examples:
      rarvision datasets check flowers102 --data-root ~/data
      rarvision datasets check dtd@official-2 food101:test --quick
      rarvision datasets check eurosat@hub --json

    \b
    --json prints one object a benchmark: dataset, ok, folder, opened, splits [split, expected, listed, classes, missing
      (and empty), unreadable], problems [kind, message, count, examples], notes
    """
    from rarvision.cli import models
    from rarvision.datasets import check_benchmark
    from rarvision.datasets.benchmarks import Reference

    models.set_max_pixels(max_pixels)
    asked = [Reference.of(name) for name in names]
    wrong = False
    for reference in asked:
        counts = reference.benchmark.counts().get(reference.way, {})
        total = sum(counts[split] or 0 for split in reference.splits or counts)
        with progress(f"Opening {reference}", total=total or None, quiet=quiet) as bar:
            found = check_benchmark(reference, data_root, quick=quick, progress=lambda done, _total: bar.to(done))
        wrong = wrong or not found.ok
        if json:
            echo_json(found.to_dict())
        else:
            _tell(found, quick=quick)
    if wrong:
        raise typer.Exit(SOME_FAILED)


def _row(known: Benchmark) -> dict[str, Any]:
    facts = known.to_dict()
    return {key: facts[key] for key in ("name", "title", "task", "classes", "images", "default", "licence")}


def _lines(known: Benchmark) -> list[str]:
    def count(images: int | None) -> str:
        return "?" if images is None else f"{images:,}"

    lines = [f"{known.name}: {known.title}", f"  {known.about}", ""]
    lines += [f"  {known.classes:,} classes, {known.images:,} images; {known.size}", f"  licence: {known.licence}"]
    lines += [f"  homepage: {known.homepage}", f"  cite: {known.citation}"]
    lines += [f'  template: "{template}"' for template in known.templates]
    if known.splits:
        lines += ["", "  splits"]
        for way, counts in known.counts().items():
            mark = " (default)" if way == known.default else ""
            what = known.splits[way].about if way in known.splits else f"a copy from the hub, {known.table.repository}"  # type: ignore[union-attr]
            sizes = ", ".join(f"{split} {count(images)}" for split, images in counts.items())
            lines.append(f"    @{way}{mark}: {sizes}; {what}")
    lines += ["", "  files"] + [f"    {line}" for line in known.download]
    lines += ["", f"  layout (the folder may be called {', '.join(known.folders)})"]
    lines += [f"    {line}" for line in known.tree.splitlines()]
    lines += ["", f"  tried on: {known.tried}"]
    if known.cautions:
        lines += ["", "  mind"] + [f"    {line}" for line in known.cautions]
    return lines


def _tell(found: BenchmarkCheck, *, quick: bool) -> None:
    def count(value: int | None) -> str:
        return "-" if value is None else f"{value:,}"

    print_table(
        ("split", "expected", "listed", "classes", "missing", "unreadable"),
        [
            (
                each.split,
                count(each.expected),
                count(each.listed),
                count(each.classes),
                count(each.missing),
                count(each.unreadable),
            )
            for each in found.splits
        ],
        title=f"{found.dataset}  {found.folder or ''}",
    )
    for problem in found.problems:
        show(f"{problem.kind}: {problem.message}")
        for example in problem.examples:
            show(f"  {example}")
        if problem.examples and problem.count > len(problem.examples):
            show(f"  … and {problem.count - len(problem.examples):,} more")
    for note in found.notes:
        show(f"note: {note}")
    looked = "no image was opened" if quick else f"{found.opened:,} images were opened"
    show(f"{found.dataset}: {'complete' if found.ok else 'not complete'}; {looked}")
