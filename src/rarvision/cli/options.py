"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AdapterOption",
    "Aggregate",
    "AggregateOption",
    "AllowFallbackOption",
    "ApiKeyOption",
    "AuditOrderOption",
    "AuditSeedOption",
    "BatchSizeOption",
    "CalibrationOption",
    "ConstrainedOption",
    "CsvOption",
    "DataRootOption",
    "DebiasOption",
    "DescriptionsOption",
    "DeviceOption",
    "EncoderOption",
    "ExemplarsOption",
    "FitOption",
    "GateOption",
    "Hubness",
    "HubnessOption",
    "JsonOption",
    "KOption",
    "Layout",
    "LayoutOption",
    "MaxPixelsOption",
    "MemoryArgument",
    "MemoryOption",
    "Modality",
    "NameEncoderOption",
    "NewEncoderOption",
    "NullOption",
    "OutputOption",
    "PermutationsOption",
    "PromptOption",
    "Quantization",
    "QuantizationOption",
    "QuietOption",
    "RankerModelOption",
    "RankerOption",
    "RankerOptionOption",
    "RankerWeightOption",
    "RepeatsOption",
    "ResumeOption",
    "RetrievalSource",
    "RetrievalSourceOption",
    "Strategy",
    "StrategyOption",
    "SureOption",
    "TaxonomyOption",
    "TextWeightOption",
    "TimeoutOption",
    "UnknownOption",
    "Views",
    "ViewsOption",
    "WorkedExampleOption",
]


class Layout(StrEnum):
    """`rarvision.ranking.Layout` for the command line."""

    AUTO = "auto"
    IMAGES = "images"
    MONTAGE = "montage"


class Strategy(StrEnum):
    """How the MLLM is asked to rank."""

    AUTO = "auto"
    GENERATE = "generate"
    CHOICE = "choice"
    LIKELIHOOD = "likelihood"
    POINTWISE = "pointwise"


class RetrievalSource(StrEnum):
    """Which of the memory's entries are searched."""

    FUSED = "fused"
    IMAGE = "image"
    TEXT = "text"


class Aggregate(StrEnum):
    """How neighbours become a category's score."""

    BLEND = "blend"
    NEAREST = "nearest"
    SUM = "sum"
    VOTE = "vote"
    WEIGHTED = "weighted"
    TIP = "tip"
    PROTOTYPE = "prototype"


class Hubness(StrEnum):
    """How categories that are near to everything are held back."""

    NONE = "none"
    MEAN = "mean"
    CSLS = "csls"
    SOFTMAX = "softmax"


class Views(StrEnum):
    """What is encoded of an image."""

    WHOLE = "whole"
    FLIP = "flip"
    CROPS = "crops"
    BOTH = "flip+crops"


class Quantization(StrEnum):
    """Bits of a local MLLM's weights."""

    FOUR_BIT = "4bit"
    EIGHT_BIT = "8bit"


class Modality(StrEnum):
    """Kinds of entries."""

    IMAGE = "image"
    TEXT = "text"


_MEMORY = "The memory's folder, or its address in Milvus (see the help of memory migrate)."
MemoryArgument = Annotated[str, typer.Argument(metavar="DIR", help=_MEMORY)]
MemoryOption = Annotated[str, typer.Option("--memory", "-m", metavar="DIR", help=_MEMORY)]
_ENCODERS = "MODEL|FOLDER|embedded:clip-16|embedded:clip-32"
NewEncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder",
        "-e",
        metavar=_ENCODERS,
        help="CLIP or SigLIP model: a hub name (NAME@REVISION pins it), a folder, or one that comes with rarvision.",
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        "-e",
        metavar=_ENCODERS,
        help="Where the memory's encoder is now.",
        show_default="as the memory remembers",
    ),
]
RankerOption = Annotated[
    str,
    typer.Option(
        "--ranker",
        "-r",
        metavar="MODEL|FOLDER|URL|embedded:mllm|none",
        help="Multimodal LLM that ranks the candidates: a hub name, a folder, the URL of an OpenAI-compatible "
        "server (http://host:8000/v1), the one that comes with rarvision, or none: retrieval alone. "
        "NAME@REVISION pins a hub model.",
    ),
]
RankerModelOption = Annotated[
    str | None, typer.Option("--ranker-model", metavar="NAME", help="The model's name on the server of --ranker URL.")
]
RankerOptionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ranker-option",
        metavar="KEY=VALUE",
        help="More for the --ranker; may be repeated. The keys stand above.",
        show_default=False,
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="RARVISION_API_KEY",
        metavar="KEY",
        help="Key for the server of --ranker URL; better given by the environment variable.",
        show_default=False,
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Patience for one answer of the server.")
]
StrategyOption = Annotated[
    Strategy,
    typer.Option(
        "--strategy",
        "-s",
        help="generate: the model writes the list (the paper's way); choice: one letter, one forward pass; likelihood: "
        "how probable each name is as the answer; pointwise: yes or no, name by name; auto: the first of likelihood, "
        "choice, generate that the model serves.",
    ),
]
ConstrainedOption = Annotated[
    bool, typer.Option("--constrained", help="With generate: confine the answer to a permutation of the candidates.")
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="NAME|FILE",
        help="paper, in-context, long, or a text file with the field {categories} (choice: {options}; "
        "pointwise: {category}).",
        show_default="paper",
    ),
]
PermutationsOption = Annotated[
    str,
    typer.Option(
        "--permutations",
        metavar="N|all",
        help="Ask N times, with the candidates turned round each time, and average: models prefer some letters and "
        "places, whatever stands there. 2 takes out a part of that, all (as many as candidates) the whole, at as many "
        "times the cost; a local model computes the image once. Not with pointwise, which shows no list.",
    ),
]
DebiasOption = Annotated[
    str | None,
    typer.Option(
        "--debias",
        metavar="N|FILE",
        help="Subtract what each letter and place of the list is worth to the model, which costs nothing an image. N: "
        "estimate it first from N of the images, without their labels (64 do). FILE: read it; where it is not there "
        "yet, estimate it from 64 images and write it. With --strategy choice or likelihood.",
        show_default=False,
    ),
]
ExemplarsOption = Annotated[
    int,
    typer.Option(
        "--exemplars",
        min=0,
        metavar="N",
        help="Show the MLLM, beside each candidate's name, up to N of its images from the memory, fewer where its "
        "context does not hold them.",
    ),
]
DescriptionsOption = Annotated[
    bool,
    typer.Option("--descriptions", help="Tell the MLLM what the memory's texts say of each candidate beyond its name."),
]
WorkedExampleOption = Annotated[
    bool,
    typer.Option(
        "--worked-example",
        help="Begin each question with another image of the memory, its own candidates, and the right answer.",
    ),
]
LayoutOption = Annotated[
    Layout,
    typer.Option(
        "--layout",
        help="How exemplars are shown: each on its own (images), all in one picture (montage), or the former where the "
        "MLLM takes enough images.",
    ),
]
AuditOrderOption = Annotated[
    int | None,
    typer.Option(
        "--audit-order",
        min=2,
        metavar="N",
        help="Measure instead how much the answers depend on the order of the candidates: each image's are shown in N "
        "random orders (20 do).",
        show_default=False,
    ),
]
AuditSeedOption = Annotated[int, typer.Option("--audit-seed", min=0, help="Seed of the orders of --audit-order.")]
KOption = Annotated[int, typer.Option("--k", "-k", min=1, help="Candidates that are retrieved and ranked.")]
QuantizationOption = Annotated[
    Quantization | None,
    typer.Option("--quantization", help="Load a local --ranker in fewer bits; needs rarvision[quantized] and a GPU."),
]
AdapterOption = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        metavar="DIR",
        help="Adapter that was trained on a local --ranker (rarvision tune train); needs rarvision[tune].",
    ),
]
RankerWeightOption = Annotated[
    str,
    typer.Option(
        "--ranker-weight",
        metavar="auto|W|replace",
        help="Weight of the ranker's log-scores beside retrieval's prior: auto as fitted (`rarvision fit`), else 1; 0 "
        "ignores the ranker, replace ignores the prior, as the paper does.",
    ),
]
FitOption = Annotated[
    bool,
    typer.Option("--fit/--no-fit", help="Use what `rarvision fit` kept with the memory for this ranker, if it did."),
]
GateOption = Annotated[
    str,
    typer.Option(
        "--gate",
        metavar="off|auto|SHARE",
        help="Do not ask the ranker where retrieval is sure enough: auto as fitted, a number to keep this share of the "
        "ranker's gain, such as 0.98. Needs `rarvision fit`.",
    ),
]
UnknownOption = Annotated[
    str,
    typer.Option(
        "--unknown",
        metavar="off|auto|P",
        help='Answer "unknown" where the true category is probably not among the candidates: auto from the fitted '
        "threshold on, a number from this probability on.",
    ),
]
RetrievalSourceOption = Annotated[
    RetrievalSource,
    typer.Option("--retrieval", help="Search the memory's images, its names, or both as far as it holds both."),
]
AggregateOption = Annotated[
    Aggregate,
    typer.Option(
        "--aggregate",
        help="How a category's images make its score: the nearest, their mean (prototype), both (blend), a vote, a "
        "vote weighted by similarity, a soft sum, or Tip-Adapter's cache (tip).",
    ),
]
HubnessOption = Annotated[
    Hubness,
    typer.Option(
        "--hubness",
        help="Hold back categories that are near to everything, as the memory's images tell: by their mean similarity, "
        "CSLS, or inverted softmax. Not with --aggregate vote, weighted or tip.",
    ),
]
TextWeightOption = Annotated[
    str,
    typer.Option(
        "--text-weight",
        metavar="W|auto",
        help="Share of the names beside the images, 0 to 1, where both are searched; auto fits it on the memory's own "
        "images, left out one at a time.",
    ),
]
ViewsOption = Annotated[
    Views,
    typer.Option(
        "--views",
        help="Encode several views of each image and average them: with its mirror image (2 forward passes), with five "
        "crops (6), or both (12).",
    ),
]
RepeatsOption = Annotated[
    bool,
    typer.Option(
        "--repeats",
        help="Candidates are the categories of the k nearest entries, with repeats, as in the paper's code; goes with "
        "--retrieval image or text and --aggregate nearest.",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="JSON object with fields of rarvision.Calibration, for probabilities fitted to your data, such as "
        '{"prior_temperature": 0.05, "fitted": true}. The default is a guess, for every encoder and ranker alike.',
        show_default=False,
    ),
]
AllowFallbackOption = Annotated[
    bool,
    typer.Option(
        "--allow-fallback",
        help="Where the ranker gives no answer at all, keep retrieval's order and say so in the result.",
    ),
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images that travel together.")]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Where local models run; cuda:1 chooses one GPU.")
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        metavar="N",
        envvar="RARVISION_MAX_PIXELS",
        help="Refuse larger images (width times height), before decoding them.",
        show_default="100000000",
    ),
]
CsvOption = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write a CSV table.")]
DataRootOption = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        envvar="RARVISION_DATA_ROOT",
        metavar="DIR",
        help="The folder of all public benchmarks, for names such as flowers102:test (`rarvision datasets list`).",
        show_default=False,
    ),
]
NullOption = Annotated[
    bool, typer.Option("--null", "-0", help="The list on standard input is separated by NUL, not by lines.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write JSON lines as they come; given again, goes on."),
]
TaxonomyOption = Annotated[
    str | None,
    typer.Option(
        "--taxonomy",
        metavar="FILE|metadata:KEY,KEY|fieldguide",
        help="A tree over the categories, for answers at its levels: a CSV file with a column a level, the coarsest "
        "first and the categories last; a JSON file; keys of the memory's metadata, the coarsest first; or the field "
        "guide's.",
        show_default=False,
    ),
]
SureOption = Annotated[
    str,
    typer.Option(
        "--sure",
        metavar="P|auto",
        help="With --taxonomy: the answer is the deepest level of at least this probability; auto as `fit` found.",
    ),
]
NameEncoderOption = Annotated[
    str,
    typer.Option(
        "--name-encoder",
        metavar="spelling|memory|MODEL|FOLDER",
        help="What the likeness of names (sACC) is computed with: their spelling, which knows no meaning; the memory's "
        "text tower; or a sentence encoder, the paper's being sentence-transformers/all-mpnet-base-v2.",
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on with an existing --output FILE, or start it anew.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress on standard error (there is none where it is no terminal).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Standard output holds JSON and nothing else.")]
