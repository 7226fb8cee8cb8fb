"""Which weights of a model are trained: found by what they are, for any model of images and text."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

from rarvision.errors import ChatUnsupportedError, OptionError
from rarvision.tuning.recipes import Recipe

__all__ = ["Trainable", "make_trainable"]

_PROJECTORS = (
    "multi_modal_projector",
    "connector",
    "merger",
    "deepstack_merger_list",
    "embed_vision",
    "language_projection",
    "aligner",
)
"""How models of transformers call what lies between their image encoder and their language model."""


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """A model made ready.

    Attributes:
        model: It, or the peft model around it.
        projector: Names of the trained parameters between image encoder and language model.
        count: Numbers that are trained.
        total: Numbers of the base model.
    """

    model: Any
    projector: frozenset[str]
    count: int
    total: int


def make_trainable(model: Any, recipe: Recipe) -> Trainable:
    """Freeze a model but for what the recipe trains, which is kept in float32.

    Args:
        model: As loaded; changed in place.
        recipe: What to train.

    Raises:
        ChatUnsupportedError: Its language model, or a projector that is to be trained, is not found.
        OptionError: ``targets`` name no linear layer.
    """
    import torch

    total = sum(parameter.numel() for parameter in model.parameters())
    decoder = _language_model(model)
    projectors = _projectors(model, decoder) if recipe.projector else []
    model.requires_grad_(requires_grad=False)
    if recipe.method == "lora":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules=_target_pattern(model, decoder, recipe.targets),
            modules_to_save=projectors or None,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name of before
            model = get_peft_model(model, config)
    else:
        model.get_submodule(decoder).requires_grad_(requires_grad=True)
        if (head := model.get_output_embeddings()) is not None:
            head.requires_grad_(requires_grad=True)
        for name in projectors:
            model.get_submodule(name).requires_grad_(requires_grad=True)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.to(torch.float32)
    inside = tuple(f"{name}." for name in projectors)
    own = frozenset(name for name in trained if any(part in f".{name}" for part in (f".{start}" for start in inside)))
    return Trainable(model=model, projector=own, count=sum(p.numel() for p in trained.values()), total=total)


def _language_model(model: Any) -> str:
    """The name of the module that holds the language model."""
    decoder = model.get_decoder()
    for name, module in model.named_modules():
        if module is decoder and name:
            return str(name)
    raise ChatUnsupportedError(
        f"the language model inside {type(model).__name__} is not found, so it cannot be trained here; use another "
        "program for it"
    )


def _projectors(model: Any, decoder: str) -> list[str]:
    """Names of the modules between image encoder and language model, outermost first."""
    found: list[str] = []
    for name, _ in model.named_modules():
        parent, _, last = name.rpartition(".")
        listed = parent.rpartition(".")[2] == "deepstack_merger_list"
        known = (last in _PROJECTORS and last != "deepstack_merger_list") or listed
        inside = any(name.startswith(f"{outer}.") for outer in (*found, decoder))
        if known and not inside:
            found.append(name)
    if not found:
        raise ChatUnsupportedError(
            f"{type(model).__name__} has no projector by a known name ({', '.join(_PROJECTORS)}); leave it as it is: "
            "projector=False, --no-projector"
        )
    return found


def _target_pattern(model: Any, decoder: str, targets: tuple[str, ...]) -> str:
    """A pattern for the full names of the language model's linear layers; the output head is not one of them."""
    import torch

    layers = {
        name.rpartition(".")[2]
        for name, module in model.get_submodule(decoder).named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    unknown = sorted(set(targets) - layers)
    if unknown:
        raise OptionError(f"the language model has no linear layer {unknown[0]!r}; it has {', '.join(sorted(layers))}")
    leaves = "|".join(map(re.escape, sorted(targets or layers)))
    return rf"{re.escape(decoder)}\.(?:.+\.)?(?:{leaves})"
