"""Reading images: every kind of bad or odd file, built here."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rarvision.errors import ImageError, ImageTooLargeError, InputError, OptionError
from rarvision.images import MAX_PIXELS, Picture, iter_image_paths, load_image, load_picture, thumbnail

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(size=(64, 48)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def near(actual, expected, tolerance=6):
    return all(abs(a - e) <= tolerance for a, e in zip(actual, expected, strict=True))


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_plain_images_of_each_kind_are_rgb(tmp_path, kind):
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(encoded(Image.new("RGB", (20, 10), (200, 30, 60)), kind))
    image = load_image(path)
    assert image.mode == "RGB"
    assert image.size == (20, 10)
    assert near(image.getpixel((10, 5)), (200, 30, 60), 12)
    assert np.array_equal(np.asarray(load_image(str(path))), np.asarray(load_image(path.read_bytes())))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_truncated(tmp_path, kind, keep):
    whole = encoded(noise(), kind)
    path = tmp_path / "cut.img"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ImageError, match=r"cut\.img"):
        load_image(path)


def test_zero_bytes(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(ImageError, match=r"empty\.jpg.*0 bytes"):
        load_image(path)
    with pytest.raises(ImageError, match="0 bytes"):
        load_image(b"")


def test_wrong_extension_the_content_decides(tmp_path):
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(encoded(Image.new("RGB", (3, 3), RED)))
    assert load_image(path).getpixel((1, 1)) == RED
    text = tmp_path / "really-a-text.jpg"
    text.write_text("no image here")
    with pytest.raises(ImageError, match="not an image"):
        load_image(text)


def test_animated_gives_the_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        whole = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert near(load_image(whole).getpixel((4, 4)), RED), kind


def test_cmyk():
    cyan_free = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert near(load_image(encoded(cyan_free, "JPEG")).getpixel((4, 4)), RED)
    assert near(load_image(encoded(cyan_free, "TIFF")).getpixel((4, 4)), RED)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_is_scaled_by_its_full_range(kind):
    grey = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    pixels = np.asarray(load_image(encoded(grey, kind)))[0, :, 0]
    assert pixels.tolist() == [0, 128, 255]


def test_32_bit_and_float_grey():
    wide = load_image(Image.fromarray(np.array([[0, 65535]], dtype=np.int32)))
    assert [wide.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), WHITE]
    unit = load_image(Image.fromarray(np.array([[-1.0, 0.5, 1.0, np.nan]], dtype=np.float32)))
    assert [unit.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 0]


def test_palette_with_transparency_lies_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    one = load_image(encoded(palette, "PNG", transparency=1))
    assert [one.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]
    several = load_image(encoded(palette, "PNG", transparency=bytes([0, 255])))
    assert [several.getpixel((x, 0)) for x in (0, 1)] == [WHITE, GREEN]
    assert load_image(encoded(palette, "GIF", transparency=1)).getpixel((1, 0)) == WHITE


def test_alpha_lies_on_white():
    assert near(load_image(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))).getpixel((0, 0)), (127, 127, 127), 1)
    assert load_image(encoded(Image.new("LA", (1, 1), (0, 0)))).getpixel((0, 0)) == WHITE
    keyed = encoded(Image.new("RGB", (1, 1), BLUE), transparency=BLUE)
    assert load_image(keyed).getpixel((0, 0)) == WHITE
    assert load_image(Image.new("RGBa", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["1", "L", "LAB", "HSV", "YCbCr"])
def test_other_modes(mode):
    assert near(load_image(Image.new("RGB", (2, 2), WHITE).convert(mode)).getpixel((0, 0)), WHITE, 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_honoured(orientation):
    upright = Image.new("RGB", (32, 16), WHITE)
    upright.paste(RED, (0, 0, 8, 8))  # top left
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0))
    assert image.size == (32, 16)
    assert near(image.getpixel((3, 3)), RED, 20)
    assert near(image.getpixel((28, 12)), WHITE, 20)
    assert load_image(image).size == (32, 16)  # not turned twice


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_does_not_cost_the_image():
    whole = encoded(Image.new("RGB", (8, 8), RED), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert load_image(whole).size == (8, 8)


def test_one_pixel():
    assert load_image(encoded(Image.new("RGB", (1, 1), RED))).getpixel((0, 0)) == RED


def test_too_large_is_refused_before_decoding(monkeypatch):
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self.size))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageTooLargeError, match=r"20000 x 20000.*100,000,000.*--max-pixels"):
        load_image(png_header(20_000, 20_000))
    assert decoded == []
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_limit_can_be_set():
    claimed = png_header(20_000, 20_000)
    with pytest.raises(ImageTooLargeError):
        load_image(claimed, max_pixels=399_999_999)
    image = Image.new("L", (10_500, 10_000))
    assert image.width * image.height > MAX_PIXELS
    whole = encoded(image, compress_level=1)
    with pytest.raises(ImageTooLargeError):
        load_image(whole)
    assert load_image(whole, max_pixels=105_000_000).size == (10_500, 10_000)
    with pytest.raises(ImageTooLargeError):
        load_image(Image.new("RGB", (11, 10)), max_pixels=109)
    with pytest.raises(OptionError, match="max_pixels"):
        load_image(claimed, max_pixels=0)


def test_the_limit_can_be_set_in_the_environment(monkeypatch):
    image = Image.new("RGB", (11, 10))
    monkeypatch.setenv("RARVISION_MAX_PIXELS", "109")
    with pytest.raises(ImageTooLargeError, match="limit of 109"):
        load_image(image)
    assert load_image(image, max_pixels=110).size == (11, 10)
    monkeypatch.setenv("RARVISION_MAX_PIXELS", "many")
    with pytest.raises(OptionError, match="RARVISION_MAX_PIXELS"):
        load_image(image)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="download it first"):
        load_image("https://example.org/cat.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        load_image("nul\0byte.jpg")
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(tmp_path / ("x" * 5000))
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="regular file"):
        load_image(tmp_path / "pipe.jpg")


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(Image.new("RGB", (2, 2))))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything: let the system refuse by other means
        monkeypatch.setattr(type(path), "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(ImageError, match=r"secret\.png: cannot be read: (denied|Permission denied)"):
        load_image(path)


@pytest.mark.parametrize("name", ["a b.png", "naïve 図.png", "it's.png", 'say "hi".png', "[x].png", "two\nlines.png"])
def test_odd_file_names(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(encoded(Image.new("RGB", (2, 2), RED)))
    assert load_image(path).size == (2, 2)
    assert list(iter_image_paths([str(path)])) == [path]
    assert list(iter_image_paths([tmp_path])) == [path]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]), st.integers(0, 400))
def test_damaged_bytes_give_an_image_or_an_image_error(junk, kind, position):
    whole = encoded(noise((16, 16)), kind)
    damaged = whole[:position] + junk + whole[position + len(junk) :]
    try:
        image = load_image(damaged, max_pixels=1_000_000)
    except ImageError:
        return
    assert image.mode == "RGB"


def test_programs_are_not_started_for_an_image():
    with pytest.raises(ImageError, match="not an image"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


def test_paths_of_a_folder_are_sorted_and_recursive(tmp_path):
    names = ["b/2.PNG", "b/1.jpg", "a.webp", "c/deep/x.gif", "notes.txt", ".hidden.png", ".git/y.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in iter_image_paths([tmp_path])]
    assert found == ["a.webp", "b/1.jpg", "b/2.PNG", "c/deep/x.gif"]


def test_patterns(tmp_path):
    for name in ("x2.png", "x1.png", "y.png", "sub/z.png", "x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    base = str(tmp_path)
    assert [path.name for path in iter_image_paths([f"{base}/x*"])] == ["x1.png", "x2.png"]
    assert [path.name for path in iter_image_paths([f"{base}/**/*.png"])] == ["z.png", "x1.png", "x2.png", "y.png"]
    assert [path.name for path in iter_image_paths([f"{base}/*.txt"])] == ["x.txt"]  # asked for outright


def test_what_matches_nothing_is_given_out_to_be_reported(tmp_path):
    given = [tmp_path / "missing.png", tmp_path / "no*.png", tmp_path]
    assert list(iter_image_paths(given)) == given


def test_names_that_the_system_refuses_are_given_out_to_be_reported(tmp_path):
    given = ["x" * 5000, "nul\0.png", str(tmp_path / "file" / "x.png")]
    (tmp_path / "file").touch()
    assert list(iter_image_paths(given)) == [Path(name) for name in given]


def test_a_link_that_leads_back_ends(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert [path.name for path in iter_image_paths([tmp_path])] == ["1.png"]


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="cannot be listed"):
        list(iter_image_paths([tmp_path]))


def test_thumbnail():
    whole = thumbnail(noise((300, 100)), 60)
    small = Image.open(io.BytesIO(whole))
    assert small.format == "JPEG"
    assert small.size == (60, 20)
    assert Image.open(io.BytesIO(thumbnail(noise((10, 20)), 60))).size == (10, 20)
    assert Image.open(io.BytesIO(thumbnail(Image.new("RGBA", (9, 9)), 5))).mode == "RGB"
    original = noise((300, 100))
    thumbnail(original, 10)
    assert original.size == (300, 100)
    with pytest.raises(OptionError, match="thumbnail"):
        thumbnail(original, 0)


def smooth(size):
    """A picture whose reduction is known: planes of colour that change slowly."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    return Image.fromarray(np.stack((255 * x, 255 * y, 127 + 120 * np.sin(5 * x + 3 * y)), axis=-1).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(500, 375), (333, 401)])
def test_a_reduced_jpeg_is_the_same_picture(orientation, size):
    """Also where its sides are no multiple of the reduction, at whichever edge that shows."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    whole = encoded(smooth(size), "JPEG", exif=exif, quality=95)
    full = load_image(whole)
    for shortest, scale in ((160, 2), (80, 4), (40, 8)):
        picture = load_picture(whole, shortest=shortest)
        assert picture.size == full.size
        assert picture.image.width == -(-full.width // scale)
        target = (full.width // 20, full.height // 20)
        expected = np.asarray(full.resize(target, Image.Resampling.BICUBIC), dtype=float)
        found = np.asarray(picture.resized(target, Image.Resampling.BICUBIC), dtype=float)
        assert np.abs(found - expected).mean() < 0.8, (scale, np.abs(found - expected).mean())
        ignoring = np.asarray(picture.image.resize(target, Image.Resampling.BICUBIC), dtype=float)
        if scale == 8:
            assert np.abs(found - expected).mean() < np.abs(ignoring - expected).mean()


def test_a_jpeg_is_reduced_only_as_far_as_it_may_be():
    whole = encoded(smooth((500, 375)), "JPEG")
    widths = {
        (s, n): load_picture(whole, shortest=s, longest=n).image.width for s in (10, 188, 376) for n in (None, 300)
    }
    assert widths == {
        (10, None): 63,
        (10, 300): 500,
        (188, None): 500,
        (188, 300): 500,
        (376, None): 500,
        (376, 300): 500,
    }
    assert load_picture(whole, shortest=187).image.width == 250
    assert load_picture(whole).image.size == (500, 375)
    for kind in ("PNG", "WEBP", "TIFF"):
        assert load_picture(encoded(smooth((500, 375)), kind), shortest=10).image.size == (500, 375)
    cmyk = encoded(Image.new("CMYK", (500, 375), (0, 255, 255, 0)), "JPEG")
    picture = load_picture(cmyk, shortest=10)
    assert near(picture.image.getpixel((4, 4)), RED)
    grey = load_picture(encoded(smooth((500, 375)).convert("L"), "JPEG"), shortest=10)
    assert (grey.image.mode, grey.image.size) == ("RGB", (63, 47))


def test_the_pixel_limit_is_about_the_stored_size():
    whole = encoded(smooth((500, 375)), "JPEG")
    with pytest.raises(ImageTooLargeError, match="500 x 375"):
        load_picture(whole, shortest=10, max_pixels=500 * 375 - 1)
    for keep in (0.02, 0.5):
        with pytest.raises(ImageError):
            load_picture(whole[: int(len(whole) * keep)], shortest=10)


def test_parts_of_a_picture():
    image = smooth((80, 40))
    picture = Picture.of(image)
    assert picture.whole() is image
    assert picture.resized((80, 40), Image.Resampling.BICUBIC) is image
    part = picture.cut(0.25, 0.5, 1.0, 1.0)
    assert (part.size, part.box) == ((60, 20), (20, 20, 80, 40))
    np.testing.assert_array_equal(np.asarray(part.whole()), np.asarray(image)[20:, 20:])
    np.testing.assert_array_equal(np.asarray(part.mirrored().whole()), np.asarray(image)[20:, 20:][:, ::-1])
    assert part.mirrored().mirrored().box == part.box
    sliver = Picture.of(image.crop((0, 0, 1, 1))).cut(0.2, 0.2, 1, 1)
    assert sliver.whole().size == sliver.size == (1, 1)
