"""How an MLLM is trained: what of it, on which answers, how fast; and the named recipes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from rarvision.errors import OptionError

__all__ = ["METHODS", "OBJECTIVES", "PRECISIONS", "PRESETS", "Method", "Objective", "Precision", "Recipe", "recipe"]

Method = Literal["lora", "full"]
METHODS: tuple[Method, ...] = get_args(Method)
"""``lora``: small matrices beside the language model's own; ``full``: the language model itself."""

Objective = Literal["generate", "likelihood", "choice"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
"""Which answer is learned, named after the ranking strategy that gives it; see `Recipe`."""

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_LARGEST_MICRO_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what training makes of a model and its examples.

    Attributes:
        method: ``lora`` or ``full``. The image encoder always stays as it is.
        objective: ``generate``: the whole ranked list, token by token. ``likelihood``: its start only, up to the true
            name, which is what that strategy scores. ``choice``: a ranking loss over the option letters' logits, no
            other token counts.
        listwise: ``choice`` only: learn the whole order (Plackett-Luce) instead of the first place.
        prompt: As `rarvision.ranking.Ranker` takes it, for the objective's strategy; None for the default.
        epochs: Passes over the examples; a fraction ends in the middle of one.
        learning_rate: At its peak, after the warm-up.
        batch_size: Examples in one step of the optimiser, over all processes.
        micro_batch_size: Examples in one forward pass of one process; None for the largest divisor up to 4. It bounds
            the memory needed and changes results by rounding only.
        warmup: Share of the steps over which the learning rate rises; it then falls along a cosine.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are scaled down to this norm.
        rank: ``lora``: rank of the added matrices.
        alpha: ``lora``: their weight is alpha / rank.
        dropout: ``lora``: share of their inputs that is dropped.
        targets: ``lora``: names of the linear layers that get them (``q_proj``, …); empty for all of the language
            model's.
        projector: Whether the layers between image encoder and language model are trained as well.
        projector_learning_rate: Theirs; None for the same.
        gradient_checkpointing: Compute activations twice to hold fewer of them.
        precision: Arithmetic of the forward pass; ``auto``: bfloat16 on a GPU that has it, float32 elsewhere. What is
            trained is kept in float32.
        seed: Of the order of examples, the initial weights of ``lora``, and dropout.

    Raises:
        OptionError: A value is out of range, or does not go with another.
    """

    method: Method = "lora"
    objective: Objective = "generate"
    listwise: bool = False
    prompt: str | None = None
    epochs: float = 1.0
    learning_rate: float = 2e-4
    batch_size: int = 16
    micro_batch_size: int | None = None
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    targets: tuple[str, ...] = ()
    projector: bool = True
    projector_learning_rate: float | None = None
    gradient_checkpointing: bool = False
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("objective", OBJECTIVES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise OptionError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        for name in ("epochs", "learning_rate", "max_grad_norm"):
            self._check(name, 0.0, math.inf, open_start=True)
        if self.projector_learning_rate is not None:
            self._check("projector_learning_rate", 0.0, math.inf, open_start=True)
        for name in ("warmup", "dropout"):
            self._check(name, 0.0, 1.0)
        self._check("weight_decay", 0.0, math.inf)
        for name in ("batch_size", "rank", "alpha"):
            self._check(name, 1, math.inf)
        if self.micro_batch_size is not None:
            self._check("micro_batch_size", 1, self.batch_size)
        self._check_together()

    def _check_together(self) -> None:
        if self.projector_learning_rate is not None and not self.projector:
            raise OptionError("projector_learning_rate goes with projector=True")
        if self.listwise and self.objective != "choice":
            raise OptionError(f"listwise goes with the objective 'choice', got {self.objective!r}")
        if self.targets and self.method != "lora":
            raise OptionError(f"targets go with the method 'lora', got {self.method!r}")

    def _check(self, name: str, least: float, most: float, *, open_start: bool = False) -> None:
        value = getattr(self, name)
        if not math.isfinite(value) or not least <= value <= most or (open_start and value == least):
            start = f"above {least:g}" if open_start else f"at least {least:g}"
            raise OptionError(f"{name} must be {start}{'' if most == math.inf else f', at most {most:g}'}; got {value}")

    def micro_batch(self, processes: int) -> int:
        """Examples in one forward pass of one of so many processes.

        Raises:
            OptionError: The batch cannot be split like that.
        """
        share, rest = divmod(self.batch_size, processes)
        if rest or not share:
            raise OptionError(f"batch_size must be a multiple of the {processes} processes, got {self.batch_size}")
        if self.micro_batch_size is None:
            return max(size for size in range(1, _LARGEST_MICRO_BATCH + 1) if share % size == 0)
        if share % self.micro_batch_size:
            raise OptionError(
                f"micro_batch_size must divide the batch of one process, which is {share}; got {self.micro_batch_size}"
            )
        return self.micro_batch_size

    def settings(self) -> dict[str, Any]:
        """JSON values of all fields."""
        return {**asdict(self), "targets": list(self.targets)}


PRESETS: Mapping[str, Recipe] = MappingProxyType(
    {
        "lora": Recipe(projector_learning_rate=2e-5),
        "paper": Recipe(method="full", learning_rate=1e-5),
    }
)
"""``lora``: LLaVA's published recipe for LoRA (rank 128, alpha 256, 2e-4; projector 2e-5; batch 16; warm-up 0.03;
cosine). ``paper``: the paper's full fine-tuning, one epoch at 1e-5; it does not give batch size and schedule, which are
LLaVA's here."""


def recipe(preset: str = "lora", **changes: Any) -> Recipe:
    """A preset with changes.

    Args:
        preset: One of `PRESETS`.
        changes: Fields of `Recipe`. Where ``rank`` is given without ``alpha``, alpha is twice the rank, as in the
            preset.

    Raises:
        OptionError: An unknown preset or field, or a value out of range.

    Example:
        >>> recipe("lora", rank=8).alpha
        16
    """
    if preset not in PRESETS:
        raise OptionError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
    known = {item.name for item in fields(Recipe)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise OptionError(f"unknown setting {unknown[0]!r}; a recipe has {', '.join(sorted(known))}")
    base = PRESETS[preset]
    if changes.get("method", base.method) == "full":
        for name in ("rank", "alpha", "dropout"):
            if name in changes:
                raise OptionError(f"{name} goes with the method 'lora'; preset {preset!r} trains the model itself")
    if "rank" in changes and "alpha" not in changes:
        changes["alpha"] = 2 * changes["rank"]
    if changes.get("projector") is False:
        changes.setdefault("projector_learning_rate", None)
    return replace(base, **changes)
