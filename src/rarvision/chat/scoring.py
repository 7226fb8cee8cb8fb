"""Log-likelihood of given continuations: the prompt is computed once, its key-value cache shared by all of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from rarvision.errors import ChatUnsupportedError

__all__ = ["ContinuationScorer", "Prompts", "common_start", "rope_module", "with_positions"]

_log = logging.getLogger(__name__)

_LogProbs = Float[np.ndarray, " _"]
"""Of one prompt's continuations; each prompt has its own number of them."""

_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Inputs with one value a token; all others (pixels, grids) belong to the images."""

_MEMORY_BUDGET = 512 * 2**20
"""Bytes that the repeated cache and the logits of one forward pass may take, beyond one prompt's continuations."""


def common_start(sequences: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all sequences share."""
    first = sequences[0]
    for at in range(min(map(len, sequences))):
        if any(sequence[at] != first[at] for sequence in sequences):
            return at
    return min(map(len, sequences))


def rope_module(model: Any) -> Any | None:
    """The module that counts positions by images and keeps the last count (Qwen-VL's kin); None for others."""
    return next((module for module in model.modules() if hasattr(module, "rope_deltas")), None)


def with_positions(inputs: Mapping[str, Any], rope: Any | None) -> dict[str, Any]:
    """Inputs of whole prompts, with the positions of left-padded tokens: 0, 1, … from the first that counts.

    A model that counts by images (`rope_module`) counts itself; what it kept of an earlier image is dropped.
    """
    if rope is not None:
        rope.rope_deltas = None
        if any(key in inputs for key in ("pixel_values", "image_grid_thw")):
            return dict(inputs)
    return {**inputs, "position_ids": (inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)}


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A batch of rendered requests, padded on the left.

    Attributes:
        inputs: What the model takes: ``input_ids`` and ``attention_mask`` [n, width], pixels, grids.
        pad_id: The padding token.
    """

    inputs: dict[str, Any]
    pad_id: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt, without padding."""
        lengths: list[int] = self.inputs["attention_mask"].sum(-1).tolist()
        return lengths

    def to(self, device: Any, dtype: Any) -> Prompts:
        """The same on a device; what is floating, the pixels, in ``dtype``."""
        moved = {
            key: value.to(device, dtype if value.is_floating_point() else None) if hasattr(value, "to") else value
            for key, value in self.inputs.items()
        }
        return Prompts(inputs=moved, pad_id=self.pad_id)

    def extended(self, tails: Sequence[Sequence[int]]) -> Prompts:
        """The prompts, each followed by given tokens of text; again padded on the left."""
        if not any(tails):
            return self
        import torch

        lengths = self.lengths
        width = max(length + len(tail) for length, tail in zip(lengths, tails, strict=True))
        inputs = dict(self.inputs)
        for key in _PER_TOKEN:
            if key not in inputs:
                continue
            old = inputs[key]
            new = old.new_full((len(tails), width), self.pad_id if key == "input_ids" else 0)
            for row, (length, tail) in enumerate(zip(lengths, tails, strict=True)):
                start = width - length - len(tail)
                new[row, start : start + length] = old[row, old.shape[1] - length :]
                if tail and key in ("input_ids", "attention_mask"):
                    new[row, start + length :] = torch.as_tensor(tail, device=old.device) if key == "input_ids" else 1
            inputs[key] = new
        return Prompts(inputs=inputs, pad_id=self.pad_id)


class ContinuationScorer:
    """Scores continuations of prompts under one model.

    Attributes:
        prefix_reuse: Whether the prompt's cache is shared; turned off, with a warning, for a model on which that fails
            or gives other values than a computation from scratch.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.prefix_reuse = True
        self._checked = False
        self._rope = rope_module(model)

    def score(
        self,
        prompts: Prompts,
        continuations: Sequence[Sequence[Sequence[int]]],
        *,
        single: Callable[[int], Prompts] | None = None,
    ) -> list[_LogProbs]:
        """Summed natural log-probabilities (float64) of each prompt's continuations.

        Args:
            prompts: n prompts.
            continuations: For each, one or more non-empty token sequences.
            single: Renders one prompt alone, for scoring from scratch; may be None where all continuations of a prompt
                differ in their last token only, so that nothing needs a cache.
        """
        import torch

        with torch.inference_mode():
            if single is None or not self._needs_cache(continuations):
                return self._shared(prompts, continuations)
            if self.prefix_reuse:
                try:
                    scored = self._shared(prompts, continuations)
                    if not self._checked:
                        self._check(scored, continuations, single)
                except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
                    if "out of memory" in str(error):
                        raise
                    self._give_up(f"it failed with {type(error).__name__}: {error}")
                if self.prefix_reuse:
                    return scored
            return [self._scratch(single(row), texts) for row, texts in enumerate(continuations)]

    @staticmethod
    def _needs_cache(continuations: Sequence[Sequence[Sequence[int]]]) -> bool:
        return any(len(text) > common_start(texts) + 1 for texts in continuations for text in texts)

    def _give_up(self, reason: str) -> None:
        self.prefix_reuse = False
        _log.warning("prompts are computed anew for every continuation (slower): sharing their cache: %s", reason)

    def _check(
        self,
        scored: Sequence[_LogProbs],
        continuations: Sequence[Sequence[Sequence[int]]],
        single: Callable[[int], Prompts],
    ) -> None:
        """Compare one value, of the last prompt's longest continuation, with that from scratch; once a model."""
        import torch

        row = len(continuations) - 1
        longest = max(range(len(continuations[row])), key=lambda i: len(continuations[row][i]))
        text = continuations[row][longest]
        expected = float(self._scratch(single(row), [text])[0])
        got = float(scored[row][longest])
        tolerance = 0.01 if self._model.dtype == torch.float32 else 0.2
        if not abs(got - expected) <= tolerance * max(len(text), 0.05 * abs(expected)):
            self._give_up(f"it gave {got:.4f} where a computation from scratch gave {expected:.4f}")
        self._checked = True

    def _forward_prompts(self, prompts: Prompts, *, keep: int, use_cache: bool) -> Any:
        inputs = with_positions(prompts.inputs, self._rope)
        return self._model(**inputs, use_cache=use_cache, logits_to_keep=keep)

    def _forget_positions(self) -> None:
        """Drop what the model keeps of an earlier image's forward pass: wrong, and silently so, for another."""
        if self._rope is not None:
            self._rope.rope_deltas = None

    def _shared(self, prompts: Prompts, continuations: Sequence[Sequence[Sequence[int]]]) -> list[_LogProbs]:
        """Prompts once, with the tokens that all of a prompt's continuations share; then the rest on their cache."""
        shared = [min(common_start(texts), min(map(len, texts)) - 1) for texts in continuations]
        starts = [list(texts[0][:n]) for texts, n in zip(continuations, shared, strict=True)]
        extended = prompts.extended(starts)
        rests = [
            (row, i, list(text[n:]))
            for row, (texts, n) in enumerate(zip(continuations, shared, strict=True))
            for i, text in enumerate(texts)
        ]
        longer = [item for item in rests if len(item[2]) > 1]
        keep = max(shared) + 1
        output = self._forward_prompts(extended, keep=keep, use_cache=bool(longer))
        heads = _log_softmax(output.logits[:, -keep:])  # [n, keep, vocabulary]
        totals = []
        for row, (texts, start) in enumerate(zip(continuations, starts, strict=True)):
            own = heads[row, keep - 1 - len(start) :]
            base = sum(float(own[at, token]) for at, token in enumerate(start))
            first = own[len(start), [text[len(start)] for text in texts]]
            totals.append(base + first.cpu().numpy())
        if longer:
            self._add_rests(totals, extended, output, longer)
        return totals

    def _add_rests(
        self,
        totals: list[_LogProbs],
        prompts: Prompts,
        output: Any,
        rests: list[tuple[int, int, list[int]]],
    ) -> None:
        """Add the log-probabilities of all tokens after each continuation's first, reading the prompts' cache."""
        import torch

        cache, deltas = output.past_key_values, None
        if self._rope is not None and self._rope.rope_deltas is not None:
            deltas = self._rope.rope_deltas.reshape(-1, 1)  # [n, 1]; the module keeps only the latest forward's
        mask = prompts.inputs["attention_mask"]
        rests = sorted(rests, key=lambda item: len(item[2]))  # rows of like length share a chunk
        size = self._rows_per_pass(output, rests[-1][2])
        chunks = [rests[at : at + size] for at in range(0, len(rests), size)]
        for number, chunk in enumerate(chunks):
            rows = torch.tensor([row for row, _, _ in chunk], device=mask.device)
            width = max(len(text) for _, _, text in chunk) - 1
            ids = mask.new_full((len(chunk), width), prompts.pad_id)
            targets, seen = mask.new_zeros((len(chunk), width)), mask.new_zeros((len(chunk), width))
            for at, (_, _, text) in enumerate(chunk):
                tokens = torch.as_tensor(text, device=mask.device)
                ids[at, : len(text) - 1], targets[at, : len(text) - 1] = tokens[:-1], tokens[1:]
                seen[at, : len(text) - 1] = 1
            own = cache if number == len(chunks) - 1 else copy.deepcopy(cache)
            own.batch_select_indices(rows)
            positions = mask.sum(-1)[rows, None] + torch.arange(width, device=mask.device)
            if self._rope is not None:
                if deltas is not None:
                    positions = positions + deltas.to(positions.device)[rows if len(deltas) > 1 else [0] * len(rows)]
                positions = positions.expand(3, -1, -1)
            result = self._model(
                input_ids=ids,
                attention_mask=torch.cat([mask[rows], seen], dim=1),
                position_ids=positions,
                past_key_values=own,
                use_cache=True,
            )
            values = _log_softmax(result.logits)
            values = values.gather(-1, targets.to(values.device)[:, :, None])[..., 0]
            sums = values.masked_fill(seen.to(values.device) == 0, 0.0).sum(-1).tolist()
            for (row, i, _), total in zip(chunk, sums, strict=True):
                totals[row][i] += total

    def _rows_per_pass(self, output: Any, longest: list[int]) -> int:
        """Continuations in one forward pass: as many as the memory budget holds, 4 at least."""
        logits = output.logits
        a_row = len(longest) * logits.shape[-1] * (logits.element_size() + 8)
        for layer in getattr(output.past_key_values, "layers", ()):
            for part in (getattr(layer, "keys", None), getattr(layer, "values", None)):
                if part is not None:
                    a_row += 2 * part[0].numel() * part.element_size()
        return int(max(4, _MEMORY_BUDGET // max(1, a_row)))

    def _scratch(self, prompt: Prompts, texts: Sequence[Sequence[int]]) -> _LogProbs:
        """Each continuation of one prompt by a full forward pass of its own: slow, but needs no cache or positions."""
        import torch

        values = []
        for text in texts:
            whole = prompt.extended([list(text[:-1])])
            self._forget_positions()
            try:
                logits = self._model(**whole.inputs, use_cache=False, logits_to_keep=len(text)).logits[0, -len(text) :]
            except (IndexError, TypeError, ValueError) as error:
                raise ChatUnsupportedError(
                    f"{type(self._model).__name__} cannot score given texts ({error}); use the strategy 'generate' or "
                    f"'choice'"
                ) from error
            targets = torch.as_tensor(list(text), device=logits.device)
            values.append(float(_log_softmax(logits).gather(-1, targets[:, None]).sum()))
        return np.asarray(values)


def _log_softmax(logits: Any) -> Any:
    """Over the last dimension, in float64; on the CPU where the device has none."""
    return (logits.cpu() if logits.device.type == "mps" else logits).double().log_softmax(-1)
