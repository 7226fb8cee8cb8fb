r"""How much around a box an encoder should see: crop scale by blur by object size, as the paper's Table 12 and Fig. 11.

    python benchmarks/regions_scale.py --folder scenes --json scale.jsonl --train-scenes 110 --test-scenes 0 \
        --fit-scales 1.0 1.2 1.4 --write docs/regions.md --plot docs/regions.svg

Zero-shot top-1 accuracy of the boxes of the field guide's scenes among all their names (1,200 categories that no
training saw), at every scale, with and without blur. The scale of each class of size is fitted on training scenes and
reported on the test scenes beside the best single scale. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asking import write_section
from scene_regions import Results, written

from rarvision.datasets.fieldguide import FieldGuideScenes
from rarvision.demo import TEXT_TEMPLATE
from rarvision.detection import RegionDataset
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.plots import save_figure, subplots
from rarvision.regions import (
    TABLE_12_SCALES,
    AdaptiveScale,
    Blur,
    CropRule,
    accuracy_by_size,
    fit_adaptive_scale,
    iter_crops,
)

SIZES = ("small", "medium", "large")
COLUMNS = ("all", *SIZES)
PAPER = (2.6, 1.6, 1.0)  # where Table 12 has its best values, with blur
BLURS = {"no blur": None, "blur": Blur(share=0.15)}


class Boxes:
    """The boxes of a split, and how many of them an encoder recognises."""

    def __init__(self, regions: RegionDataset, encoder: TransformersEncoder, batch: int) -> None:
        self.samples, self.encoder, self.batch = list(regions), encoder, batch
        vocabulary = regions.annotations.vocabulary
        self.texts = encoder.encode_texts([TEXT_TEMPLATE.format(name) for name in vocabulary.names])
        self.truth = vocabulary.columns([int(sample.metadata["category_id"]) for sample in self.samples])
        self.boxes = [sample.box_xyxy for sample in self.samples if sample.box_xyxy is not None]

    def accuracy(self, rule: CropRule) -> dict[str, float]:
        """Percent of all boxes and of each class of size."""
        crops = iter_crops(self.samples, rule, prepare=self.encoder.prepare, overlap=self.encoder.overlaps)
        found = []
        while batch := list(itertools.islice(crops, self.batch)):
            vectors = self.encoder.encode_prepared([prepared for _, prepared in batch])
            found.append((vectors @ self.texts.T).argmax(axis=1))
        right = (np.concatenate(found) == self.truth).tolist()
        by_size = accuracy_by_size(right, self.boxes)
        return {name: 100 * value for name, value in zip(COLUMNS, (float(np.mean(right)), *by_size), strict=True)}

    @property
    def counts(self) -> list[int]:
        """How many boxes there are of each class of size."""
        rule = AdaptiveScale()
        return np.bincount([rule.size_class(box) for box in self.boxes], minlength=len(SIZES)).tolist()


def measure(
    results: Results, split: str, boxes: Boxes, scales: Sequence[float]
) -> dict[str, dict[float, dict[str, float]]]:
    """The grid of one split: blur, scale, column."""
    return {
        name: {
            scale: results.get(
                f"{split}, {name}, {scale}",
                lambda scale=scale, blur=blur: boxes.accuracy(CropRule(scale=scale, blur=blur)),
            )
            for scale in scales
        }
        for name, blur in BLURS.items()
    }


def by_class(grid: dict[float, dict[str, float]], scales: Sequence[float], counts: Sequence[int]) -> dict[str, float]:
    """Accuracy with a scale of its own for each class of size: the very crops of the grid, each class of its row."""
    parts = {size: grid[scale][size] for size, scale in zip(SIZES, scales, strict=True)}
    there = [(parts[size], count) for size, count in zip(SIZES, counts, strict=True) if count]
    return {"all": sum(value * count for value, count in there) / sum(count for _, count in there)} | parts


def table(
    grid: dict[str, dict[float, dict[str, float]]], fitted: dict[str, Any], test: Boxes, train: Boxes, clip: str
) -> str:
    """The page's part."""
    counts = ", ".join(f"{count:,} {size}" for count, size in zip(test.counts, SIZES, strict=True))
    intro = (
        f"Encoder `{clip}`; {len(test.samples):,} boxes of the test scenes ({counts}; limits 32 x 32 and 96 x 96 "
        f"pixels of the box); scales fitted on {len(train.samples):,} boxes of training scenes. Top-1, percent; "
        "the best of a row in bold."
    )
    lines = [
        intro,
        "",
        f"| boxes | | {' | '.join(f'{scale:.1f}' for scale in TABLE_12_SCALES)} | fitted |",
        f"|---|---|{'---:|' * (len(TABLE_12_SCALES) + 1)}",
    ]
    for column in COLUMNS:
        for name in BLURS:
            values = [grid[name][scale][column] for scale in TABLE_12_SCALES]
            cells = [f"**{v:.1f}**" if v == max(values) else f"{v:.1f}" for v in values]
            lines.append(f"| {column} | {name} | {' | '.join(cells)} | {fitted[name]['test'][column]:.1f} |")
    lines.append("")
    for name in BLURS:
        scales = ", ".join(f"{scale:g}" for scale in fitted[name]["scales"])
        best = max(TABLE_12_SCALES, key=lambda scale, name=name: grid[name][scale]["all"])
        lines.append(
            f"- {name}: fitted scales for small, medium, large: {scales}; {fitted[name]['test']['all']:.1f} % on the "
            f"test scenes, where the best single scale there ({best:g}) has {grid[name][best]['all']:.1f} %, and the "
            f"paper's scales (2.6, 1.6, 1.0) {fitted[name]['paper']['all']:.1f} %."
        )
    return "\n".join(lines)


def plot(grid: dict[str, dict[float, dict[str, float]]], path: Path) -> None:
    """A panel for all boxes and one for each class of size; accuracy against scale."""
    figure, panels = subplots(len(COLUMNS), size=(3.0, 3.0))
    for axes, column in zip(panels, COLUMNS, strict=True):
        for name, style in zip(BLURS, ("--", "-"), strict=True):
            values = [grid[name][scale][column] for scale in TABLE_12_SCALES]
            axes.plot(
                TABLE_12_SCALES, values, style, marker=".", color="tab:blue" if style == "-" else "tab:grey", label=name
            )
        axes.set(title=f"{column} boxes", xlabel="crop over box", ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("zero-shot top-1, %")
    panels[0].legend()
    save_figure(figure, path)


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="where the scenes are, or are written to; by default for this run only"
    )
    parser.add_argument(
        "--json", type=Path, help="results, from where an interrupted run goes on; by default in --folder"
    )
    parser.add_argument("--encoder", choices=("clip-16", "clip-32"), default="clip-32")
    parser.add_argument("--categories", type=int, default=1200)
    parser.add_argument("--train-scenes", type=int, default=4, help="scenes that the scales are fitted on; 0 for all")
    parser.add_argument("--test-scenes", type=int, default=4, help="scenes to report on; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with the lines that mark where it goes")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="an .svg or .png; needs matplotlib")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        run(options, Path(scratch) if options.folder is None else options.folder)


def run(options: argparse.Namespace, folder: Path) -> None:
    """Measure in a folder."""
    encoder = TransformersEncoder(weights_path(options.encoder))
    splits = {"train": options.train_scenes, "test": options.test_scenes}
    boxes = {}
    for split, count in splits.items():
        scenes = FieldGuideScenes(split, categories=options.categories, seed=options.seed, scenes=count or None)
        boxes[split] = Boxes(RegionDataset(written(folder, scenes)), encoder, options.batch)
    settings = {
        "encoder": options.encoder,
        "categories": options.categories,
        "seed": options.seed,
        "blur": "0.15 of the longer side",
        **{split: len(each.samples) for split, each in boxes.items()},
    }
    results = Results(options.json or folder / "scale.jsonl", settings)
    grids = {split: measure(results, split, boxes[split], TABLE_12_SCALES) for split in splits}
    fitted = {}
    for name in BLURS:
        of_train = grids["train"][name]
        rule = fit_adaptive_scale(
            lambda scale, of_train=of_train: [of_train[scale][size] / 100 for size in SIZES],
            scales=of_train,
            counts=boxes["train"].counts,
        ).rule
        of_test = grids["test"][name]
        fitted[name] = {
            "scales": rule.scales,
            "test": by_class(of_test, rule.scales, boxes["test"].counts),
            "paper": by_class(of_test, PAPER, boxes["test"].counts),
        }
    text = table(grids["test"], fitted, boxes["test"], boxes["train"], options.encoder)
    print(text)
    if options.write:
        write_section(options.write, "scale", text)
    if options.plot:
        plot(grids["test"], options.plot)


if __name__ == "__main__":
    main()
