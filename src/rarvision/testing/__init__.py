"""Fakes, and the contracts that every implementation meets, a user's own too."""

from __future__ import annotations

from rarvision.testing.chat import FakeChat, check_chat
from rarvision.testing.datasets import check_dataset
from rarvision.testing.encoders import FakeEncoder, check_encoder
from rarvision.testing.memory import check_index, check_memory
from rarvision.testing.naming import check_namer
from rarvision.testing.ranking import check_ranker
from rarvision.testing.server import FakeServer, Fault, absent_url

__all__ = [
    "FakeChat",
    "FakeEncoder",
    "FakeServer",
    "Fault",
    "absent_url",
    "check_chat",
    "check_dataset",
    "check_encoder",
    "check_index",
    "check_memory",
    "check_namer",
    "check_ranker",
]
