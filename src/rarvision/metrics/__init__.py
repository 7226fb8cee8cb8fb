"""How good predictions are: pure functions over names and numbers."""

from rarvision.metrics.accuracy import hits_at, mean_per_class_accuracy, recall_at_k, topk_accuracy
from rarvision.metrics.confidence import (
    area_under_roc,
    brier_score,
    expected_calibration_error,
    false_positive_rate_at,
    risk_coverage,
)
from rarvision.metrics.names import cluster_hits, clustering_accuracy, name_similarities
from rarvision.metrics.resampling import (
    PairedTest,
    bootstrap_interval,
    mcnemar_exact,
    mean_per_class_interval,
    paired_test,
)

__all__ = [
    "PairedTest",
    "area_under_roc",
    "bootstrap_interval",
    "brier_score",
    "cluster_hits",
    "clustering_accuracy",
    "expected_calibration_error",
    "false_positive_rate_at",
    "hits_at",
    "mcnemar_exact",
    "mean_per_class_accuracy",
    "mean_per_class_interval",
    "name_similarities",
    "paired_test",
    "recall_at_k",
    "risk_coverage",
    "topk_accuracy",
]
