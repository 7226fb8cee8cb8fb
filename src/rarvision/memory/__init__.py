"""The external memory of images and texts: the interface, and the folder that implements it."""

from __future__ import annotations

from rarvision.memory.base import AddReport, Hits, Memory, MemoryInfo, NewEntry, Prototypes
from rarvision.memory.importing import import_faiss
from rarvision.memory.local import LocalMemory

__all__ = ["AddReport", "Hits", "LocalMemory", "Memory", "MemoryInfo", "NewEntry", "Prototypes", "import_faiss"]
