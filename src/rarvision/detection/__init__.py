"""Recognising regions: annotations of LVIS, V3Det and COCO, detections, and their average precision.

Reading and evaluating need the extra ``detection``.
"""

from rarvision.detection.annotations import AnnotatedImage, Annotations, read_annotations, read_vocabulary
from rarvision.detection.evaluation import DetectionReport, evaluate_detections
from rarvision.detection.proposing import (
    Detector,
    FoundBoxes,
    ProposalReport,
    detect_proposals,
    iter_proposals,
    one_by_one,
)
from rarvision.detection.recognising import RANKED, RANKED_TOP, RETRIEVAL, RegionReport, evaluate_regions
from rarvision.detection.regions import RegionDataset
from rarvision.detection.results import (
    Detections,
    ImageProposals,
    Proposals,
    read_detections,
    read_proposals,
    write_detections,
)
from rarvision.detection.scoring import (
    EVALUATOR_PRESETS,
    EvaluatorPreset,
    class_probabilities,
    evaluator_preset,
    ranked_scores,
    top_scores,
)
from rarvision.detection.selecting import nms_per_category, top_pairs
from rarvision.detection.texts import (
    CategoryText,
    VocabularyReport,
    VocabularyTexts,
    add_vocabulary,
    category_ids,
    vocabulary_texts,
)
from rarvision.detection.vocabulary import Category, Vocabulary, clean_names

__all__ = [
    "EVALUATOR_PRESETS",
    "RANKED",
    "RANKED_TOP",
    "RETRIEVAL",
    "AnnotatedImage",
    "Annotations",
    "Category",
    "CategoryText",
    "DetectionReport",
    "Detections",
    "Detector",
    "EvaluatorPreset",
    "FoundBoxes",
    "ImageProposals",
    "ProposalReport",
    "Proposals",
    "RegionDataset",
    "RegionReport",
    "Vocabulary",
    "VocabularyReport",
    "VocabularyTexts",
    "add_vocabulary",
    "category_ids",
    "class_probabilities",
    "clean_names",
    "detect_proposals",
    "evaluate_detections",
    "evaluate_regions",
    "evaluator_preset",
    "iter_proposals",
    "nms_per_category",
    "one_by_one",
    "ranked_scores",
    "read_annotations",
    "read_detections",
    "read_proposals",
    "read_vocabulary",
    "top_pairs",
    "top_scores",
    "vocabulary_texts",
    "write_detections",
]
