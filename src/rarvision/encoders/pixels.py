"""From a decoded picture to what a CLIP or SigLIP model sees, as its image processor would do it, at less cost.

The processors of transformers convert back and forth between PIL and NumPy, one image after the other. Resizing and
cutting here is one call that releases the interpreter's lock, so it runs in the threads that decode, and what
travels to the model are bytes; they are scaled and normalised there, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from rarvision.images import Picture

__all__ = ["PixelPlan"]

_AGREE_WITHIN = 1e-4  # of values that lie between about -3 and 3; a grey level is 0.008 or more
_TRIED = ((53, 81), (131, 67), (40, 40))


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelPlan:
    """Resizing, cutting and normalising.

    Attributes:
        shortest: The shorter side after resizing, pixels; None where both sides are given.
        size: Width and height after resizing, where they do not depend on the image.
        resample: Pillow's number of the filter.
        crop: Width and height that are cut out of the middle, None for no cut.
        factor: Multiplies the bytes.
        mean: Of each channel; subtracted after that.
        std: Of each channel; divides what is left.
    """

    shortest: int | None
    size: tuple[int, int] | None
    resample: int
    crop: tuple[int, int] | None
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> Self | None:
        """What an image processor does; None where it does anything else, to be asked itself then."""
        try:
            plan = cls._read(processor.to_dict())
            return plan if plan is not None and plan.agrees_with(processor) else None
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    @classmethod
    def _read(cls, values: Mapping[str, Any]) -> Self | None:
        if not (values["do_resize"] and values["do_rescale"] and values["do_normalize"]):
            return None
        size, cut = values["size"], values["crop_size"] if values.get("do_center_crop") else None
        shortest = size.get("shortest_edge")
        if size.get("longest_edge") or (shortest is None and not (size.get("width") and size.get("height"))):
            return None
        return cls(
            shortest=None if shortest is None else int(shortest),
            size=None if shortest is not None else (int(size["width"]), int(size["height"])),
            resample=int(values["resample"]),
            crop=None if cut is None else (int(cut["width"]), int(cut["height"])),
            factor=float(values["rescale_factor"]),
            mean=tuple(float(value) for value in values["image_mean"]),
            std=tuple(float(value) for value in values["image_std"]),
        )

    def agrees_with(self, processor: Any) -> bool:
        """Whether an image processor makes the same values of a few odd pictures."""
        generator = np.random.default_rng(0)
        for height, width in _TRIED:
            image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
            expected = np.asarray(processor(images=[image], return_tensors="np")["pixel_values"][0])
            ours = self.values(self.pixels(Picture.of(image))[None])[0]
            if ours.shape != expected.shape or not np.allclose(ours, expected, rtol=0, atol=_AGREE_WITHIN):
                return False
        return True

    @property
    def side(self) -> int:
        """The shorter side after resizing."""
        return self.shortest if self.size is None else min(self.size)  # type: ignore[return-value]  # one of the two

    def pixels(self, picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
        """Resize and cut."""
        small = picture.resized(self._target(picture.size), self.resample)
        if self.crop is not None:
            left, upper = (small.width - self.crop[0]) // 2, (small.height - self.crop[1]) // 2
            small = small.crop((left, upper, left + self.crop[0], upper + self.crop[1]))
        return np.asarray(small)

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        short = self.side
        longer = int(short * max(size) / min(size))
        return (short, longer) if size[0] <= size[1] else (longer, short)

    def values(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n 3 h w"]:
        """Scale and normalise, float32; the model's own device does the same in `TransformersEncoder`."""
        scaled = pixels.astype(np.float32) * np.float32(self.factor)
        normal = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))
