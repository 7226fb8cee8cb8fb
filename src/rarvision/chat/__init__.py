"""Talking to a multimodal LLM: in this process, or served over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

from rarvision.chat.base import Capabilities, Chat, ChatRequest, Completion, ListConstraint, Message
from rarvision.chat.captioner import CaptionerChat
from rarvision.chat.http import HTTPChat
from rarvision.chat.local import LocalChat

__all__ = [
    "Capabilities",
    "CaptionerChat",
    "Chat",
    "ChatRequest",
    "Completion",
    "HTTPChat",
    "ListConstraint",
    "LocalChat",
    "Message",
    "open_chat",
]


def open_chat(spec: str | Path, **options: Any) -> Chat:
    """Open what a user names: an address is a server, anything else a folder or a hub name.

    Args:
        spec: ``http://127.0.0.1:8000/v1`` (the model's name may follow: ``…/v1#Qwen/Qwen3-VL-4B-Instruct``), a folder,
            or a hub name such as ``llava-hf/llava-1.5-7b-hf``.
        options: Options of `HTTPChat` or `LocalChat`.

    Raises:
        ChatError: the model cannot be loaded.
        OptionError: an option's value is out of range.
    """
    text = str(spec)
    if text.startswith(("http://", "https://")):
        url, model = urldefrag(text)
        if model:
            options["model"] = model
        return HTTPChat(url, **options)
    return LocalChat(spec, **options)
