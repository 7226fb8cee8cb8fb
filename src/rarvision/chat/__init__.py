"""Talking to a multimodal LLM: in this process, or served over HTTP."""

from __future__ import annotations

from rarvision.chat.base import Capabilities, Chat, ChatRequest, Completion, ListConstraint, Message
from rarvision.chat.local import LocalChat

__all__ = ["Capabilities", "Chat", "ChatRequest", "Completion", "ListConstraint", "LocalChat", "Message"]
