"""The training loop: transformers' Trainer with our losses, checkpoints of what is trained, and ways to stop.

Imports torch and transformers: import it late.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from rarvision.chat.scoring import rope_module, with_positions
from rarvision.errors import TrainingError
from rarvision.tuning.collate import Collator
from rarvision.tuning.lessons import Lesson
from rarvision.tuning.losses import answer_loss, choice_loss
from rarvision.tuning.recipes import Recipe
from rarvision.tuning.runs import RunFolder
from rarvision.tuning.trainable import Trainable

__all__ = ["TRAINED", "RankingTrainer", "StopOnSignal", "arguments"]

TRAINED = "trained.safetensors"
"""In a checkpoint: the weights that are trained, by their names in the model."""


def arguments(
    recipe: Recipe,
    *,
    folder: Path,
    processes: int,
    precision: str,
    cpu: bool,
    checkpoint_steps: int,
    workers: int,
) -> Any:
    """A recipe as transformers' `TrainingArguments`.

    Several GPUs are used by as many processes (``accelerate launch``); one process uses one, and never replicates the
    model inside itself.
    """
    micro = recipe.micro_batch(processes)
    values = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.batch_size // (micro * processes),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=precision == "bfloat16",
        use_cpu=cpu,
        **(_checkpointed() if recipe.gradient_checkpointing else {}),
        seed=recipe.seed,
        data_seed=recipe.seed,
        save_strategy="steps",
        save_steps=checkpoint_steps,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=workers,
        dataloader_pin_memory=not cpu,
        ddp_find_unused_parameters=False,
    )
    _ = values.device  # sets up the device, and counts GPUs
    values._n_gpu = min(values.n_gpu, 1)  # noqa: SLF001 - the one way to keep it from nn.DataParallel
    return values


def _checkpointed() -> dict[str, Any]:
    """Options for computing activations twice, by the name that this transformers has for it."""
    new = "activation_checkpointing"
    name = new if any(item.name == new for item in fields(TrainingArguments)) else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


class RankingTrainer(Trainer):  # type: ignore[misc]
    """Trains a model on lessons.

    Args:
        trainable: The model.
        recipe: Which loss, and how fast.
        args: From `arguments`.
        lessons: What is learned.
        collator: Makes batches of them.
        callbacks: Of transformers.
    """

    loss_is_scaled_for_ga = True  # by the number of what is learned in the whole step

    def __init__(
        self,
        *,
        trainable: Trainable,
        recipe: Recipe,
        args: Any,
        lessons: Sequence[Lesson],
        collator: Collator,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self._recipe = recipe
        self._projector = trainable.projector
        self._rope = rope_module(trainable.model)
        self._trained = {name for name, value in trainable.model.named_parameters() if value.requires_grad}
        super().__init__(
            model=trainable.model,
            args=args,
            train_dataset=_Lessons(lessons),
            data_collator=collator,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # so that it counts what is learned, for `compute_loss`

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW, with the projector's own learning rate where it has one."""
        if getattr(self, "optimizer", None) is None:
            found = self.model if model is None else model
            named = [(_plain(name), value) for name, value in found.named_parameters() if value.requires_grad]
            rates = {False: self.args.learning_rate, True: self._recipe.projector_learning_rate}
            groups = []
            for own, rate in rates.items():
                members = [value for name, value in named if (name in self._projector) is own]
                if members:
                    groups.append({"params": members, "lr": rate or self.args.learning_rate})
            self.optimizer = torch.optim.AdamW(groups, lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
        return self.optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - the signature is transformers'
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of one forward pass, divided by what is learned in the whole step.

        Raises:
            TrainingError: It is no finite number.
        """
        inputs = dict(inputs)
        labels, keep = inputs.pop("labels"), inputs.pop("keep")
        options, order = inputs.pop("options", None), inputs.pop("order", None)
        outputs = model(**with_positions(inputs, self._rope), use_cache=False, logits_to_keep=keep)
        if options is None:
            total = answer_loss(outputs.logits, labels)
        else:
            total = choice_loss(outputs.logits, options, order, listwise=self._recipe.listwise)
        count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / count * self.accelerator.num_processes  # gradients are averaged over the processes
        if not bool(torch.isfinite(loss.detach())):
            raise self._not_finite(self.state.global_step + 1, "the loss is")
        return (loss, outputs) if return_outputs else loss

    def _not_finite(self, step: int, what: str) -> TrainingError:
        return TrainingError(
            f"step {step} of {self.state.max_steps}: {what} no finite number, so training "
            f"stopped before anything of it was saved; the checkpoints of earlier steps stay in "
            f"{self.args.output_dir}. Train anew with a lower learning rate or a longer warm-up, and in float32 if "
            "this was half precision"
        )

    def gathered(self) -> dict[str, Any] | None:
        """All weights in one place where they are spread over processes, to be called in all; None where they are not.

        Where they are, only the main process gets them.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            state: dict[str, Any] = self.accelerator.get_state_dict(self.model_wrapped)
            return state
        return None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the trained weights only, by their names in the model; no pickled arguments."""
        if not self.args.should_save:
            return
        state = self.model.state_dict() if state_dict is None else state_dict
        trained = {name: state[name].detach().cpu().contiguous() for name in self._trained}
        if not all(bool(torch.isfinite(value).all()) for value in trained.values()):
            raise self._not_finite(self.state.global_step, "a trained weight is")
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Read what `_save` wrote; every trained weight must be there."""
        if self.is_fsdp_enabled:  # has files of its own
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        stored = load_file(Path(resume_from_checkpoint) / TRAINED)
        if self._trained != stored.keys():
            differing = sorted(self._trained ^ stored.keys())
            raise TrainingError(
                f"{resume_from_checkpoint}: does not fit the model: {len(differing)} weights are on one side only, "
                f"such as {differing[0]}; start anew (resume=False, --no-resume)"
            )
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in stored:
                    parameter.copy_(stored[name])


def _plain(name: str) -> str:
    """A parameter's name without what sharding puts into it."""
    return name.replace("_fsdp_wrapped_module.", "")


class _Lessons(torch.utils.data.Dataset[Lesson]):
    """Lessons as torch wants them."""

    def __init__(self, lessons: Sequence[Lesson]) -> None:
        self._lessons = lessons

    def __len__(self) -> int:
        return len(self._lessons)

    def __getitem__(self, index: int) -> Lesson:
        return self._lessons[index]


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C ends training after the step at hand, with a checkpoint; a second one ends it at once, without.

    Also tells a caller how far it is, and marks checkpoints as whole.

    Attributes:
        stopped: Whether Ctrl-C was pressed.
    """

    def __init__(self, run: RunFolder, *, progress: Callable[[int, int], None] | None) -> None:
        self._run = run
        self._progress = progress
        self._before: Any = None
        self.stopped = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask_to_stop)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell how far it is."""
        del control
        self._tell(args, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell how far it is; ask for a checkpoint and the end where any process was told to stop."""
        self._tell(args, state)
        if args.world_size > 1:
            asked = torch.tensor(int(self.stopped), device=args.device)
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
            self.stopped = bool(asked)
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note that the checkpoint is whole, once all processes have written their part."""
        del control
        if args.world_size > 1:
            torch.distributed.barrier()
        if args.should_save:
            self._run.mark(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _tell(self, args: Any, state: Any) -> None:
        if self._progress is not None and args.should_save:
            self._progress(state.global_step, state.max_steps)
