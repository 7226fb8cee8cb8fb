"""The training images: drawn once, kept as arrays on disk."""

from __future__ import annotations

import concurrent.futures
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy.lib.format import open_memmap
from PIL import Image

from rarvision.datasets.fieldguide import DOMAINS, render, split_of

__all__ = ["DomainImages", "draw_domain", "normalised", "resized", "split_codes"]

log = logging.getLogger(__name__)
_CHUNK = 2_000


@dataclass(frozen=True, kw_only=True)
class DomainImages:
    """Images of one domain: uint8 ``(n, 48, 48, 3)`` and their categories' codes ``(n, attributes)``."""

    domain: str
    pixels: UInt8[np.ndarray, "n height width 3"]
    codes: Int[np.ndarray, "n attributes"]


def split_codes(domain: str, split: int) -> Int[np.ndarray, "n attributes"]:
    """All category codes of one split (0 train, 1 validation, 2 test) of a domain."""
    sizes = [len(attribute.words) for attribute in DOMAINS[domain].attributes]
    grid = np.stack(np.meshgrid(*[np.arange(size) for size in sizes], indexing="ij"), axis=-1).reshape(-1, len(sizes))
    return grid[split_of(domain, grid) == split]


def _draw_chunk(domain: str, codes: np.ndarray, first: int, seed: int, size: int) -> np.ndarray:
    instances = np.arange(first, first + len(codes), dtype=np.uint64)
    return render(domain, codes, instances, size=size, seed=seed)


def draw_domain(
    folder: Path, domain: str, *, codes: Int[np.ndarray, "n attributes"], name: str, seed: int, workers: int = 2
) -> DomainImages:
    """Draw one image a row of ``codes``, or open them where they were drawn before."""
    size, n = 48, len(codes)
    stem = f"{domain}-{name}-{n}-{seed}"
    pixel_file, code_file, done = (folder / f"{stem}.{end}" for end in ("pixels.npy", "codes.npy", "done"))
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pixels = open_memmap(pixel_file, mode="w+", dtype=np.uint8, shape=(n, size, size, 3))
        with concurrent.futures.ProcessPoolExecutor(workers) as pool:
            jobs = {
                pool.submit(_draw_chunk, domain, codes[s : s + _CHUNK], s, seed, size): s for s in range(0, n, _CHUNK)
            }
            for job in concurrent.futures.as_completed(jobs):
                pixels[jobs[job] : jobs[job] + _CHUNK] = job.result()
        pixels.flush()
        np.save(code_file, codes)
        done.touch()
        log.info("drew %d images of %s (%s)", n, domain, name)
    return DomainImages(domain=domain, pixels=np.load(pixel_file), codes=np.load(code_file))


def resized(pixels: UInt8[np.ndarray, "n h w 3"], size: int) -> UInt8[np.ndarray, "n size size 3"]:
    """Resize as the shipped image processors do: PIL, bicubic."""
    if pixels.shape[1] == size:
        return np.asarray(pixels)
    out = np.empty((len(pixels), size, size, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        out[i] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    return out


def normalised(pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n 3 h w"]:
    """To [-1, 1], channels first: mean 0.5 and standard deviation 0.5, as the shipped processors say."""
    return (np.asarray(pixels, dtype=np.float32).transpose(0, 3, 1, 2) / 127.5) - 1.0
