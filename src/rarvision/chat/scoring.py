"""Log-likelihood of given continuations, with what several of them follow computed once and its key-value cache shared.

Twice over: a prompt is shared by its continuations, and an image with the text around it by the prompts about it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from rarvision.chat.prompts import BranchedPrompts, Prompts, common_start
from rarvision.errors import ChatUnsupportedError

__all__ = ["ContinuationScorer", "rope_module", "with_positions"]

_log = logging.getLogger(__name__)

_LogProbs = Float[np.ndarray, " _"]
"""Of one prompt's continuations; each prompt has its own number of them."""

_MEMORY_BUDGET = 512 * 2**20
"""Bytes that the repeated cache and the logits of one forward pass may take, beyond one prompt's continuations."""

_FAILURES = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model raises that takes no cache, or not as it is used here."""


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
    return {**inputs, "position_ids": _positions(inputs["attention_mask"])}


def _positions(mask: Any) -> Any:
    """Positions of left-padded tokens: 0, 1, … from the first that counts."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class _Computed:
    """What a forward pass leaves: logits of the last places, and the cache with what it takes to go on from it.

    Attributes:
        logits: [n, kept, vocabulary].
        cache: Keys and values of n rows.
        mask: Which places of the cache count, [n, width].
        deltas: Positions less the number of tokens before, [n, 1]; None where they are the same.
    """

    logits: Any
    cache: Any
    mask: Any
    deltas: Any


class _Compute(Protocol):
    def __call__(self, prompts: Any, *, keep: int, use_cache: bool) -> _Computed: ...


class ContinuationScorer:
    """Scores continuations of prompts under one model.

    Attributes:
        prefix_reuse: Whether the prompt's cache is shared by its continuations; turned off, with a warning, for a model
            on which that fails or gives other values than a computation from scratch.
        image_reuse: The same of an image's computation, which the prompts about it share.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.prefix_reuse = True
        self.image_reuse = True
        self._checked = False
        self._branches_checked: set[bool] = set()
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
                return self._totals(prompts, continuations, self._forward_prompts)
            if self.prefix_reuse:
                try:
                    scored = self._totals(prompts, continuations, self._forward_prompts)
                    if not self._checked:
                        row = len(continuations) - 1
                        self._check_prefix(self._difference(scored[row], continuations[row], single(row)))
                except _FAILURES as error:
                    if "out of memory" in str(error):
                        raise
                    self._refuse_prefix(_failure(error))
                if self.prefix_reuse:
                    return scored
            return [self._scratch(single(row), texts) for row, texts in enumerate(continuations)]

    def score_branched(
        self,
        prompts: BranchedPrompts,
        continuations: Sequence[Sequence[Sequence[int]]],
        *,
        single: Callable[[int], Prompts],
    ) -> list[_LogProbs] | None:
        """The same for prompts that begin alike: each beginning is computed once.

        The first call, and the first one in which prompts of one pass differ in length, are checked against a
        computation from scratch.

        Returns:
            As of `score`; None where this model cannot do it: then, and from then on, `score` does.
        """
        import torch

        with torch.inference_mode():
            if not self.image_reuse:
                return None
            try:
                scored = self._score_branches(prompts, continuations)
                ragged = len(set(map(len, prompts.rests))) > 1
                if ragged not in self._branches_checked:
                    for row in _telling_rows(prompts):
                        difference = self._difference(scored[row], continuations[row], single(row))
                        if difference is not None:
                            self._refuse_branches(difference)
                            return None
                    self._branches_checked |= {ragged, False}
            except (*_FAILURES, ChatUnsupportedError) as error:
                if "out of memory" in str(error):
                    raise
                self._refuse_branches(_failure(error))
                return None
            return scored

    @staticmethod
    def _needs_cache(continuations: Sequence[Sequence[Sequence[int]]]) -> bool:
        return any(len(text) > common_start(texts) + 1 for texts in continuations for text in texts)

    def _check_prefix(self, difference: str | None) -> None:
        if difference is not None:
            self._refuse_prefix(difference)
        self._checked = True

    def _refuse_prefix(self, reason: str) -> None:
        self.prefix_reuse = False
        _log.warning("prompts are computed anew for every continuation (slower): sharing their cache: %s", reason)

    def _refuse_branches(self, reason: str) -> None:
        self.image_reuse = False
        _log.warning("an image is computed anew for every prompt about it (slower): sharing its cache: %s", reason)

    def _difference(self, scored: _LogProbs, texts: Sequence[Sequence[int]], prompt: Prompts) -> str | None:
        """How the value of a prompt's longest continuation differs from that from scratch; None where it does not."""
        import torch

        longest = max(range(len(texts)), key=lambda i: len(texts[i]))
        text = texts[longest]
        expected = float(self._scratch(prompt, [text])[0])
        got = float(scored[longest])
        tolerance = 0.01 if self._model.dtype == torch.float32 else 0.2
        if abs(got - expected) <= tolerance * max(len(text), 0.05 * abs(expected)):
            return None
        return f"it gave {got:.4f} where a computation from scratch gave {expected:.4f}"

    def _forward_prompts(self, prompts: Prompts, *, keep: int, use_cache: bool) -> _Computed:
        """Whole prompts, images included."""
        inputs = with_positions(prompts.inputs, self._rope)
        output = self._model(**inputs, use_cache=use_cache, logits_to_keep=keep)
        mask, deltas = inputs["attention_mask"], None
        if self._rope is not None and self._rope.rope_deltas is not None:
            deltas = self._rope.rope_deltas.reshape(-1, 1).to(mask.device).expand(len(mask), 1)
        cache = getattr(output, "past_key_values", None)
        return _Computed(logits=output.logits, cache=cache, mask=mask, deltas=deltas)

    def _go_on(
        self, before: _Computed, rows: Sequence[int], tokens: Any, seen: Any, *, keep: int | None, last: bool
    ) -> _Computed:
        """Tokens of text on the cache of what came before.

        Args:
            before: What came before.
            rows: For each row of ``tokens``, the row of ``before`` that it follows.
            tokens: Token numbers, [n, width], padded on either side.
            seen: Which of them count, [n, width].
            keep: Places whose logits are wanted, from the end; None for all.
            last: Whether nothing else will follow ``before``, whose cache is then used up.
        """
        import torch

        at = torch.tensor(list(rows), device=before.mask.device)
        cache = before.cache if last else copy.deepcopy(before.cache)
        cache.batch_select_indices(at)
        mask = torch.cat([before.mask[at], seen], dim=1)
        positions = _positions(mask)[:, -tokens.shape[1] :]
        deltas = None if before.deltas is None else before.deltas[at]
        if self._rope is not None:
            positions = (positions if deltas is None else positions + deltas).expand(3, -1, -1)
        wanted = {} if keep is None else {"logits_to_keep": keep}
        output = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **wanted,
        )
        return _Computed(logits=output.logits, cache=output.past_key_values, mask=mask, deltas=deltas)

    def _forget_positions(self) -> None:
        """Drop what the model keeps of an earlier image's forward pass: wrong, and silently so, for another."""
        if self._rope is not None:
            self._rope.rope_deltas = None

    def _totals(
        self, prompts: Prompts | BranchedPrompts, continuations: Sequence[Sequence[Sequence[int]]], compute: _Compute
    ) -> list[_LogProbs]:
        """Prompts once, with the tokens that all of a prompt's continuations share; then the rest on their cache."""
        shared = [min(common_start(texts), min(map(len, texts)) - 1) for texts in continuations]
        starts = [list(texts[0][:n]) for texts, n in zip(continuations, shared, strict=True)]
        rests = [
            (row, i, list(text[n:]))
            for row, (texts, n) in enumerate(zip(continuations, shared, strict=True))
            for i, text in enumerate(texts)
        ]
        longer = [item for item in rests if len(item[2]) > 1]
        keep = max(shared) + 1
        computed = compute(prompts.extended(starts), keep=keep, use_cache=bool(longer))
        heads = _log_softmax(computed.logits[:, -keep:])  # [n, keep, vocabulary]
        totals = []
        for row, (texts, start) in enumerate(zip(continuations, starts, strict=True)):
            own = heads[row, keep - 1 - len(start) :]
            base = sum(float(own[at, token]) for at, token in enumerate(start))
            first = own[len(start), [text[len(start)] for text in texts]]
            totals.append(base + first.cpu().numpy())
        if longer:
            self._add_rests(totals, computed, longer, pad_id=prompts.pad_id)
        return totals

    def _score_branches(
        self, prompts: BranchedPrompts, continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[_LogProbs]:
        """The beginnings once; then the prompts on their cache.

        As many at a time as have about as many tokens as the beginnings: what fits them fits these, and on a CPU more
        at a time would be slower, for its caches.
        """
        stems = self._forward_prompts(prompts.stems, keep=1, use_cache=True)
        if any(getattr(stems.cache, "is_sliding", ())) or any(getattr(stems.cache, "is_linear", ())):
            raise NotImplementedError("its attention slides over a window or keeps a state, in which padding counts")
        longest = max(map(len, prompts.rests))
        fitting = min(stems.mask.numel() // longest, _MEMORY_BUDGET // max(1, 2 * _cache_bytes(stems.cache)))
        size = max(4, len(stems.mask), fitting)
        rows = sorted(range(len(prompts.rests)), key=lambda row: len(prompts.rests[row]))  # of like length together
        found: dict[int, _LogProbs] = {}
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            branch = partial(self._forward_branches, stems, last=start + size >= len(rows))
            totals = self._totals(prompts.of_rows(chunk), [continuations[row] for row in chunk], branch)
            found.update(zip(chunk, totals, strict=True))
        return [found[row] for row in range(len(rows))]

    def _forward_branches(
        self, stems: _Computed, prompts: BranchedPrompts, *, keep: int, use_cache: bool, last: bool
    ) -> _Computed:
        """What follows the beginnings, padded on the left."""
        import torch

        del use_cache  # the beginnings' cache is needed either way
        width = max(map(len, prompts.rests))
        tokens = stems.mask.new_full((len(prompts.rests), width), prompts.pad_id)
        seen = torch.zeros_like(tokens)
        for row, rest in enumerate(prompts.rests):
            tokens[row, width - len(rest) :] = torch.as_tensor(rest, device=tokens.device)
            seen[row, width - len(rest) :] = 1
        return self._go_on(stems, prompts.stem_of, tokens, seen, keep=keep, last=last)

    def _add_rests(
        self, totals: list[_LogProbs], computed: _Computed, rests: list[tuple[int, int, list[int]]], *, pad_id: int
    ) -> None:
        """Add the log-probabilities of all tokens after each continuation's first, reading the prompts' cache."""
        import torch

        mask = computed.mask
        rests = sorted(rests, key=lambda item: len(item[2]))  # rows of like length share a chunk
        logits = computed.logits
        a_row = 2 * _cache_bytes(computed.cache) + len(rests[-1][2]) * logits.shape[-1] * (logits.element_size() + 8)
        size = int(max(4, _MEMORY_BUDGET // max(1, a_row)))
        chunks = [rests[at : at + size] for at in range(0, len(rests), size)]
        for number, chunk in enumerate(chunks):
            width = max(len(text) for _, _, text in chunk) - 1
            tokens = mask.new_full((len(chunk), width), pad_id)
            targets, seen = torch.zeros_like(tokens), torch.zeros_like(tokens)
            for at, (_, _, text) in enumerate(chunk):
                ids = torch.as_tensor(text, device=mask.device)
                tokens[at, : len(text) - 1], targets[at, : len(text) - 1] = ids[:-1], ids[1:]
                seen[at, : len(text) - 1] = 1
            rows = [row for row, _, _ in chunk]
            result = self._go_on(computed, rows, tokens, seen, keep=None, last=number == len(chunks) - 1)
            values = _log_softmax(result.logits)
            values = values.gather(-1, targets.to(values.device)[:, :, None])[..., 0]
            sums = values.masked_fill(seen.to(values.device) == 0, 0.0).sum(-1).tolist()
            for (row, i, _), total in zip(chunk, sums, strict=True):
                totals[row][i] += total

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


def _cache_bytes(cache: Any) -> int:
    """Bytes of one row."""
    parts = (getattr(layer, key, None) for layer in getattr(cache, "layers", ()) for key in ("keys", "values"))
    return sum(part[0].numel() * part.element_size() for part in parts if part is not None)


def _failure(error: Exception) -> str:
    return f"it failed with {type(error).__name__}: {error}"


def _telling_rows(prompts: BranchedPrompts) -> set[int]:
    """The prompts in which mistakes show: the one with the most padding, and one that is not its beginning's first."""
    rows = range(len(prompts.rests))
    padded = min(rows, key=lambda row: len(prompts.rests[row]))
    return {padded, next(row for row in reversed(rows) if prompts.stem_of[row] in prompts.stem_of[:row])}
