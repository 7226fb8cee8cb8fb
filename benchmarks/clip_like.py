"""Vectors like those of a CLIP image encoder, from a handful of numbers, for benchmarks that anyone can run.

The numbers were fitted to the two memories that the authors of RAR published (CLIP ViT-B/16, 711 images of 237
classes): how much of a unit vector is the mean of all images, how much tells classes apart, how much tells images of
one class apart, and how the variance of the latter two falls off over the directions. `fit` finds them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

__all__ = ["RAR_MEMORY", "ClipLike", "Falloff", "fit"]

_CHUNK = 50_000
_POWERS = np.arange(0.2, 1.5, 0.05)
_REACHES = (10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 130.0, 160.0, 1e9)


@dataclass(frozen=True, kw_only=True)
class Falloff:
    """Variance over directions: ``i ** -power * exp(-i / reach)`` for i = 1, 2, …, shrunk to full rank.

    Attributes:
        trace: Sum of the variances (a unit vector's squared length is 1).
        power: Of the power law.
        reach: Directions over which the exponential falls to 1/e.
        floor: Share of the trace that is spread evenly over all directions (Ledoit and Wolf's shrinkage).
    """

    trace: float
    power: float
    reach: float
    floor: float

    def variances(self, dim: int) -> Float[np.ndarray, " dim"]:
        """The variance along each of `dim` directions, descending; their sum is `trace`."""
        i = np.arange(1, dim + 1, dtype=np.float64)
        shape = i**-self.power * np.exp(-i / self.reach)
        variances: Float[np.ndarray, " dim"] = self.trace * ((1 - self.floor) * shape / shape.sum() + self.floor / dim)
        return variances


@dataclass(frozen=True, kw_only=True)
class ClipLike:
    """Unit vectors: a common mean, class centres around it, images around their centre.

    Attributes:
        between: Of the class centres.
        within: Of the images of one class.
        aligned: Share of the variance within classes that lies along the directions of that between them.
        mean: Squared length of the common mean.
    """

    between: Falloff
    within: Falloff
    aligned: float
    mean: float

    def draw(
        self, rows: int, *, classes: int = 5_000, dim: int = 512, seed: int = 0, stream: int = 0
    ) -> tuple[Float[np.ndarray, "rows dim"], Int[np.ndarray, " rows"]]:
        """Vectors (float32, unit length) and the class of each.

        Args:
            rows: How many; the first rows of a longer draw are those of a shorter one.
            classes: Drawn with equal probability, in random order.
            dim: Number of dimensions.
            seed: Of the mean, the directions and the class centres.
            stream: Another one gives other vectors of the same classes, such as queries.
        """
        vectors = np.empty((rows, dim), dtype=np.float32)
        labels = np.empty(rows, dtype=np.int64)
        start = 0
        for some, theirs in self.parts(rows, classes=classes, dim=dim, seed=seed, stream=stream):
            vectors[start : start + len(some)] = some
            labels[start : start + len(some)] = theirs
            start += len(some)
        return vectors, labels

    def parts(
        self, rows: int, *, classes: int = 5_000, dim: int = 512, seed: int = 0, stream: int = 0
    ) -> Iterator[tuple[Float[np.ndarray, "n dim"], Int[np.ndarray, " n"]]]:
        """What `draw` gives, a part at a time, for more rows than fit."""
        world = np.random.default_rng([seed, dim, classes])
        basis, turned = (np.linalg.qr(world.standard_normal((dim, dim)))[0].astype(np.float32) for _ in range(2))
        mean = world.standard_normal(dim)
        mean *= np.sqrt(self.mean) / np.linalg.norm(mean)
        spread = np.sqrt(self.between.variances(dim)).astype(np.float32)
        centres = (world.standard_normal((classes, dim), dtype=np.float32) * spread) @ basis
        centres += mean.astype(np.float32)
        noise = np.sqrt(self.within.variances(dim)).astype(np.float32)
        along = np.sqrt(np.float32(self.aligned)) * noise[:, None] * basis
        across = np.sqrt(np.float32(1 - self.aligned)) * noise[:, None] * turned
        for start in range(0, rows, _CHUNK):
            chunk = np.random.default_rng([seed, 1 + stream, start])
            some = chunk.integers(0, classes, _CHUNK)
            drawn = centres[some]
            drawn += chunk.standard_normal((_CHUNK, dim), dtype=np.float32) @ along
            drawn += chunk.standard_normal((_CHUNK, dim), dtype=np.float32) @ across
            drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
            kept = min(_CHUNK, rows - start)
            yield drawn[:kept], some[:kept]


RAR_MEMORY = ClipLike(
    between=Falloff(trace=0.121, power=0.70, reach=50.0, floor=0.10),
    within=Falloff(trace=0.151, power=0.45, reach=80.0, floor=0.12),
    aligned=0.68,
    mean=0.728,
)
"""What `fit` finds on the authors' two memories, rounded."""


def fit(folder: Path) -> ClipLike:
    """The same numbers from the memories under a folder: each a faiss ``*.index`` beside ``*.txt`` (path, label)."""
    import faiss

    within, between, means, caught = [], [], [], []
    for path in sorted(folder.rglob("*.index")):
        index = faiss.read_index(str(path))
        vectors = index.reconstruct_n(0, index.ntotal)
        lines = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
        labels = np.unique([line.rsplit(None, 1)[-1] for line in lines if line.strip()], return_inverse=True)[1]
        counts = np.bincount(labels)
        centres = np.zeros((len(counts), vectors.shape[1]))
        np.add.at(centres, labels, vectors)
        centres /= counts[:, None]
        mean = vectors.mean(axis=0, dtype=np.float64)
        means.append((len(vectors), float(mean @ mean)))
        # a class mean of n images takes a degree of freedom, and carries a share 1/n of the noise
        within.append((vectors - centres[labels]) * np.sqrt(counts / (counts - 1))[labels, None])
        between.append(centres - centres.mean(axis=0))
        caught.append((len(vectors), *_caught(within[-1], between[-1])))
    noise, spread = np.concatenate(within), np.concatenate(between)
    images = len(noise) / len(spread)
    weights = np.array([n for n, *_ in caught], dtype=np.float64)
    ours, own = (np.average([c[i] for c in caught], weights=weights) for i in (1, 2))
    random = 32 / noise.shape[1]
    trace = float((noise**2).sum() / len(noise))
    return ClipLike(
        between=_falloff(spread, trace=float((spread**2).sum() / len(spread)) - trace / images),
        within=_falloff(noise, trace=trace),
        aligned=round(float((ours - random) / (own - random)), 2),
        mean=round(float(np.average([m for _, m in means], weights=weights)), 3),
    )


def _caught(noise: Float[np.ndarray, "n dim"], spread: Float[np.ndarray, "m dim"]) -> tuple[float, float]:
    """Share of the noise within the 32 widest directions of the class centres, and within its own 32."""
    total = (noise**2).sum()
    return tuple(  # type: ignore[return-value]  # of two, as the loop below has two turns
        float(((noise @ np.linalg.svd(of, full_matrices=False)[2][:32].T) ** 2).sum() / total) for of in (spread, noise)
    )


def _falloff(deviations: Float[np.ndarray, "n dim"], *, trace: float) -> Falloff:
    n, dim = deviations.shape
    variances = np.linalg.svd(deviations, compute_uv=False) ** 2 / n
    variances = variances[variances > 1e-6 * variances[0]]
    share = np.cumsum(variances) / variances.sum()
    i = np.arange(1, len(variances) + 1)

    def miss(power: float, reach: float) -> float:
        shape = np.cumsum(i**-power * np.exp(-i / reach))
        return float(np.abs(shape / shape[-1] - share).max())

    power, reach = min(((p, r) for p in _POWERS for r in _REACHES), key=lambda pair: miss(*pair))
    covariance = deviations.T @ deviations / n
    flat = np.trace(covariance) / dim
    away = ((covariance - flat * np.eye(dim)) ** 2).sum()
    error = (((deviations**2).sum(axis=1) ** 2).sum() / n - (covariance**2).sum()) / n
    return Falloff(
        trace=round(trace, 3),
        power=round(float(power), 2),
        reach=float(reach),
        floor=round(float(min(1.0, error / away)), 2),
    )
