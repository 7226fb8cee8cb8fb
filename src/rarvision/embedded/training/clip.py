"""Stages 2 and 3: the small CLIPs, by contrast of images with names."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from rarvision.datasets.fieldguide import DOMAINS
from rarvision.embedded.training.config import Schedule, ViTSize
from rarvision.embedded.training.images import DomainImages, normalised, resized
from rarvision.embedded.training.optim import Optimisers, train_loop
from rarvision.embedded.training.tokenizers import TEXT_TEMPLATES, clip_tokenizer

__all__ = ["image_processor", "train_clip"]

log = logging.getLogger(__name__)


def image_processor(size: int) -> CLIPImageProcessorPil:
    """The stock CLIP image processor for a small square input."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        resample=3,
    )


def _model(size: ViTSize, tokenizer: CLIPTokenizer) -> CLIPModel:
    config = CLIPConfig(
        projection_dim=128,
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 16,
            "projection_dim": 128,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "image_size": size.image,
            "patch_size": size.patch,
            "hidden_size": size.width,
            "intermediate_size": size.mlp,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "projection_dim": 128,
        },
    )
    return CLIPModel(config)


def train_clip(
    name: str,
    data: list[DomainImages],
    *,
    size: ViTSize,
    images_seen: int,
    schedule: Schedule,
    out: Path,
    device: str,
) -> None:
    """Train one CLIP and save it as a Hugging Face folder ``out/name``.

    A batch holds one domain, so that its negatives are look-alikes of the same kind.
    """
    folder = out / name
    if (folder / "model.safetensors").exists():
        log.info("%s: done before", name)
        return
    torch.manual_seed(schedule.seed)
    tokenizer = clip_tokenizer(out / "clip-tokenizer")
    model = _model(size, tokenizer).to(device).train()
    pixels = [resized(np.asarray(d.pixels), size.image) for d in data]
    names = [DOMAINS[d.domain].codes_to_names(d.codes) for d in data]
    weights = np.asarray(schedule.clip_domain_weights) / sum(schedule.clip_domain_weights)
    steps = max(1, images_seen // schedule.clip_batch)
    optimisers = Optimisers(
        model.named_parameters(),
        steps=steps,
        is_matrix=lambda key, _: ".encoder.layers." in key,
    )

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng([schedule.seed, step])
        which = int(rng.choice(len(data), p=weights))
        rows = np.sort(rng.choice(len(pixels[which]), schedule.clip_batch, replace=len(pixels[which]) < 1000))
        template = TEXT_TEMPLATES[int(rng.integers(len(TEXT_TEMPLATES)))]
        tokens = tokenizer(
            [template.format(names[which][r]) for r in rows], return_tensors="pt", padding="max_length", max_length=16
        ).to(device)
        batch = torch.from_numpy(normalised(pixels[which][rows])).to(device)
        output = model(pixel_values=batch, **tokens)
        # two images of one category are no negatives of each other
        codes = torch.from_numpy(data[which].codes[rows]).to(device)
        same = (codes[:, None] == codes[None]).all(-1)
        same.fill_diagonal_(False)
        logits = output.logits_per_image.masked_fill(same, -1e4)
        target = torch.arange(len(rows), device=device)
        loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)
        return loss, {"loss": float(loss.detach()), "acc": float((logits.argmax(1) == target).float().mean())}

    train_loop(name, model, optimisers, steps=steps, loss_of=loss_of, checkpoint=out / f"{name}.checkpoint")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor(size.image).save_pretrained(folder)
