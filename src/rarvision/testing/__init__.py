"""Fakes, and the contracts that every implementation meets, a user's own too."""

from __future__ import annotations

from rarvision.testing.encoders import FakeEncoder, check_encoder
from rarvision.testing.memory import check_index, check_memory

__all__ = ["FakeEncoder", "check_encoder", "check_index", "check_memory"]
