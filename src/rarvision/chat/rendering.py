"""Requests in the two forms that backends read: transformers conversations and OpenAI messages."""

from __future__ import annotations

import base64
import io
import json
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, final

from PIL.Image import Image

from rarvision.chat.base import ChatRequest
from rarvision.errors import OptionError

__all__ = ["EncodedImages", "OpenAIRequest", "control_pattern", "conversation", "data_uri", "openai_messages"]

ImageFormat = Literal["jpeg", "png"]


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


def data_uri(image: Image, *, image_format: ImageFormat = "jpeg", quality: int = 95) -> str:
    """An image as a ``data:`` URI; PNG is lossless, JPEG a tenth of the size."""
    return _uri_start(image_format) + _base64(image, image_format, quality).decode("ascii")


def _uri_start(image_format: ImageFormat) -> str:
    return f"data:image/{image_format};base64,"


def _base64(image: Image, image_format: ImageFormat, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if image_format == "jpeg":
        rgb.save(buffer, format="JPEG", quality=quality, subsampling=0)
    else:
        rgb.save(buffer, format="PNG")
    return base64.b64encode(buffer.getbuffer())


@final
class EncodedImages:
    """Images of several requests as files in base64: each is encoded once, and kept until its last request has it.

    Safe to use from several threads; who needs an image that another one encodes waits for it.

    Args:
        requests: Those that will ask, each once for each image that it shows.
        image_format: Of the files.
    """

    def __init__(self, requests: Sequence[ChatRequest], image_format: ImageFormat) -> None:
        self.image_format: ImageFormat = image_format
        self._to_come = Counter(id(image) for request in requests for image in request.images)
        self._made: dict[int, Future[bytes]] = {}
        self._lock = threading.Lock()

    def take(self, image: Image) -> bytes:
        """One image of a request."""
        key = id(image)
        with self._lock:
            self._to_come[key] -= 1
            found = self._made.get(key)
            first = found is None
            if found is None:
                found = self._made[key] = Future()
            if self._to_come[key] <= 0:
                del self._made[key]
        if first:
            try:
                found.set_result(_base64(image, self.image_format))
            except BaseException as error:
                found.set_exception(error)
                raise
        return found.result()


def openai_messages(
    request: ChatRequest, *, image_format: ImageFormat = "jpeg", uri: Callable[[Image], str] | None = None
) -> list[dict[str, Any]]:
    """A request as OpenAI's chat messages: content parts of type ``text`` and ``image_url``.

    Args:
        request: At least one message.
        image_format: Of the images.
        uri: What stands for an image; its ``data:`` URI by default.
    """
    if not request.messages:
        raise OptionError("a chat request needs at least one message, got none")
    address = uri or (lambda image: data_uri(image, image_format=image_format))
    turns: list[dict[str, Any]] = []
    for message in request.messages:
        if all(isinstance(part, str) for part in message.parts) and len(message.parts) == 1:
            turns.append({"role": message.role, "content": message.parts[0]})
            continue
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": address(part)}}
            for part in message.parts
        ]
        turns.append({"role": message.role, "content": content})
    return turns


@final
class OpenAIRequest:
    """A request whose images are encoded, as the body of a question to OpenAI's chat API.

    Images are put between the other bytes of the JSON text as they are, since base64 holds nothing that JSON escapes:
    they are most of it, and so are copied once.

    Args:
        request: At least one message.
        images: Where its images are taken from.
    """

    def __init__(self, request: ChatRequest, images: EncodedImages) -> None:
        self._mark = secrets.token_hex(16)  # nothing that a text could hold
        self._images: list[bytes] = []

        def stand_in(image: Image) -> str:
            self._images.append(images.take(image))
            return _uri_start(images.image_format) + self._mark

        self._messages = openai_messages(request, uri=stand_in)

    def body(self, fields: Mapping[str, Any]) -> bytes:
        """The JSON object of the messages and other fields; those that are None are left out, and may be ``messages``.

        Args:
            fields: Beside, or instead of, ``messages``.
        """
        whole = {"messages": self._messages, **fields}
        text = json.dumps({key: value for key, value in whole.items() if value is not None}, ensure_ascii=False)
        between = text.encode().split(self._mark.encode())
        images = [*self._images, b""] if len(between) > 1 else [b""]
        return b"".join(piece for pair in zip(between, images, strict=True) for piece in pair)
