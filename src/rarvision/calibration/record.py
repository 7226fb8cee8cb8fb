"""What was fitted for one ranker on one memory, as it is kept with the memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from rarvision.calibration.fitting import GateCurve, GateModel, MixFit
from rarvision.calibration.mixing import Calibration
from rarvision.errors import InputError
from rarvision.taxonomy import SureFit

__all__ = ["FitStatus", "RankerFit"]

FitStatus = Literal["fitted", "partial", "unfitted", "stale", "given"]
"""``fitted`` on the memory as it is; ``partial``: the ranker's weight alone, since its categories have one image each;
``unfitted``: shipped defaults; ``stale``: fitted before the memory changed; ``given`` by the caller."""


@dataclass(frozen=True, kw_only=True)
class RankerFit:
    """The mix, the threshold of "unknown" and the gate of one ranker, fitted by leaving a memory's images out.

    Attributes:
        key: Hash of the retriever's and the ranker's settings: for any other, this says nothing.
        memory_content: `Memory.content_hash` of what it was fitted on.
        mixed: Parameters where the ranker answers.
        alone: Parameters where it is not asked, or gives nothing.
        mix: How well both do; cross-fitted.
        asked: Questions that were answered: images left out, and images whose category was.
        missing: Questions left out, since their image could not be had, or was refused by the MLLM.
        gate: When not to ask; None where that could not be fitted.
        gate_reason: Why there is no gate, or why it never asks.
        curve: Accuracy against the share of images for which the ranker is asked.
        measures: Figures over the images that were left out, cross-fitted: calibration error, Brier score and AUROC of
            "right" before and after, AUROC of "foreign" with and without the ranker.
        sure: The threshold of sure answers for one taxonomy; None without one, or where it could not be fitted.
        sure_reason: Why there is none.
        settings: The retriever's and the ranker's settings, for people.
        version: Of this package.
    """

    key: str
    memory_content: str
    mixed: Calibration
    alone: Calibration
    mix: MixFit
    asked: int = 0
    missing: int = 0
    gate: GateModel | None = None
    gate_reason: str | None = None
    curve: GateCurve | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    sure: SureFit | None = None
    sure_reason: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    def status(self, memory_content: str) -> FitStatus:
        """What this fit is for a memory of that content."""
        if self.mix.status == "unfitted":
            return "unfitted"
        return self.mix.status if memory_content == self.memory_content else "stale"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("mixed", "alone", "mix", "gate", "sure"):
            values[name] = None if values[name] is None else asdict(values[name])
        values["curve"] = None if self.curve is None else self.curve.to_dict()
        return {**values, "measures": dict(self.measures), "settings": dict(self.settings)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`; `InputError` where it is none."""
        try:
            curve = values["curve"]
            return cls(
                **{
                    **values,
                    "mixed": Calibration(**values["mixed"]),
                    "alone": Calibration(**values["alone"]),
                    "mix": MixFit(**values["mix"]),
                    "gate": None if values["gate"] is None else GateModel(**values["gate"]),
                    "sure": None if values.get("sure") is None else SureFit(**values["sure"]),
                    "curve": None if curve is None else GateCurve(**{k: tuple(v) for k, v in curve.items()}),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"not a fit of this version of rarvision ({error}); fit again") from error
