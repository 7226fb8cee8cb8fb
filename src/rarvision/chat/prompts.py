"""Rendered requests as a model takes them, and those about one image as branches of what they begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rarvision.chat.base import ChatRequest

__all__ = ["BranchedPrompts", "Prompts", "common_start", "image_groups"]

_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Inputs with one value a token; all others (pixels, grids) belong to the images."""


def common_start(sequences: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all sequences share."""
    first = sequences[0]
    for at in range(min(map(len, sequences))):
        if any(sequence[at] != first[at] for sequence in sequences):
            return at
    return min(map(len, sequences))


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

    def shortened(self, drops: Sequence[int]) -> Prompts:
        """The prompts without their last tokens, so many of each; padded on the left."""
        lengths = self.lengths
        width = max(length - drop for length, drop in zip(lengths, drops, strict=True))
        inputs = dict(self.inputs)
        for key in _PER_TOKEN:
            if key not in inputs:
                continue
            old = inputs[key]
            new = old.new_full((len(drops), width), self.pad_id if key == "input_ids" else 0)
            for row, (length, drop) in enumerate(zip(lengths, drops, strict=True)):
                new[row, width - length + drop :] = old[row, old.shape[1] - length : old.shape[1] - drop]
            inputs[key] = new
        return Prompts(inputs=inputs, pad_id=self.pad_id)

    def tokens(self) -> list[list[int]]:
        """The tokens of each prompt, without padding."""
        ids = self.inputs["input_ids"].tolist()
        return [row[len(row) - length :] for row, length in zip(ids, self.lengths, strict=True)]


@dataclass(frozen=True, kw_only=True)
class BranchedPrompts:
    """Prompts of which several begin alike: the beginnings with their images, and how each prompt goes on.

    Attributes:
        stems: g different beginnings; all images are in them.
        stem_of: For each of the n prompts, the number of its beginning.
        rests: For each prompt, the tokens of text after its beginning; at least one.
    """

    stems: Prompts
    stem_of: tuple[int, ...]
    rests: tuple[tuple[int, ...], ...]

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return self.stems.pad_id

    @property
    def lengths(self) -> list[int]:
        """Tokens of each whole prompt."""
        stems = self.stems.lengths
        return [stems[stem] + len(rest) for stem, rest in zip(self.stem_of, self.rests, strict=True)]

    def extended(self, tails: Sequence[Sequence[int]]) -> BranchedPrompts:
        """The prompts, each followed by given tokens of text."""
        return replace(self, rests=tuple((*rest, *tail) for rest, tail in zip(self.rests, tails, strict=True)))

    def of_rows(self, rows: Sequence[int]) -> BranchedPrompts:
        """Some of the prompts, on the same beginnings."""
        return replace(
            self, stem_of=tuple(self.stem_of[row] for row in rows), rests=tuple(self.rests[row] for row in rows)
        )

    @classmethod
    def of(
        cls, heads: Prompts, groups: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], *, image_token: int
    ) -> BranchedPrompts | None:
        """Prompts from the first one of each group and the texts of all; None where they do not fit together.

        A processor puts as many tokens in an image's place as the image takes, which costs as much as preparing the
        image. It does so within what a group's prompts share, so that what follows is the text's own tokens.

        Args:
            heads: The whole prompt of the first request of each group.
            groups: Rows of requests with the same images; all rows, each once.
            texts: The tokens of each request's text, one token standing for an image.
            image_token: That token, which also marks an image's place in ``heads``.
        """
        stem_of = [0] * len(texts)
        rests: list[tuple[int, ...]] = [()] * len(texts)
        drops = []
        for number, (group, head) in enumerate(zip(groups, heads.tokens(), strict=True)):
            members = [list(texts[row]) for row in group]
            start = min(common_start(members), min(map(len, members)) - 1)
            tail = members[0][start:]
            stem = head[: len(head) - len(tail)]
            if image_token not in stem or head[len(stem) :] != tail or any(image_token in m[start:] for m in members):
                return None
            drops.append(len(tail))
            for row, member in zip(group, members, strict=True):
                stem_of[row], rests[row] = number, tuple(member[start:])
        return cls(stems=heads.shortened(drops), stem_of=tuple(stem_of), rests=tuple(rests))


def image_groups(requests: Sequence[ChatRequest]) -> list[list[int]]:
    """Row numbers of the requests about the same image objects, groups in the order in which they appear."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault(tuple(map(id, request.images)), []).append(row)
    return list(groups.values())
