"""How an image looks, in 200 bytes: enough to find it again after it was scaled, compressed or slightly changed.

Two parts, as each alone takes too many for the same: the signs of the 8 x 8 lowest frequencies of its lightness (the
DCT kind of perceptual hash, 64 bits, compared by counting those that differ), and its 8 x 8 mean colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from rarvision.images import Picture
from rarvision.index.engine import faiss_library

__all__ = ["BITS", "COLOUR_TOLERANCE", "THRESHOLD", "look_alikes", "look_of"]

BITS = 64
THRESHOLD = 8
"""Bits of 64 in which a copy may differ; what that finds and mistakes is measured by ``benchmarks/tuning_data.py``."""
COLOUR_TOLERANCE = 16.0
"""Root mean square difference of two images' 8 x 8 mean colours, of 255, up to which they may be copies."""

_SIDE = 32
_LOW = 8
_BYTES = BITS // 8
_BLOCK = 1_024
_FLAT = 1e-3  # lightness 0 to 255: coefficients of a picture of one colour are rounding errors below it


def _cosines() -> Float[np.ndarray, "low side"]:
    """The rows of the orthonormal DCT-II for the lowest frequencies."""
    frequency, place = np.arange(_LOW)[:, None], np.arange(_SIDE)[None]
    basis: Float[np.ndarray, "low side"] = np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SIDE)) * math.sqrt(
        2 / _SIDE
    )
    basis[0] /= math.sqrt(2)
    return basis


def look_of(picture: Picture) -> UInt8[np.ndarray, " 200"]:
    """The image's look: 8 bytes of hash, 192 of colours."""
    small = np.asarray(picture.resized((_SIDE, _SIDE), Image.Resampling.HAMMING), dtype=np.float64)
    lightness = small @ (0.299, 0.587, 0.114)
    basis = _cosines()
    low = basis @ lightness @ basis.T
    low[np.abs(low) < _FLAT] = 0.0
    bits = low > np.median(low.reshape(-1)[1:])  # the mean lightness says nothing about the picture's forms
    cell = _SIDE // _LOW
    colours = small.reshape(_LOW, cell, _LOW, cell, 3).mean(axis=(1, 3))
    return np.concatenate((np.packbits(bits), np.rint(colours).astype(np.uint8).reshape(-1)))


def look_alikes(
    first: UInt8[np.ndarray, "n 200"], second: UInt8[np.ndarray, "m 200"], *, threshold: int
) -> Iterator[tuple[int, int, int]]:
    """For each image of the second set that looks like one of the first, the pair that differs least.

    Args:
        first: One row an image.
        second: One row an image.
        threshold: Bits of 64 that may differ.

    Yields:
        The second's row, the first's row, and the number of bits that differ; by the second's row.
    """
    if not len(first) or not len(second):
        return
    faiss = faiss_library()
    index = faiss.IndexBinaryFlat(BITS)
    index.add(np.ascontiguousarray(first[:, :_BYTES]))
    for start in range(0, len(second), _BLOCK):
        block = second[start : start + _BLOCK]
        limits, distances, rows = index.range_search(np.ascontiguousarray(block[:, :_BYTES]), threshold + 1)
        queries = np.repeat(np.arange(len(block)), np.diff(limits.astype(np.int64)))
        alike = _colour_difference(first, block, rows, queries) <= COLOUR_TOLERANCE
        rows, queries, bits = rows[alike], queries[alike], distances[alike].astype(np.int64)
        order = np.lexsort((rows, bits, queries))
        _, best = np.unique(queries[order], return_index=True)
        for pair in order[best].tolist():
            yield start + int(queries[pair]), int(rows[pair]), int(bits[pair])


def _colour_difference(
    first: UInt8[np.ndarray, "n 200"],
    second: UInt8[np.ndarray, "m 200"],
    rows: Int[np.ndarray, " p"],
    queries: Int[np.ndarray, " p"],
) -> Float[np.ndarray, " p"]:
    """Root mean square over colours, for pairs of a row of the first and one of the second."""
    found = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), 65_536):
        part = slice(start, start + 65_536)
        ours = first[rows[part], _BYTES:].astype(np.float32)
        theirs = second[queries[part], _BYTES:].astype(np.float32)
        found[part] = np.sqrt(((ours - theirs) ** 2).mean(axis=1))
    return found
