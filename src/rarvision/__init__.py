"""Recognise what is in an image out of a vocabulary of any size, by retrieving and ranking.

Images go into a memory, an image comes in, k candidate categories are retrieved, a multimodal LLM ranks them, a
prediction comes out. The public names load on first use: importing rarvision loads neither torch nor faiss.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rarvision.audit import OrderAudit, audit_order
    from rarvision.calibration import Calibration, RankerFit
    from rarvision.chat import (
        Capabilities,
        Chat,
        ChatRequest,
        Completion,
        HTTPChat,
        LocalChat,
        Message,
        open_chat,
    )
    from rarvision.comparing import Comparison, compare_runs
    from rarvision.datasets import (
        Benchmark,
        BenchmarkCheck,
        BenchmarkDataset,
        CSVDataset,
        Dataset,
        FieldGuide,
        FieldGuideScenes,
        HubDataset,
        ImageFiles,
        ImageFolder,
        Item,
        JSONLDataset,
        NameList,
        benchmark,
        check_benchmark,
        field_guide_taxonomy,
        open_benchmark,
        open_dataset,
        open_taxonomy,
        taxonomy_of_metadata,
    )
    from rarvision.embedded import weights_path
    from rarvision.encoders import (
        Encoder,
        NameEncoder,
        SentenceEncoder,
        SpellingEncoder,
        TransformersEncoder,
        same_encoder,
    )
    from rarvision.errors import RarvisionError
    from rarvision.evaluate import Report, evaluate
    from rarvision.fitting import fit_recognizer
    from rarvision.images import iter_image_paths, load_image
    from rarvision.index import ExactIndex, HNSWIndex, Index
    from rarvision.memory import (
        AddReport,
        LocalMemory,
        Memory,
        MilvusMemory,
        export_faiss,
        export_parquet,
        import_faiss,
        import_parquet,
        open_memory,
    )
    from rarvision.naming import NamedMemory, Namer, NamingReport, discover, evaluate_namer
    from rarvision.pipeline import RecognitionFailure, Recognizer
    from rarvision.ranking import BaseRanker, OptionPrior, Ranker
    from rarvision.regions import CropRule, crops, iter_crops
    from rarvision.retrieval import Retriever, leave_one_out
    from rarvision.taxonomy import Taxonomy
    from rarvision.tuning import (
        BaselineReport,
        LeakageReport,
        Recipe,
        TrainingReport,
        TuningExample,
        TuningReport,
        build_tuning_data,
        check_leakage,
        convert_manifest,
        few_shot_baseline,
        image_set,
        merge_adapter,
        read_manifest,
        recipe,
        train,
    )
    from rarvision.types import (
        Candidate,
        Entry,
        LevelAnswer,
        Neighbour,
        Prediction,
        Ranking,
        Sample,
    )

__all__ = [
    "AddReport",
    "BaseRanker",
    "BaselineReport",
    "Benchmark",
    "BenchmarkCheck",
    "BenchmarkDataset",
    "CSVDataset",
    "Calibration",
    "Candidate",
    "Capabilities",
    "Chat",
    "ChatRequest",
    "Comparison",
    "Completion",
    "CropRule",
    "Dataset",
    "Encoder",
    "Entry",
    "ExactIndex",
    "FieldGuide",
    "FieldGuideScenes",
    "HNSWIndex",
    "HTTPChat",
    "HubDataset",
    "ImageFiles",
    "ImageFolder",
    "Index",
    "Item",
    "JSONLDataset",
    "LeakageReport",
    "LevelAnswer",
    "LocalChat",
    "LocalMemory",
    "Memory",
    "Message",
    "MilvusMemory",
    "NameEncoder",
    "NameList",
    "NamedMemory",
    "Namer",
    "NamingReport",
    "Neighbour",
    "OptionPrior",
    "OrderAudit",
    "Prediction",
    "Ranker",
    "RankerFit",
    "Ranking",
    "RarvisionError",
    "Recipe",
    "RecognitionFailure",
    "Recognizer",
    "Report",
    "Retriever",
    "Sample",
    "SentenceEncoder",
    "SpellingEncoder",
    "Taxonomy",
    "TrainingReport",
    "TransformersEncoder",
    "TuningExample",
    "TuningReport",
    "audit_order",
    "benchmark",
    "build_tuning_data",
    "check_benchmark",
    "check_leakage",
    "compare_runs",
    "convert_manifest",
    "crops",
    "discover",
    "evaluate",
    "evaluate_namer",
    "export_faiss",
    "export_parquet",
    "few_shot_baseline",
    "field_guide_taxonomy",
    "fit_recognizer",
    "image_set",
    "import_faiss",
    "import_parquet",
    "iter_crops",
    "iter_image_paths",
    "leave_one_out",
    "load_image",
    "merge_adapter",
    "open_benchmark",
    "open_chat",
    "open_dataset",
    "open_memory",
    "open_taxonomy",
    "read_manifest",
    "recipe",
    "same_encoder",
    "taxonomy_of_metadata",
    "train",
    "weights_path",
]

_HOME = {
    "Comparison": "comparing",
    "compare_runs": "comparing",
    "field_guide_taxonomy": "datasets",
    "open_taxonomy": "datasets",
    "taxonomy_of_metadata": "datasets",
    "NameEncoder": "encoders",
    "SentenceEncoder": "encoders",
    "SpellingEncoder": "encoders",
    "Taxonomy": "taxonomy",
    "LevelAnswer": "types",
    "OrderAudit": "audit",
    "audit_order": "audit",
    "Calibration": "calibration",
    "Capabilities": "chat",
    "Chat": "chat",
    "ChatRequest": "chat",
    "Completion": "chat",
    "HTTPChat": "chat",
    "LocalChat": "chat",
    "Message": "chat",
    "open_chat": "chat",
    "Benchmark": "datasets",
    "BenchmarkCheck": "datasets",
    "BenchmarkDataset": "datasets",
    "CSVDataset": "datasets",
    "Dataset": "datasets",
    "FieldGuide": "datasets",
    "FieldGuideScenes": "datasets",
    "HubDataset": "datasets",
    "ImageFiles": "datasets",
    "ImageFolder": "datasets",
    "Item": "datasets",
    "JSONLDataset": "datasets",
    "NameList": "datasets",
    "benchmark": "datasets",
    "check_benchmark": "datasets",
    "open_benchmark": "datasets",
    "open_dataset": "datasets",
    "weights_path": "embedded",
    "Encoder": "encoders",
    "TransformersEncoder": "encoders",
    "same_encoder": "encoders",
    "RarvisionError": "errors",
    "Report": "evaluate",
    "evaluate": "evaluate",
    "iter_image_paths": "images",
    "load_image": "images",
    "ExactIndex": "index",
    "HNSWIndex": "index",
    "Index": "index",
    "AddReport": "memory",
    "LocalMemory": "memory",
    "Memory": "memory",
    "MilvusMemory": "memory",
    "export_faiss": "memory",
    "export_parquet": "memory",
    "fit_recognizer": "fitting",
    "import_faiss": "memory",
    "import_parquet": "memory",
    "open_memory": "memory",
    "NamedMemory": "naming",
    "Namer": "naming",
    "NamingReport": "naming",
    "discover": "naming",
    "evaluate_namer": "naming",
    "RecognitionFailure": "pipeline",
    "Recognizer": "pipeline",
    "BaseRanker": "ranking",
    "OptionPrior": "ranking",
    "Ranker": "ranking",
    "RankerFit": "calibration",
    "CropRule": "regions",
    "crops": "regions",
    "iter_crops": "regions",
    "Retriever": "retrieval",
    "leave_one_out": "retrieval",
    "BaselineReport": "tuning",
    "LeakageReport": "tuning",
    "Recipe": "tuning",
    "TrainingReport": "tuning",
    "TuningExample": "tuning",
    "TuningReport": "tuning",
    "build_tuning_data": "tuning",
    "check_leakage": "tuning",
    "convert_manifest": "tuning",
    "few_shot_baseline": "tuning",
    "image_set": "tuning",
    "merge_adapter": "tuning",
    "read_manifest": "tuning",
    "recipe": "tuning",
    "train": "tuning",
    "Candidate": "types",
    "Entry": "types",
    "Neighbour": "types",
    "Prediction": "types",
    "Ranking": "types",
    "Sample": "types",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``rarvision.evaluate`` the function: importing the module of that name would put itself in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
