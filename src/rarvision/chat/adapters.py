"""LoRA adapters for a local model, in peft's format: whether one is whole and the model's own, and putting it on."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rarvision.chat.loading import require
from rarvision.checkpoints import weights_fingerprint
from rarvision.errors import AdapterError

__all__ = ["ADAPTER_METADATA", "ADAPTER_WEIGHTS", "Adapter"]

ADAPTER_METADATA = "rarvision.json"
"""Beside peft's files: the base model, what the adapter was trained on, and how."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A trained adapter on disk.

    Attributes:
        folder: Where it is.
        sha256: Of its weights.
        metadata: What rarvision wrote beside them; empty for an adapter that another program made.
    """

    folder: Path
    sha256: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path | str) -> Adapter:
        """Find an adapter and check that it is whole; loads nothing.

        Raises:
            AdapterError: There is none, or it is cut short or damaged.
        """
        folder = Path(folder).expanduser()
        if not (folder / "adapter_config.json").is_file():
            raise AdapterError(f"no adapter at {folder}: {_instead(folder)}")
        weights = folder / ADAPTER_WEIGHTS
        if not weights.is_file():
            raise AdapterError(f"{folder}: has no {ADAPTER_WEIGHTS}, and pickled weights are not opened; copy it anew")
        _check_whole(weights)
        with weights.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        metadata = _metadata(folder)
        expected = metadata.get("weights_sha256", sha256)
        if sha256 != expected:
            raise AdapterError(
                f"{weights}: the weights are not those that were saved (SHA-256 {sha256[:12]}…, expected "
                f"{str(expected)[:12]}…); copy the adapter anew"
            )
        return cls(folder=folder, sha256=sha256, metadata=metadata)

    @property
    def identity(self) -> str:
        """SHA-256 of all that changes an answer: weights and configuration, but not where the base model lay."""
        config = json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))
        config.pop("base_model_name_or_path", None)
        return hashlib.sha256(json.dumps([self.sha256, config], sort_keys=True).encode()).hexdigest()

    @property
    def base(self) -> Mapping[str, Any]:
        """The base model's ``name``, ``revision`` and ``fingerprint``, as far as they are known."""
        base = self.metadata.get("base", {})
        return base if isinstance(base, Mapping) else {}

    def check_base(self, model: str, *, revision: str | None) -> None:
        """Check that the adapter was trained on these weights.

        An adapter that another program made does not tell; that is logged, and putting it on finds out about shapes.

        Raises:
            AdapterError: It belongs to another model.
        """
        trained_on = self.base.get("fingerprint")
        if trained_on is None:
            _log.warning("%s does not tell its base model: whether it belongs to %s is not known", self.folder, model)
            return
        found = weights_fingerprint(model, revision=revision, missing=AdapterError)
        if found != trained_on:
            at = f"@{self.base['revision']}" if self.base.get("revision") else ""
            raise AdapterError(
                f"{self.folder} was trained on {self.base.get('name', 'another model')}{at}, whose weights are not "
                f"those of {model}: give that model with this adapter, or an adapter that was trained on {model}"
            )

    def attach(self, model: Any) -> Any:
        """Put the adapter on a loaded model, in place; returns the model, for answering, not for training.

        Raises:
            MissingExtraError: peft is not installed.
            AdapterError: It does not fit the model.
        """
        return self.wrap(model).base_model.model.eval()

    def wrap(self, model: Any) -> Any:
        """The same as a peft model around it.

        Raises:
            MissingExtraError: peft is not installed.
            AdapterError: It does not fit the model.
        """
        require("peft", extra="tune", wanted="an adapter")
        from peft import PeftModel, get_peft_model_state_dict
        from safetensors import safe_open

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of missing weights: they are compared below
                wrapped = PeftModel.from_pretrained(model, self.folder, torch_device=str(model.device))
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise AdapterError(
                f"{self.folder} does not fit the model: {str(error)[:300]}; give the model that it was trained on"
            ) from error
        with safe_open(self.folder / ADAPTER_WEIGHTS, framework="pt") as stored:
            differing = sorted(set(stored.keys()) ^ set(get_peft_model_state_dict(wrapped)))
        if differing:
            raise AdapterError(
                f"{self.folder} does not fit the model: {len(differing)} weights are on one side only, such as "
                f"{differing[0]}; give the model that it was trained on"
            )
        return wrapped


def _instead(folder: Path) -> str:
    """What to give instead of a folder that is no adapter."""
    if (folder / "adapter" / "adapter_config.json").is_file():
        return f"it is the folder of a training run; give {folder / 'adapter'}"
    if (folder / "config.json").is_file():
        return "it is a whole model; give it as the model, without an adapter"
    if not folder.is_dir():
        return "there is no such folder (one on a hub must be downloaded first: hf download NAME)"
    return "it has no adapter_config.json; give the folder that `rarvision tune train` wrote"


def _check_whole(weights: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="np"):
            pass
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{weights}: is cut short or damaged ({error}); copy the adapter anew") from error


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_METADATA
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:  # what is not UTF-8, not JSON, or no object
        raise AdapterError(f"{path}: is damaged ({error}); copy the adapter anew") from error
