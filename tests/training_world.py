"""A world for tests of tuning: coloured squares, manifests that rank their names, tiny models."""

import json

import numpy as np
from PIL import Image

COLOURS = {
    "gold finch": (250, 20, 20),
    "house sparrow": (20, 250, 20),
    "barn owl": (20, 20, 250),
    "red kite": (240, 240, 20),
    "tree creeper": (20, 240, 240),
}
NAMES = tuple(COLOURS)


def square(path, name, seed):
    """An image of a category; a little different for each seed."""
    noise = np.random.default_rng([seed, NAMES.index(name)]).integers(-15, 16, 3)
    colour = tuple(int(v) for v in np.clip(np.asarray(COLOURS[name]) + noise, 0, 255))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), colour).save(path)
    return path


def manifest(folder, n, *, seed=0, k=4, stem="train"):
    """Write n ranking examples with their images; returns the manifest's path."""
    rng = np.random.default_rng(seed)
    lines = [{"rarvision_tuning": 1, "k": k}]
    for i in range(n):
        label = NAMES[i % len(NAMES)]
        image = square(folder / stem / f"{i}.png", label, 1000 * seed + i)
        others = [name for name in NAMES if name != label]
        shown = [label, *rng.permutation(others)[: k - 1].tolist()]
        candidates = rng.permutation(shown).tolist()
        target = [label, *(name for name in candidates if name != label)]
        record = {"id": f"{stem}-{i}", "image": f"{stem}/{image.name}", "label": label, "candidates": candidates}
        lines.append({**record, "target": target, "retrieved": candidates[::-1]})
    path = folder / f"{stem}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def pictures(folder, shots, *, seed=0):
    """A folder with a subfolder of images a category."""
    for name in NAMES:
        for shot in range(shots):
            square(folder / name / f"{shot}.png", name, 1000 * seed + shot)
    return folder


def noisy_tree(folder):
    """Four categories of six noisy pictures, whose colours overlap; a subfolder each."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("ash", "birch", "cedar", "elm")):
        for shot in range(6):
            path = folder / name / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((rng.integers(0, 90, (8, 8, 3)) + 15 * number).astype(np.uint8)).save(path)
    return folder
