"""Images and texts become unit vectors: the interface, batching, decoding and checks."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from PIL import Image

from rarvision.errors import EncoderError, ImageError, OptionError

__all__ = [
    "Encoder",
    "batch_size_of",
    "check_templates",
    "ordered_map",
    "probe_matches",
    "same_encoder",
    "worker_pool",
]

ImageSource = Path | str | bytes | Image.Image
"""Whatever `rarvision.images.load_image` opens."""

_DECODERS = 4
_PROBE_TEXTS = ("a photo of a small red bird", "42 striped fish")

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def ordered_map(
    function: Callable[[_In], _Out], items: Iterable[_In], *, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[_Out]:
    """Map in a pool, in order, with at most ``ahead`` items in flight; ``items`` is consumed by the caller's thread."""
    waiting: deque[Future[_Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def worker_pool(threads: int = _DECODERS) -> Iterator[ThreadPoolExecutor]:
    """A pool that, when the block ends for whatever reason, drops what it has not begun."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="rarvision-read")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates as a tuple; raises `OptionError` where one lacks the field ``{}``."""
    if isinstance(templates, str):
        raise OptionError(f"templates must be a list of strings, got the string {templates!r}; put it in a list")
    if not templates or any("{}" not in template for template in templates):
        raise OptionError(f"every text template needs the field {{}} for the name, got {list(templates)!r}")
    return tuple(templates)


class Encoder(abc.ABC):
    """Maps images and texts into one space of unit vectors, compared by cosine.

    Implementers write `name`, `dim`, `fingerprint`, `_encode_images` and `_encode_texts`; batching, decoding,
    normalising and checks live here.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What loads it again: a hub name or a folder; for reports."""

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of dimensions of the vectors."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Same for the same weights and preprocessing, on any machine; memories are bound to it."""

    @abc.abstractmethod
    def _encode_images(self, images: list[Image.Image]) -> Float[np.ndarray, "n dim"]:
        """One batch of RGB images; any float dtype, normalised or not."""

    @abc.abstractmethod
    def _encode_texts(self, texts: list[str]) -> Float[np.ndarray, "n dim"]:
        """One batch of texts; any float dtype, normalised or not."""

    @property
    def revision(self) -> str | None:
        """The revision of a hub repository that `name` alone does not say."""
        return None

    @property
    def batch_size(self) -> int:
        """Images or texts in one forward pass, unless the caller says otherwise."""
        return 32

    def encode_images(
        self,
        images: Sequence[ImageSource],
        *,
        batch_size: int | None = None,
        on_error: Callable[[int, ImageError], None] | None = None,
    ) -> Float[np.ndarray, "n dim"]:
        """Encode images; they are decoded in a few threads while the model runs.

        Args:
            images: Paths, encoded bytes or PIL images.
            batch_size: Images in one forward pass; the encoder's own by default.
            on_error: Called with the position and the error of an image that cannot be read; its row is NaN, which
                no search accepts, and the other images are not affected. Without it the error is raised.

        Returns:
            float32 unit vectors, one row an image.

        Raises:
            ImageError: An image cannot be read, and there is no ``on_error``.
            EncoderError: The model returned something else than a finite vector an image.
        """
        from rarvision.images import load_image

        size = batch_size_of(batch_size or self.batch_size)
        vectors = np.full((len(images), self.dim), np.nan, dtype=np.float32)

        def decode(item: tuple[int, ImageSource]) -> tuple[int, Image.Image | ImageError]:
            try:
                return item[0], load_image(item[1])
            except ImageError as error:
                return item[0], error

        with worker_pool() as pool:
            decoded = ordered_map(decode, enumerate(images), pool=pool, ahead=2 * size)
            positions: list[int] = []
            batch: list[Image.Image] = []
            for position, image in decoded:
                if isinstance(image, ImageError):
                    if on_error is None:
                        raise image
                    on_error(position, image)
                    continue
                positions.append(position)
                batch.append(image)
                if len(batch) == size:
                    vectors[positions] = self._unit(self._encode_images(batch), len(batch))
                    positions, batch = [], []
            if batch:
                vectors[positions] = self._unit(self._encode_images(batch), len(batch))
        return vectors

    def encode_texts(
        self, texts: Sequence[str], *, templates: Sequence[str] = ("{}",), batch_size: int | None = None
    ) -> Float[np.ndarray, "n dim"]:
        """Encode texts; with several templates, the normalised mean of the normalised vectors.

        Args:
            texts: Names or sentences. A text that occurs twice is encoded once.
            templates: Each holds ``{}``, which the text replaces.
            batch_size: Texts in one forward pass; the encoder's own by default.

        Returns:
            float32 unit vectors, one row a text.

        Raises:
            OptionError: A template without ``{}``.
            EncoderError: The model returned something else than a finite vector a text.
        """
        filled = check_templates(templates)
        size = batch_size_of(batch_size or self.batch_size)
        prompts = [template.replace("{}", text) for text in texts for template in filled]
        unique = list(dict.fromkeys(prompts))
        place = {prompt: row for row, prompt in enumerate(unique)}
        vectors = np.empty((len(unique), self.dim), dtype=np.float32)
        for start in range(0, len(unique), size):
            batch = unique[start : start + size]
            vectors[start : start + len(batch)] = self._unit(self._encode_texts(batch), len(batch))
        rows = np.array([place[prompt] for prompt in prompts], dtype=np.int64)
        each = vectors[rows].reshape(len(texts), len(filled), self.dim)
        return each[:, 0] if len(filled) == 1 else self._unit(each.mean(axis=1), len(texts))

    def probe(self) -> Float[np.ndarray, "n dim"]:
        """Vectors of a few fixed images and texts, which tell encoders apart (see `same_encoder`).

        The images are ours, so the limit of pixels for a user's images does not hold for them.
        """
        pictures, size = _probe_images(), batch_size_of(self.batch_size)
        batches = [pictures[start : start + size] for start in range(0, len(pictures), size)]
        vectors = [self._unit(self._encode_images(batch), len(batch)) for batch in batches]
        return np.concatenate((*vectors, self.encode_texts(_PROBE_TEXTS)))

    def _unit(self, vectors: Float[np.ndarray, "n dim"], count: int) -> Float[np.ndarray, "n dim"]:
        array = np.asarray(vectors, dtype=np.float32)
        if array.shape != (count, self.dim):
            raise EncoderError(f"{self.name}: expected vectors of shape ({count}, {self.dim}), got {array.shape}")
        norms = np.linalg.norm(array, axis=1, keepdims=True)
        if not np.isfinite(array).all() or not (norms > 0).all():
            raise EncoderError(f"{self.name} returned a vector that is zero or not finite; try dtype='float32'")
        unit: Float[np.ndarray, "n dim"] = array / norms
        return unit


def same_encoder(first: Encoder, second: Encoder, *, tolerance: float = 2e-4) -> bool:
    """Whether two encoders give interchangeable vectors: equal fingerprints, or probes within the tolerance.

    Args:
        first: One encoder.
        second: Another one.
        tolerance: Largest ``1 - cosine`` over the probe's images and texts.
    """
    if first.fingerprint == second.fingerprint:
        return True
    return first.dim == second.dim and probe_matches(first.probe(), second.probe(), tolerance=tolerance)


def probe_matches(
    first: Float[np.ndarray, "n dim"], second: Float[np.ndarray, "n dim"], *, tolerance: float = 2e-4
) -> bool:
    """Whether two results of `Encoder.probe` agree: every cosine at least ``1 - tolerance``."""
    return first.shape == second.shape and bool(((first * second).sum(axis=1) >= 1.0 - tolerance).all())


def _probe_images() -> list[Image.Image]:
    """Pictures by integer arithmetic, not square, some shrunk and some enlarged by any preprocessing.

    So scaling, resampling, cropping, normalising and the order of channels all show.
    """
    y, x = np.mgrid[0:180, 0:240]
    gradient = np.stack((x, y, (x + y) // 2), axis=-1) % 256
    checks = np.stack(((x // 12 + y // 12) % 2 * 255, (x // 30) % 2 * 200, (y // 7) % 2 * 160), axis=-1)
    rings = ((x - 90) ** 2 + (y - 110) ** 2) // 97 % 256
    scrambled = np.stack((rings, rings * 7 % 256, 255 - rings), axis=-1)
    speckles = scrambled[40:58, 60:84] * (scrambled[70:88, 20:44] % 3)
    dots = checks[::30, ::24] ^ gradient[::30, ::24]
    pictures = (gradient, checks, scrambled, speckles, dots)
    return [Image.fromarray((picture % 256).astype(np.uint8)) for picture in pictures]


def batch_size_of(value: int) -> int:
    """The value; raises `OptionError` below 1."""
    if value < 1:
        raise OptionError(f"batch_size must be at least 1, got {value}")
    return value
