"""``rarvision regions`` and ``rarvision evaluate-regions``: boxes of images instead of whole images."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from rarvision.cli import models, options
from rarvision.cli.boxes import CropOptions, Notation, read_boxes
from rarvision.cli.output import echo_json, print_table, progress, say, show
from rarvision.cli.path import PathOptions, spread
from rarvision.cli.recognize import record_of
from rarvision.errors import OptionError

if TYPE_CHECKING:
    from rarvision.detection import RegionReport
    from rarvision.types import Box, Sample

__all__ = ["evaluate_regions", "regions"]

SOME_FAILED = 1


class Rules(StrEnum):
    """Whose average precision."""

    LVIS = "lvis"
    COCO = "coco"
    V3DET = "v3det"


class Preset(StrEnum):
    """`rarvision.detection.EVALUATOR_PRESETS` for the command line."""

    LVIS = "lvis"
    REGIONCLIP = "regionclip"
    REGIONSPOT = "regionspot"
    TOKENIZE_ANYTHING = "tokenize-anything"


@spread
def regions(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image.")],
    *,
    boxes: Annotated[
        list[str],
        typer.Option(
            "--boxes",
            "-b",
            metavar="X,Y,X,Y|FILE",
            help="A box, or a JSON file of boxes; may be repeated. What a file may be stands above.",
        ),
    ],
    path: PathOptions,
    crop: CropOptions,
    notation: Annotated[
        Notation,
        typer.Option(
            "--notation",
            help="What the four numbers are: left, upper, right, lower; left, upper, width, height; or centre, width, "
            "height.",
        ),
    ] = Notation.XYXY,
    normalised: Annotated[
        bool, typer.Option("--normalised", help="The numbers are shares of the image's width and height, not pixels.")
    ] = False,
    image_id: Annotated[
        int | None,
        typer.Option(
            "--image-id",
            metavar="N",
            help="The image's number in an annotation or results file; by default it is found by its name.",
            show_default=False,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Write the image with boxes and labels (.png or .jpg)."),
    ] = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Recognise regions of an image: each box's crop is looked up in the memory, and ranked.

    A crop shows the box with something around it, the more the smaller the box is; what is not in the box is blurred.
    Pixels are those of the upright image. What of a box lies outside the image is cut off; a box that lies outside
    altogether fails alone, and the exit code is then 1.

    \b
    Examples:
      rarvision regions street.jpg --boxes 10,20,110,220 --memory parts.memory
      rarvision regions street.jpg -b boxes.json -m parts.memory -r embedded:mllm --picture street-regions.png
      rarvision regions street.jpg -b detections.json --image-id 42 -m lvis.memory --json
      rarvision regions street.jpg -b 0.5,0.5,0.2,0.3 --notation cxcywh --normalised -m parts.memory

    \b
    A JSON file of boxes is
      a list of four numbers each, in --notation
      a list of objects with box_xyxy, bbox or box: four numbers, in --notation
      an annotation file of COCO or LVIS, whose boxes are xywh; needs rarvision[detection]
      a detector's results: a list of image_id, bbox (xywh), score; a box that is there several times counts once

    \b
    --json prints one object a box, a line each, as `recognize` does, with
      box: its number, from 0; box_xyxy: pixels
    """
    models.set_max_pixels(path.max_pixels)
    _check_picture(picture)
    from rarvision.images import load_image
    from rarvision.types import Sample, box_suffix

    opened = load_image(image)
    found = read_boxes(
        boxes, image=image, size=opened.size, notation=notation, normalised=normalised, image_id=image_id
    )
    samples = [Sample(source=f"{image}{box_suffix(box)}", image=opened, box_xyxy=box) for box in found]
    records: list[dict[str, Any]] = []
    with (
        models.open_recognizer(path, some=lambda n: samples[:n], **crop.settings()) as recognizer,
        progress("Recognising", total=len(found), quiet=quiet, unit="boxes") as bar,
    ):
        for number, outcome in enumerate(recognizer.iter_recognize(samples)):
            record = {**record_of(outcome), "box": number, "box_xyxy": list(found[number])}
            records.append(record)
            bar.advance()
            if json:
                echo_json(record)
            if "error" in record:
                say(f"box {number}: {record['error']}")
    if not json:
        print_table(("box", "xyxy", "category", "probability", "next", ""), map(_row, records), title=str(image))
    if picture:
        _draw(image, found, records, picture)
    if any("error" in record for record in records):
        raise typer.Exit(SOME_FAILED)


def _check_picture(picture: Path | None) -> None:
    if picture is not None and picture.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise OptionError(f"--picture must end in .png or .jpg, got {picture}")


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    box = ", ".join(f"{edge:g}" for edge in record["box_xyxy"])
    if "error" in record:
        return str(record["box"]), box, "", "", "", f"failed: {record['error']}"
    others = [f"{c['category']} {100 * c['probability']:.1f} %" for c in record["candidates"][1:3]]
    label, probability = record["label"], record["probability"]
    if record["unknown"]:
        label, probability = "unknown", record["unknown_probability"]
    status, reason = record["ranking"]["status"], record["ranking"]["reason"]
    note = "" if status in (None, "ranked") else f"{status}: {reason}"
    return str(record["box"]), box, label, f"{100 * probability:.1f} %", ", ".join(others), note


def _draw(image: Path, boxes: list[Box], records: list[dict[str, Any]], picture: Path) -> None:
    from rarvision.images import load_image
    from rarvision.region_picture import RegionLabel, draw_regions

    labels = []
    for box, record in zip(boxes, records, strict=True):
        if "error" in record:
            continue
        name, share = record["label"], record["probability"]
        if record["unknown"]:
            name, share = "unknown", record["unknown_probability"]
        labels.append(RegionLabel(box_xyxy=box, text=f"{name} {share:.0%}", category=name, number=record["box"]))
    if labels:
        draw_regions(load_image(image), labels, picture)
    else:
        say(f"{picture}: not written, since no box was recognised")


@spread
def evaluate_regions(
    annotations: Annotated[
        Path, typer.Argument(metavar="ANNOTATIONS", help="Annotation file of LVIS v1, V3Det or the COCO format.")
    ],
    *,
    images: Annotated[Path, typer.Option("--images", "-i", metavar="DIR", help="The folder of the images.")],
    path: PathOptions,
    crop: CropOptions,
    proposals: Annotated[
        Path | None,
        typer.Option(
            "--proposals",
            metavar="FILE",
            help="Recognise a detector's boxes (a results file) in place of the annotated ones.",
        ),
    ] = None,
    per_image: Annotated[
        int | None, typer.Option("--per-image", min=1, metavar="N", help="Keep so many proposals of an image.")
    ] = None,
    min_objectness: Annotated[
        float | None, typer.Option("--min-objectness", metavar="P", help="Keep proposals above it.")
    ] = None,
    preset: Annotated[
        Preset,
        typer.Option(
            "--preset",
            help="How scores become detections; published figures differ by it: the highest 300 of an image (lvis), "
            "RegionCLIP's background and suppression, RegionSpot's 900, or Tokenize Anything's threshold.",
        ),
    ] = Preset.LVIS,
    rules: Annotated[
        Rules, typer.Option("--rules", help="Average precision by the rules of LVIS, COCO or V3Det.")
    ] = Rules.LVIS,
    objectness: Annotated[
        str | None,
        typer.Option(
            "--objectness",
            metavar="ignored|product|geometric-mean",
            help="What a proposal's objectness does to its scores.",
            show_default="as the preset has it",
        ),
    ] = None,
    output: options.OutputOption = None,
    resume: options.ResumeOption = True,
    detections: Annotated[
        Path | None,
        typer.Option(
            "--detections",
            metavar="DIR",
            help="Write each row's detections in the official format, for any evaluator.",
        ),
    ] = None,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Measure how well the regions of annotated images are recognised: average precision of CLIP and RAR from one run.

    With --output FILE each image's outcome is written at once as a line of JSON; the same command given again goes on
    where it stopped, and does images again with a box that failed or that the ranker gave no answer for. The memory
    holds the vocabulary's names, as `memory create --vocabulary` makes it, or images of its categories. --ranker-weight
    replace is the paper's RAR. Needs rarvision[detection].

    \b
    Rows:
      CLIP                  retrieval's probabilities over all categories
      RAR                   the k candidates take their k probabilities in ranked order, others keep theirs
      RAR, first name only  one category a box

    \b
    Examples:
      rarvision memory create lvis.memory lvis_v1_val.json --vocabulary --template clip-7 --encoder MODEL
      rarvision evaluate-regions lvis_v1_val.json --images coco/ -m lvis.memory -r MODEL --output run.jsonl
      rarvision evaluate-regions v3det_val.json -i v3det/ -m v3det.memory --rules v3det --proposals rpn.json

    \b
    --json prints one object: rows (by name: ap, ap50, ap75, ap_small, ap_medium, ap_large, ap_rare, ap_common,
      ap_frequent, category_ap, images, objects, detections, max_detections, evaluator, preset, rules), top1 (by row;
      share of annotated boxes whose first name is right), images, regions, left_out, failures, errors, statuses,
      unanswered, not_in_memory, foreign, retrieval_ms, ranking_ms, ranker, configuration
    Units: average precisions and top1 lie between 0 and 1; retrieval_ms and ranking_ms are milliseconds a box
    """
    models.set_max_pixels(path.max_pixels)
    from dataclasses import replace

    from rarvision import detection

    if proposals is None and (per_image is not None or min_objectness is not None or objectness is not None):
        raise OptionError("--per-image, --min-objectness and --objectness go with --proposals")
    chosen = detection.evaluator_preset(preset.value)
    if objectness is not None:
        if objectness not in ("ignored", "product", "geometric-mean"):
            raise OptionError(f"--objectness must be ignored, product or geometric-mean, got {objectness!r}")
        chosen = replace(chosen, name=f"{chosen.name}, objectness {objectness}", objectness=cast("Any", objectness))
    truth = detection.read_annotations(annotations, images=images)
    found = None
    if proposals is not None:
        found = detection.read_proposals(
            proposals, annotations=truth, per_image=per_image, min_objectness=min_objectness
        )
    dataset = detection.RegionDataset(truth, found)

    def some(n: int) -> list[Sample]:
        count = min(n, len(dataset))
        return [dataset[number * len(dataset) // count] for number in range(count)]

    with (
        models.open_recognizer(path, some=some, **crop.settings()) as recognizer,
        progress("Recognising", total=len(dataset), quiet=quiet, unit="boxes") as bar,
    ):
        report = detection.evaluate_regions(
            recognizer,
            dataset,
            preset=chosen,
            rules=rules.value,
            out=output,
            resume=resume,
            progress=lambda done, _total: bar.to(done),
        )
    if detections is not None:
        _write(report, detections)
    if json:
        echo_json(report.to_dict())
    else:
        _show(report)
    if report.failures:
        raise typer.Exit(SOME_FAILED)


def _write(report: RegionReport, folder: Path) -> None:
    from rarvision.detection import write_detections

    folder.mkdir(parents=True, exist_ok=True)
    for name, found in report.detections.items():
        path = folder / f"{name.lower().replace(', ', '-').replace(' ', '-')}.json"
        write_detections(path, found)
        say(f"{path}: {len(found):,} detections of {name}")


def _show(report: RegionReport) -> None:
    metrics = list(next(iter(report.rows.values())).metrics)
    rows = []
    for name, row in report.rows.items():
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in row.metrics.values()]
        rows.append((name, *cells, f"{100 * report.top1[name]:.1f}" if name in report.top1 else "-"))
    print_table(("%", *metrics, "top-1"), rows)
    show("")
    print_table(("", ""), report.table())
