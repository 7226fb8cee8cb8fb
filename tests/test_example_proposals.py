"""The example that makes proposals with detectors of transformers, on tiny ones with random weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from needs import need
from rarvision.detection import read_annotations, read_proposals

SIZES = [(60, 40), (60, 40), (30, 70)]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[1] / "examples" / "proposals.py"
    spec = importlib.util.spec_from_file_location("example_proposals", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def yolos():
    config = transformers.YolosConfig(
        **SMALL, num_hidden_layers=2, image_size=[64, 64], patch_size=16, num_detection_tokens=7
    )
    size = {"shortest_edge": 48, "longest_edge": 64}
    return transformers.YolosForObjectDetection(config), transformers.YolosImageProcessorPil(size=size)


def detr():
    backbone = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
             (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    config = transformers.DetrConfig(
        **sides, use_timm_backbone=False, backbone=None, backbone_config=backbone, d_model=32, num_queries=6
    )
    size = {"shortest_edge": 48, "longest_edge": 64}
    return transformers.DetrForObjectDetection(config), transformers.DetrImageProcessorPil(size=size)


def rt_detr():
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[16, 32, 64], feat_strides=[8, 16, 32], encoder_hidden_dim=32,
        d_model=32, encoder_layers=1, encoder_ffn_dim=32, encoder_attention_heads=2, decoder_in_channels=[32, 32, 32],
        decoder_layers=1, decoder_ffn_dim=32, decoder_attention_heads=2, num_queries=9, decoder_n_points=2,
        num_denoising=0,
    )  # fmt: skip
    size = {"height": 64, "width": 64}
    return transformers.RTDetrForObjectDetection(config), transformers.RTDetrImageProcessorPil(size=size)


def owlv2():
    need("scipy", group="detection")
    text = SMALL | {"num_hidden_layers": 1, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    vision = SMALL | {"num_hidden_layers": 1, "image_size": 64, "patch_size": 16}
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    size = {"height": 64, "width": 64}
    return transformers.Owlv2ForObjectDetection(config), transformers.Owlv2ImageProcessorPil(size=size)


@pytest.fixture
def world(tmp_path):
    need("msgspec", group="detection")
    rng = np.random.default_rng(0)
    for id_, (width, height) in enumerate(SIZES, start=1):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{id_}.png")
    listed = [{"id": id_, "file_name": f"{id_}.png"} for id_ in range(1, len(SIZES) + 1)]
    truth = {"images": listed, "categories": [{"id": 1, "name": "thing"}], "annotations": []}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return tmp_path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("make", "boxes"), [(yolos, 7), (detr, 6), (rt_detr, 9), (owlv2, 16)])
def test_a_detector_with_random_weights_goes_through(example, world, capsys, make, boxes):
    torch.manual_seed(0)
    model, processor = make()
    model.eval().save_pretrained(world / "model")
    processor.save_pretrained(world / "model")
    results = world / "proposals.json"
    arguments = [str(world / "model"), str(world / "truth.json"), str(world), str(results), "--device", "cpu"]
    example.main([*arguments, "--batch-size", "2"])
    assert "0 failed" in capsys.readouterr().out
    found = read_proposals(results, annotations=read_annotations(world / "truth.json"))
    detector = example.TransformersDetector(world / "model")
    for id_, size in enumerate(SIZES, start=1):
        image = Image.open(world / f"{id_}.png").convert("RGB")
        ((alone, objectness),) = detector([image])
        assert 0 < len(found[id_].objectness) <= boxes
        assert ((objectness >= 0) & (objectness <= 1)).all()
        cut = alone.clip(0, [*size, *size])
        inside = (cut[:, :2] < cut[:, 2:]).all(axis=1)  # OWLv2 also finds boxes in what it pads
        best = np.where(inside, objectness, -1).argmax()
        assert objectness[best] == pytest.approx(found[id_].objectness[0], abs=1e-5)
        assert cut[best] == pytest.approx(found[id_].boxes_xyxy[0], abs=1e-3)
    example.main([*arguments, "--batch-size", "2"])
    assert "(3 were there already)" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_pixel_of_owlv2_s_square_is_one_of_the_image(example, world):
    """It pads images to a square: a box over all of it is as wide as the longer side."""
    model, processor = owlv2()
    model.eval().save_pretrained(world / "model")
    processor.save_pretrained(world / "model")
    detector = example.TransformersDetector(world / "model")
    whole = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(1, 16, 1)
    detector._model.box_predictor = lambda *_: whole
    ((boxes, _),) = detector([Image.new("RGB", (60, 40))])
    assert boxes[0].tolist() == [0, 0, 60, 60]


def test_models_that_need_a_text_are_told(example, world):
    transformers.OwlViTConfig().save_pretrained(world / "model")
    with pytest.raises(SystemExit, match="take OWLv2"):
        example.TransformersDetector(world / "model")
