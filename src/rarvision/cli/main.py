"""The command ``rarvision``: its subcommands, its exit codes, and how errors reach the person."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rarvision.cli.output import printable
from rarvision.errors import (
    ChatError,
    EncoderError,
    MemoryStoreError,
    MissingExtraError,
    RarvisionError,
    TrainingError,
)

__all__ = ["app", "exit_code", "run"]

OK, SOME_FAILED, BAD_INPUT, BAD_MEMORY, BAD_MODEL, UNEXPECTED, INTERRUPTED = 0, 1, 2, 3, 4, 70, 130

HELP = """
Recognise what is in an image out of a vocabulary of any size, by retrieving and ranking.

Images go into a memory; for a new image the most similar categories are retrieved from it, and a multimodal LLM ranks
them.

\b
See it work, offline, with the small models that come along:
  rarvision demo

\b
Recognise your own images from a few examples of each category:
  rarvision memory create pets.memory train/ --encoder openai/clip-vit-base-patch16
  rarvision recognize photos/*.jpg --memory pets.memory
  rarvision recognize photos/*.jpg --memory pets.memory --ranker http://localhost:8000/v1

\b
Exit codes:
  0    done
  1    done, but something needs a look: images that failed, or what `memory verify`,
       `datasets check` or `tune check` found
  2    wrong usage, or an input that cannot be read
  3    the memory: missing, empty, damaged, or of another encoder
  4    a model: the encoder or the multimodal LLM cannot be loaded, does not answer or cannot be trained
  70   an error that rarvision did not expect; please report it, with what --debug shows
  130  interrupted; what was written to --output stays, and the same command goes on

`--debug` anywhere shows the traceback of an error.
"""


def exit_code(error: BaseException) -> int:
    """The documented exit code of an error."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, MemoryStoreError):
        return BAD_MEMORY
    if isinstance(error, (EncoderError, ChatError, MissingExtraError, TrainingError)):
        return BAD_MODEL
    return BAD_INPUT if isinstance(error, (RarvisionError, OSError)) else UNEXPECTED


class _Group(TyperGroup):
    """Ends every command that fails with one line on standard error and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output has gone, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from None
        except (RarvisionError, OSError, KeyboardInterrupt) as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            typer.echo(f"rarvision: {_one_line(error)}", err=True)
            raise typer.Exit(exit_code(error)) from None
        except Exception as error:
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort):
                raise  # the parser's own: wrong usage, --help, --version
            if ctx.params.get("debug"):
                traceback.print_exc()
            kind = type(error).__name__
            typer.echo(f"rarvision: unexpected {kind}: {_one_line(error)} (--debug shows where)", err=True)
            raise typer.Exit(exit_code(error)) from None


def _one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return printable(str(error)) or "interrupted"
    if isinstance(error, OSError) and error.filename is not None:
        return printable(f"{error.filename}: {error.strerror}")
    return printable(" ".join(str(error).split("\n")) or type(error).__name__)


app = typer.Typer(
    cls=_Group,
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(value: bool) -> None:  # noqa: FBT001 - the signature of a typer callback
    if value:
        from importlib.metadata import version

        typer.echo(f"rarvision {version('rarvision')}")
        raise typer.Exit(OK)


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    del version, debug  # acted upon by the callback, and by _Group


def run(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with a documented code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(debug_first(sys.argv[1:] if arguments is None else arguments), prog_name="rarvision")


def debug_first(arguments: list[str]) -> list[str]:
    """Let ``--debug`` stand anywhere: move it before the subcommand."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != "--debug"]
    found = ["--debug"] if len(options) < end else []
    return [*found, *options, *arguments[end:]]


def _register() -> None:
    from rarvision.cli import compare, datasets, demo, evaluate, fit, memory, name, recognize, regions, reproduce, tune

    app.command("demo", short_help="See it work, offline, in a minute.")(demo.demo)
    app.command("recognize", short_help="Recognise images.")(recognize.recognize)
    app.command("evaluate", short_help="Measure accuracy on labelled images.")(evaluate.evaluate)
    app.command("regions", short_help="Recognise boxes of an image.")(regions.regions)
    app.command("evaluate-regions", short_help="Measure AP on annotated boxes.")(regions.evaluate_regions)
    app.command("compare", short_help="Compare two evaluations.")(compare.compare)
    app.command("name", short_help="Name images without a list of categories.")(name.name)
    app.command("reproduce", short_help="Carry out the paper's experiments.")(reproduce.reproduce)
    app.command("report", short_help="Write the reports of experiments again.")(reproduce.report)
    app.command("fit", short_help="Fit mix, gate and unknown on a memory.")(fit.fit)
    app.add_typer(memory.app, name="memory")
    app.add_typer(datasets.app, name="datasets")
    app.add_typer(tune.app, name="tune")


_register()
