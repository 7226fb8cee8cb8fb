"""A fake encoder, and the contract that every encoder meets."""

from __future__ import annotations

import hashlib
from typing import final

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageColor

from rarvision.encoders import Encoder, same_encoder
from rarvision.errors import ImageError

__all__ = ["FakeEncoder", "check_encoder"]

_CELLS = 2


@final
class FakeEncoder(Encoder):
    """Sees colours only, and knows their names: a red picture lies near the text "red". Deterministic, no weights.

    Args:
        dim: Number of dimensions.
        seed: Another seed is another encoder.
    """

    def __init__(self, *, dim: int = 32, seed: int = 0) -> None:
        self._dim = dim
        self._seed = seed
        features = 3 * (_CELLS * _CELLS + 1)
        self._projection = np.random.default_rng(seed).standard_normal((features + 1, dim))

    @property
    def name(self) -> str:
        """``fake``."""
        return "fake"

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Tells dimensions and seed."""
        return f"fake:{self._dim}:{self._seed}"

    def _encode_images(self, images: list[Image.Image]) -> Float[np.ndarray, "n dim"]:
        return np.stack([self._project(image) for image in images])

    def _encode_texts(self, texts: list[str]) -> Float[np.ndarray, "n dim"]:
        return np.stack([self._text(text) for text in texts])

    def _project(self, image: Image.Image) -> Float[np.ndarray, " dim"]:
        pixels = np.asarray(image.resize((_CELLS * 8, _CELLS * 8), Image.Resampling.BOX), dtype=np.float64) / 255 - 0.5
        cells = pixels.reshape(_CELLS, 8, _CELLS, 8, 3).mean(axis=(1, 3)).reshape(-1)
        features = np.concatenate((3.0 * pixels.mean(axis=(0, 1)), cells, [0.1]))
        projected: Float[np.ndarray, " dim"] = features @ self._projection
        return projected

    def _text(self, text: str) -> Float[np.ndarray, " dim"]:
        digest = hashlib.sha256(f"{self._seed} {text}".encode("utf-8", "surrogatepass")).digest()
        own: Float[np.ndarray, " dim"] = np.random.default_rng(list(digest)).standard_normal(self._dim)
        colours = [word for word in text.lower().split() if word in ImageColor.colormap]
        if not colours:
            return own
        seen = np.sum([self._project(Image.new("RGB", (8, 8), colour)) for colour in colours], axis=0)
        mixed: Float[np.ndarray, " dim"] = seen / np.linalg.norm(seen) + 0.1 * own / np.linalg.norm(own)
        return mixed


def check_encoder(encoder: Encoder, *, tolerance: float = 1e-4) -> None:
    """Assert what every encoder promises.

    Args:
        encoder: Any.
        tolerance: Largest difference between the vectors of an image alone and in a batch.
    """
    images = [Image.new("RGB", (40 + 8 * i, 30), (25 * i, 255 - 20 * i, 60)) for i in range(7)]
    texts = ["a", "a small red bird", "größer 鳥", "{braces}", "a"]
    for vectors, count in ((encoder.encode_images(images), 7), (encoder.encode_texts(texts), 5)):
        assert vectors.shape == (count, encoder.dim), vectors.shape  # noqa: S101 - a contract check asserts
        assert vectors.dtype == np.float32, vectors.dtype  # noqa: S101
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    together = encoder.encode_images(images, batch_size=7)
    np.testing.assert_allclose(encoder.encode_images(images, batch_size=2), together, atol=tolerance)
    np.testing.assert_allclose(encoder.encode_images(images[3:4]), together[3:4], atol=tolerance)
    np.testing.assert_allclose(
        encoder.encode_texts(texts, batch_size=1), encoder.encode_texts(texts, batch_size=5), atol=tolerance
    )
    assert encoder.encode_images([]).shape == (0, encoder.dim)  # noqa: S101
    assert encoder.encode_texts([]).shape == (0, encoder.dim)  # noqa: S101
    templates = ["a photo of a {}.", "{} texture"]
    each = [encoder.encode_texts(["wood"], templates=[template]) for template in templates]
    mean = (each[0] + each[1]) / np.linalg.norm(each[0] + each[1])
    np.testing.assert_allclose(encoder.encode_texts(["wood"], templates=templates), mean, atol=tolerance)
    failures: list[int] = []

    def note(position: int, error: ImageError) -> None:
        assert isinstance(error, ImageError)  # noqa: S101
        failures.append(position)

    with_bad = encoder.encode_images([images[0], b"not an image", images[1]], on_error=note)
    assert failures == [1], failures  # noqa: S101
    assert np.isnan(with_bad[1]).all(), "the row of an unreadable image must be NaN"  # noqa: S101
    np.testing.assert_allclose(with_bad[[0, 2]], together[:2], atol=tolerance)
    assert encoder.fingerprint, "the fingerprint must not be empty"  # noqa: S101
    assert same_encoder(encoder, encoder)  # noqa: S101
