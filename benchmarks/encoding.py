"""Encoding a folder of photographs against the plain loop and the bare model: ``python benchmarks/encoding.py``.

Writes 500 x 375 JPEGs to a temporary folder and compares, interleaved in one run, medians of images/s:

- the plain loop (open, the model's own processor, the model, one image at a time) with `Encoder.encode_images` and
  `Memory.add`, on the embedded encoder;
- `Encoder.encode_images` and `Memory.add` with the bare forward pass at the same batch, on a randomly initialised
  CLIP ViT-B/16;
- encoding names with the cache of texts empty, and filled.

It also prints the lowest cosine between vectors by the library's path and by the plain loop.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPConfig, CLIPModel

from rarvision.datasets.fieldguide import DOMAINS, FieldGuide
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.memory import LocalMemory
from rarvision.types import Sample

SIZE = (500, 375)
LARGE = (2000, 1500)
_NOISE = 4.0  # grey levels of grain; about 50 kB an image, as a photograph of this size has


def write_photographs(folder: Path, count: int, *, size: tuple[int, int] = SIZE, quality: int = 90) -> list[Path]:
    """Drawings of the field guide, enlarged and with grain, as JPEGs."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    drawings = [FieldGuide(domain, categories=20, images_per_category=10, size=96) for domain in DOMAINS]
    paths = []
    for number in range(count):
        guide = drawings[number % len(drawings)]
        small = Image.fromarray(guide.pixels(number % 200, number % 200 + 1)[0])
        pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = pixels + generator.normal(0, _NOISE, (*pixels.shape[:2], 1)).astype(np.float32)
        paths.append(folder / f"{number:05d}.jpg")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1], quality=quality)
    return paths


def random_vit(folder: Path) -> Path:
    """CLIP ViT-B/16 as transformers initialises it, with the embedded encoder's tokenizer."""
    torch.manual_seed(0)
    config = CLIPConfig(vision_config={"patch_size": 16}, text_config={"num_hidden_layers": 1}, projection_dim=512)
    CLIPModel(config).eval().save_pretrained(folder)
    embedded = Path(weights_path("clip-16"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((embedded / file).read_bytes())
    from transformers import CLIPImageProcessorPil

    side = {"height": 224, "width": 224}
    CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=side).save_pretrained(folder)
    return folder


class Plain:
    """The loop that everybody writes first."""

    def __init__(self, model: Path) -> None:
        self.model = CLIPModel.from_pretrained(model).eval()
        self.processor = AutoImageProcessor.from_pretrained(model, backend="pil")

    def vectors(self, paths: Sequence[Path]) -> np.ndarray:
        """One image at a time."""
        rows = []
        with torch.inference_mode():
            for path in paths:
                inputs = self.processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
                rows.append(self.model.get_image_features(**inputs).pooler_output[0].numpy())
        array = np.stack(rows)
        return array / np.linalg.norm(array, axis=1, keepdims=True)

    def bare(self, batches: Sequence[torch.Tensor]) -> None:
        """Forward passes on pixels that are ready."""
        with torch.inference_mode():
            for batch in batches:
                self.model.get_image_features(pixel_values=batch)

    def pixels(self, paths: Sequence[Path], size: int) -> list[torch.Tensor]:
        """Batches for `bare`."""
        images = [Image.open(path).convert("RGB") for path in paths]
        starts = range(0, len(images), size)
        return [self.processor(images=images[i : i + size], return_tensors="pt")["pixel_values"] for i in starts]


def medians(jobs: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Run the jobs in turn, ``repeats`` times after one warm-up; the median seconds of each, by clock and processor.

    On a machine that others use, the processor's time on one thread says more than the clock.
    """
    clock: dict[str, list[float]] = {name: [] for name in jobs}
    processor: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            start, busy = time.perf_counter(), time.process_time()
            job()
            if repeat:
                clock[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - busy)
    return tuple({name: statistics.median(v) for name, v in each.items()} for each in (clock, processor))  # type: ignore[return-value]  # two


def add(memory: LocalMemory, paths: Sequence[Path], batch: int) -> None:
    """All that ``rarvision memory add`` does: content hashes, thumbnails, storing."""
    samples = (Sample(source=path.name, image=path, label=f"category {i % 50}") for i, path in enumerate(paths))
    with memory:
        memory.add(samples, batch_size=batch)


def lowest_cosine(plain: Plain, encoder: TransformersEncoder, paths: Sequence[Path]) -> float:
    """Between the library's vectors and the plain loop's, over these images."""
    return float((plain.vectors(paths) * encoder.encode_images(paths)).sum(axis=1).min())


def compare(
    name: str, model: Path, paths: Sequence[Path], scratch: Path, *, batch: int, repeats: int, baseline: str
) -> dict[str, Any]:
    """Images/s of each way, and ratios to the baseline's."""
    plain, encoder = Plain(model), TransformersEncoder(model, device="cpu", batch_size=batch)
    ready = plain.pixels(paths, batch)
    _ = encoder.fingerprint  # a hash of the weights, once for each model
    places = (scratch / f"{name}-{number}" for number in range(repeats + 1))
    empty = iter([LocalMemory.create(place, encoder=encoder) for place in places])
    ways: dict[str, Callable[[], object]] = {
        "plain loop": lambda: plain.vectors(paths),
        "bare forward pass": lambda: plain.bare(ready),
        "encode_images": lambda: encoder.encode_images(paths),
        "Memory.add": lambda: add(next(empty), paths, batch),
    }
    if baseline == "bare forward pass":
        del ways["plain loop"]
    found: dict[str, Any] = {}
    for kind, seconds in zip(("clock", "processor"), medians(ways, repeats), strict=True):
        rates = {way: len(paths) / value for way, value in seconds.items()}
        found[f"images/s, {kind}"] = rates
        found[f"times the {baseline}, {kind}"] = {
            w: rates[w] / rates[baseline] for w in ("encode_images", "Memory.add")
        }
    return found


def text_cache(names: Sequence[str], scratch: Path, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds to add the names to a new memory: without the cache, with it empty, and filled."""
    encoder = TransformersEncoder(weights_path("clip-16"), device="cpu")
    _ = encoder.fingerprint
    numbers = itertools.count()

    def fill(*, cache: Path | bool) -> None:
        with LocalMemory.create(scratch / f"texts-{next(numbers)}", encoder=encoder) as memory:
            memory.add_texts(names, cache=cache)

    return medians(
        {
            "no cache": lambda: fill(cache=False),
            "empty cache": lambda: fill(cache=scratch / f"cache-{next(numbers)}"),
            "filled cache": lambda: fill(cache=scratch / "cache"),
        },
        repeats,
    )


def on_threads(threads: int) -> None:
    """Confine the process to as many processors as it may use threads, where the system can."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(_USABLE)[:threads])


_USABLE = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="for the embedded encoder")
    parser.add_argument("--vit-images", type=int, default=32, help="for the random ViT-B/16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--vit-batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--names", type=int, default=2_000, help="for the cache of texts")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    results: dict[str, Any] = {}

    def keep(label: str, value: object) -> None:
        results[label] = value
        print(json.dumps({label: value}, indent=1), flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        paths = write_photographs(scratch / "jpegs", options.images)
        large = write_photographs(scratch / "large", 4, size=LARGE)
        vit = random_vit(scratch / "vit")
        embedded = Path(weights_path("clip-16"))
        keep("kB a JPEG", sum(path.stat().st_size for path in paths) / len(paths) / 1000)
        for label, model, some in (
            ("embedded clip-16", embedded, paths),
            ("random ViT-B/16", vit, paths[:4]),
            ("random ViT-B/16, 2000 x 1500", vit, large),
        ):
            keep(f"lowest cosine, {label}", lowest_cosine(Plain(model), TransformersEncoder(model), some))
        for threads in options.threads:
            on_threads(threads)
            common = {"scratch": scratch, "repeats": options.repeats}
            found = compare(
                f"embedded-{threads}", embedded, paths, batch=options.batch, baseline="plain loop", **common
            )
            keep(f"embedded clip-16, {threads} threads", found)
            some = paths[: options.vit_images]
            found = compare(
                f"vit-{threads}", vit, some, batch=options.vit_batch, baseline="bare forward pass", **common
            )
            keep(f"random ViT-B/16, {threads} threads", found)
        names = list(itertools.islice(FieldGuide.vocabulary(options.names), options.names))
        for kind, seconds in zip(("clock", "processor"), text_cache(names, scratch, options.repeats), strict=True):
            keep(f"seconds for {len(names)} names, {kind}", seconds)
            keep(f"filled cache over none, {kind}", seconds["no cache"] / seconds["filled cache"])


if __name__ == "__main__":
    main()
