"""Small clustered vectors, and one index of every kind over them."""

import functools

import numpy as np

from rarvision.index import make_index

DIM = 16
ROWS = 3_000

KINDS = {
    "exact": ("exact", {}),
    "hnsw": ("hnsw", {"m": 16}),
    "lists": ("rescored", {"nprobe": 64, "k_factor": 32}),
    "graph": ("PCA12,HNSW16_SQ8", {"store": "sq8", "ef_search": 128, "k_factor": 16}),
    "flat codes": ("PQ8x4fs", {"store": "fp32", "k_factor": 64}),
    "bits": ("IVF16,RaBitQ", {"nprobe": 16, "k_factor": 64}),
}


def clustered(rows, dim=DIM, seed=0):
    """Unit vectors around 60 centres that do not depend on the seed."""
    centres = np.random.default_rng(99).standard_normal((60, dim))
    generator = np.random.default_rng(seed)
    vectors = centres[generator.integers(0, 60, rows)] + 0.5 * generator.standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def empty(name, dim=DIM):
    kind, parameters = KINDS[name]
    return make_index(kind, dim, **parameters)


@functools.cache
def grown(name):
    """Do not change it."""
    index = empty(name)
    index.add(clustered(ROWS))
    return index
