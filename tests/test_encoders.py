"""Encoders: the contract, agreement with plain transformers calls, fingerprints, bad checkpoints, bad images."""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel
from transformers.utils import logging

from rarvision.encoders import Encoder, TransformersEncoder, ordered_map, same_encoder, worker_pool
from rarvision.encoders.pixels import PixelPlan
from rarvision.encoders.views import views_of
from rarvision.errors import EncoderError, ImageError, OptionError
from rarvision.images import Picture
from rarvision.memory import LocalMemory
from rarvision.testing import FakeEncoder, check_encoder
from rarvision.types import Sample
from rarvision.workers import chunked_map
from tiny_encoders import tiny_clip, tiny_siglip, tiny_siglip2

BUILDERS = {"clip": tiny_clip, "siglip": tiny_siglip, "siglip2": tiny_siglip2}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: build(folder / family) for family, build in BUILDERS.items()}


@pytest.fixture
def clip_copy(checkpoints, tmp_path):
    return shutil.copytree(checkpoints["clip"], tmp_path / "copy")


def pictures(count=5):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (40 + 9 * i, 70, 3), dtype=np.uint8)) for i in range(count)]


def change_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("family", BUILDERS)
def test_contract(checkpoints, family):
    check_encoder(TransformersEncoder(checkpoints[family], device="cpu"))


def test_the_fake_meets_the_contract_and_knows_colours():
    encoder = FakeEncoder()
    check_encoder(encoder)
    images = encoder.encode_images([Image.new("RGB", (9, 9), colour) for colour in ("red", "navy", "yellow")])
    texts = encoder.encode_texts(["red", "navy", "yellow", "something else"])
    assert (images @ texts.T).argmax(axis=1).tolist() == [0, 1, 2]
    assert not same_encoder(encoder, FakeEncoder(seed=1))


@pytest.mark.parametrize("family", BUILDERS)
def test_equals_plain_transformers(checkpoints, family):
    folder = checkpoints[family]
    encoder = TransformersEncoder(folder, device="cpu")
    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images, texts = pictures(), ["a small red bird", "owl", "word " * 40]
    padding = {"padding": True} if family == "clip" else {"padding": "max_length"}
    length = 24 if family == "clip" else 16
    with torch.no_grad():
        seen = model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
        tokens = tokenizer(texts, truncation=True, max_length=length, return_tensors="pt", **padding)
        read = (
            model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            if (family == "clip")
            else model.get_text_features(input_ids=tokens["input_ids"])
        )
    for ours, theirs in (
        (encoder.encode_images(images, batch_size=2), seen),
        (encoder.encode_texts(texts), read.pooler_output),
    ):
        expected = torch.nn.functional.normalize(theirs, dim=1).numpy()
        np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("family", BUILDERS)
def test_the_pixels_do_not_depend_on_torchvision(checkpoints, family, monkeypatch):
    asked = []
    real = AutoImageProcessor.from_pretrained

    def spy(*arguments, **options):
        asked.append(options.get("backend"))
        return real(*arguments, **options)

    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", spy)
    processor = TransformersEncoder(checkpoints[family])._processor
    assert type(processor).__name__.endswith("Pil")
    assert asked == ["pil"], "by default the other backend is chosen where torchvision is installed"


def test_loading_shows_no_bar_but_those_of_downloads(checkpoints, monkeypatch, capsys):
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    hidden = []
    real = CLIPModel.from_pretrained

    def spy(*arguments, **options):
        hidden.append(are_progress_bars_disabled())
        return real(*arguments, **options)

    monkeypatch.setattr(CLIPModel, "from_pretrained", spy)
    enable_progress_bars()
    logging.enable_progress_bar()
    TransformersEncoder(checkpoints["clip"])
    assert (capsys.readouterr().err, hidden) == ("", [False])
    real(checkpoints["clip"])
    assert "Loading weights" in capsys.readouterr().err, "as before, for whoever else loads models"


def test_the_probe_is_not_a_users_image(checkpoints, monkeypatch):
    encoder = TransformersEncoder(checkpoints["clip"], batch_size=2)
    before = encoder.probe()
    monkeypatch.setenv("RARVISION_MAX_PIXELS", "1000")
    np.testing.assert_array_equal(encoder.probe(), before)


def test_texts_of_siglip_do_not_depend_on_case_or_on_their_neighbours(checkpoints):
    encoder = TransformersEncoder(checkpoints["siglip"])
    lower, upper = encoder.encode_texts(["barn owl", "Barn OWL"])
    np.testing.assert_array_equal(lower, upper)


def test_fingerprint_is_of_the_content(checkpoints, clip_copy):
    first = TransformersEncoder(checkpoints["clip"])
    again = TransformersEncoder(str(clip_copy), batch_size=3, dtype="bfloat16")
    assert first.fingerprint == again.fingerprint
    assert len({TransformersEncoder(folder).fingerprint for folder in checkpoints.values()}) == 3


def test_fingerprint_survives_rewriting_the_same_weights(clip_copy):
    before = TransformersEncoder(clip_copy).fingerprint
    weights = load_file(clip_copy / "model.safetensors")
    half = {name: tensor.half().float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(half, clip_copy / "model.safetensors", metadata={"format": "pt"})
    rounded = TransformersEncoder(clip_copy)
    save_file({name: tensor.half() for name, tensor in half.items()}, clip_copy / "model.safetensors", {"format": "pt"})
    assert rounded.fingerprint == TransformersEncoder(clip_copy).fingerprint, "stored in half precision, same values"
    assert rounded.fingerprint != before, "rounded weights are other weights"
    model = AutoModel.from_pretrained(clip_copy, dtype="float32")
    model.save_pretrained(clip_copy, max_shard_size="20KB")
    (clip_copy / "model.safetensors").unlink()
    assert len(list(clip_copy.glob("model-*.safetensors"))) > 1
    assert rounded.fingerprint == TransformersEncoder(clip_copy).fingerprint, "split into several files"


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["image_processor"].update(image_mean=[0.5, 0.5, 0.5]),
        lambda values: values["image_processor"].update(resample=2),
        lambda values: values["image_processor"].update(size={"shortest_edge": 40}),
    ],
    ids=["mean", "resampling", "size"],
)
def test_fingerprint_knows_the_preprocessing(clip_copy, change):
    before = TransformersEncoder(clip_copy)
    change_json(clip_copy / "processor_config.json", change)
    after = TransformersEncoder(clip_copy)
    assert before.fingerprint != after.fingerprint
    assert not same_encoder(before, after)


def test_fingerprint_knows_weights_and_vocabulary(clip_copy, tmp_path):
    before = TransformersEncoder(clip_copy)
    other = tiny_clip(tmp_path / "other", seed=1)
    assert before.fingerprint != TransformersEncoder(other).fingerprint
    assert not same_encoder(before, TransformersEncoder(other))

    def swap(values):
        vocabulary = values["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    change_json(clip_copy / "tokenizer.json", swap)
    assert before.fingerprint != TransformersEncoder(clip_copy).fingerprint


def test_same_encoder_tolerates_rounded_weights(checkpoints, clip_copy):
    weights = load_file(clip_copy / "model.safetensors")
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(half, clip_copy / "model.safetensors", {"format": "pt"})
    first, rounded = TransformersEncoder(checkpoints["clip"]), TransformersEncoder(clip_copy)
    assert first.fingerprint != rounded.fingerprint
    assert same_encoder(first, rounded)
    assert not same_encoder(first, rounded, tolerance=-1.0)


def test_what_is_no_encoder_is_refused_with_advice(clip_copy, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match=r"no config\.json"):
        TransformersEncoder(tmp_path / "empty")
    with pytest.raises(EncoderError, match=r"no model folder at .*missing"):
        TransformersEncoder(tmp_path / "missing")
    with pytest.raises(EncoderError, match="give its folder instead"):
        TransformersEncoder("some-one/some-model")
    (clip_copy / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"must hold config\.json, model\.safetensors"):
        TransformersEncoder(clip_copy)
    change_json(clip_copy / "config.json", lambda values: values.update(model_type="bert"))
    with pytest.raises(EncoderError, match=r"'bert' model.*clip, siglip, siglip2"):
        TransformersEncoder(clip_copy)
    (clip_copy / "config.json").write_text("{ not json")
    with pytest.raises(EncoderError, match="cannot load"):
        TransformersEncoder(clip_copy)


def test_the_home_folder_is_found(checkpoints, monkeypatch):
    """Also where what is opened is not the working folder's: memories remember the encoder by its name."""
    monkeypatch.setenv("HOME", str(checkpoints["clip"].parent))
    monkeypatch.setenv("USERPROFILE", str(checkpoints["clip"].parent))
    for given in ("~/clip", Path("~/clip")):
        encoder = TransformersEncoder(given)
        assert encoder.name == str(checkpoints["clip"])
        assert encoder.fingerprint == TransformersEncoder(checkpoints["clip"]).fingerprint
    with pytest.raises(EncoderError, match=r"no model folder at /.*/nothing; give a folder"):
        TransformersEncoder("~/nothing")
    with pytest.raises(EncoderError, match=r"no model folder at ~nobody-of-that-name/x"):
        TransformersEncoder("~nobody-of-that-name/x")


def test_a_pickled_checkpoint_is_refused(clip_copy):
    weights = load_file(clip_copy / "model.safetensors")
    (clip_copy / "model.safetensors").unlink()
    torch.save(weights, clip_copy / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="safetensors"):
        TransformersEncoder(clip_copy)


def test_options_are_checked(checkpoints):
    with pytest.raises(OptionError, match="dtype"):
        TransformersEncoder(checkpoints["clip"], dtype="float8")
    with pytest.raises(OptionError, match="device"):
        TransformersEncoder(checkpoints["clip"], device="gpu")
    with pytest.raises(EncoderError, match="cannot run on device 'cuda:99'"):
        TransformersEncoder(checkpoints["clip"], device="cuda:99")
    with pytest.raises(OptionError, match="batch_size"):
        TransformersEncoder(checkpoints["clip"], batch_size=0)
    encoder = FakeEncoder()
    with pytest.raises(OptionError, match=r"field \{\}"):
        encoder.encode_texts(["a"], templates=["a photo"])
    with pytest.raises(OptionError, match="put it in a list"):
        encoder.encode_texts(["a"], templates="a photo of {}")
    with pytest.raises(OptionError, match=r"field \{\}"):
        encoder.encode_texts(["a"], templates=[])


class Odd(Encoder):
    """Returns whatever it was given."""

    name, dim, fingerprint = "odd", 3, "odd:1"

    def __init__(self, vectors=None):
        self.vectors = vectors
        self.batches = []

    def _encode_images(self, images):
        self.batches.append(len(images))
        return np.ones((len(images), 3)) if self.vectors is None else self.vectors

    def _encode_texts(self, texts):
        self.batches.append(list(texts))
        return np.ones((len(texts), 3))


@pytest.mark.parametrize("vectors", [np.ones((1, 4)), np.ones((2, 3)), np.zeros((1, 3)), np.full((1, 3), np.nan)])
def test_vectors_that_are_none_are_refused(vectors):
    with pytest.raises(EncoderError, match="odd"):
        Odd(vectors).encode_images([Image.new("RGB", (4, 4))])


def test_a_text_that_repeats_is_encoded_once():
    encoder = Odd()
    assert encoder.encode_texts(["a", "b", "a"], templates=["{}", "the {}"]).shape == (3, 3)
    assert encoder.batches == [["a", "the a", "b", "the b"]]


def test_a_bad_image_costs_itself_only(tmp_path):
    good = tmp_path / "good.png"
    Image.new("RGB", (8, 8), "red").save(good)
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    encoder = Odd()
    failed = {}
    paths = [empty, good, tmp_path / "missing.png", good, good]
    vectors = encoder.encode_images(paths, batch_size=2, on_error=failed.__setitem__)
    assert sorted(failed) == [0, 2]
    assert all(isinstance(error, ImageError) for error in failed.values())
    assert np.isnan(vectors[[0, 2]]).all()
    assert np.isfinite(vectors[[1, 3, 4]]).all()
    assert encoder.batches == [2, 1], "batches are filled with what can be read"
    with pytest.raises(ImageError, match=r"empty\.png"):
        encoder.encode_images(paths)


def test_ordered_map_keeps_order_and_bounds_what_is_in_flight():
    running, most, lock = 0, 0, threading.Lock()
    taken = 0

    def items():
        nonlocal taken
        for i in range(50):
            taken += 1
            yield i

    def work(i):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return i * i

    with worker_pool(4) as pool:
        results = ordered_map(work, items(), pool=pool, ahead=6)
        assert next(results) == 0
        assert taken == 6
        assert list(results) == [i * i for i in range(1, 50)]
    assert most <= 4


def photographs(count, size, seed=0):
    """JPEGs with large shapes and grain."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        shapes = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pixels = np.asarray(shapes.resize(size, Image.Resampling.BICUBIC)) + generator.normal(0, 4, (*size[::-1], 1))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (1203, 901)])
def test_reduced_decoding_is_exact_enough(size):
    """Against decoding at full size and the model's own image processor."""
    from rarvision.embedded import weights_path

    encoder = TransformersEncoder(weights_path("clip-16"), device="cpu")
    images = photographs(12, size)
    assert min(encoder.load(images[0]).image.size) < min(size), "it must reduce"
    opened = [Image.open(io.BytesIO(whole)).convert("RGB") for whole in images]
    with torch.inference_mode():
        inputs = encoder._processor(images=opened, return_tensors="pt")
        plain = encoder._model.get_image_features(**inputs).pooler_output
    plain = torch.nn.functional.normalize(plain, dim=1).numpy()
    assert (encoder.encode_images(images) * plain).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(encoder.encode_images(opened), plain, atol=2e-5)


@pytest.mark.slow
def test_reduced_decoding_is_exact_enough_for_a_large_model(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    config = CLIPConfig(vision_config={"patch_size": 16}, text_config={"num_hidden_layers": 1}, projection_dim=512)
    CLIPModel(config).save_pretrained(tmp_path)
    from rarvision.embedded import weights_path

    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(weights_path("clip-16")) / file, tmp_path)
    side = {"height": 224, "width": 224}
    CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=side).save_pretrained(tmp_path)
    encoder = TransformersEncoder(tmp_path, device="cpu", batch_size=2)
    images = photographs(2, (2000, 1500))
    assert encoder.load(images[0]).image.size == (1000, 750)
    opened = [Image.open(io.BytesIO(whole)).convert("RGB") for whole in images]
    with torch.inference_mode():
        inputs = encoder._processor(images=opened, return_tensors="pt")
        plain = encoder._model.get_image_features(**inputs).pooler_output
    plain = torch.nn.functional.normalize(plain, dim=1).numpy()
    assert (encoder.encode_images(images) * plain).sum(axis=1).min() > 0.999


def test_a_memory_holds_the_vectors_that_the_encoder_gives(checkpoints, tmp_path):
    encoder = TransformersEncoder(checkpoints["clip"], device="cpu", batch_size=2)
    files = []
    for number, whole in enumerate(photographs(5, (500, 375))):
        files.append(tmp_path / f"{number}.jpg")
        files[-1].write_bytes(whole)
    samples = [Sample(source=file.name, image=file, label="x") for file in files]
    with LocalMemory.create(tmp_path / "m", encoder=encoder) as memory:
        memory.add(samples)
        ids, _ = memory.table("image")
        np.testing.assert_allclose(memory.vectors(ids), encoder.encode_images(files), atol=1e-6)
        thumbnail = Image.open(io.BytesIO(memory.thumbnail(int(ids[0]))))
        assert thumbnail.size == (96, 72)


class Processor:
    """An image processor that says one thing and may do another."""

    def __init__(self, inner, **changes):
        self.inner, self.changes = inner, changes

    def to_dict(self):
        return {**self.inner.to_dict(), **self.changes}

    def __call__(self, images, return_tensors):
        return self.inner(images=images, return_tensors=return_tensors)


def test_an_image_processor_that_does_anything_else_is_asked_itself(checkpoints):
    clip = AutoImageProcessor.from_pretrained(checkpoints["clip"], backend="pil")
    assert PixelPlan.of(Processor(clip)) is not None
    for changes in (
        {"do_rescale": False},
        {"do_resize": False},
        {"do_normalize": False},
        {"resample": 0},
        {"image_mean": [0.1, 0.2, 0.3]},
        {"crop_size": {"height": 30, "width": 32}},
        {"size": {"shortest_edge": 32, "longest_edge": 40}},
        {"size": {"max_height": 32, "max_width": 40}},
        {"size": None},
    ):
        assert PixelPlan.of(Processor(clip, **changes)) is None, changes
    expected = {"clip": 32, "siglip": 32, "siglip2": None}
    assert {family: TransformersEncoder(folder).input_side for family, folder in checkpoints.items()} == expected


@pytest.mark.parametrize(("views", "count"), [("whole", 1), ("flip", 2), ("crops", 6), ("flip+crops", 12)])
@pytest.mark.parametrize("family", [*BUILDERS, "fake"])
def test_views_are_the_mean_of_their_vectors(checkpoints, family, views, count):
    encoder = FakeEncoder() if family == "fake" else TransformersEncoder(checkpoints[family], device="cpu")
    image = pictures(2)[1]
    width, height = image.size
    boxes = [(0.0, 0.0, 1.0, 1.0)]
    if "crops" in views:
        boxes += [(x, y, x + 0.8, y + 0.8) for x, y in ((0, 0), (0.2, 0), (0, 0.2), (0.2, 0.2), (0.1, 0.1))]
    seen = [image.crop(tuple(round(e) for e in (a * width, b * height, c * width, d * height))) for a, b, c, d in boxes]
    if "flip" in views:
        seen += [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for view in seen]
    assert len(seen) == len(views_of(Picture.of(image), views)) == count
    mean = encoder.encode_images(seen).mean(axis=0)
    found = encoder.encode_images([image, image], views=views, batch_size=5)
    assert found[0] @ mean / np.linalg.norm(mean) > 0.999
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_views_are_named():
    with pytest.raises(OptionError, match=r"views must be one of whole, flip, crops, flip\+crops, got 'turned'"):
        FakeEncoder().encode_images([], views="turned")


def test_chunked_map_rests_between_chunks():
    taken = []

    def items():
        for i in range(7):
            taken.append(i)
            yield i

    with worker_pool(3) as pool:
        results = chunked_map(lambda i: i * i, items(), pool=pool, size=3)
        assert [next(results) for _ in range(3)] == [0, 1, 4]
        assert taken == [0, 1, 2]
        assert list(results) == [9, 16, 25, 36]
