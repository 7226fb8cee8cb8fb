"""Stage 5: the language model of the MLLM, on frozen image features."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from rarvision.embedded.training.checks import measure, measure_shown
from rarvision.embedded.training.clip import image_processor
from rarvision.embedded.training.config import Schedule
from rarvision.embedded.training.course import Course
from rarvision.embedded.training.images import DomainImages
from rarvision.embedded.training.mix import Retrieved
from rarvision.embedded.training.optim import Optimisers, train_loop
from rarvision.embedded.training.tokenizers import CHAT_TEMPLATE, mllm_tokenizer
from rarvision.embedded.training.tower import Tower
from rarvision.embedded.training.trainer import MLLMTrainer, build

__all__ = ["MLLMTrainer", "Retrieved", "train_mllm"]

log = logging.getLogger(__name__)


def train_mllm(
    data: list[DomainImages],
    features: list[torch.Tensor],
    validation: list[tuple[DomainImages, torch.Tensor, list[list[tuple[int, ...]]]]],
    *,
    retrieved: dict[str, Retrieved],
    tower: Tower,
    schedule: Schedule,
    out: Path,
    device: str,
) -> None:
    """Train the language model and save the whole as a Hugging Face folder ``out/mllm``.

    ``validation`` holds, a domain: images, features, and for each image the ten look-alikes of its group.
    """
    folder = out / "mllm"
    if (folder / "model.safetensors").exists():
        log.info("mllm: done before")
        return
    torch.manual_seed(schedule.seed + 2)
    tokenizer = mllm_tokenizer()
    trainer = MLLMTrainer(schedule, tokenizer).to(device).train()
    course = Course(trainer, data, features, retrieved, schedule)

    def validate(step: int) -> None:
        for images, states, groups in validation:
            figures = measure(trainer, images, states, groups, device)
            text = " ".join(f"{key} {value:.3f}" for key, value in figures.items())
            log.info("mllm %d: %s %s", step, images.domain, text)
            if course.mix.long:
                figures = measure_shown(trainer, images, states, groups, device)
                text = " ".join(f"{key} {value:.3f}" for key, value in sorted(figures.items()))
                log.info("mllm %d: %s shown: %s", step, images.domain, text)

    for phase, steps, lr in (
        ("mllm", schedule.mllm_steps, 1.0),
        ("mllm-lists", schedule.mllm_list_steps, 0.7),
        ("mllm-shown", schedule.mllm_shown_steps, 0.5),
    ):
        course.enter(phase)
        optimisers = Optimisers(
            trainer.named_parameters(),
            steps=steps,
            muon_lr=0.02 * lr,
            adam_lr=1e-3 * lr,
            is_matrix=lambda key, _: ".layers." in key,
            decay_from={"mllm": 1.0, "mllm-lists": 0.1, "mllm-shown": 0.3}[phase],
        )
        train_loop(
            phase,
            trainer,
            optimisers,
            steps=steps,
            loss_of=course.loss_of,
            checkpoint=out / f"{phase}.checkpoint",
            validate=validate,
            validate_every=500,
            log_every=50,
        )
    save(trainer, tower, tokenizer, schedule, folder)


def save(
    trainer: MLLMTrainer, tower: Tower, tokenizer: PreTrainedTokenizerFast, schedule: Schedule, folder: Path
) -> None:
    """Put tower, projector and language model into one stock LLaVA and write the folder."""
    model = build(schedule, tokenizer).eval()
    parts: list[tuple[Any, Any]] = [
        (model.model.vision_tower, tower.vision),
        (model.model.multi_modal_projector, trainer.projector),
        (model.model.language_model, trainer.language_model),
    ]
    for target, source in parts:
        target.load_state_dict(source.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=image_processor(schedule.tower.image),
        tokenizer=tokenizer,
        patch_size=schedule.tower.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
