"""``rarvision reproduce`` and ``rarvision report``: the paper's tables and figures, one command each."""

from __future__ import annotations

import errno
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import options
from rarvision.cli.output import echo_json, print_table, progress, say, show
from rarvision.cli.path import spread
from rarvision.errors import InputError, OptionError, RarvisionError

if TYPE_CHECKING:
    from rarvision.experiments import Lab, Outcome, Spec, World

__all__ = ["report", "reproduce"]

ALL = "all"
_QUICK = {"queries": 100, "whole": 16, "scenes": 24}


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """What an experiment is carried out with."""

    field_guide: Annotated[
        bool,
        typer.Option("--field-guide", help="On the embedded world and models: offline, minutes; no data sets needed."),
    ] = False
    quick: Annotated[bool, typer.Option("--quick", help="With --field-guide: one seed, fewer images.")] = False
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="A folder for results; each experiment gets one in it.")
    ] = Path("results")
    datasets: Annotated[
        str | None,
        typer.Option("--datasets", metavar="NAME,…", help="Only these columns.", show_default="all of the table"),
    ] = None
    data_root: options.DataRootOption = None
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            metavar="MODEL|FOLDER",
            show_default="openai/clip-vit-base-patch16; embedded:clip-16 with --field-guide",
            help="What encodes images and names.",
        ),
    ] = None
    better_encoder: Annotated[
        str | None,
        typer.Option(
            "--better-encoder",
            metavar="MODEL|FOLDER",
            show_default="openai/clip-vit-large-patch14-336; embedded:clip-32 with --field-guide",
            help="The better encoder of table-10.",
        ),
    ] = None
    ranker: Annotated[
        str | None,
        typer.Option(
            "--ranker",
            "-r",
            metavar="MODEL|FOLDER|URL|none",
            show_default="none; embedded:mllm with --field-guide",
            help="The MLLM; without one, rows that rank stay empty.",
        ),
    ] = None
    other_ranker: Annotated[
        str | None,
        typer.Option("--other-ranker", metavar="URL|MODEL", help="The MLLM that table-9 asks alone (GPT-4V there)."),
    ] = None
    strategy: options.StrategyOption = options.Strategy.AUTO
    prompt: options.PromptOption = None
    shots: Annotated[
        str | None, typer.Option("--shots", metavar="N,…", help="Images a category.", show_default="as in the table")
    ] = None
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="N,…",
            help="Seeds of samples and images.",
            show_default="0,1,2; 0 with --quick, and on data sets where no samples are drawn",
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="Only so many test images of a data set, evenly spaced."),
    ] = None
    paper_compat: Annotated[
        bool,
        typer.Option(
            "--paper-compat",
            help="As the authors' code: the first shots in list order, the k nearest images with repeated names.",
        ),
    ] = False
    words: Annotated[
        Path | None,
        typer.Option("--words", metavar="FILE|DIR", help="table-1: a large vocabulary, or the folder of WordNet."),
    ] = None
    captions: Annotated[
        Path | None, typer.Option("--captions", metavar="FILE", help="table-1: a corpus of captions, one a line.")
    ] = None
    name_encoder: options.NameEncoderOption = "spelling"
    region_scores: Annotated[
        Path | None,
        typer.Option("--region-scores", metavar="FILE", help="table-3: RegionCLIP's results, in the format of LVIS."),
    ] = None
    keep: Annotated[bool, typer.Option("--keep", help="Keep memories and adapters when an experiment is finished.")] = (
        False
    )
    ranker_model: options.RankerModelOption = None
    ranker_option: options.RankerOptionOption = None
    api_key: options.ApiKeyOption = None
    timeout: options.TimeoutOption = 60.0
    quantization: options.QuantizationOption = None
    adapter: options.AdapterOption = None
    batch_size: options.BatchSizeOption = 32
    device: options.DeviceOption = "auto"
    resume: options.ResumeOption = True


@spread
def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]…", help="table-1 … table-13, figure-9 … figure-11, vocabulary, or all."),
    ] = None,
    *,
    chosen: ExperimentOptions,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Carry out experiments of the paper, on its data sets or on the field guide, and set them beside its figures.

    Without a name, list them. Results go to --out, a folder an experiment: outcomes.jsonl (a line a cell), images/ (a
    line an image), table.md, table.csv, figure.png, figure.svg and report.html, with a gallery of what went wrong and
    right. Interrupted, the same command goes on with the image where it was.

    \b
    Examples:
      rarvision reproduce                                               # what there is
      rarvision reproduce table-7 --field-guide --quick
      rarvision reproduce all --field-guide --out results
      rarvision reproduce table-7 --data-root ~/data -r http://localhost:8000/v1
      rarvision reproduce table-8 --data-root ~/data --datasets oxford_pets,dtd -r llava-hf/llava-1.5-7b-hf
      rarvision reproduce table-9 --data-root ~/data -r http://localhost:8000/v1 --other-ranker https://host/v1
      rarvision report results                                          # write the reports again

    Of several experiments one that fails, such as for data that is missing, does not stop the others. A cell that
    cannot be measured, since the names do not fit the MLLM's context or no MLLM was given, is shown as - with the
    reason, and tried again by the next call. A folder of results with other settings is refused.

    \b
    --json prints one object an experiment: experiment, folder, outcomes (experiment, column, row, at, seed, n, values,
      why, images, encoder, ranker, prompt_hash, dataset, dataset_fingerprint, version, retrieval_ms, ranking_ms,
      seconds, statuses, failures, settings), verdicts (text, verdict, evidence), files
    Units: values are shares from 0 to 1 (ms: milliseconds an image); retrieval_ms and ranking_ms are of an image
    """
    from rarvision.cli.main import exit_code
    from rarvision.experiments import ALIASES, EXPERIMENTS, spec_of

    edition: Any = "field-guide" if chosen.field_guide else "paper"
    if not names:
        _list(edition, json=json)
        return
    if chosen.quick and not chosen.field_guide:
        raise OptionError("--quick goes with --field-guide; on data sets use --limit N")
    wanted = list(EXPERIMENTS) if ALL in names else names
    if ALL in names and not chosen.field_guide:
        wanted = [name for name in wanted if name != "vocabulary"]
    specs = [_restricted(spec_of(name, edition), name, chosen, ALIASES) for name in dict.fromkeys(wanted)]
    given = _numbers("--seeds", chosen.seeds) if chosen.seeds else []
    world = _world(chosen)  # complains before anything is loaded
    failed: list[RarvisionError] = []
    for spec in specs:
        try:
            _one(spec, world, given or _usual_seeds(spec, chosen), chosen, quiet=quiet)
        except RarvisionError as error:
            if len(specs) == 1:
                raise
            failed.append(error)
            say(f"{spec.name}: {error}")
        else:
            _tell(chosen.out / spec.name, spec_of(spec.name, edition), quiet=quiet, json=json)
    if failed:
        say(f"{len(failed)} of {len(specs)} experiments stopped; the others are done, and the same command goes on")
        raise typer.Exit(exit_code(failed[0]))


def _one(spec: Spec, world: World, seeds: Sequence[int], chosen: ExperimentOptions, *, quiet: bool) -> None:
    """Carry out an experiment; what stops it from outside says how it goes on."""
    folder = chosen.out / spec.name
    if not chosen.resume and folder.exists():
        _remove(folder)
    try:
        with _lab(folder, world, chosen) as lab:
            _carry_out(spec, lab, seeds, chosen, quiet=quiet)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            f"{folder}: the disk is full; make room, and the same command goes on with {spec.name} where it was"
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command goes on with {spec.name} where it was") from None


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Results of an experiment, or a folder of several.")
    ],
    *,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Write the reports of experiments again, from what their folders hold: no models, no images needed.

    \b
    Examples:
      rarvision report results
      rarvision report results/table-7 --json

    \b
    --json prints one object an experiment, as `rarvision reproduce` does
    """
    from rarvision.experiments import EXPERIMENT, read_configuration, spec_of

    for given in folders:
        if not given.is_dir():
            raise InputError(f"{given}: no such folder; expected results of `rarvision reproduce`")
        inside = sorted(each.parent for each in given.glob(f"*/{EXPERIMENT}"))
        for folder in [given] if (given / EXPERIMENT).exists() or not inside else inside:
            there = read_configuration(folder)
            edition: Any = "field-guide" if there.get("world") == "field guide" else "paper"
            _tell(folder, spec_of(str(there.get("experiment")), edition), quiet=quiet, json=json)


def _list(edition: Any, *, json: bool) -> None:
    from rarvision.experiments import ALIASES, EXPERIMENTS, spec_of

    rows = []
    for name in EXPERIMENTS:
        spec = spec_of(name, "field-guide" if name == "vocabulary" else edition)
        rows.append((name, spec.title, spec.source or "not in the paper", spec.question))
    rows += [(name, about, "", f"is {of}") for name, (of, about, _) in ALIASES.items()]
    if json:
        for row in rows:
            echo_json(dict(zip(("experiment", "title", "source", "question"), row, strict=True)))
        return
    print_table(("experiment", "title", "in the paper", "what it asks"), rows)


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"{option} must be numbers with commas, such as 1,2,4; got {text!r}") from None


def _usual_seeds(spec: Spec, chosen: ExperimentOptions) -> list[int]:
    """Several where they change anything: the splits of data sets are fixed, and only few shots are drawn."""
    drawn = spec.settings.get("shots", 1) not in ("all", 0)
    return [0, 1, 2] if not chosen.quick and (chosen.field_guide or drawn) else [0]


def _restricted(spec: Spec, name: str, chosen: ExperimentOptions, aliases: Any) -> Spec:
    """The columns and shots that were asked for."""
    if chosen.datasets:
        wanted = [part.strip() for part in chosen.datasets.split(",") if part.strip()]
        known = {column.key: column for column in spec.columns}
        unknown = [key for key in wanted if key not in known]
        if unknown or not wanted:
            raise OptionError(f"--datasets: {spec.name} has {', '.join(known)}; got {', '.join(unknown) or 'none'}")
        spec = replace(spec, columns=tuple(known[key] for key in wanted))
    values: Sequence[Any] = aliases[name][2] if name in aliases else ()
    if chosen.shots and spec.axis is not None and spec.axis.key == "shots":
        values = _numbers("--shots", chosen.shots)
    elif chosen.shots:
        (count, *more) = _numbers("--shots", chosen.shots)
        if more or "shots" not in spec.settings:
            raise OptionError(f"--shots: {spec.name} takes {'one number' if 'shots' in spec.settings else 'none'}")
        spec = replace(spec, settings={**spec.settings, "shots": count})
    if values and spec.axis is not None:
        if any(value < 1 for value in values):
            raise OptionError(f"--shots must be at least 1, got {', '.join(map(str, values))}")
        spec = replace(spec, axis=replace(spec.axis, values=tuple(values)))
    if chosen.paper_compat:
        spec = replace(spec, settings={**spec.settings, "distinct": False})
    return spec


def _world(chosen: ExperimentOptions) -> World:
    from rarvision.experiments import BenchmarkWorld, FieldGuideWorld
    from rarvision.naming import read_captions, read_words

    if not chosen.field_guide:
        return BenchmarkWorld(
            chosen.data_root,
            limit=chosen.limit,
            order="first" if chosen.paper_compat else "random",
            words=read_words(chosen.words) if chosen.words else (),
            captions=read_captions(chosen.captions) if chosen.captions else (),
        )
    if chosen.words is not None or chosen.captions is not None:
        raise OptionError("--words and --captions go without --field-guide, which has its own")
    if chosen.data_root is not None:
        raise OptionError("--data-root goes without --field-guide: the field guide needs no files")
    sizes: dict[str, Any] = dict(_QUICK) if chosen.quick else {}
    return FieldGuideWorld(**sizes | ({"queries": chosen.limit, "scenes": chosen.limit} if chosen.limit else {}))


@contextmanager
def _lab(folder: Path, world: World, chosen: ExperimentOptions) -> Iterator[Lab]:
    from rarvision.cli.models import SERVER, RankerOptions, local_mllm, open_encoder, open_mllm, read_prompt
    from rarvision.cli.ranker_options import read_ranker_options
    from rarvision.demo import CALIBRATION
    from rarvision.encoders import open_name_encoder
    from rarvision.experiments import Lab

    usual = _models(chosen)
    strategy = chosen.strategy.value
    if chosen.field_guide and chosen.ranker is None and strategy == "auto":
        strategy = "likelihood"
    served = usual["ranker"].startswith(SERVER)
    wanted = RankerOptions(
        spec=usual["ranker"],
        strategy=strategy,
        prompt=chosen.prompt,
        model=chosen.ranker_model,
        quantization=chosen.quantization.value if chosen.quantization else None,
        adapter=chosen.adapter,
        api_key=chosen.api_key,
        timeout_s=chosen.timeout,
        more=read_ranker_options(chosen.ranker_option or (), served=served),
    )
    ranker: dict[str, Any] = {"strategy": strategy, "prompt": read_prompt(chosen.prompt)}
    ranker |= {key: value for key, value in wanted.more.items() if key in ("max_tokens", "blank_weight")}
    other = chosen.other_ranker
    embedded = chosen.encoder is None and chosen.ranker is None and chosen.field_guide
    load: dict[str, Any] = {"device": chosen.device, "batch_size": chosen.batch_size}
    with Lab(
        folder=folder,
        world=world,
        open_encoder=lambda which: open_encoder(
            usual["better" if which == "better" else "encoder"], device=chosen.device
        ),
        open_chat=None
        if wanted.spec == "none"
        else lambda adapter: open_mllm(replace(wanted, adapter=adapter or wanted.adapter), **load),
        ranker=ranker,
        open_other=None if other is None else lambda: open_mllm(replace(wanted, spec=other, adapter=None), **load),
        tunable=None if served or wanted.spec == "none" else local_mllm(wanted.spec)[0],
        tuning={"learning_rate": 2e-4, "batch_size": 16, "rank": 32, "alpha": 64} if embedded else {},
        calibration=CALIBRATION if embedded else None,
        open_names=lambda encoder: open_name_encoder(chosen.name_encoder, encoder=encoder, device=chosen.device),
        region_scores=chosen.region_scores,
        batch_size=chosen.batch_size,
        keep=chosen.keep,
    ) as lab:
        yield lab


def _models(chosen: ExperimentOptions) -> dict[str, str]:
    """What encodes and what ranks."""
    if chosen.field_guide:
        usual = {"encoder": "embedded:clip-16", "better": "embedded:clip-32", "ranker": "embedded:mllm"}
    else:
        usual = {
            "encoder": "openai/clip-vit-base-patch16",
            "better": "openai/clip-vit-large-patch14-336",
            "ranker": "none",
        }
    given = {"encoder": chosen.encoder, "better": chosen.better_encoder, "ranker": chosen.ranker}
    return usual | {key: value for key, value in given.items() if value is not None}


def _carry_out(spec: Spec, lab: Lab, seeds: Sequence[int], chosen: ExperimentOptions, *, quiet: bool) -> None:
    from rarvision.experiments import cells_of, run_experiment

    total = sum(1 for _ in cells_of(spec, seeds))
    told = not quiet and not sys.stderr.isatty()
    with progress(spec.name, total=total, quiet=quiet, unit="cells") as bar:

        def done(outcome: Outcome, number: int, of: int) -> None:
            bar.to(number)
            if told:
                say(f"{spec.name} {number}/{of}: {outcome.id} {_short(spec, outcome)}")

        lab.tell = lambda what, at, of: bar.name(f"{spec.name}, {what}: {at:,} of {of:,}")
        run_experiment(spec, lab, seeds=seeds, configuration=_configuration(chosen), done=done)


def _configuration(chosen: ExperimentOptions) -> dict[str, Any]:
    """What all cells depend on, besides the experiment and its images; of what is not given, nothing."""
    models = _models(chosen)
    found: dict[str, Any] = {
        "encoder": _published(models["encoder"]),
        "better_encoder": _published(models["better"]),
        "name_encoder": _published(chosen.name_encoder),
        "paper_compat": chosen.paper_compat,
    }
    rankers = {"ranker": models["ranker"], "other_ranker": chosen.other_ranker or "none"}
    given = {key: _published(spec) for key, spec in rankers.items() if spec != "none"}
    if not given:
        return found
    return {
        **found,
        **given,
        "strategy": chosen.strategy.value,
        "prompt": _prompt(chosen.prompt),
        "ranker_model": chosen.ranker_model,
        "ranker_option": list(chosen.ranker_option or ()),
        "quantization": chosen.quantization.value if chosen.quantization else None,
        "adapter": None if chosen.adapter is None else _adapter(chosen.adapter),
    }


def _published(spec: str) -> str:
    """A model as results name it: of a folder the last part and its weights, of a server no password."""
    from rarvision.checkpoints import weights_fingerprint
    from rarvision.cli.models import SERVER
    from rarvision.errors import EncoderError

    if spec.startswith(SERVER):
        return re.sub(r"//[^/@]*@", "//", spec)
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        return spec
    weights = weights_fingerprint(str(folder), revision=None, missing=EncoderError)
    return f"{folder.resolve().name} ({weights[:20]})"


def _adapter(folder: Path) -> str:
    from rarvision.chat.adapters import Adapter

    return f"{folder.resolve().name} (weights:{Adapter.read(folder).identity[:12]})"


def _prompt(given: str | None) -> str | None:
    """A prompt's name; of a file its text's hash."""
    from rarvision.cli.models import read_prompt

    text = read_prompt(given)
    return given if text == given else f"a file ({hashlib.sha256(str(text).encode()).hexdigest()[:12]})"


def _short(spec: Spec, outcome: Outcome) -> str:
    if outcome.why is not None:
        return f"- ({outcome.why})"
    metric = spec.metrics[0]
    value = outcome.values.get(metric.key)
    if value is None:
        return "-"
    return f"{metric.title} {100 * value:.1f} %" if metric.share else f"{metric.title} {value:g}"


def _tell(folder: Path, spec: Spec, *, quiet: bool, json: bool) -> None:
    """Write the report of what the folder holds, and show its table."""
    from dataclasses import asdict

    from rarvision.experiments import rebuild_report

    found = rebuild_report(folder, spec)  # of all that the folder holds, of earlier calls for other parts too
    if json:
        echo_json(
            {
                "experiment": spec.name,
                "folder": str(folder),
                "outcomes": [asdict(outcome) for outcome in found.outcomes],
                "verdicts": [verdict.to_dict() for verdict in found.verdicts],
                "files": [str(path) for path in found.files],
            }
        )
        return
    show(f"{spec.name}: {spec.title}")
    print_table(found.table.head, found.table.rows())
    for note in found.table.notes:
        show(f"- {note}")
    for verdict in found.verdicts:
        show(f"{verdict.verdict}: {verdict.text} {verdict.evidence}")
    if not quiet:
        say(f"wrote {', '.join(map(str, found.files))}")


def _remove(folder: Path) -> None:
    """Remove results that are to be made anew, and nothing that is none."""
    import shutil

    from rarvision.experiments import EXPERIMENT

    if any(folder.iterdir()) and not (folder / EXPERIMENT).exists():
        raise InputError(
            f"{folder}: holds something else than results (no {EXPERIMENT}); give another folder with --out"
        )
    shutil.rmtree(folder)
