"""CLIP against RAR on the boxes of the field guide's scenes, measured as LVIS is: the shape of the paper's Table 3.

    python benchmarks/regions_table3.py --folder scenes --json table3.json --scales 1.4 1.2 1.2 --write docs/regions.md

Annotated boxes, 1,200 categories that no training saw, LVIS' rules, one evaluator preset for all rows. The memory holds
the names (zero-shot), or images of training boxes, or both. The ranker is the embedded MLLM, asked about the very crops
that the encoder saw. Each memory is one run of the one pipeline; its rows differ in what is made of it. Interrupted, it
goes on where it was, image by image.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asking import write_section
from scene_regions import Results, written

from rarvision.chat import LocalChat
from rarvision.datasets.fieldguide import FieldGuideScenes
from rarvision.demo import CALIBRATION, TEXT_TEMPLATE
from rarvision.detection import (
    Annotations,
    Detections,
    EvaluatorPreset,
    RegionDataset,
    evaluate_detections,
    evaluator_preset,
    ranked_scores,
    top_scores,
)
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.memory import LocalMemory
from rarvision.pipeline import Recognizer
from rarvision.ranking import Ranker
from rarvision.regions import AdaptiveScale, Blur, CropRule, iter_crops
from rarvision.retrieval import Retriever
from rarvision.types import Prediction, Sample

PLAIN = CropRule(scale=1.0, shape="box", blur=None)
MEMORIES = {"names": "text", "images": "image", "both": "fused"}
METRICS = ("AP", "APr", "APc", "APf", "APs", "APm", "APl")
CLIP, RAR, ALONE, TOP = "CLIP", "RAR", "RAR, ranker alone", "RAR, top-1 only"


def cropped(samples: Sequence[Sample], rule: CropRule) -> Iterator[Sample]:
    """What encoder and ranker see of each box, as samples of their own."""
    for sample, crop in iter_crops(samples, rule):
        yield Sample(source=sample.source, image=crop.image, label=sample.label, metadata=sample.metadata)


class Run:
    """One memory and one crop rule: what is found in the boxes of an image."""

    def __init__(
        self, memory: LocalMemory, source: Any, rule: CropRule, *, ranker: Ranker | None, truth: Annotations, k: int
    ) -> None:
        self.rule, self.vocabulary, self.encoder = rule, truth.vocabulary, memory.encoder
        self.every = Retriever(memory, k=len(self.vocabulary), source=source)
        self.recognizer = Recognizer(
            memory,
            ranker=ranker,
            retriever=Retriever(memory, k=k, source=source),
            calibration=CALIBRATION,
            fit=None,
            allow_fallback=True,
        )

    def similarities(self, crops: Sequence[Sample]) -> np.ndarray:
        """Retrieval's score of every category, a row a box; a category without an entry has the lowest of its row."""
        found = np.full((len(crops), len(self.vocabulary)), np.nan)
        vectors = self.encoder.encode_images([crop.image for crop in crops])
        for row, candidates in enumerate(self.every.retrieve(vectors)):
            columns = self.vocabulary.columns_of_names([candidate.category for candidate in candidates])
            found[row, columns] = [candidate.similarity for candidate in candidates]
        return np.where(np.isnan(found), np.nanmin(found, axis=1, keepdims=True), found)

    def image(self, samples: Sequence[Sample], preset: EvaluatorPreset) -> dict[str, Any]:
        """Of one image: what each row detects, and how the ranker answered."""
        crops = list(cropped(samples, self.rule))
        boxes = np.array([sample.box_xyxy for sample in samples])
        probabilities = preset.probabilities(self.similarities(crops))
        predictions = [each for each in self.recognizer.recognize_batch(crops) if isinstance(each, Prediction)]
        if len(predictions) != len(samples):
            raise SystemExit(f"{samples[0].source}: {len(samples) - len(predictions)} boxes could not be recognised")
        truth = [str(sample.label) for sample in samples]
        rows = {CLIP: probabilities}
        hits = {CLIP: self._names(probabilities)}
        if self.recognizer.ranker is not None:
            mixed = self._columns([[c.category for c in p.candidates] for p in predictions])
            alone = self._columns(
                [[p.retrieved[place] for place in p.ranking.order] for p in predictions if p.ranking is not None]
            )
            rows |= {RAR: ranked_scores(probabilities, mixed), ALONE: ranked_scores(probabilities, alone)}
            rows[TOP] = top_scores(probabilities, mixed)
            hits |= {RAR: self._names_of(mixed), ALONE: self._names_of(alone), TOP: self._names_of(mixed)}
        image_id = int(samples[0].metadata["image_id"])
        found = {
            name: preset.detections(image_id, boxes, scores, vocabulary=self.vocabulary)
            for name, scores in rows.items()
        }
        return {
            "boxes": len(samples),
            "recalled": sum(label in p.retrieved for label, p in zip(truth, predictions, strict=True)),
            "right": {n: sum(a == b for a, b in zip(named, truth, strict=True)) for n, named in hits.items()},
            "statuses": dict(Counter(p.ranking.status for p in predictions if p.ranking is not None)),
            "detections": {name: _packed(each) for name, each in found.items()},
        }

    def _columns(self, names: Sequence[Sequence[str]]) -> np.ndarray:
        return np.stack([self.vocabulary.columns_of_names(each) for each in names])

    def _names(self, scores: np.ndarray) -> list[str]:
        return [self.vocabulary.names[column] for column in scores.argmax(axis=1).tolist()]

    def _names_of(self, ranked: np.ndarray) -> list[str]:
        return [self.vocabulary.names[column] for column in ranked[:, 0].tolist()]


def _packed(found: Detections) -> list[list[float]]:
    """Columns: category ids, boxes, scores."""
    return [
        found.category_ids.tolist(),
        found.boxes_xywh.round(2).ravel().tolist(),
        [float(f"{score:.6g}") for score in found.scores.tolist()],
    ]


def _unpacked(image_id: int, packed: list[list[float]], truth: Annotations) -> Detections:
    ids, boxes, scores = packed
    return Detections(
        image_ids=np.full(len(ids), image_id, dtype=np.int64),
        category_ids=np.array(ids, dtype=np.int64),
        boxes_xywh=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        scores=np.array(scores, dtype=np.float64),
        vocabulary=truth.vocabulary,
    )


def measure(run: Run, truth: Annotations, preset: EvaluatorPreset, parts: Path, settings: dict[str, Any]) -> Any:
    """All images of one run; each is kept as it is done."""
    kept = Results(parts, settings, quiet=True)
    images: dict[int, dict[str, Any]] = {}
    samples = iter(RegionDataset(truth))
    for image_id, group in itertools.groupby(samples, key=lambda sample: int(sample.metadata["image_id"])):
        boxes = list(group)
        images[image_id] = kept.get(str(image_id), lambda boxes=boxes: run.image(boxes, preset))
    boxes, rows = sum(image["boxes"] for image in images.values()), {}
    for name in next(iter(images.values()))["detections"]:
        found = [_unpacked(id_, image["detections"][name], truth) for id_, image in images.items()]
        report = evaluate_detections(truth, Detections.concatenate(found), rules="lvis", preset=preset.name)
        metrics = {key: report.metrics[key] for key in METRICS}
        right = sum(image["right"][name] for image in images.values())
        rows[name] = {key: None if v is None else 100 * v for key, v in metrics.items()} | {
            "top-1": 100 * right / boxes
        }
    statuses: Counter[str] = sum((Counter(image["statuses"]) for image in images.values()), Counter())
    recalled = 100 * sum(image["recalled"] for image in images.values()) / boxes
    return {"rows": rows, "statuses": dict(statuses), "boxes": boxes, "recall": recalled}


def filled(folder: Path, encoder: TransformersEncoder, names: Sequence[str], shots: Sequence[Sample]) -> LocalMemory:
    """A memory of all names, and of the given crops."""
    memory = LocalMemory.create(folder, encoder=encoder, thumbnails=None)
    memory.add_texts(names, templates=(TEXT_TEMPLATE,))
    if shots:
        memory.add(shots)
    return memory


def table(found: dict[str, Any], options: argparse.Namespace) -> str:
    """The page's part."""
    first = next(iter(found.values()))
    scales = ", ".join(f"{scale:g}" for scale in options.scales)
    intro = (
        f"Encoder `{options.encoder}`, ranker `mllm` ({options.strategy}), k = {options.k}; {first['boxes']:,} "
        f"annotated boxes; evaluator preset `{options.preset}`, LVIS' rules; blurred crops of scales {scales} (small, "
        "medium, large). All in percent."
    )
    lines = [
        intro,
        "",
        f"| memory | method | {' | '.join(METRICS)} | top-1 |",
        f"|---|---|{'---:|' * (len(METRICS) + 1)}",
    ]
    for key, each in found.items():
        memory, crop = key.split(", ", 1)
        for name, row in each["rows"].items():
            cells = ["" if row[m] is None else f"{row[m]:.1f}" for m in (*METRICS, "top-1")]
            lines.append(f"| {memory} | {name}, {crop} | {' | '.join(cells)} |")
    lines.append("")
    for key, each in found.items():
        answers = ", ".join(f"{n:,} {status}" for status, n in sorted(each["statuses"].items()))
        lines.append(
            f"- {key}: the true name is among the {options.k} candidates of {each['recall']:.1f} % of the boxes"
            + (f"; answers: {answers}." if answers else ".")
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the scenes are, or are written to")
    parser.add_argument("--json", type=Path, required=True, help="results; an interrupted run goes on from there")
    parser.add_argument("--encoder", choices=("clip-16", "clip-32"), default="clip-32")
    parser.add_argument("--memories", nargs="+", choices=tuple(MEMORIES), default=["names"])
    parser.add_argument("--scales", type=float, nargs=3, default=(1.4, 1.2, 1.2), help="small, medium, large boxes")
    parser.add_argument("--strategy", choices=("likelihood", "choice", "generate", "pointwise"), default="likelihood")
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--preset", default="lvis")
    parser.add_argument("--categories", type=int, default=1200)
    parser.add_argument("--train-scenes", type=int, default=60, help="scenes whose boxes go into the memory")
    parser.add_argument("--test-scenes", type=int, help="fewer than all, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with the lines that mark where it goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    world = {"categories": options.categories, "seed": options.seed}
    truth = written(options.folder, FieldGuideScenes("test", **world, scenes=options.test_scenes))
    preset = evaluator_preset(options.preset)
    rule = CropRule(scale=AdaptiveScale(scales=tuple(options.scales)), blur=Blur(share=0.15))
    settings = world | {
        name: getattr(options, name) for name in ("encoder", "strategy", "k", "preset", "scales", "train_scenes")
    }
    settings |= {"boxes": len(truth.boxes_xywh)}
    results = Results(options.json, settings)
    encoder, found = TransformersEncoder(weights_path(options.encoder)), {}
    ranker = Ranker(LocalChat(weights_path("mllm"), batch_size=32), strategy=options.strategy)
    shots: list[Sample] = []
    if set(options.memories) != {"names"}:
        train = written(options.folder, FieldGuideScenes("train", **world, scenes=options.train_scenes))
        shots = list(cropped(list(RegionDataset(train)), rule))
    runs = [("names", "box crop", PLAIN)] + [(memory, "blur, adaptive scale", rule) for memory in options.memories]
    with tempfile.TemporaryDirectory() as scratch:
        memory = filled(Path(scratch) / "memory", encoder, truth.vocabulary.names, shots)
        for source, crop, crop_rule in runs:
            key = f"{source}, {crop}"
            run = Run(memory, MEMORIES[source], crop_rule, ranker=ranker, truth=truth, k=options.k)
            parts = options.json.with_name(f"{options.json.stem}.{source}.{crop.split(',')[0].replace(' ', '-')}.json")
            found[key] = results.get(key, lambda run=run, parts=parts: measure(run, truth, preset, parts, settings))
        memory.close()
    text = table(found, options)
    print(text)
    if options.write:
        write_section(options.write, "table 3", text)


if __name__ == "__main__":
    main()
