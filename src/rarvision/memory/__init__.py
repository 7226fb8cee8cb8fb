"""The external memory of images and texts: the interface, the folder and the Milvus client that implement it."""

from __future__ import annotations

from rarvision.memory.base import Memory
from rarvision.memory.exporting import ExportReport, export_faiss
from rarvision.memory.importing import import_faiss
from rarvision.memory.local import LocalMemory
from rarvision.memory.milvus import MilvusMemory
from rarvision.memory.opening import create_like, open_memory
from rarvision.memory.parquet import export_parquet, import_parquet
from rarvision.memory.records import AddReport, Hits, MemoryInfo, NewEntry, Prototypes, Where

__all__ = [
    "AddReport",
    "ExportReport",
    "Hits",
    "LocalMemory",
    "Memory",
    "MemoryInfo",
    "MilvusMemory",
    "NewEntry",
    "Prototypes",
    "Where",
    "create_like",
    "export_faiss",
    "export_parquet",
    "import_faiss",
    "import_parquet",
    "open_memory",
]
