"""``rarvision tune train`` and ``merge``: ranking examples in, an adapter or a model out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from rarvision.cli import models, options
from rarvision.cli.output import Bar, echo_json, print_table, progress, say, show
from rarvision.errors import DatasetError, OptionError

if TYPE_CHECKING:
    from rarvision.tuning import BaselineReport, Recipe, TrainingReport

__all__ = ["register"]


class Preset(StrEnum):
    """Named recipes."""

    LORA = "lora"
    PAPER = "paper"


class Objective(StrEnum):
    """What is learned."""

    GENERATE = "generate"
    LIKELIHOOD = "likelihood"
    CHOICE = "choice"


class Precision(StrEnum):
    """Arithmetic of training."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Asked(StrEnum):
    """How held-out examples are ranked."""

    GENERATE = "generate"
    CHOICE = "choice"
    LIKELIHOOD = "likelihood"
    POINTWISE = "pointwise"


class Dtype(StrEnum):
    """Number formats of weights on disk."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


_MODELS = "MODEL|FOLDER|embedded:mllm"


def register(app: typer.Typer) -> None:
    """Add the commands to ``rarvision tune``."""
    for command in (train, merge):
        app.command()(command)


def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="A manifest of ranking examples; with --all-names a folder, CSV or JSONL of images."
        ),
    ],
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar=_MODELS,
            help="Multimodal LLM to train: a hub name (NAME@REVISION pins it), a folder, or the one that comes along.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the run; given again, goes on.")],
    preset: Annotated[
        Preset,
        typer.Option(
            "--preset",
            help="lora: small matrices beside the weights, by LLaVA's recipe; paper: the weights themselves, one epoch "
            "at 1e-5. The options below change single values of it.",
        ),
    ] = Preset.LORA,
    objective: Annotated[
        Objective | None,
        typer.Option(
            "--objective",
            help="The answer that is learned, named after the strategy: generate: the ranked list; likelihood: its "
            "first name; choice: a ranking loss over the option letters.",
            show_default="generate",
        ),
    ] = None,
    listwise: Annotated[
        bool, typer.Option("--listwise", help="With choice: learn the whole order, not only the first place.")
    ] = False,
    prompt: options.PromptOption = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the examples.", show_default="1")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", "--lr", help="At its peak.", show_default="2e-4; with paper 1e-5"),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option("--warmup", help="Share of the steps over which it rises; then a cosine.", show_default="0.03"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", help="Examples in a step of the optimiser, over all processes.", show_default="16"
        ),
    ] = None,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            "--micro-batch-size",
            help="Examples in one forward pass: as many as the memory holds.",
            show_default="up to 4",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="Rank of LoRA's matrices; alpha follows as twice the rank.", show_default="128"),
    ] = None,
    alpha: Annotated[
        int | None, typer.Option("--alpha", help="LoRA's weight is alpha / rank.", show_default="256")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option("--dropout", help="Share of LoRA's inputs that is dropped.", show_default="0.05")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="LAYER",
            help="Linear layers that get LoRA, such as q_proj; may be repeated.",
            show_default="all of the language model's",
        ),
    ] = None,
    projector: Annotated[
        bool | None,
        typer.Option(
            "--projector/--no-projector",
            help="Train what joins image encoder and language model as well.",
            show_default="projector",
        ),
    ] = None,
    projector_learning_rate: Annotated[
        float | None,
        typer.Option(
            "--projector-learning-rate", help="The projector's own.", show_default="2e-5; with paper the same as all"
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations twice to save memory.")
    ] = False,
    precision: Annotated[
        Precision | None,
        typer.Option("--precision", help="auto: bfloat16 on a GPU that has it.", show_default="auto"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the order, the initial matrices, dropout.", show_default="0")
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--held-out",
            metavar="DATA",
            help="Examples of other images: both models rank them in the end. With --all-names: test images.",
        ),
    ] = None,
    held_out_limit: Annotated[
        int | None, typer.Option("--held-out-limit", min=1, metavar="N", help="Take N of them, evenly.")
    ] = None,
    strategy: Annotated[
        list[Asked] | None,
        typer.Option(
            "--strategy",
            "-s",
            help="How held-out examples are ranked; may be repeated.",
            show_default="generate, choice, likelihood",
        ),
    ] = None,
    all_names: Annotated[
        bool,
        typer.Option(
            "--all-names",
            help="The baseline without retrieval: DATA are images, --shots of each category are trained on, with every "
            "name in the prompt, and --held-out images are named.",
        ),
    ] = False,
    shots: Annotated[
        int | None, typer.Option("--shots", min=1, help="With --all-names: examples a category.", show_default="4")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the loss: .png, .svg or .pdf; needs rarvision[plots]."),
    ] = None,
    checkpoint_steps: Annotated[
        int, typer.Option("--checkpoint-steps", min=1, help="Steps from one checkpoint to the next.")
    ] = 100,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that open images ahead.")] = 0,
    device: Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Where it is trained.")] = "auto",
    max_pixels: options.MaxPixelsOption = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with a run in --out, or remove it and start anew.")
    ] = True,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Train a multimodal LLM to rank; the result is an adapter (preset lora) or a model (preset paper).

    The run's folder keeps checkpoints: Ctrl-C writes one after the step at hand, and the same command goes on from the
    last. With other settings the folder is refused. With --held-out a table tells how both models rank other images.
    Use the result as --ranker MODEL --adapter DIR/adapter, or as --ranker DIR/model.

    \b
    Examples:
      rarvision tune train tuning.jsonl --model llava-hf/llava-1.5-7b-hf --out runs/llava --held-out held-out.jsonl
      rarvision tune train tuning.jsonl -m Qwen/Qwen3-VL-4B-Instruct -o runs/qwen --objective choice --rank 16
      rarvision tune train tuning.jsonl -m embedded:mllm -o runs/small --rank 8 --epochs 2 --plot loss.png
      rarvision tune train pets/train -m llava-hf/llava-1.5-7b-hf -o runs/names --all-names --held-out pets/test
      accelerate launch -m rarvision tune train tuning.jsonl -m … -o …        # a process for each GPU

    \b
    --json prints one object: result, steps, loss_start, loss_end (nats a learned token; with choice, a question),
      method, objective, examples, trained and total (numbers of the model), resumed_from (a step), version, settings,
      held_out {retrieved, shown, before and after {STRATEGY {n, top1, repaired, fallback}}}
    with --all-names: top1 (null where the names do not fit the model's context), reason, unread, n, names, shots,
      examples, result, steps, version, settings
    Units: top1, retrieved, shown, repaired, fallback and unread are shares from 0 to 1
    """
    models.set_max_pixels(max_pixels)
    changes = {
        "objective": None if objective is None else objective.value,
        "listwise": listwise or None,
        "prompt": models.read_prompt(prompt),
        "epochs": epochs,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "targets": tuple(target) if target else None,
        "projector": projector,
        "projector_learning_rate": projector_learning_rate,
        "gradient_checkpointing": gradient_checkpointing or None,
        "precision": None if precision is None else precision.value,
        "seed": seed,
    }
    from rarvision.tuning.recipes import recipe

    chosen = recipe(preset.value, **{name: value for name, value in changes.items() if value is not None})
    name, revision = models.local_mllm(model)
    where: dict[str, Any] = {
        "model": name,
        "revision": revision,
        "out": out,
        "recipe": chosen,
        "device": device,
        "checkpoint_steps": checkpoint_steps,
        "workers": workers,
        "resume": resume,
    }
    if all_names:
        _refuse({"--strategy": strategy, "--plot": plot}, "go with a manifest, not with --all-names")
        _all_names(data, held_out, held_out_limit, 4 if shots is None else shots, where, quiet=quiet, json=json)
        return
    _refuse({"--shots": shots}, "goes with --all-names; a manifest is trained on whole")
    if held_out is None:
        given = {"--held-out-limit": held_out_limit, "--strategy": strategy}
        _refuse(given, "needs --held-out, the examples that are ranked")
    models.quiet_transformers()
    from rarvision.tuning.training import DEFAULT_STRATEGIES
    from rarvision.tuning.training import train as fit

    asked = tuple(dict.fromkeys(item.value for item in strategy)) if strategy else DEFAULT_STRATEGIES
    with _bars(quiet=quiet) as tell:
        report = fit(
            data,
            held_out=held_out,
            held_out_limit=held_out_limit,
            strategies=cast("Any", asked),
            plot=plot,
            progress=tell,
            **where,
        )
    if models.is_main_process():
        _print(report, chosen, json=json)


def _refuse(given: Mapping[str, object], why: str) -> None:
    """Refuse options that would be ignored."""
    names = [name for name, value in given.items() if value]
    if names:
        raise OptionError(f"{', '.join(names)} {why}")


def _all_names(
    data: Path, test: Path | None, limit: int | None, shots: int, where: dict[str, Any], *, quiet: bool, json: bool
) -> None:
    """The baseline of --all-names."""
    if test is None:
        raise OptionError("--all-names needs --held-out: the test images that are named")
    from rarvision.datasets import Dataset, NameList, open_dataset

    datasets: list[Dataset] = []
    for path in (data, test):
        opened = open_dataset(path)
        if isinstance(opened, NameList):
            raise DatasetError(f"{path}: holds names only; --all-names needs images with labels")
        datasets.append(opened)
    models.quiet_transformers()
    from rarvision.tuning.baseline import few_shot_baseline

    with _bars(quiet=quiet) as tell:
        report: BaselineReport = few_shot_baseline(*datasets, shots=shots, limit=limit, progress=tell, **where)
    if not models.is_main_process():
        return
    if json:
        echo_json(report.to_dict())
    else:
        print_table(("", ""), report.table())


@contextmanager
def _bars(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each phase of a training, one after the other."""
    units = {"training": "steps"}
    shown: dict[str, Bar] = {}
    with ExitStack() as stack:

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in shown:
                stack.close()
                label, unit = phase[:1].upper() + phase[1:], units.get(phase, "images")
                shown[phase] = stack.enter_context(progress(label, total=total, quiet=quiet, unit=unit))
            shown[phase].to(done)

        yield tell


def _print(report: TrainingReport, recipe: Recipe, *, json: bool) -> None:
    if json:
        echo_json(report.to_dict())
        return
    print_table(("", ""), report.table())
    if report.held_out is not None:
        show("")
        print_table(("held out", "top-1 before", "top-1 after", "repaired or unread"), report.held_out_rows())
    if recipe.method == "lora":
        say(f"use it as --ranker MODEL --adapter {report.result}")
    else:
        say(f"use it as --ranker {report.result}")


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The adapter's folder.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the new model; a new one.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar=_MODELS, help="The base model.", show_default="as the adapter remembers"),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Number format of the new model's weights; auto: the base model's.")
    ] = Dtype.AUTO,
    json: options.JsonOption = False,
) -> None:
    """Merge an adapter into its model: one folder that needs no peft, for --ranker or for any server.

    It is computed in float32 on the CPU, so the memory must hold 4 bytes for each of the model's numbers.

    \b
    Examples:
      rarvision tune merge runs/llava/adapter --out models/llava-ranking
      rarvision tune merge runs/llava/adapter --out models/llava-ranking --model models/llava-1.5-7b --dtype bfloat16

    \b
    --json prints one object: model (the new folder), adapter
    """
    name, revision = (None, None) if model is None else models.local_mllm(model)
    models.quiet_transformers()
    from rarvision.tuning.adapters import merge_adapter

    folder = merge_adapter(adapter, out, model=name, revision=revision, dtype=dtype.value)
    if json:
        echo_json({"model": str(folder), "adapter": str(adapter)})
    else:
        say(f"merged; use it as --ranker {folder}")
