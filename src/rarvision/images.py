"""Reading images safely: whatever the file is, an 8-bit RGB picture comes out, or an error that says what to do."""

from __future__ import annotations

import glob
import io
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rarvision.errors import ImageError, ImageTooLargeError, InputError, OptionError
from rarvision.types import Box

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "Picture", "iter_image_paths", "load_image", "load_picture", "thumbnail"]

MAX_PIXELS = 100_000_000
"""Limit of `load_image`, width times height in pixels, unless ``RARVISION_MAX_PIXELS`` in the environment differs."""

IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
"""What counts as an image inside a folder. A file that is named outright is judged by its content only."""

# Formats that Pillow renders by starting another program, or that hold no picture of their own.
_REFUSED_FORMATS = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"})
_WHITE = (255, 255, 255)
_SCALES = (8, 4, 2)
_ORIENTATION = 0x0112
_open_lock = threading.Lock()


@contextmanager
def _own_pixel_limit() -> Iterator[None]:
    """Lift Pillow's process-wide limit while a header is read: `load_image` applies the caller's own right after."""
    with _open_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def load_image(source: Path | str | bytes | Image.Image, *, max_pixels: int | None = None) -> Image.Image:
    """Read one image as 8-bit RGB.

    The content decides, not the name: a PNG called ``cat.jpg`` is read as the PNG that it is. EXIF orientation is
    applied; of an animation or a multi-page file the first frame is taken; transparency is laid on white; CMYK, grey,
    palette and 16-bit images are converted (16-bit values by their full range: 0..65535 to 0..255).

    Args:
        source: A path, the bytes of a file, or a PIL image (returned as it is when it is upright RGB already).
        max_pixels: Largest width times height that is decoded. Checked against the header, before any pixel is decoded.
            By default the environment variable ``RARVISION_MAX_PIXELS``, else `MAX_PIXELS`.

    Returns:
        A loaded PIL image of mode ``RGB``.

    Raises:
        ImageTooLargeError: It has more pixels than ``max_pixels``.
        ImageError: There is no such file, it is a folder, cannot be read, is empty, truncated, or not an image.
    """
    return load_picture(source, max_pixels=max_pixels).image


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """A decoded image, perhaps at a fraction of its stored size.

    Attributes:
        image: 8-bit RGB, upright.
        size: Width and height as stored, pixels, upright; a cut-out's own for a cut-out.
        box: Which part of ``image`` is the picture: left, upper, right, lower in its pixels. Fractions of a pixel
            occur, as the reduced image has whole pixels only.
    """

    image: Image.Image
    size: tuple[int, int]
    box: tuple[float, float, float, float]

    @classmethod
    def of(cls, image: Image.Image) -> Picture:
        """An image at its stored size."""
        return cls(image=image, size=image.size, box=(0, 0, *image.size))

    def resized(self, size: tuple[int, int], resample: int) -> Image.Image:
        """Resample to ``size`` pixels, as if from the stored size; the image itself where nothing changes."""
        if size == self.image.size and self.box == (0, 0, *size):
            return self.image
        return self.image.resize(size, resample, box=self.box)

    def cut(self, left: float, upper: float, right: float, lower: float) -> Picture:
        """The part between fractions of width and height, 0 to 1; at least one pixel of it."""
        x, y, right_end, lower_end = self.box
        width, height = right_end - x, lower_end - y
        box = (x + left * width, y + upper * height, x + right * width, y + lower * height)
        size = (round((right - left) * self.size[0]), round((lower - upper) * self.size[1]))
        return replace(self, size=(max(1, size[0]), max(1, size[1])), box=box)

    def cropped(self, box_xyxy: Box) -> Picture:
        """The part inside a box of stored pixels, as far as the picture goes; `ImageError` where that is nothing."""
        width, height = self.size
        left, right = (min(max(edge, 0.0), width) for edge in box_xyxy[::2])
        upper, lower = (min(max(edge, 0.0), height) for edge in box_xyxy[1::2])
        if left >= right or upper >= lower:
            raise ImageError(f"the box {box_xyxy} lies outside the image, which has {width} x {height} pixels")
        return self.cut(left / width, upper / height, right / width, lower / height)

    def mirrored(self) -> Picture:
        """Left and right exchanged."""
        image = self.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, upper, right, lower = self.box
        return replace(self, image=image, box=(image.width - right, upper, image.width - left, lower))

    def whole(self) -> Image.Image:
        """The picture alone, to whole pixels."""
        left, upper, right, lower = (round(edge) for edge in self.box)
        box = (left, upper, max(right, left + 1), max(lower, upper + 1))
        return self.image if box == (0, 0, *self.image.size) else self.image.crop(box)


def load_picture(
    source: Path | str | bytes | Image.Image,
    *,
    shortest: int | None = None,
    longest: int | None = None,
    max_pixels: int | None = None,
) -> Picture:
    """Read one image as `load_image` does, a JPEG perhaps at 1/2, 1/4 or 1/8 of its size, which is faster.

    Args:
        source: As for `load_image`.
        shortest: Pixels that the shorter side must keep; None decodes at full size.
        longest: Pixels that the longer side must keep.
        max_pixels: As for `load_image`; it is the stored size that counts.

    Raises:
        ImageTooLargeError: It has more pixels than ``max_pixels``.
        ImageError: It cannot be read.
    """
    max_pixels = _pixel_limit(max_pixels)
    keep = None if shortest is None else (shortest, longest or 0)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "the given PIL image"
        return _decode(source, name=name, max_pixels=max_pixels, keep=None)
    if isinstance(source, bytes):
        if not source:
            raise ImageError("the given image bytes are empty (0 bytes)")
        name = f"the given {len(source)} image bytes"
        return _open(io.BytesIO(source), name=name, max_pixels=max_pixels, keep=keep)
    path = Path(source)
    _check_regular_file(path, asked=str(source))
    try:
        with path.open("rb") as file:
            file.peek(1)  # waits for the disk here, outside the lock that reading the header takes
            return _open(file, name=str(path), max_pixels=max_pixels, keep=keep)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error


def _pixel_limit(given: int | None) -> int:
    if given is None:
        text = os.environ.get("RARVISION_MAX_PIXELS") or str(MAX_PIXELS)
        if not text.isdecimal() or int(text) < 1:
            raise OptionError(f"RARVISION_MAX_PIXELS must be a whole number of at least 1, got {text!r}")
        return int(text)
    if given < 1:
        raise OptionError(f"max_pixels must be at least 1, got {given}")
    return given


def _check_regular_file(path: Path, *, asked: str) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        hint = "; rarvision reads local files: download it first" if "://" in asked else ""
        raise ImageError(f"{asked}: no such file{hint}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise ImageError(f"{asked!r}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(
            f"{path}: is a folder, not an image; as a set of images it needs files ending in .jpg, .png, .webp, …"
        )
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path}: is not a regular file; save the image to one")
    if status.st_size == 0:
        raise ImageError(f"{path}: the file is empty (0 bytes); fetch or copy it again")


def _readable_formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in _REFUSED_FORMATS]


def _open(file: io.BytesIO | io.BufferedReader, *, name: str, max_pixels: int, keep: tuple[int, int] | None) -> Picture:
    try:
        with _own_pixel_limit():
            image = Image.open(file, formats=_readable_formats())
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image, or of a kind that Pillow cannot read; convert it to JPEG or PNG"
        ) from error
    except Exception as error:  # Pillow's plugins raise anything whatever on hostile headers
        raise ImageError(f"{name}: the image's header is damaged: {error}") from error
    with image:
        return _decode(image, name=name, max_pixels=max_pixels, keep=keep, ours=True)


def _decode(
    image: Image.Image, *, name: str, max_pixels: int, keep: tuple[int, int] | None, ours: bool = False
) -> Picture:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name}: {width} x {height} pixels are more than the limit of {max_pixels:,}; "
            "shrink the image, or raise the limit (max_pixels, --max-pixels)"
        )
    if width == 0 or height == 0:
        raise ImageError(f"{name}: the image has no pixels ({width} x {height})")
    try:
        scale = 1 if keep is None else _reduce(image, keep)
        image.load()
        turned = _to_rgb(_upright(image, ours=ours))
        return Picture.of(turned) if scale == 1 else _reduced(turned, (width, height), scale, _orientation(image))
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{name}: more pixels inside than its header says: {error}") from error
    except MemoryError as error:
        raise ImageTooLargeError(f"{name}: not enough memory for {width} x {height} pixels") from error
    except Exception as error:  # as above: a damaged body can raise anything
        raise ImageError(f"{name}: the image is truncated or damaged: {error}; fetch or copy it again") from error


def _reduce(image: Image.Image, keep: tuple[int, int]) -> int:
    """Have the decoder reduce a JPEG as far as ``keep`` (shorter, longer side) allows; returns by how much."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return 1
    short, long = sorted(image.size)
    for scale in _SCALES:
        if short >= scale * keep[0] and long >= scale * keep[1]:
            width = image.width
            drafted = image.draft(None, (image.width // scale, image.height // scale))
            return 1 if drafted is None else round(width / drafted[1][2])
    return 1


def _reduced(image: Image.Image, stored: tuple[int, int], scale: int, orientation: int) -> Picture:
    """An upright reduced image; the decoder rounds up to whole pixels at the right and at the bottom, as stored."""
    width, height = stored[::-1] if orientation >= 5 else stored
    right, lower = width / scale, height / scale
    left = image.width - right if orientation in (2, 3, 6, 7) else 0.0
    upper = image.height - lower if orientation in (3, 4, 7, 8) else 0.0
    return Picture(image=image, size=(width, height), box=(left, upper, left + right, upper + lower))


def _orientation(image: Image.Image) -> int:
    """As `_upright` understands it: 1 to 8, 1 where it says nothing or nothing that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - as in _upright
        return 1
    return int(value) if value in range(1, 9) else 1


def _upright(image: Image.Image, *, ours: bool) -> Image.Image:
    """Turned as its metadata say; with pixels of its own, unless the image is ``ours`` to give away."""
    if ours and _orientation(image) == 1:
        return image._new(image.im)  # noqa: SLF001 - the same pixels, without what else the file held
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - unreadable metadata must not cost a readable picture
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float64) / 257.0)
    if image.mode == "I":
        return _grey(_by_range(np.asarray(image).astype(np.float64), (255.0, 65535.0, 4294967295.0)))
    if image.mode == "F":
        return _grey(_by_range(np.asarray(image).astype(np.float64), (1.0, 255.0, 65535.0)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        premultiplied = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
        rgba = (image.convert(premultiplied) if premultiplied else image).convert("RGBA")
        flat = Image.new("RGB", rgba.size, _WHITE)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image.convert("RGB")


def _by_range(values: np.ndarray, ranges: tuple[float, ...]) -> np.ndarray:
    """Scale to 0..255 by the smallest customary full range that holds the largest value; negatives become black."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    peak = float(values.max())
    full = next((r for r in ranges if peak <= r), peak)
    return values * (255.0 / full)


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")


def thumbnail(image: Image.Image, size: int, *, quality: int = 88) -> bytes:
    """Shrink to fit ``size`` x ``size`` pixels (never enlarged, proportions kept) and encode as JPEG.

    Args:
        image: Any image that `load_image` returns.
        size: Longest side, pixels.
        quality: JPEG quality, 1 to 95.

    Returns:
        The bytes of a JPEG file.
    """
    if size < 1:
        raise OptionError(f"a thumbnail's size must be at least 1 pixel, got {size}")
    small = load_image(image, max_pixels=max(MAX_PIXELS, image.width * image.height))
    if max(small.size) > size:
        small = small.copy()
        small.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def iter_image_paths(inputs: Iterable[str | Path]) -> Iterator[Path]:
    """Expand files, folders and glob patterns into image paths, lazily and in a fixed order.

    A file is given out as it is, whatever its name. A folder is searched with all its subfolders, sorted, for the
    suffixes in `IMAGE_SUFFIXES`; hidden files and folders are left out, linked folders followed once. A pattern
    (``*``, ``?``, ``[…]``, ``**``) that is no existing name is expanded, sorted. What matches nothing (a missing
    file, an empty folder) is given out unchanged, so that `load_image` reports it beside the others.

    Raises:
        InputError: A folder cannot be listed.
    """
    for given in inputs:
        path = Path(given)
        # os.path answers False where pathlib raises: a name that is too long, or lies in a folder that is closed to us
        if os.path.isdir(path):  # noqa: PTH112
            yield from _or_itself(path, _walk(path))
        elif os.path.exists(path) or not glob.has_magic(str(given)):  # noqa: PTH110
            yield path
        else:
            yield from _or_itself(path, _expand(str(given)))


def _or_itself(path: Path, found: Iterator[Path]) -> Iterator[Path]:
    empty = True
    for item in found:
        empty = False
        yield item
    if empty:
        yield path


def _expand(pattern: str) -> Iterator[Path]:
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - Path.glob refuses absolute patterns
        path = Path(match)
        if os.path.isfile(path) and (path.suffix.lower() in IMAGE_SUFFIXES or not pattern.endswith("*")):  # noqa: PTH113
            yield path


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: the folder cannot be listed: {error.strerror}") from error

    seen: set[str] = set()
    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(here, name)
