"""Encoding a memory's entries anew with another encoder."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rarvision.errors import EncoderMismatchError, MemoryStoreError
from rarvision.memory import LocalMemory
from rarvision.testing import FakeEncoder
from rarvision.types import Sample

ENCODER = FakeEncoder(dim=16)


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr("rarvision.memory.writing._SEAL", 8)
    monkeypatch.setattr("rarvision.memory.writing._MERGE", 3)


def picture(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8))


@pytest.fixture
def pictures(tmp_path):
    """A memory of images on disk and names."""
    samples = []
    for i in range(12):
        path = tmp_path / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        picture(i).save(path)
        samples.append(Sample(source=str(path), image=path, label=f"class {i % 3}"))
    with LocalMemory.create(tmp_path / "memory", encoder=ENCODER, thumbnails=64) as memory:
        memory.add(samples)
        memory.add_texts([f"class {i}" for i in range(3)], templates=["a {}.", "the {}."])
        memory.remove(ids=[5])
        yield memory


@pytest.mark.usefixtures("small_steps")
def test_reencoding_gives_what_the_other_encoder_would_have_given(pictures, tmp_path):
    other = FakeEncoder(dim=8, seed=3)
    done = []
    with LocalMemory.open(pictures.path) as reader:
        report = pictures.reencode(other, batch_size=4, metadata={"encoder": "the other"}, progress=done.append)
        assert (report.encoded, report.failed, report.published) == (14, 0, True)
        assert done[-1] == 14
        with pytest.raises(MemoryStoreError, match="open it again"):
            reader.nearest(np.eye(1, 16, dtype=np.float32), 1)
    with LocalMemory.create(tmp_path / "fresh", encoder=other) as fresh:
        fresh.add(
            Sample(source=e.source, image=tmp_path / "images" / e.source.rpartition("/")[2], label=e.category)
            for e in pictures.entries(modality="image")
        )
        fresh.add_texts([f"class {i}" for i in range(3)], templates=["a {}.", "the {}."])
        ours, theirs = ([e.id for e in m.entries()] for m in (pictures, fresh))
        np.testing.assert_allclose(pictures.vectors(ours), fresh.vectors(theirs), atol=1e-6)
    assert pictures.verify() == ()
    with LocalMemory.open(pictures.path) as again:
        assert (again.dim, again.encoder_fingerprint) == (8, other.fingerprint)
        assert again.metadata == {"encoder": "the other"}
        with pytest.raises(EncoderMismatchError):
            again.bind(ENCODER)
        again.bind(other)
        assert again.add_texts(["new"]).added == 1


def test_reencoding_that_stops_goes_on_and_serves_the_old_one_meanwhile(pictures):
    other, vectors = FakeEncoder(dim=8, seed=3), pictures.vectors([1, 2])
    seen = []

    def stop(count):
        seen.append(count)
        if count >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pictures.reencode(other, batch_size=4, progress=stop)
    assert (pictures.dim, pictures.encoder_fingerprint) == (16, ENCODER.fingerprint)
    np.testing.assert_array_equal(pictures.vectors([1, 2]), vectors)
    encoded = []
    real = FakeEncoder.encode_images

    def counted(self, images, **options):
        encoded.extend(image for image in images if image.size == (20, 24))  # not those of the encoder's probe
        return real(self, images, **options)

    try:
        FakeEncoder.encode_images = counted
        assert pictures.reencode(other, batch_size=4).published
    finally:
        FakeEncoder.encode_images = real
    assert 0 < len(encoded) <= 11 - 8 + 4, "one batch at most is encoded again"
    assert pictures.dim == 8


def test_images_that_are_gone_keep_the_old_encoder_until_it_is_decided(pictures, tmp_path):
    other = FakeEncoder(dim=8, seed=3)
    (tmp_path / "images" / "3.png").unlink()
    told = []
    report = pictures.reencode(other, on_error=lambda source, _: told.append(source))
    assert (report.failed, report.published) == (1, False)
    assert told == [report.failures[0][0]]
    assert told[0].endswith("3.png")
    assert pictures.dim == 16
    assert pictures.reencode(other, from_thumbnails=True).published
    assert pictures.verify() == ()
