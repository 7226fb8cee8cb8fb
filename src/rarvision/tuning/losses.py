"""The losses: of an answer's tokens, and of an order over options. All are sums, to be divided by what they count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rarvision.tuning.collate import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["answer_loss", "choice_loss"]


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of the labelled tokens.

    Args:
        logits: (n, keep, vocabulary), of the last ``keep`` positions.
        labels: (n, width), of all positions; those before the last ``keep - 1`` must be ``IGNORED``.

    Returns:
        The sum over all labelled tokens, in nats, float32.
    """
    from torch.nn.functional import cross_entropy

    kept = logits.shape[1] - 1
    predicted = logits[:, :-1].flatten(0, 1).float()
    return cross_entropy(predicted, labels[:, -kept:].flatten(), ignore_index=IGNORED, reduction="sum")


def choice_loss(logits: Tensor, options: Tensor, order: Tensor, *, listwise: bool) -> Tensor:
    """Cross-entropy over each question's own options: no other token of the vocabulary counts.

    Args:
        logits: (n, keep, vocabulary), of the last ``keep`` positions, the last of which holds an option's token.
        options: (n, k), the options' tokens, padded with -1.
        order: (n, k), places in ``options``, the best first, padded with -1.
        listwise: Whether the whole order is learned: the negative log-likelihood of Plackett and Luce, in which each
            place is drawn from the options that are left, divided by the number of draws. False: the first place only.

    Returns:
        The sum over the n questions, in nats, float32.
    """
    there = order >= 0
    scores = logits[:, -2].float().gather(1, options.clamp(min=0)).masked_fill(options < 0, -1e9)
    scores = scores.gather(1, order.clamp(min=0)).masked_fill(~there, -1e9)
    left = scores.flip(1).logcumsumexp(1).flip(1)  # log-sum over this place and all after it
    terms = left - scores
    if not listwise:
        return terms[:, 0].sum()
    draws = (there.sum(1) - 1).clamp(min=1)  # the last option is drawn from itself alone: its term is 0
    return (terms.masked_fill(~there, 0.0).sum(1) / draws).sum()
