"""How to have candidates ranked: every strategy, with and without help, compared. ``python benchmarks/comparison.py``.

Strategies x (untuned, in-context, tuned) x numbers of candidates x orders asked in x gate, on the field guide with the
embedded models: accuracy with 95 % bootstrap intervals over images, parse statuses, questions, tokens and processor
milliseconds an image (one thread). Tuned is LoRA on ranking examples of one domain, aircraft as in the paper, which the
MLLM had never ranked. Mix and gate are fitted on the memory (`fit_recognizer`).

    python benchmarks/comparison.py --json comparison.json --write docs/ranking.md --plot docs/ranking.svg
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asking import Meter, World, ask, cell, percent, world, write_section
from fitting import again
from tuning_source import adapter

from rarvision.chat import LocalChat
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.fitting import fit_recognizer
from rarvision.judging import Judge
from rarvision.pipeline import Recognizer
from rarvision.ranking import STRATEGIES, Ranker
from rarvision.retrieval import Retriever

VARIANTS = ("untuned", "example in words", "worked example", "tuned")
_IN_CONTEXT: dict[str, dict[str, Any]] = {
    "example in words": {"prompt": "in-context"},
    "worked example": {"worked_example": True},
}
_MARKS = {"untuned": "o", "example in words": "v", "worked example": "s", "tuned": "^"}


@dataclass(frozen=True)
class Setting:
    """One way to have candidates ranked; ``fitted`` where mix and gate are fitted on the memory as well."""

    strategy: str
    variant: str
    k: int
    orders: int
    fitted: bool


def settings(options: argparse.Namespace) -> Iterator[Setting]:
    """All of them; several orders, fits, and what is shown in the prompt, at one number of candidates only."""
    for variant in VARIANTS:
        for strategy in options.strategies:
            if variant in _IN_CONTEXT:
                if variant == "worked example" or strategy in ("generate", "likelihood"):  # whose prompts hold a list
                    yield Setting(strategy, variant, options.fit_k, 1, fitted=False)
                continue
            for k in options.ks:
                yield Setting(strategy, variant, k, 1, k == options.fit_k)
                if k == options.fit_k and strategy != "pointwise":  # which shows no order
                    yield Setting(strategy, variant, k, 2, fitted=True)


def measure(options: argparse.Namespace, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask everything that ``known`` does not hold; it grows, and is written as it does."""
    encoder = TransformersEncoder(weights_path("clip-16"))
    tuned = adapter("aircraft", options, encoder)
    meters = {
        variant: Meter(LocalChat(weights_path("mllm"), adapter=tuned if variant == "tuned" else None, batch_size=16))
        for variant in VARIANTS
    }
    asked = ("strategy", "variant", "k", "orders", "fitted")
    done = {(r["domain"], r["seed"], *(r[name] for name in asked)) for r in known}
    for domain in options.domains:
        for seed in options.seeds:
            with world(domain, seed, encoder=encoder, queries=options.queries) as guide:
                for setting in settings(options):
                    if (domain, seed, *asdict(setting).values()) in done:
                        continue
                    found = one(setting, guide, meters[setting.variant], options)
                    known.append({"domain": domain, "seed": seed, **asdict(setting), **found})
                    print(domain, seed, *asdict(setting).values(), f"{percent(found['right'])[0]:.1f}", flush=True)
                    if options.json:
                        options.json.write_text(json.dumps(known, indent=1))
    return known


def one(setting: Setting, guide: World, meter: Meter, options: argparse.Namespace) -> dict[str, Any]:
    """A setting's answers about one world's images, and how they are read with the fit and with its gate."""
    ranker = Ranker(
        meter,
        strategy=setting.strategy,  # type: ignore[arg-type]  # one of them
        permutations=setting.orders,
        **_IN_CONTEXT.get(setting.variant, {}),
    )
    recognizer = Recognizer(guide.memory, ranker=ranker, retriever=Retriever(guide.memory, k=setting.k), fit=None)
    answers = ask(recognizer, meter, guide.samples)
    labels = [sample.label for sample in guide.samples]
    found = answers.to_dict()
    found["recall"] = "".join("01"[t in p.retrieved] for p, t in zip(answers.predictions, labels, strict=True))
    found["retrieval"] = "".join("01"[p.retrieved[0] == t] for p, t in zip(answers.predictions, labels, strict=True))
    if setting.fitted:
        fit = fit_recognizer(recognizer, images=options.images, seed=guide.seed, target=0.98, keep=False)
        judge = Judge(
            guide.memory,
            recognizer.settings,
            fit=fit,
            gate=True if fit.gate is not None else None,
            reject=False,
            ranker_weight=None,
            calibration=None,
        )
        for name, gated in (("fit", False), ("gated", fit.gate is not None)):
            read = [again(judge, p, gated=gated) for p in answers.predictions]
            found[name] = "".join("01"[p.label == t] for p, t in zip(read, labels, strict=True))
            asked = [p.ranking is not None and p.ranking.status != "skipped" for p in read]
            found[f"{name}_calls"] = float(np.mean(asked))
    return found


def pooled(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a setting and domain: seeds together."""
    keys = ("domain", "strategy", "variant", "k", "orders")
    rows = []
    for key in dict.fromkeys(tuple(r[name] for name in keys) for r in results):
        mine = [r for r in results if tuple(r[name] for name in keys) == key]
        row = dict(zip(keys, key, strict=True))
        for name in ("right", "alone", "recall", "retrieval", "fit", "gated"):
            if name in mine[0]:
                row[name] = "".join(r[name] for r in mine)
        for name in ("calls", "tokens", "ms", "gated_calls"):
            if name in mine[0]:
                row[name] = float(np.mean([r[name] for r in mine]))
        total = sum(sum(r["statuses"].values()) for r in mine)
        row["statuses"] = {
            status: 100 * sum(r["statuses"].get(status, 0) for r in mine) / total for status in ("repaired", "fallback")
        }
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], domain: str) -> str:
    """Markdown: a row a setting."""
    head = ["strategy", "ranker", "k", "orders", "RAR", "ranker alone", "fitted mix", "gated", "asked %"]
    head += ["repaired / unread %", "questions", "tokens", "ms"]
    lines = [f"| {' | '.join(head)} |", "|---|---" + "|---:" * (len(head) - 2) + "|"]
    for row in rows:
        if row["domain"] != domain:
            continue
        cells = [row["strategy"], row["variant"], str(row["k"]), str(row["orders"]), cell(row["right"])]
        cells += [f"{percent(row['alone'])[0]:.1f}"]
        cells += [f"{percent(row[name])[0]:.1f}" if name in row else "" for name in ("fit", "gated")]
        cells += [f"{100 * row['gated_calls']:.0f}" if "gated_calls" in row else ""]
        cells += [f"{row['statuses']['repaired']:.1f} / {row['statuses']['fallback']:.1f}", f"{row['calls']:.1f}"]
        cells += [f"{row['tokens']:.0f}", f"{row['ms']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    found = {row["k"]: row for row in rows if row["domain"] == domain}
    lines += ["", "Retrieval alone: " + cell(next(iter(found.values()))["retrieval"]) + "; the true name is retrieved"]
    lines[-1] += (
        " in " + ", ".join(f"{percent(r['recall'])[0]:.1f} % (k = {k})" for k, r in sorted(found.items())) + "."
    )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against cost, a panel a domain; what nothing beats in both is joined."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "rarvision"
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    domains = list(dict.fromkeys(row["domain"] for row in rows))
    figure, panels = plt.subplots(1, len(domains), figsize=(6 * len(domains), 4.4), layout="constrained", squeeze=False)
    colours = dict(zip(STRATEGIES, mpl.colormaps["tab10"].colors, strict=False))  # type: ignore[attr-defined]  # a list of colours
    for axes, domain in zip(panels[0], domains, strict=True):
        points = []
        for row in (row for row in rows if row["domain"] == domain):
            mean, low, high = percent(row["right"])
            points.append((row["ms"], mean))
            style = {"color": colours[row["strategy"]], "marker": _MARKS[row["variant"]], "alpha": 0.75}
            hollow = {"markerfacecolor": "none"} if row["orders"] > 1 else {}
            size = 3 + 1.2 * row["k"] ** 0.5
            axes.errorbar(
                row["ms"], mean, [[mean - low], [high - mean]], elinewidth=0.5, markersize=size, **style, **hollow
            )
        front = [p for p in sorted(points) if not any(ms <= p[0] and y > p[1] for ms, y in points)]
        axes.plot(*zip(*front, strict=True), color="black", linewidth=0.8, linestyle=":", zorder=0)
        axes.set(title=domain, xscale="log", xlabel="processor milliseconds an image", ylabel="top-1 of RAR, percent")
        axes.grid(which="major", alpha=0.3)
    known = [Line2D([], [], color=c, marker="o", linestyle="", label=name) for name, c in colours.items()]
    known += [Line2D([], [], color="grey", marker=m, linestyle="", label=name) for name, m in _MARKS.items()]
    panels[0][-1].legend(
        handles=known, fontsize=7, loc="lower right", title="size: k; hollow: 2 orders", title_fontsize=7
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", default=["birds", "aircraft"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--queries", type=int, default=150, help="images of each domain and seed")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--ks", type=int, nargs="+", default=[2, 5, 10, 20], help="numbers of candidates")
    parser.add_argument("--fit-k", type=int, default=5, help="the one for which mix and gate are fitted")
    parser.add_argument("--images", type=int, default=120, help="of the memory, to fit on")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep the tuned adapter here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="kept as it grows; what it has is not asked again")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with the lines that mark where it goes")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="an .svg or .png; needs matplotlib")
    options = parser.parse_args()
    options.objective, options.windows, options.lr = "generate", 2, 2e-4
    torch.set_num_threads(1)
    known = json.loads(options.json.read_text()) if options.json and options.json.is_file() else []
    with tempfile.TemporaryDirectory() as scratch:
        options.runs = options.runs or Path(scratch)
        rows = pooled(measure(options, known))
    text = "\n\n".join(f"**{domain}**\n\n{table(rows, domain)}" for domain in options.domains)
    print(f"\n{text}")
    if options.write:
        write_section(options.write, "comparison", text)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
