"""Fitting the mix, "not retrieved" and the gate on answers whose truth is known.

Everything is fitted by maximum a posteriori likelihood around the shipped defaults, so that few answers change little,
and judged by cross-fitting: what is said of an answer comes from the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from rarvision.calibration.mixing import Calibration, Parts, mixed_log_probs, ranker_log_scores, unknown_features
from rarvision.errors import OptionError

__all__ = [
    "Evidence",
    "GateCurve",
    "GateModel",
    "MixFit",
    "check_shares",
    "fit_gate",
    "fit_mix",
    "fit_unknown",
    "logistic_regression",
]

_FOLDS = 5
_SCALES = np.exp(np.linspace(math.log(1 / 512), math.log(16), 53))  # of retrieval's log-prior
_WEIGHTS = np.concatenate(([0.0], np.exp(np.linspace(math.log(0.02), math.log(6), 30))))  # of the ranker's log-scores
_SPREAD = 1.0  # standard deviation of log scale and of weight before anything is seen
_NEWTON_STEPS = 50
_RIDGE = 1.0
_ENOUGH_IMAGES = 40  # left out, below which a gate is not trusted
_ENOUGH_ERRORS = 5  # images that retrieval gets wrong and the mix right, below which a gate is not trusted


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What retrieval and the ranker said of one image whose category is known.

    Attributes:
        similarities: Retrieval's, one a distinct candidate, best first.
        order: The ranker's order of them; None where it was not asked, or gave nothing usable.
        log_scores: Its scores, where it gave any.
        truth: Place of the true category among the candidates, None where it is not among them.
        foreign: Whether the true category was taken out of the memory on purpose.
        parts: Similarities by images alone, and by texts alone.
        by_names: Whether retrieval could only be asked by names: the image is its category's only one.
        placed: Whether the true category was put among the candidates, since retrieval could not be asked for it: its
            similarity says nothing.
    """

    similarities: tuple[float, ...]
    order: tuple[int, ...] | None
    log_scores: tuple[float, ...] | None
    truth: int | None
    foreign: bool = False
    by_names: bool = False
    placed: bool = False
    parts: Parts = (None, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixFit:
    """How retrieval and the ranker are mixed, and how well that does.

    Accuracies are shares, 0 to 1, of the images whose true category was among the candidates; None without any.

    Attributes:
        scale: Of retrieval's log-prior with the ranker's scores beside it, over the default's.
        alone_scale: The same where the ranker is not asked.
        weight: Of the ranker's log-scores.
        images: Images whose true category was among the candidates that retrieval found.
        placed: Images for which it was put there.
        retrieval: Accuracy of retrieval's first over the former.
        ranker: Accuracy of the ranker's first.
        mixed: Accuracy of the mix, cross-fitted.
        log_loss: Mean negative log-probability that the mix gives the truth, nats, cross-fitted.
        default_log_loss: The same of the shipped default.
        status: ``fitted``; ``partial``: no image can be left out, so that retrieval was asked by names alone, or, where
            there are none, nothing but the ranker's weight was fitted; ``unfitted``.
    """

    scale: float
    alone_scale: float
    weight: float
    images: int
    placed: int
    retrieval: float | None
    ranker: float | None
    mixed: float | None
    log_loss: float | None
    default_log_loss: float | None
    status: Literal["fitted", "partial", "unfitted"]

    def applied(self, default: Calibration) -> tuple[Calibration, Calibration]:
        """The parameters with the ranker, and without."""
        fitted = self.status != "unfitted"
        mixed = replace(
            default,
            prior_temperature=default.prior_temperature / self.scale,
            ranker_weight=self.weight,
            fitted=fitted,
        )
        return mixed, replace(default, prior_temperature=default.prior_temperature / self.alone_scale, fitted=fitted)


def fit_mix(
    evidence: Sequence[Evidence], default: Calibration, *, strength: float = 1.0, cross_fit: bool = True
) -> MixFit:
    """Fit the scale of retrieval's prior and the ranker's weight.

    Args:
        evidence: Foreign images, and those whose truth was not retrieved, say nothing here and are left out.
        default: What the fit is shrunk towards.
        strength: Of the shrinking, in units of a normal prior with a standard deviation of 1 in the logarithm of the
            scale and in the weight.
        cross_fit: Whether to say how well it does; five times the work.

    Returns:
        The fit; ``unfitted``, with the default's values, where there is nothing to fit on.
    """
    known = [e for e in evidence if e.truth is not None and not e.foreign]
    asked = [e for e in known if e.order is not None]
    found = [e for e in known if not e.placed]
    ranked = [e for e in asked if not e.placed]
    placed = [e for e in asked if e.placed]
    scale, weight = _best_pair(ranked, placed, default, strength)
    alone_scale = _best_pair(found, [], replace(default, ranker_weight=0.0), strength, weights=np.zeros(1))[0]
    if not found:  # nothing says how far retrieval is to be trusted
        scale = alone_scale = 1.0
    right, losses = _cross_fitted(ranked, placed, default, strength) if cross_fit else ([], [])
    return MixFit(
        scale=scale,
        alone_scale=alone_scale,
        weight=weight,
        images=len(found),
        placed=len(placed),
        retrieval=_mean([int(np.argmax(e.similarities)) == e.truth for e in found]),
        ranker=_mean([e.order is not None and e.order[0] == e.truth for e in asked]),
        mixed=_mean(right),
        log_loss=_mean(losses),
        default_log_loss=_mean(
            [-float(mixed_log_probs(e.similarities, e.order, e.log_scores, default)[e.truth or 0]) for e in ranked]
        ),
        status=_status(known),
    )


def _best_pair(
    ranked: Sequence[Evidence],
    placed: Sequence[Evidence],
    default: Calibration,
    strength: float,
    *,
    weights: Float[np.ndarray, " w"] = _WEIGHTS,
) -> tuple[float, float]:
    """Scale and weight of the highest posterior, on a grid that is refined once."""
    scales = _SCALES
    best = (1.0, float(default.ranker_weight) if len(weights) > 1 else 0.0)
    if not ranked and not placed:
        return best
    for _ in range(2):
        total = (
            -strength
            * (np.log(scales)[:, None] ** 2 + (weights - default.ranker_weight)[None, :] ** 2)
            / (2 * _SPREAD**2)
        )
        for each in ranked:
            prior = np.asarray(each.similarities, dtype=np.float64) / default.prior_temperature
            ranker = _ranker(each, default)
            total = total + _log_share(scales[:, None, None] * prior + weights[None, :, None] * ranker, each.truth or 0)
        for each in placed:
            total = total + _log_share(weights[:, None] * _ranker(each, default), each.truth or 0)[None, :]
        row, column = np.unravel_index(int(total.argmax()), total.shape)
        best = (float(scales[row]), float(weights[column]))
        scales = best[0] * np.exp(np.linspace(-0.15, 0.15, 11))
        if len(weights) > 1:
            weights = np.unique(np.maximum(best[1] + np.linspace(-0.2, 0.2, 9) * max(best[1], 0.02), 0.0))
    return best


def _ranker(evidence: Evidence, default: Calibration) -> Float[np.ndarray, " n"]:
    if evidence.order is None:
        return np.zeros(len(evidence.similarities))
    return ranker_log_scores(evidence.order, evidence.log_scores, default)


def _log_share(scores: Float[np.ndarray, "*grid n"], place: int) -> Float[np.ndarray, "*grid"]:
    peak = scores.max(axis=-1)
    shares: Float[np.ndarray, "*grid"] = (
        scores[..., place] - peak - np.log(np.exp(scores - peak[..., None]).sum(axis=-1))
    )
    return shares


def _cross_fitted(
    ranked: Sequence[Evidence], placed: Sequence[Evidence], default: Calibration, strength: float
) -> tuple[list[bool], list[float]]:
    """For each ranked image whether the mix is right, and its loss, by a fit on the other folds."""
    right, losses = [False] * len(ranked), [0.0] * len(ranked)
    for fold in range(min(_FOLDS, len(ranked))):
        rest = [e for i, e in enumerate(ranked) if i % _FOLDS != fold]
        scale, weight = _best_pair(rest, placed, default, strength) if rest else (1.0, default.ranker_weight)
        for i in range(fold, len(ranked), _FOLDS):
            each = ranked[i]
            prior = np.asarray(each.similarities, dtype=np.float64) / default.prior_temperature
            scores = scale * prior + weight * _ranker(each, default)
            right[i] = int(scores.argmax()) == each.truth
            losses[i] = -float(_log_share(scores, each.truth or 0))
    return right, losses


def _mean(values: Sequence[float] | Sequence[bool]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _status(known: Sequence[Evidence]) -> Literal["fitted", "partial", "unfitted"]:
    """``fitted`` where at least half of the images could be left out of the memory."""
    if not known:
        return "unfitted"
    return "fitted" if 2 * sum(not (e.by_names or e.placed) for e in known) >= len(known) else "partial"


def check_shares(*, foreign_share: float = 0.5, accepted: float = 0.5, target: float = 0.5) -> None:
    """Raise `OptionError` unless the first lies between 0 and 1, the others above 0 and at most at 1."""
    if not 0.0 < foreign_share < 1.0:
        raise OptionError(f"foreign_share must lie between 0 and 1, both excluded, got {foreign_share}")
    for name, value in (("accepted", accepted), ("target", target)):
        if not 0.0 < value <= 1.0:
            raise OptionError(f"{name} must lie above 0 and at most at 1, got {value}")


# Not retrieved ------------------------------------------------------------------------------------------------------


def fit_unknown(
    evidence: Sequence[Evidence],
    calibration: Calibration,
    *,
    use_ranker: bool,
    foreign_share: float = 0.02,
    accepted: float = 0.95,
) -> tuple[Calibration, Float[np.ndarray, " n"]]:
    """Fit "the true category is none of the candidates", and the probability from which to say "unknown".

    Args:
        evidence: Images of categories that the memory knows, and foreign ones.
        calibration: Whose mix is used; the fit is put into a copy of it.
        use_ranker: Whether the mix, or retrieval's prior alone, is what the images were given.
        foreign_share: Share of foreign images that is expected in use, 0 to 1 exclusive: the probabilities are
            calibrated for it; the threshold does not depend on it.
        accepted: Share of the images of known categories that are to be accepted.

    Returns:
        The calibration, and for each image its cross-fitted probability.

    Raises:
        OptionError: A share out of range.
    """
    check_shares(foreign_share=foreign_share, accepted=accepted)
    usable = [e for e in evidence if not e.placed and not e.by_names]
    foreign = np.array([e.foreign for e in usable], dtype=bool)
    missing = np.array([e.truth is None for e in usable], dtype=bool)
    if missing.all() or not missing.any() or foreign.all():
        return calibration, np.array([])
    rows = np.stack([_features(e, calibration, use_ranker=use_ranker) for e in usable])
    weights = np.ones(len(usable))
    if foreign.any():
        weights[foreign] *= foreign_share / foreign.mean()
        weights[~foreign] *= (1.0 - foreign_share) / (~foreign).mean()
    held_out = np.empty(len(usable))
    fold_of = np.arange(len(usable)) % _FOLDS
    for fold in range(_FOLDS):
        inside = fold_of != fold
        model = logistic_regression(rows[inside], missing[inside], weights[inside])
        held_out[~inside] = _logistic(model[0] + rows[~inside] @ model[1:])
    intercept, *slopes = logistic_regression(rows, missing, weights).tolist()
    own = _logistic(intercept + rows @ np.array(slopes))[~foreign]
    similarity, margin, confidence, image_margin, text_margin = slopes
    fitted = replace(
        calibration,
        unknown_intercept=intercept,
        unknown_similarity=similarity,
        unknown_margin=margin,
        unknown_confidence=confidence,
        unknown_image_margin=image_margin,
        unknown_text_margin=text_margin,
        reject_above=float(np.quantile(own, accepted, method="higher")) if foreign.any() else None,
        fitted=True,
    )
    return fitted, held_out


def _features(evidence: Evidence, calibration: Calibration, *, use_ranker: bool) -> Float[np.ndarray, " 5"]:
    order = evidence.order if use_ranker else None
    log_probs = mixed_log_probs(evidence.similarities, order, evidence.log_scores, calibration)
    return unknown_features(evidence.similarities, log_probs, evidence.parts)


def logistic_regression(
    rows: Float[np.ndarray, "n d"], outcomes: Bool[np.ndarray, " n"], weights: Float[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, " 1+d"]:
    """Ridge-penalised logistic regression by Newton's method; intercept first.

    The penalty is on the standardised coefficients, not on the intercept, so that without evidence the answer is the
    base rate. A column that does not vary gets the coefficient 0.
    """
    weights = np.ones(len(rows)) if weights is None else weights * (len(rows) / weights.sum())
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    varies = spread > 1e-12
    design = np.concatenate(
        (np.ones((len(rows), 1)), np.where(varies, (rows - mean) / np.where(varies, spread, 1.0), 0.0)), axis=1
    )
    penalty = np.diag([1e-6, *([_RIDGE] * rows.shape[1])])
    beta = np.zeros(1 + rows.shape[1])
    for _ in range(_NEWTON_STEPS):
        shares = _logistic(design @ beta)
        gradient = design.T @ (weights * (outcomes - shares)) - penalty @ beta
        curvature = (design * (weights * shares * (1.0 - shares))[:, None]).T @ design + penalty
        step = np.linalg.solve(curvature, gradient)
        longest = float(np.abs(step).max())
        beta += step / max(1.0, longest / 4.0)
        if longest < 1e-9:
            break
    slopes = np.where(varies, beta[1:] / np.where(varies, spread, 1.0), 0.0)
    return np.concatenate(([beta[0] - slopes @ mean], slopes))


def _logistic(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    shares: Float[np.ndarray, " n"] = np.exp(-np.logaddexp(0.0, -values))
    return shares


# The gate -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class GateModel:
    """When retrieval is sure enough not to ask the ranker: where ``P(its first is right)`` is at least ``threshold``.

    Attributes:
        intercept: Log-odds that retrieval's first is right, at zero of what follows.
        similarity: Change by unit of the best candidate's similarity.
        margin: Change by unit of its margin over the second.
        confidence: Change by nat of the log-odds of the likeliest candidate among all, by retrieval alone.
        image_margin: Change by unit of the first's margin over the others by the images alone.
        text_margin: The same by the texts alone.
        threshold: Probability from which the ranker is not asked; above 1 asks always, 0 never.
        target: Share of the ranker's whole gain that was to be kept.
        call_rate: Share of the images that the threshold asks for, on what it was fitted on.
        gain_kept: Share of the gain that it keeps there, cross-fitted.
    """

    intercept: float
    similarity: float
    margin: float
    confidence: float
    image_margin: float
    text_margin: float
    threshold: float
    target: float
    call_rate: float
    gain_kept: float

    def sureness(
        self,
        similarities: Sequence[float] | Float[np.ndarray, " n"],
        log_probs: Float[np.ndarray, " n"],
        parts: Parts = (None, None),
    ) -> float:
        """Probability that retrieval's first is right, 0 to 1; for the arguments see `unknown_features`."""
        slopes = np.array([self.similarity, self.margin, self.confidence, self.image_margin, self.text_margin])
        value = self.intercept + float(unknown_features(similarities, log_probs, parts) @ slopes)
        return float(_logistic(np.array([value]))[0])

    def to_dict(self) -> dict[str, float]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class GateCurve:
    """Accuracy against the share of images for which the ranker is asked, least sure first; cross-fitted.

    Attributes:
        call_rate: Ascending, 0 to 1.
        accuracy: Share of all images that are right, 0 to 1.
        threshold: Sureness below which the ranker is asked at that rate.
    """

    call_rate: tuple[float, ...]
    accuracy: tuple[float, ...]
    threshold: tuple[float, ...]

    def at(self, target: float) -> tuple[int, str | None]:
        """The place of the lowest rate that keeps a share of the gain, there and everywhere above; and why not lower.

        Where asking does not gain anything, that is rate 0, with the reason.
        """
        gain = self.accuracy[-1] - self.accuracy[0]
        if gain <= 0:
            return 0, "asking the ranker gains nothing here"
        enough = self.accuracy[0] + target * gain - 1e-12
        place = len(self.accuracy) - 1
        while place > 0 and self.accuracy[place - 1] >= enough:
            place -= 1
        return place, None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {key: list(value) for key, value in asdict(self).items()}


def fit_gate(
    evidence: Sequence[Evidence], mixed: Calibration, alone: Calibration, *, target: float = 0.99
) -> tuple[GateModel | None, GateCurve | None, str | None]:
    """Fit when to ask the ranker, so that a share of its gain is kept at the fewest calls.

    Args:
        evidence: Images of known categories, left out; foreign and placed ones say nothing here.
        mixed: The mix with the ranker.
        alone: Retrieval alone.
        target: Share of the gain to keep, above 0 and at most 1.

    Returns:
        The gate, its curve, and None; or None twice (the curve where there is one) and the reason why there is none.
    """
    check_shares(target=target)
    used = [e for e in evidence if not (e.foreign or e.placed or e.by_names) and e.order is not None]
    before = [mixed_log_probs(e.similarities, None, None, alone) for e in used]
    right = np.array([int(p.argmax()) == e.truth for p, e in zip(before, used, strict=True)], dtype=bool)
    after = np.array(
        [int(mixed_log_probs(e.similarities, e.order, e.log_scores, mixed).argmax()) == e.truth for e in used],
        dtype=bool,
    )
    if len(used) < _ENOUGH_IMAGES or right.all() or not right.any():
        return None, None, f"{len(used)} images, of which retrieval knows {int(right.sum())}, are too few to tell"
    rows = np.stack([unknown_features(e.similarities, p, e.parts) for e, p in zip(used, before, strict=True)])
    sure = np.empty(len(used))
    fold_of = np.arange(len(used)) % _FOLDS
    for fold in range(_FOLDS):
        inside = fold_of != fold
        model = logistic_regression(rows[inside], right[inside])
        sure[~inside] = _logistic(model[0] + rows[~inside] @ model[1:])
    curve = _curve(sure, right, after)
    gained = int((after & ~right).sum())
    place, reason = curve.at(target)
    if reason is None and gained < _ENOUGH_ERRORS:
        return None, curve, f"the ranker corrects {gained} of {len(used)} images, too few to tell which"
    intercept, similarity, margin, confidence, image_margin, text_margin = logistic_regression(rows, right).tolist()
    gain = curve.accuracy[-1] - curve.accuracy[0]
    gate = GateModel(
        intercept=intercept,
        similarity=similarity,
        margin=margin,
        confidence=confidence,
        image_margin=image_margin,
        text_margin=text_margin,
        threshold=curve.threshold[place],
        target=target,
        call_rate=curve.call_rate[place],
        gain_kept=1.0 if gain <= 0 else (curve.accuracy[place] - curve.accuracy[0]) / gain,
    )
    return gate, curve, reason


def _curve(sure: Float[np.ndarray, " n"], before: Bool[np.ndarray, " n"], after: Bool[np.ndarray, " n"]) -> GateCurve:
    """Least sure first; images of the same sureness are asked for together."""
    order: Int[np.ndarray, " n"] = np.argsort(sure, kind="stable")
    ordered = sure[order]
    gains = np.concatenate(([0], np.cumsum(after[order].astype(int) - before[order].astype(int))))
    cuts = np.flatnonzero(np.concatenate(([True], np.diff(ordered) > 0, [True])))
    thresholds = [float(ordered[cut]) if cut < len(ordered) else 2.0 for cut in cuts]
    thresholds[0] = 0.0
    return GateCurve(
        call_rate=tuple((cuts / len(sure)).tolist()),
        accuracy=tuple(((before.sum() + gains[cuts]) / len(sure)).tolist()),
        threshold=tuple(thresholds),
    )
