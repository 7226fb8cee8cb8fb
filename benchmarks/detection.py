"""Evaluating detections against the official evaluator: ``python benchmarks/detection.py``.

A made-up annotation file of the shape of LVIS' validation set (long-tailed categories, negative and not-exhaustive
ones, masks of 40 points) and 300 detections an image are evaluated by the package lvis and by rarvision, in one run,
from the files on. Both must give the same average precisions. The bar: at least 5 times faster on 5,000 images.
Reading is beside the json module.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rarvision.detection import evaluate_detections, read_annotations, read_detections


def write_files(folder: Path, *, images: int, categories: int, detections: int, seed: int) -> tuple[Path, Path]:
    """The annotation file and the results file."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, categories + 1)
    weights /= weights.sum()
    counts = rng.multinomial(images * 12, weights)
    frequency = np.where(counts <= 10, "r", np.where(counts <= 100, "c", "f")).tolist()
    listed, rows, found = [], [], []
    for image_id in range(1, images + 1):
        present = np.unique(rng.choice(categories, 4, p=weights) + 1)
        absent = np.setdiff1d(np.unique(rng.choice(categories, 8) + 1), present)
        listed.append(
            {
                "id": image_id,
                "width": 640,
                "height": 480,
                "coco_url": f"http://images.cocodataset.org/val2017/{image_id:012d}.jpg",
                "neg_category_ids": absent.tolist(),
                "not_exhaustive_category_ids": present[rng.random(len(present)) < 0.2].tolist(),
            }
        )
        truth = np.repeat(present, rng.integers(1, 6, len(present)))
        boxes = np.column_stack((rng.uniform(0, 400, (len(truth), 2)), np.exp(rng.uniform(2.5, 5.3, (len(truth), 2)))))
        boxes = boxes.round(2)
        for category_id, box in zip(truth.tolist(), boxes.tolist(), strict=True):
            mask = [(box[:2] + rng.random((40, 2)) * box[2:]).round(2).ravel().tolist()]
            area = round(box[2] * box[3] * 0.7, 2)
            row = {"id": len(rows) + 1, "image_id": image_id, "category_id": category_id, "bbox": box, "area": area}
            rows.append(row | {"segmentation": mask})
        which = rng.integers(len(truth), size=detections)
        moved = np.abs(boxes[which] + rng.normal(size=(detections, 4)) * rng.uniform(0, 12, (detections, 1))).round(2)
        ids = np.where(rng.random(detections) < 0.3, truth[which], rng.choice(categories, detections, p=weights) + 1)
        scores = rng.random(detections).round(4).tolist()
        for category_id, box, score in zip(ids.tolist(), moved.tolist(), scores, strict=True):
            found.append({"image_id": image_id, "category_id": category_id, "bbox": box, "score": score})
    known = [{"id": i + 1, "name": f"category_{i + 1}", "frequency": frequency[i]} for i in range(categories)]
    paths = folder / "truth.json", folder / "results.json"
    paths[0].write_text(json.dumps({"images": listed, "annotations": rows, "categories": known}))
    paths[1].write_text(json.dumps(found))
    return paths


def official(truth: Path, results: Path) -> dict[str, float]:
    """The averages of the package lvis, which needs a name that numpy 2 has dropped, and OpenCV for drawing alone."""
    setattr(np, "float", float)  # noqa: B010 - type checkers know that it is gone
    sys.modules.setdefault("cv2", types.ModuleType("cv2"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lvis import LVIS, LVISEval

        logging.getLogger("lvis").setLevel(logging.ERROR)
        measured = LVISEval(LVIS(str(truth)), str(results), "bbox")
        measured.run()
    return {name: float(value) for name, value in measured.results.items()}


def ours(truth: Path, results: Path) -> dict[str, float | None]:
    return evaluate_detections(read_annotations(truth), read_detections(results)).metrics


def timed(job: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds by the clock and of the processor, all threads together: on a busy machine the latter says more."""
    start, busy = time.perf_counter(), time.process_time()
    answer = job()
    return (time.perf_counter() - start, time.process_time() - busy), answer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--categories", type=int, default=1_203)
    parser.add_argument("--detections", type=int, default=300, help="an image")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        truth, results = write_files(
            Path(folder),
            images=options.images,
            categories=options.categories,
            detections=options.detections,
            seed=options.seed,
        )
        mine, found = timed(lambda: ours(truth, results))
        theirs, expected = timed(lambda: official(truth, results))
        reading, annotations = timed(lambda: read_annotations(truth))
        plain, _ = timed(lambda: json.loads(truth.read_bytes()))
        figures = {
            "images": options.images,
            "categories": options.categories,
            "annotations": len(annotations.category_ids),
            "detections": options.images * options.detections,
            "AP": found["AP"],
            "difference": max(abs((-1.0 if v is None else v) - expected[name]) for name, v in found.items()),
            "file, MB": round(truth.stat().st_size / 1e6, 1),
        }
        for place, kind in enumerate(("clock", "processor")):
            figures |= {
                f"rarvision, s, {kind}": round(mine[place], 2),
                f"lvis, s, {kind}": round(theirs[place], 2),
                f"times faster, {kind}": round(theirs[place] / mine[place], 1),
                f"reading, s, {kind}": round(reading[place], 2),
                f"json module, s, {kind}": round(plain[place], 2),
            }
    for name, value in figures.items():
        print(f"{name:>26}  {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
