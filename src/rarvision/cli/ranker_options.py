"""What the ranker is told in texts of its own: ``--ranker-option KEY=VALUE``, ``--permutations`` and ``--debias``."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rarvision.errors import OptionError

__all__ = ["DEBIAS_IMAGES", "HELP", "Debias", "read_debias", "read_permutations", "read_ranker_options"]

DEBIAS_IMAGES = 64
"""How many images ``--debias FILE`` estimates from where the file is not there yet."""

_Backend = Literal["server", "local"]


@dataclass(frozen=True, kw_only=True)
class _Key:
    """One key: who takes it, what it looks like, what it does."""

    backends: tuple[_Backend, ...]
    form: str
    help: str
    read: Callable[[str], Any]


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise ValueError(text)
        return value

    return read


def _one_of(*names: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    return read


def _from_0(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise ValueError(text)
    return value


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)  # noqa: TRY004 - as every reader here
    return value


def _device_map(text: str) -> str | dict[str, Any]:
    return _json_object(text) if text.startswith("{") else _one_of("auto", "balanced", "sequential")(text)


_GUIDED = ("structured_outputs", "guided_regex", "regex")
_DTYPES = ("auto", "float32", "float16", "bfloat16")
_KEYS: dict[str, _Key] = {
    "max_tokens": _Key(
        backends=("server", "local"),
        form="a whole number from 1",
        help="longest answer of --strategy generate; thinking models need some thousands",
        read=_whole(1),
    ),
    "guided": _Key(
        backends=("server",),
        form=" or ".join(_GUIDED),
        help="the server's field for guided decoding, which --constrained needs: structured_outputs (vLLM), "
        "guided_regex (older vLLM), regex (SGLang)",
        read=_one_of(*_GUIDED),
    ),
    "top_logprobs": _Key(
        backends=("server",),
        form="a whole number from 1 to 20",
        help="how many log-probabilities to ask for, 20 unless the server serves fewer",
        read=_whole(1, 20),
    ),
    "extra_body": _Key(
        backends=("server",),
        form='a JSON object such as {"temperature": null}',
        help="more fields for each request; null leaves one of ours out",
        read=_json_object,
    ),
    "concurrency": _Key(
        backends=("server",),
        form="a whole number from 1",
        help="requests at a time, 8",
        read=_whole(1),
    ),
    "retries": _Key(
        backends=("server",),
        form="a whole number from 0",
        help="attempts after the first one that fails, 4",
        read=_whole(0),
    ),
    "blank_weight": _Key(
        backends=("local",),
        form="a number from 0",
        help="with --strategy likelihood: how much of what each name scores under a blank image to subtract; 1 leaves "
        "what the image adds, 0 is off",
        read=_from_0,
    ),
    "dtype": _Key(
        backends=("local",),
        form=", ".join(_DTYPES),
        help="number format of the weights: " + ", ".join(_DTYPES),
        read=_one_of(*_DTYPES),
    ),
    "device_map": _Key(
        backends=("local",),
        form="auto, balanced, sequential, or a JSON object",
        help="auto spreads the model over the GPUs; or a JSON object; needs rarvision[device-map]",
        read=_device_map,
    ),
}
_WHO = {("server",): "a server", ("local",): "a local model", ("server", "local"): "both"}
HELP = "Keys of --ranker-option KEY=VALUE, and who takes them:\n" + "\n".join(
    textwrap.fill(f"{name} ({_WHO[key.backends]}): {key.help}", 94, initial_indent="  ", subsequent_indent="      ")
    for name, key in _KEYS.items()
)
"""The list of keys, for the help of the commands that take the option."""


def read_ranker_options(given: Sequence[str], *, served: bool) -> Mapping[str, Any]:
    """The values by key, checked.

    Args:
        given: ``KEY=VALUE`` texts.
        served: Whether the ranker is a server's.

    Raises:
        OptionError: No such key, one of the other backend, one that is given twice, or a value that is none of its.
    """
    mine: _Backend = "server" if served else "local"
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in _KEYS:
            near = difflib.get_close_matches(name, _KEYS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS)}"
            raise OptionError(f"--ranker-option has no key {name!r}; {hint}")
        key = _KEYS[name]
        if not equals:
            raise OptionError(f"--ranker-option {name} needs a value: {name}=VALUE, which is {key.form}")
        if mine not in key.backends:
            needed = "the URL of a server" if mine == "local" else "a local model"
            raise OptionError(f"--ranker-option {name} goes with {needed} as --ranker")
        if name in values:
            raise OptionError(f"--ranker-option {name} was given twice; give it once")
        try:
            values[name] = key.read(value.strip())
        except ValueError:
            raise OptionError(f"--ranker-option {name} must be {key.form}; got {value!r}") from None
    return values


def read_permutations(text: str) -> int | Literal["all"]:
    """``--permutations N|all``; raises `OptionError` where it is neither."""
    if text == "all":
        return "all"
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"--permutations must be a whole number from 1, or all; got {text!r}")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class Debias:
    """Where the prior of letters and places comes from.

    Attributes:
        file: Read where it is there; else written.
        images: How many images it is estimated from, where there is no file to read.
    """

    file: Path | None
    images: int


def read_debias(text: str | None) -> Debias | None:
    """``--debias N|FILE``; None without it. Raises `OptionError` for no images."""
    if text is None:
        return None
    if not text.isdecimal():
        return Debias(file=Path(text), images=DEBIAS_IMAGES)
    if int(text) < 1:
        raise OptionError("--debias N needs at least one image to estimate from; a few dozen do")
    return Debias(file=None, images=int(text))
