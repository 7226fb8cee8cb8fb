"""Measures the embedded models for their card: ``python -m rarvision.embedded.measure``."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from rarvision.chat import ChatRequest, LocalChat
from rarvision.datasets.fieldguide import DOMAINS, HELD_OUT_DOMAIN, FieldGuide, render
from rarvision.demo import CALIBRATION, field_guide_memory
from rarvision.embedded import weights_path
from rarvision.embedded.training.images import normalised, split_codes
from rarvision.encoders import TransformersEncoder
from rarvision.images import load_image
from rarvision.memory import LocalMemory
from rarvision.metrics import recall_at_k, topk_accuracy
from rarvision.pipeline import Recognizer
from rarvision.ranking import NAMING_PROMPT, Ranker
from rarvision.retrieval import Retriever
from rarvision.types import Candidate, Prediction, Sample

__all__ = ["main"]

STRATEGIES: dict[str, dict[str, object]] = {
    "generate, free": {"strategy": "generate"},
    "generate, constrained": {"strategy": "generate", "constrained": True},
    "choice": {"strategy": "choice"},
    "likelihood": {"strategy": "likelihood"},
    "likelihood, no list": {"strategy": "likelihood", "with_list": False},
    "pointwise": {"strategy": "pointwise"},
}
K = 5
_CONTROLLED = 300
_LISTED = 200
_CHANCE = 30  # percent; a fifth is chance, and images of one vocabulary share attributes
_BARS = (("likelihood", 15, 8), ("choice", 15, 8), ("generate, free", 12, 5))  # points over 1-NN, over retrieval
_FITTING = 150  # names of the vocabulary that the MLLM's context of 1,024 tokens holds, with their prompt
_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"


Raw = dict[str, dict[str, dict[str, Sequence[float]]]]
"""Encoder, domain, method: the values over the seeds."""


@dataclass(frozen=True)
class Row:
    """One figure: percentages over seeds."""

    method: str
    values: tuple[float, ...]

    def text(self) -> str:
        """Mean and spread (standard deviation over the seeds); only the value where there is one."""
        if len(self.values) == 1:
            return f"{self.values[0]:.1f}"
        return f"{np.mean(self.values):.1f} ± {np.std(self.values):.1f}"


def _accuracy(predictions: Sequence[Prediction], labels: Sequence[str]) -> float:
    return 100 * topk_accuracy([[prediction.label] for prediction in predictions], labels)


@cache
def _vision_tower() -> torch.nn.Module:
    tower: torch.nn.Module = LlavaForConditionalGeneration.from_pretrained(weights_path("mllm")).model.vision_tower
    return tower.eval()


def _tower_features(pixels: np.ndarray) -> torch.Tensor:
    """Mean of the patches that the MLLM's own vision tower gives its language model."""
    tower = _vision_tower()
    parts = []
    with torch.no_grad():
        for start in range(0, len(pixels), 200):
            batch = torch.from_numpy(normalised(pixels[start : start + 200]))
            parts.append(tower(batch, output_hidden_states=True).hidden_states[-1][:, 1:].mean(1))
    return torch.cat(parts).float()


@cache
def _attribute_probes(domain: str) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """Linear probes of a domain's attributes, fitted on 4,000 images of training categories."""
    codes = split_codes(domain, 0)
    rows = np.random.default_rng(0).integers(0, len(codes), 4_000)
    features = _tower_features(render(domain, codes[rows], np.arange(len(rows), dtype=np.uint64), size=48, seed=31))
    mean, spread = features.mean(0), features.std(0)
    x, probes = (features - mean) / spread, []
    for a, attribute in enumerate(DOMAINS[domain].attributes):
        target = torch.from_numpy(codes[rows, a])
        probe = torch.nn.Linear(x.shape[1], len(attribute.words))
        optimiser = torch.optim.LBFGS(probe.parameters(), max_iter=60)

        def closure(probe: torch.nn.Linear = probe, target: torch.Tensor = target) -> torch.Tensor:
            probe.zero_grad()
            loss = torch.nn.functional.cross_entropy(probe(x), target) + 1e-4 * probe.weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        probes.append(probe.requires_grad_(requires_grad=False))
    return lambda queries: [probe((queries - mean) / spread).log_softmax(-1) for probe in probes]


def _attribute_scores(domain: str, vocabulary: np.ndarray, queries: torch.Tensor) -> torch.Tensor:
    """Log-probability of each category (n, categories) as the sum over its attributes."""
    found = _attribute_probes(domain)(queries)
    return torch.stack([scores[:, torch.from_numpy(vocabulary[:, a])] for a, scores in enumerate(found)]).sum(0)


class _World:
    """One domain, one seed: a memory, queries, and what is asked of them."""

    def __init__(self, domain: str, seed: int, encoder: TransformersEncoder, chat: LocalChat, path: Path) -> None:
        self.chat = chat
        self.guide = FieldGuide(domain, categories=200, seed=seed)
        self.memory: LocalMemory = field_guide_memory(path, self.guide, encoder, shots=4, seed=seed)
        self.samples: list[Sample] = []
        self.labels: list[str] = []

    def ask(self, n: int, seed: int) -> None:
        """Draw the queries."""
        self.samples = list(self.guide.queries(n, seed=seed))
        self.labels = [str(sample.label) for sample in self.samples]

    def recognise(self, retriever: Retriever, ranker: Ranker | None) -> list[Prediction]:
        """All queries through the one pipeline."""
        recogniser = Recognizer(self.memory, retriever=retriever, ranker=ranker, calibration=CALIBRATION)
        found = recogniser.recognize_batch(self.samples)
        assert all(isinstance(p, Prediction) for p in found)  # noqa: S101 - drawn images are readable
        return [p for p in found if isinstance(p, Prediction)]

    def retrieval(self, **options: object) -> tuple[float, float]:
        """Top-1 and recall@5 of retrieval alone."""
        predictions = self.recognise(Retriever(self.memory, k=K, **options), None)  # type: ignore[arg-type]
        recall = recall_at_k([prediction.retrieved for prediction in predictions], self.labels, k=K)
        return _accuracy(predictions, self.labels), 100 * recall

    def tower(self, domain: str) -> dict[str, float]:
        """1-NN, class means and the attribute probe on the MLLM's own vision tower."""
        memory = _tower_features(self.guide.few_shot(shots=4, seed=self.guide.seed).pixels())
        queries = _tower_features(np.stack([np.asarray(s.image) for s in self.samples]))
        truth = torch.tensor([self.guide.names.index(label) for label in self.labels])
        unit = torch.nn.functional.normalize
        similarity = unit(queries, dim=-1) @ unit(memory, dim=-1).T
        means = unit(unit(memory, dim=-1).reshape(200, 4, -1).mean(1), dim=-1)
        scores = {
            "MLLM's tower: 1-NN": similarity.reshape(len(queries), 200, 4).amax(-1),
            "MLLM's tower: class means": unit(queries, dim=-1) @ means.T,
            "MLLM's tower: attribute probe": _attribute_scores(domain, self.guide.codes, queries),
        }
        return {name: 100 * float((s.argmax(1) == truth).float().mean()) for name, s in scores.items()}

    def naming(self, encoder: TransformersEncoder) -> float:
        """The MLLM alone: it names, and the nearest name of the vocabulary (text embedding) is the answer."""
        requests = [ChatRequest.of(NAMING_PROMPT, sample.image) for sample in self.samples]  # type: ignore[arg-type]
        answers = [c.text.strip() for c in self.chat.generate(requests, max_tokens=16)]
        names = encoder.encode_texts(self.guide.names)
        said = encoder.encode_texts([answer or "nothing" for answer in answers])
        nearest = (said @ names.T).argmax(1)
        exact = {name: i for i, name in enumerate(self.guide.names)}
        chosen = [exact.get(answer, int(near)) for answer, near in zip(answers, nearest, strict=True)]
        return 100 * float(
            np.mean([self.guide.names[c] == label for c, label in zip(chosen, self.labels, strict=True)])
        )

    def as_many_as_fit(self, count: int, n: int) -> float:
        """The MLLM alone, choosing among as many names of the vocabulary as its context holds."""
        shown = self.guide.names[:count]
        ranker = Ranker(self.chat, strategy="likelihood")
        hits = 0
        for start in range(0, n, 8):
            part = self.samples[start : start + 8]
            rankings = ranker.rank_batch([load_image(s.image) for s in part], [shown] * len(part))
            hits += sum(shown[r.order[0]] == s.label for r, s in zip(rankings, part, strict=True))
        return 100 * hits / n


def _strategy_rows(world: _World, retriever: Retriever, add: Callable[[str, float], None]) -> None:
    for name, options in STRATEGIES.items():
        ranker = Ranker(world.chat, **options)  # type: ignore[arg-type]
        began = time.monotonic()
        mixed = world.recognise(retriever, ranker)
        add(f"ms an image: {name}", 1000 * (time.monotonic() - began) / len(mixed))
        add(f"RAR {name}", _accuracy(mixed, world.labels))
        alone = [p.retrieved[p.ranking.order[0]] for p in mixed if p.ranking is not None]
        add(
            f"RAR {name}, ranker alone",
            100 * float(np.mean([a == b for a, b in zip(alone, world.labels, strict=True)])),
        )
        if name.startswith("generate"):
            statuses = [p.ranking.status for p in mixed if p.ranking is not None]
            add(f"complete permutations: {name}", 100 * float(np.mean([s == "ranked" for s in statuses])))


def _controls(world: _World, retriever: Retriever, add: Callable[[str, float], None]) -> None:
    """The image swapped for another's, and the candidates shuffled; ranker alone, truth among the candidates."""
    vectors = world.memory.encoder.encode_images([s.image for s in world.samples])
    lists: list[list[Candidate]] = retriever.retrieve(vectors)
    kept = [i for i, found in enumerate(lists) if world.labels[i] in [c.category for c in found]][:_CONTROLLED]
    names = [[c.category for c in lists[i]] for i in kept]
    images = [world.samples[i].image for i in kept]
    swapped = [*images[7:], *images[:7]]
    for strategy in ("likelihood", "choice", "generate"):
        for kind, shown, seed in (("", images, None), (", shuffled", images, 1), (", image swapped", swapped, 1)):
            ranker = Ranker(world.chat, strategy=strategy, shuffle=seed)
            rankings = ranker.rank_batch(shown, names)  # type: ignore[arg-type]
            right = [n[r.order[0]] == world.labels[i] for n, r, i in zip(names, rankings, kept, strict=True)]
            add(f"control {strategy}{kind}", 100 * float(np.mean(right)))


def _lengths(world: _World, add: Callable[[str, float], None]) -> None:
    """Other numbers of candidates than five; ranker alone, truth among the candidates."""
    vectors = world.memory.encoder.encode_images([s.image for s in world.samples[: 2 * _LISTED]])
    for k in (2, 10, 20):
        names = [[c.category for c in found] for found in Retriever(world.memory, k=k).retrieve(vectors)]
        kept = [i for i, shown in enumerate(names) if world.labels[i] in shown][:_LISTED]
        images, shown = [load_image(world.samples[i].image) for i in kept], [names[i] for i in kept]
        for strategy in ("generate", "choice"):
            rankings = Ranker(world.chat, strategy=strategy).rank_batch(images, shown)
            right = [n[r.order[0]] == world.labels[i] for n, r, i in zip(shown, rankings, kept, strict=True)]
            add(f"{strategy} among {k}", 100 * float(np.mean(right)))
            if strategy == "generate":
                add(f"complete lists of {k}, free", 100 * float(np.mean([r.status == "ranked" for r in rankings])))


def measure(domain: str, seeds: Sequence[int], queries: int, *, clip: str, full: bool) -> list[Row]:
    """All figures of one domain with one encoder; ``full`` adds what does not depend on the encoder."""
    encoder = TransformersEncoder(weights_path(clip))
    chat = LocalChat(weights_path("mllm"), batch_size=32)
    values: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        values.setdefault(name, []).append(value)

    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            world = _World(domain, seed, encoder, chat, Path(scratch) / "memory")
            world.ask(queries, seed)
            kinds: dict[str, dict[str, object]] = {
                "1-NN": {"source": "image", "aggregate": "nearest"},
                "class means": {"source": "image", "aggregate": "prototype"},
                "zero-shot text": {"source": "text"},
                "fused": {},
            }
            for name, options in kinds.items():
                top1, recall = world.retrieval(**options)
                add(f"{name} top-1", top1)
                add(f"{name} recall@5", recall)
            retriever = Retriever(world.memory, k=K)
            if full:
                add("MLLM alone: names it", world.naming(encoder))
                add(f"MLLM alone: ranks {_FITTING} of the 200 names", world.as_many_as_fit(_FITTING, min(50, queries)))
                for name, value in world.tower(domain).items():
                    add(name, value)
                _strategy_rows(world, retriever, add)
                if seed == seeds[0]:
                    _controls(world, retriever, add)
                    _lengths(world, add)
            else:
                for strategy in ("likelihood", "choice"):
                    ranker = Ranker(chat, strategy=strategy)
                    add(f"RAR {strategy}", _accuracy(world.recognise(retriever, ranker), world.labels))
            world.memory.close()
    return [Row(name, tuple(v)) for name, v in values.items()]


def markdown(results: dict[str, list[Row]]) -> str:
    """One table: a row a figure, a column a domain."""
    methods = list(dict.fromkeys(row.method for rows in results.values() for row in rows))
    found = {(domain, row.method): row.text() for domain, rows in results.items() for row in rows}
    return _table(results, {m: [found.get((d, m), "") for d in results] for m in methods})


def _table(domains: Iterable[str], rows: Mapping[str, Sequence[str]]) -> str:
    heads = [f"{d} (held out)" if d == HELD_OUT_DOMAIN else d for d in domains]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()])


def bars(results: dict[str, list[Row]]) -> str:
    """What the models were built to reach beside what they reach, in points; ``!`` marks what falls short."""
    found = {domain: {row.method: float(np.mean(row.values)) for row in rows} for domain, rows in results.items()}
    rows: dict[str, list[str]] = {}

    def add(name: str, value: float, *, reached: bool) -> None:
        rows.setdefault(name, []).append(f"{value:.1f}" if reached else f"**{value:.1f} !**")

    for domain, figures in found.items():
        held_out = domain == HELD_OUT_DOMAIN
        best = max(figures[f"{kind} top-1"] for kind in ("1-NN", "class means", "zero-shot text", "fused"))
        for strategy, over_knn, over_best in _BARS:
            top1 = figures[f"RAR {strategy}"]
            for name, base, bar, low in (
                ("1-NN", figures["1-NN top-1"], over_knn, 6),
                ("retrieval", best, over_best, 0),
            ):
                wanted = low if held_out else bar
                add(f"{strategy}, over {name} (bar {bar}; held out {low})", top1 - base, reached=top1 - base >= wanted)
        for kind, bar in (("free", 95), ("constrained", 100)):
            complete = figures[f"complete permutations: generate, {kind}"]
            add(f"complete lists, {kind} (bar {bar})", complete, reached=complete >= bar)
        for strategy in ("likelihood", "choice", "generate"):
            cost = figures[f"control {strategy}"] - figures[f"control {strategy}, shuffled"]
            add(f"{strategy}: cost of shuffling (bar: under 2)", cost, reached=cost < 2)
            swapped = figures[f"control {strategy}, image swapped"]
            add(f"{strategy}: image swapped (chance 20; bar: under {_CHANCE})", swapped, reached=swapped < _CHANCE)
    return _table(results, rows)


def write_card(card: Path, tables: str) -> None:
    """Replace the card's figures, which stand between two marks."""
    text = card.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    card.write_text(f"{before}{_BEGIN}\n{tables}\n{_END}{after}", encoding="utf-8")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m rarvision.embedded.measure", description=__doc__)
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=list(DOMAINS))
    parser.add_argument("--encoders", nargs="+", default=["clip-16", "clip-32"], choices=["clip-16", "clip-32"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--json", type=Path, help="also write the raw values here")
    parser.add_argument("--merge", type=Path, nargs="+", default=[], help="do not measure: join what --json wrote")
    parser.add_argument("--card", type=Path, help="also write the tables into this model card")
    options = parser.parse_args()
    raw: Raw = {}
    for file in options.merge:
        for clip, domains in json.loads(file.read_text()).items():
            raw.setdefault(clip, {}).update(domains)
    if not options.merge:
        for clip, full in ((clip, clip == "clip-16") for clip in options.encoders):
            for domain in options.domains:
                rows = measure(domain, options.seeds, options.queries, clip=clip, full=full)
                raw.setdefault(clip, {})[domain] = {r.method: r.values for r in rows}
                print(f"# {clip} {domain}", *(f"{r.method}: {r.text()}" for r in rows), sep="\n  ", flush=True)
                if options.json:
                    options.json.write_text(json.dumps(raw, indent=1))
    tables = ""
    for clip, domains in raw.items():
        results = {d: [Row(m, tuple(v)) for m, v in domains[d].items()] for d in DOMAINS if d in domains}
        tables += f"\n### Candidates by `{clip}`\n\n{markdown(results)}\n"
        if clip == "clip-16":
            tables += f"\n### Bars, with `{clip}`\n\n{bars(results)}\n"
    print(tables)
    if options.card:
        write_card(options.card, tables)


if __name__ == "__main__":
    main()
