"""Sizes and schedules of the embedded models, in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Schedule", "ViTSize"]


@dataclass(frozen=True, kw_only=True)
class ViTSize:
    """A small vision transformer: pixels a side, pixels a patch, width, depth."""

    image: int
    patch: int
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 512


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Everything that decides what the weights become, besides the code.

    ``*_images`` count images seen (with repeats), not steps.
    """

    seed: int = 0
    images_per_domain: int = 40_000
    validation_images_per_domain: int = 2_000
    clip_batch: int = 128
    clip16_images: int = 38_000
    clip32_images: int = 90_000
    tower_batch: int = 128
    tower_images: int = 220_000
    clip_domain_weights: tuple[float, ...] = (4, 2, 8, 4, 4)
    mllm_batch: int = 32
    mllm_caption_steps: int = 250
    mllm_steps: int = 1_500
    mllm_list_steps: int = 900
    mllm_tokens: int = 232
    mllm_shown_steps: int = 1_200
    mllm_long_tokens: int = 272
    clip16: ViTSize = ViTSize(image=16, patch=4)
    clip32: ViTSize = ViTSize(image=32, patch=4)
    tower: ViTSize = ViTSize(image=48, patch=8)
    lm_width: int = 128
    lm_layers: int = 5
    lm_heads: int = 4
    lm_mlp: int = 384
    word_probe_layer: int = 2
    candidate_probe_layer: int = 3
    look_probe_layer: int = 2
    pointer_probe_layer: int = 4
    copy_layer: int = 4

    def scaled(self, factor: float) -> Schedule:
        """The same with every amount of data and steps multiplied; for a dry run."""
        names = (
            "images_per_domain",
            "validation_images_per_domain",
            "clip16_images",
            "clip32_images",
            "tower_images",
            "mllm_caption_steps",
            "mllm_steps",
            "mllm_list_steps",
            "mllm_shown_steps",
        )
        return replace(self, **{name: max(1, round(getattr(self, name) * factor)) for name in names})
