"""Trains the embedded models: images, clip-16, clip-32, tower, mllm; each stage resumes where it was stopped."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPModel

from rarvision import embedded as weights
from rarvision.datasets.fieldguide import DOMAINS, sample_vocabulary
from rarvision.embedded import MODELS
from rarvision.embedded.training.clip import train_clip
from rarvision.embedded.training.config import Schedule
from rarvision.embedded.training.images import DomainImages, draw_domain, normalised, resized, split_codes
from rarvision.embedded.training.mllm import Retrieved, train_mllm
from rarvision.embedded.training.tokenizers import clip_tokenizer
from rarvision.embedded.training.tower import patch_features, train_tower

log = logging.getLogger("rarvision.embedded.training")

Code = tuple[int, ...]


def training_images(schedule: Schedule, out: Path) -> list[DomainImages]:
    """Training images: categories drawn uniformly from each domain's training split."""
    found = []
    for number, domain in enumerate(DOMAINS):
        pool = split_codes(domain, 0)
        rng = np.random.Generator(np.random.Philox(key=[schedule.seed, number]))
        codes = pool[rng.integers(0, len(pool), schedule.images_per_domain)]
        found.append(draw_domain(out / "images", domain, codes=codes, name="train", seed=1000 + schedule.seed))
    return found


def validation_images(schedule: Schedule, out: Path) -> list[tuple[DomainImages, list[list[Code]]]]:
    """Validation images, and for each the ten look-alikes of its group."""
    found = []
    for number, domain in enumerate(DOMAINS):
        vocabulary = sample_vocabulary(domain, "validation", 200, schedule.seed)
        rng = np.random.Generator(np.random.Philox(key=[schedule.seed, 100 + number]))
        rows = rng.integers(0, len(vocabulary), schedule.validation_images_per_domain)
        images = draw_domain(
            out / "images", domain, codes=vocabulary[rows], name="validation", seed=2000 + schedule.seed
        )
        groups = [[tuple(c) for c in vocabulary[r // 10 * 10 : r // 10 * 10 + 10].tolist()] for r in rows]
        found.append((images, groups))
    return found


@torch.no_grad()
def retrieved_candidates(folder: Path, data: DomainImages, schedule: Schedule, device: str, *, kept: Path) -> Retrieved:
    """For each training image the 20 training categories of a vocabulary of 200 that the small CLIP puts first.

    Returns:
        Codes, int16 ``(n, 20, attributes)``; -1 where an image's category is in none of the vocabularies.
    """
    if kept.exists():
        return np.load(kept)
    model = CLIPModel.from_pretrained(folder).to(device).eval()
    tokenizer = clip_tokenizer(folder)
    domain = DOMAINS[data.domain]
    small = resized(np.asarray(data.pixels), schedule.clip16.image)
    parts = [
        model.get_image_features(pixel_values=torch.from_numpy(normalised(p)).to(device)).pooler_output
        for p in np.array_split(small, max(1, len(small) // 1000))
    ]
    images = torch.nn.functional.normalize(torch.cat(parts), dim=-1)
    found = np.full((len(data.codes), 20, data.codes.shape[1]), -1, np.int16)
    by_code: dict[Code, list[int]] = {}
    for row, code in enumerate(data.codes.tolist()):
        by_code.setdefault(tuple(code), []).append(row)
    for number in range(120):
        vocabulary = sample_vocabulary(data.domain, "train", 200, 10_000 + number)
        tokens = tokenizer(
            domain.codes_to_names(vocabulary), return_tensors="pt", padding="max_length", max_length=16
        ).to(device)
        texts = torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        rows = [row for code in vocabulary.tolist() for row in by_code.get(tuple(code), ())]
        if rows:
            best = (images[rows] @ texts.T).topk(20, dim=1).indices.cpu().numpy()
            found[rows] = vocabulary[best]
    log.info("%s: candidates retrieved for %.0f %%", data.domain, 100 * (found[:, 0, 0] >= 0).mean())
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.save(kept, found)
    return found


def install(out: Path) -> None:
    """Copy the finished models to where `rarvision.embedded.weights_path` looks."""
    for name in MODELS:
        if (out / name / "model.safetensors").exists():
            shutil.copytree(out / name, Path(weights.__file__).parent / "weights" / name, dirs_exist_ok=True)
            log.info("installed %s", name)


def main() -> None:
    """Parse the options and run the stages in order."""
    parser = argparse.ArgumentParser(prog="python -m rarvision.embedded.training", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for images, checkpoints and models")
    parser.add_argument("--until", choices=["images", "clip-16", "clip-32", "tower", "mllm"], default="mllm")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all amounts; 0.01 is a dry run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--install", action="store_true", help="put the finished models into the package")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    schedule = Schedule(seed=options.seed).scaled(options.scale)
    out, device = options.out, options.device
    stages = ["images", "clip-16", "clip-32", "tower", "mllm"]
    last = stages.index(options.until)
    rest = {"schedule": schedule, "out": out, "device": device}

    data = training_images(schedule, out)
    validation = validation_images(schedule, out)
    if last >= 1:
        train_clip("clip-16", data, size=schedule.clip16, images_seen=schedule.clip16_images, **rest)
    if last >= 2:
        train_clip("clip-32", data, size=schedule.clip32, images_seen=schedule.clip32_images, **rest)
    if last >= 3:
        tower = train_tower(data, [images for images, _ in validation], schedule, out, device)
    if last >= 4:
        cache = out / "features"
        features = [patch_features(tower, d, device, kept=cache / f"{d.domain}.npy") for d in data]
        checks = [
            (images, patch_features(tower, images, device, kept=cache / f"{images.domain}-validation.npy"), groups)
            for images, groups in validation
        ]
        retrieved = {
            d.domain: retrieved_candidates(
                out / "clip-16", d, schedule, device, kept=cache / f"{d.domain}-retrieved.npy"
            )
            for d in data
        }
        train_mllm(data, features, checks, retrieved=retrieved, tower=tower, **rest)
    if options.install:
        install(out)


if __name__ == "__main__":
    main()
