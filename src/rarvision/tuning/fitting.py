"""Lessons and a recipe -> an adapter or a model in a run's folder; whatever the lessons are about."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rarvision.chat.loading import load_model, load_processor, require, resolve_device, resolve_dtype
from rarvision.chat.preparing import RequestEncoder, context_limit, end_tokens
from rarvision.checkpoints import weights_fingerprint
from rarvision.errors import ChatUnavailableError, OptionError, TrainingError
from rarvision.tuning.adapters import save_adapter, save_whole_model, stored_dtype
from rarvision.tuning.collate import Collator
from rarvision.tuning.lessons import Lesson
from rarvision.tuning.recipes import Recipe
from rarvision.tuning.runs import RunFolder, write_json

__all__ = ["Fitted", "Job", "fit"]

_LOSSES = "losses.json"
_RESULTS = {"lora": "adapter", "full": "model"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, where, and how; see `rarvision.tuning.train` for the fields."""

    model: str
    revision: str | None
    trust_remote_code: bool
    device: str
    out: Path
    recipe: Recipe
    checkpoint_steps: int
    workers: int
    resume: bool

    def __post_init__(self) -> None:
        if self.checkpoint_steps < 1:
            raise OptionError(f"checkpoint_steps must be at least 1, got {self.checkpoint_steps}")
        if self.workers < 0:
            raise OptionError(f"workers must be at least 0, got {self.workers}")
        if self.device not in ("auto", "cpu", "cuda", "mps"):
            raise OptionError(
                f"device must be auto, cpu, cuda or mps, got {self.device!r}; choose one of several GPUs by the "
                "environment: CUDA_VISIBLE_DEVICES=1"
            )

    @property
    def result(self) -> Path:
        """The folder that training leaves."""
        return self.out / _RESULTS[self.recipe.method]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What training left.

    Attributes:
        result: The adapter's folder, or the model's.
        losses: Mean loss of each step of the optimiser: (step, nats a learned token, or a question).
        trained: Numbers that were trained.
        total: Numbers of the base model.
        resumed_from: The step that this call went on after; None where it began at the first.
        main: Whether this is the main process, which reports.
        settings: All that the outcome depends on.
    """

    result: Path
    losses: tuple[tuple[int, float], ...]
    trained: int
    total: int
    resumed_from: int | None
    main: bool
    settings: Mapping[str, Any]


def fit(
    job: Job,
    lessons: Sequence[Lesson],
    *,
    data: Mapping[str, Any],
    progress: Callable[[int, int], None] | None,
) -> Fitted:
    """Train, or go on training, or find that it was done.

    Args:
        job: What and how.
        lessons: What is learned.
        data: What the lessons are, as JSON values: a run goes on with the same ones only.
        progress: Called with the steps done and all.

    Raises:
        MissingExtraError: peft or accelerate is not installed.
        InputError: The folder holds a run with other settings.
        TrainingError: A loss or weight is no finite number, or the memory is not enough.
        KeyboardInterrupt: Ctrl-C; a checkpoint was saved.
    """
    for module in ("accelerate", "peft"):
        require(module, extra="tune", wanted="training")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    job.recipe.micro_batch(processes)
    device = resolve_device(job.device)
    precision = _precision(job.recipe, device)
    base = {
        "name": job.model,
        "revision": job.revision,
        "fingerprint": weights_fingerprint(job.model, revision=job.revision, missing=ChatUnavailableError),
    }
    from rarvision.tuning.loop import arguments

    args = arguments(
        job.recipe,
        folder=job.out / "checkpoints",
        processes=processes,
        precision=precision,
        cpu=device == "cpu",
        checkpoint_steps=job.checkpoint_steps,
        workers=job.workers,
    )
    settings = {
        "rarvision": version("rarvision"),
        "base_fingerprint": base["fingerprint"],
        "data": dict(data),
        "recipe": {**job.recipe.settings(), "precision": precision},
        "processes": processes,
    }
    main = bool(args.process_index == 0)
    if not main:
        args.distributed_state.wait_for_everyone()
    run = RunFolder(job.out, settings=settings, resume=job.resume, main=main)
    if main:
        run.begin()
        args.distributed_state.wait_for_everyone()
    resumed_from = None
    if not job.result.is_dir():
        resumed_from = _train(job, lessons, args=args, run=run, base=base, settings=settings, progress=progress)
    done = json.loads((job.out / _LOSSES).read_text(encoding="utf-8")) if main else {}
    return Fitted(
        result=job.result,
        losses=tuple((int(step), float(loss)) for step, loss in done.get("losses", ())),
        trained=done.get("trained", 0),
        total=done.get("total", 0),
        resumed_from=resumed_from,
        main=main,
        settings=settings,
    )


def _precision(recipe: Recipe, device: str) -> str:
    """``float32`` or ``bfloat16``."""
    import torch

    if recipe.precision == "auto":
        return "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
    if recipe.precision == "bfloat16" and device == "cpu":
        raise OptionError("precision bfloat16 is for GPUs: on a CPU it is many times slower; use float32")
    return recipe.precision


def _train(
    job: Job,
    lessons: Sequence[Lesson],
    *,
    args: Any,
    run: RunFolder,
    base: Mapping[str, Any],
    settings: Mapping[str, Any],
    progress: Callable[[int, int], None] | None,
) -> int | None:
    """The training itself, up to the finished result; the step that it went on after."""
    import torch
    from transformers import set_seed

    from rarvision.tuning.loop import RankingTrainer, StopOnSignal
    from rarvision.tuning.trainable import make_trainable

    recipe = job.recipe
    half = recipe.method == "lora" and args.bf16  # frozen weights may be; what is trained is kept in float32
    model = load_model(
        job.model,
        device="cpu",  # the trainer puts it where it belongs
        dtype=resolve_dtype("bfloat16" if half else "float32", "cpu"),
        revision=job.revision,
        device_map=None,
        quantization=None,
        trust_remote_code=job.trust_remote_code,
    )
    processor = load_processor(job.model, model.config, revision=job.revision, trust_remote_code=job.trust_remote_code)
    encoder = RequestEncoder(processor, name=job.model)
    collator = Collator(
        encoder,
        end=encoder.answer_end(end_tokens(model, encoder.tokenizer)),
        context_limit=context_limit(model.config, encoder.tokenizer),
    )
    collator([max(lessons, key=lambda lesson: lesson.length)])  # does it fit? to be known before hours of training
    set_seed(recipe.seed)
    trainable = make_trainable(model, recipe)
    last = run.last_checkpoint()
    stop = StopOnSignal(run, progress=progress)
    trainer = RankingTrainer(
        trainable=trainable, recipe=recipe, args=args, lessons=lessons, collator=collator, callbacks=[stop]
    )
    try:
        with stop:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the memory of {args.device} is not enough: lower micro_batch_size ({args.per_device_train_batch_size}), "
            "turn gradient_checkpointing on, or train with the method 'lora', in another folder"
        ) from error
    if stop.stopped:
        raise KeyboardInterrupt(
            f"interrupted after step {trainer.state.global_step} of {trainer.state.max_steps}, which is saved; the "
            "same command goes on from there"
        )
    state = trainer.gathered()
    if args.process_index == 0:
        metadata = {"base": dict(base), "data": settings["data"], "recipe": settings["recipe"]}
        metadata["version"] = settings["rarvision"]
        part = job.out / f"{job.result.name}.part"
        if recipe.method == "lora":
            save_adapter(trainable.model, part, state=state, metadata=metadata)
        else:
            save_whole_model(
                trainable.model,
                part,
                base=job.model,
                revision=job.revision,
                dtype=stored_dtype(job.model, revision=job.revision, trust_remote_code=job.trust_remote_code),
                state=state,
                metadata=metadata,
            )
        losses = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
        write_json(job.out / _LOSSES, {"losses": losses, "trained": trainable.count, "total": trainable.total})
        run.publish(part, job.result.name)
        run.drop_checkpoints()
    del trainer, model, trainable
    if args.device.type != "cpu":  # room for the two models that are compared
        gc.collect()
        torch.cuda.empty_cache()
    return None if last is None else int(last.name.rpartition("-")[2])
