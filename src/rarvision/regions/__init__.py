"""Regions of images: boxes and masks become crops, as an encoder or a multimodal LLM should see them."""

from __future__ import annotations

from rarvision.regions.boxes import BoxNotation, box_iou, check_boxes_xywh, clipped_box, to_xywh, to_xyxy
from rarvision.regions.cropping import Crop, Scene, crops
from rarvision.regions.masks import Mask, PolygonMask, RunLengthMask, read_mask
from rarvision.regions.rules import SIZE_LIMITS, AdaptiveScale, Blur, Colour, CropRule, Outline, Padding
from rarvision.regions.scales import TABLE_12_SCALES, ScaleFit, accuracy_by_size, fit_adaptive_scale
from rarvision.regions.streaming import iter_crops, iter_made

__all__ = [
    "SIZE_LIMITS",
    "TABLE_12_SCALES",
    "AdaptiveScale",
    "Blur",
    "BoxNotation",
    "Colour",
    "Crop",
    "CropRule",
    "Mask",
    "Outline",
    "Padding",
    "PolygonMask",
    "RunLengthMask",
    "ScaleFit",
    "Scene",
    "accuracy_by_size",
    "box_iou",
    "check_boxes_xywh",
    "clipped_box",
    "crops",
    "fit_adaptive_scale",
    "iter_crops",
    "iter_made",
    "read_mask",
    "to_xywh",
    "to_xyxy",
]
