"""From similarities and a ranker's verdict to probabilities, and how the parameters of that are fitted: mathematics."""

from rarvision.calibration.fitting import (
    Evidence,
    GateCurve,
    GateModel,
    MixFit,
    check_shares,
    fit_gate,
    fit_mix,
    fit_unknown,
    logistic_regression,
)
from rarvision.calibration.mixing import (
    Calibration,
    Parts,
    RankerWeight,
    check_weight,
    log_softmax,
    mix,
    mixed_log_probs,
    order_log_scores,
    prior_log_scores,
    ranker_log_scores,
    unknown_features,
    unknown_probability,
)
from rarvision.calibration.record import FitStatus, RankerFit

__all__ = [
    "Calibration",
    "Evidence",
    "FitStatus",
    "GateCurve",
    "GateModel",
    "MixFit",
    "Parts",
    "RankerFit",
    "RankerWeight",
    "check_shares",
    "check_weight",
    "fit_gate",
    "fit_mix",
    "fit_unknown",
    "log_softmax",
    "logistic_regression",
    "mix",
    "mixed_log_probs",
    "order_log_scores",
    "prior_log_scores",
    "ranker_log_scores",
    "unknown_features",
    "unknown_probability",
]
