"""``rarvision name``: names for images that have none, and a memory of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import options
from rarvision.cli.output import echo_json, print_table, progress, say, show, write_rows
from rarvision.errors import OptionError

if TYPE_CHECKING:
    from rarvision.datasets import Dataset
    from rarvision.naming import Discovery, Sources

__all__ = ["name"]

SOME_FAILED = 1
_SHOWN = 30


class Preset(StrEnum):
    """`rarvision.naming.NAMING_PRESETS` that name images."""

    RAR = "rar"
    FINER = "finer"
    CASED = "cased"
    BLIP_2 = "blip-2"
    WORDNET_CLIP = "wordnet-clip"


def name(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="A folder of images, in subfolders or not, or a CSV or JSONL file of them; labels are not looked at.",
        ),
    ],
    *,
    preset: Annotated[
        Preset,
        typer.Option(
            "--preset",
            help="Who names: the MLLM asked directly (rar, blip-2), attributes and a language model (finer), nouns of "
            "the nearest captions (cased), the nearest words (wordnet-clip).",
        ),
    ] = Preset.RAR,
    encoder: options.NewEncoderOption = "openai/clip-vit-base-patch16",
    ranker: options.RankerOption = "none",
    llm: Annotated[
        str | None,
        typer.Option(
            "--llm", metavar="MODEL|URL", help="finer: the language model that guesses; --ranker's by default."
        ),
    ] = None,
    words: Annotated[
        Path | None,
        typer.Option(
            "--words",
            metavar="FILE|DIR",
            help="wordnet-clip: the vocabulary; finer: names to look descriptions up in, instead of --llm; cased: what "
            "counts as a noun. One a line, or the folder of WordNet's database.",
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions", metavar="FILE", help="cased: a corpus of captions, one a line, or JSON lines with a caption."
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", metavar="WORD", help="What all images are of, such as bird.", show_default=False)
    ] = "",
    question: Annotated[
        str | None,
        typer.Option("--question", metavar="TEXT", help="What the MLLM is asked; {kind} stands for --kind."),
    ] = None,
    min_votes: Annotated[
        int, typer.Option("--min-votes", min=1, metavar="N", help="Images that must vote for a name.")
    ] = 1,
    template: Annotated[
        list[str] | None,
        typer.Option("--template", metavar="TEXT", help="How names are put to the encoder; may be repeated."),
    ] = None,
    memory: Annotated[
        Path | None, typer.Option("--memory", "-m", metavar="DIR", help="Build a memory of the names and images here.")
    ] = None,
    output: options.OutputOption = None,
    resume: options.ResumeOption = True,
    csv: options.CsvOption = None,
    ranker_model: options.RankerModelOption = None,
    api_key: options.ApiKeyOption = None,
    timeout: options.TimeoutOption = 60.0,
    batch_size: options.BatchSizeOption = 8,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Name images without a list of categories, and build a memory of the names.

    Every image gets guesses; each image then votes (for its own first guess with rar, for CLIP's nearest of all guesses
    otherwise), names without votes are dropped, and every image has the name that is left for it. With --memory the
    names and the images go into a memory, in which `rarvision recognize` and `rarvision evaluate` then search.

    With --output FILE every image's guesses are written at once; the same command given again goes on where it stopped.

    \b
    Examples:
      rarvision name birds/ -r http://localhost:8000/v1 --kind bird --memory birds.memory
      rarvision name birds/ -r llava-hf/llava-1.5-7b-hf --output guesses.jsonl --csv names.csv
      rarvision name birds/ --preset finer -r llava-hf/llava-1.5-7b-hf --llm http://localhost:8000/v1 --kind bird
      rarvision name birds/ --preset wordnet-clip --words /usr/share/wordnet
      rarvision name birds/ --preset cased --captions captions.txt --words /usr/share/wordnet
      rarvision evaluate test/ --memory birds.memory -r http://localhost:8000/v1      # cACC and sACC are in the report

    \b
    --json prints one object: images (source, guesses, name, reason, failed), votes (of each name), dropped (names, and
      why), namer, memory (its folder, or null)
    --csv writes a row an image: source, name, guesses, reason
    """
    from rarvision.cli.models import ENCODER_KEY
    from rarvision.naming import discover

    dataset = _images(images)
    templates = tuple(template) if template else ("a photo of a {}.",)
    with ExitStack() as stack:
        sources = _sources(
            stack,
            preset,
            encoder=encoder,
            device=device,
            mllm={"ranker": ranker, "model": ranker_model, "api_key": api_key, "timeout_s": timeout},
            batch_size=batch_size,
            llm=llm,
            words=words,
            captions=captions,
            kind=kind,
            question=question,
            templates=templates,
        )
        tell = stack.enter_context(_phases(quiet=quiet))
        named = discover(
            preset.value,
            sources,
            dataset,
            memory=memory,
            out=output,
            min_votes=min_votes,
            resume=resume,
            batch_size=batch_size,
            metadata={ENCODER_KEY: encoder},
            progress=tell,
        )
        named.close()
    found = named.discovery
    if csv is not None:
        write_rows(csv, [_row(each) for each in found.images])
    if json:
        echo_json({**found.to_dict(), "memory": None if memory is None else str(memory)})
    else:
        _show(found, memory)
    if not quiet and any(each.name is None for each in found.images):
        failed = [each for each in found.images if each.name is None]
        say(f"{len(failed):,} images have no name, such as {failed[0].source}: {failed[0].reason}")
    if any(image.failed for image in found.images):
        raise typer.Exit(SOME_FAILED)


def _images(path: Path) -> Dataset:
    """Images without labels: a folder's, or those of a table."""
    from rarvision.datasets import Dataset, ImageFiles, open_dataset

    if path.is_dir() or path.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        return ImageFiles(path)
    dataset = open_dataset(path)
    assert isinstance(dataset, Dataset)  # noqa: S101 - such files hold images
    return dataset


def _row(image: Any) -> dict[str, Any]:
    values = asdict(image)
    return {
        "source": values["source"],
        "name": values["name"] or "",
        "guesses": "; ".join(values["guesses"]),
        "reason": values["reason"] or "",
    }


def _show(found: Discovery, memory: Path | None) -> None:
    votes = list(found.votes.items())
    rows = [(name, f"{count:,}") for name, count in votes[:_SHOWN]]
    show(f"{len(votes):,} names of {len(found.images):,} images")
    print_table(("name", "votes"), rows)
    if len(votes) > _SHOWN:
        say(f"and {len(votes) - _SHOWN:,} more; --csv and --json have all")
    if found.dropped:
        some = ", ".join(list(found.dropped)[:5])
        say(f"{len(found.dropped):,} names were dropped: {some}{', …' if len(found.dropped) > 5 else ''}")
    if memory is not None:
        say(f"wrote {memory}: try rarvision recognize IMAGE --memory {memory}")


@contextmanager
def _phases(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each phase, one after the other."""
    with ExitStack() as stack:
        bars: dict[str, Any] = {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in bars:
                stack.close()
                bars[what] = stack.enter_context(progress(what, total=of, quiet=quiet))
            bars[what].to(done)

        yield tell


def _sources(
    stack: ExitStack,
    preset: Preset,
    *,
    encoder: str,
    device: str,
    mllm: dict[str, Any],
    batch_size: int,
    llm: str | None,
    words: Path | None,
    captions: Path | None,
    kind: str,
    question: str | None,
    templates: tuple[str, ...],
) -> Sources:
    """Read and load what a preset draws on; complains before models are loaded."""
    from rarvision.cli.models import RankerOptions, open_encoder, open_mllm
    from rarvision.naming import ChatGuesser, Sources, WordGuesser, read_captions, read_words

    asks = preset in (Preset.RAR, Preset.FINER, Preset.BLIP_2)
    spec = mllm.pop("ranker")
    if asks and spec == "none":
        raise OptionError(f"--preset {preset.value} asks a multimodal LLM: say which, with --ranker")
    if not asks and spec != "none":
        raise OptionError(f"--preset {preset.value} asks no multimodal LLM: leave --ranker out")
    if preset is Preset.WORDNET_CLIP and words is None:
        raise OptionError("--preset wordnet-clip needs --words: a file with a name a line, or WordNet's folder")
    if preset is Preset.CASED and captions is None:
        raise OptionError("--preset cased needs --captions: a file with a caption a line")
    if captions is not None and preset is not Preset.CASED:
        raise OptionError(f"--captions goes with --preset cased, got {preset.value}")
    if llm is not None and (preset is not Preset.FINER or words is not None):
        raise OptionError("--llm goes with --preset finer, and without --words, which takes its place")
    if question is not None and not asks:
        raise OptionError(f"--question goes with presets that ask an MLLM, got {preset.value}")
    vocabulary = tuple(read_words(words)) if words is not None else ()
    corpus = tuple(read_captions(captions)) if captions is not None else ()

    def opened(which: str) -> Any:
        chat = open_mllm(RankerOptions(spec=which, strategy="generate", **mllm), device=device, batch_size=batch_size)
        stack.callback(chat.close)
        return chat

    clip = open_encoder(encoder, device=device)
    chat: Any = opened(spec) if asks else None
    guesser: Any = None
    if preset is Preset.FINER:
        guesser = WordGuesser(vocabulary) if vocabulary else ChatGuesser(opened(llm) if llm else chat)
    more: dict[str, Any] = {} if question is None else {"question": question, "attribute_question": question}
    return Sources(
        encoder=clip,
        chat=chat,
        guesser=guesser,
        words=vocabulary,
        captions=corpus,
        kind=kind,
        templates=templates,
        **more,
    )
