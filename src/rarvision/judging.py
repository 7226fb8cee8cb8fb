"""From candidates and a ranking to a prediction, with the parameters that were fitted for this memory, if any."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Float

from rarvision.calibration import (
    Calibration,
    FitStatus,
    GateModel,
    Parts,
    RankerFit,
    RankerWeight,
    check_weight,
    mixed_log_probs,
    unknown_probability,
)
from rarvision.errors import InputError, OptionError
from rarvision.memory.base import Memory
from rarvision.taxonomy import Taxonomy, check_sure
from rarvision.types import Candidate, CategoryScores, LevelAnswer, Prediction, Ranking

__all__ = [
    "FITTED_FOR",
    "Judge",
    "fit_key",
    "keep_fit",
    "kept_fit",
    "levels_of",
    "merged",
    "parts_of",
    "ranked_places",
]

log = logging.getLogger(__name__)

_FIT_NOTE = "fit:"
_KEY_DIGITS = 16


FITTED_FOR = ("retriever", "ranker", "views", "crop", "region_view")
"""The settings that a fit is valid for."""


def fit_key(settings: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of what a fit is valid for: how is retrieved and ranked, and what is seen."""
    parts = {name: settings[name] for name in FITTED_FOR if name in settings}
    if parts["ranker"] and parts["ranker"].get("bias"):  # estimated anew each time; that there is one is what matters
        parts["ranker"] = {**parts["ranker"], "bias": True}
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def kept_fit(memory: Memory, key: str) -> RankerFit | None:
    """The fit that a memory keeps under a key; None without one, and, with a warning, where it cannot be read."""
    text = memory.notes().get(_FIT_NOTE + key)
    if text is None:
        return None
    try:
        return RankerFit.from_dict(json.loads(text))
    except (ValueError, InputError) as error:
        log.warning("the fit that the memory keeps cannot be read, so the shipped parameters hold: %s", error)
        return None


def keep_fit(memory: Memory, fit: RankerFit) -> None:
    """Keep a fit with its memory, in place of an older one of the same key."""
    memory.set_note(_FIT_NOTE + fit.key, json.dumps(fit.to_dict(), allow_nan=False))


@dataclass(frozen=True, slots=True)
class _Parameters:
    """What is in force for one state of the memory."""

    mixed: Calibration
    alone: Calibration
    gate: GateModel | None
    gate_prior: Calibration
    status: FitStatus
    sure: float


@final
class Judge:
    """Decides whether the ranker is asked, mixes what both say, and says how probable it is.

    Args:
        memory: Whose fit is taken.
        settings: The recogniser's, see `fit_key`.
        calibration: Parameters of the caller's own; None takes the fit's, or the shipped ones.
        fit: ``kept``: the one that the memory keeps for these settings, if any; or one of the caller's; or None.
        ranker_weight: In place of the weight that the parameters hold.
        gate: None or False asks the ranker always; True as the fit says; a number from 0 to 1 so that this share of
            the ranker's gain is kept.
        reject: False never answers "unknown"; True from the fit's threshold on; a number from this probability on.
        taxonomy: A tree over the categories, for answers at its levels.
        sure: Probability from which an answer at a level is sure; True as fitted for this tree.

    Raises:
        OptionError: A value out of range, or one that needs a fit where there is none.
    """

    def __init__(
        self,
        memory: Memory,
        settings: Mapping[str, Any],
        *,
        calibration: Calibration | None,
        fit: RankerFit | Literal["kept"] | None,
        ranker_weight: RankerWeight | None,
        gate: bool | float | None,
        reject: bool | float,
        taxonomy: Taxonomy | None = None,
        sure: bool | float = 0.9,
    ) -> None:
        self._memory = memory
        self._key = fit_key(settings)
        self._given = calibration
        self._fit = fit
        self._weight = None if ranker_weight is None else check_weight(ranker_weight)
        self._gate = None if gate is False else gate
        self._reject = reject
        self.taxonomy = taxonomy
        self._sure = sure if sure is True else check_sure(sure)
        if taxonomy is not None:
            taxonomy.check(memory.categories(), "the memory's categories")
        elif sure is True:
            raise OptionError("sure=True (--sure auto) is a threshold of answers at levels: give a taxonomy with it")
        for name, value in (("gate", self._gate), ("reject", reject)):
            if value is None or isinstance(value, bool):
                continue
            if not isinstance(value, (int, float)) or not 0.0 < value <= 1.0:
                raise OptionError(f"{name} must be True, False or a number above 0 and at most 1, got {value!r}")
        if isinstance(fit, RankerFit) and fit.key != self._key:
            raise OptionError(
                f"this fit is for other settings ({fit.key}, these are {self._key}): fit again with the retriever and "
                "the ranker in use"
            )
        self._ranked = settings["ranker"] is not None
        self._state: tuple[int, _Parameters] = (memory.revision, self._read())

    @property
    def status(self) -> FitStatus:
        """What the probabilities rest on."""
        self.refresh()
        return self._now.status

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return self._now.gate is not None

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes a prediction, as JSON values."""
        self.refresh()
        now = self._now
        return {
            "ranker_weight": now.mixed.ranker_weight if self._weight is None else self._weight,
            "calibration": asdict(now.mixed),
            "calibration_alone": asdict(now.alone),
            "gate": None if now.gate is None else now.gate.to_dict(),
            "fit": now.status,
            **self._levels_settings,
        }

    @property
    def _levels_settings(self) -> dict[str, Any]:
        if self.taxonomy is None:
            return {}
        tree = self.taxonomy
        found = {
            "name": tree.name,
            "levels": list(tree.levels),
            "fingerprint": tree.fingerprint,
            "sure": self._now.sure,
        }
        return {"taxonomy": found}

    @property
    def _now(self) -> _Parameters:
        return self._state[1]

    def refresh(self) -> None:
        """Look whether the memory, or its fit, has changed; once a batch, since a server is asked for it.

        A new fit without what this was made with, a gate or a threshold, is not taken: the old one stays, as ``stale``.
        """
        revision = self._memory.revision
        if self._state[0] == revision:
            return
        try:
            found = self._read()
        except OptionError as error:
            log.warning("the fit that the memory keeps now is not taken: %s", error)
            found = replace(self._now, status="stale")
        self._state = (revision, found)

    def _read(self) -> _Parameters:
        fit = kept_fit(self._memory, self._key) if self._fit == "kept" else self._fit
        status: FitStatus = "unfitted" if fit is None else fit.status(self._memory.content_hash)
        mixed, alone = (Calibration(), Calibration()) if fit is None else (fit.mixed, fit.alone)
        gate_prior = alone
        if self._given is not None:
            mixed, alone, status = self._given, self._given, "given"
        elif self._weight is not None and fit is not None:
            status = "given"
        needed = (alone, mixed) if self._ranked else (alone,)
        if self._reject is True and any(each.reject_above is None for each in needed):
            raise OptionError(
                'there is no fitted threshold of "unknown" (reject=True, --unknown auto): '
                f"{_why_none(fit)}; or give a probability from 0 to 1"
            )
        if self._reject is not True:
            above = None if self._reject is False else float(self._reject)
            mixed, alone = replace(mixed, reject_above=above), replace(alone, reject_above=above)
        return _Parameters(mixed, alone, self._gate_of(fit), gate_prior, status, self._sure_of(fit))

    def _sure_of(self, fit: RankerFit | None) -> float:
        if self._sure is not True or self.taxonomy is None:
            return float(self._sure)
        if fit is None or fit.sure is None:
            why = _why_none(fit) if fit is None else f"the fit has none: {fit.sure_reason}"
        elif fit.sure.taxonomy != self.taxonomy.fingerprint:
            why = "it was fitted for another taxonomy: fit again with this one"
        else:
            return fit.sure.threshold
        raise OptionError(
            f"there is no fitted threshold of sure answers (sure=True, --sure auto): {why}; or give a probability"
        )

    def _gate_of(self, fit: RankerFit | None) -> GateModel | None:
        if self._gate is None:
            return None
        if fit is None or fit.gate is None or fit.curve is None:
            why = _why_none(fit) if fit is None else f"the fit has none: {fit.gate_reason}"
            raise OptionError(f"there is no gate: {why}; or ask the ranker always")
        if self._gate is True:
            return fit.gate
        place, _ = fit.curve.at(float(self._gate))
        gain = fit.curve.accuracy[-1] - fit.curve.accuracy[0]
        return replace(
            fit.gate,
            threshold=fit.curve.threshold[place],
            target=float(self._gate),
            call_rate=fit.curve.call_rate[place],
            gain_kept=1.0 if gain <= 0 else (fit.curve.accuracy[place] - fit.curve.accuracy[0]) / gain,
        )

    def skip(self, candidates: Sequence[Candidate], strategy: str) -> Ranking | None:
        """The ranking that stands for an image that the ranker need not be asked about; None where it is to be."""
        now = self._now
        if now.gate is None:
            return None
        distinct = merged(candidates)[0]
        similarities = [candidate.similarity for candidate in distinct]
        prior = mixed_log_probs(similarities, None, None, now.gate_prior)
        sure = now.gate.sureness(similarities, prior, parts_of(distinct))
        if sure < now.gate.threshold:
            return None
        reason = f"retrieval is {sure:.1%} sure; the ranker is asked below {now.gate.threshold:.1%}"
        return Ranking(order=tuple(range(len(candidates))), strategy=strategy, status="skipped", reason=reason)

    def predict(
        self,
        source: str,
        candidates: Sequence[Candidate],
        ranking: Ranking | None,
        *,
        scores: CategoryScores | None = None,
        retrieval_ms: float,
        ranking_ms: float,
    ) -> Prediction:
        """Mix, and say how probable each candidate and "none of these" is."""
        now = self._now
        distinct, firsts = merged(candidates)
        similarities = [candidate.similarity for candidate in distinct]
        order, ranked = ranked_places(ranking, firsts)
        calibration = now.alone if order is None else now.mixed
        log_probs = mixed_log_probs(similarities, order, ranked, calibration, self._weight)
        unknown = unknown_probability(similarities, calibration, log_probs, parts_of(distinct))
        probabilities: Float[np.ndarray, " n"] = np.exp(log_probs) * (1.0 - unknown)
        best_first = np.argsort(-log_probs, kind="stable")
        ordered = tuple(replace(distinct[i], probability=float(probabilities[i])) for i in best_first)
        levels = () if self.taxonomy is None else levels_of(self.taxonomy, ordered)
        return Prediction(
            source=source,
            label=ordered[0].category,
            probability=float(probabilities[best_first[0]]),
            candidates=ordered,
            unknown_probability=unknown,
            retrieved=tuple(candidate.category for candidate in candidates),
            ranking=ranking,
            unknown=calibration.reject_above is not None and unknown > calibration.reject_above,
            levels=levels,
            sure=next((level for level in reversed(levels) if level.probability >= now.sure), None),
            outside=tuple(c.category for c in ordered if self.taxonomy is not None and c.category not in self.taxonomy),
            fit=now.status,
            scores=scores,
            retrieval_ms=retrieval_ms,
            ranking_ms=ranking_ms,
        )


def levels_of(taxonomy: Taxonomy, candidates: Sequence[Candidate]) -> tuple[LevelAnswer, ...]:
    """The most probable group at each level; see `Taxonomy.answers`."""
    return taxonomy.answers({candidate.category: candidate.probability or 0.0 for candidate in candidates})


def _why_none(fit: RankerFit | None) -> str:
    if fit is None:
        return "nothing was fitted on this memory for these settings: fit (`rarvision fit`, `fit_recognizer`)"
    if fit.mix.status == "partial":
        return "most categories have one image, so that none could be left out: add images, and fit again"
    return "too few images could be left out: add images, and fit again"


def ranked_places(
    ranking: Ranking | None, firsts: Sequence[int]
) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    """Order and scores of the distinct candidates, which stand at these places; None where the ranker said nothing."""
    if ranking is None or ranking.status in ("fallback", "skipped"):
        return None, None
    places = {first: i for i, first in enumerate(firsts)}
    order = tuple(places[place] for place in ranking.order if place in places)
    scores = ranking.log_scores
    return order, None if scores is None else tuple(scores[first] for first in firsts)


def parts_of(candidates: Sequence[Candidate]) -> Parts:
    """Similarities by images alone, and by texts alone."""
    return [c.image_similarity for c in candidates], [c.text_similarity for c in candidates]


def merged(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[int]]:
    """One candidate a category (the paper's mode repeats them), and the place where each first stands."""
    groups: dict[str, list[int]] = {}
    for place, candidate in enumerate(candidates):
        groups.setdefault(candidate.category, []).append(place)
    distinct = [
        replace(
            max((candidates[place] for place in places), key=lambda candidate: candidate.similarity),
            exemplars=tuple(dict.fromkeys(i for place in places for i in candidates[place].exemplars)),
        )
        for places in groups.values()
    ]
    return distinct, [places[0] for places in groups.values()]
