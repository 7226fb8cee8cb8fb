"""The methods of the tables: presets of the one pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rarvision.regions import AdaptiveScale, Blur, CropRule

__all__ = ["METHODS", "Method", "crop_rule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """How images are recognised.

    Attributes:
        about: What it is, for people.
        retrieval: Options of `rarvision.Retriever`.
        ranked: Whether an MLLM ranks what was retrieved.
        replace: Whether its order alone counts, as in the paper, or its scores are mixed with retrieval's.
        every_name: Whether it is shown all categories.
        worked_example: Whether it is shown a worked example from the memory.
        tuned: What the MLLM was trained on before: ``shots``: the few images of the memory, all names in the prompt;
            ``source``: ranking examples of another dataset, which the row's options name; empty for nothing.
        bound: Whether what counts is if the truth is among the candidates: what a perfect ranker would reach.
        other: Whether the other MLLM is asked, ``--other-ranker``.
        given: Whether its detections are given, ``--region-scores``, and only measured here.
    """

    about: str
    retrieval: Mapping[str, Any] = field(default_factory=dict)
    ranked: bool = False
    replace: bool = False
    every_name: bool = False
    worked_example: bool = False
    tuned: Literal["", "shots", "source"] = ""
    bound: bool = False
    other: bool = False
    given: bool = False


_NEAREST: Mapping[str, Any] = {"source": "image", "aggregate": "nearest"}

METHODS: Mapping[str, Method] = {
    "clip": Method(about="CLIP zero-shot: the nearest name", retrieval={"source": "text"}),
    "knn": Method(about="the paper's CLIP + kNN: the category of the nearest image", retrieval=_NEAREST),
    "tip": Method(
        about="Tip-Adapter without training: a cache of images, and the names", retrieval={"aggregate": "tip"}
    ),
    "fused": Method(about="images and names of the memory, fused: this package's default"),
    "upper-bound": Method(
        about="a perfect ranker: the truth is among the k nearest categories", retrieval=_NEAREST, bound=True
    ),
    "mllm": Method(
        about="the MLLM alone, with every name in its prompt",
        retrieval={"source": "none"},
        ranked=True,
        replace=True,
        every_name=True,
    ),
    "mllm-other": Method(
        about="another MLLM alone, with every name in its prompt",
        retrieval={"source": "none"},
        ranked=True,
        replace=True,
        every_name=True,
        other=True,
    ),
    "mllm-tuned": Method(about="the MLLM tuned on the few shots, with every name in its prompt", tuned="shots"),
    "rar": Method(
        about="the paper's RAR: the MLLM orders the k nearest categories", retrieval=_NEAREST, ranked=True, replace=True
    ),
    "rar-in-context": Method(
        about="the same with a worked example in the prompt",
        retrieval=_NEAREST,
        ranked=True,
        replace=True,
        worked_example=True,
    ),
    "rar-tuned": Method(
        about="the same, the MLLM tuned on ranking examples of another dataset",
        retrieval=_NEAREST,
        ranked=True,
        replace=True,
        tuned="source",
    ),
    "rar-mixed": Method(about="RAR over fused retrieval, ranking and retrieval mixed: this package's", ranked=True),
    "region": Method(about="CLIP on crops of boxes: the nearest name", retrieval={"source": "text"}),
    "region-rar": Method(
        about="the paper's RAR on crops of boxes", retrieval={"source": "text"}, ranked=True, replace=True
    ),
    "region-given": Method(about="published text-region scores, such as RegionCLIP's", given=True),
    "region-mixed": Method(about="the same, ranking and retrieval mixed", retrieval={"source": "text"}, ranked=True),
}
"""By the name that `rarvision.experiments.Row.method` has."""


def crop_rule(settings: Mapping[str, Any]) -> CropRule:
    """What is seen of a box: ``scale`` a number, or three for small, medium and large boxes; ``blur`` or not."""
    scale, blur = settings.get("scale", 1.0), Blur(share=0.15) if settings.get("blur") else None
    if settings.get("shape") == "box":
        return CropRule(scale=float(scale), shape="box", blur=blur)
    rule = AdaptiveScale(scales=tuple(scale)) if isinstance(scale, (list, tuple)) else float(scale)
    return CropRule(scale=rule, blur=blur)
