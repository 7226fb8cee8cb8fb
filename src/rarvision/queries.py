"""What is to be recognised, on its way to the encoder and the ranker: opened, regions cut out, put into batches."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast, get_args

from PIL import Image

from rarvision.errors import InputError, OptionError, RarvisionError
from rarvision.regions import CropRule, Scene, iter_made
from rarvision.types import Sample

__all__ = ["Query", "RecognitionFailure", "Recognizable", "RegionView", "check_region_view", "iter_queries"]

Recognizable = Sample | Path | str | bytes | Image.Image
"""What can be recognised: a sample, a path, the bytes of an image file, or a PIL image."""

RegionView = Literal["crop", "image", "both"]
"""What a ranker sees of a region: its crop; the whole image with the box drawn on it; or both side by side in one
picture, the crop on the left."""

_PLAIN: Final = CropRule(scale=1.0, shape="box", padding="clip", blur=None)
_WHOLE_SIDE: Final = 1_024  # pixels that the whole image's longer side keeps beside a box
_READERS: Final = 4
_GAP: Final = 8
_WIDEST: Final = 2.0  # heights of the picture that a crop beside the whole image is wide at most
_GAP_COLOUR: Final = (255, 255, 255)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecognitionFailure:
    """An image that could not be recognised, and why; the others are not affected.

    Attributes:
        source: The sample's source.
        error: What went wrong; its class tells the kind.
    """

    source: str
    error: RarvisionError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Query:
    """An image, or a region of one, that is ready.

    Attributes:
        source: The sample's source.
        image: For the encoder.
        view: For the ranker.
    """

    source: str
    image: Image.Image
    view: Image.Image

    @property
    def pixels(self) -> int:
        """How many are held."""
        own = self.image.width * self.image.height
        return own if self.view is self.image else own + self.view.width * self.view.height


def check_region_view(view: str) -> RegionView:
    """A view as it is, or `OptionError`."""
    if view not in get_args(RegionView):
        raise OptionError(f"region_view must be one of {', '.join(get_args(RegionView))}, got {view!r}")
    return cast("RegionView", view)


def iter_queries(
    given: Iterable[Recognizable], crop: CropRule | None, view: RegionView, *, ahead: int
) -> Generator[Query | RecognitionFailure]:
    """Open images in a few threads, in order; boxes of one image that follow one another share its decoding.

    Args:
        given: Read as they are needed.
        crop: How a sample with a box becomes a crop; None for nothing but the box. Whole images stay as they are.
        view: What the ranker sees of a sample with a box.
        ahead: How many are ready at most.

    Raises:
        InputError: One is no image, path or sample.
    """

    def make(scene: Scene, sample: Sample) -> Query:
        if sample.box_xyxy is None:
            return Query(source=sample.source, image=scene.image, view=scene.image)
        image = scene.crop(sample.box_xyxy, name=sample.source).image
        return Query(source=sample.source, image=image, view=_view(scene, sample, image, view))

    samples = (_sample(number, each) for number, each in enumerate(given))
    with closing(iter_made(samples, crop or _PLAIN, make, threads=_READERS, ahead=ahead, together=1)) as every:
        for sample, made in every:
            yield made if isinstance(made, Query) else RecognitionFailure(source=sample.source, error=made)


def _sample(number: int, given: Recognizable) -> Sample:
    if isinstance(given, Sample):
        return given
    if isinstance(given, Path | str):
        return Sample(source=str(given), image=Path(given))
    if isinstance(given, bytes | Image.Image):
        source = str(getattr(given, "filename", "") or f"image {number}")
        return Sample(source=source, image=cast("Image.Image", given))  # bytes are opened as well
    raise InputError(f"expected a Sample, a path, bytes or a PIL image, got {type(given).__name__}: {given!r:.80}")


def _view(scene: Scene, sample: Sample, crop: Image.Image, view: RegionView) -> Image.Image:
    if view == "crop" or sample.box_xyxy is None:
        return crop
    whole = scene.marked(sample.box_xyxy, keep_side=_WHOLE_SIDE, name=sample.source)
    if view == "image":
        return whole
    height = whole.height
    share = min(height / crop.height, _WIDEST * height / crop.width)
    size = max(1, round(crop.width * share)), max(1, round(crop.height * share))
    left = crop.resize(size, Image.Resampling.BICUBIC)
    both = Image.new("RGB", (left.width + _GAP + whole.width, height), _GAP_COLOUR)
    both.paste(left, (0, (height - left.height) // 2))
    both.paste(whole, (left.width + _GAP, 0))
    return both
