"""Annotation files and detections made up to be hard, and what the official evaluators say of them."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import types
import warnings

import numpy as np


def write_world(folder, *, seed, images=12, categories=10, crowd=False, detections=40):
    """An annotation file of the LVIS format and a results file.

    There are ties, boxes and objects without area, and overlaps of exactly 0.5, 0.75, …
    Category 1 has no object, the last is detected nowhere; some images have no object, some no detection.
    """
    rng = np.random.default_rng(seed)
    category_ids = np.sort(rng.choice(np.arange(1, 500), categories, replace=False)).tolist()
    image_ids = rng.choice(np.arange(10**9, 10**9 + 1000), images, replace=False).tolist()
    rows, found = [], []
    listed = []
    for place, image_id in enumerate(image_ids):
        present = rng.choice(category_ids[1:], rng.integers(1, 4), replace=False).tolist() if place % 5 else []
        others = [c for c in category_ids if c not in present]
        listed.append(
            {
                "id": image_id,
                "width": 640,
                "height": 480,
                "file_name": f"{image_id}.jpg",
                "neg_category_ids": rng.choice(others, 3, replace=False).tolist(),
                "not_exhaustive_category_ids": [c for c in present if rng.random() < 0.4],
            }
        )
        boxes = []
        for category_id in present:
            for _ in range(rng.integers(1, 5)):
                size = rng.choice([16, 20, 32, 40, 64, 96, 100, 200], 2).tolist()
                box = [*rng.integers(0, 300, 2).tolist(), *size]
                boxes.append((category_id, box))
                rows.append(
                    {
                        "id": len(rows) + 1,
                        "image_id": image_id,
                        "category_id": category_id,
                        "bbox": [float(x) for x in box],
                        "area": float(box[2] * box[3] * rng.choice([0.0, 0.5, 1.0], p=[0.1, 0.45, 0.45])),
                        "iscrowd": int(crowd and rng.random() < 0.25),
                        "segmentation": [[0.0, 0.0, 1.0, 1.0, 2.0, 0.0]],
                    }
                )
        if place % 4 == 1:
            continue
        for _ in range(detections):
            if boxes and rng.random() < 0.7:
                category_id, box = boxes[rng.integers(len(boxes))]
                x, y, w, h = box
                cut = rng.choice([1.0, 0.5, 0.75, 0.9])
                box = [x, y, w, h * cut] if rng.random() < 0.5 else [x + int(rng.integers(-4, 5)), y, w * cut, h]
            else:
                category_id = int(rng.choice(category_ids))
                box = [*rng.integers(0, 300, 2).tolist(), *rng.integers(0, 150, 2).tolist()]
            if category_id != category_ids[-1]:
                score = float(rng.choice([0.25, 0.5, 0.5, 0.75, round(rng.random(), 3)]))
                box = [float(x) for x in box]
                found.append({"image_id": image_id, "category_id": category_id, "bbox": box, "score": score})
    order = rng.permutation(len(rows))
    truth = {
        "info": {"description": "made up"},
        "images": listed,
        "annotations": [rows[i] for i in order],
        "categories": [{"id": c, "name": f"thing_{c}", "frequency": "rcf"[c % 3]} for c in category_ids],
    }
    shuffled = [found[i] for i in rng.permutation(len(found))]
    paths = folder / "truth.json", folder / "results.json"
    for path, content in zip(paths, (truth, shuffled), strict=True):
        path.write_text(json.dumps(content))
    return paths


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def official_lvis(monkeypatch, truth, results):
    """The averages of the package lvis, and the average precision of each category (-1 without an object)."""
    monkeypatch.setattr(np, "float", float, raising=False)  # numpy 2 has taken it away
    monkeypatch.setitem(sys.modules, "cv2", sys.modules.get("cv2", types.ModuleType("cv2")))  # for drawing only
    with quiet():
        from lvis import LVIS, LVISEval

        measured = LVISEval(LVIS(str(truth)), str(results), "bbox")
        measured.run()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    return {name: float(measured.results[name]) for name in names}, measured.eval["precision"][..., 0].mean((0, 1))


def official_coco(truth, results, *, limit):
    """The same by pycocotools; its summary takes 100 detections for granted, so that it is averaged here."""
    with quiet():
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        known = COCO(str(truth))
        measured = COCOeval(known, known.loadRes(str(results)), "bbox")
        measured.params.maxDets = [1, 2, limit]  # sorted, the last one counts
        measured.evaluate()
        measured.accumulate()
    precision = measured.eval["precision"][..., -1]

    def mean(values):
        known = values[values > -1]
        return float(known.mean()) if known.size else -1.0

    means = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
    means |= {name: precision[..., i] for i, name in enumerate(("APs", "APm", "APl"), start=1)}
    return {name: mean(values) for name, values in means.items()}, precision[..., 0].mean((0, 1))
