"""What ``rarvision reproduce`` carries experiments out with: its options, and the world and the lab that they name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rarvision.cli import options
from rarvision.errors import OptionError

if TYPE_CHECKING:
    from rarvision.experiments import Lab, Spec, World

__all__ = ["ExperimentOptions", "configuration", "open_lab", "open_world", "restricted", "seeds_of"]

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


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"{option} must be numbers with commas, such as 1,2,4; got {text!r}") from None


def seeds_of(spec: Spec, chosen: ExperimentOptions) -> list[int]:
    """As given; else several where they change anything: data sets' splits are fixed, and only few shots are drawn."""
    if chosen.seeds:
        return _numbers("--seeds", chosen.seeds)
    drawn = spec.settings.get("shots", 1) not in ("all", 0)
    return [0, 1, 2] if not chosen.quick and (chosen.field_guide or drawn) else [0]


def restricted(spec: Spec, name: str, chosen: ExperimentOptions, aliases: Any) -> Spec:
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


def open_world(chosen: ExperimentOptions) -> World:
    """The images; complains of what is not there before any model is loaded."""
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
def open_lab(folder: Path, world: World, chosen: ExperimentOptions) -> Iterator[Lab]:
    """Models for results in a folder, closed at the end."""
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


def configuration(chosen: ExperimentOptions) -> dict[str, Any]:
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
