"""The external memory of images and texts: the interface, and the folder that implements it."""

from __future__ import annotations

from rarvision.memory.base import Memory
from rarvision.memory.importing import import_faiss
from rarvision.memory.local import LocalMemory
from rarvision.memory.records import AddReport, Hits, MemoryInfo, NewEntry, Prototypes, Where

__all__ = [
    "AddReport",
    "Hits",
    "LocalMemory",
    "Memory",
    "MemoryInfo",
    "NewEntry",
    "Prototypes",
    "Where",
    "import_faiss",
]
