"""``rarvision memory …``: rename, merge, move, copy; verify, compact, encode anew."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from rarvision.cli.output import echo_json, print_table, printable, progress, say, size_text
from rarvision.errors import InputError, MemoryNotFoundError, OptionError

if TYPE_CHECKING:
    from rarvision.memory import LocalMemory

__all__ = ["register"]

SOME_FAILED = 1

SourceArgument = Annotated[str, typer.Argument(metavar="SRC", help="The memory: its folder, or its address in Milvus.")]
TargetArgument = Annotated[
    str, typer.Argument(metavar="DST", help="Another memory of the same encoder; made where there is none.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``rarvision memory``."""
    for command in (rename, merge, move, copy, verify, compact, reencode):
        app.command()(command)


def rename(
    memory: options.MemoryArgument,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The category's name.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name, which is none yet.")],
    *,
    json: options.JsonOption = False,
) -> None:
    """Give a category another name.

    \b
    Example:
      rarvision memory rename pets.memory "tabby" "tabby cat"

    \b
    --json prints one object: renamed (entries of the category), category, entries, categories
    """
    from rarvision.memory import open_memory

    with open_memory(memory) as store:
        renamed = store.rename_category(old, new)
        result = {"renamed": renamed, "category": new, "entries": len(store), "categories": len(store.categories())}
    if json:
        echo_json(result)
    else:
        say_done(f"{old!r} is now {new!r}: {renamed:,} entries")


def merge(
    memory: options.MemoryArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Categories that become one.")],
    *,
    into: Annotated[str, typer.Option("--into", metavar="NAME", help="The one: new, or a category already.")],
    json: options.JsonOption = False,
) -> None:
    """Make one category of several.

    An entry that the one has already (same image) is dropped rather than doubled.

    \b
    Example:
      rarvision memory merge pets.memory "tabby" "tiger cat" --into "tabby cat"

    \b
    --json prints one object: changed (entries that have another category now), dropped, category, entries, categories
    """
    from rarvision.memory import open_memory

    with open_memory(memory) as store:
        before = len(store)
        changed = store.merge_categories(names, into)
        entries, categories = len(store), len(store.categories())
    dropped = before - entries
    if json:
        echo_json(
            {"changed": changed, "dropped": dropped, "category": into, "entries": entries, "categories": categories}
        )
    else:
        say_done(
            f"{changed:,} entries are of {into!r} now, {dropped:,} doubles dropped; the memory holds {entries:,} "
            f"entries of {categories:,} categories"
        )


def move(
    source_memory: SourceArgument,
    target: TargetArgument,
    *,
    category: CategoryOption = None,
    source: SourceOption = None,
    entry: IdOption = None,
    where: WhereOption = None,
    among: AmongOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Move entries, with their vectors and thumbnails, from one memory to another; all of them without conditions.

    Nothing is encoded again. Entries leave SRC in parts, each once it is safe in DST: interrupted, none is lost, and
    the same command goes on. What DST holds already is not doubled.

    \b
    Examples:
      rarvision memory move pets.memory cats.memory --category "tabby cat"
      rarvision memory move pets.memory archive.memory --where year=2019 --where year=2020

    \b
    --json prints one object: added, skipped (there already), source_entries, target_entries
    """
    chosen = conditions(category=category, source=source, entry=entry, where=where, among=among)
    _transfer(source_memory, target, chosen, removing=True, quiet=quiet, json=json)


def copy(
    source_memory: SourceArgument,
    target: TargetArgument,
    *,
    category: CategoryOption = None,
    source: SourceOption = None,
    entry: IdOption = None,
    where: WhereOption = None,
    among: AmongOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Copy entries, with their vectors and thumbnails, from one memory to another; all of them without conditions.

    Nothing is encoded again. Interrupted, the same command goes on. What DST holds already is skipped.

    \b
    Examples:
      rarvision memory copy pets.memory cats.memory --category "tabby cat"
      rarvision memory copy shop-2.memory all.memory

    \b
    --json prints one object: added, skipped (there already), source_entries, target_entries
    """
    chosen = conditions(category=category, source=source, entry=entry, where=where, among=among)
    _transfer(source_memory, target, chosen, removing=False, quiet=quiet, json=json)


def _transfer(source: str, target: str, chosen: dict[str, Any], *, removing: bool, quiet: bool, json: bool) -> None:
    from rarvision.memory import create_like, open_memory
    from rarvision.memory.exporting import select

    with ExitStack() as stack:
        ours = stack.enter_context(open_memory(source))
        total = len(select(ours, **chosen))
        if not total and not is_address(target) and not Path(target).exists():
            raise OptionError(f"no entry of {source} meets the conditions; nothing was done")
        try:
            theirs = stack.enter_context(open_memory(target))
        except MemoryNotFoundError:
            theirs = stack.enter_context(create_like(target, ours))
        with progress("Moving" if removing else "Copying", total=total, quiet=quiet, unit="entries") as bar:
            report = (ours.move_to if removing else ours.copy_to)(theirs, progress=bar.to, **chosen)
        here, there = len(ours), len(theirs)
    if json:
        echo_json({"added": report.added, "skipped": report.skipped, "source_entries": here, "target_entries": there})
    else:
        done = "moved" if removing else "copied"
        say_done(
            f"{done} {report.added:,}, {report.skipped:,} were there already; {source} holds {here:,} entries now, "
            f"{target} {there:,}"
        )


def verify(
    memory: options.MemoryArgument, *, quiet: options.QuietOption = False, json: options.JsonOption = False
) -> None:
    """Check every row, vector and index of a memory against its checksum, and against the others.

    Reads everything once and changes nothing but what an interrupted command left behind. What is wrong is named, with
    what to do about it. Run it after a crash of the machine, on a copy before you need it, and on old disks.

    \b
    Examples:
      rarvision memory verify pets.memory
      rarvision memory verify backup/pets.memory --json

    \b
    --json prints one object: ok, problems [where, what, advice], repairs (what opening the memory put right)

    \b
    Exit codes:
      0  all is as it was written
      1  something is not; the table says what
      3  it cannot be opened at all
    """
    with open_folder(memory) as store:
        about = store.info()
        with progress("Checking", total=about.bytes >> 20, quiet=quiet, unit="MB") as bar:
            problems = store.verify(progress=in_megabytes(bar.to))
        repairs = store.repairs
    if json:
        echo_json({"ok": not problems, "problems": [asdict(each) for each in problems], "repairs": list(repairs)})
    else:
        for repair in repairs:
            say_done(f"put right on opening: {repair}")
        if problems:
            rows = [(each.where, each.what, each.advice) for each in problems]
            print_table(("where", "what is wrong", "what to do"), rows)
        else:
            say_done(f"{memory}: {about.entries:,} entries, {size_text(about.bytes)}: all as it was written")
    if problems:
        raise typer.Exit(SOME_FAILED)


def open_folder(memory: str) -> LocalMemory:
    """Open a memory in a folder; raises `OptionError` for one that Milvus looks after."""
    if is_address(memory):
        raise OptionError(f"{memory} is kept by Milvus, which looks after its files itself; this is for a folder")
    from rarvision.memory import LocalMemory

    return LocalMemory.open(memory)


def in_megabytes(show: Callable[[int], None]) -> Callable[[int], None]:
    """A progress in bytes as one in units of 2 ** 20 bytes."""
    return lambda done: show(done >> 20)


def compact(
    memory: options.MemoryArgument, *, quiet: options.QuietOption = False, json: options.JsonOption = False
) -> None:
    """Rewrite a memory without what was removed from it, in one piece, with a fresh index where one is worth it.

    Searches answer meanwhile, in other processes too. Interrupted, nothing has changed.

    \b
    Example:
      rarvision memory compact pets.memory

    \b
    --json prints one object: entries, segments_before, segments_after, bytes_before, bytes_after, index
    """
    with (
        open_folder(memory) as store,
        progress("Compacting", total=len(store), quiet=quiet, unit="entries") as bar,
    ):
        report = store.compact(progress=bar.to)
    if json:
        echo_json(asdict(report))
    else:
        say_done(
            f"{report.entries:,} entries: {report.segments_before:,} segments became {report.segments_after:,}, "
            f"{size_text(report.bytes_before)} became {size_text(report.bytes_after)}; index: {report.index}"
        )


def reencode(
    memory: options.MemoryArgument,
    *,
    encoder: options.NewEncoderOption,
    from_thumbnails: Annotated[
        bool,
        typer.Option(
            "--from-thumbnails",
            help="Encode the stored small copies, where there are any, instead of the images: for when those are "
            "gone. They are small, which costs accuracy.",
        ),
    ] = False,
    batch_size: options.BatchSizeOption = 32,
    device: options.DeviceOption = "auto",
    max_pixels: options.MaxPixelsOption = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Give every entry a vector of another encoder, and bind the memory to it.

    The old vectors serve until all new ones are there; then all change at once. Interrupted, the same command goes on.
    Where an image cannot be had, the memory stays with the old encoder and what was encoded is kept: bring the image
    back or remove its entries, and give the command again.

    \b
    Examples:
      rarvision memory reencode pets.memory --encoder google/siglip2-base-patch16-224
      rarvision memory reencode pets.memory --encoder models/my-clip/ --from-thumbnails

    \b
    --json prints one object: encoded, failed, failures [source, error], published, encoder

    \b
    Exit codes:
      0  the memory is the new encoder's
      1  some images cannot be had; the memory is still the old encoder's
    """
    models.set_max_pixels(max_pixels)
    with open_folder(memory) as store:
        loaded = models.open_encoder(encoder, device=device)
        with progress("Encoding anew", total=len(store), quiet=quiet, unit="entries") as bar:
            report = store.reencode(
                loaded,
                from_thumbnails=from_thumbnails,
                batch_size=batch_size,
                metadata={models.ENCODER_KEY: encoder},
                on_error=_report_bad,
                progress=bar.to,
            )
        name = store.encoder_name
    if json:
        failures = [{"source": source, "error": error} for source, error in report.failures]
        echo_json(asdict(report) | {"failures": failures, "encoder": name})
    elif report.published:
        say_done(f"{report.encoded:,} entries have vectors of {encoder} now")
    else:
        say_done(
            f"{report.encoded:,} entries are encoded, {report.failed:,} cannot be: the memory is still {name}'s. Bring "
            "their images back, remove the entries (rarvision memory remove --source PATH), or give --from-thumbnails; "
            "the same command then goes on"
        )
    if not report.published:
        raise typer.Exit(SOME_FAILED)


def _report_bad(source: str, error: InputError) -> None:
    message = str(error)
    say(message if source in message else f"{source}: {message}")


def say_done(message: str) -> None:
    """Tell on standard output what was done; names may hold anything."""
    typer.echo(printable(message))
