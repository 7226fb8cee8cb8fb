"""What a model prefers before it looks: the prior of an option's letter and place, and of names without an image."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from rarvision.errors import InputError, OptionError
from rarvision.ranking.permutations import normalised

__all__ = ["BlankScores", "OptionPrior", "blank_image", "estimate_prior"]

_DIGITS = 6
_TINY = 1e-12
_BLANK_SIDE = 224


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionPrior:
    """How much a model favours an option for its letter and its place in the list, whatever stands there.

    Made by `Ranker.estimate_bias`, subtracted by ``Ranker(…, bias=…)``. `to_dict` and `from_dict` go through JSON.

    Attributes:
        log_priors: For each number k of options, the k natural log-probabilities of the places, which sum to 1.
        images: For each k, how many images it was estimated from.
        chat: The model's name, for reports.
        asked: How it was asked (strategy, prompt, …); a ranker that asks otherwise refuses the prior.

    Raises:
        OptionError: Nothing in it, or values that are no log-probabilities of k places.

    Source: PriDe, Zheng et al., arXiv 2309.03882.
    """

    log_priors: Mapping[int, tuple[float, ...]]
    images: Mapping[int, int]
    chat: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.log_priors:
            raise OptionError("an OptionPrior needs log-priors for at least one number of options, got none")
        if set(self.log_priors) != set(self.images):
            raise OptionError(
                f"an OptionPrior needs log_priors and images for the same numbers of options, got "
                f"{sorted(self.log_priors)} and {sorted(self.images)}"
            )
        for k, values in self.log_priors.items():
            if len(values) != k or k < 2 or not all(map(math.isfinite, values)):
                raise OptionError(f"the log-prior of {k} options must be {k} finite numbers, got {list(values)}")
            if abs(math.fsum(map(math.exp, values)) - 1.0) > 1e-3:
                raise OptionError(f"the priors of {k} options must sum to 1, got the logarithms {list(values)}")

    def for_options(self, k: int) -> Float[np.ndarray, " k"]:
        """Log-priors of k places.

        Where k was not among the estimated numbers, those of the next larger one are cut and normalised.

        Raises:
            OptionError: More options than it was estimated for.
        """
        larger = [known for known in self.log_priors if known >= k]
        if not larger:
            raise OptionError(
                f"the prior was estimated for lists of up to {max(self.log_priors)} names, got a list of {k}; estimate "
                "it anew on lists as long as those that are ranked"
            )
        return normalised(np.asarray(self.log_priors[min(larger)][:k], dtype=np.float64))

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the keys of ``log_priors`` and ``images`` are texts."""
        values = asdict(self)
        values["log_priors"] = {str(k): list(each) for k, each in self.log_priors.items()}
        values["images"] = {str(k): count for k, count in self.images.items()}
        return values

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OptionPrior:
        """What `to_dict` wrote; raises `OptionError` where it is something else."""
        try:
            return cls(
                log_priors={int(k): tuple(map(float, each)) for k, each in values["log_priors"].items()},
                images={int(k): int(count) for k, count in values["images"].items()},
                chat=str(values["chat"]),
                asked=dict(values["asked"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OptionError(f"expected an OptionPrior's JSON object, got something else: {error!r}") from error


def estimate_prior(tables: Sequence[Float[np.ndarray, "k k"]], *, chat: str, asked: Mapping[str, Any]) -> OptionPrior:
    """The prior of each place from scores under all cyclic permutations.

    Over all rotations every name stands at every place once. So a place's mean log-probability over them is its own
    part and a constant: its softmax is the image's estimate of the prior, and the mean over the images the result.

    Args:
        tables: For each image its log-scores: a row a rotation, a column a place *as shown*. Images whose scores are
            not numbers, or none of whose scores was reported in some rotation, are left out.
        chat: The model's name.
        asked: How it was asked.

    Raises:
        InputError: No image can be used.

    Source: PriDe, Zheng et al., arXiv 2309.03882, section 4.
    """
    found: dict[int, list[Float[np.ndarray, " k"]]] = {}
    for table in tables:
        if np.isnan(table).any() or (table == np.inf).any() or not np.isfinite(table).any(axis=1).all():
            continue
        mean = np.mean([normalised(row) for row in table], axis=0)
        found.setdefault(len(mean), []).append(np.exp(normalised(mean)))
    if not found:
        raise InputError(
            f"expected images with at least two different candidates and scores that are numbers, got none among "
            f"{len(tables)}; the reason of a ranking (Ranking.reason) says what is wrong with its scores"
        )
    return OptionPrior(
        log_priors={
            k: tuple(round(float(value), _DIGITS) for value in np.log(np.maximum(np.mean(priors, axis=0), _TINY)))
            for k, priors in sorted(found.items())
        },
        images={k: len(priors) for k, priors in sorted(found.items())},
        chat=chat,
        asked=asked,
    )


def blank_image() -> Image.Image:
    """A grey image, which shows nothing: what a model answers about it, it would answer without looking."""
    return Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE), (128, 128, 128))


class BlankScores:
    """Scores that questions get about a blank image, the most recently used ones; safe among threads.

    A question's key is its list of names as shown, with the worked example that comes before where there is one.

    Args:
        size: How many are kept.
    """

    def __init__(self, size: int = 4096) -> None:
        self.image = blank_image()  # one object, so that a chat may compute it once
        self._size = size
        self._kept: OrderedDict[Hashable, Float[np.ndarray, " n"]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, question: Hashable) -> Float[np.ndarray, " n"] | None:
        """The scores of a question, None where they are not kept."""
        with self._lock:
            if question in self._kept:
                self._kept.move_to_end(question)
            return self._kept.get(question)

    def put(self, question: Hashable, scores: Float[np.ndarray, " n"]) -> None:
        """Keep the scores of a question; the one longest unused goes."""
        with self._lock:
            self._kept[question] = scores
            self._kept.move_to_end(question)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
