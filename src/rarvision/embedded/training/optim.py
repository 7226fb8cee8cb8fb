"""What the three trainings share: optimisers, schedule, checkpoints that resume."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Optimisers", "train_loop"]

log = logging.getLogger(__name__)


class Optimisers:
    """Muon for the hidden matrices, AdamW for embeddings, norms, biases and heads; warm-up, then linear decay."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        steps: int,
        muon_lr: float = 0.02,
        adam_lr: float = 1e-3,
        is_matrix: Callable[[str, nn.Parameter], bool],
        decay_from: float = 0.4,
    ) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in parameters:
            if parameter.requires_grad:
                (matrices if parameter.ndim == 2 and is_matrix(name, parameter) else others).append(parameter)
        self._all = [*matrices, *others]
        self._optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0),
            torch.optim.AdamW(others, lr=adam_lr, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        warm = max(1, steps // 50)

        def factor(step: int) -> float:
            progress = step / max(1, steps)
            decay = 1.0 if progress < decay_from else (1.0 - progress) / max(1e-6, 1.0 - decay_from)
            return min((step + 1) / warm, max(decay, 0.02))

        self._schedules = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in self._optimisers]

    def step(self, loss: torch.Tensor) -> None:
        """One update."""
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._all, 1.0)
        for optimiser, schedule in zip(self._optimisers, self._schedules, strict=True):
            optimiser.step()
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {
            "optimisers": [o.state_dict() for o in self._optimisers],
            "schedules": [s.state_dict() for s in self._schedules],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        for optimiser, value in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(value)
        for schedule, value in zip(self._schedules, state["schedules"], strict=True):
            schedule.load_state_dict(value)


def train_loop(
    name: str,
    module: nn.Module,
    optimisers: Optimisers,
    *,
    steps: int,
    loss_of: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    checkpoint: Path,
    every_s: float = 120.0,
    log_every: int = 100,
    validate: Callable[[int], None] | None = None,
    validate_every: int = 1_000,
) -> None:
    """Run ``steps`` updates, resuming from ``checkpoint`` where it exists; step i sees the same batch either way."""
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        optimisers.load_state_dict(state["optimisers"])
        start = int(state["step"])
        log.info("%s: resumed at step %d of %d", name, start, steps)

    def save(step: int) -> None:
        part = checkpoint.with_suffix(".part")
        torch.save({"module": module.state_dict(), "optimisers": optimisers.state_dict(), "step": step}, part)
        os.replace(part, checkpoint)  # noqa: PTH105 - atomic on one file system

    began = last_save = time.monotonic()
    sums: dict[str, float] = {}
    for step in range(start, steps):
        loss, figures = loss_of(step)
        optimisers.step(loss)
        for key, value in figures.items():
            sums[key] = sums.get(key, 0.0) + value
        if (step + 1) % log_every == 0 or step + 1 == steps:
            n = (step - start) % log_every + 1 if step + 1 == steps else min(log_every, step + 1 - start)
            rate = (step + 1 - start) / (time.monotonic() - began)
            text = " ".join(f"{key} {value / n:.3f}" for key, value in sums.items())
            log.info(
                "%s %d/%d %s (%.2f steps/s, %.0f s left)", name, step + 1, steps, text, rate, (steps - step) / rate
            )
            sums = {}
        if time.monotonic() - last_save > every_s or step + 1 == steps:
            save(step + 1)
            last_save = time.monotonic()
        if validate is not None and ((step + 1) % validate_every == 0 or step + 1 == steps):
            module.eval()
            with torch.no_grad():
                validate(step + 1)
            module.train()
