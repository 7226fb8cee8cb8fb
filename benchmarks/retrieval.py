"""Quality of retrieval: every aggregate, correction and weight in one table: ``python benchmarks/retrieval.py``.

The field guide (several domains and seeds; validation categories to choose a default, test categories to report), and,
where the environment variable RARVISION_DATA names the folder that holds ``rar-memory``, the authors' own CLIP vectors:
one image left out, and one image of each category left out together, which keeps all categories equally large.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rarvision.datasets.fieldguide import FieldGuide
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.memory import LocalMemory, NewEntry, import_faiss
from rarvision.retrieval import Retriever

Options = Mapping[str, Any]
IMAGE: dict[str, Options] = {
    "1-NN": {"aggregate": "nearest"},
    "vote": {"aggregate": "vote"},
    "weighted vote": {"aggregate": "weighted"},
    "soft sum": {"aggregate": "sum"},
    "prototype": {"aggregate": "prototype"},
    "Tip cache, beta 5.5": {"aggregate": "tip"},
    "blend": {"aggregate": "blend"},
    "blend, mean": {"aggregate": "blend", "hubness": "mean"},
    "blend, CSLS": {"aggregate": "blend", "hubness": "csls"},
    "blend, inverted softmax": {"aggregate": "blend", "hubness": "softmax"},
}
FUSED: dict[str, Options] = {
    "text alone": {"source": "text"},
    "text alone, CSLS": {"source": "text", "hubness": "csls"},
    "1-NN + text": {"aggregate": "nearest"},
    "vote + text": {"aggregate": "vote"},
    "prototype + text": {"aggregate": "prototype"},
    "Tip-Adapter (beta 5.5, alpha 1)": {"aggregate": "tip"},
    "Tip-Adapter, fitted alpha": {"aggregate": "tip", "text_weight": "auto"},
    "blend + text (default)": {},
    "blend + text, mean": {"hubness": "mean"},
    "blend + text, CSLS": {"hubness": "csls"},
    "blend + text, inverted softmax": {"hubness": "softmax"},
    "blend + text, fitted weight": {"text_weight": "auto"},
}
METHODS: dict[str, Options] = {**{name: {"source": "image", **o} for name, o in IMAGE.items()}, **FUSED}
VIEWS = ("whole", "flip", "crops", "flip+crops")


def entries(names: Sequence[str], modality: Any) -> list[NewEntry]:
    """One for each name."""
    return [
        NewEntry(category=name, modality=modality, source=str(i), content=f"{modality} {i}".encode())
        for i, name in enumerate(names)
    ]


def right(memory: LocalMemory, options: Options, queries: np.ndarray, labels: Sequence[str]) -> float:
    """Percentage of queries whose first candidate is their category."""
    found = Retriever(memory, k=1, **options).retrieve(queries)
    return 100 * float(np.mean([c[0].category == label for c, label in zip(found, labels, strict=True)]))


def field_guide(
    encoder: TransformersEncoder, domain: str, split: Any, seed: int, *, shots: Sequence[int], queries: int
) -> dict[str, dict[str, float]]:
    """Method, shots: percent right. The images of fewer shots are among those of more."""
    guide = FieldGuide(domain, split=split, categories=200, seed=seed)
    most = max(shots)
    images = encoder.encode_images([s.image for s in guide.few_shot(shots=most, seed=seed)], batch_size=256)
    images = images.reshape(len(guide.names), most, -1)
    texts = encoder.encode_texts(guide.names)
    asked = list(guide.queries(queries, seed=seed))
    labels = [str(sample.label) for sample in asked]
    found: dict[str, dict[str, float]] = {}
    vectors = {}
    for views in VIEWS:
        started = time.process_time()
        vectors[views] = encoder.encode_images([s.image for s in asked], batch_size=256, views=views)
        cost = time.process_time() - started
        found.setdefault(f"CPU ms a query, views {views}", {})["any"] = 1000 * cost / queries
    for n in shots:
        with tempfile.TemporaryDirectory() as folder:
            memory = LocalMemory.create_unbound(Path(folder, "m"), dim=encoder.dim, fingerprint="imported:benchmark")
            with memory:
                names = [name for name in guide.names for _ in range(n)]
                memory.append(entries(names, "image"), images[:, :n].reshape(len(names), -1))
                memory.append(entries(guide.names, "text"), texts)
                for name, options in METHODS.items():
                    found.setdefault(name, {})[str(n)] = right(memory, options, vectors["whole"], labels)
                for views in VIEWS[1:]:
                    name = f"default, views {views}"
                    found.setdefault(name, {})[str(n)] = right(memory, {}, vectors[views], labels)
    return found


def real_vectors(data: Path) -> dict[str, dict[str, float]]:
    """Method, memory: percent of images right, each left out."""
    found: dict[str, dict[str, float]] = {}
    for name in ("cub200", "pets37"):
        folder = data / "rar-memory" / name
        (index,), (labels,) = folder.glob("*.index"), folder.glob("*_database.txt")
        with (
            tempfile.TemporaryDirectory() as place,
            import_faiss(index, labels, Path(place, "m"), classnames=folder / "classnames.txt") as memory,
        ):
            ids, own = memory.table("image")
            for method, options in IMAGE.items():
                codes, scores, _ = Retriever(memory, source="image", **options).left_out(ids)
                right_ones = codes[scores.argmax(axis=1)] == own
                found.setdefault(method, {})[f"{name}, one left out"] = 100 * float(right_ones.mean())
            names = np.array([memory.category_names()[code] for code in own.tolist()])
            vectors, turn = memory.vectors(ids), _turns(own)
            for method, options in IMAGE.items():
                shares = [_fold(vectors, names, turn == t, options) for t in range(int(turn.max()) + 1)]
                found.setdefault(method, {})[f"{name}, one of each"] = float(np.mean(shares))
    return found


def _turns(own: np.ndarray) -> np.ndarray:
    """For each image, how many of its category stand before it."""
    seen: dict[int, int] = {}
    return np.array([seen.update({c: seen.get(c, -1) + 1}) or seen[c] for c in own.tolist()])


def _fold(vectors: np.ndarray, names: np.ndarray, out: np.ndarray, options: Options) -> float:
    """Percent right of the images that are left out together, one of each category."""
    with tempfile.TemporaryDirectory() as folder:
        memory = LocalMemory.create_unbound(Path(folder, "m"), dim=vectors.shape[1], fingerprint="imported:fold")
        with memory:
            memory.append(entries(names[~out].tolist(), "image"), vectors[~out])
            return right(memory, {"source": "image", **options}, vectors[out], names[out].tolist())


def markdown(values: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A row a method, a column a setting; mean and standard deviation over domains and seeds."""
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    lines = ["| method | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for method, row in values.items():
        cells = [_cell(row.get(column, ())) for column in columns]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="clip-16", choices=["clip-16", "clip-32"])
    parser.add_argument("--domains", nargs="+", default=["birds", "flowers", "aircraft"])
    parser.add_argument("--splits", nargs="+", default=["validation", "test"], choices=["validation", "test"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all values here")
    options = parser.parse_args()
    results: dict[str, Any] = {}

    def keep(title: str, values: Any) -> None:
        results[title] = values
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")

    if data := os.environ.get("RARVISION_DATA"):
        real = {method: {k: [v] for k, v in row.items()} for method, row in real_vectors(Path(data)).items()}
        keep("real vectors", real)
        print("## Real CLIP vectors, one image left out\n\n" + markdown(real), flush=True)
    encoder = TransformersEncoder(weights_path(options.encoder), device="cpu")
    for split in options.splits:
        pooled: dict[str, dict[str, list[float]]] = {}
        for seed in options.seeds:
            for domain in options.domains:
                found = field_guide(encoder, domain, split, seed, shots=options.shots, queries=options.queries)
                for method, row in found.items():
                    for shots, value in row.items():
                        pooled.setdefault(method, {}).setdefault(shots, []).append(value)
                keep(split, pooled)
        print(f"\n## Field guide, {split} categories, by shots\n\n{markdown(pooled)}", flush=True)


if __name__ == "__main__":
    main()
