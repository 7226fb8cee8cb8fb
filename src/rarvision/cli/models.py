"""From what the command line names to encoders, memories and rankers."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rarvision.cli.levels import open_tree, read_sure
from rarvision.cli.output import say
from rarvision.cli.path import PathOptions
from rarvision.cli.ranker_options import Debias, read_debias, read_permutations, read_ranker_options
from rarvision.errors import OptionError

if TYPE_CHECKING:
    from rarvision.calibration import Calibration
    from rarvision.chat import Chat
    from rarvision.encoders import Encoder
    from rarvision.memory import Memory
    from rarvision.pipeline import Recognizable, Recognizer
    from rarvision.ranking import Ranker

__all__ = [
    "ENCODER_KEY",
    "RankerOptions",
    "bind_encoder",
    "is_main_process",
    "local_mllm",
    "open_encoder",
    "open_mllm",
    "open_ranker",
    "open_recognizer",
    "quiet_transformers",
    "ray_options",
    "read_prompt",
    "set_max_pixels",
]

ENCODER_KEY = "encoder"
"""Where a memory's metadata keep what ``--encoder`` said."""

EMBEDDED = "embedded:"
ENCODERS = ("clip-16", "clip-32")
RANKERS = ("mllm",)
SERVER = ("http://", "https://")


def _embedded(spec: str, known: tuple[str, ...]) -> Path | None:
    """The folder of ``embedded:NAME``, None where the spec names no embedded model."""
    if not spec.startswith(EMBEDDED):
        return None
    name = spec.removeprefix(EMBEDDED)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3) or known[:1]
        raise OptionError(f"no embedded model {name!r} here; did you mean {EMBEDDED}{near[0]}?")
    from rarvision.embedded import weights_path

    return weights_path(name)


def _revision(spec: str) -> tuple[str, str | None]:
    """``NAME@REVISION`` in its two parts; a folder that is there stays whole."""
    name, at, revision = spec.rpartition("@")
    return (spec, None) if not at or Path(spec).exists() else (name, revision)


def local_mllm(spec: str) -> tuple[str | Path, str | None]:
    """A local MLLM's hub name or folder, and its revision: of ``NAME@REVISION``, a folder, or ``embedded:mllm``."""
    folder = _embedded(spec, RANKERS)
    return (folder, None) if folder is not None else _revision(spec)


def open_encoder(spec: str, *, device: str = "auto") -> Encoder:
    """Load an encoder by hub name, folder, or ``embedded:clip-16`` / ``embedded:clip-32``."""
    folder = _embedded(spec, ENCODERS)
    quiet_transformers()
    from rarvision.encoders import TransformersEncoder

    if folder is not None:
        return TransformersEncoder(folder, device=device)
    name, revision = _revision(spec)
    return TransformersEncoder(name, revision=revision, device=device)


def bind_encoder(memory: Memory, *, encoder: str | None = None, device: str = "auto") -> None:
    """Load a memory's encoder: the one given, else an embedded one by its name, else what the memory remembers.

    Raises:
        EncoderMismatchError: The memory's vectors are another's.
    """
    spec = _encoder_of(memory, encoder=encoder, device=device)
    if spec is not None:
        memory.bind(open_encoder(spec, device=device))
    else:
        quiet_transformers()
        _ = memory.encoder  # loads it now, so that what is wrong with it shows before images are read


def _encoder_of(memory: Memory, *, encoder: str | None, device: str) -> str | None:
    """What names the encoder to load; None where the memory itself knows best."""
    if encoder is not None:
        return encoder
    remembered = memory.info().metadata.get(ENCODER_KEY)
    if isinstance(remembered, str) and remembered.startswith(EMBEDDED):
        return remembered  # by name: the folder of an installed package moves
    if memory.encoder_name and device != "auto":
        return remembered if isinstance(remembered, str) else memory.encoder_name
    return None


def ray_options(memory: Memory, *, encoder: str | None = None, device: str = "auto") -> dict[str, Any]:
    """How Ray workers load a memory's encoder, as `bind_encoder` does here."""
    quiet_transformers()  # for the names, which are encoded here
    spec = _encoder_of(memory, encoder=encoder, device=device)
    if spec is not None:
        return {"load": partial(open_encoder, spec, device=device)}
    from rarvision.memory.bulk_ray import loader_of

    return {"load": loader_of(memory)}


@dataclass(frozen=True, kw_only=True)
class RankerOptions:
    """What the command line says about the ranker; see `rarvision.cli.options`."""

    spec: str
    strategy: str
    constrained: bool = False
    prompt: str | None = None
    permutations: int | Literal["all"] = 1
    debias: Debias | None = None
    exemplars: int = 0
    descriptions: bool = False
    layout: str = "auto"
    worked_example: bool = False
    model: str | None = None
    quantization: str | None = None
    adapter: Path | None = None
    api_key: str | None = None
    timeout_s: float = 60.0
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model is not None and not self.served:
            raise OptionError(f"--ranker-model goes with the URL of a server; got --ranker {self.spec}")
        if self.quantization is not None and self.served:
            raise OptionError("--quantization goes with a local model; a server loads its own")
        if self.adapter is not None and self.served:
            raise OptionError("--adapter goes with a local model; load the adapter into the server")
        if "max_tokens" in self.more and self.strategy not in ("generate", "auto"):  # before a model is loaded
            raise OptionError(f"--ranker-option max_tokens goes with --strategy generate, got {self.strategy}")
        self.check_corrections(self.strategy)

    def check_corrections(self, strategy: str) -> None:
        """Refuse corrections that a strategy has no use for; ``auto`` has not been decided yet."""
        given = f"got {strategy}" if strategy == self.strategy else f"--strategy {self.strategy} is {strategy} here"
        if self.permutations != 1 and strategy == "pointwise":
            raise OptionError(f"--permutations goes with strategies that show a list, {given}, which asks name by name")
        if self.debias is not None and strategy in ("generate", "pointwise"):
            why = "gives no log-probabilities" if strategy == "generate" else "asks name by name"
            raise OptionError(f"--debias goes with --strategy choice or likelihood, {given}, which {why}")
        if self.more.get("blank_weight") and strategy not in ("likelihood", "auto"):
            raise OptionError(f"--ranker-option blank_weight goes with --strategy likelihood, {given}")

    @property
    def served(self) -> bool:
        """Whether it is a server's."""
        return self.spec.startswith(SERVER)


def open_ranker(wanted: RankerOptions, *, device: str = "auto", batch_size: int = 8) -> Ranker | None:
    """Open a ranker by hub name, folder, URL, or ``embedded:mllm``; None for ``none``."""
    if wanted.spec == "none":
        return None
    template = read_prompt(wanted.prompt)
    from rarvision.ranking import Ranker

    ranker = Ranker(
        open_mllm(wanted, device=device, batch_size=batch_size),
        strategy=cast("Any", wanted.strategy),
        constrained=wanted.constrained,
        prompt=template,
        permutations=wanted.permutations,
        blank_weight=wanted.more.get("blank_weight", 0.0),
        exemplars=wanted.exemplars,
        descriptions=wanted.descriptions,
        layout=cast("Any", wanted.layout),
        worked_example=wanted.worked_example,
        max_tokens=wanted.more.get("max_tokens"),
    )
    wanted.check_corrections(ranker.strategy)
    if "max_tokens" in wanted.more and ranker.strategy != "generate":
        raise OptionError(
            f"--ranker-option max_tokens goes with --strategy generate; --strategy {wanted.strategy} is "
            f"{ranker.strategy} with this ranker"
        )
    return ranker


def open_mllm(wanted: RankerOptions, *, device: str = "auto", batch_size: int = 8) -> Chat:
    """Load the MLLM of a ranker, or connect to it."""
    more = {name: value for name, value in wanted.more.items() if name not in ("max_tokens", "blank_weight")}
    if wanted.served:
        from rarvision.chat import open_chat

        named = {"model": wanted.model} if wanted.model else {}
        return open_chat(wanted.spec, api_key=wanted.api_key, timeout_s=wanted.timeout_s, **named, **more)
    name, revision = local_mllm(wanted.spec)
    quiet_transformers()
    from rarvision.chat import CaptionerChat, LocalChat
    from rarvision.chat.captioner import is_captioner

    if wanted.adapter is None and wanted.quantization is None and is_captioner(name, revision=revision):
        return CaptionerChat(name, revision=revision, device=device, batch_size=batch_size)
    return LocalChat(
        name,
        revision=revision,
        device=device,
        batch_size=batch_size,
        quantization=cast("Any", wanted.quantization),
        adapter=wanted.adapter,
        **more,
    )


def read_prompt(given: str | None) -> str | None:
    """A prompt's name as it is; the text of a file."""
    from rarvision.ranking.prompts import RANKING_PROMPTS

    if given is None or given in RANKING_PROMPTS:
        return given
    path = Path(given)
    if not path.is_file():
        raise OptionError(f"--prompt must be one of {', '.join(RANKING_PROMPTS)}, or a text file; got {given!r}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"--prompt {given}: the file is not UTF-8 text ({error}); save it as UTF-8") from error


@contextmanager
def open_recognizer(
    path: PathOptions, *, some: Callable[[int], Iterable[Recognizable]] = lambda _n: (), **more: Any
) -> Iterator[Recognizer]:
    """Open the whole path on a memory; closed at the end.

    Args:
        path: What the command line says.
        some: So many of the images that will be recognised, for ``--debias``.
        more: For the recogniser.
    """
    from rarvision.memory.opening import open_memory
    from rarvision.pipeline import Recognizer
    from rarvision.retrieval import Retriever

    weight, fitted = _weight(path.ranker_weight), _calibration(path.calibration)
    text_weight = _text_weight(path.text_weight)
    gate, reject = _switch("--gate", path.gate), _switch("--unknown", path.unknown)
    sure = read_sure(path.sure, path.taxonomy)
    _check_ranker_is_named(path)
    if path.worked_example and path.repeats:
        raise OptionError("--worked-example does not go with --repeats: the example is an image that is left out")
    served = path.ranker.startswith(SERVER)
    ranker = RankerOptions(
        spec=path.ranker,
        strategy=path.strategy.value,
        constrained=path.constrained,
        prompt=path.prompt,
        permutations=read_permutations(path.permutations),
        debias=read_debias(path.debias),
        exemplars=path.exemplars,
        descriptions=path.descriptions,
        layout=path.layout.value,
        worked_example=path.worked_example,
        model=path.ranker_model,
        quantization=path.quantization.value if path.quantization else None,
        adapter=path.adapter,
        api_key=path.api_key,
        timeout_s=path.timeout,
        more=read_ranker_options(path.ranker_option or (), served=served),
    )
    with ExitStack() as stack:
        store = stack.enter_context(open_memory(path.memory))
        bind_encoder(store, encoder=path.encoder, device=path.device)
        ranks = open_ranker(ranker, device=path.device, batch_size=path.batch_size)
        if ranks is not None:
            stack.callback(ranks.chat.close)
        make = partial(
            Recognizer,
            store,
            retriever=Retriever(
                store,
                k=path.k,
                source=cast("Any", path.retrieval.value),
                aggregate=cast("Any", path.aggregate.value),
                distinct=not path.repeats,
                hubness=cast("Any", path.hubness.value),
                text_weight=text_weight,
            ),
            views=cast("Any", path.views.value),
            allow_fallback=path.allow_fallback,
            batch_size=path.batch_size,
            ranker_weight=weight,
            calibration=fitted,
            fit="kept" if path.fit else None,
            **more,
            taxonomy=open_tree(path.taxonomy, store),
        )
        if ranks is not None and ranker.debias is not None:
            ranks = _debiased(make(ranker=ranks), ranks, ranker.debias, some)
        yield make(ranker=ranks, gate=gate, reject=reject, sure=sure)


def _debiased(
    recognizer: Recognizer, ranker: Ranker, wanted: Debias, some: Callable[[int], Iterable[Recognizable]]
) -> Ranker:
    """The ranker with its prior of letters and places subtracted."""
    from rarvision.ranking import OptionPrior

    if wanted.file is not None and wanted.file.exists():
        try:
            prior = OptionPrior.from_dict(json.loads(wanted.file.read_text(encoding="utf-8")))
            return ranker.with_bias(prior)
        except (ValueError, OptionError) as error:  # what is not UTF-8, not JSON, or no prior of this ranker
            raise OptionError(f"--debias {wanted.file}: {error}") from error
    prior = recognizer.estimate_bias(some(wanted.images))
    used = f"estimated what letters and places are worth to the ranker from {sum(prior.images.values())} images"
    if wanted.file is None:
        say(used)
    else:
        wanted.file.parent.mkdir(parents=True, exist_ok=True)
        wanted.file.write_text(prior.to_json() + "\n", encoding="utf-8")
        say(f"{used}, and wrote it to {wanted.file}")
    return ranker.with_bias(prior)


_FOR_A_RANKER = (
    "strategy",
    "constrained",
    "prompt",
    "permutations",
    "debias",
    "exemplars",
    "descriptions",
    "layout",
    "worked_example",
    "ranker_weight",
    "gate",
    "allow_fallback",
    "quantization",
    "adapter",
    "ranker_model",
    "ranker_option",
    "timeout",
)


def _check_ranker_is_named(path: PathOptions) -> None:
    """Refuse what would be ignored without a ranker."""
    usual = {item.name: item.default for item in fields(PathOptions)}
    given = [name for name in _FOR_A_RANKER if (getattr(path, name) or usual[name]) != usual[name]]
    if path.ranker == "none" and given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise OptionError(
            f"{names} {'needs' if len(given) == 1 else 'need'} --ranker, the multimodal LLM that ranks: without one "
            "retrieval alone answers"
        )


def _weight(text: str) -> float | Literal["replace"] | None:
    if text == "auto":
        return None
    if text == "replace":
        return "replace"
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"--ranker-weight must be auto, a number or replace, got {text!r}") from None


def _switch(option: str, text: str) -> bool | float:
    if text in ("off", "auto"):
        return text == "auto"
    try:
        value = float(text)
    except ValueError:
        raise OptionError(f"{option} must be off, auto, or a number above 0 and at most 1, got {text!r}") from None
    if not 0.0 < value <= 1.0:
        raise OptionError(f"{option} must be off, auto, or a number above 0 and at most 1, got {text}")
    return value


def _text_weight(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        weight = float(text)
    except ValueError:
        raise OptionError(f"--text-weight must be a number from 0 to 1, or auto, got {text!r}") from None
    if not 0.0 <= weight <= 1.0:
        raise OptionError(f"--text-weight must lie between 0 and 1, got {text}; 0 is the images alone, 1 the names")
    return weight


def _calibration(path: Path | None) -> Calibration | None:
    """Read ``--calibration FILE``; None without it."""
    if path is None:
        return None
    from rarvision.calibration import Calibration

    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # what is not UTF-8, or not JSON
        raise OptionError(f"--calibration {path}: expected a JSON object, got something else: {error}") from error
    known = [field.name for field in fields(Calibration)]
    if not isinstance(values, dict):
        raise OptionError(f"--calibration {path}: expected a JSON object with some of {', '.join(known)}")
    for name, value in values.items():
        if name not in known:
            raise OptionError(f"--calibration {path}: expected some of {', '.join(known)}; got {name!r}")
        if name == "reject_above" and value is None:
            continue
        if isinstance(value, bool) != (name == "fitted") or not isinstance(value, (int, float)):
            kind = "true or false" if name == "fitted" else "a number"
            raise OptionError(f"--calibration {path}: {name} must be {kind}, got {value!r}")
    return Calibration(**values)


def set_max_pixels(limit: int | None) -> None:
    """Apply ``--max-pixels`` to every image that this process reads."""
    if limit is not None:
        os.environ["RARVISION_MAX_PIXELS"] = str(limit)


def is_main_process() -> bool:
    """Whether this process speaks for all that ``accelerate launch`` or ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


def quiet_transformers() -> None:
    """Keep the model libraries' advice off the person's terminal: what matters comes as an error. Downloads show."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights, and of downloads, which take long enough to be watched
    if sys.stderr.isatty():
        enable_progress_bars()
