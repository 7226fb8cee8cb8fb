"""Fit the mix, the gate and "unknown" of a recogniser on its own memory, by leaving images out: no test labels."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from jaxtyping import Int
from PIL import Image

from rarvision.calibration import (
    Calibration,
    Evidence,
    MixFit,
    RankerFit,
    check_shares,
    fit_gate,
    fit_mix,
    fit_unknown,
    mixed_log_probs,
    unknown_probability,
)
from rarvision.errors import ImageError, InputError, MemoryEmptyError, OptionError
from rarvision.exemplars import Exemplars, entry_image
from rarvision.index import top_k
from rarvision.judging import FITTED_FOR, fit_key, keep_fit, merged, parts_of, ranked_places
from rarvision.memory.base import Memory
from rarvision.metrics import area_under_roc, brier_score, expected_calibration_error
from rarvision.pipeline import Recognizer
from rarvision.ranking import NoExample, Showing, Shown, WorkedExample
from rarvision.taxonomy import SureFit, Taxonomy, check_sure, fit_sure
from rarvision.types import Candidate, Entry, Ranking
from rarvision.worked import WorkedExamples

__all__ = ["fit_recognizer"]

_FOLDS = 5
_AT_ONCE = 32

Kind = Literal["known", "named", "foreign", "placed"]


@dataclass(frozen=True, slots=True)
class _Question:
    """One image that is left out, and what it would be asked about."""

    entry: int
    kind: Kind
    candidates: tuple[Candidate, ...]
    truth: str

    @property
    def key(self) -> str:
        """Tells the question from others, the names and their order included."""
        names = json.dumps([candidate.category for candidate in self.candidates])
        return f"{self.kind} {self.entry} {zlib.crc32(names.encode()):08x}"


def fit_recognizer(
    recognizer: Recognizer,
    *,
    images: int = 400,
    foreign_share: float = 0.02,
    accepted: float = 0.95,
    target: float = 0.99,
    sure_accuracy: float = 0.95,
    seed: int = 0,
    keep: bool = True,
    out: Path | str | None = None,
    open_image: Callable[[Entry], Image.Image] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RankerFit:
    """Ask retrieval and the ranker about the memory's own images, each left out, and fit what is made of the answers.

    Asked are up to ``images`` images of categories that hold several (what leaving one out takes from its category is
    made up for), and half as many whose whole category is left out, as if the memory did not know it. Where all
    categories hold a single image, retrieval is asked by names alone; where it has none, the true category is put among
    the candidates at a random place, which tells how far the ranker is to be trusted, but nothing of retrieval: the
    status is then ``partial``, and there is no gate. A memory of names alone cannot be fitted on, and gives the shipped
    parameters: ``unfitted``.

    Args:
        recognizer: Its retriever must propose distinct categories; a gate of its own does not matter here.
        images: At most so many known images; the ranker is asked once and a half as many questions.
        foreign_share: Share of images of unknown categories that is expected in use, 0 to 1.
        accepted: Share of the images of known categories that is not to be called unknown.
        target: Share of the ranker's gain that the gate keeps.
        sure_accuracy: Share of the sure answers, at whatever level of the recogniser's taxonomy, that is to be right.
        seed: Of the choice of images.
        keep: Whether to keep the fit with the memory, where a recogniser with the same retriever and ranker finds it.
        out: A file for the ranker's answers, one a line, written as they come: the same call goes on with them.
        open_image: Gives an entry's image; by default its source, where that is still the same file, else its
            thumbnail.
        progress: Called with the number of questions answered, and of all.

    Returns:
        The fit.

    Raises:
        OptionError: An option out of range, ``distinct=False``, views, or a rule of crops.
        MemoryEmptyError: The memory holds nothing.
        ImageError: Not one of the images can be had.
        InputError: ``out`` holds the answers of another ranker, retriever or memory.
        ChatError: The MLLM cannot answer.
    """
    if images < 1:
        raise OptionError(f"images must be at least 1, got {images}")
    check_shares(foreign_share=foreign_share, accepted=accepted, target=target)
    check_sure(sure_accuracy)
    memory = recognizer.memory
    if not memory.count():
        raise MemoryEmptyError("the memory is empty; add images and names before fitting on it")
    settings = {name: value for name, value in recognizer.settings.items() if name in FITTED_FOR}
    if settings["views"] != "whole":
        raise OptionError(
            f"images are left out by the vectors that the memory holds, which are of whole images; views="
            f"{settings['views']!r} cannot be fitted: fit, and recognise, with views='whole'"
        )
    if "crop" in settings or "region_view" in settings:
        raise OptionError(
            "the memory's images are not regions: what is fitted on them does not hold for crops; fit without crop and "
            "region_view, or recognise the crops as images"
        )
    content = memory.content_hash  # of what is asked about, whatever is added meanwhile
    questions = _questions(recognizer, images, seed)
    answers = _Answers(out, {**settings, "memory_content": content})
    with answers:
        found = list(_asked(recognizer, questions, answers, open_image or _Opener(memory), progress))
    evidence = [_evidence(question, ranking) for question, ranking in found]
    if questions and not evidence:
        raise ImageError(
            f"none of {len(questions)} images of the memory can be had: their sources are gone, and there are no "
            "thumbnails. Bring the images back, or give open_image="
        )
    sure, sure_reason = _fit_sure(recognizer.taxonomy, found, foreign_share, accepted, sure_accuracy)
    fit = RankerFit(
        **_fit(evidence, foreign_share=foreign_share, accepted=accepted, target=target),
        sure=sure,
        sure_reason=sure_reason,
        key=fit_key(settings),
        memory_content=content,
        asked=len(evidence),
        missing=len(questions) - len(evidence),
        settings=settings,
        version=version("rarvision"),
    )
    if keep:
        keep_fit(memory, fit)
    return fit


# Questions ------------------------------------------------------------------------------------------------------------


def _questions(recognizer: Recognizer, images: int, seed: int) -> list[_Question]:
    """Which images are left out, and their candidates."""
    memory, retriever = recognizer.memory, recognizer.retriever
    ids, codes = memory.table("image")
    if not len(ids):
        return []
    names = memory.category_names()
    _, category, counts = np.unique(codes, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    if retriever.source == "text":  # whose images are not what is searched: nothing need be left out
        category = np.zeros_like(category)
        counts = np.array([max(2, len(ids))])
    several = rng.permutation(np.flatnonzero(counts[category] > 1))
    singles = rng.permutation(np.flatnonzero(counts[category] == 1))
    known, alone = several[:images], singles[: max(0, images - len(several))]
    by_names = retriever.source != "image" and memory.count("text") > 0
    named, placed = (alone, alone[:0]) if by_names else (alone[:0], alone)
    foreign = rng.permutation(several if len(several) else singles)[: max(1, images // 2)]
    found: list[_Question] = []
    for kind, rows in (("known", known), ("named", named), ("foreign", foreign), ("placed", placed)):
        if not len(rows):
            continue
        if kind == "named":
            proposed = _by_names(recognizer, ids[rows])
        else:
            proposed = retriever.retrieve_left_out(ids[rows], foreign=kind != "known")
        for row, candidates in zip(rows.tolist(), proposed, strict=True):
            truth = names[int(codes[row])]
            if kind == "placed":
                candidates = _placed(candidates, truth, retriever.k, rng)  # noqa: PLW2901 - with the truth among them
            if candidates:
                found.append(
                    _Question(entry=int(ids[row]), kind=kind, candidates=tuple(candidates), truth=truth)  # type: ignore[arg-type]
                )
    return found


def _by_names(recognizer: Recognizer, ids: Int[np.ndarray, " n"]) -> list[list[Candidate]]:
    """Candidates by the similarity of names alone, on the scale that fusion gives it."""
    retriever, names = recognizer.retriever, recognizer.memory.category_names()
    codes, _, by_text = retriever.left_out(ids, even=True)
    columns = top_k(by_text, retriever.k)
    return [
        [
            Candidate(category=names[int(codes[column])], similarity=float(row[column]))
            for column in chosen
            if np.isfinite(row[column])
        ]
        for row, chosen in zip(by_text, columns.tolist(), strict=True)
    ]


def _placed(candidates: Sequence[Candidate], truth: str, k: int, rng: np.random.Generator) -> list[Candidate]:
    """The true category at a random place, in the company of the best others."""
    others = list(candidates[: k - 1])
    place = int(rng.integers(0, len(others) + 1))
    beside = others[min(place, len(others) - 1)].similarity if others else 0.0
    return [*others[:place], Candidate(category=truth, similarity=beside), *others[place:]]


class _Opener:
    """The image of an entry: its source where that is unchanged, else its thumbnail."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __call__(self, entry: Entry) -> Image.Image:
        image = entry_image(self._memory, entry.id)
        if image is None:
            raise ImageError(f"{entry.source}: the image is gone or has changed, and there is no thumbnail")
        return image


# Answers --------------------------------------------------------------------------------------------------------------


def _asked(
    recognizer: Recognizer,
    questions: Sequence[_Question],
    answers: _Answers,
    open_image: Callable[[Entry], Image.Image],
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[_Question, Ranking | None]]:
    """Each question with the ranker's answer; images that cannot be had are left out."""
    done = 0
    showing = Showing() if recognizer.ranker is None else recognizer.ranker.showing
    exemplars = Exemplars(recognizer.memory, showing)
    examples = WorkedExamples(recognizer.retriever) if showing.worked_example else None
    for start in range(0, len(questions), _AT_ONCE):
        part = questions[start : start + _AT_ONCE]
        new = [q for q in part if q.key not in answers.known] if recognizer.ranker is not None else []
        entries = {entry.id: entry for entry in recognizer.memory.entries(ids=[q.entry for q in new])}
        shown: list[tuple[_Question, Image.Image]] = []
        for question in new:
            try:
                shown.append((question, open_image(entries[question.entry])))
            except ImageError:
                answers.missing.add(question.key)
        if shown:
            itself = [q.entry for q, _ in shown]
            context = exemplars.of([q.candidates for q, _ in shown], without=itself)
            _ask(recognizer, shown, context, None if examples is None else examples.of(itself), answers)
        for question in part:
            if question.key not in answers.missing:
                yield question, answers.known.get(question.key)
        done += len(part)
        if progress is not None:
            progress(done, len(questions))


def _ask(
    recognizer: Recognizer,
    shown: Sequence[tuple[_Question, Image.Image]],
    context: Sequence[Sequence[Shown]] | None,
    worked: Sequence[WorkedExample | NoExample] | None,
    answers: _Answers,
) -> None:
    """Have a batch ranked; where the MLLM's preprocessing refuses an image one by one, so that only that is missing."""
    ranker = recognizer.ranker
    if ranker is None:
        return
    names = [[candidate.category for candidate in question.candidates] for question, _ in shown]
    try:
        rankings = ranker.rank_batch([image for _, image in shown], names, context, worked)
    except ImageError:
        if len(shown) == 1:
            answers.missing.add(shown[0][0].key)
            return
        for place, each in enumerate(shown):
            alone = slice(place, place + 1)
            _ask(recognizer, [each], context and context[alone], worked and worked[alone], answers)
        return
    for (question, _), ranking in zip(shown, rankings, strict=True):
        answers.add(question.key, ranking)


class _Answers:
    """The ranker's answers by question, on disk where a file is given."""

    def __init__(self, path: Path | str | None, settings: Mapping[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._settings = json.loads(json.dumps(dict(settings)))
        self._file: IO[str] | None = None
        self.known: dict[str, Ranking] = {}
        self.missing: set[str] = set()

    def __enter__(self) -> None:
        if self._path is None:
            return
        whole: list[str] = []
        try:
            text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
            whole = text.split("\n")[:-1]  # the last one is empty, or was cut off
            if text and not whole:
                raise InputError(f"{self._path}: not the answers of a fit (no complete line); give another file")
            if whole and json.loads(whole[0])["settings"] != self._settings:
                raise InputError(
                    f"{self._path}: holds the answers for another ranker, retriever or memory; give another file, or "
                    "delete it"
                )
            for line in whole[1:]:
                values = json.loads(line)
                key = values.pop("question")
                self.known[key] = _ranking(values)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._path}: not the answers of a fit ({error}); give another file") from error
        self._path.parent.mkdir(parents=True, exist_ok=True)
        head = whole or [json.dumps({"settings": self._settings})]
        draft = self._path.with_name(self._path.name + ".part")
        draft.write_text("\n".join(head) + "\n", encoding="utf-8")
        draft.replace(self._path)  # what was there is whole until then
        self._file = self._path.open("a", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, key: str, ranking: Ranking) -> None:
        """Keep an answer."""
        self.known[key] = ranking
        if self._file is not None:
            values = {
                "question": key,
                "order": ranking.order,
                "log_scores": None if ranking.log_scores is None else [_finite(v) for v in ranking.log_scores],
                "status": ranking.status,
                "reason": ranking.reason,
                "strategy": ranking.strategy,
            }
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _ranking(values: Mapping[str, Any]) -> Ranking:
    scores = values["log_scores"]
    if scores is not None:
        scores = tuple(-np.inf if value is None else float(value) for value in scores)
    return Ranking(**{**values, "order": tuple(values["order"]), "log_scores": scores})


def _evidence(question: _Question, ranking: Ranking | None) -> Evidence:
    distinct, firsts = merged(question.candidates)
    order, scores = ranked_places(ranking, firsts)
    names = [candidate.category for candidate in distinct]
    return Evidence(
        similarities=tuple(candidate.similarity for candidate in distinct),
        order=order,
        log_scores=scores,
        truth=names.index(question.truth) if question.truth in names else None,
        foreign=question.kind == "foreign",
        by_names=question.kind == "named",
        placed=question.kind == "placed",
        parts=parts_of(distinct),
    )


# Fitting --------------------------------------------------------------------------------------------------------------


def _fit(evidence: Sequence[Evidence], *, foreign_share: float, accepted: float, target: float) -> dict[str, Any]:
    mix = fit_mix(evidence, Calibration())
    mixed, alone = _applied(evidence, mix, foreign_share, accepted)
    gate, curve, reason = fit_gate(evidence, mixed, alone, target=target)
    if mix.status == "partial":
        reason = "each category has one image, which cannot be left out"
    return {
        "mix": mix,
        "mixed": mixed,
        "alone": alone,
        "gate": gate,
        "curve": curve,
        "gate_reason": reason,
        "measures": _measures(evidence, foreign_share, accepted),
    }


def _applied(
    evidence: Sequence[Evidence], mix: MixFit, foreign_share: float, accepted: float
) -> tuple[Calibration, Calibration]:
    mixed, alone = mix.applied(Calibration())
    options = {"foreign_share": foreign_share, "accepted": accepted}
    asked = [e for e in evidence if e.order is not None]
    return (
        fit_unknown(asked, mixed, use_ranker=True, **options)[0] if asked else mixed,
        fit_unknown(evidence, alone, use_ranker=False, **options)[0],
    )


def _crossed(
    evidence: Sequence[Evidence], foreign_share: float, accepted: float
) -> list[tuple[Calibration, Calibration]]:
    """The parameters with the ranker, and without, for each fold: fitted on the others."""
    fitted: list[tuple[Calibration, Calibration]] = []
    for fold in range(_FOLDS):
        rest = [e for i, e in enumerate(evidence) if i % _FOLDS != fold]
        fitted.append(_applied(rest, fit_mix(rest, Calibration(), cross_fit=False), foreign_share, accepted))
    return fitted


def _fit_sure(
    tree: Taxonomy | None,
    found: Sequence[tuple[_Question, Ranking | None]],
    foreign_share: float,
    accepted: float,
    target: float,
) -> tuple[SureFit | None, str | None]:
    """The threshold of sure answers, from probabilities that are cross-fitted."""
    if tree is None:
        return None, "there was no taxonomy to fit it for"
    used = [(question, ranking) for question, ranking in found if question.kind in ("known", "foreign")]
    if len(used) < 2 * _FOLDS:
        return None, f"{len(used)} images could be left out, which are too few"
    evidence = [_evidence(question, ranking) for question, ranking in used]
    fitted = _crossed(evidence, foreign_share, accepted)
    shares, right = np.zeros((len(used), len(tree.levels))), np.zeros((len(used), len(tree.levels)), dtype=bool)
    for i, (each, (question, _)) in enumerate(zip(evidence, used, strict=True)):
        mixed, alone = fitted[i % _FOLDS]
        calibration = alone if each.order is None else mixed
        log_probs = mixed_log_probs(each.similarities, each.order, each.log_scores, calibration)
        known = 1.0 - unknown_probability(each.similarities, calibration, log_probs, each.parts)
        order = np.argsort(-log_probs, kind="stable")
        names = [candidate.category for candidate in merged(question.candidates)[0]]
        levels = tree.answers({names[place]: float(np.exp(log_probs[place])) * known for place in order})
        missing = len(tree.levels) - len(levels)  # at the coarse end, where the tree knows none of the candidates
        shares[i, missing:] = [level.probability for level in levels]
        right[i] = tree.right([*[None] * missing, *(level.name for level in levels)], question.truth, groups=True)
    foreign = np.array([e.foreign for e in evidence])
    weights = np.ones(len(used))
    if foreign.any() and not foreign.all():
        weights = np.where(foreign, foreign_share / foreign.mean(), (1.0 - foreign_share) / (~foreign).mean())
    return fit_sure(shares, right, taxonomy=tree.fingerprint, weights=weights, target=target)


def _measures(evidence: Sequence[Evidence], foreign_share: float, accepted: float) -> dict[str, float]:
    """What the fit is worth on images that it was not fitted on, beside the shipped parameters."""
    usable = [e for e in evidence if not e.placed and not e.by_names]
    if sum(not e.foreign for e in usable) < 2 * _FOLDS:
        return {}
    fitted = _crossed(usable, foreign_share, accepted)
    rows: dict[str, list[tuple[float, float, bool]]] = {"": [], "default_": [], "alone_": []}
    for i, each in enumerate(usable):
        mixed, alone = fitted[i % _FOLDS]
        rows[""].append(_judged(each, mixed if each.order is not None else alone, each.order))
        rows["default_"].append(_judged(each, Calibration(), each.order))
        rows["alone_"].append(_judged(each, alone, None))
    foreign = np.array([e.foreign for e in usable])
    found: dict[str, float] = {}
    for name, judged in rows.items():
        stated, unknown, right = (np.array(column) for column in zip(*judged, strict=True))
        known = ~foreign
        found[f"{name}accuracy"] = float(right[known].mean())
        found[f"{name}calibration_error"] = expected_calibration_error(stated[known], right[known])
        found[f"{name}brier"] = brier_score(stated[known], right[known])
        found[f"{name}auroc_right"] = area_under_roc(stated[known], right[known])
        found[f"{name}auroc_foreign"] = area_under_roc(unknown, foreign)
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _judged(evidence: Evidence, calibration: Calibration, order: tuple[int, ...] | None) -> tuple[float, float, bool]:
    """Stated probability of the first, of none, and whether the first is right."""
    log_probs = mixed_log_probs(evidence.similarities, order, evidence.log_scores, calibration)
    unknown = unknown_probability(evidence.similarities, calibration, log_probs, evidence.parts)
    best = int(log_probs.argmax())
    return float(np.exp(log_probs[best])) * (1.0 - unknown), unknown, best == evidence.truth
