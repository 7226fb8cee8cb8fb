"""Any detector of transformers as a source of proposals: where objects are, whatever they are.

    python examples/proposals.py google/owlv2-base-patch16-ensemble val.json val2017 proposals.json

The model is a hub name or a folder of this machine. OWLv2 says of each box how likely it is an object (its processor
needs scipy); of other detectors (YOLOS, DETR, RT-DETR and relatives), which know a fixed list of categories, the
probability of the likeliest category is taken. Neither torchvision nor timm is needed, unless the model's configuration
names a backbone of timm. Without arguments it shows with random weights and a few drawings that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL.Image import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    Owlv2ForObjectDetection,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

import rarvision as rv
from rarvision.detection import FoundBoxes, detect_proposals, read_annotations


class TransformersDetector:
    """Boxes and objectness of a batch of images; see `rarvision.detection.Detector`.

    Args:
        model: A hub name or a folder.
        device: Such as ``cpu`` or ``cuda``.
    """

    def __init__(self, model: str | Path, *, device: str = "cpu") -> None:
        kind = AutoConfig.from_pretrained(model).model_type
        if kind in ("owlvit", "grounding-dino", "mm-grounding-dino"):
            raise SystemExit(f"{model}: a {kind} model finds what a text names; for boxes of anything take OWLv2")
        self._has_objectness = kind == "owlv2"
        family = Owlv2ForObjectDetection if self._has_objectness else AutoModelForObjectDetection
        self._model = family.from_pretrained(model).eval().to(device)
        self._processor = AutoImageProcessor.from_pretrained(model, backend="pil")

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image]) -> list[FoundBoxes]:
        """Images that are prepared to one size pass the model together; others alone, as padding would move boxes."""
        prepared = [self._processor(images=[image], return_tensors="pt")["pixel_values"] for image in images]
        if len({pixels.shape for pixels in prepared}) == 1:
            return self._found(torch.cat(prepared), images)
        return [found for pixels, image in zip(prepared, images, strict=True) for found in self._found(pixels, [image])]

    def _found(self, pixels: torch.Tensor, images: Sequence[Image]) -> list[FoundBoxes]:
        pixels = pixels.to(self._model.device)
        outputs = self._class_agnostic(pixels) if self._has_objectness else self._model(pixel_values=pixels)
        sizes = torch.tensor([(image.height, image.width) for image in images], device=pixels.device)
        found = self._processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        return [tuple(each[key].cpu().numpy().astype(np.float64) for key in ("boxes", "scores")) for each in found]

    def _class_agnostic(self, pixels: torch.Tensor) -> SimpleNamespace:
        """OWLv2 without a text: a box at each patch, and a logit of how likely it is an object."""
        patches = self._model.image_embedder(pixel_values=pixels)[0]
        tokens = patches.flatten(1, 2)
        logits = self._model.objectness_predictor(tokens)
        return SimpleNamespace(logits=logits[..., None], pred_boxes=self._model.box_predictor(tokens, patches))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub name or folder")
    parser.add_argument("annotations", type=Path, help="annotation file: says which images")
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("results", type=Path, help=".json file to write; an interrupted run goes on")
    parser.add_argument("--per-image", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    report = detect_proposals(
        read_annotations(options.annotations, images=options.images),
        TransformersDetector(options.model, device=options.device),
        name=options.model,
        path=options.results,
        per_image=options.per_image,
        batch_size=options.batch_size,
        on_error=lambda image, error: print(f"{image.file}: {error}"),
    )
    print(
        f"{report.proposals.boxes_count:,} boxes of {report.images:,} images ({report.resumed:,} were there already), "
        f"{report.without_boxes:,} images without any, {len(report.failed):,} failed: {options.results}"
    )


def show(folder: Path) -> None:
    """A tiny YOLOS that has learnt nothing, three drawings."""
    size = {"num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = YolosConfig(**size, image_size=[64, 64], patch_size=16, num_detection_tokens=8)
    YolosForObjectDetection(config).save_pretrained(folder / "model")
    YolosImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(folder / "model")
    listed = []
    for number, sample in enumerate(rv.FieldGuide("birds", categories=3).queries(3)):
        sample.image.save(folder / f"{number}.png")
        listed.append({"id": number, "file_name": f"{number}.png"})
    truth = {"images": listed, "categories": [{"id": 1, "name": "bird"}], "annotations": []}
    (folder / "truth.json").write_text(json.dumps(truth))
    main([str(folder / path) for path in ("model", "truth.json", "", "proposals.json")])
    print("The weights are random, so these boxes mean nothing.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            show(Path(scratch))
