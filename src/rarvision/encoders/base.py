"""Images and texts become unit vectors: the interface, batching, decoding and checks."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from PIL import Image

from rarvision.encoders.templates import check_templates
from rarvision.encoders.views import Views, check_views, smallest_view, views_of
from rarvision.errors import EncoderError, ImageError, OptionError
from rarvision.images import Picture, load_picture
from rarvision.workers import chunked_map, ordered_map, worker_pool

__all__ = [
    "Encoder",
    "Prepared",
    "batch_size_of",
    "ordered_map",
    "probe_matches",
    "same_encoder",
    "worker_pool",
]

ImageSource = Path | str | bytes | Image.Image
"""Whatever `rarvision.images.load_image` opens."""

_MARGIN = 3  # a JPEG keeps thrice the side that the model sees: exact to 0.9999 of cosine where twice gives 0.999
_PROBE_TEXTS = ("a photo of a small red bird", "42 striped fish")

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An image as the model takes it, once for each view; made by `Encoder.prepare`, for `Encoder.encode_prepared`."""

    inputs: tuple[Any, ...]


class Encoder(abc.ABC):
    """Maps images and texts into one space of unit vectors, compared by cosine.

    Implementers write `name`, `dim`, `fingerprint`, `_encode_images` and `_encode_texts`; batching, decoding,
    normalising and checks live here. Whoever wants speed also writes `_prepare` and `input_side`.
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
    def _encode_images(self, images: list[Any]) -> Float[np.ndarray, "n dim"]:
        """One batch of RGB PIL images (or of what `_prepare` returns); any float dtype, normalised or not."""

    @abc.abstractmethod
    def _encode_texts(self, texts: list[str]) -> Float[np.ndarray, "n dim"]:
        """One batch of texts; any float dtype, normalised or not."""

    @property
    def revision(self) -> str | None:
        """The revision of a hub repository that `name` alone does not say."""
        return None

    @property
    def precision(self) -> str:
        """What the model computes in; part of what a kept vector belongs to, as the fingerprint does not tell it."""
        return "float32"

    @property
    def batch_size(self) -> int:
        """Images or texts in one forward pass, unless the caller says otherwise."""
        return 32

    @property
    def input_side(self) -> int | None:
        """Shorter side of what the model sees, pixels: a larger JPEG may be decoded at a fraction of its size.

        None where images have to come at their full size.
        """
        return None

    @property
    def overlaps(self) -> bool:
        """Whether the next images are decoded while the model computes: not where both need the same processor."""
        return True

    def _prepare(self, picture: Picture) -> Any:
        """One element of what `_encode_images` gets; called by several threads at once."""
        return picture.whole()

    def encode_images(
        self,
        images: Sequence[ImageSource],
        *,
        batch_size: int | None = None,
        views: Views = "whole",
        on_error: Callable[[int, ImageError], None] | None = None,
    ) -> Float[np.ndarray, "n dim"]:
        """Encode images; they are decoded and made ready for the model in a few threads.

        A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where three times `input_side` is left; its vector differs from
        that of the full size by less than 0.001 of cosine (measured in ``docs/benchmarks.md``).

        Args:
            images: Paths, encoded bytes or PIL images.
            batch_size: Images in one forward pass; the encoder's own by default.
            views: What is encoded of each image; the mean of several views' vectors is normalised. The cost grows with
                their number: see `rarvision.encoders.views.Views`.
            on_error: Called with the position and the error of an image that cannot be read; its row is NaN, which
                no search accepts, and the other images are not affected. Without it the error is raised.

        Returns:
            float32 unit vectors, one row an image.

        Raises:
            ImageError: An image cannot be read, and there is no ``on_error``.
            EncoderError: The model returned something else than a finite vector an image.
            OptionError: ``batch_size`` or ``views`` is none.
        """
        size = batch_size_of(self.batch_size if batch_size is None else batch_size)
        chosen = check_views(views)
        vectors = np.full((len(images), self.dim), np.nan, dtype=np.float32)

        def decode(item: tuple[int, ImageSource]) -> tuple[int, Prepared | ImageError]:
            try:
                return item[0], self.prepare(item[1], views=chosen)
            except ImageError as error:
                return item[0], error

        with worker_pool() as pool:
            positions: list[int] = []
            batch: list[Prepared] = []
            for position, prepared in self.map_ahead(decode, enumerate(images), pool=pool, size=size):
                if isinstance(prepared, ImageError):
                    if on_error is None:
                        raise prepared
                    on_error(position, prepared)
                    continue
                positions.append(position)
                batch.append(prepared)
                if len(batch) == size:
                    vectors[positions] = self.encode_prepared(batch, batch_size=size)
                    positions, batch = [], []
            if batch:
                vectors[positions] = self.encode_prepared(batch, batch_size=size)
        return vectors

    def map_ahead(
        self, function: Callable[[_In], _Out], items: Iterable[_In], *, pool: ThreadPoolExecutor, size: int
    ) -> Iterator[_Out]:
        """Map in a pool, in order, as far ahead of the model as `overlaps` allows; ``size`` is the batch's."""
        if self.overlaps:
            return ordered_map(function, items, pool=pool, ahead=2 * size)
        return chunked_map(function, items, pool=pool, size=size)

    def load(self, image: ImageSource, *, longest: int | None = None, views: Views = "whole") -> Picture:
        """Decode an image no larger than this encoder needs it, and ``longest`` pixels on its longer side.

        Raises:
            ImageError: It cannot be read.
        """
        side = None if self.input_side is None else round(_MARGIN * self.input_side / smallest_view(views))
        return load_picture(image, shortest=side, longest=longest)

    def prepare(self, image: ImageSource | Picture, *, views: Views = "whole") -> Prepared:
        """Decode an image and make it ready for the model; may be called by several threads at once.

        Raises:
            ImageError: It cannot be read.
        """
        picture = image if isinstance(image, Picture) else self.load(image, views=views)
        return Prepared(tuple(self._prepare(view) for view in views_of(picture, views)))

    def encode_prepared(
        self, prepared: Sequence[Prepared], *, batch_size: int | None = None
    ) -> Float[np.ndarray, "n dim"]:
        """Encode what `prepare` made; with several views, the normalised mean of their normalised vectors.

        Args:
            prepared: All with equally many views.
            batch_size: Views in one forward pass; the encoder's own by default.

        Returns:
            float32 unit vectors, one row an image.

        Raises:
            EncoderError: The model returned something else than a finite vector a view.
        """
        size = batch_size_of(self.batch_size if batch_size is None else batch_size)
        inputs = [view for image in prepared for view in image.inputs]
        vectors = np.empty((len(inputs), self.dim), dtype=np.float32)
        for start in range(0, len(inputs), size):
            batch = inputs[start : start + size]
            vectors[start : start + len(batch)] = self._unit(self._encode_images(batch), len(batch))
        if len(inputs) == len(prepared):
            return vectors
        return self._unit(vectors.reshape(len(prepared), -1, self.dim).mean(axis=1), len(prepared))

    def encode_texts(
        self, texts: Sequence[str], *, templates: str | Sequence[str] = ("{}",), batch_size: int | None = None
    ) -> Float[np.ndarray, "n dim"]:
        """Encode texts; with several templates, the normalised mean of the normalised vectors.

        Args:
            texts: Names or sentences. A text that occurs twice is encoded once.
            templates: Each holds ``{}``, which the text replaces, or is the name of a set: see `TEMPLATE_SETS`.
            batch_size: Texts in one forward pass; the encoder's own by default.

        Returns:
            float32 unit vectors, one row a text.

        Raises:
            OptionError: A template without ``{}`` that names no set.
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
        prepared = [self.prepare(Picture.of(image)) for image in _probe_images()]
        return np.concatenate((self.encode_prepared(prepared), self.encode_texts(_PROBE_TEXTS)))

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
