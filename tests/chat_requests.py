"""Requests for tests of chats."""

from __future__ import annotations

import numpy as np
from PIL import Image

from rarvision.chat import ChatRequest, Message


def picture(seed, width, height):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mixed_requests():
    """Prompts of different lengths, with one image, two, none, and a system turn."""
    return [
        ChatRequest.of("Which category does the image show?", picture(0, 40, 30)),
        ChatRequest.of(
            "Compare these two, please, and say which is larger and why.", picture(1, 90, 50), picture(2, 20, 20)
        ),
        ChatRequest.of("no image here"),
        ChatRequest(
            messages=(
                Message(role="system", parts=("Be brief.",)),
                Message(role="user", parts=("Before", picture(3, 33, 64), "after")),
            )
        ),
    ]
