"""The options that make up the one path from an image to a prediction, for every command that walks it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Any, cast, get_type_hints

from rarvision.cli import options
from rarvision.cli.ranker_options import HELP

__all__ = ["PathOptions", "spread"]


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """A memory, what it retrieves, and who ranks it; see `rarvision.cli.options`."""

    memory: options.MemoryOption
    ranker: options.RankerOption = "none"
    k: options.KOption = 5
    strategy: options.StrategyOption = options.Strategy.AUTO
    constrained: options.ConstrainedOption = False
    prompt: options.PromptOption = None
    ranker_weight: options.RankerWeightOption = "auto"
    gate: options.GateOption = "off"
    unknown: options.UnknownOption = "off"
    fit: options.FitOption = True
    taxonomy: options.TaxonomyOption = None
    sure: options.SureOption = "0.9"
    permutations: options.PermutationsOption = "1"
    debias: options.DebiasOption = None
    exemplars: options.ExemplarsOption = 0
    descriptions: options.DescriptionsOption = False
    layout: options.LayoutOption = options.Layout.AUTO
    worked_example: options.WorkedExampleOption = False
    calibration: options.CalibrationOption = None
    retrieval: options.RetrievalSourceOption = options.RetrievalSource.FUSED
    aggregate: options.AggregateOption = options.Aggregate.BLEND
    hubness: options.HubnessOption = options.Hubness.NONE
    text_weight: options.TextWeightOption = "0.5"
    views: options.ViewsOption = options.Views.WHOLE
    repeats: options.RepeatsOption = False
    allow_fallback: options.AllowFallbackOption = False
    quantization: options.QuantizationOption = None
    adapter: options.AdapterOption = None
    ranker_model: options.RankerModelOption = None
    ranker_option: options.RankerOptionOption = None
    api_key: options.ApiKeyOption = None
    timeout: options.TimeoutOption = 60.0
    encoder: options.EncoderOption = None
    batch_size: options.BatchSizeOption = 8
    device: options.DeviceOption = "auto"
    max_pixels: options.MaxPixelsOption = None


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Offer the fields of parameters that are dataclasses of options, such as `PathOptions`, in their place.

    The command's help goes on with the keys of ``--ranker-option``.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters = []
    bundles: dict[str, type[Any]] = {}
    for parameter in inspect.signature(command).parameters.values():
        bundle = hints[parameter.name]
        if not is_dataclass(bundle):
            parameters.append(parameter.replace(annotation=bundle))
            continue
        bundles[parameter.name] = cast("type[Any]", bundle)
        known = get_type_hints(bundle, include_extras=True)
        for field in fields(bundle):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=known[field.name]))

    @wraps(command)
    def spread_out(**given: Any) -> None:
        named = {
            name: bundle(**{field.name: given.pop(field.name) for field in fields(bundle)})
            for name, bundle in bundles.items()
        }
        command(**given, **named)

    spread_out.__doc__ = f"{inspect.cleandoc(command.__doc__ or '')}\n\n\b\n{HELP}"
    spread_out.__dict__["__signature__"] = inspect.Signature(parameters, return_annotation=None)
    spread_out.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return spread_out
