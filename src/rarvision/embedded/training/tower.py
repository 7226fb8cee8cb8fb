"""Stage 4: the MLLM's vision tower, by one classifier an attribute on the mean of its patches."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from rarvision.datasets.fieldguide import DOMAINS
from rarvision.embedded.training.config import Schedule, ViTSize
from rarvision.embedded.training.images import DomainImages, normalised
from rarvision.embedded.training.optim import Optimisers, train_loop

__all__ = ["Tower", "patch_features", "tower_config", "train_tower"]

log = logging.getLogger(__name__)


def tower_config(size: ViTSize) -> CLIPVisionConfig:
    """The stock CLIP vision transformer, small."""
    return CLIPVisionConfig(
        image_size=size.image,
        patch_size=size.patch,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
    )


class Tower(nn.Module):
    """The vision tower with the heads that only its training uses."""

    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        self.vision = CLIPVisionModel(tower_config(size))
        self.norm = nn.LayerNorm(size.width)
        self.heads = nn.ModuleDict(
            {
                name: nn.ModuleList([nn.Linear(size.width, len(a.words)) for a in domain.attributes])
                for name, domain in DOMAINS.items()
            }
        )

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """What LLaVA takes with ``vision_feature_layer=-1`` and ``default``: (n, patches, width), no class token."""
        states = self.vision(pixels, output_hidden_states=True).hidden_states
        assert states is not None  # noqa: S101 - asked for above
        return states[-1][:, 1:]

    def attribute_logits(self, domain: str, patches: torch.Tensor) -> list[torch.Tensor]:
        """One tensor (n, words) an attribute."""
        pooled = self.norm(patches.mean(1))
        heads = self.heads[domain]
        assert isinstance(heads, nn.ModuleList)  # noqa: S101 - for the type checker
        return [head(pooled) for head in heads]


def train_tower(
    data: list[DomainImages], validation: list[DomainImages], schedule: Schedule, out: Path, device: str
) -> Tower:
    """Train the tower, or load the trained one."""
    torch.manual_seed(schedule.seed + 1)
    module = Tower(schedule.tower).to(device).train()
    finished = out / "tower.pt"
    if finished.exists():
        module.load_state_dict(torch.load(finished, weights_only=True))
        return module.eval()
    steps = max(1, schedule.tower_images // schedule.tower_batch)
    optimisers = Optimisers(
        module.named_parameters(),
        steps=steps,
        is_matrix=lambda key, _: ".encoder.layers." in key,
    )

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng([schedule.seed, 1, step])
        part = schedule.tower_batch // len(data)
        batches, targets = [], []
        for domain in data:
            rows = np.sort(rng.choice(len(domain.pixels), part, replace=len(domain.pixels) < part))
            batches.append(normalised(domain.pixels[rows]))
            targets.append(torch.from_numpy(domain.codes[rows]).to(device))
        patches = module.patches(torch.from_numpy(np.concatenate(batches)).to(device))
        losses, right = [], []
        for i, domain in enumerate(data):
            logits = module.attribute_logits(domain.domain, patches[i * part : (i + 1) * part])
            losses += [nn.functional.cross_entropy(x, targets[i][:, a]) for a, x in enumerate(logits)]
            right += [(x.argmax(1) == targets[i][:, a]).float().mean() for a, x in enumerate(logits)]
        loss = torch.stack(losses).mean()
        return loss, {"loss": float(loss.detach()), "acc": float(torch.stack(right).mean())}

    def validate(step: int) -> None:
        for domain in validation:
            pixels = torch.from_numpy(normalised(domain.pixels[:1000])).to(device)
            logits = module.attribute_logits(domain.domain, torch.cat([module.patches(p) for p in pixels.split(250)]))
            codes = torch.from_numpy(domain.codes[:1000]).to(device)
            hits = torch.stack([x.argmax(1) == codes[:, a] for a, x in enumerate(logits)], 1).float()
            log.info(
                "tower %d: %s attributes %s all %.3f",
                step,
                domain.domain,
                " ".join(f"{value:.3f}" for value in hits.mean(0).tolist()),
                float(hits.prod(1).mean()),
            )

    train_loop(
        "tower",
        module,
        optimisers,
        steps=steps,
        loss_of=loss_of,
        checkpoint=out / "tower.checkpoint",
        validate=validate,
    )
    torch.save(module.state_dict(), finished)
    return module.eval()


@torch.no_grad()
def patch_features(tower: Tower, data: DomainImages, device: str, *, kept: Path, batch: int = 500) -> torch.Tensor:
    """Frozen features of all images, float16 ``(n, patches, width)``, on the CPU; kept in a file for resumed runs."""
    if not kept.exists():
        parts = []
        for start in range(0, len(data.pixels), batch):
            pixels = torch.from_numpy(normalised(data.pixels[start : start + batch])).to(device)
            parts.append(tower.patches(pixels).to("cpu", torch.float16))
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part.npy")
        np.save(part, torch.cat(parts).numpy())
        part.replace(kept)
    return torch.from_numpy(np.load(kept))
