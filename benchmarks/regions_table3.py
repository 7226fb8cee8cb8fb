"""CLIP against RAR on the boxes of the field guide's scenes, measured as LVIS is: the shape of the paper's Table 3.

    python benchmarks/regions_table3.py --folder scenes --out table3 --test-scenes 0 --write docs/regions.md

Annotated boxes, 1,200 categories that no training saw, LVIS' rules, one evaluator preset for all rows. The memory holds
the names (zero-shot), or images of training boxes, or both. The ranker is the embedded MLLM, asked about the very crops
that the encoder saw. Rows of one memory and one rule of crops come from one run of the one pipeline. Interrupted, it
goes on where it was, image by image.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from asking import write_section
from scene_regions import written

from rarvision.chat import LocalChat
from rarvision.datasets.fieldguide import FieldGuideScenes
from rarvision.demo import CALIBRATION, TEXT_TEMPLATE
from rarvision.detection import RANKED, RETRIEVAL, RegionDataset, RegionReport, evaluate_regions
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.memory import LocalMemory
from rarvision.pipeline import Recognizer
from rarvision.ranking import Ranker
from rarvision.regions import AdaptiveScale, Blur, CropRule, iter_crops
from rarvision.retrieval import Retriever
from rarvision.types import Sample

PLAIN = CropRule(scale=1.0, shape="box", blur=None)
MEMORIES = {"names": "text", "images": "image", "both": "fused"}
METRICS = ("AP", "APr", "APc", "APf", "APs", "APm", "APl")
WEIGHTS: dict[str, Any] = {"mixed": None, "ranker's order": "replace"}


def cropped(regions: RegionDataset, rule: CropRule) -> Iterator[Sample]:
    """The training boxes as the encoder sees test boxes."""
    for sample, crop in iter_crops(regions, rule):
        yield Sample(source=sample.source, image=crop.image, label=sample.label)


def table(reports: dict[tuple[str, str, str], RegionReport], options: argparse.Namespace) -> str:
    """The page's part."""
    scales = ", ".join(f"{scale:g}" for scale in options.scales)
    some = next(iter(reports.values()))
    intro = (
        f"Encoder `{options.encoder}`, ranker `mllm` ({options.strategy}), k = {options.k}; {some.regions:,} annotated "
        f"boxes of {some.images} scenes, preset `{options.preset}`, LVIS' rules. Blurred crops: scales {scales} for "
        "small, medium, large boxes. Percent."
    )
    lines = [
        intro,
        "",
        f"| memory | crops | method | {' | '.join(METRICS)} | top-1 |",
        f"|---|---|---|{'---:|' * (len(METRICS) + 1)}",
    ]
    for (memory, crops, weight), report in reports.items():
        for name, row in report.rows.items():
            if name == RETRIEVAL and (memory, crops, "mixed") in reports and weight != "mixed":
                continue  # the same row again
            method = name if name == RETRIEVAL else f"{name}, {weight}"
            cells = ["" if row.metrics[m] is None else f"{100 * row.metrics[m]:.1f}" for m in METRICS]
            lines.append(f"| {memory} | {crops} | {method} | {' | '.join(cells)} | {100 * report.top1[name]:.1f} |")
    lines.append("")
    for (memory, crops, weight), report in reports.items():
        if RANKED not in report.rows:
            continue
        gains = ", ".join(
            f"{100 * (report.rows[RANKED].metrics[m] - report.rows[RETRIEVAL].metrics[m]):+.1f} {m}"
            for m in METRICS[:4]
        )
        answers = ", ".join(f"{count:,} {status}" for status, count in report.statuses.items() if count)
        lines.append(
            f"- {memory}, {crops}, {weight}: RAR over CLIP {gains}; answers: {answers}; {report.retrieval_ms:.0f} + "
            f"{report.ranking_ms:.0f} ms a box."
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="where the scenes are, or are written to; by default for this run only"
    )
    parser.add_argument("--out", type=Path, help="a folder of results, where an interrupted run goes on")
    parser.add_argument("--encoder", choices=("clip-16", "clip-32"), default="clip-32")
    parser.add_argument("--memories", nargs="+", choices=tuple(MEMORIES), default=["names"])
    parser.add_argument("--scales", type=float, nargs=3, default=(1.2, 1.2, 1.2), help="small, medium, large boxes")
    parser.add_argument("--weights", nargs="+", choices=tuple(WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--strategy", choices=("likelihood", "choice", "generate", "pointwise"), default="likelihood")
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--preset", default="lvis")
    parser.add_argument("--categories", type=int, default=1200)
    parser.add_argument("--train-scenes", type=int, default=60, help="scenes whose boxes go into the memory; 0 for all")
    parser.add_argument("--test-scenes", type=int, default=4, help="scenes to report on; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with the lines that mark where it goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        run(options, Path(scratch))


def run(options: argparse.Namespace, scratch: Path) -> None:
    """Measure, with a folder for what is not kept."""
    folder, out = options.folder or scratch, options.out or scratch
    out.mkdir(parents=True, exist_ok=True)
    world = {"categories": options.categories, "seed": options.seed}
    truth = written(folder, FieldGuideScenes("test", **world, scenes=options.test_scenes or None))
    rule = CropRule(scale=AdaptiveScale(scales=tuple(options.scales)), blur=Blur(share=0.15))
    encoder = TransformersEncoder(weights_path(options.encoder))
    ranker = Ranker(LocalChat(weights_path("mllm"), batch_size=32), strategy=options.strategy)
    runs = [
        ("names", "box", PLAIN, None),
        *((memory, "blur, adaptive scale", rule, weight) for memory in options.memories for weight in options.weights),
    ]
    reports: dict[tuple[str, str, str], RegionReport] = {}
    memory = LocalMemory.create(scratch / "memory", encoder=encoder, thumbnails=None)
    memory.add_texts(truth.vocabulary.names, templates=(TEXT_TEMPLATE,))
    if set(options.memories) != {"names"}:
        train = written(folder, FieldGuideScenes("train", **world, scenes=options.train_scenes or None))
        memory.add(cropped(RegionDataset(train), rule))
    for source, crops, crop, weight in runs:
        recognizer = Recognizer(
            memory,
            ranker=None if weight is None else ranker,
            retriever=Retriever(memory, k=options.k, source=MEMORIES[source]),  # type: ignore[arg-type]  # one of its sources
            calibration=CALIBRATION,
            ranker_weight=None if weight is None else WEIGHTS[weight],
            allow_fallback=True,
            crop=crop,
        )
        name = f"{source} {crops} {weight}".replace(",", "").replace("'", "").replace(" ", "-")
        reports[source, crops, str(weight)] = evaluate_regions(
            recognizer, RegionDataset(truth), preset=options.preset, out=out / f"{name}.jsonl"
        )
        found = {row: round(100 * (each.ap or 0), 1) for row, each in reports[source, crops, str(weight)].rows.items()}
        print(f"{name}: AP {found}", file=sys.stderr, flush=True)
    memory.close()
    text = table(reports, options)
    print(text)
    if options.write:
        write_section(options.write, "table 3", text)


if __name__ == "__main__":
    main()
