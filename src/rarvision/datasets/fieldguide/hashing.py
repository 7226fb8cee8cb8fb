"""Counter-based random numbers: integer hashing of a key, so that an image never depends on its batch or machine."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int, UInt64

__all__ = ["Rolls", "fold", "mix", "pixel_noise"]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S40 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(40)


def mix(values: UInt64[np.ndarray, ...]) -> UInt64[np.ndarray, ...]:
    """Scramble 64-bit integers with the finaliser of SplitMix64 (a bijection; wraps silently)."""
    with np.errstate(over="ignore"):
        z = values + _GAMMA
        z = (z ^ (z >> _S30)) * _M1
        z = (z ^ (z >> _S27)) * _M2
        return np.asarray(z ^ (z >> _S31), dtype=np.uint64)


def fold(*parts: int | Int[np.ndarray, " n"] | UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Hash several integers (scalars or arrays of one length) into one 64-bit key each, order counts."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        if isinstance(part, int):
            word = np.array([part & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
        else:
            word = np.asarray(part).astype(np.uint64)
        key = mix(key ^ mix(word))
    return key


class Rolls:
    """The random numbers of a batch of images: slot k of image i depends on that image's key and k only."""

    def __init__(self, keys: UInt64[np.ndarray, " n"]) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def flat(self, slot: int, low: float = 0.0, high: float = 1.0) -> Float32[np.ndarray, " n"]:
        """Uniform numbers in [low, high), one an image."""
        bits = mix(self.keys ^ mix(np.array([slot], dtype=np.uint64))) >> _S40
        unit = bits.astype(np.float32) * np.float32(2.0**-24)
        return np.asarray(np.float32(low) + unit * np.float32(high - low), dtype=np.float32)

    def __call__(self, slot: int, low: float = 0.0, high: float = 1.0) -> Float32[np.ndarray, "n 1 1"]:
        """Like `flat`, shaped to meet a field of pixels."""
        return self.flat(slot, low, high)[:, None, None]


def pixel_noise(keys: UInt64[np.ndarray, " n"], size: int) -> Float32[np.ndarray, "n 3 size size"]:
    """Return nearly normal noise (a sum of two uniform numbers, unit variance) for every pixel and channel."""
    cells = np.arange(size * size, dtype=np.uint64)
    bits = mix(keys[:, None] ^ (cells[None, :] * np.uint64(0xD1342543DE82EF95)))
    noise = np.empty((len(keys), 3, size * size), dtype=np.float32)
    mask = np.uint64(0x3FF)
    for channel in range(3):
        low = (bits >> np.uint64(20 * channel)) & mask
        high = (bits >> np.uint64(20 * channel + 10)) & mask
        noise[:, channel] = (low + high).astype(np.float32)
    noise -= np.float32(1023.0)
    noise *= np.float32(1.0 / 418.05)
    return noise.reshape(len(keys), 3, size, size)
