"""Two evaluations of the same images -> how they differ, with intervals and p values; from the files they wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rarvision.encoders import NameEncoder, SpellingEncoder
from rarvision.errors import InputError
from rarvision.metrics import PairedTest, cluster_hits, hits_at, name_similarities, paired_test
from rarvision.reporting import EvaluatedImage
from rarvision.runs import markdown_table, read_run
from rarvision.taxonomy import Taxonomy

__all__ = ["Comparison", "compare_runs"]

_NAMED = 3  # sources that a message lists


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How the second of two rows differs from the first, on the same images.

    Attributes:
        first: The first file or folder.
        second: The second.
        n: Images.
        seeds: Files of each.
        metrics: By name, the test of each figure: ``top1``, ``topk`` and ``recall`` with their k, ``retrieval_top1``,
            ``cacc`` and ``sacc``; with a taxonomy ``top1_genus``, … for each level above the categories. Each is the
            second minus the first, as shares (sacc as a cosine, which has no McNemar's test).
        failures: Images without an answer, of the first and of the second, over all seeds; they count as wrong.
        differing: Settings in which the two were run otherwise, and both values.
        name_encoder: What sacc was computed with.
        version: Of this package.
    """

    first: str
    second: str
    n: int
    seeds: int
    metrics: Mapping[str, PairedTest]
    failures: tuple[int, int]
    differing: Mapping[str, tuple[Any, Any]]
    name_encoder: str
    version: str = field(default_factory=lambda: version("rarvision"))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **asdict(self),
            "metrics": {name: {**asdict(test), "interval": list(test.interval)} for name, test in self.metrics.items()},
            "failures": list(self.failures),
            "differing": {name: list(pair) for name, pair in self.differing.items()},
        }

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @property
    def head(self) -> tuple[str, str, str, str, str, str]:
        """What the columns of `rows` are."""
        confidence = next(iter(self.metrics.values())).confidence
        return ("", "first", "second", f"difference ({100 * confidence:g} % interval)", "p, bootstrap", "p, McNemar")

    def rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """For people: figure, first, second, difference with its interval, p by bootstrap, p by McNemar's test."""
        found = []
        for name, test in self.metrics.items():
            scale = 1 if name == "sacc" else 100
            digits = 3 if name == "sacc" else 1
            unit = "" if name == "sacc" else "%"
            low, high = (end * scale for end in test.interval)
            found.append(
                (
                    _title(name),
                    f"{test.first * scale:.{digits}f}{unit}",
                    f"{test.second * scale:.{digits}f}{unit}",
                    f"{test.difference * scale:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})",
                    _p(test.p_bootstrap, least=2 / (test.resamples + 1)),
                    "" if test.p_mcnemar is None else _p(test.p_mcnemar),
                )
            )
        return found

    def table(self) -> list[tuple[str, str]]:
        """Rows for people about the two runs: what, and its value."""
        rows = [("images", f"{self.n:,}"), ("seeds", str(self.seeds))]
        if any(self.failures):
            rows.append(("without an answer", f"{self.failures[0]:,} and {self.failures[1]:,}"))
        rows += [(f"differs in {name}", f"{_short(a)} | {_short(b)}") for name, (a, b) in self.differing.items()]
        return [*rows, ("sACC by", self.name_encoder), ("rarvision", self.version)]

    def to_markdown(self) -> str:
        """Both tables in Markdown."""
        lines = ["| " + " | ".join(row) + " |" for row in (self.head, ("---",) * len(self.head), *self.rows())]
        return "\n".join([*lines, "", markdown_table(self.table())])


_TITLES = {"retrieval_top1": "retrieval top-1", "cacc": "cACC", "sacc": "sACC"}


def _title(name: str) -> str:
    figure, _, level = name.partition("_")
    if level and figure == "top1":
        return f"right at {level}"
    return _TITLES.get(name, name.replace("top", "top-").replace("recall", "recall@"))


def _p(value: float, *, least: float = 1e-4) -> str:
    return f"< {least:.1g}" if value < least or (least > 1e-4 and value <= least) else f"{value:.2g}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def compare_runs(
    first: Path | str,
    second: Path | str,
    *,
    name_encoder: NameEncoder | None = None,
    taxonomy: Taxonomy | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations of the same images, image by image.

    Args:
        first: What `rarvision.evaluate` wrote with ``out``; or a folder of such files (``.jsonl``), one a seed.
        second: The same; of a folder, files of the same names.
        name_encoder: What the sACC is computed with; by default the spelling, see `rarvision.encoders.SpellingEncoder`.
        taxonomy: A tree over the categories, for the first name's group at each level.
        confidence: Of the intervals.
        resamples: Of images, and of seeds.
        seed: Of the resampling.

    Raises:
        InputError: A file is none of an evaluation; the images or their labels are not the same; the folders do not
            hold files of the same names; the taxonomy lacks a label.
        OptionError: A confidence or number of resamples out of range.

    Source: paired bootstrap over images; McNemar (1947), exact. p values are of one figure each: who looks at many
    will find a small one by chance.
    """
    pairs = _pairs(Path(first), Path(second))
    encoder = name_encoder or SpellingEncoder()
    runs = [[_read(path) for path in column] for column in zip(*pairs, strict=True)]
    sources = list(runs[0][0].images)
    for path_run in runs[0][1:] + runs[1]:
        _check_same(runs[0][0], path_run)
    if taxonomy is not None:
        taxonomy.check((image.label for image in runs[0][0].images.values()), f"the labels of {runs[0][0].path}")
    values = [[_values(run, sources, _common_ks(runs), encoder, taxonomy) for run in column] for column in runs]
    tests = {
        name: paired_test(
            *(np.stack([each[name] for each in column]) for column in values),
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )
        for name in values[0][0]
    }
    tests["sacc"] = replace(tests["sacc"], only_first=None, only_second=None, p_mcnemar=None)  # nothing right or wrong
    return Comparison(
        first=str(first),
        second=str(second),
        n=len(sources),
        seeds=len(pairs),
        metrics=tests,
        failures=(_failures(runs[0]), _failures(runs[1])),
        differing=_differing(runs[0][0].configuration, runs[1][0].configuration),
        name_encoder=encoder.name,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    path: Path
    configuration: Mapping[str, Any]
    images: Mapping[str, EvaluatedImage]

    @property
    def k(self) -> int:
        """Candidates of each image; of a namer's, which retrieves nothing, only the first name counts."""
        return int(self.configuration["retriever"]["k"]) if "retriever" in self.configuration else 1


def _pairs(first: Path, second: Path) -> list[tuple[Path, Path]]:
    """Files that belong together: two, or those of the same name in two folders."""
    if first.is_dir() != second.is_dir():
        raise InputError(f"expected two files or two folders, got {first} and {second}")
    if not first.is_dir():
        return [(first, second)]
    names = [{path.name for path in folder.glob("*.jsonl")} for folder in (first, second)]
    if not names[0] or names[0] != names[1]:
        lonely = ((first, names[0] - names[1]), (second, names[1] - names[0]))
        alone = [f"{folder}: {', '.join(sorted(own)[:_NAMED])}" for folder, own in lonely if own]
        raise InputError(
            "expected two folders with .jsonl files of the same names, one a seed; "
            + (f"without a partner: {'; '.join(alone)}" if alone else f"{first} holds none")
        )
    return [(first / name, second / name) for name in sorted(names[0])]


def _read(path: Path) -> _Run:
    def read(values: Mapping[str, Any]) -> EvaluatedImage:
        return EvaluatedImage.read(values)

    configuration, images = read_run(path, read)
    retriever = configuration.get("retriever")
    if "namer" not in configuration and (not isinstance(retriever, Mapping) or "k" not in retriever):
        raise InputError(f"{path}: its header names no retriever; give a file of `rarvision evaluate --output`")
    return _Run(path, configuration, images)


def _check_same(one: _Run, other: _Run) -> None:
    """Refuse other images, or other labels, saying which."""
    alone = [
        (run.path, [source for source in run.images if source not in rest.images])
        for run, rest in ((one, other), (other, one))
    ]
    told = [
        f"{len(found):,} only in {path} ({', '.join(found[:_NAMED])}{', …' if len(found) > _NAMED else ''})"
        for path, found in alone
        if found
    ]
    if told:
        raise InputError(
            f"{one.path} and {other.path} are not of the same images: {'; '.join(told)}. Compare runs over one "
            "dataset, both finished"
        )
    wrong = [source for source, image in one.images.items() if other.images[source].label != image.label]
    if wrong:
        source = wrong[0]
        raise InputError(
            f"{one.path} and {other.path} have other labels for {len(wrong):,} images: {source} is "
            f"{one.images[source].label!r} in the first, {other.images[source].label!r} in the second"
        )


def _common_ks(runs: Sequence[Sequence[_Run]]) -> int:
    """The most candidates that all runs have."""
    return min(run.k for column in runs for run in column)


def _values(
    run: _Run, sources: Sequence[str], k: int, encoder: NameEncoder, tree: Taxonomy | None
) -> dict[str, Float[np.ndarray, " n"]]:
    """For each figure one value an image."""
    images = [run.images[source] for source in sources]
    labels = [image.label for image in images]
    ranked = [image.ranked for image in images]
    retrieved = [image.retrieved for image in images]
    guesses = [names[0] if names else None for names in ranked]
    vectors = encoder.encode({*labels, *(name for name in guesses if name is not None)})
    found = {"top1": hits_at(ranked, labels), "retrieval_top1": hits_at(retrieved, labels)}
    if k > 1:
        found |= {f"top{k}": hits_at(ranked, labels, k=k), f"recall{k}": hits_at(retrieved, labels, k=k)}
    if tree is not None:
        found |= {
            f"top1_{level}": hit for level, hit in zip(tree.levels[:-1], tree.hits(guesses, labels).T, strict=False)
        }
    found |= {"cacc": cluster_hits(guesses, labels)[0], "sacc": name_similarities(guesses, labels, vectors)}
    return {name: np.asarray(each, dtype=np.float64) for name, each in found.items()}


def _failures(runs: Sequence[_Run]) -> int:
    return sum(image.error is not None for run in runs for image in run.images.values())


def _differing(first: Mapping[str, Any], second: Mapping[str, Any], above: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by name; of nested ones only what differs in them (``retriever.source``)."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**first, **second}:
        one, two = first.get(key), second.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            found |= _differing(one, two, f"{above}{key}.")
        elif one != two:
            found[f"{above}{key}"] = (one, two)
    return found
