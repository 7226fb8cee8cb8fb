"""The external memory of images and texts: the interface, the folder and the Milvus client that implement it."""

from __future__ import annotations

from rarvision.memory.base import Memory
from rarvision.memory.importing import import_faiss
from rarvision.memory.local import LocalMemory
from rarvision.memory.milvus import MilvusMemory
from rarvision.memory.opening import open_memory
from rarvision.memory.records import AddReport, Hits, MemoryInfo, NewEntry, Prototypes, Where

__all__ = [
    "AddReport",
    "Hits",
    "LocalMemory",
    "Memory",
    "MemoryInfo",
    "MilvusMemory",
    "NewEntry",
    "Prototypes",
    "Where",
    "import_faiss",
    "open_memory",
]
