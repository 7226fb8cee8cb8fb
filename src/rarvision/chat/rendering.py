"""Requests in the two forms that backends read: transformers conversations and OpenAI messages."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import Any, Literal

from PIL.Image import Image

from rarvision.chat.base import ChatRequest
from rarvision.errors import OptionError

__all__ = ["control_pattern", "conversation", "data_uri", "openai_messages"]


def control_pattern(tokens: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern for a tokenizer's control tokens in a user's text; None where there are none."""
    longest_first = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def conversation(request: ChatRequest, control: re.Pattern[str] | None = None) -> list[dict[str, Any]]:
    """A request for a transformers chat template.

    A control token inside a text (a category named ``<image>``) would be read as one: it gets a space after its first
    character.
    """
    if not request.messages:
        raise OptionError("a chat request needs at least one message, got none")
    turns = []
    for message in request.messages:
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, str):
                text = part if control is None else control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", part)
                content.append({"type": "text", "text": text})
            else:
                content.append({"type": "image", "image": part if part.mode == "RGB" else part.convert("RGB")})
        turns.append({"role": message.role, "content": content})
    return turns


def data_uri(image: Image, *, image_format: Literal["jpeg", "png"] = "jpeg", quality: int = 95) -> str:
    """An image as a ``data:`` URI; PNG is lossless, JPEG a tenth of the size."""
    buffer = io.BytesIO()
    if image_format == "jpeg":
        image.convert("RGB").save(buffer, format="JPEG", quality=quality, subsampling=0)
    else:
        image.convert("RGB").save(buffer, format="PNG")
    return f"data:image/{image_format};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def openai_messages(request: ChatRequest, *, image_format: Literal["jpeg", "png"] = "jpeg") -> list[dict[str, Any]]:
    """A request as OpenAI's chat messages: content parts of type ``text`` and ``image_url``."""
    if not request.messages:
        raise OptionError("a chat request needs at least one message, got none")
    turns: list[dict[str, Any]] = []
    for message in request.messages:
        if all(isinstance(part, str) for part in message.parts) and len(message.parts) == 1:
            turns.append({"role": message.role, "content": message.parts[0]})
            continue
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": data_uri(part, image_format=image_format)}}
            for part in message.parts
        ]
        turns.append({"role": message.role, "content": content})
    return turns
