"""Neighbours become candidates: grouping entries by category, and fusing images with texts."""

from __future__ import annotations

from rarvision.retrieval.leaving_out import LeaveOneOut, leave_one_out
from rarvision.retrieval.retriever import Aggregate, Retriever, Source
from rarvision.retrieval.statistics import Hubness, TextWeightFit

__all__ = ["Aggregate", "Hubness", "LeaveOneOut", "Retriever", "Source", "TextWeightFit", "leave_one_out"]
